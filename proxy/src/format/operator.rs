//! The compiled command operators and how each is evaluated.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::address::{write_address, write_attempted, write_host_name};
use super::json::write_value;
use super::metadata::{Looked, metadata, write_grpc_messages, write_grpc_status};
use super::request::{
    find_header, headers_bytes, path, write_query, write_query_param, write_server_name,
    write_stream_id,
};
use super::time::TimeFormat;
use super::{AccessLogType, Ctx, text, tls};
use crate::codec::name::HeaderName;
use crate::stream_info::{Address, ByteMeter, StreamInfo};

/// What an operator wrote, as JSON sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing: `-` in text, `null` in JSON.
    Missing,
    /// Nothing, which text prints as nothing; `null` in JSON.
    Empty,
    /// Bytes that JSON has to quote.
    Text,
    /// A number, boolean, list or struct: JSON already.
    Json,
}

/// An operator with its `:Z`.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    pub(super) kind: Kind,
    /// At most so many bytes of text.
    pub(super) max_length: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Header {
        part: Part,
        name: Option<HeaderName>,
        alternative: Option<HeaderName>,
        query: bool,
    },
    HeadersBytes(Part),
    Number(fn(&StreamInfo) -> u64),
    Duration(fn(&StreamInfo) -> Option<Duration>),
    CommonDuration {
        from: TimePoint,
        to: TimePoint,
        precision: Precision,
    },
    Time {
        emit: bool,
        format: TimeFormat,
    },
    Address {
        of: fn(&StreamInfo) -> Option<&Address>,
        part: AddressPart,
    },
    Str(fn(&StreamInfo) -> Option<&str>),
    Metadata {
        of: MetadataOf,
        namespace: Box<str>,
        path: Box<[Box<str>]>,
    },
    FilterState {
        key: Box<str>,
        plain: bool,
    },
    /// What `grpc_stats` leaves.
    GrpcMessages {
        plain: bool,
    },
    Protocol {
        upstream: bool,
    },
    ResponseFlags {
        long: bool,
    },
    ResponseCodeDetails {
        whitespace: bool,
    },
    TransportFailure,
    HostName {
        port: bool,
    },
    Attempted(Attempted),
    GrpcStatus(GrpcStatusFormat),
    Path {
        query: bool,
        original: Source,
        current: Source,
    },
    QueryParam(Box<str>),
    Query {
        decoded: bool,
    },
    ServerName {
        sni: Source,
        original: Source,
        host: Source,
    },
    StreamId,
    UniqueId,
    AccessLogType,
    LocalReplyBody,
    /// Known when the configuration was read: `%HOSTNAME%`, `%ENVIRONMENT(x)%`.
    Fixed(Box<[u8]>),
    Tls {
        side: tls::Side,
        write: tls::Write,
    },
    /// A moment of the peer's certificate.
    CertificateTime {
        side: tls::Side,
        of: tls::Moment,
        format: TimeFormat,
    },
    ClientTransportFailure,
    /// What needs tracing or QUIC, or is not kept: never there. The operator's name.
    Never(Box<str>),
    Coalesce(Box<[Operator]>),
}

