//! Field sections of the peer as our heads: the checks of RFC 9113 §8, and the limits, while HPACK gives out field
//! by field. The first fault counts; what comes behind it is decoded for the table's sake alone.
//!
//! An HTTP/1 upgrade and an extended CONNECT (RFC 8441) are one thing inside the proxy, in its HTTP/1 form, as in
//! Envoy.

use http::{Method, StatusCode};

use super::Settings;
use super::fault::Http2Fault;
use super::hpack::{Name, Pseudo, Sink};
use crate::codec::h1;
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead, Scheme, Span};
use crate::codec::name::{INLINE_IN_REQUESTS, INLINE_IN_RESPONSES, ids, is_tchar, names};
use crate::config::protocol_options::HeadersWithUnderscoresAction;

/// What every field section has to obey.
#[derive(Debug)]
struct Checks<'a> {
    settings: &'a Settings,
    fault: Option<Http2Fault>,
    bytes: usize,
    fields: usize,
    /// A field that is no pseudo-header has come.
    regular: bool,
    length: Option<u64>,
    cookies: u32,
}

impl<'a> Checks<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            fault: None,
            bytes: 0,
            fields: 0,
            regular: false,
            length: None,
            cookies: 0,
        }
    }

    fn fail(&mut self, fault: Http2Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Whether the field is to be looked at. Split cookies are counted one by one.
    fn admit(&mut self, name: Name<'_>, value: &[u8]) -> bool {
        self.bytes += name.text().len() + value.len();
        self.fields += 1;
        if self.fault.is_none() {
            if self.bytes > self.settings.max_head_bytes as usize {
                self.fault = Some(Http2Fault::HeaderListTooLarge);
            } else if self.fields > self.settings.max_header_count {
                self.fault = Some(Http2Fault::TooManyHeaders);
            }
        }
        self.fault.is_none()
    }

    /// Checks a field that is no pseudo-header and puts it into the list.
    fn regular(&mut self, name: Name<'_>, value: &[u8], sensitive: bool, list: &mut HeaderList) {
        self.regular = true;
        if !is_value(value) {
            return self.fail(Http2Fault::HeaderField);
        }
        let id = match name {
            Name::Known(id) => id,
            Name::Other(text) => {
                if !is_name(text) {
                    return self.fail(Http2Fault::HeaderField);
                }
                if self.settings.underscores == HeadersWithUnderscoresAction::RejectRequest
                    && text.contains(&b'_')
                {
                    return self.fail(Http2Fault::Underscore);
                }
                0
            }
            Name::Pseudo(_) => return self.fail(Http2Fault::HeaderField),
        };
        match id {
            // RFC 9113 §8.2.2.
            ids::CONNECTION
            | ids::KEEP_ALIVE
            | ids::PROXY_CONNECTION
            | ids::TRANSFER_ENCODING
            | ids::UPGRADE => return self.fail(Http2Fault::HeaderField),
            ids::TE if !value.eq_ignore_ascii_case(b"trailers") => {
                return self.fail(Http2Fault::HeaderField);
            }
            ids::CONTENT_LENGTH => match (self.length, number(value)) {
                (None, Some(length)) => self.length = Some(length),
                _ => return self.fail(Http2Fault::HeaderField),
            },
            ids::COOKIE => self.cookies += 1,
            _ => {}
        }
        list.append_line(id, name.text(), value);
        if sensitive {
            list.mark_sensitive();
        }
    }

    /// RFC 9113 §8.2.3: crumbs are one field to whoever does not speak HTTP/2.
    fn join_cookies(&self, list: &mut HeaderList) {
        if self.cookies > 1 {
            let crumbs: Vec<&[u8]> = list.get_all(&names::COOKIE).collect();
            let whole = crumbs.join(&b"; "[..]);
            list.set(&names::COOKIE, &whole);
        }
    }
}

/// A name that is no known one.
fn is_name(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| is_tchar(*b) && !b.is_ascii_uppercase())
}

