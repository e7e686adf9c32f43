//! Responses that the proxy makes itself: what asks for one, and how it looks on the wire.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::name::names;
use crate::config::local_reply::LocalReplyConfig;
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

/// Turns a reply into the head and body that go to the response filters. An empty body means that
/// the head ends the stream. Sets code, details and flags of `info`.
pub fn respond(
    reply: LocalReply,
    config: &LocalReplyConfig,
    request: Option<&RequestHead>,
    info: &mut StreamInfo,
) -> (ResponseHead, Bytes) {
    let _ = config;
    info.flags.insert(reply.flags);
    info.response_code = Some(reply.status);
    info.set_details(reply.details);
    let protocol = info.protocol.unwrap_or(Protocol::Http11);
    let mut head = ResponseHead::new(reply.status, protocol);
    if !reply.body.is_empty() {
        let mut length = itoa::Buffer::new();
        head.headers.set(&names::CONTENT_LENGTH, length.format(reply.body.len()).as_bytes());
        head.headers.set(&names::CONTENT_TYPE, b"text/plain");
    }
    let is_head = request.is_some_and(|r| r.method == Method::HEAD);
    (head, if is_head { Bytes::new() } else { reply.body })
}
