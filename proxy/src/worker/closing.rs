//! Whether an answer tells its client to go: health checks that an operator has failed, and drains of listeners. Asked
//! for each answer when its head is sent, as Envoy asks, so that requests in flight are told, and connections which come
//! late. Control and all workers share it: when the operator has his answer, the next of a listener is told.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::listener::DrainType;

/// `/drain_listeners?graceful`: of listeners by their numbers.
#[derive(Debug, Clone)]
pub struct ListenerDrain {
    pub numbers: Arc<[usize]>,
    pub began: Instant,
    /// `--drain-time-s`
    pub within: Duration,
    /// `--drain-strategy`: more and more answers over the time, or each one.
    pub gradually: bool,
}

impl ListenerDrain {
    fn closes(&self, listener: usize, now: Instant, random: impl FnOnce() -> u64) -> bool {
        if !self.numbers.contains(&listener) {
            return false;
        }
        let elapsed = now.saturating_duration_since(self.began);
        if !self.gradually || elapsed >= self.within {
            return true;
        }
        // As Envoy counts: in whole seconds, of which those that are left are rounded down.
        let within = self.within.as_secs();
        let elapsed = within.saturating_sub((self.within - elapsed).as_secs());
        within == 0 || elapsed > random() % within
    }
}

/// Bits of what there is to be asked.
mod bit {
    pub(super) const UNHEALTHY: u8 = 1;
    pub(super) const DRAINS: u8 = 2;
}

/// What answers ask.
#[derive(Debug, Default)]
pub struct Closing {
    /// Zero for as long as nobody is told: all that most answers ever read.
    state: AtomicU8,
    /// A drain begins once: of the inbound listeners, and of all.
    inbound: OnceLock<ListenerDrain>,
    all: OnceLock<ListenerDrain>,
}

impl Closing {
    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail_health(&self, failed: bool) {
        if failed {
            self.state.fetch_or(bit::UNHEALTHY, Ordering::Release);
        } else {
            self.state.fetch_and(!bit::UNHEALTHY, Ordering::Release);
        }
    }

    pub fn is_unhealthy(&self) -> bool {
        self.state.load(Ordering::Relaxed) & bit::UNHEALTHY != 0
    }

    /// False where these listeners drain already: as they did, they go on.
    pub fn start(&self, drain: ListenerDrain, inbound_only: bool) -> bool {
        let begins = match (inbound_only, self.all.get()) {
            (true, None) => self.inbound.set(drain).is_ok(),
            (true, Some(_)) => false,
            (false, _) => self.all.set(drain).is_ok(),
        };
        self.state.fetch_or(bit::DRAINS, Ordering::Release);
        begins
    }

    /// Whether an answer of a listener is its connection's last. `listener`: its number and its drain type, asked for
    /// only where there is something to ask.
    pub fn closes(
        &self,
        listener: impl FnOnce() -> Option<(usize, DrainType)>,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if state == 0 {
            return false;
        }
        let Some((listener, drain_type)) = listener() else { return false };
        if state & bit::UNHEALTHY != 0 && drain_type == DrainType::Default {
            return true;
        }
        let mut drains = [&self.all, &self.inbound].into_iter().filter_map(OnceLock::get);
        drains.any(|drain| drain.closes(listener, now, &mut random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_close_by_health_and_by_drain() {
        let (closing, now) = (Closing::default(), Instant::now());
        let after = |secs| now + Duration::from_secs(secs);
        let never = || unreachable!("it is not asked");
        let by = |number, drain_type| move || Some((number, drain_type));
        let one = || by(1, DrainType::Default);
        assert!(!closing.closes(|| unreachable!("nor is this"), now, never));
        closing.fail_health(true);
        assert!(closing.closes(one(), now, never));
        assert!(!closing.closes(by(1, DrainType::ModifyOnly), now, never));
        closing.fail_health(false);
        assert!(!closing.closes(one(), now, never));
        let within = Duration::from_secs(100);
        let drain = ListenerDrain { numbers: [1].into(), began: now, within, gradually: true };
        assert!(closing.start(drain.clone(), true));
        assert!(!closing.closes(by(2, DrainType::Default), after(200), never));
        assert!(!closing.closes(one(), now, || 0));
        assert!(closing.closes(one(), now + Duration::from_millis(500), || 0));
        assert!(!closing.closes(one(), now + Duration::from_millis(500), || 1));
        assert!(!closing.closes(one(), after(50), || 1050));
        assert!(closing.closes(one(), after(51), || 1050));
        assert!(closing.closes(by(1, DrainType::ModifyOnly), after(100), never));
        assert!(!closing.start(drain.clone(), true));
        let all = ListenerDrain { numbers: [1, 2].into(), gradually: false, ..drain.clone() };
        assert!(closing.start(all, false) && !closing.start(drain, true));
        assert!(closing.closes(one(), now, never));
        assert!(closing.closes(by(2, DrainType::Default), now, never));
    }
}
