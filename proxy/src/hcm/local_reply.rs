//! Responses that the proxy makes itself: what asks for one, and how it looks on the wire.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::access_log::filter;
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::name::names;
use crate::config::local_reply::LocalReplyConfig;
use crate::format::{Ctx, grpc};
use crate::stream_info::{ResponseFlags, StreamInfo};

/// A response to be made by the proxy, before `local_reply_config` has had its say.
#[derive(Debug)]
pub struct LocalReply {
    pub status: StatusCode,
    /// Sent as `text/plain` unless empty or reformatted.
    pub body: Bytes,
    /// `response_code_details`.
    pub details: Cow<'static, str>,
    pub flags: ResponseFlags,
    /// For gRPC requests; `None` maps from the HTTP status.
    pub grpc_status: Option<u32>,
    /// Further response headers (`location`, rate limit headers); overwrite equal names.
    pub headers: Option<HeaderList>,
}

impl LocalReply {
    pub fn new(status: StatusCode, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            body: Bytes::new(),
            details: details.into(),
            flags: ResponseFlags::default(),
            grpc_status: None,
            headers: None,
        }
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn flag(mut self, flag: ResponseFlags) -> Self {
        self.flags.insert(flag);
        self
    }
}

/// Turns a reply into the head and body that go to the response filters: `local_reply_config` first, then the
/// shape that gRPC and HEAD ask for, as in Envoy's `Utility::prepareLocalReply`. An empty body means that the
/// head ends the stream. Sets code, details and flags of `info`.
pub fn respond(
    reply: LocalReply,
    config: &LocalReplyConfig,
    request: Option<&RequestHead>,
    info: &mut StreamInfo,
) -> (ResponseHead, Bytes) {
    info.flags.insert(reply.flags);
    info.response_code = Some(reply.status);
    info.set_details(reply.details);
    let protocol = info.protocol.unwrap_or(Protocol::Http11);
    let mut head = ResponseHead::new(reply.status, protocol);
    if let Some(headers) = reply.headers {
        head.headers = headers;
    }
    let own_type = head.headers.get(&names::CONTENT_TYPE).map(<[u8]>::to_vec);
    let (body, content_type) = rewrite(reply.body.clone(), config, request, &mut head, info);
    let rewritten = body != reply.body;
    let is_head = request.is_some_and(|r| r.method == Method::HEAD);
    if request.is_some_and(grpc::is_grpc_request) {
        let status = reply.grpc_status.unwrap_or_else(|| grpc::from_http(head.status));
        // JSON formats end with a line break that is no part of the message.
        let message = match body.strip_suffix(b"\n") {
            Some(line) if content_type == "application/json" => line,
            _ => &body[..],
        };
        into_grpc(&mut head, status, if is_head { b"" } else { message });
        return (head, Bytes::new());
    }
    if body.is_empty() {
        head.headers.remove(&names::CONTENT_LENGTH);
        head.headers.remove(&names::CONTENT_TYPE);
    } else {
        let mut length = itoa::Buffer::new();
        head.headers.set(&names::CONTENT_LENGTH, length.format(body.len()).as_bytes());
        // What said the type of the old body does not of a new one, unless the mapper has said it.
        let have = head.headers.get(&names::CONTENT_TYPE);
        if have.is_none() || rewritten && have == own_type.as_deref() {
            head.headers.set(&names::CONTENT_TYPE, content_type.as_bytes());
        }
    }
    (head, if is_head { Bytes::new() } else { body })
}

/// The first mapper whose filter matches, then the body's format. The body and its content type.
fn rewrite<'a>(
    mut body: Bytes,
    config: &'a LocalReplyConfig,
    request: Option<&RequestHead>,
    head: &mut ResponseHead,
    info: &mut StreamInfo,
) -> (Bytes, &'a str) {
    let mapper = config.mappers.iter().find(|mapper| {
        let ctx = Ctx { request, response: Some(head), ..Ctx::new(info) };
        filter::matches(&mapper.filter, &ctx)
    });
    let mut format = config.body_format.as_ref();
    if let Some(mapper) = mapper {
        if let Some(replaced) = &mapper.body {
            body = replaced.clone();
        }
        mapper.headers_to_add.apply_response(head, request, info);
        if let Some(status) = mapper.status_code {
            head.status = status;
            info.response_code = Some(status);
        }
        format = mapper.body_format_override.as_ref().or(format);
    }
    let Some(format) = format else { return (body, "text/plain") };
    let ctx = Ctx { request, response: Some(head), local_reply_body: &body, ..Ctx::new(info) };
    let mut formatted = Vec::new();
    format.write(&ctx, &mut formatted);
    (formatted.into(), format.content_type())
}

/// A trailers-only response: the status goes into `grpc-status`, the body into `grpc-message`.
fn into_grpc(head: &mut ResponseHead, status: u32, body: &[u8]) {
    head.status = StatusCode::OK;
    head.headers.remove(&names::CONTENT_LENGTH);
    head.headers.set(&names::CONTENT_TYPE, b"application/grpc");
    head.headers.set(&names::GRPC_STATUS, itoa::Buffer::new().format(status).as_bytes());
    if !body.is_empty() {
        head.headers.set(&names::GRPC_MESSAGE, &percent_encode(body));
    }
}

/// Percent-encoding of `grpc-message` as Envoy has it: what is no visible ASCII, `%` and `~`.
fn percent_encode(message: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(message.len());
    for &byte in message {
        match byte {
            b' '..b'~' if byte != b'%' => out.push(byte),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'%', high, low]);
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "local_reply_tests.rs"]
mod tests;
