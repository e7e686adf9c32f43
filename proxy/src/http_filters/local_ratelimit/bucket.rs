//! A token bucket that all workers share: one atomic, refilled continuously.
//!
//! What is stored is the moment at which the bucket was (or would have been) empty; the tokens are the time
//! since then by the rate, as in Envoy's `AtomicTokenBucketImpl`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The bucket of a limit or descriptor.
#[derive(Debug)]
pub(super) struct TokenBucket {
    max: f64,
    /// Tokens per second.
    rate: f64,
    origin: Instant,
    /// Seconds from `origin` to when it was empty; the bits of an `f64`.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// Full from the start.
    pub(super) fn new(max: u32, tokens_per_fill: u32, interval: Duration) -> Self {
        let (max, rate) = (f64::from(max), f64::from(tokens_per_fill) / interval.as_secs_f64());
        Self {
            max,
            rate,
            origin: Instant::now(),
            empty_at: AtomicU64::new((-(max / rate)).to_bits()),
        }
    }

    fn at(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.origin).as_secs_f64()
    }

    fn tokens(&self, now: f64, empty_at: u64) -> f64 {
        ((now - f64::from_bits(empty_at)) * self.rate).min(self.max)
    }

    /// Takes so many tokens where all of them are there; none cannot be taken, as in Envoy.
    pub(super) fn consume(&self, now: Instant, wanted: u64) -> bool {
        let (now, wanted) = (self.at(now), wanted as f64);
        self.empty_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
                let tokens = self.tokens(now, empty_at);
                (wanted > 0.0 && tokens >= wanted)
                    .then(|| (now - (tokens - wanted) / self.rate).to_bits())
            })
            .is_ok()
    }

    /// Gives tokens back.
    pub(super) fn give(&self, now: Instant, given: u64) {
        let (now, given) = (self.at(now), given as f64);
        let _ = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let tokens = (self.tokens(now, empty_at) + given).min(self.max);
            Some((now - tokens / self.rate).to_bits())
        });
    }

    pub(super) fn max_tokens(&self) -> u64 {
        self.max as u64
    }

    /// Whole tokens that are there.
    pub(super) fn remaining(&self, now: Instant) -> u64 {
        self.tokens(self.at(now), self.empty_at.load(Ordering::Relaxed)).max(0.0) as u64
    }

    /// Seconds until there is a whole token, rounded up; 0 where there is one.
    pub(super) fn reset_seconds(&self, now: Instant) -> u64 {
        let tokens = self.tokens(self.at(now), self.empty_at.load(Ordering::Relaxed));
        if tokens >= 1.0 { 0 } else { ((1.0 - tokens) / self.rate).ceil() as u64 }
    }

    /// Tokens per second: of several limits the slowest comes first.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_with_time_and_not_above_the_maximum() {
        let bucket = TokenBucket::new(2, 1, Duration::from_secs(10));
        let at = |secs: u64| bucket.origin + Duration::from_secs(secs);
        assert_eq!((bucket.remaining(at(0)), bucket.reset_seconds(at(0))), (2, 0));
        assert!(bucket.consume(at(0), 1));
        assert!(bucket.consume(at(0), 1));
        assert!(!bucket.consume(at(0), 1));
        assert_eq!((bucket.remaining(at(0)), bucket.reset_seconds(at(0))), (0, 10));
        assert_eq!(bucket.reset_seconds(at(3)), 7);
        assert!(!bucket.consume(at(9), 1));
        assert!(bucket.consume(at(10), 1));
        assert!(!bucket.consume(at(11), 1));
        assert_eq!(bucket.remaining(at(1000)), 2);
        assert!(bucket.consume(at(1000), 1) && bucket.consume(at(1000), 1));
        assert!(!bucket.consume(at(1000), 1));
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let bucket = TokenBucket::new(1000, 1, Duration::from_secs(1_000_000));
        let now = bucket.origin;
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).filter(|_| bucket.consume(now, 1)).count()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
