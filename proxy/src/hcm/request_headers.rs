//! What the connection manager changes in a request's head before any filter sees it: hop-by-hop fields,
//! X-Forwarded-For and the trusted client address, internal or external, request ids, trace bits.
//!
//! Follows Envoy's `ConnectionManagerUtility::mutateRequestHeaders` in order and outcome.

use std::net::IpAddr;

use super::{client_cert, request_id};
use crate::codec::head::{RequestHead, Scheme};
use crate::codec::name::{HeaderName, NameSet, names};
use crate::config::hcm::HttpConnectionManager;
use crate::config::route::RouteTable;
use crate::format::address::IpText;
use crate::stream_info::{Address, ConnectionInfo, StreamInfo};

/// What a peer that is not internal may not tell us.
const EXTERNAL_REMOVED: &[HeaderName] = &[
    names::X_ENVOY_RETRIABLE_STATUS_CODES,
    names::X_ENVOY_RETRIABLE_HEADER_NAMES,
    names::X_ENVOY_RETRY_ON,
    names::X_ENVOY_RETRY_GRPC_ON,
    names::X_ENVOY_MAX_RETRIES,
    names::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
    names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    names::X_ENVOY_FORCE_TRACE,
    names::X_ENVOY_IP_TAGS,
    names::X_ENVOY_ORIGINAL_URL,
    names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
    names::X_ENVOY_UPSTREAM_STREAM_DURATION_MS,
];

/// And what a peer at the edge may not tell us either.
const EDGE_REMOVED: &[HeaderName] = &[
    names::X_ENVOY_DECORATOR_OPERATION,
    names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    names::X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    names::X_ENVOY_ORIGINAL_HOST,
    names::X_ENVOY_ORIGINAL_PATH,
];

/// `--service-cluster` and `--service-node`, as `add_user_agent` sends them.
#[derive(Debug, Clone, Default)]
pub struct LocalInfo {
    pub service_cluster: String,
    pub service_node: String,
}

/// Applies the mutations; sets `info.remote` and `info.is_internal`. `random` makes a request id.
pub fn mutate(
    head: &mut RequestHead,
    info: &mut StreamInfo,
    hcm: &HttpConnectionManager,
    routes: &RouteTable,
    local: &LocalInfo,
    random: (u64, u64),
) {
    remove_hop_by_hop(head);
    let trusted = trusted_client(head, info, hcm);
    let is_internal = trusted.single
        && match &trusted.address {
            Some(Address::Ip(addr)) => hcm.internal_addresses.contains(addr.ip()),
            Some(Address::Pipe(_)) => hcm.internal_addresses.unix_sockets,
            Some(Address::Internal(_)) | None => false,
        };
    if let Some(address) = trusted.address {
        info.remote = address;
    }
    info.is_internal = is_internal;
    let is_edge = !is_internal && hcm.use_remote_address;
    set_scheme(head, info, hcm);
    if is_internal {
        head.headers.set(&names::X_ENVOY_INTERNAL, b"true");
    } else {
        if is_edge {
            remove_all(head, EDGE_REMOVED, const { NameSet::new(EDGE_REMOVED) });
        }
        remove_all(head, EXTERNAL_REMOVED, const { NameSet::new(EXTERNAL_REMOVED) });
        for name in &routes.internal_only_headers {
            head.headers.remove(name);
        }
    }
    if hcm.add_user_agent {
        let cluster = local.service_cluster.as_bytes();
        head.headers.set(&names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, cluster);
        if head.headers.get(&names::USER_AGENT).is_none_or(<[u8]>::is_empty) {
            head.headers.set(&names::USER_AGENT, cluster);
        }
        if !local.service_node.is_empty() {
            let node = local.service_node.as_bytes();
            head.headers.set(&names::X_ENVOY_DOWNSTREAM_SERVICE_NODE, node);
        }
    }
    if let Some(via) = &hcm.via {
        append_list(head, &names::VIA, via.as_bytes(), b", ");
    }
    if is_edge && let Some(addr) = info.remote.ip() {
        let text = IpText::new(addr.ip());
        head.headers.set(&names::X_ENVOY_EXTERNAL_ADDRESS, text.as_bytes());
    }
    if hcm.request_id.generate {
        request_id::ensure(head, is_edge, &hcm.request_id, random);
    }
    client_cert::forward(head, &info.connection, hcm);
    if let Some(tracing) = &hcm.tracing {
        info.trace_reason = request_id::decide_trace(head, &hcm.request_id, tracing);
    }
}

