//! Request heads: bytes to a `RequestHead`, and what the head says about its body and connection.
//!
//! RFC 9112 §2–§6, stricter than Envoy where Envoy is lenient (FAULTS.md A): bare LF, repeated or listed
//! Content-Length, two Hosts, an empty one.

use std::mem::MaybeUninit;

use http::Method;
use httparse::Header;

use crate::codec::ParseFault;
use crate::codec::head::{HeaderList, Protocol, RequestHead, Scheme, Span};
use crate::codec::name::{INLINE_IN_REQUESTS, id_of, ids, names};

use super::ServerSettings;
use super::body::Framing;
use super::parse::{
    ConnectionFields, STACK_HEADERS, fault_of, head_fault, header_name_fault, lines_end_with_crlf,
    list_members, parse_content_length,
};

/// A request head with what it means for its connection.
#[derive(Debug)]
pub(super) struct ParsedRequest {
    pub(super) head: RequestHead,
    /// Bytes of the buffer that the head takes, leading empty lines included.
    pub(super) consumed: usize,
    pub(super) framing: Framing,
    /// The client wants to use the connection again.
    pub(super) keep_alive: bool,
}

/// Parses the head at the start of `buf`; `None` while it is incomplete.
pub(super) fn parse_request(
    buf: &[u8],
    settings: &ServerSettings,
    is_tls: bool,
) -> Result<Option<ParsedRequest>, ParseFault> {
    let skipped = leading_empty_lines(buf)?;
    let Some(buf) = buf.get(skipped..).filter(|b| !b.is_empty()) else { return Ok(None) };
    if settings.max_header_count <= STACK_HEADERS {
        let mut storage = [const { MaybeUninit::uninit() }; STACK_HEADERS];
        parse_with(buf, &mut storage, skipped, settings, is_tls)
    } else {
        let mut storage = vec![MaybeUninit::uninit(); settings.max_header_count + 1];
        parse_with(buf, &mut storage, skipped, settings, is_tls)
    }
}

/// Empty lines before a request line are to be ignored (RFC 9112 §2.2), if they end as lines do.
fn leading_empty_lines(buf: &[u8]) -> Result<usize, ParseFault> {
    /// More is not a mistake of a client but a way to keep a server busy.
    const MAX_EMPTY_LINES: usize = 16;
    let mut at = 0;
    while let Some(b'\r' | b'\n') = buf.get(at) {
        match buf.get(at..at + 2) {
            Some(b"\r\n") => at += 2,
            None if buf[at] == b'\r' => return Ok(at),
            Some(_) | None => return Err(ParseFault::CodecError),
        }
        if at > 2 * MAX_EMPTY_LINES {
            return Err(ParseFault::CodecError);
        }
    }
    Ok(at)
}

fn parse_with<'b>(
    buf: &'b [u8],
    storage: &mut [MaybeUninit<Header<'b>>],
    skipped: usize,
    settings: &ServerSettings,
    is_tls: bool,
) -> Result<Option<ParsedRequest>, ParseFault> {
    let mut request = httparse::Request::new(&mut []);
    let consumed = match request.parse_with_uninit_headers(buf, storage) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return check_partial(buf, settings).map(|()| None),
        // What is wrong with the line, if it is, will be known at its end.
        Err(httparse::Error::Version | httparse::Error::Token) if may_become_line(buf) => {
            return check_partial(buf, settings).map(|()| None);
        }
        Err(error) => {
            let grammar = request_fault(error, buf, settings);
            return head_fault(buf, grammar, settings.max_head_bytes).map_or(Ok(None), Err);
        }
    };
    if consumed > settings.max_head_bytes {
        return Err(ParseFault::HeadersTooLarge);
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(ParseFault::CodecError);
    };
    if !lines_end_with_crlf(buf, request.headers, consumed) {
        return Err(ParseFault::CodecError);
    }
    let method = parse_method(method, settings)?;
    if request.headers.len() > settings.max_header_count {
        return Err(ParseFault::TooManyHeaders);
    }
    let protocol = if version == 0 { Protocol::Http10 } else { Protocol::Http11 };
    let mut head = RequestHead::new(method, protocol);
    let arena = head.headers.store(&buf[..consumed]);
    let mut fields = Fields::default();
    let base = buf.as_ptr() as usize;
    for header in request.headers.iter() {
        let span =
            |bytes: &[u8]| HeaderList::sub_span(arena, bytes.as_ptr() as usize - base, bytes.len());
        let (name, value) = (span(header.name.as_bytes()), span(header.value));
        fields.take(&mut head.headers, name, value)?;
    }
    let target_span = HeaderList::sub_span(arena, target.as_ptr() as usize - base, target.len());
    fields.finish(head, target_span, consumed + skipped, settings, is_tls).map(Some)
}

