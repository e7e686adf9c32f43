//! Exponential back-off with full jitter, and the bucket that bounds requests.

use std::time::{Duration, Instant};

/// Bounds of the wait before a stream is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The first wait is below this. Default 500 ms.
    pub base: Duration,
    /// No wait is above this. Default 30 s.
    pub max: Duration,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// Each wait is a random part of an interval that doubles from `base` to `max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    options: BackoffOptions,
    interval: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new(options: BackoffOptions, seed: u64) -> Self {
        Self { options, interval: options.base, random: seed }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let interval = self.interval;
        self.interval = interval.saturating_mul(2).min(self.options.max.max(self.options.base));
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(mixed % millis)
    }

    pub(crate) fn reset(&mut self) {
        self.interval = self.options.base;
    }
}

/// `rate_limit_settings` of an `ApiConfigSource`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Requests that may go at once. Default 100.
    pub max_tokens: u32,
    /// Requests a second after that. Default 10.
    pub fill_rate: f64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { max_tokens: 100, fill_rate: 10.0 }
    }
}

#[derive(Debug)]
pub(crate) struct Bucket {
    limit: RateLimit,
    tokens: f64,
    filled: Option<Instant>,
}

impl Bucket {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self { limit, tokens: f64::from(limit.max_tokens), filled: None }
    }

    /// Takes a token, or says when there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(filled) = self.filled {
            let passed = now.saturating_duration_since(filled).as_secs_f64();
            let full = f64::from(self.limit.max_tokens);
            self.tokens = (self.tokens + passed * self.limit.fill_rate).min(full);
        }
        self.filled = Some(now);
        // A sum of parts may miss one by a rounding.
        if self.tokens >= 1.0 - 1e-6 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let missing = (1.0 - self.tokens) / self.limit.fill_rate.max(1e-3);
        Err(now + Duration::from_secs_f64(missing.min(3600.0)) + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_over() {
        let mut backoff = Backoff::new(BackoffOptions::default(), 7);
        for _ in 0..20 {
            assert!(backoff.next() <= Duration::from_secs(30));
        }
        assert_eq!(backoff.interval, Duration::from_secs(30));
        backoff.reset();
        assert!(backoff.next() < Duration::from_millis(500));
    }

    #[test]
    fn a_bucket_holds_requests_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RateLimit { max_tokens: 2, fill_rate: 10.0 });
        assert_eq!((bucket.take(start), bucket.take(start)), (Ok(()), Ok(())));
        let at = bucket.take(start).unwrap_err();
        assert!(at > start + Duration::from_millis(99) && at < start + Duration::from_millis(110));
        assert_eq!(bucket.take(at), Ok(()));
    }
}
