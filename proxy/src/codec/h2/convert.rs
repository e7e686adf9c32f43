//! Heads between our arena and the types of the crate http, which h2 speaks.
//!
//! Towards h2 a list is copied once and its values are slices of that copy. An HTTP/1 upgrade and an
//! extended CONNECT (RFC 8441) are one thing inside the proxy, in its HTTP/1 form, as in Envoy.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version, uri};

use super::Settings;
use super::fault::Http2Fault;
use crate::codec::h1;
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead, Scheme};
use crate::codec::name::{INLINE_IN_REQUESTS, INLINE_IN_RESPONSES, http_name, ids, names};
use crate::config::protocol_options::HeadersWithUnderscoresAction;

/// `:method`, `:scheme`, `:path`, `:authority`, which count as fields.
const PSEUDO_HEADERS: usize = 4;

/// Their names, and a scheme.
const PSEUDO_NAME_BYTES: usize = 7 + 7 + 5 + 10 + 4;

/// A request of the peer; split cookies are counted one by one.
pub(super) fn request_from_h2(
    parts: http::request::Parts,
    settings: &Settings,
) -> Result<RequestHead, Http2Fault> {
    check_limits(&parts, settings)?;
    let mut head = RequestHead::new(parts.method, Protocol::Http2);
    let authority = parts.uri.authority().map(|a| a.as_str().as_bytes());
    if let Some(authority) = authority {
        h1::check_authority(authority).map_err(|_| Http2Fault::HeaderField)?;
        head.set_authority(authority);
    }
    let is_connect = head.method == Method::CONNECT;
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    if !is_connect || protocol.is_some() {
        let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
        let is_asterisk = path == "*" && head.method == Method::OPTIONS;
        if !path.starts_with('/') && !is_asterisk {
            return Err(Http2Fault::Messaging);
        }
        head.set_path(path.as_bytes());
        head.scheme = match parts.uri.scheme_str() {
            None => None,
            Some(s) if s.eq_ignore_ascii_case("http") => Some(Scheme::Http),
            Some(s) if s.eq_ignore_ascii_case("https") => Some(Scheme::Https),
            Some(_) => return Err(Http2Fault::HeaderField),
        };
    }
    list_from_h2(&parts.headers, &mut head.headers)?;
    head.headers.join(INLINE_IN_REQUESTS);
    take_host(&mut head)?;
    if head.authority().is_none_or(<[u8]>::is_empty) {
        return Err(Http2Fault::Messaging);
    }
    if let Some(protocol) = protocol {
        let value = head.headers.store(protocol.as_str().as_bytes());
        head.method = Method::GET;
        head.upgrade = Some(value);
        head.headers.append(&names::UPGRADE, protocol.as_str().as_bytes());
        head.headers.append(&names::CONNECTION, b"upgrade");
    }
    Ok(head)
}

/// Limits on what the crate h2 has decoded, which hold before anything is looked at.
fn check_limits(parts: &http::request::Parts, settings: &Settings) -> Result<(), Http2Fault> {
    let mut bytes = parts.method.as_str().len() + PSEUDO_NAME_BYTES;
    bytes += parts.uri.authority().map_or(0, |part| part.as_str().len());
    bytes += parts.uri.path_and_query().map_or(0, |part| part.as_str().len());
    let mut underscore = false;
    for (name, value) in &parts.headers {
        bytes += name.as_str().len() + value.len();
        underscore |= name.as_str().contains('_');
    }
    if underscore && settings.underscores == HeadersWithUnderscoresAction::RejectRequest {
        return Err(Http2Fault::Underscore);
    }
    if bytes > settings.max_head_bytes as usize {
        return Err(Http2Fault::HeaderListTooLarge);
    }
    if parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Http2Fault::HeaderField);
    }
    if parts.headers.len() + PSEUDO_HEADERS > settings.max_header_count {
        return Err(Http2Fault::TooManyHeaders);
    }
    Ok(())
}

/// `host` beside `:authority` has to say the same (FAULTS D17); alone it takes its place.
fn take_host(head: &mut RequestHead) -> Result<(), Http2Fault> {
    let Some(host) = head.headers.get(&names::HOST) else { return Ok(()) };
    let host = host.to_vec();
    if head.headers.remove(&names::HOST) > 1 {
        return Err(Http2Fault::HeaderField);
    }
    match head.authority() {
        Some(authority) if authority.eq_ignore_ascii_case(&host) => Ok(()),
        Some(_) => Err(Http2Fault::HeaderField),
        None => {
            h1::check_authority(&host).map_err(|_| Http2Fault::HeaderField)?;
            head.set_authority(&host);
            Ok(())
        }
    }
}

/// A response of the peer. `upgrade` is the value of the request that asked for one.
pub(super) fn response_from_h2(
    status: StatusCode,
    headers: &HeaderMap,
    max_count: usize,
    upgrade: Option<&[u8]>,
) -> Result<ResponseHead, Http2Fault> {
    if headers.len() > max_count {
        return Err(Http2Fault::TooManyHeaders);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9113 §8.6: there is none in HTTP/2.
        return Err(Http2Fault::HeaderField);
    }
    let mut head = ResponseHead::new(status, Protocol::Http2);
    list_from_h2(headers, &mut head.headers)?;
    head.headers.join(INLINE_IN_RESPONSES);
    if let Some(upgrade) = upgrade
        && status.is_success()
    {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.remove(&names::CONTENT_LENGTH);
        head.headers.append(&names::UPGRADE, upgrade);
        head.headers.append(&names::CONNECTION, b"upgrade");
    }
    Ok(head)
}

