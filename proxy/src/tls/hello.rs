//! Whether a whole ClientHello has come, without digesting it: a peer that sends it byte by byte costs a look at the
//! last record each time (RFC 8446 §5.1, §4). And of a whole one, what rustls does not tell.

use super::session_id::SessionId;
use crate::listener::tls_inspector;

/// Bytes of a ClientHello, as BoringSSL limits it.
const MAX_HELLO: usize = 16 * 1024;
/// With the headers of its records, of which there may be many.
const MAX_BYTES: usize = 2 * MAX_HELLO;
/// A handshake message's header.
const MESSAGE: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// The beginning of a ClientHello.
    More,
    /// A whole one, or something else: rustls says what.
    Whole,
}

/// How far the records that have come were looked at.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// The last record that has begun.
    at: usize,
    /// Bytes of the message in the records before.
    got: usize,
    /// The message's own header, as far as it has come: it may be cut like the rest.
    header: [u8; MESSAGE],
    /// How long the message is, with its header.
    wanted: Option<usize>,
}

impl Scanner {
    /// `bytes` are all that have come.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scan {
        if bytes.len() > MAX_BYTES {
            return Scan::Whole;
        }
        loop {
            let rest = &bytes[self.at..];
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE)
                || rest.get(1).is_some_and(|major| *major != 3)
            {
                return Scan::Whole;
            }
            let [_, _, _, high, low, body @ ..] = rest else { return Scan::More };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length == 0 || length > MAX_HELLO {
                return Scan::Whole;
            }
            let got = self.got + length.min(body.len());
            if self.wanted.is_none() {
                let known = got.min(MESSAGE);
                self.header[self.got..known].copy_from_slice(&body[..known - self.got]);
                let [kind, a, b, c] = self.header;
                if known > 0 && kind != CLIENT_HELLO {
                    return Scan::Whole;
                }
                if known == MESSAGE {
                    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    if length > MAX_HELLO {
                        return Scan::Whole;
                    }
                    self.wanted = Some(length + MESSAGE);
                }
            }
            if self.wanted.is_some_and(|wanted| got >= wanted) {
                return Scan::Whole;
            }
            if body.len() < length {
                return Scan::More;
            }
            self.got = got;
            self.at = bytes.len() - body.len() + length;
        }
    }
}

/// What of a ClientHello rustls keeps to itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// RFC 8446 §4.2.1.
    pub(super) offers_tls13: bool,
    /// Nothing newer than TLS 1.1 is offered.
    pub(super) is_old: bool,
    /// A stapled OCSP response is asked for (RFC 6066 §8).
    pub(super) asks_ocsp: bool,
    /// The client takes session tickets (RFC 5077 §3.2); the id of the session that it offers by one.
    pub(super) ticket: Option<Option<SessionId>>,
}

/// Reads a whole ClientHello. What is malformed is left to rustls.
pub(super) fn see(bytes: &[u8]) -> Seen {
    const STATUS_REQUEST: u16 = 5;
    const SESSION_TICKET: u16 = 35;
    const SUPPORTED_VERSIONS: u16 = 43;
    const OCSP: u8 = 1;
    const TLS_1_2: [u8; 2] = [3, 3];
    const TLS_1_3: [u8; 2] = [3, 4];
    let mut seen = Seen::default();
    let Some(body) = tls_inspector::client_hello_body(bytes) else { return seen };
    seen.is_old = body.get(..2).is_some_and(|version| version < &TLS_1_2[..]);
    for_each_extension(&body, |kind, content| match kind {
        STATUS_REQUEST => seen.asks_ocsp = content.first() == Some(&OCSP),
        SESSION_TICKET => seen.ticket = Some(SessionId::of_ticket(content)),
        SUPPORTED_VERSIONS => {
            let mut versions = content.get(1..).unwrap_or_default().chunks_exact(2);
            seen.offers_tls13 = versions.clone().any(|version| version == TLS_1_3);
            seen.is_old = !versions.any(|version| version == TLS_1_2 || version == TLS_1_3);
        }
        _ => {}
    });
    seen
}

