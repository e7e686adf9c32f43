//! PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::config::listener::{ProxyProtocol, TlvRule};

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    Addresses {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// LOCAL or UNKNOWN: the socket's own addresses hold.
    Local,
}

/// Which of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A whole header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub version: Version,
    pub header: ProxyHeader,
    /// Bytes of it, TLVs included.
    pub length: usize,
    /// Where its TLVs are; checked, and none where they do not count.
    tlvs: Range<usize>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    #[error("malformed PROXY header")]
    Malformed(Version),
    #[error("this version of the PROXY protocol is not allowed")]
    Disallowed(Version),
}

impl Parsed {
    fn new(version: Version, header: ProxyHeader, length: usize) -> Self {
        Self { version, header, length, tlvs: 0..0 }
    }

    /// The TLVs of `bytes`, which begin with this header, that a rule wants.
    pub fn tlvs<'a>(
        &self,
        bytes: &'a [u8],
        config: &'a ProxyProtocol,
    ) -> impl Iterator<Item = (&'a TlvRule, &'a [u8])> {
        let mut rest = if config.rules.is_empty() { &[] } else { &bytes[self.tlvs.clone()] };
        std::iter::from_fn(move || {
            let (tlv, after) = split_tlv(rest)?;
            rest = after;
            Some(tlv)
        })
        .filter_map(|(tlv_type, value)| {
            let rule = config.rules.iter().find(|rule| rule.tlv_type == tlv_type)?;
            Some((rule, value))
        })
    }
}

/// Type and value.
type Tlv<'a> = (u8, &'a [u8]);

/// The first TLV and what follows it.
fn split_tlv(bytes: &[u8]) -> Option<(Tlv<'_>, &[u8])> {
    let ([tlv_type, high, low], rest) = bytes.split_first_chunk::<3>()?;
    let (value, after) = rest.split_at_checked(u16::from_be_bytes([*high, *low]).into())?;
    Some(((*tlv_type, value), after))
}

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_PREFIX: &[u8] = b"PROXY ";
/// Longest version 1 line, CRLF included.
const V1_MAX: usize = 108;
/// What every version 2 header begins with: signature, version and command, family, length.
const V2_HEADER: usize = 16;

