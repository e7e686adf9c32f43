//! How many connections may be open: in the process (runtime key `overload.global_downstream_max_connections`) and at
//! one listener (`envoy.resource_limits.listener.<name>.connection_limit`). Counted over all workers, whether there is a
//! limit or not, since one may come later.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustc_hash::FxHashMap;

use crate::config::listener::Listener;
use crate::config::runtime::{self, Own};
use crate::stats::names::ListenerStat;

/// All listeners' connections.
static ALL: AtomicU64 = AtomicU64::new(0);

/// Open connections of all listeners (`server.total_connections`).
pub fn all() -> u64 {
    ALL.load(Relaxed)
}

/// Those of each listener by its name, so that its versions count together. Asked when a listener is made.
static LISTENERS: LazyLock<Mutex<FxHashMap<Box<str>, Weak<AtomicU64>>>> =
    LazyLock::new(Mutex::default);

/// The open connections of one listener.
#[derive(Debug)]
pub struct OpenConnections(Arc<AtomicU64>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Open(Arc<AtomicU64>);

impl OpenConnections {
    /// Of the listener of this name.
    pub fn of(name: &str) -> Self {
        let mut all = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name).and_then(Weak::upgrade) {
            return Self(known);
        }
        // Before it grows, those go that nobody serves and that have no connection.
        if all.len() == all.capacity() {
            all.retain(|_, count| count.strong_count() > 0);
        }
        let new = Arc::default();
        all.insert(name.into(), Arc::downgrade(&new));
        Self(new)
    }

    /// The counter of the limit that one more connection would pass, where there is one.
    #[inline]
    pub fn refusal(&self, config: &Listener) -> Option<ListenerStat> {
        runtime::has(Own::ConnectionLimits).then(|| self.refusal_by_runtime(config)).flatten()
    }

    #[cold]
    fn refusal_by_runtime(&self, config: &Listener) -> Option<ListenerStat> {
        let is_reached = |key: &str, count: &AtomicU64| {
            runtime::integer(key).is_some_and(|limit| count.load(Relaxed) >= limit)
        };
        if !config.ignore_global_conn_limit && is_reached(runtime::GLOBAL_CONNECTIONS, &ALL) {
            return Some(ListenerStat::DownstreamGlobalCxOverflow);
        }
        is_reached(&runtime::listener_connections(&config.name), &self.0)
            .then_some(ListenerStat::DownstreamCxOverflow)
    }

    /// Counts one more.
    pub fn enter(&self) -> Open {
        ALL.fetch_add(1, Relaxed);
        self.0.fetch_add(1, Relaxed);
        Open(self.0.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        ALL.fetch_sub(1, Relaxed);
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_listener_count_together() {
        let (first, second) = (OpenConnections::of("limits.a"), OpenConnections::of("limits.a"));
        let other = OpenConnections::of("limits.b");
        let (one, _two) = (first.enter(), second.enter());
        assert_eq!((second.0.load(Relaxed), other.0.load(Relaxed)), (2, 0));
        drop((first, second, one));
        assert_eq!(OpenConnections::of("limits.a").0.load(Relaxed), 1, "a connection keeps it");
    }
}