/// RFC 8446 §4.1.2.
fn for_each_extension(body: &[u8], mut f: impl FnMut(u16, &[u8])) -> Option<()> {
    fn number(bytes: &mut &[u8], width: usize) -> Option<usize> {
        let (number, rest) = bytes.split_at_checked(width)?;
        *bytes = rest;
        Some(number.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    }
    fn prefixed<'a>(bytes: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
        let length = number(bytes, width)?;
        let (content, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        Some(content)
    }
    // Version and random, session id, cipher suites, compression methods.
    let mut rest = body.get(2 + 32..)?;
    prefixed(&mut rest, 1)?;
    prefixed(&mut rest, 2)?;
    prefixed(&mut rest, 1)?;
    let mut extensions = prefixed(&mut rest, 2)?;
    while !extensions.is_empty() {
        let kind = number(&mut extensions, 2)? as u16;
        f(kind, prefixed(&mut extensions, 2)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Scan {
        Scanner::default().scan(bytes)
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let [high, low] = (piece.len() as u16).to_be_bytes();
            [&[22, 3, 1, high, low], piece].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_hello_is_whole_with_its_last_byte_however_it_is_cut() {
        let mut hello = vec![1, 0, 1, 0];
        hello.resize(4 + 256, 0);
        for size in [1, 3, 5, 100, 300] {
            let bytes = records(&hello, size);
            for end in 0..bytes.len() {
                assert_eq!(scan(&bytes[..end]), Scan::More, "{end} of {size}");
            }
            assert_eq!(scan(&bytes), Scan::Whole);
            let mut scanner = Scanner::default();
            let ends = (0..=bytes.len()).map(|end| scanner.scan(&bytes[..end]));
            assert_eq!(ends.filter(|scan| *scan == Scan::More).count(), bytes.len());
        }
    }

    #[test]
    fn what_a_hello_offers_is_seen() {
        let extensions =
            [&[0, 5, 0, 5, 1, 0, 0, 0, 0][..], &[0, 35, 0, 2, 8, 9], &[0, 43, 0, 5, 4, 3, 4, 3, 3]]
                .concat();
        let mut hello = vec![3; 2 + 32];
        hello.extend([0, 0, 2, 0x13, 1, 1, 0, 0, extensions.len() as u8]);
        hello.extend(&extensions);
        let mut message = vec![1, 0, 0, hello.len() as u8];
        message.append(&mut hello);
        for size in [1, 3, 7, 1000] {
            let seen = see(&records(&message, size));
            assert!(seen.offers_tls13 && seen.asks_ocsp && !seen.is_old);
            assert_eq!(seen.ticket, Some(SessionId::of_ticket(&[8, 9])));
        }
        // Without extensions.
        message.truncate(4 + 34 + 6);
        message[3] = message.len() as u8 - 4;
        let seen = see(&records(&message, 1000));
        assert!(seen.ticket.is_none() && !seen.is_old);
        message[5] = 2;
        assert!(see(&records(&message, 1000)).is_old);
        // Cut short.
        assert!(see(&records(&message[..20], 1000)).ticket.is_none());
    }

    #[test]
    fn what_is_no_hello_is_not_waited_for() {
        // The second byte makes it longer than it may be.
        let cut = [22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 3, 0x50, 0, 0];
        for bytes in
            [&b"GET"[..], &[22, 2], &[22, 3, 1, 0, 5, 2], &[22, 3, 1, 0, 0], &[0x80], &cut[..]]
        {
            assert_eq!(scan(bytes), Scan::Whole, "{bytes:?}");
        }
        // A message of more than 16 KiB, and a record of more.
        assert_eq!(scan(&[22, 3, 1, 0x10, 0, 1, 0, 0x50, 0]), Scan::Whole);
        assert_eq!(scan(&[22, 3, 1, 0x50, 0]), Scan::Whole);
        // More headers than hello.
        let mut hello = vec![1, 0, 0x3f, 0];
        hello.resize(4 + 0x3f00, 0);
        let mut cut = records(&hello[..4], 4);
        cut.extend(records(&hello[4..], 1));
        assert_eq!(scan(&cut[..MAX_BYTES]), Scan::More);
        assert_eq!(scan(&cut[..MAX_BYTES + 1]), Scan::Whole);
    }
}
