//! Response heads: bytes to a `ResponseHead`, and what the head says about its body and connection.

use std::mem::MaybeUninit;

use http::StatusCode;
use httparse::Header;

use crate::codec::ParseFault;
use crate::codec::head::{HeaderList, Protocol, ResponseHead, Span};
use crate::codec::name::{INLINE_IN_RESPONSES, id_of, ids, names};

use super::ClientSettings;
use super::body::Framing;
use super::parse::{
    ConnectionFields, STACK_HEADERS, fault_of, head_fault, lines_end_with_crlf, list_members,
    parse_content_length,
};

/// What the request was, as far as the response's framing depends on it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) connect: bool,
    pub(super) upgrade: bool,
}

impl Asked {
    /// For raw bytes both ways, behind a head that grants them.
    pub(super) fn is_tunnel(self) -> bool {
        self.connect || self.upgrade
    }
}

/// A response head with what it means for its connection.
#[derive(Debug)]
pub(super) struct ParsedResponse {
    pub(super) head: ResponseHead,
    pub(super) consumed: usize,
    pub(super) framing: Framing,
    /// The server keeps the connection open after this response.
    pub(super) keep_alive: bool,
    /// It says that it does not, beyond what the framing needs.
    pub(super) says_close: bool,
    /// The connection is a tunnel from here on.
    pub(super) tunnel: bool,
}

/// Parses the head at the start of `buf`; `None` while it is incomplete.
pub(super) fn parse_response(
    buf: &[u8],
    settings: &ClientSettings,
    asked: Asked,
) -> Result<Option<ParsedResponse>, ParseFault> {
    if settings.max_header_count <= STACK_HEADERS {
        let mut storage = [const { MaybeUninit::uninit() }; STACK_HEADERS];
        parse_with(buf, &mut storage, settings, asked)
    } else {
        let mut storage = vec![MaybeUninit::uninit(); settings.max_header_count + 1];
        parse_with(buf, &mut storage, settings, asked)
    }
}

fn parse_with<'b>(
    buf: &'b [u8],
    storage: &mut [MaybeUninit<Header<'b>>],
    settings: &ClientSettings,
    asked: Asked,
) -> Result<Option<ParsedResponse>, ParseFault> {
    // httparse would skip empty lines; a response has none before it.
    if let Some(b'\r' | b'\n') = buf.first() {
        return Err(ParseFault::CodecError);
    }
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buf,
        storage,
    );
    let consumed = match parsed {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if buf.len() >= settings.max_head_bytes => {
            return Err(ParseFault::HeadersTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => {
            let grammar = fault_of(error);
            return head_fault(buf, grammar, settings.max_head_bytes).map_or(Ok(None), Err);
        }
    };
    if consumed > settings.max_head_bytes {
        return Err(ParseFault::HeadersTooLarge);
    }
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err(ParseFault::CodecError);
    };
    if !lines_end_with_crlf(buf, response.headers, consumed) {
        return Err(ParseFault::CodecError);
    }
    if response.headers.len() > settings.max_header_count {
        return Err(ParseFault::TooManyHeaders);
    }
    let status = StatusCode::from_u16(code).map_err(|_| ParseFault::CodecError)?;
    let protocol = if version == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let mut head = ResponseHead::new(status, protocol);
    let arena = head.headers.store(&buf[..consumed]);
    let base = buf.as_ptr() as usize;
    let mut fields = Fields::default();
    for header in response.headers.iter() {
        let span =
            |bytes: &[u8]| HeaderList::sub_span(arena, bytes.as_ptr() as usize - base, bytes.len());
        let (name, value) = (span(header.name.as_bytes()), span(header.value));
        fields.take(&mut head.headers, name, value)?;
    }
    fields.finish(head, consumed, asked).map(Some)
}

#[derive(Default)]
struct Fields {
    content_length: Option<u64>,
    chunked: bool,
    connection: ConnectionFields,
    /// `Proxy-Connection: close`, which Envoy heeds too.
    proxy_close: bool,
    connection_line: Option<(Span, Span)>,
    upgrade_line: Option<(Span, Span)>,
}

impl Fields {
    fn take(&mut self, list: &mut HeaderList, name: Span, value: Span) -> Result<(), ParseFault> {
        let id = id_of(list.slice(name));
        match id {
            ids::CONTENT_LENGTH => {
                let length = parse_content_length(list.slice(value))?;
                if self.content_length.replace(length).is_some() {
                    return Err(ParseFault::CodecError);
                }
                list.push_known(name, value, id);
            }
            ids::TRANSFER_ENCODING => {
                if self.chunked || !list.slice(value).eq_ignore_ascii_case(b"chunked") {
                    return Err(ParseFault::InvalidTransferEncoding);
                }
                self.chunked = true;
            }
            ids::CONNECTION => {
                self.connection.take(list, value);
                self.connection_line = Some((name, value));
            }
            ids::UPGRADE => self.upgrade_line = Some((name, value)),
            ids::PROXY_CONNECTION => {
                self.proxy_close |= list_members(list.slice(value))
                    .any(|member| member.eq_ignore_ascii_case(b"close"));
            }
            ids::KEEP_ALIVE => {}
            _ => list.push_known(name, value, id),
        }
        Ok(())
    }

    fn finish(
        self,
        mut head: ResponseHead,
        consumed: usize,
        asked: Asked,
    ) -> Result<ParsedResponse, ParseFault> {
        let status = head.status;
        let http10 = head.protocol == Protocol::Http10;
        let switching = status == StatusCode::SWITCHING_PROTOCOLS;
        if switching && (!asked.upgrade || self.upgrade_line.is_none()) {
            return Err(ParseFault::ExtraneousData);
        }
        if self.chunked && self.content_length.is_some() {
            return Err(ParseFault::ContentLengthAndChunked);
        }
        let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
        if bodiless && self.chunked {
            return Err(ParseFault::TransferEncodingNotAllowed);
        }
        if self.chunked && http10 {
            return Err(ParseFault::InvalidTransferEncoding);
        }
        match self.content_length {
            Some(0) if bodiless => {
                head.headers.remove(&names::CONTENT_LENGTH);
            }
            Some(_) if bodiless => return Err(ParseFault::ContentLengthNotAllowed),
            Some(_) | None => {}
        }
        head.headers.join(INLINE_IN_RESPONSES);
        // An offer to upgrade stays for filters to see; it goes no further.
        let offers = !asked.upgrade && self.connection.upgrade && self.upgrade_line.is_some();
        if switching || offers {
            for (line, id) in
                [(self.upgrade_line, ids::UPGRADE), (self.connection_line, ids::CONNECTION)]
            {
                if let Some((name, value)) = line {
                    head.headers.push_known(name, value, id);
                }
            }
        }
        let tunnel = switching || asked.connect && status.is_success();
        let framing = if tunnel {
            Framing::Eof
        } else if bodiless || asked.head || status == StatusCode::NOT_MODIFIED {
            Framing::None
        } else if self.chunked {
            Framing::Chunked
        } else if let Some(length) = self.content_length {
            if length == 0 { Framing::None } else { Framing::Length(length) }
        } else {
            Framing::Eof
        };
        let says_close =
            self.connection.close || self.proxy_close || http10 && !self.connection.keep_alive;
        let keep_alive = framing != Framing::Eof && !says_close;
        Ok(ParsedResponse { head, consumed, framing, keep_alive, says_close, tunnel })
    }
}
