//! When a request is tried again: policy and headers, what is left, back-off. Follows Envoy's `RetryStateImpl`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::failure::ResetReason;
use crate::codec::head::{RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, NameSet, names};
use crate::config::route::retry::{ResetHeaderFormat, RetryOn, RetryPolicy};

/// What a request may say of its retries; it does not go upstream.
const RETRY_HEADERS: &[HeaderName] = &[
    names::X_ENVOY_RETRY_ON,
    names::X_ENVOY_RETRY_GRPC_ON,
    names::X_ENVOY_MAX_RETRIES,
    names::X_ENVOY_RETRIABLE_STATUS_CODES,
    names::X_ENVOY_RETRIABLE_HEADER_NAMES,
    names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
];

/// The retries of one request.
#[derive(Debug)]
pub struct RetryState {
    on: RetryOn,
    remaining: u32,
    /// From the request's headers; beside the policy's.
    status_codes: Vec<u16>,
    header_names: Vec<HeaderName>,
    policy: Option<Arc<RetryPolicy>>,
    next_interval: Duration,
    /// A retry was made: the next good answer is its success.
    retried: bool,
}

/// What to do about an answer or a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// After this wait.
    Retry(BackOff),
    /// It would be retried, but no retry is left (`URX`).
    Exhausted,
}

/// How long to wait before a retry, and who said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackOff {
    Exponential(Duration),
    /// A reset header of the response.
    RateLimited(Duration),
}

/// What the request's headers add to the policy.
#[derive(Default)]
struct Asked {
    on: RetryOn,
    max: Option<u32>,
    status_codes: Vec<u16>,
    header_names: Vec<HeaderName>,
}

impl Asked {
    fn take(head: &mut RequestHead) -> Self {
        let mut on = RetryOn::default();
        if let Some(words) = head.headers.get_str(&names::X_ENVOY_RETRY_ON) {
            on = on | RetryOn::parse_http(words).0;
        }
        if let Some(words) = head.headers.get_str(&names::X_ENVOY_RETRY_GRPC_ON) {
            on = on | RetryOn::parse_grpc(words).0;
        }
        let asked = Self {
            on,
            max: head.headers.get_str(&names::X_ENVOY_MAX_RETRIES).and_then(|v| v.parse().ok()),
            status_codes: list(head, &names::X_ENVOY_RETRIABLE_STATUS_CODES)
                .filter_map(|code| code.parse().ok())
                .collect(),
            header_names: list(head, &names::X_ENVOY_RETRIABLE_HEADER_NAMES)
                .filter_map(|name| HeaderName::parse(name).ok())
                .collect(),
        };
        for name in RETRY_HEADERS {
            head.headers.remove(name);
        }
        asked
    }
}

impl RetryState {
    /// Takes the request's retry headers; `None` where nothing is to be retried.
    pub fn new(policy: Option<&Arc<RetryPolicy>>, head: &mut RequestHead) -> Option<Self> {
        let mut asked = Asked::default();
        if head.headers.may_contain(const { NameSet::new(RETRY_HEADERS) }) {
            asked = Asked::take(head);
        }
        let on = policy.map_or(RetryOn::default(), |p| p.retry_on) | asked.on;
        if on.is_empty() {
            return None;
        }
        if let Some(policy) = policy
            && !policy.retriable_request_headers.is_empty()
            && !policy.retriable_request_headers.iter().any(|m| m.matches(head))
        {
            return None;
        }
        Some(Self {
            on,
            remaining: asked.max.unwrap_or_else(|| policy.map_or(1, |p| p.num_retries)),
            status_codes: asked.status_codes,
            header_names: asked.header_names,
            next_interval: policy.map_or(RetryPolicy::DEFAULT_BASE_INTERVAL, |p| p.base_interval),
            policy: policy.cloned(),
            retried: false,
        })
    }

    pub fn policy(&self) -> Option<&RetryPolicy> {
        self.policy.as_deref()
    }

    /// What to do about a response's head. True in the second place: an earlier retry was a success.
    pub fn on_response(&mut self, head: &ResponseHead, random: u64) -> (Verdict, bool) {
        if !self.retries_response(head) {
            return (Verdict::Accept, std::mem::take(&mut self.retried));
        }
        let limited = self.rate_limited(head);
        (self.spend(limited, random), false)
    }

    /// What to do about a failure without a response. `sent`: some of the request was sent.
    pub fn on_reset(&mut self, reason: ResetReason, sent: bool, random: u64) -> Verdict {
        if !self.retries_reset(reason, sent) {
            self.retried = false;
            return Verdict::Accept;
        }
        self.spend(None, random)
    }

    /// The breaker has refused the retry that `Retry` spent: nothing changes that another could be refused too.
    fn spend(&mut self, limited: Option<Duration>, random: u64) -> Verdict {
        self.retried = false;
        if self.remaining == 0 {
            return Verdict::Exhausted;
        }
        self.remaining -= 1;
        self.retried = true;
        // What is no wait at all is left to the policy.
        if let Some(wait) = limited
            && wait > Duration::from_millis(1)
        {
            let jitter = random % (wait.as_millis() as u64 / 2).max(1);
            return Verdict::Retry(BackOff::RateLimited(wait + Duration::from_millis(jitter)));
        }
        let interval = self.next_interval;
        let max = self.policy.as_ref().map_or(interval * 10, |p| p.max_interval);
        self.next_interval = (interval * 2).min(max);
        let ms = interval.as_millis().max(1) as u64;
        Verdict::Retry(BackOff::Exponential(Duration::from_millis(random % ms)))
    }