fn remove_all(head: &mut RequestHead, list: &[HeaderName], any: NameSet) {
    if head.headers.may_contain(any) {
        for name in list {
            head.headers.remove(name);
        }
    }
}

/// RFC 9110 §7.6.1: fields of the connection, not of the request.
fn remove_hop_by_hop(head: &mut RequestHead) {
    if head.upgrade.is_none() {
        head.headers.remove(&names::CONNECTION);
        head.headers.remove(&names::UPGRADE);
        // Only `trailers` may pass (RFC 9113 §8.2.2); an empty one means nothing.
        if let Some(te) = head.headers.get(&names::TE)
            && !te.is_empty()
        {
            if te.split(|b| *b == b',').any(|t| t.trim_ascii() == b"trailers") {
                head.headers.set(&names::TE, b"trailers");
            } else {
                head.headers.remove(&names::TE);
            }
        }
    }
    head.headers.remove(&names::X_ENVOY_INTERNAL);
    head.headers.remove(&names::KEEP_ALIVE);
    head.headers.remove(&names::PROXY_CONNECTION);
    head.headers.remove(&names::TRANSFER_ENCODING);
    if head.headers.get(&names::REFERER).is_some_and(|referer| !is_valid_referer(referer)) {
        head.headers.remove(&names::REFERER);
    }
}

/// What may pass as `referer` (RFC 9110 §10.1.3): a URL without user information or fragment, or a path.
fn is_valid_referer(value: &[u8]) -> bool {
    let scheme_end = memchr::memmem::find(value, b"://").filter(|at| *at > 0);
    let scheme = scheme_end.map_or(&b""[..], |at| &value[..at]);
    if scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    {
        let rest = &value[scheme.len() + 3..];
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        return end > 0 && !rest[..end].contains(&b'@') && !rest.contains(&b'#');
    }
    let first = value.iter().position(|b| *b == b'/').unwrap_or(value.len());
    !value[..first].contains(&b':') && value.iter().all(|b| is_uri_byte(*b))
}

/// Bytes of a path or a query (RFC 3986 §3.3, §3.4).
fn is_uri_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b)
}

struct Trusted {
    /// `None`: not found in X-Forwarded-For.
    address: Option<Address>,
    /// The request came by one hop only.
    single: bool,
}

fn trusted_client(
    head: &mut RequestHead,
    info: &StreamInfo,
    hcm: &HttpConnectionManager,
) -> Trusted {
    let connection = &info.connection;
    if !hcm.use_remote_address {
        let found = last_address(head, hcm.xff_num_trusted_hops);
        set_forwarded_proto(head, connection.is_tls, false);
        set_forwarded_port(head, connection, hcm, false);
        return found;
    }
    let single = !head.headers.contains(&names::X_FORWARDED_FOR);
    let hops = hcm.xff_num_trusted_hops;
    let from_xff = if hops > 0 { last_address(head, hops - 1).address } else { None };
    let address = from_xff.unwrap_or_else(|| connection.remote.clone());
    if !hcm.skip_xff_append {
        append_xff(head, info, hcm);
    }
    set_forwarded_proto(head, connection.is_tls, hops == 0);
    set_forwarded_port(head, connection, hcm, hops == 0);
    Trusted { address: Some(address), single }
}

