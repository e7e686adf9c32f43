//! Whether an answer tells its client to go: health checks that an operator has failed, and drains of listeners. Asked
//! for each request, as Envoy's drain manager is for each response, so that connections which come late are told too.
//! Control and all workers share it: when the operator has his answer, the next request is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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
        // In milliseconds, as Envoy counts them; there is at least one, or the time would be over.
        let (elapsed, within) = (elapsed.as_millis() as u64, self.within.as_millis() as u64);
        elapsed > random() % within.max(1)
    }
}

/// What answers ask.
#[derive(Debug, Default)]
pub struct Closing {
    is_unhealthy: AtomicBool,
    /// A drain begins once: of the inbound listeners, and of all.
    inbound: OnceLock<ListenerDrain>,
    all: OnceLock<ListenerDrain>,
}

impl Closing {
    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn fail_health(&self, failed: bool) {
        self.is_unhealthy.store(failed, Ordering::Release);
    }

    pub fn is_unhealthy(&self) -> bool {
        self.is_unhealthy.load(Ordering::Acquire)
    }

    /// False where these listeners drain already: as they did, they go on.
    pub fn start(&self, drain: ListenerDrain, inbound_only: bool) -> bool {
        match (inbound_only, self.all.get()) {
            (true, None) => self.inbound.set(drain).is_ok(),
            (true, Some(_)) => false,
            (false, _) => self.all.set(drain).is_ok(),
        }
    }

    /// Whether a request of a listener (its number) is its connection's last.
    pub fn closes(&self, listener: usize, now: Instant, mut random: impl FnMut() -> u64) -> bool {
        self.is_unhealthy() || {
            let mut drains = [&self.all, &self.inbound].into_iter().filter_map(OnceLock::get);
            drains.any(|drain| drain.closes(listener, now, &mut random))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_close_by_health_and_by_drain() {
        let (closing, now) = (Closing::default(), Instant::now());
        let after = |millis| now + Duration::from_millis(millis);
        let never = || unreachable!("it is not asked");
        assert!(!closing.closes(1, now, never));
        closing.fail_health(true);
        assert!(closing.closes(1, now, never));
        closing.fail_health(false);
        assert!(!closing.closes(1, now, never));
        let within = Duration::from_millis(100);
        let drain = ListenerDrain { numbers: [1].into(), began: now, within, gradually: true };
        assert!(closing.start(drain.clone(), true));
        assert!(!closing.closes(2, after(200), never));
        assert!(!closing.closes(1, now, || 0));
        assert!(!closing.closes(1, after(50), || 1050));
        assert!(closing.closes(1, after(51), || 1050));
        assert!(closing.closes(1, after(100), never));
        assert!(!closing.start(drain.clone(), true));
        let all = ListenerDrain { numbers: [1, 2].into(), gradually: false, ..drain.clone() };
        assert!(closing.start(all, false) && !closing.start(drain, true));
        assert!(closing.closes(1, now, never) && closing.closes(2, now, never));
    }
}
