//! The downstream connections of one worker: who is there, and how they are told to drain.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::timers::{Timer, Timers};
use crate::config::listener::DrainType;
use crate::listener::limits::Open;

/// How long a connection that drains waits for what its client may have sent already, to be answered with
/// `connection: close`. Closed at once, it could cross a request on its way, which its client could not repeat.
pub const LAST_CALL: Duration = Duration::from_secs(1);

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// Serve on.
    No,
    /// Finish what is in flight, take nothing new: `connection: close`, GOAWAY.
    Graceful,
}

/// Why we have ended a connection, whose requests hear it as their `response_code_details`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its listener has gone, or the process ends.
    #[default]
    Listener,
    /// Its filter chain has.
    FilterChain,
}

impl Cut {
    /// In Envoy's words.
    pub fn details(self) -> &'static str {
        match self {
            Self::Listener => {
                "downstream_local_disconnect(purging_socket_that_have_not_progressed_to_connections)"
            }
            Self::FilterChain => "downstream_local_disconnect(filter_chain_is_being_removed)",
        }
    }
}

/// One connection's entry. Dropping it takes the connection off the list.
pub struct ConnectionHandle {
    shared: Rc<Shared>,
    slot: usize,
}

#[derive(Default)]
struct Shared {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    active: Cell<usize>,
    serial: Cell<u64>,
    /// Everybody drains, who comes late too.
    all_drain: Cell<bool>,
    /// Somebody has been told to end: before, nobody looks whether it was him.
    told: Cell<bool>,
    empty_waker: RefCell<Option<Waker>>,
}

struct Slot {
    listener: usize,
    drain_type: DrainType,
    /// Number of its filter chain; 0 before it is found.
    chain: u64,
    /// Tells it from another connection that had or gets its place.
    serial: u64,
    drain: Drain,
    waker: Option<Waker>,
    /// The task that serves it, where it may be ended by force.
    task: Option<AbortHandle>,
    /// Its place among those that are limited.
    open: Option<Open>,
    /// Why it was.
    cut: Option<Cut>,
    used: bool,
}

/// A connection, which may have gone since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionKey {
    slot: usize,
    /// From 1.
    serial: u64,
}

impl ConnectionKey {
    /// No connection's.
    pub const NONE: Self = Self { slot: 0, serial: 0 };
}

/// All connections of a worker.
#[derive(Default, Clone)]
pub struct Connections(Rc<Shared>);

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("active", &self.active()).finish()
    }
}

impl fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionHandle").field("slot", &self.slot).finish()
    }
}

impl Connections {
    /// Enters a connection of a listener (its number).
    pub fn enter(
        &self,
        listener: usize,
        drain_type: DrainType,
        open: Option<Open>,
    ) -> ConnectionHandle {
        let drain = if self.0.all_drain.get() { Drain::Graceful } else { Drain::No };
        self.0.told.set(self.0.told.get() || drain != Drain::No);
        let serial = self.0.serial.get() + 1;
        self.0.serial.set(serial);
        let slot = Slot {
            listener,
            drain_type,
            chain: 0,
            serial,
            drain,
            waker: None,
            task: None,
            open,
            cut: None,
            used: true,
        };
        let mut slots = self.0.slots.borrow_mut();
        let at = match self.0.free.borrow_mut().pop() {
            Some(at) => {
                slots[at] = slot;
                at
            }
            None => {
                slots.push(slot);
                slots.len() - 1
            }
        };
        self.0.active.set(self.0.active.get() + 1);
        ConnectionHandle { shared: self.0.clone(), slot: at }
    }

    pub fn active(&self) -> usize {
        self.0.active.get()
    }

    /// Tells all connections, and those still to come, to end after what is in flight.
    pub fn drain_all(&self) {
        self.0.all_drain.set(true);
        self.drain(Drain::Graceful, |_| true);
    }