fn set_forwarded_port(
    head: &mut RequestHead,
    connection: &ConnectionInfo,
    hcm: &HttpConnectionManager,
    overwrite: bool,
) {
    if hcm.append_x_forwarded_port
        && (overwrite || !head.headers.contains(&names::X_FORWARDED_PORT))
        && let Some(local) = connection.local.ip()
    {
        let mut port = itoa::Buffer::new();
        head.headers.set(&names::X_FORWARDED_PORT, port.format(local.port()).as_bytes());
    }
}

fn set_forwarded_proto(head: &mut RequestHead, is_tls: bool, overwrite: bool) {
    if overwrite || !head.headers.contains(&names::X_FORWARDED_PROTO) {
        let proto: &[u8] = if is_tls { b"https" } else { b"http" };
        head.headers.set(&names::X_FORWARDED_PROTO, proto);
    }
}

/// Appends the peer's address; a loopback peer is named by our own first address, as in Envoy.
fn append_xff(head: &mut RequestHead, info: &StreamInfo, hcm: &HttpConnectionManager) {
    let Some(addr) = info.connection.remote.ip() else { return };
    let ip = match addr.ip() {
        ip if ip.is_loopback() => super::local_address(true).unwrap_or(ip),
        IpAddr::V4(v4) if hcm.represent_ipv4_as_mapped => IpAddr::V6(v4.to_ipv6_mapped()),
        ip => ip,
    };
    let text = IpText::new(ip);
    append_list(head, &names::X_FORWARDED_FOR, text.as_bytes(), b",");
}

/// What Envoy's asynchronous client adds to a request of its own: that it is one, and from where.
pub(crate) fn mark_as_ours(head: &mut RequestHead) {
    head.headers.set(&names::X_ENVOY_INTERNAL, b"true");
    let address = super::local_address(true).unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
    append_list(head, &names::X_FORWARDED_FOR, address.to_string().as_bytes(), b",");
}

/// Adds to the first line of a list field, or makes it.
pub fn append_list(head: &mut RequestHead, name: &HeaderName, value: &[u8], separator: &[u8]) {
    match head.headers.get(name) {
        Some(have) if !have.is_empty() => {
            let joined = [have, separator, value].concat();
            head.headers.replace_first(name, &joined);
        }
        _ => head.headers.set(name, value),
    }
}

/// The `skip`-th address from the right of X-Forwarded-For, where it is one.
fn last_address(head: &RequestHead, skip: usize) -> Trusted {
    let none = Trusted { address: None, single: false };
    let Some(line) = head.headers.get(&names::X_FORWARDED_FOR) else { return none };
    let Some(part) = line.rsplit(|b| *b == b',').nth(skip) else { return none };
    let single = !line.contains(&b',');
    match std::str::from_utf8(part.trim_ascii()).ok().and_then(|t| t.parse::<IpAddr>().ok()) {
        Some(ip) => Trusted { address: Some(Address::Ip((ip, 0).into())), single },
        None => none,
    }
}

fn set_scheme(head: &mut RequestHead, info: &StreamInfo, hcm: &HttpConnectionManager) {
    if let Some(scheme) = hcm.scheme_overwrite {
        head.scheme = Some(scheme);
        head.headers.set(&names::X_FORWARDED_PROTO, scheme.as_str().as_bytes());
        return;
    }
    if head.scheme.is_some() {
        return;
    }
    let by_proto = match head.headers.get(&names::X_FORWARDED_PROTO) {
        Some(proto) if proto.eq_ignore_ascii_case(b"http") => Some(Scheme::Http),
        Some(proto) if proto.eq_ignore_ascii_case(b"https") => Some(Scheme::Https),
        _ => None,
    };
    let own = if info.connection.is_tls { Scheme::Https } else { Scheme::Http };
    head.scheme = Some(by_proto.unwrap_or(own));
}
