//! Operators over the heads: headers, path, query, host, request id.

use super::operator::{Part, Shape, Source, text};
use super::{Ctx, text};
use crate::codec::head::HeaderList;
use crate::codec::name::{HeaderName, names};

pub(super) fn find_header<'a>(
    ctx: &Ctx<'a>,
    part: Part,
    name: Option<&HeaderName>,
) -> Option<&'a [u8]> {
    let name = name?;
    match part {
        Part::Request => ctx.request?.get(name),
        Part::Response => ctx.response?.get(name),
        Part::Trailers => ctx.trailers?.get(name),
    }
}

/// Names and values without separators, pseudo-headers included, as Envoy's header map counts.
pub(super) fn headers_bytes(ctx: &Ctx<'_>, part: Part) -> u64 {
    let list = |list: &HeaderList| list.byte_size() - 4 * list.len();
    let size = match part {
        Part::Request => ctx.request.map_or(0, |head| {
            let pseudo =
                |name: &str, value: Option<&[u8]>| value.map_or(0, |v| v.len() + name.len());
            list(&head.headers)
                + pseudo(":method", Some(head.method.as_str().as_bytes()))
                + pseudo(":path", head.path())
                + pseudo(":authority", head.authority())
                + pseudo(":scheme", head.scheme.map(|s| s.as_str().as_bytes()))
        }),
        Part::Response => {
            ctx.response.map_or(0, |head| list(&head.headers) + ":status".len() + "200".len())
        }
        Part::Trailers => ctx.trailers.map_or(0, list),
    };
    size as u64
}

pub(super) fn path<'a>(ctx: &Ctx<'a>, original: Source, current: Source) -> Option<&'a [u8]> {
    let request = ctx.request?;
    let from_header = (original == Source::Used)
        .then(|| request.headers.get(&names::X_ENVOY_ORIGINAL_PATH))
        .flatten()
        .filter(|p| !p.is_empty());
    from_header
        .or_else(|| (current == Source::Used).then(|| request.path()).flatten())
        .filter(|p| !p.is_empty())
}

fn request_host<'a>(ctx: &Ctx<'a>, original: Source, host: Source) -> Option<&'a [u8]> {
    let request = ctx.request?;
    let from_header = (original == Source::Used)
        .then(|| request.headers.get(&names::X_ENVOY_ORIGINAL_HOST))
        .flatten()
        .filter(|h| !h.is_empty());
    from_header
        .or_else(|| (host == Source::Used).then(|| request.authority()).flatten())
        .filter(|h| !h.is_empty())
}

/// The request id; for TCP a UUID that stays the same for the connection.
pub(super) fn write_stream_id(ctx: &Ctx<'_>, out: &mut Vec<u8>) -> Shape {
    if let Some(request) = ctx.request {
        return text(out, request.headers.get(&names::X_REQUEST_ID));
    }
    if ctx.info.protocol.is_some() {
        return Shape::Missing;
    }
    text::write_uuid(text::process_unique(ctx.info.stream_id), out);
    Shape::Text
}

/// The first value of a query parameter, decoded.
pub(super) fn write_query_param(ctx: &Ctx<'_>, name: &str, out: &mut Vec<u8>) -> Shape {
    let query = ctx.request.and_then(|r| r.path()).and_then(text::query);
    match query.and_then(|q| text::query_param(q, name.as_bytes())) {
        Some(value) => {
            text::percent_decode(value, out);
            Shape::Text
        }
        None => Shape::Missing,
    }
}

pub(super) fn write_query(ctx: &Ctx<'_>, decoded: bool, out: &mut Vec<u8>) -> Shape {
    match ctx.request.and_then(|r| r.path()).and_then(text::query) {
        Some(query) if decoded => {
            text::percent_decode_visible(query, out);
            Shape::Text
        }
        query => text(out, query),
    }
}

/// The server name of TLS, or else the request's host from the sources given.
pub(super) fn write_server_name(
    ctx: &Ctx<'_>,
    sni: Source,
    (original, host): (Source, Source),
    out: &mut Vec<u8>,
) -> Shape {
    let sni = ctx.info.connection.requested_server_name.as_deref().filter(|_| sni == Source::Used);
    match sni.filter(|name| !name.is_empty()) {
        Some(sni) => {
            let start = out.len();
            out.extend_from_slice(sni.as_bytes());
            text::sanitise_host(&mut out[start..]);
            Shape::Text
        }
        None => text(out, request_host(ctx, original, host)),
    }
}