    /// Tells the connections of some listeners; a connection never goes back to an earlier state.
    pub fn drain(&self, drain: Drain, wanted: impl Fn(usize) -> bool) {
        let mut wakers = Vec::new();
        self.0.told.set(true);
        for slot in self.0.slots.borrow_mut().iter_mut() {
            if slot.used && slot.drain < drain && wanted(slot.listener) {
                slot.drain = drain;
                wakers.extend(slot.waker.take());
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// The connections of which `wanted` (listener, chain) is true.
    pub fn keys(&self, wanted: impl Fn(usize, u64) -> bool) -> Vec<ConnectionKey> {
        let slots = self.0.slots.borrow();
        let slots = slots.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.used && wanted(slot.listener, slot.chain))
            .map(|(at, slot)| ConnectionKey { slot: at, serial: slot.serial })
            .collect()
    }

    /// Tells one connection, if it is still there.
    pub fn drain_one(&self, key: ConnectionKey, drain: Drain) {
        self.0.told.set(true);
        let waker = self.with(key, |slot| {
            let told = slot.drain < drain;
            slot.drain = slot.drain.max(drain);
            slot.waker.take_if(|_| told)
        });
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
    }

    /// Whether a connection, if it is still there, has been told to end.
    pub fn is_told(&self, key: ConnectionKey) -> bool {
        self.0.told.get() && self.with(key, |slot| slot.drain != Drain::No) == Some(true)
    }

    /// A connection's listener, by its number, and how that drains; `None` where it is not there any more.
    pub fn listener_of(&self, key: ConnectionKey) -> Option<(usize, DrainType)> {
        self.with(key, |slot| (slot.listener, slot.drain_type))
    }

    /// Ends one connection by force, if it is still there: its task is dropped, and what guards its statistics and logs
    /// with it.
    pub fn abort(&self, key: ConnectionKey, why: Cut) {
        let task = self.with(key, |slot| {
            slot.cut = Some(why);
            slot.task.take()
        });
        if let Some(task) = task.flatten() {
            task.abort();
        }
    }

    /// Why a connection was ended by force, if it was and is still there.
    pub fn cut_of(&self, key: ConnectionKey) -> Option<Cut> {
        self.with(key, |slot| slot.cut).flatten()
    }

    /// Notes the task that serves a connection.
    pub fn set_task(&self, key: ConnectionKey, task: AbortHandle) {
        self.with(key, |slot| slot.task = Some(task));
    }

    fn with<T>(&self, key: ConnectionKey, act: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut slots = self.0.slots.borrow_mut();
        let slot = slots.get_mut(key.slot).filter(|s| s.used && s.serial == key.serial)?;
        Some(act(slot))
    }

    /// Ready when no connection is left; one waiter.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.active() == 0 {
            return Poll::Ready(());
        }
        *self.0.empty_waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl ConnectionHandle {
    /// The filter chain was found.
    pub fn set_chain(&self, chain: u64) {
        self.shared.slots.borrow_mut()[self.slot].chain = chain;
    }

    pub fn key(&self) -> ConnectionKey {
        let serial = self.shared.slots.borrow()[self.slot].serial;
        ConnectionKey { slot: self.slot, serial }
    }

    /// Ready when the state is above `seen`; the task that polls last is woken.
    pub fn poll_drain(&self, seen: Drain, cx: &mut Context<'_>) -> Poll<Drain> {
        let slot = &mut self.shared.slots.borrow_mut()[self.slot];
        if slot.drain > seen {
            return Poll::Ready(slot.drain);
        }
        match &slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => slot.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        let slot = &mut self.shared.slots.borrow_mut()[self.slot];
        slot.used = false;
        slot.waker = None;
        slot.open = None;
        let task = slot.task.take();
        self.shared.free.borrow_mut().push(self.slot);
        let active = self.shared.active.get() - 1;
        self.shared.active.set(active);
        drop(task);
        if active == 0
            && let Some(waker) = self.shared.empty_waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// The end of a wait for a client's first byte: [`LAST_CALL`] after its connection began to drain.
#[derive(Debug)]
pub struct LastCall<'a> {
    handle: &'a ConnectionHandle,
    timer: Timer,
    called: bool,
}

impl<'a> LastCall<'a> {
    pub fn new(handle: &'a ConnectionHandle, timers: &Timers) -> Self {
        Self { handle, timer: timers.timer(), called: false }
    }

    /// Ready when nothing more is waited for.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.called && self.handle.poll_drain(Drain::No, cx).is_ready() {
            self.called = true;
            self.timer.arm(Instant::now() + LAST_CALL);
        }
        self.timer.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drains_reach_their_listener_only_and_slots_are_used_again() {
        let all = Connections::default();
        let mut cx = Context::from_waker(Waker::noop());
        let enter = |listener| all.enter(listener, DrainType::Default, None);
        let (a, b) = (enter(0), enter(1));
        assert!(a.poll_drain(Drain::No, &mut cx).is_pending());
        all.drain(Drain::Graceful, |listener| listener == 0);
        assert_eq!(a.poll_drain(Drain::No, &mut cx), Poll::Ready(Drain::Graceful));
        assert!(all.is_told(a.key()) && !all.is_told(b.key()));
        assert_eq!(all.listener_of(b.key()), Some((1, DrainType::Default)));
        let gone = a.key();
        drop(a);
        assert!(!all.is_told(gone) && all.listener_of(gone).is_none());
        assert!(all.poll_empty(&mut cx).is_pending());
        let c = enter(1);
        assert!(c.slot == 0 && !all.is_told(c.key()) && !all.is_told(gone));
        drop((b, c));
        assert!(all.poll_empty(&mut cx).is_ready());
    }
}
