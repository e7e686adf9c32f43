//! What a request asks of the upstream transport socket: the options that choose its pool; and connections for requests
//! of our own.
//!
//! Envoy: `UpstreamHttpProtocolOptions` of a cluster.

use std::sync::Arc;

use crate::cluster::WorkerHost;
use crate::codec::head::RequestHead;
use crate::config::cluster::RoutingPriority;
use crate::config::protocol_options::UpstreamProtocolChoice;
use crate::conn_pool::{Acquire, Lease, PoolFailure};
use crate::hcm::stream::ActiveStream;
use crate::upstream::TransportSocketOptions;

/// What the request asks of the upstream connection: what its own connection asks of all of them, its host as SNI, and
/// as the name that has to be in the certificate.
pub(super) fn transport_options(
    s: &ActiveStream<'_>,
    host: &WorkerHost,
) -> Option<Arc<TransportSocketOptions>> {
    let general = s.info.connection.upstream_options.as_ref();
    by_host(&s.request, host, general).or_else(|| general.cloned())
}

/// A connection or stream for a request that has no client's connection behind it: a mirror, a gRPC call.
///
/// # Errors
/// See `PoolFailure`.
pub(crate) async fn acquire(host: &WorkerHost, head: &RequestHead) -> Result<Lease, PoolFailure> {
    let http = &host.context.cluster.config.http;
    let transport = by_host(head, host, None);
    let transport = transport.as_ref();
    let acquired = match http.choice {
        UpstreamProtocolChoice::Auto => {
            host.pools.try_acquire_negotiated(RoutingPriority::Default, transport)
        }
        _ => {
            let protocol = http.protocol(head.protocol, None);
            host.pools.try_acquire(protocol, RoutingPriority::Default, transport)
        }
    };
    match acquired? {
        Acquire::Ready(lease) => Ok(lease),
        Acquire::Wait(wait) => wait.await,
    }
}

/// `None` where the host of the request makes no difference.
fn by_host(
    request: &RequestHead,
    host: &WorkerHost,
    general: Option<&Arc<TransportSocketOptions>>,
) -> Option<Arc<TransportSocketOptions>> {
    let auto = host.context.cluster.config.http.auto_sni.as_ref()?;
    if !host.context.host.is_tls() {
        return None;
    }
    let by_header = auto.header.as_ref().and_then(|name| request.headers.get(name));
    // Without a name that could be one there is nothing to check a certificate by, and so none that fits.
    let value = by_header.or_else(|| request.authority()).unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    let name = host_of(&value);
    let is_ip = name.parse::<std::net::IpAddr>().is_ok();
    let mut options = general.map(|o| (**o).clone()).unwrap_or_default();
    if auto.sni && !is_ip && !name.is_empty() && name.is_ascii() {
        options.server_name = Some(name.into());
    }
    if auto.validate {
        options.verify_subject_alt_names = Box::new([name.into()]);
    }
    Some(Arc::new(options))
}

/// An authority without its port, and an IPv6 address without its brackets.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_stands_before_the_port() {
        for (authority, host) in [
            ("a.example:80", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:80", "::1"),
            ("127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