/// A head of which more has to come may already be too large, or for a method that nobody knows.
fn check_partial(buf: &[u8], settings: &ServerSettings) -> Result<(), ParseFault> {
    if buf.len() >= settings.max_head_bytes {
        return Err(ParseFault::HeadersTooLarge);
    }
    if buf.contains(&b'\n') && !method_is_known(buf, settings) {
        return Err(ParseFault::CodecError);
    }
    Ok(())
}

/// Whether a line that has not ended yet has nothing in it that no request line has.
fn may_become_line(buf: &[u8]) -> bool {
    let line = buf.strip_suffix(b"\r").unwrap_or(buf);
    line.iter().all(|b| (b' '..=b'~').contains(b))
}

fn method_is_known(buf: &[u8], settings: &ServerSettings) -> bool {
    let method = buf.split(|b| *b == b' ').next().unwrap_or_default();
    settings.allow_custom_methods || KNOWN_METHODS.iter().any(|known| known.as_bytes() == method)
}

/// The fault for an error of httparse; other versions than 1.1 are 1.0 or older to Envoy.
fn request_fault(error: httparse::Error, buf: &[u8], settings: &ServerSettings) -> ParseFault {
    let line = buf.split(|b| *b == b'\n').next().unwrap_or(buf).trim_ascii_end();
    let low = if settings.accept_http_10 || !method_is_known(buf, settings) {
        ParseFault::CodecError
    } else {
        ParseFault::LowVersion
    };
    match error {
        httparse::Error::Version if names_a_version(line) && may_become_line(line) => low,
        httparse::Error::Version => ParseFault::CodecError,
        // `GET /`, the whole of an HTTP/0.9 request.
        httparse::Error::Token if line.len() < buf.len() => {
            let mut parts = line.split(|b| *b == b' ');
            match (parts.next(), parts.next(), parts.next()) {
                (Some(_), Some([b'/', ..]), None) if may_become_line(line) => low,
                _ => ParseFault::CodecError,
            }
        }
        httparse::Error::HeaderName => header_name_fault(buf),
        httparse::Error::TooManyHeaders if !method_is_known(buf, settings) => {
            ParseFault::CodecError
        }
        error => fault_of(error),
    }
}

