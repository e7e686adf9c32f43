//! Admission of a request's head: what it must have, what is normalised, what is answered at once.
//!
//! The order is that of Envoy's `ConnectionManagerImpl::ActiveStream::decodeHeaders`.

use http::{Method, StatusCode};

use super::local_reply::LocalReply;
use super::path::PathOutcome;
use super::stream::{ActiveStream, StreamEnd};
use super::{path, request_headers};
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::name::names;
use crate::config::protocol_options::HeadersWithUnderscoresAction;
use crate::stats::names::{Http1Stat, Http2Stat, HttpStat};

fn reject(status: StatusCode, details: &'static str) -> StreamEnd {
    StreamEnd::Reply(Box::new(LocalReply::new(status, details)))
}

/// Checks and normalises the head.
///
/// # Errors
/// The reply that the head deserves.
pub(super) fn admit(s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
    check_underscores(s)?;
    answer_expectation(s);
    if s.request.authority().is_none_or(<[u8]>::is_empty) {
        s.close_after = true;
        return Err(reject(StatusCode::BAD_REQUEST, "missing_host_header"));
    }
    let is_connect = s.request.method == Method::CONNECT;
    if s.request.path().is_none_or(<[u8]>::is_empty) && !is_connect {
        return Err(reject(StatusCode::NOT_FOUND, "missing_path_rejected"));
    }
    if !path::is_routable_path(&s.request) {
        s.hcm.stats.inc(HttpStat::DownstreamRqNonRelativePath);
        return Err(reject(StatusCode::NOT_FOUND, path::ABSOLUTE_PATH_REJECTED));
    }
    normalize_path(s)?;
    normalize_host(s);
    let hcm = s.hcm.clone();
    let local = s.worker.local.clone();
    let random = (s.worker.random(), s.worker.random());
    request_headers::mutate(
        &mut s.request,
        &mut s.info,
        &hcm.config,
        s.route.table(),
        &local,
        random,
    );
    Ok(())
}

/// Upgrades, CONNECT included, pass only where the route or the connection manager allows their type.
///
/// # Errors
/// 403 where neither does.
pub(super) fn check_upgrade(s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
    let wanted = match s.request.upgrade_str() {
        Some(upgrade) => upgrade.to_ascii_lowercase(),
        None if s.request.method == Method::CONNECT => b"connect".to_vec(),
        None => return Ok(()),
    };
    if upgrade_allowed(&wanted, s) {
        s.hcm.stats.inc(HttpStat::DownstreamCxUpgradesTotal);
        s.hcm.stats.gauge_inc(HttpStat::DownstreamCxUpgradesActive);
        s.upgraded = true;
        return Ok(());
    }
    if s.route.matched().is_none() {
        return Ok(());
    }
    // Bytes behind a refused upgrade may be another request in disguise.
    (s.close_after, s.upgrade_refused) = (true, true);
    s.hcm.stats.inc(HttpStat::DownstreamRqWsOnNonWsRoute);
    Err(reject(StatusCode::FORBIDDEN, "upgrade_failed"))
}

fn upgrade_allowed(wanted: &[u8], s: &ActiveStream<'_>) -> bool {
    let by_route = s.route.action().and_then(|action| {
        action.upgrades.iter().find(|u| u.upgrade_type.as_bytes() == wanted).map(|u| u.enabled)
    });
    by_route.unwrap_or_else(|| {
        s.hcm.config.upgrades.iter().any(|(name, on)| name.as_bytes() == wanted && *on)
    })
}

fn check_underscores(s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
    let action = s.hcm.config.common.headers_with_underscores_action;
    if action == HeadersWithUnderscoresAction::Allow
        || !s.request.headers.iter().any(|(name, _)| name.contains(&b'_'))
    {
        return Ok(());
    }
    let is_h2 = s.request.protocol == Protocol::Http2;
    let registry = &s.worker.registry;
    let worker = s.worker.index;
    let rejected = action == HeadersWithUnderscoresAction::RejectRequest;
    // Rare enough to look the counter up.
    if is_h2 {
        let stats = registry.scope("http2").block::<Http2Stat>(worker);
        if rejected {
            stats.inc(Http2Stat::RequestsRejectedWithUnderscoresInHeaders);
        } else {
            stats.add(Http2Stat::DroppedHeadersWithUnderscores, drop_underscores(s));
        }
    } else {
        let stats = registry.scope("http1").block::<Http1Stat>(worker);
        stats.add(Http1Stat::DroppedHeadersWithUnderscores, drop_underscores(s));
    }
    if !rejected {
        return Ok(());
    }
    // HTTP/1 refuses before there is a request.
    s.info.set_details("http2.unexpected_underscore");
    Err(StreamEnd::Reset(super::stream::reset_code::PROTOCOL_ERROR))
}

/// How many lines there were.
fn drop_underscores(s: &mut ActiveStream<'_>) -> u64 {
    let before = s.request.headers.len();
    s.request.headers.retain_lines(|name, _| !name.contains(&b'_'));
    (before - s.request.headers.len()) as u64
}

/// `Expect: 100-continue` is answered here unless it is to be passed on (RFC 9110 §10.1.1).
fn answer_expectation(s: &mut ActiveStream<'_>) {
    if s.hcm.config.proxy_100_continue {
        return;
    }
    let expects = s
        .request
        .headers
        .get(&names::EXPECT)
        .is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
    if expects {
        let head = ResponseHead::new(StatusCode::CONTINUE, s.request.protocol);
        s.send_informational(&head);
        s.request.headers.remove(&names::EXPECT);
    }
}

fn normalize_path(s: &mut ActiveStream<'_>) -> Result<(), StreamEnd> {
    let config = &s.hcm.config;
    let outcome = path::normalize_path(
        &mut s.request,
        config.normalize_path,
        config.merge_slashes,
        config.escaped_slashes,
    );
    match outcome {
        PathOutcome::Continue => Ok(()),
        PathOutcome::Reject => {
            s.hcm.stats.inc(HttpStat::DownstreamRqFailedPathNormalization);
            s.close_after = true;
            Err(reject(StatusCode::BAD_REQUEST, path::PATH_NORMALIZATION_FAILED))
        }
        PathOutcome::Redirect => {
            s.hcm.stats.inc(HttpStat::DownstreamRqRedirectedWithNormalizedPath);
            let mut reply =
                LocalReply::new(StatusCode::TEMPORARY_REDIRECT, path::PATH_NORMALIZATION_FAILED);
            let mut headers = HeaderList::new();
            headers.append(&names::LOCATION, s.request.path().unwrap_or_default());
            reply.headers = Some(headers);
            Err(StreamEnd::Reply(Box::new(reply)))
        }
    }
}

fn normalize_host(s: &mut ActiveStream<'_>) {
    let config = &s.hcm.config;
    let local_port = s.info.connection.local.ip().map(|addr| addr.port());
    s.stripped_port = path::normalize_host(
        &mut s.request,
        config.strip_trailing_host_dot,
        config.strip_port,
        local_port,
    );
}

/// The head of a request that was never read whole, so that its rejection can be answered and logged.
pub(super) fn unread(protocol: Protocol) -> RequestHead {
    RequestHead::new(Method::GET, protocol)
}
