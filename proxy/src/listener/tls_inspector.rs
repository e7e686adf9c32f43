//! TLS or not, server name and ALPN, from the ClientHello; pb `extensions.filters.listener.tls_inspector.v3.TlsInspector`.
//!
//! Looks at bytes that stay where they are: the handshake itself reads them again. What is here checks as much of the
//! message (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2) as decides whether a TLS stack would go on with it; everything that
//! it passes over is checked by that stack. Nothing is allocated before the message is complete.

use std::borrow::Cow;
use std::sync::Arc;

/// Largest ClientHello that may be configured, and the default (pb `max_client_hello_size`).
pub const MAX_CLIENT_HELLO: u32 = 16 * 1024;

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspected {
    More,
    NotTls(NotTls),
    /// The ClientHello does not end within the limit.
    TooLarge,
    Tls(ClientHello),
}

/// Why bytes are no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTls {
    /// They begin as an HTTP request.
    HttpRequest,
    /// They begin as an HTTP CONNECT request.
    HttpsProxyRequest,
    /// They do not begin with the header of a TLS record.
    WrongVersion,
    /// A record or message of another kind.
    Unexpected,
    /// A message that is longer than any ClientHello.
    TooLong,
    /// A record that is longer than any.
    RecordTooLong,
    /// A ClientHello that nobody would accept.
    Malformed,
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// Lower case.
    pub server_name: Option<Arc<str>>,
    /// The protocol name list of ALPN (RFC 7301 §3.1), well formed.
    pub alpn: Option<Box<[u8]>>,
}

/// Length of a record's header.
const RECORD_HEADER: usize = 5;
const CONTENT_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;
/// RFC 8446 §5.1.
const MAX_RECORD: usize = 1 << 14;
/// Records without content in a row; more are a way to keep somebody busy.
const MAX_EMPTY_RECORDS: usize = 32;
const TLS_1_0: u16 = 0x0301;
const TLS_1_3: u16 = 0x0304;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
/// Longest host name (RFC 1035).
const MAX_HOST_NAME: usize = 255;

/// Looks at the bytes of a connection so far, of which a ClientHello may be `limit` long with its record headers.
/// The number is how many of them had to be looked at.
pub fn inspect(bytes: &[u8], limit: usize) -> (Inspected, usize) {
    let seen = &bytes[..bytes.len().min(limit)];
    if let Some(reason) = plain_text(seen) {
        return (Inspected::NotTls(reason), seen.len().min(RECORD_HEADER));
    }
    match client_hello_message(seen) {
        Ok((message, end)) => match parse_client_hello(&message) {
            Some(hello) => (Inspected::Tls(hello), end),
            None => (Inspected::NotTls(NotTls::Malformed), end),
        },
        Err(Incomplete::More) if bytes.len() >= limit => (Inspected::TooLarge, seen.len()),
        Err(Incomplete::More) => (Inspected::More, seen.len()),
        Err(Incomplete::Malformed(reason, at)) => (Inspected::NotTls(reason), at),
    }
}

/// The protocols of an ALPN list, those that are text.
pub fn protocols(list: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = Reader(list);
    std::iter::from_fn(move || rest.prefixed_u8()).filter_map(|name| str::from_utf8(name).ok())
}

/// What can be told from the first bytes, as soon as it can: a peer that waits to be answered gets no further bytes
/// to us.
fn plain_text(bytes: &[u8]) -> Option<NotTls> {
    let begins_as = |word: &[u8]| bytes.starts_with(&word[..word.len().min(RECORD_HEADER)]);
    match bytes {
        [] | [CONTENT_HANDSHAKE] | [CONTENT_HANDSHAKE, 3, ..] => None,
        _ if [b"GET " as &[u8], b"POST ", b"HEAD ", b"PUT "].into_iter().any(begins_as) => {
            Some(NotTls::HttpRequest)
        }
        _ if begins_as(b"CONNECT") => Some(NotTls::HttpsProxyRequest),
        _ => Some(NotTls::WrongVersion),
    }
}

enum Incomplete {
    More,
    /// The bytes up to here are no ClientHello.
    Malformed(NotTls, usize),
}

