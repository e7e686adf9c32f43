//! Header names: the ones the proxy knows have a number, so that finding one in a head compares a
//! byte, not a string. Names are case-insensitive (RFC 9110 §5.1); the lower-case form is kept.

use std::borrow::Cow;
use std::fmt;

macro_rules! known_names {
    ($($konst:ident = $text:literal,)*) => {
        #[repr(u8)]
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "one spelling for number and constant")]
        enum Id { UNKNOWN, $($konst),* }

        /// The number of every name that is not known.
        const UNKNOWN: u8 = Id::UNKNOWN as u8;

        /// Lower-case text by number; `UNKNOWN` has none.
        const TEXT: &[&str] = &["", $($text),*];

        /// The names that the proxy itself reads or writes.
        pub mod names {
            use super::{HeaderName, Id};
            use std::borrow::Cow;
            $(pub const $konst: HeaderName = HeaderName { id: Id::$konst as u8, text: Cow::Borrowed($text) };)*
        }

        /// Their numbers, for codecs that look at every line of a head.
        #[expect(dead_code, reason = "the codecs look at a few only")]
        pub(super) mod ids {
            use super::Id;
            $(pub(in crate::codec) const $konst: u8 = Id::$konst as u8;)*
        }
    };
}

known_names! {
    ACCEPT = "accept",
    ACCEPT_ENCODING = "accept-encoding",
    ACCESS_CONTROL_ALLOW_CREDENTIALS = "access-control-allow-credentials",
    ACCESS_CONTROL_ALLOW_HEADERS = "access-control-allow-headers",
    ACCESS_CONTROL_ALLOW_METHODS = "access-control-allow-methods",
    ACCESS_CONTROL_ALLOW_ORIGIN = "access-control-allow-origin",
    ACCESS_CONTROL_ALLOW_PRIVATE_NETWORK = "access-control-allow-private-network",
    ACCESS_CONTROL_EXPOSE_HEADERS = "access-control-expose-headers",
    ACCESS_CONTROL_MAX_AGE = "access-control-max-age",
    ACCESS_CONTROL_REQUEST_HEADERS = "access-control-request-headers",
    ACCESS_CONTROL_REQUEST_METHOD = "access-control-request-method",
    ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK = "access-control-request-private-network",
    AGE = "age",
    AUTHENTICATION = "authentication",
    AUTHORIZATION = "authorization",
    CACHE_CONTROL = "cache-control",
    CONNECTION = "connection",
    CONTENT_ENCODING = "content-encoding",
    CONTENT_LENGTH = "content-length",
    CONTENT_TYPE = "content-type",
    COOKIE = "cookie",
    DATE = "date",
    ETAG = "etag",
    EXPECT = "expect",
    EXPIRES = "expires",
    GRPC_ACCEPT_ENCODING = "grpc-accept-encoding",
    GRPC_MESSAGE = "grpc-message",
    GRPC_STATUS = "grpc-status",
    GRPC_TIMEOUT = "grpc-timeout",
    HOST = "host",
    HTTP2_SETTINGS = "http2-settings",
    IF_MATCH = "if-match",
    IF_MODIFIED_SINCE = "if-modified-since",
    IF_NONE_MATCH = "if-none-match",
    IF_RANGE = "if-range",
    IF_UNMODIFIED_SINCE = "if-unmodified-since",
    KEEP_ALIVE = "keep-alive",
    LAST_MODIFIED = "last-modified",
    LOCATION = "location",
    ORIGIN = "origin",
    PRAGMA = "pragma",
    PROXY_CONNECTION = "proxy-connection",
    PROXY_STATUS = "proxy-status",
    REFERER = "referer",
    RETRY_AFTER = "retry-after",
    SERVER = "server",
    SET_COOKIE = "set-cookie",
    TE = "te",
    TRACEPARENT = "traceparent",
    TRAILER = "trailer",
    TRANSFER_ENCODING = "transfer-encoding",
    UPGRADE = "upgrade",
    USER_AGENT = "user-agent",
    VARY = "vary",
    VIA = "via",
    X_B3_SAMPLED = "x-b3-sampled",
    X_CLIENT_TRACE_ID = "x-client-trace-id",
    X_ENVOY_ATTEMPT_COUNT = "x-envoy-attempt-count",
    X_ENVOY_DECORATOR_OPERATION = "x-envoy-decorator-operation",
    X_ENVOY_DEGRADED = "x-envoy-degraded",
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER = "x-envoy-downstream-service-cluster",
    X_ENVOY_DOWNSTREAM_SERVICE_NODE = "x-envoy-downstream-service-node",
    X_ENVOY_DROP_OVERLOAD = "x-envoy-drop-overload",
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS = "x-envoy-expected-rq-timeout-ms",
    X_ENVOY_EXTERNAL_ADDRESS = "x-envoy-external-address",
    X_ENVOY_FORCE_TRACE = "x-envoy-force-trace",
    X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout",
    X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail",
    X_ENVOY_INTERNAL = "x-envoy-internal",
    X_ENVOY_IP_TAGS = "x-envoy-ip-tags",
    X_ENVOY_IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry",
    X_ENVOY_LOCAL_OVERLOADED = "x-envoy-local-overloaded",
    X_ENVOY_MAX_RETRIES = "x-envoy-max-retries",
    X_ENVOY_ORIGINAL_HOST = "x-envoy-original-host",
    X_ENVOY_ORIGINAL_METHOD = "x-envoy-original-method",
    X_ENVOY_ORIGINAL_PATH = "x-envoy-original-path",
    X_ENVOY_ORIGINAL_URL = "x-envoy-original-url",
    X_ENVOY_OVERLOADED = "x-envoy-overloaded",
    X_ENVOY_RATELIMITED = "x-envoy-ratelimited",
    X_ENVOY_RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names",
    X_ENVOY_RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes",
    X_ENVOY_RETRY_GRPC_ON = "x-envoy-retry-grpc-on",
    X_ENVOY_RETRY_ON = "x-envoy-retry-on",
    X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD = "x-envoy-unconditional-drop-overload",
    X_ENVOY_UPSTREAM_ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name",
    X_ENVOY_UPSTREAM_CANARY = "x-envoy-upstream-canary",
    X_ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster",
    X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS = "x-envoy-upstream-rq-timeout-ms",
    X_ENVOY_UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time",
    X_ENVOY_UPSTREAM_STREAM_DURATION_MS = "x-envoy-upstream-stream-duration-ms",
    X_FORWARDED_CLIENT_CERT = "x-forwarded-client-cert",
    X_FORWARDED_FOR = "x-forwarded-for",
    X_FORWARDED_HOST = "x-forwarded-host",
    X_FORWARDED_PORT = "x-forwarded-port",
    X_FORWARDED_PROTO = "x-forwarded-proto",
    X_OT_SPAN_CONTEXT = "x-ot-span-context",
    X_REQUEST_ID = "x-request-id",
}

