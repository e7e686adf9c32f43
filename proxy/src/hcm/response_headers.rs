//! What the connection manager changes in a response's head after every filter has seen it: hop-by-hop
//! fields, `server`, `date`, `via`, `x-request-id`, `proxy-status`.
//!
//! Follows Envoy's `ConnectionManagerUtility::mutateResponseHeaders` and `encodeHeaders`.

use std::cell::RefCell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;

use crate::codec::head::{RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::config::hcm::{HttpConnectionManager, ProxyName, ProxyStatus, ServerHeader};
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::worker::WorkerContext;

/// `date`, formatted once a second.
#[derive(Debug, Default)]
pub struct DateCache(RefCell<(u64, Vec<u8>)>);

impl DateCache {
    /// Calls `use_date` with an IMF-fixdate (RFC 9110 §5.6.7).
    pub fn with(&self, now: SystemTime, use_date: impl FnOnce(&[u8])) {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut cached = self.0.borrow_mut();
        if cached.0 != seconds || cached.1.is_empty() {
            cached.0 = seconds;
            let time = jiff::Timestamp::from_second(seconds as i64).unwrap_or_default();
            cached.1 = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().into_bytes();
        }
        use_date(&cached.1);
    }
}

/// Applies the mutations. `request` is `None` where the request's head was never read whole.
pub fn mutate(
    head: &mut ResponseHead,
    request: Option<&RequestHead>,
    info: &StreamInfo,
    hcm: &HttpConnectionManager,
    worker: &WorkerContext,
    now: Instant,
) {
    if !head.headers.contains(&names::DATE) {
        let wall = worker.clock.wall(now);
        worker.date.with(wall, |date| head.headers.append(&names::DATE, date));
    }
    match hcm.server_header {
        ServerHeader::Overwrite => head.headers.set(&names::SERVER, hcm.server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if !head.headers.contains(&names::SERVER) => {
            head.headers.append(&names::SERVER, hcm.server_name.as_bytes());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    let is_upgrade =
        request.is_some_and(|r| r.upgrade.is_some()) && head.headers.contains(&names::UPGRADE);
    if is_upgrade {
        let has_length = head.headers.contains(&names::TRANSFER_ENCODING)
            || head.headers.contains(&names::CONTENT_LENGTH);
        if !has_length && !head.status.is_informational() {
            head.headers.append(&names::CONTENT_LENGTH, b"0");
        }
    } else {
        head.headers.remove(&names::CONNECTION);
        head.headers.remove(&names::UPGRADE);
    }
    head.headers.remove(&names::TRANSFER_ENCODING);
    head.headers.remove(&names::KEEP_ALIVE);
    head.headers.remove(&names::PROXY_CONNECTION);
    if let Some(request) = request
        && (hcm.request_id.always_in_response
            || request.headers.contains(&names::X_ENVOY_FORCE_TRACE))
        && let Some(id) = request.headers.get(&names::X_REQUEST_ID)
    {
        head.headers.set(&names::X_REQUEST_ID, id);
    }
    if let Some(via) = &hcm.via {
        match head.headers.get(&names::VIA) {
            Some(have) if !have.is_empty() => {
                let joined = [have, b", ", via.as_bytes()].concat();
                head.headers.replace_first(&names::VIA, &joined);
            }
            _ => head.headers.set(&names::VIA, via.as_bytes()),
        }
    }
    if let Some(config) = &hcm.proxy_status {
        set_proxy_status(head, info, hcm, config, &worker.local.service_node);
    }
}

/// RFC 9209: why a response is not the origin's.
fn set_proxy_status(
    head: &mut ResponseHead,
    info: &StreamInfo,
    hcm: &HttpConnectionManager,
    config: &ProxyStatus,
    node_id: &str,
) {
    let Some((error, status)) = proxy_error(info.flags) else { return };
    let name = match &config.name {
        ProxyName::ServerName => &*hcm.server_name,
        ProxyName::NodeId => node_id,
        ProxyName::Literal(name) => name,
    };
    let mut value = format!("{name}; error={error}").into_bytes();
    if !config.remove_details
        && let Some(details) = &info.response_code_details
    {
        value.extend_from_slice(b"; details=\"");
        value.extend_from_slice(details.as_bytes());
        if !config.remove_connection_termination_details
            && let Some(termination) = &info.connection_termination_details
        {
            value.extend_from_slice(b"; ");
            value.extend_from_slice(termination.as_bytes());
        }
        if !config.remove_response_flags {
            value.extend_from_slice(b"; ");
            info.flags.write_short(&mut value);
        }
        value.push(b'"');
    }
    if config.set_recommended_response_code
        && let Some(status) = status
    {
        head.status = status;
    }
    let name = HeaderName::parse("proxy-status").expect("a valid name");
    head.headers.append(&name, &value);
}

/// Error type and recommended status of RFC 9209 §2.3 for response flags, as Envoy maps them.
fn proxy_error(flags: ResponseFlags) -> Option<(&'static str, Option<StatusCode>)> {
    let status = |code| StatusCode::from_u16(code).ok();
    let table = [
        (ResponseFlags::FAILED_LOCAL_HEALTH_CHECK, "destination_unavailable", Some(503)),
        (ResponseFlags::NO_HEALTHY_UPSTREAM, "destination_unavailable", Some(503)),
        (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "http_response_timeout", Some(504)),
        (ResponseFlags::LOCAL_RESET, "connection_timeout", Some(504)),
        (ResponseFlags::UPSTREAM_REMOTE_RESET, "connection_terminated", Some(502)),
        (ResponseFlags::UPSTREAM_CONNECTION_FAILURE, "connection_refused", Some(502)),
        (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, "connection_terminated", Some(502)),
        (ResponseFlags::UPSTREAM_OVERFLOW, "connection_limit_reached", Some(503)),
        (ResponseFlags::NO_ROUTE_FOUND, "destination_not_found", Some(500)),
        (ResponseFlags::RATE_LIMITED, "connection_limit_reached", Some(503)),
        (ResponseFlags::RATE_LIMIT_SERVICE_ERROR, "connection_limit_reached", Some(503)),
        (ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED, "destination_unavailable", Some(503)),
        (ResponseFlags::STREAM_IDLE_TIMEOUT, "http_response_timeout", Some(504)),
        (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "http_request_error", Some(400)),
        (ResponseFlags::UPSTREAM_PROTOCOL_ERROR, "http_protocol_error", Some(502)),
        (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, "http_response_timeout", Some(504)),
        (ResponseFlags::NO_CLUSTER_FOUND, "destination_unavailable", Some(503)),
        (ResponseFlags::DNS_RESOLUTION_FAILURE, "dns_error", Some(502)),
        (ResponseFlags::OVERLOAD_MANAGER, "connection_limit_reached", Some(503)),
    ];
    let found = table.iter().find(|(flag, ..)| flags.contains(*flag))?;
    Some((found.1, found.2.and_then(status)))
}
