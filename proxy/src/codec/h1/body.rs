//! Message bodies on the wire (RFC 9112 §6, §7): how long one is, and what is data in it.

use bytes::{Buf, Bytes, BytesMut};

use crate::codec::ParseFault;
use crate::codec::head::HeaderList;
use crate::codec::name::{id_of, ids};
use crate::config::protocol_options::HeadersWithUnderscoresAction;

use super::head_scan::HeadScan;
use super::parse::{STACK_HEADERS, fault_of, lines_end_with_crlf};

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Everything to the end of the stream: tunnels, and responses without any length.
    Eof,
}

/// Chunk extensions of one body, padding of sizes with zeros included: more has no honest use, and
/// nothing here keeps them (FAULTS A12).
const MAX_EXTENSION_BYTES: usize = 16 * 1024;

/// What a step of decoding gave.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing without more bytes.
    NeedMore,
    Data(Bytes),
    Trailers(HeaderList),
    End,
}

/// Limits and policy for a trailer section.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrailerLimits {
    /// Whether trailers are passed on; they are checked all the same.
    pub(super) enabled: bool,
    pub(super) max_bytes: usize,
    pub(super) max_count: usize,
    /// Names with underscores.
    pub(super) underscores: HeadersWithUnderscoresAction,
}

/// The decoder of one body.
#[derive(Debug)]
pub(super) enum BodyDecoder {
    Done,
    Length(u64),
    Chunked(ChunkDecoder),
    Eof,
}

