//! Heads and bodies to the wire, both sides.
//!
//! Fields of the connection and of the framing are written here and nowhere else; those that stand in a
//! list are left out.

use std::ops::Range;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::codec::buffer::WriteQueue;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::name::ids;
use crate::config::protocol_options::HeaderKeyFormat;

use super::parse::parse_content_length;

/// How the body that is being sent is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEncoder {
    /// The message has no body: what is sent is dropped.
    None,
    Length(u64),
    Chunked,
    /// Raw bytes; the end of the stream is the end of the body.
    Eof,
}

/// Whether the bytes sent are what the head promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Fits,
    /// More or fewer than Content-Length: the connection cannot be used again.
    Mismatch,
}

impl BodyEncoder {
    /// Appends body bytes, and the end of the body.
    pub(super) fn data(&mut self, out: &mut WriteQueue, mut data: Bytes, end: bool) -> Sent {
        match self {
            Self::None => return Sent::Fits,
            Self::Length(left) => {
                let too_long = data.len() as u64 > *left;
                if too_long {
                    data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                }
                *left -= data.len() as u64;
                let too_short = end && *left > 0;
                if !data.is_empty() {
                    out.push(data);
                }
                if too_long || too_short {
                    return Sent::Mismatch;
                }
            }
            Self::Chunked => {
                if !data.is_empty() {
                    let tail = out.tail();
                    push_hex(tail, data.len());
                    tail.extend_from_slice(b"\r\n");
                    out.push(data);
                    out.tail().extend_from_slice(b"\r\n");
                }
                if end {
                    out.tail().extend_from_slice(b"0\r\n\r\n");
                }
            }
            Self::Eof => {
                if !data.is_empty() {
                    out.push(data);
                }
            }
        }
        Sent::Fits
    }

    /// Ends the body; trailers are written where there are chunks.
    pub(super) fn trailers(&mut self, out: &mut WriteQueue, trailers: &HeaderList) -> Sent {
        match self {
            Self::Chunked => {
                let tail = out.tail();
                tail.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter() {
                    if !super::body::is_forbidden_trailer(name) {
                        push_line(tail, name, value, HeaderKeyFormat::Lower);
                    }
                }
                tail.extend_from_slice(b"\r\n");
                Sent::Fits
            }
            Self::None | Self::Length(_) | Self::Eof => self.data(out, Bytes::new(), true),
        }
    }
}

fn push_hex(out: &mut Vec<u8>, n: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for i in (0..digits).rev() {
        out.push(DIGITS[(n >> (4 * i)) & 15]);
    }
}