/// RFC 9113 §8.2.1, with no white space around it.
fn is_value(value: &[u8]) -> bool {
    if let ([b' ' | b'\t', ..], _) | (_, [.., b' ' | b'\t']) = (value, value) {
        return false;
    }
    !value.iter().fold(false, |bad, b| bad | (*b < 0x20 && *b != b'\t') | (*b == 0x7f))
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A request that was read whole.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: RequestHead,
    /// What its `content-length` says.
    pub(super) length: Option<u64>,
}

/// Takes the fields of a request's head.
#[derive(Debug)]
pub(super) struct RequestSink<'a> {
    checks: Checks<'a>,
    head: RequestHead,
    has_method: bool,
    has_path: bool,
    has_authority: bool,
    has_host: bool,
    protocol: Option<Span>,
}

impl Sink for RequestSink<'_> {
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool) {
        if !self.checks.admit(name, value) {
            return;
        }
        match name {
            Name::Pseudo(pseudo) => {
                if self.checks.regular || value.is_empty() || !self.pseudo(pseudo, value) {
                    self.checks.fail(Http2Fault::HeaderField);
                }
            }
            Name::Known(ids::HOST) => {
                self.checks.regular = true;
                if !self.host(value) {
                    self.checks.fail(Http2Fault::HeaderField);
                }
            }
            Name::Known(_) | Name::Other(_) => {
                self.checks.regular(name, value, sensitive, &mut self.head.headers);
            }
        }
    }
}

impl<'a> RequestSink<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self {
            checks: Checks::new(settings),
            head: RequestHead::new(Method::GET, Protocol::Http2),
            has_method: false,
            has_path: false,
            has_authority: false,
            has_host: false,
            protocol: None,
        }
    }

    /// Whether the pseudo-header may be, once.
    fn pseudo(&mut self, pseudo: Pseudo, value: &[u8]) -> bool {
        match pseudo {
            Pseudo::Method => {
                let Ok(method) = Method::from_bytes(value) else { return false };
                self.head.method = method;
                !std::mem::replace(&mut self.has_method, true)
            }
            Pseudo::Path => {
                self.head.set_path(value);
                let printable = value.iter().all(|b| matches!(b, 0x21..=0x7e));
                !std::mem::replace(&mut self.has_path, true) && printable
            }
            Pseudo::Authority => {
                self.head.set_authority(value);
                let good = h1::check_authority(value).is_ok();
                !std::mem::replace(&mut self.has_authority, true) && good
            }
            Pseudo::Scheme => {
                let scheme = if value.eq_ignore_ascii_case(b"http") {
                    Scheme::Http
                } else if value.eq_ignore_ascii_case(b"https") {
                    Scheme::Https
                } else {
                    return false;
                };
                self.head.scheme.replace(scheme).is_none()
            }
            Pseudo::Protocol => {
                let span = self.head.headers.store(value);
                let first = self.protocol.replace(span).is_none();
                first && self.checks.settings.options.allow_connect && is_name_of_any_case(value)
            }
            Pseudo::Status => false,
        }
    }

    /// `host` beside `:authority` has to say the same (FAULTS D17); alone it takes its place.
    fn host(&mut self, value: &[u8]) -> bool {
        if std::mem::replace(&mut self.has_host, true) || h1::check_authority(value).is_err() {
            return false;
        }
        match self.head.authority() {
            Some(authority) => authority.eq_ignore_ascii_case(value),
            None => {
                self.head.set_authority(value);
                true
            }
        }
    }

    /// The head, once all fields have been given; `ends`: it is all of the request.
    pub(super) fn finish(mut self, ends: bool) -> Result<Request, Http2Fault> {
        if let Some(fault) = self.checks.fault {
            return Err(fault);
        }
        let mut length = self.checks.length;
        let is_connect = self.head.method == Method::CONNECT;
        if is_connect && self.protocol.is_none() {
            let bare = !self.has_path && self.head.scheme.is_none() && self.has_authority;
            if !self.has_method || !bare {
                return Err(Http2Fault::Messaging);
            }
            length = None;
        } else if !self.is_complete(is_connect) {
            return Err(Http2Fault::Messaging);
        }
        if ends && length.is_some_and(|length| length > 0) {
            return Err(Http2Fault::Messaging);
        }
        self.checks.join_cookies(&mut self.head.headers);
        self.head.headers.join(INLINE_IN_REQUESTS);
        if let Some(span) = self.protocol {
            self.head.method = Method::GET;
            self.head.upgrade = Some(span);
            let protocol = self.head.headers.slice(span).to_vec();
            self.head.headers.append(&names::UPGRADE, &protocol);
            self.head.headers.append(&names::CONNECTION, b"upgrade");
        }
        Ok(Request { head: self.head, length })
    }

    /// RFC 9113 §8.3.1, RFC 8441 §4.
    fn is_complete(&self, is_connect: bool) -> bool {
        let path = self.head.path().unwrap_or(b"");
        let asterisk = path == b"*" && self.head.method == Method::OPTIONS;
        self.has_method
            && self.head.scheme.is_some()
            && (path.first() == Some(&b'/') || asterisk)
            && (self.has_authority || self.has_host)
            && (self.protocol.is_none() || is_connect && self.has_authority)
    }
}