/// Trailers of the peer.
pub(super) fn trailers_from_h2(
    map: &HeaderMap,
    max_count: usize,
) -> Result<HeaderList, Http2Fault> {
    if map.len() > max_count {
        return Err(Http2Fault::TooManyHeaders);
    }
    let mut all = HeaderList::new();
    list_from_h2(map, &mut all)?;
    all.retain_lines(|name, _| !h1::is_forbidden_trailer(name));
    Ok(all)
}

fn list_from_h2(map: &HeaderMap, list: &mut HeaderList) -> Result<(), Http2Fault> {
    let mut cookies = 0;
    for (name, value) in map {
        let value = value.as_bytes();
        // RFC 9113 §8.2.1: no white space around a value.
        if let ([b' ' | b'\t', ..], _) | (_, [.., b' ' | b'\t']) = (value, value) {
            return Err(Http2Fault::HeaderField);
        }
        if *name == http::header::COOKIE {
            cookies += 1;
            if cookies > 1 {
                continue;
            }
        }
        list.push_raw(name.as_str().as_bytes(), value);
    }
    if cookies > 1 {
        // RFC 9113 §8.2.3: crumbs are one field to whoever does not speak HTTP/2.
        let crumbs: Vec<&[u8]> =
            map.get_all(http::header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        list.set(&names::COOKIE, &crumbs.join(&b"; "[..]));
    }
    Ok(())
}

/// Our request for h2; `None` where a part cannot be said in HTTP/2.
pub(super) fn request_to_h2(head: &RequestHead) -> Option<Request<()>> {
    let is_connect = head.method == Method::CONNECT;
    let upgrade = head.upgrade_str().filter(|_| !is_connect);
    let authority = head.authority().unwrap_or(b"");
    let mut parts = uri::Parts::default();
    if !authority.is_empty() {
        parts.authority = Some(uri::Authority::from_maybe_shared(shared(authority)).ok()?);
    }
    if !is_connect {
        parts.scheme = Some(match head.scheme {
            Some(Scheme::Https) => uri::Scheme::HTTPS,
            Some(Scheme::Http) | None => uri::Scheme::HTTP,
        });
        parts.path_and_query = Some(path_to_h2(head.path().unwrap_or(b"/"))?);
    }
    if parts.authority.is_none() {
        // The crate http has no URI with a scheme and no authority.
        parts.scheme = None;
    }
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.method_mut() = if upgrade.is_some() { Method::CONNECT } else { head.method.clone() };
    *request.version_mut() = if authority.is_empty() { Version::HTTP_11 } else { Version::HTTP_2 };
    if let Some(upgrade) = upgrade {
        let protocol = h2::ext::Protocol::from(std::str::from_utf8(upgrade).ok()?);
        request.extensions_mut().insert(protocol);
    }
    *request.headers_mut() = list_to_h2(&head.headers, upgrade.is_some() || is_connect);
    Some(request)
}

fn shared(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Bytes that the crate http refuses in a path though HTTP/1 clients send them go percent-encoded.
fn path_to_h2(path: &[u8]) -> Option<uri::PathAndQuery> {
    if let Ok(path) = uri::PathAndQuery::from_maybe_shared(shared(path)) {
        return Some(path);
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(path.len() + 16);
    for &b in path {
        if b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b) {
            encoded.push(b);
        } else {
            encoded.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
    uri::PathAndQuery::from_maybe_shared(Bytes::from(encoded)).ok()
}

/// Our response for h2. A 101 answers an extended CONNECT as 200.
pub(super) fn response_to_h2(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    *response.status_mut() = if switching { StatusCode::OK } else { head.status };
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = list_to_h2(&head.headers, switching);
    response
}

/// A list for h2, without what RFC 9113 §8.2.2 forbids; in a tunnel's head without a length either.
fn list_to_h2(list: &HeaderList, tunnel: bool) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(list.len());
    let arena = shared(list.arena());
    for (id, name, value) in list.iter_ranges() {
        match id {
            ids::CONNECTION
            | ids::UPGRADE
            | ids::KEEP_ALIVE
            | ids::PROXY_CONNECTION
            | ids::TRANSFER_ENCODING
            | ids::HTTP2_SETTINGS
            | ids::HOST => continue,
            ids::CONTENT_LENGTH if tunnel => continue,
            ids::TE if !arena[value.clone()].eq_ignore_ascii_case(b"trailers") => continue,
            _ => {}
        }
        // Names and values of decoders and of the configuration are valid; what a filter made up and is
        // not cannot be sent.
        let name = match http_name(id) {
            Some(known) => known.clone(),
            None => match HeaderName::from_bytes(&arena[name]) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        let Ok(mut value) = HeaderValue::from_maybe_shared(arena.slice(value)) else { continue };
        value.set_sensitive(is_of_one_message(id));
        map.append(name, value);
    }
    map
}

/// Values that hardly any other message has: put into the compression's table they only push out what is of use.
fn is_of_one_message(id: u8) -> bool {
    matches!(
        id,
        ids::X_REQUEST_ID
            | ids::X_ENVOY_UPSTREAM_SERVICE_TIME
            | ids::TRACEPARENT
            | ids::GRPC_TIMEOUT
    )
}

/// Trailers for h2.
pub(super) fn trailers_to_h2(list: &HeaderList) -> HeaderMap {
    list_to_h2(list, true)
}