/// The heads of messages have a bit for each.
const _: () = assert!(TEXT.len() <= 128, "more known names than bits");

/// A header name, always lower case. Cheap to compare with the entries of a head.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderName {
    pub(super) id: u8,
    text: Cow<'static, str>,
}

/// Why a text is no header name: empty, or a byte outside `tchar` (RFC 9110 §5.6.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid header name")]
pub struct InvalidHeaderName(pub String);

impl HeaderName {
    /// Takes any case; pseudo-header names (`:path`) are valid here, since matchers and formatters name them.
    ///
    /// # Errors
    /// The text is empty or has a byte that a field name cannot have.
    pub fn parse(text: &str) -> Result<Self, InvalidHeaderName> {
        let body = text.strip_prefix(':').unwrap_or(text);
        if body.is_empty() || !body.bytes().all(is_tchar) {
            return Err(InvalidHeaderName(text.to_owned()));
        }
        let id = id_of(text.as_bytes());
        let text = match id {
            UNKNOWN => Cow::Owned(text.to_ascii_lowercase()),
            id => Cow::Borrowed(TEXT[id as usize]),
        };
        Ok(Self { id, text })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether Envoy keeps this name's values in one line of a request.
    pub fn is_inline_in_requests(&self) -> bool {
        INLINE_IN_REQUESTS >> self.id & 1 == 1
    }

    /// As `is_inline_in_requests`, for responses.
    pub fn is_inline_in_responses(&self) -> bool {
        INLINE_IN_RESPONSES >> self.id & 1 == 1
    }

    /// `:method` and its kin: not fields of the list but parts of the head.
    pub fn is_pseudo(&self) -> bool {
        self.text.starts_with(':')
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Some of the known names: whether a head has any of them is one question, not one for each.
#[derive(Debug, Clone, Copy)]
pub struct NameSet(pub(super) [u64; 2]);

impl NameSet {
    /// # Panics
    /// When it is evaluated, which is by the compiler: a name is not a known one.
    pub const fn new(names: &[HeaderName]) -> Self {
        let mut set = [0; 2];
        let mut i = 0;
        while i < names.len() {
            assert!(names[i].id != UNKNOWN, "not a known name");
            set[(names[i].id >> 6 & 1) as usize] |= 1 << (names[i].id & 63);
            i += 1;
        }
        Self(set)
    }
}

/// A bit for each number.
const fn bits(of: &[u8]) -> u128 {
    let mut set = 0;
    let mut i = 0;
    while i < of.len() {
        set |= 1 << of[i];
        i += 1;
    }
    set
}

/// Lines that Envoy joins by a comma, found by sending each name twice through Envoy 1.40.
const INLINE_IN_BOTH: u128 = bits(&[
    ids::CACHE_CONTROL,
    ids::CONNECTION,
    ids::CONTENT_ENCODING,
    ids::CONTENT_LENGTH,
    ids::CONTENT_TYPE,
    ids::KEEP_ALIVE,
    ids::PROXY_CONNECTION,
    ids::PROXY_STATUS,
    ids::TRANSFER_ENCODING,
    ids::UPGRADE,
    ids::VIA,
    ids::X_ENVOY_ATTEMPT_COUNT,
    ids::X_ENVOY_DECORATOR_OPERATION,
    ids::X_REQUEST_ID,
]);

/// One bit a number: lines of a request that Envoy joins.
pub(super) const INLINE_IN_REQUESTS: u128 = INLINE_IN_BOTH
    | bits(&[
        ids::ACCEPT,
        ids::ACCEPT_ENCODING,
        ids::ACCESS_CONTROL_REQUEST_HEADERS,
        ids::ACCESS_CONTROL_REQUEST_METHOD,
        ids::ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK,
        ids::AUTHENTICATION,
        ids::AUTHORIZATION,
        ids::EXPECT,
        ids::GRPC_ACCEPT_ENCODING,
        ids::GRPC_TIMEOUT,
        ids::IF_MATCH,
        ids::IF_MODIFIED_SINCE,
        ids::IF_NONE_MATCH,
        ids::IF_RANGE,
        ids::IF_UNMODIFIED_SINCE,
        ids::ORIGIN,
        ids::PRAGMA,
        ids::REFERER,
        ids::TE,
        ids::USER_AGENT,
        ids::X_CLIENT_TRACE_ID,
        ids::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
        ids::X_ENVOY_DOWNSTREAM_SERVICE_NODE,
        ids::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
        ids::X_ENVOY_EXTERNAL_ADDRESS,
        ids::X_ENVOY_FORCE_TRACE,
        ids::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
        ids::X_ENVOY_INTERNAL,
        ids::X_ENVOY_IP_TAGS,
        ids::X_ENVOY_IS_TIMEOUT_RETRY,
        ids::X_ENVOY_MAX_RETRIES,
        ids::X_ENVOY_ORIGINAL_HOST,
        ids::X_ENVOY_ORIGINAL_PATH,
        ids::X_ENVOY_ORIGINAL_URL,
        ids::X_ENVOY_RETRIABLE_HEADER_NAMES,
        ids::X_ENVOY_RETRIABLE_STATUS_CODES,
        ids::X_ENVOY_RETRY_GRPC_ON,
        ids::X_ENVOY_RETRY_ON,
        ids::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
        ids::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
        ids::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
        ids::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
        ids::X_ENVOY_UPSTREAM_STREAM_DURATION_MS,
        ids::X_FORWARDED_CLIENT_CERT,
        ids::X_FORWARDED_FOR,
        ids::X_FORWARDED_HOST,
        ids::X_FORWARDED_PORT,
        ids::X_FORWARDED_PROTO,
    ]);

/// As `INLINE_IN_REQUESTS`, for responses.
pub(super) const INLINE_IN_RESPONSES: u128 = INLINE_IN_BOTH
    | bits(&[
        ids::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ids::ACCESS_CONTROL_ALLOW_HEADERS,
        ids::ACCESS_CONTROL_ALLOW_METHODS,
        ids::ACCESS_CONTROL_ALLOW_ORIGIN,
        ids::ACCESS_CONTROL_ALLOW_PRIVATE_NETWORK,
        ids::ACCESS_CONTROL_EXPOSE_HEADERS,
        ids::ACCESS_CONTROL_MAX_AGE,
        ids::AGE,
        ids::DATE,
        ids::ETAG,
        ids::EXPIRES,
        ids::GRPC_MESSAGE,
        ids::GRPC_STATUS,
        ids::LAST_MODIFIED,
        ids::LOCATION,
        ids::SERVER,
        ids::VARY,
        ids::X_ENVOY_DEGRADED,
        ids::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL,
        ids::X_ENVOY_RATELIMITED,
        ids::X_ENVOY_UPSTREAM_CANARY,
        ids::X_ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER,
        ids::X_ENVOY_UPSTREAM_SERVICE_TIME,
    ]);

/// Bytes that a token may have (RFC 9110 §5.6.2).
pub fn is_tchar(b: u8) -> bool {
    matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~')
}

const SLOTS: usize = 512;

const fn slot_of(name: &[u8]) -> usize {
    let n = name.len();
    let a = (name[0] | 0x20) as usize;
    let b = (name[n / 2] | 0x20) as usize;
    let c = (name[n - 1] | 0x20) as usize;
    let d = (name[n * 3 / 4] | 0x20) as usize;
    (n * 37 + a * 7 + b * 131 + c * 17 + d * 67) % SLOTS
}

/// Open-addressed table over `TEXT`, made by the compiler.
const TABLE: [u8; SLOTS] = {
    let mut table = [UNKNOWN; SLOTS];
    let mut i = 1;
    while i < TEXT.len() {
        let mut s = slot_of(TEXT[i].as_bytes());
        while table[s] != UNKNOWN {
            s = (s + 1) % SLOTS;
        }
        table[s] = i as u8;
        i += 1;
    }
    table
};

/// The text of a known name; empty for `UNKNOWN`.
pub(super) fn text_of(id: u8) -> &'static str {
    TEXT.get(usize::from(id)).copied().unwrap_or("")
}

/// The number of a name in any case, 0 when it is not a known one.
pub(super) fn id_of(name: &[u8]) -> u8 {
    if name.is_empty() {
        return UNKNOWN;
    }
    let mut s = slot_of(name);
    loop {
        let id = TABLE[s];
        if id == UNKNOWN || is_same(TEXT[id as usize].as_bytes(), name) {
            return id;
        }
        s = (s + 1) % SLOTS;
    }
}

/// Whether `name` is `text` in some case. `text` is lower case; of the bytes that setting the case bit
/// maps to one of its letters, digits and hyphens only those themselves are in a token.
fn is_same(text: &[u8], name: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
    };
    let n = text.len();
    if n != name.len() {
        return false;
    }
    if n < 8 {
        return text.eq_ignore_ascii_case(name);
    }
    // The last word overlaps the one before it.
    let mut differ = (word(name, n - 8) | CASE) ^ word(text, n - 8);
    let mut at = 0;
    while at + 8 < n {
        differ |= (word(name, at) | CASE) ^ word(text, at);
        at += 8;
    }
    differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for (i, text) in TEXT.iter().enumerate().skip(1) {
            assert_eq!(id_of(text.as_bytes()) as usize, i, "{text}");
            assert_eq!(id_of(text.to_ascii_uppercase().as_bytes()) as usize, i, "{text}");
        }
        assert_eq!(id_of(b"x-unknown"), 0);
        assert_eq!(id_of(b"hosu"), 0);
    }

    #[test]
    fn names_outside_tchar_are_refused() {
        assert!(HeaderName::parse("a b").is_err());
        assert!(HeaderName::parse("").is_err());
        assert!(HeaderName::parse(":").is_err());
        assert_eq!(HeaderName::parse("X-Request-ID").unwrap(), names::X_REQUEST_ID);
        assert!(HeaderName::parse(":path").unwrap().is_pseudo());
    }
}