fn is_name_of_any_case(text: &[u8]) -> bool {
    text.iter().all(|b| is_tchar(*b))
}

/// Takes the fields of a response's head.
#[derive(Debug)]
pub(super) struct ResponseSink<'a> {
    checks: Checks<'a>,
    status: Option<StatusCode>,
    headers: HeaderList,
}

impl Sink for ResponseSink<'_> {
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool) {
        if !self.checks.admit(name, value) {
            return;
        }
        match name {
            Name::Pseudo(Pseudo::Status) if !self.checks.regular && self.status.is_none() => {
                match StatusCode::from_bytes(value) {
                    // RFC 9113 §8.6: there is no 101 in HTTP/2.
                    Ok(status) if status != StatusCode::SWITCHING_PROTOCOLS => {
                        self.status = Some(status);
                    }
                    _ => self.checks.fail(Http2Fault::HeaderField),
                }
            }
            Name::Pseudo(_) => self.checks.fail(Http2Fault::HeaderField),
            Name::Known(_) | Name::Other(_) => {
                self.checks.regular(name, value, sensitive, &mut self.headers)
            }
        }
    }
}

impl<'a> ResponseSink<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { checks: Checks::new(settings), status: None, headers: HeaderList::new() }
    }

    /// The head and its `content-length`.
    pub(super) fn finish(mut self) -> Result<(ResponseHead, Option<u64>), Http2Fault> {
        if let Some(fault) = self.checks.fault {
            return Err(fault);
        }
        let Some(status) = self.status else { return Err(Http2Fault::Messaging) };
        self.checks.join_cookies(&mut self.headers);
        self.headers.join(INLINE_IN_RESPONSES);
        let head = ResponseHead { status, protocol: Protocol::Http2, headers: self.headers };
        Ok((head, self.checks.length))
    }
}

/// Takes trailers.
#[derive(Debug)]
pub(super) struct TrailersSink<'a> {
    checks: Checks<'a>,
    trailers: HeaderList,
}

impl Sink for TrailersSink<'_> {
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool) {
        if self.checks.admit(name, value) {
            self.checks.regular(name, value, sensitive, &mut self.trailers);
        }
    }
}

impl<'a> TrailersSink<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { checks: Checks::new(settings), trailers: HeaderList::new() }
    }

    /// What may stand there.
    pub(super) fn finish(mut self) -> Result<HeaderList, Http2Fault> {
        match self.checks.fault {
            Some(fault) => Err(fault),
            None => {
                self.trailers.retain_lines(|name, _| !h1::is_forbidden_trailer(name));
                Ok(self.trailers)
            }
        }
    }
}