impl BodyDecoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(ChunkDecoder::default()),
            Framing::Eof => Self::Eof,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Whether `bytes`, the next of the body, are in order as far as its trailers: what is not is known before
    /// any of it is given out.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), ParseFault> {
        match self {
            Self::Chunked(decoder) => decoder.clone().walk(bytes),
            Self::Done | Self::Length(_) | Self::Eof => Ok(()),
        }
    }

    /// Takes what it can of `buf`. `scan` has seen nothing before the body began, nor behind its end.
    pub(super) fn decode(
        &mut self,
        buf: &mut BytesMut,
        limits: TrailerLimits,
        scan: &mut HeadScan,
    ) -> Result<Step, ParseFault> {
        match self {
            Self::Done => Ok(Step::End),
            Self::Length(left) => {
                if buf.is_empty() {
                    return Ok(Step::NeedMore);
                }
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Step::Data(buf.split_to(n).freeze()))
            }
            Self::Chunked(decoder) => {
                let step = decoder.decode(buf, limits, scan)?;
                if decoder.ended || matches!(step, Step::Trailers(_) | Step::End) {
                    *self = Self::Done;
                }
                Ok(step)
            }
            Self::Eof if buf.is_empty() => Ok(Step::NeedMore),
            Self::Eof => Ok(Step::Data(buf.split().freeze())),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ChunkState {
    /// In the digits; how many there were.
    #[default]
    Size,
    /// White space after the digits: only an extension or the line's end may follow.
    AfterSize,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
}

/// RFC 9112 §7.1: `chunk-size [ chunk-ext ] CRLF chunk-data CRLF`, strictly.
#[derive(Debug, Clone, Default)]
pub(super) struct ChunkDecoder {
    state: ChunkState,
    /// Without leading zeros, of which one stands for all.
    digits: u8,
    left: u64,
    extension_bytes: usize,
    /// The plain end came right behind the data just given out.
    ended: bool,
}

/// The end as nearly everyone writes it.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl ChunkDecoder {
    fn decode(
        &mut self,
        buf: &mut BytesMut,
        limits: TrailerLimits,
        scan: &mut HeadScan,
    ) -> Result<Step, ParseFault> {
        loop {
            match self.state {
                ChunkState::Data => {
                    if buf.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.state = ChunkState::DataCr;
                    }
                    let data = buf.split_to(n).freeze();
                    // What is wrong behind the data is said by the next step.
                    if self.finish_chunk(buf) == Ok(true) && buf.starts_with(LAST_CHUNK) {
                        buf.advance(LAST_CHUNK.len());
                        self.ended = true;
                    }
                    return Ok(Step::Data(data));
                }
                ChunkState::Trailers => return decode_trailers(buf, limits, scan),
                ChunkState::DataCr | ChunkState::DataLf => {
                    if !self.finish_chunk(buf)? {
                        return Ok(Step::NeedMore);
                    }
                }
                ChunkState::Size
                | ChunkState::AfterSize
                | ChunkState::Extension
                | ChunkState::SizeLf => {
                    if !self.size_line(buf)? {
                        return Ok(Step::NeedMore);
                    }
                }
            }
        }
    }

    /// Goes through `bytes` as `decode` would.
    fn walk(&mut self, bytes: &[u8]) -> Result<(), ParseFault> {
        let mut rest = bytes;
        while let Some(&b) = rest.first() {
            match self.state {
                ChunkState::Trailers => return Ok(()),
                ChunkState::Data => {
                    let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.state = ChunkState::DataCr;
                    }
                    rest = &rest[n..];
                    continue;
                }
                ChunkState::DataCr if b == b'\r' => self.state = ChunkState::DataLf,
                ChunkState::DataLf if b == b'\n' => self.state = ChunkState::Size,
                ChunkState::DataCr | ChunkState::DataLf => return Err(ParseFault::CodecError),
                ChunkState::Size
                | ChunkState::AfterSize
                | ChunkState::Extension
                | ChunkState::SizeLf => {
                    self.size_byte(b)?;
                }
            }
            rest = &rest[1..];
        }
        Ok(())
    }

    /// Takes the CRLF behind a chunk's data, as far as it is there, so that the last frame and the end are
    /// known together; whether it is complete.
    fn finish_chunk(&mut self, buf: &mut BytesMut) -> Result<bool, ParseFault> {
        for (state, byte, next) in [
            (ChunkState::DataCr, b'\r', ChunkState::DataLf),
            (ChunkState::DataLf, b'\n', ChunkState::Size),
        ] {
            match buf.first() {
                Some(b) if self.state == state && *b == byte => {
                    buf.advance(1);
                    self.state = next;
                }
                Some(_) if self.state == state => return Err(ParseFault::CodecError),
                Some(_) | None => {}
            }
        }
        Ok(self.state == ChunkState::Size)
    }

    /// Takes bytes of a size line; whether it is complete.
    fn size_line(&mut self, buf: &mut BytesMut) -> Result<bool, ParseFault> {
        let mut taken = 0;
        let mut complete = false;
        for &b in buf.iter() {
            taken += 1;
            if self.size_byte(b)? {
                complete = true;
                break;
            }
        }
        buf.advance(taken);
        Ok(complete)
    }

    /// One byte of a size line; whether it was the last.
    fn size_byte(&mut self, b: u8) -> Result<bool, ParseFault> {
        match (self.state, b) {
            (ChunkState::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = match b {
                    b'0'..=b'9' => b - b'0',
                    _ => (b | 0x20) - b'a' + 10,
                };
                // Sixteen digits are all that 64 bits have.
                if self.digits == 16 {
                    return Err(ParseFault::CodecError);
                }
                if self.left == 0 && self.digits > 0 {
                    self.extension_byte()?;
                } else {
                    self.digits += 1;
                }
                self.left = self.left << 4 | u64::from(digit);
            }
            (ChunkState::Size, _) if self.digits == 0 => return Err(ParseFault::CodecError),
            (ChunkState::Size | ChunkState::AfterSize | ChunkState::Extension, b'\r') => {
                self.state = ChunkState::SizeLf;
            }
            (ChunkState::Size | ChunkState::AfterSize, b' ' | b'\t') => {
                self.state = ChunkState::AfterSize;
                self.extension_byte()?;
            }
            (ChunkState::Size | ChunkState::AfterSize, b';') => {
                self.state = ChunkState::Extension;
                self.extension_byte()?;
            }
            (ChunkState::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension_byte()?,
            (ChunkState::SizeLf, b'\n') => {
                self.digits = 0;
                self.state = if self.left == 0 { ChunkState::Trailers } else { ChunkState::Data };
                return Ok(true);
            }
            _ => return Err(ParseFault::CodecError),
        }
        Ok(false)
    }

    fn extension_byte(&mut self) -> Result<(), ParseFault> {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(ParseFault::CodecError);
        }
        Ok(())
    }
}

/// The trailer section and the empty line behind it.
fn decode_trailers(
    buf: &mut BytesMut,
    limits: TrailerLimits,
    scan: &mut HeadScan,
) -> Result<Step, ParseFault> {
    match &buf[..] {
        [b'\r', b'\n', ..] => {
            buf.advance(2);
            return Ok(Step::End);
        }
        [] | [b'\r'] => return Ok(Step::NeedMore),
        _ => {}
    }
    if !scan.should_parse(buf, false) {
        return Ok(Step::NeedMore);
    }
    let parsed = if limits.max_count <= STACK_HEADERS {
        parse_trailers(buf, limits, &mut [httparse::EMPTY_HEADER; STACK_HEADERS])?
    } else {
        parse_trailers(buf, limits, &mut vec![httparse::EMPTY_HEADER; limits.max_count + 1])?
    };
    let Some((consumed, list)) = parsed else { return Ok(Step::NeedMore) };
    *scan = HeadScan::default();
    buf.advance(consumed);
    match list {
        Some(list) if !list.is_empty() => Ok(Step::Trailers(list)),
        Some(_) | None => Ok(Step::End),
    }
}

