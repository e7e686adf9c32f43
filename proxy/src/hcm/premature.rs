//! Requests that HTTP/2 clients take back as soon as they have made them (CVE-2023-44487, FAULTS D1): a connection of
//! which most are is closed. Counted as by Envoy: a stream that lived longer, or had an answer, is a good one.

use std::cell::Cell;
use std::time::Duration;

use crate::config::runtime;

/// So many streams are looked at together, where the runtime key does not say otherwise. Envoy's 500 would let more
/// than FAULTS' 200 requests start before the connection is closed.
const STREAMS: u64 = 400;

/// Whole seconds, where the runtime key does not say otherwise: Envoy's default.
const SOON: u64 = 1;

/// Whether a stream of this age is reset early.
pub(super) fn is_soon(age: Duration) -> bool {
    let soon = runtime::integer("overload.premature_reset_min_stream_lifetime_seconds");
    age.as_secs() <= soon.unwrap_or(SOON)
}

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct PrematureResets {
    /// Streams that have ended, in whatever way.
    ended: Cell<u64>,
    premature: Cell<u64>,
}

impl PrematureResets {
    /// Takes a stream that has ended into account; whether there were too many by now.
    pub(super) fn count(&self, is_premature: bool) -> bool {
        self.ended.set(self.ended.get() + 1);
        if !is_premature {
            return false;
        }
        self.premature.set(self.premature.get() + 1);
        let streams = runtime::integer("overload.premature_reset_total_stream_count");
        // Half of all streams; before there are so many, as many as make it half whatever follows.
        2 * self.premature.get() >= self.ended.get().max(streams.unwrap_or(STREAMS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many streams a connection ends of which every `nth` is reset at once.
    fn lasts(nth: u64) -> Option<u64> {
        let resets = PrematureResets::default();
        (1..=10_000).find(|stream| resets.count(stream % nth == 0))
    }

    #[test]
    fn most_streams_of_a_connection_have_to_live() {
        assert_eq!(lasts(1), Some(STREAMS / 2));
        assert_eq!(lasts(2), Some(STREAMS));
        assert_eq!(lasts(3), None);
        // Many at once are made up for by those before.
        let resets = PrematureResets::default();
        assert!((0..1000).all(|_| !resets.count(false)));
        assert!((0..999).all(|_| !resets.count(true)));
        assert!(resets.count(true));
    }

    #[test]
    fn a_stream_that_lived_is_not_reset_early() {
        assert!(is_soon(Duration::ZERO));
        assert!(is_soon(Duration::from_millis(1999)));
        assert!(!is_soon(Duration::from_secs(2)));
    }
}
