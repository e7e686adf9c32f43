//! PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::listener::ProxyProtocol;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    Addresses {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// LOCAL, UNKNOWN or a family that is not IP: the socket's own addresses hold.
    Local,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    #[error("malformed PROXY header")]
    Malformed,
    #[error("this version of the PROXY protocol is not allowed")]
    Disallowed,
}

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_PREFIX: &[u8] = b"PROXY ";
/// Longest version 1 line, CRLF included.
const V1_MAX: usize = 108;
/// Longest version 2 header that is taken; its TLVs are skipped.
const V2_MAX: usize = 16 + 65_535;

/// Reads a header and its length; `None` when more bytes are needed.
///
/// # Errors
/// There is none, it is malformed, or its version is not allowed.
pub fn parse(
    bytes: &[u8],
    config: &ProxyProtocol,
) -> Result<Option<(ProxyHeader, usize)>, ProxyError> {
    let is_prefix = |signature: &[u8]| {
        let seen = bytes.len().min(signature.len());
        bytes[..seen] == signature[..seen]
    };
    if is_prefix(V2_SIGNATURE) {
        if bytes.len() < 16 {
            return Ok(None);
        }
        if config.disallow_v2 {
            return Err(ProxyError::Disallowed);
        }
        return parse_v2(bytes);
    }
    if is_prefix(V1_PREFIX) {
        if bytes.len() >= V1_PREFIX.len() && config.disallow_v1 {
            return Err(ProxyError::Disallowed);
        }
        return parse_v1(bytes);
    }
    Err(ProxyError::Absent)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyError> {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() >= V1_MAX { Err(ProxyError::Malformed) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| ProxyError::Malformed)?;
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().ok_or(ProxyError::Malformed);
    let family = next()?;
    if family == "UNKNOWN" {
        return Ok(Some((ProxyHeader::Local, end + 2)));
    }
    let (source, destination) = (next()?, next()?);
    let (source_port, destination_port) = (next()?, next()?);
    if words.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let port: u16 = port.parse().ok()?;
        match family {
            "TCP4" => Some((ip.parse::<Ipv4Addr>().ok()?, port).into()),
            "TCP6" => Some((ip.parse::<Ipv6Addr>().ok()?, port).into()),
            _ => None,
        }
    };
    let header = ProxyHeader::Addresses {
        source: address(source, source_port).ok_or(ProxyError::Malformed)?,
        destination: address(destination, destination_port).ok_or(ProxyError::Malformed)?,
    };
    Ok(Some((header, end + 2)))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyError> {
    let (version, command) = (bytes[12] >> 4, bytes[12] & 15);
    if version != 2 || command > 1 {
        return Err(ProxyError::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let total = 16 + length;
    debug_assert!(total <= V2_MAX);
    let Some(body) = bytes.get(16..total) else { return Ok(None) };
    if command == 0 {
        return Ok(Some((ProxyHeader::Local, total)));
    }
    let (family, transport) = (bytes[13] >> 4, bytes[13] & 15);
    if transport != 1 || !matches!(family, 1 | 2) {
        // Only streams over IP have addresses that mean something here.
        return if family == 0 || family == 3 {
            Ok(Some((ProxyHeader::Local, total)))
        } else {
            Err(ProxyError::Malformed)
        };
    }
    let header = if family == 1 { v2_addresses::<4>(body) } else { v2_addresses::<16>(body) };
    header.map(|header| Some((header, total))).ok_or(ProxyError::Malformed)
}

fn v2_addresses<const N: usize>(body: &[u8]) -> Option<ProxyHeader> {
    let ip = |at: usize| -> Option<std::net::IpAddr> {
        let bytes: [u8; N] = body.get(at..at + N)?.try_into().ok()?;
        match N {
            4 => Some(<[u8; 4]>::try_from(&bytes[..]).ok()?.into()),
            _ => Some(<[u8; 16]>::try_from(&bytes[..]).ok()?.into()),
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    Some(ProxyHeader::Addresses {
        source: (ip(0)?, port(2 * N)?).into(),
        destination: (ip(N)?, port(2 * N + 2)?).into(),
    })
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

    #[test]
    fn version_1_is_read_at_any_split() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET";
        let config = ProxyProtocol::default();
        for n in 0..33 {
            assert_eq!(parse(&line[..n], &config), Ok(None), "{n}");
        }
        let found = addresses("1.2.3.4:9", "5.6.7.8:10");
        assert_eq!(parse(line, &config), Ok(Some((found, 33))));
        assert_eq!(parse(b"PROXY UNKNOWN x\r\n", &config), Ok(Some((ProxyHeader::Local, 17))));
        assert_eq!(parse(b"PROXY TCP4 ::1 ::1 1 2\r\n", &config), Err(ProxyError::Malformed));
        assert_eq!(
            parse(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat(), &config),
            Err(ProxyError::Malformed)
        );
        assert_eq!(parse(b"GET / HTTP/1.1\r\n", &config), Err(ProxyError::Absent));
        let no_v1 = ProxyProtocol { disallow_v1: true, ..ProxyProtocol::default() };
        assert_eq!(parse(line, &no_v1), Err(ProxyError::Disallowed));
    }

    #[test]
    fn version_2_is_read_with_its_tlvs_skipped() {
        let config = ProxyProtocol::default();
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 15, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10, 4, 0, 0]);
        bytes.extend(b"rest");
        for n in 0..31 {
            assert_eq!(parse(&bytes[..n], &config), Ok(None), "{n}");
        }
        let found = addresses("1.2.3.4:9", "5.6.7.8:10");
        assert_eq!(parse(&bytes, &config), Ok(Some((found, 31))));
        bytes[12] = 0x20;
        assert_eq!(parse(&bytes, &config), Ok(Some((ProxyHeader::Local, 31))));
        bytes[12] = 0x31;
        assert_eq!(parse(&bytes, &config), Err(ProxyError::Malformed));
        bytes[12] = 0x21;
        bytes[15] = 5;
        assert_eq!(parse(&bytes, &config), Err(ProxyError::Malformed));
    }
}