/// How long the section is, and what is passed on of it; `None` while it is incomplete.
fn parse_trailers<'b>(
    buf: &'b [u8],
    limits: TrailerLimits,
    storage: &mut [httparse::Header<'b>],
) -> Result<Option<(usize, Option<HeaderList>)>, ParseFault> {
    let (consumed, headers) = match httparse::parse_headers(buf, storage) {
        Ok(httparse::Status::Complete(section)) => section,
        Ok(httparse::Status::Partial) if buf.len() > limits.max_bytes => {
            return Err(ParseFault::HeadersTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(fault_of(error)),
    };
    if !lines_end_with_crlf(buf, headers, consumed) {
        return Err(ParseFault::CodecError);
    }
    if consumed > limits.max_bytes {
        return Err(ParseFault::HeadersTooLarge);
    }
    if headers.len() > limits.max_count {
        return Err(ParseFault::TooManyHeaders);
    }
    let mut list = limits.enabled.then(HeaderList::new);
    if let Some(list) = &mut list {
        for header in headers {
            if limits.underscores != HeadersWithUnderscoresAction::Allow
                && header.name.contains('_')
            {
                if limits.underscores == HeadersWithUnderscoresAction::RejectRequest {
                    return Err(ParseFault::UnexpectedUnderscore);
                }
            } else if !is_forbidden_trailer(header.name.as_bytes()) {
                list.push_raw(header.name.as_bytes(), header.value);
            }
        }
    }
    Ok(Some((consumed, list)))
}

/// Fields that would change framing, routing, identity or meaning of a message already on its way (RFC 9110
/// §6.5.1): dropped from trailers, never merged.
pub(in crate::codec) fn is_forbidden_trailer(name: &[u8]) -> bool {
    if name.first() == Some(&b':') {
        return true;
    }
    match id_of(name) {
        ids::CONTENT_LENGTH
        | ids::TRANSFER_ENCODING
        | ids::HOST
        | ids::CONNECTION
        | ids::KEEP_ALIVE
        | ids::PROXY_CONNECTION
        | ids::UPGRADE
        | ids::TE
        | ids::TRAILER
        | ids::AUTHORIZATION
        | ids::COOKIE
        | ids::SET_COOKIE
        | ids::CONTENT_TYPE
        | ids::CONTENT_ENCODING
        | ids::EXPECT
        | ids::CACHE_CONTROL
        | ids::X_FORWARDED_FOR
        | ids::X_FORWARDED_HOST
        | ids::X_FORWARDED_PROTO
        | ids::X_FORWARDED_PORT
        | ids::X_FORWARDED_CLIENT_CERT
        | ids::X_REQUEST_ID => true,
        _ => {
            const ENVOY: &[u8] = b"x-envoy-";
            name.get(..ENVOY.len()).is_some_and(|p| p.eq_ignore_ascii_case(ENVOY))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_count: usize) -> TrailerLimits {
        let underscores = HeadersWithUnderscoresAction::Allow;
        TrailerLimits { enabled: true, max_bytes: 60 * 1024, max_count, underscores }
    }

    /// The trailers that come of a section, `step` bytes at a time, and how often they were parsed.
    fn trailers(section: &str, step: usize, max_count: usize) -> (Result<usize, ParseFault>, u32) {
        let mut body = BodyDecoder::new(Framing::Chunked);
        let (mut scan, mut buf) = (HeadScan::default(), BytesMut::new());
        let bytes = format!("0\r\n{section}\r\n");
        let mut parsings = 0;
        for piece in bytes.as_bytes().chunks(step) {
            buf.extend_from_slice(piece);
            let decoded = body.decode(&mut buf, limits(max_count), &mut scan);
            parsings = parsings.max(scan.parsings);
            match decoded {
                Ok(Step::NeedMore) => {}
                Ok(Step::Trailers(list)) => return (Ok(list.iter().count()), parsings),
                Ok(other) => panic!("{other:?}"),
                Err(fault) => return (Err(fault), parsings),
            }
        }
        panic!("no end")
    }

    #[test]
    fn trailers_that_come_in_single_bytes_are_parsed_a_few_times() {
        let section = format!("x: {}\r\n", "y".repeat(58 * 1024));
        let (got, parsings) = trailers(&section, 1, 100);
        assert_eq!(got, Ok(1));
        assert!(parsings < 20, "{parsings} times");
        assert_eq!(trailers(&section, usize::MAX, 100).0, Ok(1));
        let long = format!("x: {}\r\n", "y".repeat(200 * 1024));
        assert_eq!(trailers(&long, 1000, 100).0, Err(ParseFault::HeadersTooLarge));
    }

    #[test]
    fn as_many_trailers_pass_as_the_limit_says() {
        let lines = |count: usize| "x: y\r\n".repeat(count);
        for step in [1, usize::MAX] {
            assert_eq!(trailers(&lines(100), step, 100).0, Ok(100));
            assert_eq!(trailers(&lines(101), step, 100).0, Err(ParseFault::TooManyHeaders));
            assert_eq!(trailers(&lines(1000), step, 1000).0, Ok(1000));
            assert_eq!(trailers(&lines(1001), step, 1000).0, Err(ParseFault::TooManyHeaders));
        }
    }
}
