//! Command operators (`%REQ(x)%`, `%RESPONSE_CODE%`, …): one formatter for access logs, header
//! values and local reply bodies.
//!
//! A format is compiled once to a list of literals and operators; evaluating it appends to a byte
//! buffer and allocates nothing. Operators and their output are Envoy 1.40's
//! (docs: configuration/advanced/substitution_formatter).

pub(crate) mod address;
#[cfg(test)]
pub(crate) mod fixture;
pub mod grpc;
mod json;
mod metadata;
mod operator;
mod parse;
mod request;
mod table;
mod text;
mod time;
mod tls;

use self::parse::Piece;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::config::compile::diagnostic::FieldPath;
use crate::stream_info::StreamInfo;

pub use self::json::JsonFormatter;
pub use self::parse::FormatError;

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
    pieces: Box<[Piece]>,
    omit_empty: bool,
}

impl Formatter {
    /// Compiles a format string; problems go to `path`.
    pub fn compile(format: &str, options: Options, path: &FieldPath<'_>) -> Option<Self> {
        let pieces = parse::compile(format, path)?;
        Some(Self::from_pieces(pieces, options))
    }

    /// It is one command operator, and nothing else.
    pub fn is_one_operator(&self) -> bool {
        matches!(&*self.pieces, [Piece::Operator(_)])
    }

    fn from_pieces(pieces: Vec<Piece>, options: Options) -> Self {
        Self { pieces: pieces.into(), omit_empty: options.omit_empty_values }
    }

    /// Appends the evaluated format.
    pub fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text),
                Piece::Operator(operator) => {
                    if !operator.write_text(ctx, out) && !self.omit_empty {
                        out.push(b'-');
                    }
                }
            }
        }
    }

    /// The whole output where it does not depend on the stream.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.pieces {
            [] => Some(b""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

/// A compiled `SubstitutionFormatString`: text or JSON.
#[derive(Debug, Clone)]
pub struct SubstitutionFormat {
    pub body: Body,
    /// `content_type`, where it is set.
    pub content_type: Option<Box<str>>,
}

/// The two kinds of format.
#[derive(Debug, Clone)]
pub enum Body {
    Text(Formatter),
    Json(JsonFormatter),
}

impl SubstitutionFormat {
    /// Appends the evaluated format. JSON ends with a line break, text only where the format says so.
    pub fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text(formatter) => formatter.write(ctx, out),
            Body::Json(formatter) => formatter.write(ctx, out),
        }
    }

    /// As `write`, for a log: lines of JSON have a limit.
    pub fn write_line(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text(formatter) => formatter.write(ctx, out),
            Body::Json(formatter) => formatter.write_line(ctx, out),
        }
    }

    /// `content_type`, else `application/json` for JSON, else `text/plain`.
    pub fn content_type(&self) -> &str {
        match (&self.content_type, &self.body) {
            (Some(set), _) => set,
            (None, Body::Json(_)) => "application/json",
            (None, Body::Text(_)) => "text/plain",
        }
    }
}

/// Envoy's format of access log lines where the configuration names none.
pub const DEFAULT_ACCESS_LOG_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQUEST_HEADER(:METHOD)% ",
    "%REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESPONSE_HEADER(X-ENVOY-UPSTREAM-SERVICE-TIME)% ",
    "\"%REQUEST_HEADER(X-FORWARDED-FOR)%\" \"%REQUEST_HEADER(USER-AGENT)%\" ",
    "\"%REQUEST_HEADER(X-REQUEST-ID)%\" \"%REQUEST_HEADER(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

#[cfg(test)]
mod tests;
