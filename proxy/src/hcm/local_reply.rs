//! Responses that the proxy makes itself: what asks for one, and how it looks on the wire.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;

use crate::codec::head::HeaderList;
use crate::stream_info::ResponseFlags;

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