/// Reads a header; `None` when more bytes are needed.
///
/// # Errors
/// There is none, it is malformed, or its version is not allowed.
pub fn parse(bytes: &[u8], config: &ProxyProtocol) -> Result<Option<Parsed>, ProxyError> {
    let is_prefix = |signature: &[u8]| {
        let seen = bytes.len().min(signature.len());
        bytes[..seen] == signature[..seen]
    };
    if is_prefix(V2_SIGNATURE) {
        if bytes.len() < V2_HEADER {
            return Ok(None);
        }
        if config.disallow_v2 {
            return Err(ProxyError::Disallowed(Version::V2));
        }
        return parse_v2(bytes);
    }
    if is_prefix(V1_PREFIX) {
        if bytes.len() >= V1_PREFIX.len() && config.disallow_v1 {
            return Err(ProxyError::Disallowed(Version::V1));
        }
        return parse_v1(bytes);
    }
    if bytes.len() >= V2_HEADER || config.allow_without_header {
        return Err(ProxyError::Absent);
    }
    // As in Envoy: too little to say that it is not the longer of the two, unless it is a whole line.
    let is_line = bytes.windows(2).any(|w| w == b"\r\n");
    if is_line { Err(ProxyError::Malformed(Version::V1)) } else { Ok(None) }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Parsed>, ProxyError> {
    const MALFORMED: ProxyError = ProxyError::Malformed(Version::V1);
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() >= V1_MAX { Err(MALFORMED) } else { Ok(None) };
    };
    let parsed = |header| Ok(Some(Parsed::new(Version::V1, header, end + 2)));
    let line = std::str::from_utf8(&window[..end]).map_err(|_| MALFORMED)?;
    let mut words = line.trim_ascii_end().split(' ').skip(1);
    let mut next = || words.next().ok_or(MALFORMED);
    let family = next()?;
    if family == "UNKNOWN" {
        return parsed(ProxyHeader::Local);
    }
    let (source, destination) = (next()?, next()?);
    let (source_port, destination_port) = (next()?, next()?);
    if words.next().is_some() {
        return Err(MALFORMED);
    }
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let port: u16 = port.parse().ok()?;
        match family {
            "TCP4" => Some((ip.parse::<Ipv4Addr>().ok()?, port).into()),
            "TCP6" => Some((ip.parse::<Ipv6Addr>().ok()?, port).into()),
            _ => None,
        }
    };
    let source = address(source, source_port).ok_or(MALFORMED)?;
    let destination = address(destination, destination_port).ok_or(MALFORMED)?;
    parsed(addresses(source, destination).ok_or(MALFORMED)?)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Parsed>, ProxyError> {
    const MALFORMED: ProxyError = ProxyError::Malformed(Version::V2);
    let (version, command) = (bytes[12] >> 4, bytes[12] & 15);
    if version != 2 || command > 1 {
        return Err(MALFORMED);
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let total = V2_HEADER + length;
    // Datagrams are believed too, as in Envoy; a unix address or none has no meaning here.
    let (family, transport) = (bytes[13] >> 4, bytes[13] & 15);
    let fixed = match (command, family, transport) {
        (0, ..) => 0,
        (_, 1, 1 | 2) => 12,
        (_, 2, 1 | 2) => 36,
        _ => return Err(MALFORMED),
    };
    if length < fixed {
        return Err(MALFORMED);
    }
    let Some(body) = bytes.get(V2_HEADER..total) else { return Ok(None) };
    let (body, tlvs) = body.split_at(fixed);
    let header = match fixed {
        0 => return Ok(Some(Parsed::new(Version::V2, ProxyHeader::Local, total))),
        12 => v2_addresses::<4>(body),
        _ => v2_addresses::<16>(body),
    };
    let mut parsed = Parsed::new(Version::V2, header.ok_or(MALFORMED)?, total);
    parsed.tlvs = V2_HEADER + fixed..total;
    let mut rest = tlvs;
    while !rest.is_empty() {
        rest = split_tlv(rest).ok_or(MALFORMED)?.1;
    }
    Ok(Some(parsed))
}

fn v2_addresses<const N: usize>(body: &[u8]) -> Option<ProxyHeader> {
    let ip = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; N] = body.get(at..at + N)?.try_into().ok()?;
        match N {
            4 => Some(<[u8; 4]>::try_from(&bytes[..]).ok()?.into()),
            _ => Some(<[u8; 16]>::try_from(&bytes[..]).ok()?.into()),
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    addresses((ip(0)?, port(2 * N)?).into(), (ip(N)?, port(2 * N + 2)?).into())
}

/// The ends of a TCP connection have one address each.
fn addresses(source: SocketAddr, destination: SocketAddr) -> Option<ProxyHeader> {
    let is_unicast = |address: SocketAddr| {
        let ip = address.ip();
        !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    (is_unicast(source) && is_unicast(destination))
        .then_some(ProxyHeader::Addresses { source, destination })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader::Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn found(version: Version, header: ProxyHeader, length: usize) -> Parsed {
        Parsed::new(version, header, length)
    }

    #[test]
    fn version_1_is_read_at_any_split() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET";
        let config = ProxyProtocol::default();
        let malformed = Err(ProxyError::Malformed(Version::V1));
        for n in 0..33 {
            assert_eq!(parse(&line[..n], &config), Ok(None), "{n}");
        }
        let header = addresses("1.2.3.4:9", "5.6.7.8:10");
        assert_eq!(parse(line, &config), Ok(Some(found(Version::V1, header, 33))));
        let local = found(Version::V1, ProxyHeader::Local, 17);
        assert_eq!(parse(b"PROXY UNKNOWN x\r\n", &config), Ok(Some(local)));
        assert_eq!(parse(b"PROXY TCP4 ::1 ::1 1 2\r\n", &config), malformed);
        assert_eq!(parse(b"PROXY TCP4 0.0.0.0 1.2.3.4 1 2\r\n", &config), malformed);
        assert_eq!(parse(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat(), &config), malformed);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n", &config), Err(ProxyError::Absent));
        let no_v1 = ProxyProtocol { disallow_v1: true, ..ProxyProtocol::default() };
        assert_eq!(parse(line, &no_v1), Err(ProxyError::Disallowed(Version::V1)));
    }

    #[test]
    fn version_2_is_read_with_the_tlvs_that_are_wanted() {
        let rule = TlvRule { tlv_type: 4, namespace: "n".into(), key: "k".into() };
        let config = ProxyProtocol { rules: [rule].into(), ..ProxyProtocol::default() };
        let malformed = Err(ProxyError::Malformed(Version::V2));
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 19, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10]);
        bytes.extend([5, 0, 0, 4, 0, 1, b'x']);
        bytes.extend(b"rest");
        for n in 0..35 {
            assert_eq!(parse(&bytes[..n], &config), Ok(None), "{n}");
        }
        let parsed = parse(&bytes, &config).unwrap().unwrap();
        assert_eq!(parsed.header, addresses("1.2.3.4:9", "5.6.7.8:10"));
        assert_eq!(parsed.length, 35);
        let tlvs: Vec<_> = parsed.tlvs(&bytes, &config).map(|(r, v)| (r.tlv_type, v)).collect();
        assert_eq!(tlvs, [(4, b"x".as_slice())]);
        bytes[33] = 2;
        assert_eq!(parse(&bytes, &config), malformed, "a value beyond the header");
        bytes[12] = 0x20;
        let local = found(Version::V2, ProxyHeader::Local, 35);
        assert_eq!(parse(&bytes, &config), Ok(Some(local)));
        bytes[12] = 0x31;
        assert_eq!(parse(&bytes, &config), malformed);
        bytes[12] = 0x21;
        bytes[15] = 5;
        assert_eq!(parse(&bytes, &config), malformed);
    }
}
