//! The PROXY header that goes out first on an upstream connection (HAProxy's `proxy-protocol.txt`); pb
//! `ProxyProtocolConfig`.

use std::net::{IpAddr, SocketAddr};

use crate::stream_info::Address;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 1 or 2 for a connection from `source` to `destination`. Ends without an IP address, or of
/// two families, are `UNKNOWN` (1) or `LOCAL` (2).
pub fn proxy_header(version: u8, source: &Address, destination: &Address) -> Vec<u8> {
    let ends = source.ip().zip(destination.ip()).filter(|(s, d)| s.is_ipv4() == d.is_ipv4());
    if version == 1 { version_1(ends) } else { version_2(ends) }
}

fn version_1(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((source, destination)) = ends else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn version_2(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut out = V2_SIGNATURE.to_vec();
    let Some((source, destination)) = ends else {
        out.extend([0x20, 0, 0, 0]);
        return out;
    };
    let (family, length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    out.extend([0x21, family, 0, length]);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => out.extend(ip.octets()),
            IpAddr::V6(ip) => out.extend(ip.octets()),
        }
    }
    out.extend(source.port().to_be_bytes());
    out.extend(destination.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::listener::ProxyProtocol;
    use crate::listener::proxy_protocol::{ProxyHeader, parse};

    #[test]
    fn our_own_reader_understands_both_versions() {
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        for (from, to) in [("1.2.3.4:5", "6.7.8.9:10"), ("[::1]:5", "[2001:db8::1]:10")] {
            for version in [1, 2] {
                let bytes = proxy_header(version, &address(from), &address(to));
                let parsed = parse(&bytes, &ProxyProtocol::default()).unwrap().unwrap();
                let source = from.parse().unwrap();
                let destination = to.parse().unwrap();
                assert_eq!(parsed.header, ProxyHeader::Addresses { source, destination });
                assert_eq!(parsed.length, bytes.len());
            }
        }
        let pipe = Address::Pipe("x".into());
        for version in [1, 2] {
            let bytes = proxy_header(version, &pipe, &address("1.2.3.4:5"));
            let parsed = parse(&bytes, &ProxyProtocol::default()).unwrap().unwrap();
            assert_eq!(parsed.header, ProxyHeader::Local);
        }
    }
}