pub(super) fn push_line(out: &mut Vec<u8>, name: &[u8], value: &[u8], format: HeaderKeyFormat) {
    out.reserve(name.len() + value.len() + 4);
    let start = out.len();
    out.extend_from_slice(name);
    match format {
        HeaderKeyFormat::Lower => make_lowercase(&mut out[start..]),
        HeaderKeyFormat::ProperCaseWords => proper_case(&mut out[start..]),
        HeaderKeyFormat::PreserveCase => {}
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes the lines of a list that `keep(number of the name, value)` lets pass.
///
/// Lines that stand in the arena as they came from the wire, one behind the other, go out in one copy: of a
/// head that nobody touched that is nearly all of it.
fn push_lines(
    out: &mut Vec<u8>,
    list: &HeaderList,
    format: HeaderKeyFormat,
    mut keep: impl FnMut(u8, &[u8]) -> bool,
) {
    let arena = list.arena();
    // Wire lines that are not copied yet: a range of the arena, and where its names are.
    let mut run = 0..0;
    let mut names = [const { 0..0 }; RUN_LINES];
    let mut count = 0;
    for (id, name, value) in list.iter_ranges() {
        if !keep(id, &arena[value.clone()]) {
            continue;
        }
        let end = value.end + 2;
        let is_wire_line = arena.get(name.end..value.start) == Some(b": ")
            && arena.get(value.end..end) == Some(b"\r\n");
        if !is_wire_line {
            push_run(out, &arena[run.clone()], run.start, &names[..count], format);
            (run, count) = (0..0, 0);
            push_line(out, &arena[name], &arena[value], format);
            continue;
        }
        if run.end != name.start || count == RUN_LINES {
            push_run(out, &arena[run.clone()], run.start, &names[..count], format);
            (run, count) = (name.start..name.start, 0);
        }
        run.end = end;
        names[count] = name;
        count += 1;
    }
    push_run(out, &arena[run.clone()], run.start, &names[..count], format);
}

/// Lines that one copy takes at most.
const RUN_LINES: usize = 32;

fn push_run(
    out: &mut Vec<u8>,
    bytes: &[u8],
    from: usize,
    names: &[Range<usize>],
    format: HeaderKeyFormat,
) {
    let start = out.len();
    out.extend_from_slice(bytes);
    let written = &mut out[start..];
    match format {
        HeaderKeyFormat::Lower => {
            for name in names {
                make_lowercase(&mut written[name.start - from..name.end - from]);
            }
        }
        HeaderKeyFormat::ProperCaseWords => {
            for name in names {
                proper_case(&mut written[name.start - from..name.end - from]);
            }
        }
        HeaderKeyFormat::PreserveCase => {}
    }
}

/// As `make_ascii_lowercase`, in words: names are short, and a loop of single bytes is what they cost most.
fn make_lowercase(name: &mut [u8]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let lower = |word: u64| {
        // The top bit of each byte of `from_a` says "A or behind it", of `behind_z` "behind Z", where the byte is ASCII.
        let low = word & (0x7f * ONES);
        let (from_a, behind_z) = (low + (0x80 - 0x41) * ONES, low + (0x80 - 0x5b) * ONES);
        word | ((from_a & !behind_z & !word & (0x80 * ONES)) >> 2)
    };
    if name.len() < 8 {
        return name.make_ascii_lowercase();
    }
    for word in name.as_chunks_mut::<8>().0 {
        *word = lower(u64::from_ne_bytes(*word)).to_ne_bytes();
    }
    // The last word overlaps the one before it.
    if let Some(word) = name.last_chunk_mut::<8>() {
        *word = lower(u64::from_ne_bytes(*word)).to_ne_bytes();
    }
}

/// `proper_case_words`: a letter behind the start or anything that is neither letter nor digit is upper case.
fn proper_case(name: &mut [u8]) {
    let mut upper = true;
    for b in name {
        if upper {
            b.make_ascii_uppercase();
        } else {
            b.make_ascii_lowercase();
        }
        upper = !b.is_ascii_alphanumeric();
    }
}

/// What a response's encoding depends on beside its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResponseContext {
    pub(super) to_head: bool,
    /// The request came in HTTP/1.0.
    pub(super) http10: bool,
    /// A 101, or a 2xx to CONNECT: raw bytes follow.
    pub(super) tunnel: bool,
    /// The connection ends after this response.
    pub(super) close: bool,
    pub(super) end: bool,
    pub(super) format: HeaderKeyFormat,
}

/// Writes a final head; the framing of its body, and whether the connection has to end after it.
pub(super) fn response_head(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    cx: ResponseContext,
) -> (BodyEncoder, bool) {
    status_line(out, head.status, cx.http10);
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let bodiless = head.status.is_informational() || head.status == StatusCode::NO_CONTENT;
    let mut length = None;
    let mut has_connection = false;
    push_lines(out, &head.headers, cx.format, |id, value| match id {
        ids::CONNECTION | ids::UPGRADE if switching => {
            has_connection |= id == ids::CONNECTION;
            true
        }
        ids::CONNECTION
        | ids::UPGRADE
        | ids::KEEP_ALIVE
        | ids::PROXY_CONNECTION
        | ids::TRANSFER_ENCODING => false,
        // A value of our own making may be wrong; then chunks say where the body ends.
        ids::CONTENT_LENGTH => {
            // In a tunnel a length has no meaning; 0 does no harm and passes, as in Envoy.
            let drops = |n| bodiless || (cx.tunnel && n > 0);
            parse_content_length(value).is_ok_and(|n| !drops(n) && length.replace(n).is_none())
        }
        _ => true,
    });
    let mut line = |name: &[u8], value: &[u8]| push_line(out, name, value, cx.format);
    if cx.tunnel {
        if switching && !has_connection {
            line(b"connection", b"upgrade");
        }
        out.extend_from_slice(b"\r\n");
        return (BodyEncoder::Eof, true);
    }
    // HTTP/1.0 goes on behind a length only, as in Envoy: even a body that cannot be asks for one.
    let close = cx.close || (cx.http10 && length.is_none());
    if close {
        line(b"connection", b"close");
    } else if cx.http10 {
        line(b"connection", b"keep-alive");
    }
    let body = if bodiless || head.status == StatusCode::NOT_MODIFIED {
        BodyEncoder::None
    } else if cx.to_head {
        // What a GET would have got, as far as we know it.
        if length.is_none() && !cx.http10 {
            line(b"transfer-encoding", b"chunked");
        }
        BodyEncoder::None
    } else if let Some(length) = length {
        BodyEncoder::Length(length)
    } else if cx.end {
        line(b"content-length", b"0");
        BodyEncoder::None
    } else if cx.http10 {
        BodyEncoder::Eof
    } else {
        line(b"transfer-encoding", b"chunked");
        BodyEncoder::Chunked
    };
    out.extend_from_slice(b"\r\n");
    (body, close)
}

/// Writes a 1xx head that is not the last.
pub(super) fn informational_head(out: &mut Vec<u8>, head: &ResponseHead, format: HeaderKeyFormat) {
    status_line(out, head.status, false);
    push_lines(out, &head.headers, format, |id, _| {
        !matches!(
            id,
            ids::CONNECTION
                | ids::UPGRADE
                | ids::KEEP_ALIVE
                | ids::PROXY_CONNECTION
                | ids::TRANSFER_ENCODING
                | ids::CONTENT_LENGTH
        )
    });
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, status: StatusCode, http10: bool) {
    if status == StatusCode::OK && !http10 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase in Envoy's words.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        203 => "Non-Authoritative Information",
        418 | 451 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        102 | 103 => "Unknown",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

/// What a request's encoding depends on beside its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestContext {
    pub(super) end: bool,
    pub(super) absolute_form: bool,
    pub(super) format: HeaderKeyFormat,
}

/// Writes a request's head; the framing of its body.
pub(super) fn request_head(
    out: &mut Vec<u8>,
    head: &RequestHead,
    cx: RequestContext,
) -> BodyEncoder {
    let is_connect = head.method == Method::CONNECT;
    out.reserve(512);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let authority = head.authority().unwrap_or(b"");
    if is_connect {
        out.extend_from_slice(authority);
    } else {
        if cx.absolute_form {
            out.extend_from_slice(head.scheme.map_or("http", |s| s.as_str()).as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(authority);
        }
        out.extend_from_slice(head.path().unwrap_or(b"/"));
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_line(out, b"host", authority, cx.format);
    let upgrade = head.upgrade.is_some() && !is_connect;
    let mut length = None;
    let mut has_connection = false;
    push_lines(out, &head.headers, cx.format, |id, value| match id {
        ids::CONNECTION | ids::UPGRADE if upgrade => {
            has_connection |= id == ids::CONNECTION;
            true
        }
        ids::CONNECTION
        | ids::UPGRADE
        | ids::KEEP_ALIVE
        | ids::PROXY_CONNECTION
        | ids::TRANSFER_ENCODING
        | ids::HOST => false,
        ids::CONTENT_LENGTH => {
            parse_content_length(value).is_ok_and(|n| !is_connect && length.replace(n).is_none())
        }
        _ => true,
    });
    let mut line = |name: &[u8], value: &[u8]| push_line(out, name, value, cx.format);
    let body = if is_connect {
        BodyEncoder::Eof
    } else if upgrade {
        if !has_connection {
            line(b"connection", b"upgrade");
        }
        BodyEncoder::Eof
    } else if let Some(length) = length {
        BodyEncoder::Length(length)
    } else if cx.end {
        // RFC 9110 §8.6: only where the method anticipates content.
        if !matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE) {
            line(b"content-length", b"0");
        }
        BodyEncoder::None
    } else {
        line(b"transfer-encoding", b"chunked");
        BodyEncoder::Chunked
    };
    out.extend_from_slice(b"\r\n");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_lowered_as_ascii() {
        for length in 0..=20 {
            for start in 0..=u8::MAX {
                let mut name: Vec<u8> = (0..length).map(|i| start.wrapping_add(i * 13)).collect();
                let expected = name.to_ascii_lowercase();
                make_lowercase(&mut name);
                assert_eq!(name, expected);
            }
        }
    }
}
