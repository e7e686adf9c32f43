//! `envoy.config.route.v3.RetryPolicy`, and the words of `retry_on` as headers have them too.

use std::time::Duration;

use crate::codec::name::HeaderName;
use crate::config::matcher::header::HeaderMatcher;

/// When and how a request is tried again.
#[derive(Debug)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Default 1.
    pub num_retries: u32,
    /// `None`: the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    /// First back-off; default 25 ms.
    pub base_interval: Duration,
    /// Default ten times `base_interval`.
    pub max_interval: Duration,
    pub rate_limited: Option<RateLimitedBackOff>,
    pub retriable_status_codes: Box<[u16]>,
    /// Response headers; any that matches makes the response retriable.
    pub retriable_headers: Box<[HeaderMatcher]>,
    /// Request headers; none: every request may be retried, else one must match.
    pub retriable_request_headers: Box<[HeaderMatcher]>,
    /// `envoy.retry_host_predicates.previous_hosts`.
    pub avoid_previous_hosts: bool,
    /// `envoy.retry_host_predicates.omit_canary_hosts`.
    pub omit_canary_hosts: bool,
    /// How often the balancer is asked again for a host that the predicates accept. Default 1.
    pub host_selection_max_attempts: u32,
}

impl RetryPolicy {
    /// `retry_back_off.base_interval` when nothing is said (Envoy: `upstream.base_retry_backoff_ms`).
    pub const DEFAULT_BASE_INTERVAL: Duration = Duration::from_millis(25);
}

impl Default for RetryPolicy {
    /// As an empty message: nothing is retried.
    fn default() -> Self {
        Self {
            retry_on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            base_interval: Self::DEFAULT_BASE_INTERVAL,
            max_interval: Self::DEFAULT_BASE_INTERVAL * 10,
            rate_limited: None,
            retriable_status_codes: Box::default(),
            retriable_headers: Box::default(),
            retriable_request_headers: Box::default(),
            avoid_previous_hosts: false,
            omit_canary_hosts: false,
            host_selection_max_attempts: 1,
        }
    }
}

/// `rate_limited_retry_back_off`: the response says how long to wait.
#[derive(Debug)]
pub struct RateLimitedBackOff {
    /// The first that is there and can be read counts.
    pub reset_headers: Box<[ResetHeader]>,
    /// Longer waits are not waited. Default 300 s.
    pub max_interval: Duration,
}

/// A response header with the time to wait.
#[derive(Debug)]
pub struct ResetHeader {
    pub name: HeaderName,
    pub format: ResetHeaderFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetHeaderFormat {
    /// To wait.
    Seconds,
    /// Seconds since 1970 at which to go on.
    UnixTimestamp,
}

/// A set of retry conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

macro_rules! retry_on {
    ($($(#[$doc:meta])* $konst:ident = $bit:literal, $text:literal, $kind:ident;)*) => {
        impl RetryOn {
            $($(#[$doc])* pub const $konst: Self = Self(1 << $bit);)*
            const WORDS: &[(Self, &'static str, Kind)] = &[$((Self::$konst, $text, Kind::$kind)),*];
        }
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Grpc,
}

retry_on! {
    /// A 5xx answer, or none at all (disconnect, reset, read timeout).
    FIVE_XX = 0, "5xx", Http;
    /// 502, 503 or 504.
    GATEWAY_ERROR = 1, "gateway-error", Http;
    CONNECT_FAILURE = 2, "connect-failure", Http;
    /// 409.
    RETRIABLE_4XX = 3, "retriable-4xx", Http;
    /// RST_STREAM with REFUSED_STREAM.
    REFUSED_STREAM = 4, "refused-stream", Http;
    RETRIABLE_STATUS_CODES = 5, "retriable-status-codes", Http;
    /// No answer: disconnect, reset, read timeout.
    RESET = 6, "reset", Http;
    RETRIABLE_HEADERS = 7, "retriable-headers", Http;
    /// `x-envoy-ratelimited` is in the answer.
    ENVOY_RATE_LIMITED = 8, "envoy-ratelimited", Http;
    /// `RESET` before the request was sent.
    RESET_BEFORE_REQUEST = 9, "reset-before-request", Http;
    HTTP3_POST_CONNECT_FAILURE = 10, "http3-post-connect-failure", Http;
    GRPC_CANCELLED = 16, "cancelled", Grpc;
    GRPC_DEADLINE_EXCEEDED = 17, "deadline-exceeded", Grpc;
    GRPC_RESOURCE_EXHAUSTED = 18, "resource-exhausted", Grpc;
    GRPC_UNAVAILABLE = 19, "unavailable", Grpc;
    GRPC_INTERNAL = 20, "internal", Grpc;
}

impl RetryOn {
    /// The words of a policy's `retry_on`: HTTP and gRPC ones; others are passed over, as Envoy does.
    pub fn parse(words: &str) -> Self {
        Self::parse_http(words).0 | Self::parse_grpc(words).0
    }

    /// `x-envoy-retry-on`; false when a word is not a condition for HTTP.
    pub fn parse_http(words: &str) -> (Self, bool) {
        Self::parse_kind(words, Kind::Http)
    }

    /// `x-envoy-retry-grpc-on`; false when a word is not a condition for gRPC.
    pub fn parse_grpc(words: &str) -> (Self, bool) {
        Self::parse_kind(words, Kind::Grpc)
    }

    fn parse_kind(words: &str, kind: Kind) -> (Self, bool) {
        let mut set = Self::default();
        let mut all_known = true;
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match Self::WORDS.iter().find(|(_, text, of)| *of == kind && *text == word) {
                Some((flag, ..)) => set = set | *flag,
                None => all_known = false,
            }
        }
        (set, all_known)
    }

    pub fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    pub fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOr for RetryOn {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_both_kinds() {
        let set = RetryOn::parse("5xx, unavailable,retriable-4xx,nonsense");
        assert!(
            set.contains(RetryOn::FIVE_XX | RetryOn::GRPC_UNAVAILABLE | RetryOn::RETRIABLE_4XX)
        );
        assert!(!set.intersects(RetryOn::RESET | RetryOn::GRPC_INTERNAL));
        assert_eq!(RetryOn::parse_http("5xx,cancelled"), (RetryOn::FIVE_XX, false));
        assert_eq!(RetryOn::parse_grpc("cancelled"), (RetryOn::GRPC_CANCELLED, true));
        assert!(RetryOn::parse("").is_empty());
    }
}
