//! Heads on the wire: what request and response parsing share.
//!
//! httparse finds the lines (SIMD, tokens and values checked); here are the checks on which it is lenient
//! (bare LF) and the fields that belong to the connection, which never reach a head.

use httparse::Header;

use crate::codec::ParseFault;
use crate::codec::head::{HeaderList, Span};
use crate::codec::name::{id_of, ids, is_tchar};

/// Header lines that are parsed on the stack; a larger configured limit costs an allocation.
pub(super) const STACK_HEADERS: usize = 128;

/// The fault for an error of httparse.
pub(super) fn fault_of(error: httparse::Error) -> ParseFault {
    match error {
        httparse::Error::TooManyHeaders => ParseFault::TooManyHeaders,
        httparse::Error::HeaderValue => ParseFault::InvalidCharacters,
        httparse::Error::HeaderName
        | httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token
        | httparse::Error::Version => ParseFault::CodecError,
    }
}

/// Whether each line ends with CRLF, which httparse does not ask for: `consumed` bytes of `buf` are the
/// section, its lines begin where `headers` say.
pub(super) fn lines_end_with_crlf(buf: &[u8], headers: &[Header<'_>], consumed: usize) -> bool {
    let base = buf.as_ptr() as usize;
    // A trailer section begins with its first name.
    let crlf_before = |at: usize| at == 0 || at >= 2 && buf.get(at - 2..at) == Some(b"\r\n");
    headers.iter().all(|h| crlf_before(h.name.as_ptr() as usize - base))
        && consumed >= 4
        && buf.get(consumed - 4..consumed) == Some(b"\r\n\r\n")
}

/// What is wrong with a head that httparse refuses, by the order in which Envoy looks: its length, its bytes, its
/// grammar. `None` if more of it has to come first: lines are counted, and a version refused, when all are here.
pub(super) fn head_fault(buf: &[u8], grammar: ParseFault, max_bytes: usize) -> Option<ParseFault> {
    let end = head_end(buf);
    if end.unwrap_or(buf.len()) > max_bytes {
        return Some(ParseFault::HeadersTooLarge);
    }
    match end {
        Some(end) if buf[..end].iter().any(|b| is_invalid(*b)) => {
            Some(ParseFault::InvalidCharacters)
        }
        None if matches!(grammar, ParseFault::TooManyHeaders | ParseFault::LowVersion) => None,
        Some(_) | None => Some(grammar),
    }
}

/// The fault of the first field name that is none; letters of another alphabet are seen later than the rest.
pub(super) fn header_name_fault(buf: &[u8]) -> ParseFault {
    let names = buf.split(|b| *b == b'\n').skip(1).map(|line| line.split(|b| *b == b':').next());
    let bad = names.flatten().find(|name| !name.iter().all(|b| is_tchar(*b)));
    match bad {
        Some(name) if name.iter().all(|b| is_tchar(*b) || *b >= 0x80) => ParseFault::NonAsciiName,
        Some(_) | None => ParseFault::CodecError,
    }
}

/// Bytes up to the end of a head's empty line.
fn head_end(buf: &[u8]) -> Option<usize> {
    let after = |needle: &[u8]| memchr::memmem::find(buf, needle).map(|at| at + needle.len());
    match (after(b"\n\r\n"), after(b"\n\n")) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Bytes that have no place in a head, wherever they stand.
fn is_invalid(b: u8) -> bool {
    matches!(b, 0..=8 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f)
}

/// A Content-Length value: digits only, 64 bits (RFC 9110 §8.6).
pub(super) fn parse_content_length(value: &[u8]) -> Result<u64, ParseFault> {
    // 2^64 has twenty digits; longer ones with leading zeros are nobody's honest length.
    if value.is_empty() || value.len() > 20 {
        return Err(ParseFault::CodecError);
    }
    value.iter().try_fold(0_u64, |n, b| match b {
        b'0'..=b'9' => n
            .checked_mul(10)
            .and_then(|n| n.checked_add(u64::from(b - b'0')))
            .ok_or(ParseFault::CodecError),
        _ => Err(ParseFault::CodecError),
    })
}

/// Members of a comma-separated list, white space trimmed, empty ones left out.
pub(super) fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|m| !m.is_empty())
}

/// What the connection fields of a head say.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionFields {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Names of other fields, which belong to this hop alone.
    nominated: Vec<Span>,
    members: usize,
}

/// More than this in `Connection` is refused, as in Envoy.
const MAX_CONNECTION_MEMBERS: usize = 10;

impl ConnectionFields {
    /// Takes a `Connection` value, given as a range of `list`'s arena.
    pub(super) fn take(&mut self, list: &HeaderList, span: Span) {
        let value = list.slice(span);
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return;
        }
        let base = value.as_ptr() as usize;
        for member in list_members(value) {
            self.members += 1;
            if member.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if member.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if member.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                let offset = member.as_ptr() as usize - base;
                self.nominated.push(HeaderList::sub_span(span, offset, member.len()));
            }
        }
    }

    /// Looks at the fields that `Connection` names (RFC 9110 §7.6.1).
    ///
    /// # Errors
    /// There are too many, or one is named whose absence would change what the next hop believes.
    pub(super) fn check_nominated(&self, list: &HeaderList) -> Result<(), ParseFault> {
        if self.members >= MAX_CONNECTION_MEMBERS {
            return Err(ParseFault::ConnectionHeaderRejected);
        }
        for span in &self.nominated {
            let name = list.slice(*span);
            match id_of(name) {
                ids::HOST
                | ids::CONTENT_LENGTH
                | ids::TRANSFER_ENCODING
                | ids::X_FORWARDED_FOR
                | ids::X_FORWARDED_HOST
                | ids::X_FORWARDED_PROTO
                | ids::X_FORWARDED_CLIENT_CERT => {
                    return Err(ParseFault::ConnectionHeaderRejected);
                }
                _ if name[0] == b':' => return Err(ParseFault::ConnectionHeaderRejected),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the fields that `Connection` names.
    pub(super) fn strip_nominated(&self, list: &mut HeaderList) {
        if self.nominated.is_empty() {
            return;
        }
        list.retain_names(|list, name| {
            let name = list.slice(name);
            // `te` and `upgrade` are handled by their own rules.
            matches!(id_of(name), ids::TE | ids::UPGRADE | ids::CONNECTION)
                || !self.nominated.iter().any(|n| list.slice(*n).eq_ignore_ascii_case(name))
        });
    }
}