/// Whether a source of a value takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Used,
    Unused,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Request,
    Response,
    Trailers,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum AddressPart {
    Whole,
    /// Without the port, masked to so many bits where given.
    Host(Option<u8>),
    Port,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum MetadataOf {
    Dynamic,
    Cluster,
    Host,
    Route,
    VirtualHost,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Attempted {
    Hosts { port: bool },
    Names { port: bool },
    ConnectionIds,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcStatusFormat {
    Camel,
    Snake,
    Number,
}

/// A named moment of `%COMMON_DURATION%`.
pub(super) type TimePoint = fn(&StreamInfo) -> Option<Instant>;

#[derive(Debug, Clone, Copy)]
pub(super) enum Precision {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Operator {
    /// Appends the value, cut at `max_length`.
    pub(super) fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) -> Shape {
        let start = out.len();
        let shape = self.kind.write(ctx, out);
        if shape == Shape::Text
            && let Some(max) = self.max_length
        {
            out.truncate(out.len().min(start + max));
        }
        shape
    }

    /// As `write`, for text formats: `:Z` cuts whatever is printed.
    pub(super) fn write_text(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let shape = self.kind.write(ctx, out);
        if let Some(max) = self.max_length {
            out.truncate(out.len().min(start + max));
        }
        shape != Shape::Missing
    }

    /// Whether JSON most likely quotes the value: only a hint, to have the quote there already.
    pub(super) fn is_likely_text(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Number(_)
                | Kind::Duration(_)
                | Kind::CommonDuration { .. }
                | Kind::HeadersBytes(_)
                | Kind::Address { part: AddressPart::Port, .. }
                | Kind::GrpcStatus(GrpcStatusFormat::Number)
                | Kind::Never(_)
        )
    }
}

impl Kind {
    fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) -> Shape {
        let info = ctx.info;
        match self {
            Self::Header { part, name, alternative, query } => {
                let value = find_header(ctx, *part, name.as_ref())
                    .or_else(|| find_header(ctx, *part, alternative.as_ref()));
                text(out, value.map(|v| if *query { v } else { text::before_query(v) }))
            }
            Self::HeadersBytes(part) => number(out, headers_bytes(ctx, *part)),
            Self::Number(of) => number(out, of(info)),
            Self::Duration(of) => match of(info) {
                Some(duration) => number(out, duration.as_millis() as u64),
                None => Shape::Missing,
            },
            Self::CommonDuration { from, to, precision } => {
                let between = from(info).zip(to(info));
                match between.and_then(|(from, to)| to.checked_duration_since(from)) {
                    Some(duration) => number(out, precision.count(duration)),
                    None => Shape::Missing,
                }
            }
            Self::Time { emit, format } => {
                format.write(if *emit { SystemTime::now() } else { info.start_time }, out);
                Shape::Text
            }
            Self::Address { of, part } => match of(info) {
                Some(address) => write_address(address, *part, out),
                None => Shape::Missing,
            },
            Self::Str(of) => text(out, of(info).map(str::as_bytes)),
            Self::Metadata { of, namespace, path } => {
                match metadata(info, *of, namespace).and_then(|map| Looked::up(map, path)) {
                    Some(found) => found.write(out),
                    None => Shape::Missing,
                }
            }
            Self::FilterState { key, plain } => match info.filter_state_string(key) {
                Some(value) if *plain => text(out, Some(value.as_bytes())),
                Some(value) => {
                    write_value(&Value::String(value.to_owned()), out);
                    Shape::Json
                }
                None => Shape::Missing,
            },
            Self::GrpcMessages { plain } => write_grpc_messages(info, *plain, out),
            Self::Protocol { upstream } => {
                let protocol = if *upstream { info.upstream.protocol } else { info.protocol };
                text(out, protocol.map(|p| p.as_str().as_bytes()))
            }
            Self::ResponseFlags { long } => {
                if *long {
                    info.flags.write_long(out);
                } else {
                    info.flags.write_short(out);
                }
                Shape::Text
            }
            Self::ResponseCodeDetails { whitespace } => {
                let details = info.response_code_details.as_deref();
                write_reason(details, *whitespace, out)
            }
            Self::TransportFailure => {
                let reason = info.upstream.transport_failure.as_deref().filter(|r| !r.is_empty());
                write_reason(reason, false, out)
            }
            Self::HostName { port } => {
                let Some(host) = &info.upstream.host else { return Shape::Missing };
                write_host_name(host, info.upstream.hostname.as_deref(), *port, out);
                Shape::Text
            }
            Self::Attempted(what) => write_attempted(info, *what, out),
            Self::GrpcStatus(format) => write_grpc_status(ctx, *format, out),
            Self::Path { query, original, current } => {
                let value = path(ctx, *original, *current);
                text(out, value.map(|v| if *query { v } else { text::before_query(v) }))
            }
            Self::QueryParam(name) => write_query_param(ctx, name, out),
            Self::Query { decoded } => write_query(ctx, *decoded, out),
            Self::ServerName { sni, original, host } => {
                write_server_name(ctx, *sni, (*original, *host), out)
            }
            Self::StreamId => write_stream_id(ctx, out),
            Self::UniqueId => {
                text::write_uuid(rand::random(), out);
                Shape::Text
            }
            Self::AccessLogType => text(out, Some(ctx.access_log_type.as_str().as_bytes())),
            Self::LocalReplyBody => text(out, Some(ctx.local_reply_body)),
            Self::Fixed(value) => text(out, Some(value)),
            Self::Tls { side, write } => tls::write(info, *side, *write, out),
            Self::CertificateTime { side, of, format } => {
                tls::write_time(info, *side, *of, format, out)
            }
            Self::ClientTransportFailure => write_reason(tls::client_failure(info), false, out),
            Self::Never(_) => Shape::Missing,
            Self::Coalesce(operators) => write_first(operators, ctx, out),
        }
    }
}

/// The first of several operators that writes something.
fn write_first(operators: &[Operator], ctx: &Ctx<'_>, out: &mut Vec<u8>) -> Shape {
    let start = out.len();
    for operator in operators {
        let shape = operator.write(ctx, out);
        if shape != Shape::Missing && out.len() > start {
            return shape;
        }
        out.truncate(start);
    }
    Shape::Missing
}

/// A reason in one word unless whitespace may stay.
fn write_reason(reason: Option<&str>, whitespace: bool, out: &mut Vec<u8>) -> Shape {
    let start = out.len();
    let shape = text(out, reason.map(str::as_bytes));
    if !whitespace {
        text::whitespace_to_underscore(&mut out[start..]);
    }
    shape
}

impl Precision {
    fn count(self, duration: Duration) -> u64 {
        let count = match self {
            Self::Milliseconds => duration.as_millis(),
            Self::Microseconds => duration.as_micros(),
            Self::Nanoseconds => duration.as_nanos(),
        };
        count as u64
    }
}

impl AccessLogType {
    /// The proto enum's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::TcpUpstreamConnected => "TcpUpstreamConnected",
            Self::TcpPeriodic => "TcpPeriodic",
            Self::TcpConnectionStart => "TcpConnectionStart",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::UpstreamPoolReady => "UpstreamPoolReady",
            Self::UpstreamPeriodic => "UpstreamPeriodic",
            Self::UpstreamEnd => "UpstreamEnd",
            Self::DownstreamTunnelSuccessfullyEstablished => {
                "DownstreamTunnelSuccessfullyEstablished"
            }
            Self::UdpTunnelUpstreamConnected => "UdpTunnelUpstreamConnected",
            Self::UdpPeriodic => "UdpPeriodic",
            Self::UdpSessionEnd => "UdpSessionEnd",
        }
    }
}

pub(super) fn text(out: &mut Vec<u8>, value: Option<&[u8]>) -> Shape {
    match value {
        Some(value) => {
            out.extend_from_slice(value);
            Shape::Text
        }
        None => Shape::Missing,
    }
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) -> Shape {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    Shape::Json
}

/// For operators over byte meters.
pub(super) fn downstream(info: &StreamInfo) -> &ByteMeter {
    &info.downstream_bytes
}

pub(super) fn upstream(info: &StreamInfo) -> &ByteMeter {
    &info.upstream.bytes
}
