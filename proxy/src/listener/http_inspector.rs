//! HTTP or not, from the first bytes; pb `extensions.filters.listener.http_inspector.v3.HttpInspector`.

use crate::codec::name::is_tchar;

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspected {
    More,
    NotHttp,
    /// So many bytes without a first line that the connection is not worth it.
    TooLong,
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
    let method_end = bytes.iter().position(|b| is_blank(*b) || matches!(b, b'\r' | b'\n'));
    let method = &bytes[..method_end.unwrap_or(bytes.len())];
    // Any token may be a method (RFC 9110 §9.1); what the codec thinks of it is the codec's affair.
    if (method.is_empty() && method_end.is_some()) || !method.iter().all(|b| is_tchar(*b)) {
        return Inspected::NotHttp;
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() >= MAX_INSPECT { Inspected::TooLong } else { Inspected::More };
    };
    first_line(&bytes[..end])
}

/// Method, target and version with blanks between; without a version it is HTTP/0.9, which passes for 1.0.
fn first_line(line: &[u8]) -> Inspected {
    let mut words = line.split(|b| is_blank(*b) || *b == b'\r').filter(|word| !word.is_empty());
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let version = words.next();
    if words.next().is_some() || !is_target(target, method == b"CONNECT") {
        return Inspected::NotHttp;
    }
    match version {
        Some(b"HTTP/1.1") => Inspected::Http("http/1.1"),
        Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']) | None => {
            Inspected::Http("http/1.0")
        }
        Some(_) => Inspected::NotHttp,
    }
}

/// A path, or what has a scheme; the authority alone for CONNECT.
fn is_target(target: &[u8], is_connect: bool) -> bool {
    let has_scheme = || {
        let scheme = memchr::memmem::find(target, b"://").map(|at| &target[..at]);
        scheme.is_some_and(|s| {
            s.first().is_some_and(u8::is_ascii_alphabetic)
                && s.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
        })
    };
    let begins_well = matches!(target.first(), Some(b'/' | b'*'));
    let begins_well = begins_well || (is_connect && !target.is_empty()) || has_scheme();
    begins_well && target.iter().all(|b| b.is_ascii_graphic())
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_apart_at_any_split() {
        let all = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
        let first_line = all.iter().position(|b| *b == b'\n').unwrap();
        for n in 0..=all.len() {
            let expected =
                if n <= first_line { Inspected::More } else { Inspected::Http("http/1.1") };
            assert_eq!(inspect(&all[..n]), expected, "{n}");
        }
        for n in 0..PREFACE.len() {
            assert_eq!(inspect(&PREFACE[..n]), Inspected::More, "{n}");
        }
        assert_eq!(inspect(b"POST / HTTP/1.0\r\n"), Inspected::Http("http/1.0"));
        assert_eq!(inspect(PREFACE), Inspected::Http("h2c"));
        assert_eq!(inspect(b"\x16\x03\x01"), Inspected::NotHttp);
        assert_eq!(inspect(b"EHLO x\r\n"), Inspected::NotHttp);
        assert_eq!(inspect(b"GET / SIP/2.0\r\n"), Inspected::NotHttp);
        assert_eq!(inspect(b"GET /a b HTTP/1.1\r\n"), Inspected::NotHttp);
        assert_eq!(inspect(b"GET  /\tHTTP/1.1 \r\n"), Inspected::Http("http/1.1"));
        assert_eq!(inspect(b"GET /\r\n"), Inspected::Http("http/1.0"));
        assert_eq!(inspect(b"GET / HTTP/1.2\r\n"), Inspected::Http("http/1.0"));
        assert_eq!(inspect(b"CONNECT a:80 HTTP/1.1\r\n"), Inspected::Http("http/1.1"));
        assert_eq!(inspect(&[b'a'; MAX_INSPECT]), Inspected::TooLong);
    }
}
