//! How long a request may take: the route's timers, what its headers say, and what the upstream is told.
//!
//! Follows Envoy's `FilterUtility::finalTimeout` and `setTimeoutHeaders`. Zero means no limit.

use std::time::Duration;

use crate::codec::head::RequestHead;
use crate::codec::name::{HeaderName, names};
use crate::config::hcm::RouterConfig;
use crate::config::route::action::RouteAction;
use crate::format::grpc::is_grpc_request as is_grpc;

/// The timeouts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Of all attempts together, from the end of the request.
    pub route: Option<Duration>,
    pub per_try: Option<Duration>,
    pub per_try_idle: Option<Duration>,
}

/// Decides the timeouts and takes the headers that ask for them.
pub fn decide(action: &RouteAction, config: &RouterConfig, head: &mut RequestHead) -> Timeouts {
    let timeouts = &action.timeouts;
    let mut route = match timeouts.grpc_timeout_max {
        // The stream's duration takes the place of the route's timeout.
        _ if timeouts.uses_max_stream_duration => Duration::ZERO,
        Some(max) if is_grpc(head) => grpc_timeout(head, max, timeouts.grpc_timeout_offset),
        _ => timeouts.timeout,
    };
    let retry = action.retry_policy.as_deref();
    let mut per_try = retry.and_then(|r| r.per_try_timeout).unwrap_or_default();
    let expected = config
        .respect_expected_rq_timeout
        .then(|| milliseconds(head, &names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS))
        .flatten();
    if let Some(expected) = expected {
        route = expected;
    } else if let Some(asked) = milliseconds(head, &names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
        route = asked;
    }
    head.headers.remove(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
    if let Some(asked) = milliseconds(head, &names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
        per_try = asked;
    }
    head.headers.remove(&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    if per_try >= route && !route.is_zero() {
        per_try = Duration::ZERO;
    }
    let limit = |d: Duration| Some(d).filter(|d| !d.is_zero());
    Timeouts {
        route: limit(route),
        per_try: limit(per_try),
        per_try_idle: retry.and_then(|r| r.per_try_idle_timeout).and_then(limit),
    }
}

/// Tells the upstream how long it has.
pub fn set_headers(
    timeouts: &Timeouts,
    action: &RouteAction,
    config: &RouterConfig,
    elapsed: Duration,
    head: &mut RequestHead,
) {
    let Some(mut expected) = timeouts.per_try.or(timeouts.route) else { return };
    if let Some(route) = timeouts.route {
        let left = route.checked_sub(elapsed).filter(|left| !left.is_zero());
        expected = left.map_or(Duration::from_millis(1), |left| left.min(expected));
    }
    if !config.suppress_envoy_headers {
        let mut text = itoa::Buffer::new();
        let ms = text.format(expected.as_millis() as u64);
        head.headers.set(&names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, ms.as_bytes());
    }
    let timeouts = &action.timeouts;
    if timeouts.grpc_timeout_max.is_some() && !timeouts.uses_max_stream_duration && is_grpc(head) {
        set_grpc_timeout(head, expected);
    }
}

/// How long a stream may last: what `grpc-timeout` asks for where the route honours it, else the route's
/// `max_stream_duration`, else the connection manager's. `None`: no limit. Tells a gRPC upstream what was decided.
///
/// Follows Envoy's `refreshDurationTimeout`.
pub fn max_stream_duration(
    action: &RouteAction,
    of_hcm: Option<Duration>,
    head: &mut RequestHead,
) -> Option<Duration> {
    let timeouts = &action.timeouts;
    let is_ours = timeouts.uses_max_stream_duration;
    let max = timeouts.grpc_timeout_max.filter(|_| is_ours);
    let asked = max.and_then(|max| Some((max, asked_grpc_timeout(head)?)));
    let duration = match (asked, timeouts.max_stream_duration) {
        (Some((max, asked)), _) => {
            let capped = if max.is_zero() { asked } else { asked.min(max) };
            Some(capped.saturating_sub(timeouts.grpc_timeout_offset.unwrap_or_default()))
        }
        (None, Some(own)) => Some(own).filter(|d| !d.is_zero()),
        (None, None) => of_hcm.filter(|d| !d.is_zero()),
    };
    if is_ours && is_grpc(head) {
        match duration {
            Some(duration) => set_grpc_timeout(head, duration),
            None if of_hcm.is_some() => {
                head.headers.remove(&names::GRPC_TIMEOUT);
            }
            None => {}
        }
    }
    duration
}

fn asked_grpc_timeout(head: &RequestHead) -> Option<Duration> {
    head.headers.get(&names::GRPC_TIMEOUT).and_then(parse_grpc_timeout)
}

/// In the smallest unit that needs no more than eight digits.
fn set_grpc_timeout(head: &mut RequestHead, timeout: Duration) {
    const MAX: u128 = 99_999_999;
    let mut amount = timeout.as_millis();
    let mut unit = 'm';
    for (next, of_it) in [('S', 1000), ('M', 60), ('H', 60)] {
        if amount > MAX {
            (amount, unit) = (amount / of_it, next);
        }
    }
    let value = format!("{}{unit}", amount.min(MAX));
    head.headers.set(&names::GRPC_TIMEOUT, value.as_bytes());
}

/// `grpc-timeout` within its limits, as `max_grpc_timeout` wants them; zero is no limit.
fn grpc_timeout(head: &RequestHead, max: Duration, offset: Option<Duration>) -> Duration {
    let mut timeout = asked_grpc_timeout(head).unwrap_or_default();
    if let Some(offset) = offset
        && offset < timeout
    {
        timeout -= offset;
    }
    if !max.is_zero() && (timeout.is_zero() || timeout > max) {
        timeout = max;
    }
    timeout
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout"); rounded up to milliseconds.
fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let up = |per_ms: u64| Duration::from_millis(amount.div_ceil(per_ms));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => up(1000),
        b'n' => up(1_000_000),
        _ => return None,
    })
}

fn milliseconds(head: &RequestHead, name: &HeaderName) -> Option<Duration> {
    head.headers.get_str(name)?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_with_their_units_and_bounds() {
        let ms = |text: &str| parse_grpc_timeout(text.as_bytes()).map(|d| d.as_millis());
        assert_eq!(ms("1H"), Some(3_600_000));
        assert_eq!(ms("99999999H"), Some(99_999_999 * 3_600_000));
        assert_eq!(ms("3S"), Some(3000));
        assert_eq!(ms("15m"), Some(15));
        assert_eq!(ms("1500u"), Some(2));
        assert_eq!(ms("1n"), Some(1));
        assert_eq!(ms("1x"), None);
        assert_eq!(ms("S"), None);
        assert_eq!(ms(""), None);
        assert_eq!(ms("999999999S"), None);
    }
    #[test]
    fn grpc_timeouts_are_written_with_at_most_eight_digits() {
        let text = |ms: u64| {
            let mut head =
                RequestHead::new(http::Method::POST, crate::codec::head::Protocol::Http2);
            set_grpc_timeout(&mut head, Duration::from_millis(ms));
            head.headers.get_str(&names::GRPC_TIMEOUT).unwrap().to_owned()
        };
        assert_eq!(text(60), "60m");
        assert_eq!(text(99_999_999), "99999999m");
        assert_eq!(text(100_000_000), "100000S");
        assert_eq!(text(100_000_000_000), "1666666M");
        assert_eq!(text(u64::MAX), "99999999H");
    }
}
