//! A pool's place in `max_connection_pools`, for as long as it has connections or requests wait for one: each holds it.
//!
//! As in Envoy, where a pool goes with the last of them, and one that only has idle connections goes as soon as another
//! pool of its host needs the place.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::cluster::HostContext;
use crate::cluster::circuit_breaker::{Overflow, Resource};
use crate::config::cluster::RoutingPriority;

/// See the module.
#[derive(Debug)]
pub(super) struct Seat {
    host: Rc<HostContext>,
    priority: RoutingPriority,
    counted: Cell<bool>,
}

impl Seat {
    fn take(host: &Rc<HostContext>, priority: RoutingPriority) -> Result<Rc<Self>, Overflow> {
        host.cluster.shared.breakers.try_acquire(Resource::ConnectionPools, priority)?;
        Ok(Rc::new(Self { host: host.clone(), priority, counted: Cell::new(true) }))
    }

    /// Leaves the place to another pool: connections that still hold it are about to close.
    fn give_back(&self) {
        if self.counted.replace(false) {
            self.host.cluster.shared.breakers.release(Resource::ConnectionPools, self.priority);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Where a pool finds the seat that its connections hold.
#[derive(Debug, Default)]
pub(super) struct SeatSlot(RefCell<Weak<Seat>>);

impl SeatSlot {
    pub(super) fn held(&self) -> Option<Rc<Seat>> {
        self.0.borrow().upgrade()
    }

    pub(super) fn take(
        &self,
        host: &Rc<HostContext>,
        priority: RoutingPriority,
    ) -> Result<Rc<Seat>, Overflow> {
        let seat = Seat::take(host, priority)?;
        self.0.replace(Rc::downgrade(&seat));
        Ok(seat)
    }

    pub(super) fn give_back(&self) {
        if let Some(seat) = self.held() {
            seat.give_back();
        }
    }
}