/// `HTTP/` digit `.` digit (RFC 9112 §2.3), or nothing behind the target, as in HTTP/0.9.
fn names_a_version(line: &[u8]) -> bool {
    let mut words = line.split(|b| *b == b' ').skip(2);
    matches!(
        (words.next(), words.next()),
        (None | Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']), None)
    )
}

fn parse_method(method: &str, settings: &ServerSettings) -> Result<Method, ParseFault> {
    // The ones nearly every request has, without http's own table.
    match method {
        "GET" => return Ok(Method::GET),
        "POST" => return Ok(Method::POST),
        _ => {}
    }
    if !settings.allow_custom_methods && !KNOWN_METHODS.contains(&method) {
        return Err(ParseFault::CodecError);
    }
    Method::from_bytes(method.as_bytes()).map_err(|_| ParseFault::CodecError)
}

/// The methods Envoy's parser knows (those of the IANA registry that were ever in use).
const KNOWN_METHODS: &[&str] = &[
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// The fields that are the connection's or the framing's, found while the lines are gone through.
#[derive(Default)]
struct Fields {
    host: Option<Span>,
    content_length: Option<u64>,
    chunked: bool,
    te_trailers: bool,
    connection: ConnectionFields,
    /// `Proxy-Connection: close`, which Envoy heeds too.
    proxy_close: bool,
    /// Name and value of the `Connection` and `Upgrade` lines, which stay in the head of an upgrade.
    connection_line: Option<(Span, Span)>,
    upgrade_line: Option<(Span, Span)>,
}

impl Fields {
    fn take(&mut self, list: &mut HeaderList, name: Span, value: Span) -> Result<(), ParseFault> {
        let id = id_of(list.slice(name));
        match id {
            ids::HOST => {
                if self.host.replace(value).is_some() {
                    return Err(ParseFault::InvalidAuthority);
                }
            }
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
            ids::UPGRADE => {
                if self.upgrade_line.replace((name, value)).is_some() {
                    return Err(ParseFault::CodecError);
                }
            }
            ids::PROXY_CONNECTION => {
                self.proxy_close |= list_members(list.slice(value))
                    .any(|member| member.eq_ignore_ascii_case(b"close"));
            }
            ids::KEEP_ALIVE | ids::HTTP2_SETTINGS => {}
            ids::TE => {
                // The one member that means anything beyond this hop (RFC 9110 §10.1.4); it has no weight.
                let trailers = list_members(list.slice(value)).any(|member| member == b"trailers");
                // Once, however many lines say so.
                if trailers && !std::mem::replace(&mut self.te_trailers, true) {
                    list.remove(&names::TE);
                    let value = list.store(b"trailers");
                    list.push_known(name, value, id);
                } else if list.slice(value).is_empty() && !list.contains(&names::TE) {
                    list.push_known(name, value, id);
                }
            }
            _ => list.push_known(name, value, id),
        }
        Ok(())
    }

    fn finish(
        self,
        mut head: RequestHead,
        target: Span,
        consumed: usize,
        settings: &ServerSettings,
        is_tls: bool,
    ) -> Result<ParsedRequest, ParseFault> {
        let http10 = head.protocol == Protocol::Http10;
        if http10 && !settings.accept_http_10 {
            return Err(ParseFault::LowVersion);
        }
        let is_connect = head.method == Method::CONNECT;
        let framing = self.framing(http10, is_connect)?;
        self.connection.check_nominated(&head.headers)?;
        if is_connect && self.content_length.is_some() {
            head.headers.remove(&names::CONTENT_LENGTH);
        }
        head.headers.join(INLINE_IN_REQUESTS);
        if let Some((name, value)) = self.upgrade_line
            && self.connection.upgrade
            && !is_connect
            && !http10
            // Chunks and then a tunnel: nobody does it, and RFC 9110 §7.8 lets one ignore the field.
            && !self.chunked
            && !head.headers.slice(value).eq_ignore_ascii_case(b"h2c")
        {
            head.upgrade = Some(value);
            head.headers.push_known(name, value, ids::UPGRADE);
            if let Some((name, value)) = self.connection_line {
                head.headers.push_known(name, value, ids::CONNECTION);
            }
        } else {
            self.connection.strip_nominated(&mut head.headers);
        }
        if let Some(host) = self.host {
            check_authority(head.headers.slice(host))?;
            head.set_authority_span(host);
        }
        apply_target(&mut head, target, settings, is_tls)?;
        // Without a Host the connection manager answers, since it knows what was asked.
        if let Some(host) = &settings.default_host_for_http_10
            && http10
            && head.authority().is_none()
        {
            head.set_authority(host.as_bytes());
        }
        let says_close = self.connection.close || self.proxy_close;
        let keep_alive = !says_close && (!http10 || self.connection.keep_alive);
        Ok(ParsedRequest { head, consumed, framing, keep_alive })
    }

    /// RFC 9112 §6.3, with every ambiguity refused.
    fn framing(&self, http10: bool, is_connect: bool) -> Result<Framing, ParseFault> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(ParseFault::ContentLengthAndChunked),
            (true, None) if http10 || is_connect => Err(ParseFault::InvalidTransferEncoding),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) if is_connect && length != 0 => Err(ParseFault::BodyDisallowed),
            (false, Some(length)) if length != 0 => Ok(Framing::Length(length)),
            (false, Some(_) | None) => Ok(Framing::None),
        }
    }
}

