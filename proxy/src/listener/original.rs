//! Listener filters that read no bytes: `envoy.filters.listener.original_dst` and `original_src`. They run at accept.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{Found, canonical};
use crate::config::listener::OriginalSrc;
use crate::io::Io;
use crate::stream_info::Address;
use crate::upstream::OriginalSource;

/// Makes the address that the client dialled the connection's own, where a redirect rule (iptables REDIRECT, TPROXY)
/// brought it here. A connection that came straight keeps its address, and counts as restored too, as in Envoy.
pub(super) fn restore_destination(io: &Io, found: &mut Found) {
    let (Some(socket), Some(local)) = (io.tcp(), found.local.ip()) else { return };
    if let Some(to) = original_destination(socket, local) {
        found.local = Address::Ip(to);
        found.local_restored = true;
    }
}

/// Makes upstream connections come from the client's address.
pub(super) fn take_source(config: &OriginalSrc, found: &mut Found) {
    let Some(mut address) = found.remote.ip() else { return };
    if !config.bind_port {
        address.set_port(0);
    }
    found.source = Some(OriginalSource { address, mark: config.mark });
}

/// What connection tracking knows of a socket; the socket's own address where it is transparent.
fn original_destination(socket: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let asked = SockRef::from(socket);
    let known: io::Result<_> =
        if local.is_ipv4() { asked.original_dst_v4() } else { asked.original_dst_v6() };
    if let Ok(address) = known {
        return address.as_socket().map(canonical);
    }
    let transparent =
        if local.is_ipv4() { asked.ip_transparent_v4() } else { asked.ip_transparent_v6() };
    if transparent.unwrap_or(false) { socket.local_addr().ok().map(canonical) } else { None }
}
