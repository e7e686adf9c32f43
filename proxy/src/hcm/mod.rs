//! Stage 3, the HTTP connection manager: one downstream connection and its streams.

mod active;
#[cfg(test)]
mod cancel_tests;
mod client_cert;
pub mod connection;

mod connection_h2;
mod decorator;
pub mod frames;
pub mod live;
pub mod local_reply;
pub mod path;
mod premature;
pub mod request_head;
pub mod request_headers;
pub mod request_id;
mod respond;
pub mod response_headers;
#[cfg(test)]
mod slow_client_tests;
pub mod stream;
pub mod stream_timers;

use std::net::IpAddr;
use std::sync::OnceLock;

use crate::stats::{Registry, Scope};

/// Where a connection manager and its filters count.
#[derive(Debug, Clone)]
pub struct HcmScope {
    /// `http.<stat_prefix>`.
    pub scope: Scope,
    /// For filters that count elsewhere, as the local rate limit does.
    pub registry: Registry,
}

/// This host's first address of a family that is not loopback: what X-Forwarded-For says instead of a
/// loopback peer, as in Envoy. `None` where the host has none.
pub fn local_address(v4: bool) -> Option<IpAddr> {
    static ADDRESSES: OnceLock<(Option<IpAddr>, Option<IpAddr>)> = OnceLock::new();
    let (first_v4, first_v6) = ADDRESSES.get_or_init(|| {
        let mut found = (None, None);
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return found };
        for interface in interfaces {
            let Some(address) = interface.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                let ip = v4.ip();
                if !ip.is_loopback() {
                    found.0.get_or_insert(IpAddr::V4(ip));
                }
            } else if let Some(v6) = address.as_sockaddr_in6() {
                let ip = v6.ip();
                if !ip.is_loopback() && !ip.is_unicast_link_local() {
                    found.1.get_or_insert(IpAddr::V6(ip));
                }
            }
        }
        found
    });
    if v4 { *first_v4 } else { *first_v6 }
}