    fn retries_reset(&self, reason: ResetReason, sent: bool) -> bool {
        if reason == ResetReason::Overflow {
            return false;
        }
        self.on.intersects(RetryOn::RESET | RetryOn::FIVE_XX | RetryOn::GATEWAY_ERROR)
            || (self.on.contains(RetryOn::RESET_BEFORE_REQUEST) && !sent)
            || (self.on.contains(RetryOn::REFUSED_STREAM) && reason == ResetReason::RemoteRefused)
            || (self.on.contains(RetryOn::CONNECT_FAILURE) && reason.is_connect_failure())
    }

    fn retries_response(&self, head: &ResponseHead) -> bool {
        if head.headers.contains(&names::X_ENVOY_RATELIMITED) {
            return self.on.contains(RetryOn::ENVOY_RATE_LIMITED);
        }
        let status = head.status.as_u16();
        let on = self.on;
        (on.contains(RetryOn::FIVE_XX) && status >= 500)
            || (on.contains(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (on.contains(RetryOn::RETRIABLE_4XX) && status == 409)
            || (on.contains(RetryOn::RETRIABLE_STATUS_CODES) && self.is_retriable_code(status))
            || (on.contains(RetryOn::RETRIABLE_HEADERS) && self.has_retriable_header(head))
            || self.retries_grpc(head)
    }

    fn is_retriable_code(&self, status: u16) -> bool {
        self.status_codes.contains(&status)
            || self.policy.as_ref().is_some_and(|p| p.retriable_status_codes.contains(&status))
    }

    fn has_retriable_header(&self, head: &ResponseHead) -> bool {
        self.header_names.iter().any(|name| head.headers.contains(name))
            || self
                .policy
                .as_ref()
                .is_some_and(|p| p.retriable_headers.iter().any(|m| m.matches(&head.headers)))
    }

    fn retries_grpc(&self, head: &ResponseHead) -> bool {
        let Some(status) = head.headers.get_str(&names::GRPC_STATUS) else { return false };
        // google.rpc.Code.
        let flag = match status.trim() {
            "1" => RetryOn::GRPC_CANCELLED,
            "4" => RetryOn::GRPC_DEADLINE_EXCEEDED,
            "8" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            "13" => RetryOn::GRPC_INTERNAL,
            "14" => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        self.on.contains(flag)
    }

    /// The wait that a reset header asks for, where the policy honours one.
    fn rate_limited(&self, head: &ResponseHead) -> Option<Duration> {
        let limited = self.policy.as_ref()?.rate_limited.as_ref()?;
        limited.reset_headers.iter().find_map(|header| {
            let value: u64 = head.headers.get_str(&header.name)?.trim().parse().ok()?;
            let wait = match header.format {
                ResetHeaderFormat::Seconds => Duration::from_secs(value),
                ResetHeaderFormat::UnixTimestamp => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
                    Duration::from_secs(value).checked_sub(now)?
                }
            };
            (wait <= limited.max_interval).then_some(wait)
        })
    }
}

fn list<'a>(head: &'a RequestHead, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let value = head.headers.get_str(name).unwrap_or_default();
    value.split(',').map(str::trim).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::head::Protocol;
    use http::{Method, StatusCode};

    fn state(on: &str, num_retries: u32) -> RetryState {
        let policy =
            RetryPolicy { retry_on: RetryOn::parse(on), num_retries, ..RetryPolicy::default() };
        let mut head = RequestHead::new(Method::GET, Protocol::Http11);
        RetryState::new(Some(&Arc::new(policy)), &mut head).expect("conditions are set")
    }

    fn response(status: u16) -> ResponseHead {
        ResponseHead::new(StatusCode::from_u16(status).unwrap(), Protocol::Http11)
    }

    #[test]
    fn retries_run_out_and_a_good_answer_after_one_is_its_success() {
        let mut retry = state("5xx", 1);
        assert!(matches!(retry.on_response(&response(503), 7).0, Verdict::Retry(_)));
        assert_eq!(retry.on_response(&response(200), 7), (Verdict::Accept, true));
        assert_eq!(retry.on_response(&response(500), 7), (Verdict::Exhausted, false));
    }

    #[test]
    fn each_condition_has_its_own_reasons() {
        let retries =
            |on: &str, reason, sent| state(on, 9).on_reset(reason, sent, 0) != Verdict::Accept;
        assert!(!retries("5xx,reset", ResetReason::Overflow, false));
        assert!(retries("connect-failure", ResetReason::RemoteConnectionFailure, false));
        assert!(!retries("connect-failure", ResetReason::ConnectionTermination, true));
        assert!(retries("refused-stream", ResetReason::RemoteRefused, true));
        assert!(retries("gateway-error", ResetReason::ConnectionTermination, true));
        assert!(retries("reset-before-request", ResetReason::ConnectionTermination, false));
        assert!(!retries("reset-before-request", ResetReason::ConnectionTermination, true));
        assert!(!retries("retriable-4xx", ResetReason::RemoteReset, true));
    }

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        let mut retry = state("5xx", 9);
        let mut waits = Vec::new();
        for _ in 0..6 {
            // One less than a multiple of every interval: the longest wait of each.
            if let Verdict::Retry(BackOff::Exponential(wait)) =
                retry.on_reset(ResetReason::RemoteReset, true, 1_999_999_999)
            {
                waits.push(wait.as_millis());
            }
        }
        assert_eq!(waits, [24, 49, 99, 199, 249, 249]);
    }
}