/// The first handshake message without its header, out of as many records as it takes, and where the last of these
/// ends.
fn client_hello_message(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, usize), Incomplete> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let (mut at, mut empty) = (0, 0);
    while let Some([content, major, _, high, low]) = bytes.get(at..at + RECORD_HEADER) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        at += RECORD_HEADER;
        empty = if length == 0 { empty + 1 } else { 0 };
        if length > MAX_RECORD {
            return Err(Incomplete::Malformed(NotTls::RecordTooLong, at));
        }
        if (*content, *major) != (CONTENT_HANDSHAKE, 3) || empty > MAX_EMPTY_RECORDS {
            return Err(Incomplete::Malformed(NotTls::Unexpected, at));
        }
        let end = at + length;
        let fragment = &bytes[at..end.min(bytes.len())];
        at = end;
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else if !fragment.is_empty() {
            message.to_mut().extend_from_slice(fragment);
        }
        let Some([kind, l0, l1, l2]) = message.get(..4) else { continue };
        let whole = 4 + u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
        if whole - 4 > MAX_CLIENT_HELLO as usize {
            return Err(Incomplete::Malformed(NotTls::TooLong, at.min(bytes.len())));
        }
        if *kind != MESSAGE_CLIENT_HELLO {
            return Err(Incomplete::Malformed(NotTls::Unexpected, at.min(bytes.len())));
        }
        if message.len() < whole {
            continue;
        }
        let body = match message {
            Cow::Borrowed(all) => Cow::Borrowed(&all[4..whole]),
            Cow::Owned(all) => Cow::Owned(all[4..whole].to_vec()),
        };
        return Ok((body, at.min(bytes.len())));
    }
    Err(Incomplete::More)
}

/// The body of a whole ClientHello; `None` while it is not, and for anything else.
pub(crate) fn client_hello_body(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    client_hello_message(bytes).ok().map(|(body, _)| body)
}

/// The body of a ClientHello; `None` where a TLS stack would end the connection.
fn parse_client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    let legacy_version = body.u16()?;
    body.take(32)?;
    let session_id = body.prefixed_u8()?;
    let ciphers = body.prefixed_u16()?;
    let compressions = body.prefixed_u8()?;
    if session_id.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 != 0 {
        return None;
    }
    // Only the null compression is ever chosen, so it has to be there.
    if !compressions.contains(&0) {
        return None;
    }
    let mut hello = ClientHello::default();
    let mut versions = None;
    if !body.0.is_empty() {
        let mut extensions = Reader(body.prefixed_u16()?);
        if !body.0.is_empty() {
            return None;
        }
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let content = extensions.prefixed_u16()?;
            match kind {
                EXTENSION_SERVER_NAME if hello.server_name.is_none() => {
                    hello.server_name = Some(parse_server_name(content)?);
                }
                EXTENSION_ALPN if hello.alpn.is_none() => hello.alpn = alpn_list(content),
                EXTENSION_SUPPORTED_VERSIONS if versions.is_none() => versions = Some(content),
                // Twice the same (RFC 8446 §4.2).
                EXTENSION_SERVER_NAME | EXTENSION_SUPPORTED_VERSIONS => return None,
                _ => {}
            }
        }
    }
    let is_served = match versions {
        Some(content) => offers_a_version(content)?,
        None => legacy_version >= TLS_1_0,
    };
    is_served.then_some(hello)
}

/// RFC 6066 §3: one name, of a host.
fn parse_server_name(content: &[u8]) -> Option<Arc<str>> {
    let mut content = Reader(content);
    let mut list = Reader(content.prefixed_u16()?);
    let kind = list.u8()?;
    let name = list.prefixed_u16()?;
    let is_host = kind == 0 && (1..=MAX_HOST_NAME).contains(&name.len()) && !name.contains(&0);
    if !is_host || !list.0.is_empty() || !content.0.is_empty() {
        return None;
    }
    Some(String::from_utf8_lossy(name).to_ascii_lowercase().into())
}

/// RFC 7301 §3.1: a list of names, none empty. One that is malformed is left to the TLS stack.
fn alpn_list(content: &[u8]) -> Option<Box<[u8]>> {
    let mut content = Reader(content);
    let list = content.prefixed_u16().filter(|list| list.len() >= 2)?;
    if !content.0.is_empty() {
        return None;
    }
    let mut names = Reader(list);
    while !names.0.is_empty() {
        names.prefixed_u8().filter(|name| !name.is_empty())?;
    }
    Some(list.into())
}

/// Whether a list of supported versions (RFC 8446 §4.2.1) has one from 1.0 to 1.3; `None` if it is malformed.
fn offers_a_version(content: &[u8]) -> Option<bool> {
    let mut content = Reader(content);
    let list = content.prefixed_u8()?;
    if !content.0.is_empty() || list.is_empty() || list.len() % 2 != 0 {
        return None;
    }
    let mut versions = list.chunks_exact(2).map(|v| u16::from_be_bytes([v[0], v[1]]));
    Some(versions.any(|v| (TLS_1_0..=TLS_1_3).contains(&v)))
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn prefixed_u8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n.into())
    }

    fn prefixed_u16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }
}

#[cfg(test)]
#[path = "tls_inspector_tests.rs"]
mod tests;