/// Sets path, authority and scheme from the request target (RFC 9112 §3.2).
fn apply_target(
    head: &mut RequestHead,
    target: Span,
    settings: &ServerSettings,
    is_tls: bool,
) -> Result<(), ParseFault> {
    let bytes = head.headers.slice(target);
    // httparse refused controls, spaces and DEL already. A fragment is for the connection manager to refuse.
    if bytes.iter().fold(false, |bad, b| bad | (*b >= 0x80)) {
        return Err(ParseFault::CodecError);
    }
    if head.method == Method::CONNECT {
        if check_authority(bytes).is_err() || !has_port(bytes) {
            return Err(ParseFault::InvalidUrl);
        }
        head.set_authority_span(target);
        return Ok(());
    }
    match bytes {
        [b'/', ..] => head.set_path_span(target),
        b"*" if head.method == Method::OPTIONS => head.set_path_span(target),
        _ if !settings.allow_absolute_url => head.set_path_span(target),
        _ => apply_absolute_form(head, target, settings, is_tls)?,
    }
    Ok(())
}

/// `scheme://authority[/path][?query]`: its authority wins over Host (RFC 9112 §3.2.2).
fn apply_absolute_form(
    head: &mut RequestHead,
    target: Span,
    settings: &ServerSettings,
    is_tls: bool,
) -> Result<(), ParseFault> {
    let bytes = head.headers.slice(target);
    let Some(colon) = memchr::memmem::find(bytes, b"://") else {
        return Err(if bytes == b"*" { ParseFault::InvalidUrl } else { ParseFault::CodecError });
    };
    let scheme = match &bytes[..colon] {
        s if s.eq_ignore_ascii_case(b"http") => Scheme::Http,
        s if s.eq_ignore_ascii_case(b"https") => Scheme::Https,
        _ => return Err(ParseFault::InvalidScheme),
    };
    if scheme == Scheme::Https && settings.validate_scheme && !is_tls {
        return Err(ParseFault::HttpsInPlaintext);
    }
    let start = colon + 3;
    let rest = &bytes[start..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    check_authority(&rest[..end]).map_err(|_| ParseFault::InvalidUrl)?;
    let host_end = memchr::memrchr(b']', &rest[..end]).unwrap_or(0);
    if rest[host_end..end].contains(&b':') && !has_port(&rest[..end]) {
        return Err(ParseFault::InvalidUrl);
    }
    let authority = HeaderList::sub_span(target, start, end);
    let path_len = rest.len() - end;
    if path_len == 0 {
        head.set_path(b"/");
    } else {
        // A query without a path stays one: the connection manager refuses it as no path.
        head.set_path_span(HeaderList::sub_span(target, start + end, path_len));
    }
    head.set_authority_span(authority);
    head.scheme = Some(scheme);
    Ok(())
}

/// Bytes of `host [":" port]` (RFC 3986 §3.2.2): no user, no path, nothing empty.
pub(in crate::codec) fn check_authority(authority: &[u8]) -> Result<(), ParseFault> {
    let good = !authority.is_empty()
        && authority[0] != b':'
        && authority.iter().all(|b| AUTHORITY[*b as usize]);
    if good { Ok(()) } else { Err(ParseFault::InvalidAuthority) }
}

const AUTHORITY: [bool; 256] = {
    let mut table = [false; 256];
    let allowed =
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:[]%";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

fn has_port(authority: &[u8]) -> bool {
    let Some(colon) = memchr::memrchr(b':', authority) else { return false };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    if host.contains(&b':') && !host.ends_with(b"]") {
        return false;
    }
    // Five digits at most; a colon inside brackets belongs to an IPv6 address.
    (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
        && port.iter().fold(0_u32, |n, b| n * 10 + u32::from(b - b'0')) <= 65_535
}
