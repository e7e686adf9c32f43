//! HTTP or not, from the first bytes; pb `extensions.filters.listener.http_inspector.v3.HttpInspector`.

use crate::codec::name::is_tchar;

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspected {
    More,
    NotHttp,
    /// The application protocol, as ALPN would have said it.
    Http(&'static str),
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this is not waited for (Envoy: `MAX_INSPECT_SIZE`).
const MAX_INSPECT: usize = 64 * 1024;
/// Looks at the bytes of a connection so far.
pub fn inspect(bytes: &[u8]) -> Inspected {
    let seen = bytes.len().min(PREFACE.len());
    if bytes[..seen] == PREFACE[..seen] {
        return if seen == PREFACE.len() { Inspected::Http("h2c") } else { Inspected::More };
    }
    let method_end = bytes.iter().position(|b| *b == b' ');
    let method = &bytes[..method_end.unwrap_or(bytes.len())];
    // Any token may be a method (RFC 9110 §9.1); what the codec thinks of it is the codec's affair.
    if (method.is_empty() && method_end.is_some()) || !method.iter().all(|b| is_tchar(*b)) {
        return Inspected::NotHttp;
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() > MAX_INSPECT { Inspected::NotHttp } else { Inspected::More };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.ends_with(b" HTTP/1.1") {
        Inspected::Http("http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Inspected::Http("http/1.0")
    } else {
        Inspected::NotHttp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_apart_at_any_split() {
        let all = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
        for n in 0..17 {
            assert_eq!(
                inspect(&all[..n.min(16)]),
                if n < 17 { Inspected::More } else { Inspected::NotHttp },
                "{n}"
            );
        }
        assert_eq!(inspect(all), Inspected::Http("http/1.1"));
        assert_eq!(inspect(b"POST / HTTP/1.0\r\n"), Inspected::Http("http/1.0"));
        assert_eq!(inspect(PREFACE), Inspected::Http("h2c"));
        assert_eq!(inspect(&PREFACE[..5]), Inspected::More);
        assert_eq!(inspect(b"\x16\x03\x01"), Inspected::NotHttp);
        assert_eq!(inspect(b"EHLO x\r\n"), Inspected::NotHttp);
        assert_eq!(inspect(b"GET / SIP/2.0\r\n"), Inspected::NotHttp);
    }
}
