//! One data-plane thread: a current-thread runtime with its sockets, connections, pools and counters.

pub mod clock;
pub mod closing;
pub mod connections;
pub mod listeners;
pub mod run;
pub mod timers;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::access_log::WorkerAccessLogs;
use crate::cluster::WorkerClusters;
use crate::hcm::request_headers::LocalInfo;
use crate::hcm::response_headers::DateCache;
use crate::listener::by_address::ListenersByAddress;
use crate::load_balancer::Rng;
use crate::stats::names::RouterStat;
use crate::stats::{Block, Registry};
use clock::Clock;
use closing::Closing;
use connections::Connections;
use timers::Timers;

/// What stations of the data path share on one worker. `!Send`.
pub struct WorkerContext {
    /// 0-based.
    pub index: usize,
    pub timers: Timers,
    pub clusters: WorkerClusters,
    pub registry: Registry,
    /// `http.async-client`: requests that the proxy makes itself.
    pub async_client: Block<RouterStat>,
    pub access_logs: Rc<WorkerAccessLogs>,
    pub connections: Connections,
    /// Asked for each request.
    pub closing: Arc<Closing>,
    /// Where redirected connections go.
    pub listeners: ListenersByAddress,
    pub local: Arc<LocalInfo>,
    pub date: DateCache,
    pub clock: Clock,
    rng: RefCell<Rng>,
    /// Streams and connections so far: the low bits of their ids.
    ids: Cell<u64>,
}

impl fmt::Debug for WorkerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerContext").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Bits of an id that count within a worker; above them stands the worker's number, so that ids are unique in
/// the process without being shared.
const ID_BITS: u32 = 48;

impl WorkerContext {
    pub fn new(
        index: usize,
        timers: Timers,
        clusters: WorkerClusters,
        registry: Registry,
        access_logs: Rc<WorkerAccessLogs>,
        local: Arc<LocalInfo>,
        seed: u64,
    ) -> Self {
        Self {
            index,
            timers,
            clusters,
            async_client: registry.scope("http.async-client").block(index),
            registry,
            access_logs,
            connections: Connections::default(),
            closing: Arc::default(),
            listeners: ListenersByAddress::default(),
            local,
            date: DateCache::default(),
            clock: Clock::default(),
            rng: RefCell::new(Rng::new(seed)),
            ids: Cell::new(0),
        }
    }

    /// A random number: not for secrets.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().next()
    }

    /// A number that no other connection or stream of the process has.
    pub fn next_id(&self) -> u64 {
        let next = self.ids.get() + 1;
        self.ids.set(next);
        ((self.index as u64) << ID_BITS) | next
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
