//! Addresses and host names as Envoy prints them.

use std::io::Write as _;
use std::net::IpAddr;

use super::operator::{AddressPart, Attempted, Shape, number};
use super::text;
use crate::stream_info::{Address, StreamInfo};

/// An address as Envoy prints it, or a part of it.
pub(super) fn write_address(address: &Address, part: AddressPart, out: &mut Vec<u8>) -> Shape {
    let Address::Ip(socket) = address else {
        if matches!(part, AddressPart::Port) {
            return Shape::Empty;
        }
        write_display(address, out);
        return Shape::Text;
    };
    match part {
        AddressPart::Whole => {
            write_ip(socket.ip(), socket.is_ipv6(), out);
            out.push(b':');
            number(out, socket.port().into());
            Shape::Text
        }
        AddressPart::Host(None) => {
            write_ip(socket.ip(), false, out);
            Shape::Text
        }
        AddressPart::Host(Some(bits)) => {
            let (masked, bits) = mask(socket.ip(), bits);
            write_ip(masked, false, out);
            out.push(b'/');
            number(out, bits.into());
            Shape::Text
        }
        AddressPart::Port => number(out, socket.port().into()),
    }
}

fn mask(ip: IpAddr, bits: u8) -> (IpAddr, u8) {
    match ip {
        IpAddr::V4(ip) => {
            let bits = bits.min(32);
            let kept = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            (IpAddr::V4((ip.to_bits() & kept).into()), bits)
        }
        IpAddr::V6(ip) => {
            let bits = bits.min(128);
            let kept = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            (IpAddr::V6((ip.to_bits() & kept).into()), bits)
        }
    }
}

/// An IP address as text, on the stack: logs and forwarding headers write several for each request.
pub(crate) struct IpText {
    /// IPv4 mapped into IPv6 is the longest.
    bytes: [u8; 45],
    len: usize,
}

impl IpText {
    pub(crate) fn new(ip: IpAddr) -> Self {
        let mut text = Self { bytes: [0; 45], len: 0 };
        match ip {
            IpAddr::V4(ip) => {
                for (i, octet) in ip.octets().into_iter().enumerate() {
                    if i > 0 {
                        text.push(b'.');
                    }
                    if octet >= 100 {
                        text.push(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        text.push(b'0' + octet / 10 % 10);
                    }
                    text.push(b'0' + octet % 10);
                }
            }
            IpAddr::V6(ip) => {
                let mut rest = &mut text.bytes[..];
                let written = write!(rest, "{ip}");
                debug_assert!(written.is_ok(), "an address has at most 45 characters");
                text.len = 45 - rest.len();
            }
        }
        text
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn write_ip(ip: IpAddr, brackets: bool, out: &mut Vec<u8>) {
    let text = IpText::new(ip);
    match ip {
        IpAddr::V6(_) if brackets => {
            out.push(b'[');
            out.extend_from_slice(text.as_bytes());
            out.push(b']');
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

pub(super) fn write_display(value: &dyn std::fmt::Display, out: &mut Vec<u8>) {
    use std::io::Write as _;
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
}

pub(super) fn write_host_name(
    host: &Address,
    hostname: Option<&str>,
    port: bool,
    out: &mut Vec<u8>,
) {
    match hostname.filter(|name| !name.is_empty()) {
        Some(name) if port => out.extend_from_slice(name.as_bytes()),
        Some(name) => out.extend_from_slice(text::strip_port(name).as_bytes()),
        None => {
            let part = if port { AddressPart::Whole } else { AddressPart::Host(None) };
            write_address(host, part, out);
        }
    }
}

/// Earlier attempts, then the last one, with commas between.
pub(super) fn write_attempted(info: &StreamInfo, what: Attempted, out: &mut Vec<u8>) -> Shape {
    let mut first = true;
    let mut one =
        |host: Option<&Address>, name: Option<&str>, id: Option<u64>, out: &mut Vec<u8>| {
            let Some(host) = host else { return };
            if matches!(what, Attempted::ConnectionIds) && id.is_none() {
                return;
            }
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            match what {
                Attempted::Hosts { port } => {
                    let part = if port { AddressPart::Whole } else { AddressPart::Host(None) };
                    write_address(host, part, out);
                }
                Attempted::Names { port } => write_host_name(host, name, port, out),
                Attempted::ConnectionIds => {
                    number(out, id.unwrap_or(0));
                }
            }
        };
    for earlier in &info.earlier_attempts {
        one(Some(&earlier.host), earlier.hostname.as_deref(), earlier.connection_id, out);
    }
    let last = &info.upstream;
    one(last.host.as_ref(), last.hostname.as_deref(), last.connection_id, out);
    if first { Shape::Missing } else { Shape::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for text in ["0.0.0.0", "1.22.255.100", "9.10.99.101", "::1", "::ffff:1.2.3.4", longest] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpText::new(ip).as_bytes(), ip.to_string().as_bytes());
        }
    }
}
