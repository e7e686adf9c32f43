//! Whether a whole ClientHello has come, without digesting it: a peer that sends it byte by byte costs a look at a few
//! of them each time (RFC 8446 §5.1, §4).

/// Bytes of a ClientHello, as BoringSSL limits it.
const MAX_HELLO: usize = 16 * 1024;
/// A record's header, and a handshake message's.
const RECORD: usize = 5;
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

/// Looks at the records that have come.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut rest = bytes;
    let mut got = 0;
    let mut wanted = None;
    loop {
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
        if wanted.is_none() {
            if body.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Scan::Whole;
            }
            if let [_, a, b, c, ..] = body {
                let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                if length > MAX_HELLO || rest.len() < RECORD {
                    return Scan::Whole;
                }
                wanted = Some(length + MESSAGE);
            } else if body.len() >= length {
                // A header in pieces: rare enough to be rustls' alone.
                return Scan::Whole;
            }
        }
        got += length.min(body.len());
        if wanted.is_some_and(|wanted| got >= wanted) {
            return Scan::Whole;
        }
        if body.len() < length {
            return Scan::More;
        }
        rest = &body[length..];
    }
}

/// The session id of a ClientHello in its first record, in hex.
pub(super) fn session_id(bytes: &[u8]) -> Option<Box<str>> {
    const BEFORE: usize = RECORD + MESSAGE + 2 + 32;
    let length = usize::from(*bytes.get(BEFORE)?);
    let id = bytes.get(BEFORE + 1..BEFORE + 1 + length).filter(|id| !id.is_empty())?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for size in [5, 100, 300] {
            let bytes = records(&hello, size);
            for end in 0..bytes.len() {
                assert_eq!(scan(&bytes[..end]), Scan::More, "{end} of {size}");
            }
            assert_eq!(scan(&bytes), Scan::Whole);
        }
    }

    #[test]
    fn what_is_no_hello_is_not_waited_for() {
        for bytes in [&b"GET"[..], &[22, 2], &[22, 3, 1, 0, 5, 2], &[22, 3, 1, 0, 0], &[0x80]] {
            assert_eq!(scan(bytes), Scan::Whole, "{bytes:?}");
        }
        // A message of more than 16 KiB, and a record of more.
        assert_eq!(scan(&[22, 3, 1, 0x10, 0, 1, 0, 0x50, 0]), Scan::Whole);
        assert_eq!(scan(&[22, 3, 1, 0x50, 0]), Scan::Whole);
    }
}
