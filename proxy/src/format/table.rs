//! The operators by name: what each may be given and what it compiles to.

use std::time::{Duration, Instant};

use super::operator::{
    AddressPart, Attempted, GrpcStatusFormat, Kind, MetadataOf, Part, downstream, upstream,
};
use super::parse::{
    FormatError, Syntax, attempted, coalesce, common_duration, filter_state, grpc_status, header,
    metadata, path, query_params, server_name, time, typed_metadata,
};
use super::tls;
use crate::stream_info::StreamInfo;

/// Makes an operator of its parameters.
pub(super) type Build = fn(&str) -> Result<Kind, FormatError>;

/// The operator of a name.
pub(super) fn lookup(command: &str) -> Result<(Syntax, Build), FormatError> {
    http(command)
        .or_else(|| numbers(command))
        .or_else(|| durations(command))
        .or_else(|| addresses(command))
        .or_else(|| strings(command))
        .or_else(|| tls::lookup(command))
        .or_else(|| never(command))
        .ok_or_else(|| match command {
            "CEL" => FormatError::NotImplemented("CEL"),
            "TYPED_CEL" => FormatError::NotImplemented("TYPED_CEL"),
            _ => FormatError::UnknownCommand(command.to_owned()),
        })
}

fn http(command: &str) -> Option<(Syntax, Build)> {
    use Syntax::{Bare, Optional, OptionalLength, Required, RequiredLength};
    Some(match command {
        "REQ" | "REQUEST_HEADER" | "STREAM_INFO_REQ" => {
            (RequiredLength, |p| header(Part::Request, p, true))
        }
        "REQ_WITHOUT_QUERY" => (RequiredLength, |p| header(Part::Request, p, false)),
        "RESP" | "RESPONSE_HEADER" => (RequiredLength, |p| header(Part::Response, p, true)),
        "TRAILER" | "RESPONSE_TRAILER" => (RequiredLength, |p| header(Part::Trailers, p, true)),
        "REQUEST_HEADERS_BYTES" => (Bare, |_| Ok(Kind::HeadersBytes(Part::Request))),
        "RESPONSE_HEADERS_BYTES" => (Bare, |_| Ok(Kind::HeadersBytes(Part::Response))),
        "RESPONSE_TRAILERS_BYTES" => (Bare, |_| Ok(Kind::HeadersBytes(Part::Trailers))),
        "LOCAL_REPLY_BODY" => (Bare, |_| Ok(Kind::LocalReplyBody)),
        "ACCESS_LOG_TYPE" => (Bare, |_| Ok(Kind::AccessLogType)),
        "GRPC_STATUS" => (Optional, grpc_status),
        "GRPC_STATUS_NUMBER" => (Bare, |_| Ok(Kind::GrpcStatus(GrpcStatusFormat::Number))),
        "QUERY_PARAM" => (RequiredLength, |p| Ok(Kind::QueryParam(p.into()))),
        "QUERY_PARAMS" => (OptionalLength, query_params),
        "PATH" => (OptionalLength, path),
        "COALESCE" => (RequiredLength, coalesce),
        "START_TIME" => (Optional, |p| time(p, false, false)),
        "START_TIME_LOCAL" => (Optional, |p| time(p, false, true)),
        "EMIT_TIME" => (Optional, |p| time(p, true, false)),
        "EMIT_TIME_LOCAL" => (Optional, |p| time(p, true, true)),
        "DYNAMIC_METADATA" => (RequiredLength, |p| metadata(MetadataOf::Dynamic, p)),
        "CLUSTER_METADATA" => (Required, |p| metadata(MetadataOf::Cluster, p)),
        "UPSTREAM_METADATA" => (Required, |p| metadata(MetadataOf::Host, p)),
        "METADATA" => (RequiredLength, typed_metadata),
        "FILTER_STATE" => (OptionalLength, filter_state),
        "UPSTREAM_FILTER_STATE" => {
            (OptionalLength, |p| filter_state(p).map(|_| Kind::Never(Box::default())))
        }
        "REQUESTED_SERVER_NAME" => (Optional, server_name),
        "RESPONSE_CODE_DETAILS" => {
            (Optional, |p| Ok(Kind::ResponseCodeDetails { whitespace: p == "ALLOW_WHITESPACES" }))
        }
        "RESPONSE_FLAGS" => (Bare, |_| Ok(Kind::ResponseFlags { long: false })),
        "RESPONSE_FLAGS_LONG" => (Bare, |_| Ok(Kind::ResponseFlags { long: true })),
        "PROTOCOL" => (Bare, |_| Ok(Kind::Protocol { upstream: false })),
        "UPSTREAM_PROTOCOL" => (Bare, |_| Ok(Kind::Protocol { upstream: true })),
        _ => return None,
    })
}

macro_rules! number {
    ($of:expr) => {
        (Syntax::Bare, |_| Ok(Kind::Number($of)))
    };
}

fn numbers(command: &str) -> Option<(Syntax, Build)> {
    Some(match command {
        "BYTES_RECEIVED" => number!(|i| i.bytes_received),
        "BYTES_SENT" => number!(|i| i.bytes_sent),
        "RESPONSE_CODE" => number!(|i| i.response_code.map_or(0, |c| c.as_u16().into())),
        "CONNECTION_ID" => number!(|i| i.connection.id),
        "UPSTREAM_CONNECTION_ID" => number!(|i| i.upstream.connection_id.unwrap_or(0)),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => number!(|i| i.upstream.attempts.into()),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => number!(|i| downstream(i).wire_received),
        "DOWNSTREAM_WIRE_BYTES_SENT" => number!(|i| downstream(i).wire_sent),
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            number!(|i| downstream(i).header_received)
        }
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            number!(|i| downstream(i).header_sent)
        }
        "UPSTREAM_WIRE_BYTES_RECEIVED" => number!(|i| upstream(i).wire_received),
        "UPSTREAM_WIRE_BYTES_SENT" => number!(|i| upstream(i).wire_sent),
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            number!(|i| upstream(i).header_received)
        }
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            number!(|i| upstream(i).header_sent)
        }
        // QUIC's counts, and a round trip time that Envoy has for QUIC only.
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" | "DOWNSTREAM_CX_RTT" => number!(|_| 0),
        _ => return None,
    })
}

macro_rules! duration {
    ($of:expr) => {
        (Syntax::Bare, |_| Ok(Kind::Duration($of)))
    };
}

fn since_start(info: &StreamInfo, moment: Option<Instant>) -> Option<Duration> {
    moment.map(|m| m.saturating_duration_since(info.start))
}

fn durations(command: &str) -> Option<(Syntax, Build)> {
    Some(match command {
        "DURATION" => {
            duration!(|i| since_start(i, Some(i.timing.end.unwrap_or_else(Instant::now))))
        }
        "REQUEST_DURATION" => duration!(|i| since_start(i, i.timing.last_downstream_rx)),
        "REQUEST_TX_DURATION" => duration!(|i| since_start(i, i.timing.last_upstream_tx)),
        "RESPONSE_DURATION" => duration!(|i| since_start(i, i.timing.first_upstream_rx)),
        "RESPONSE_TX_DURATION" => duration!(|i| {
            let (to, from) = (i.timing.last_downstream_tx?, i.timing.first_upstream_rx?);
            Some(to.saturating_duration_since(from))
        }),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => duration!(|i| i.upstream.pool_ready),
        "COMMON_DURATION" => (Syntax::Required, common_duration),
        _ => return None,
    })
}

macro_rules! address {
    ($of:expr, whole) => {
        (Syntax::Bare, |_| Ok(Kind::Address { of: $of, part: AddressPart::Whole }))
    };
    ($of:expr, port) => {
        (Syntax::Bare, |_| Ok(Kind::Address { of: $of, part: AddressPart::Port }))
    };
    ($of:expr, host) => {
        (Syntax::Optional, |p| Ok(Kind::Address { of: $of, part: host_part(p) }))
    };
}

/// The mask length; what is no number masks nothing, and one that is too long is cut later.
fn host_part(parameters: &str) -> AddressPart {
    let bits: Option<u32> = parameters.parse().ok();
    AddressPart::Host(bits.map(|bits| bits.min(255) as u8))
}

fn addresses(command: &str) -> Option<(Syntax, Build)> {
    Some(match command {
        "DOWNSTREAM_REMOTE_ADDRESS" => address!(|i| Some(&i.remote), whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address!(|i| Some(&i.remote), host),
        "DOWNSTREAM_REMOTE_PORT" => address!(|i| Some(&i.remote), port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => {
            address!(|i| Some(&i.connection.direct_remote), whole)
        }
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            address!(|i| Some(&i.connection.direct_remote), host)
        }
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => address!(|i| Some(&i.connection.direct_remote), port),
        "DOWNSTREAM_LOCAL_ADDRESS" => address!(|i| Some(&i.connection.local), whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address!(|i| Some(&i.connection.local), host),
        "DOWNSTREAM_LOCAL_PORT" => address!(|i| Some(&i.connection.local), port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => address!(|i| Some(&i.connection.direct_local), whole),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => {
            address!(|i| Some(&i.connection.direct_local), host)
        }
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => address!(|i| Some(&i.connection.direct_local), port),
        "UPSTREAM_HOST" => address!(|i| i.upstream.host.as_ref(), whole),
        "UPSTREAM_LOCAL_ADDRESS" => address!(|i| i.upstream.local.as_ref(), whole),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address!(|i| i.upstream.local.as_ref(), host),
        "UPSTREAM_LOCAL_PORT" => address!(|i| i.upstream.local.as_ref(), port),
        "UPSTREAM_REMOTE_ADDRESS" => address!(|i| i.upstream.remote.as_ref(), whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address!(|i| i.upstream.remote.as_ref(), host),
        "UPSTREAM_REMOTE_PORT" => address!(|i| i.upstream.remote.as_ref(), port),
        "UPSTREAM_HOST_NAME" => (Syntax::Bare, |_| Ok(Kind::HostName { port: true })),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => (Syntax::Bare, |_| Ok(Kind::HostName { port: false })),
        "UPSTREAM_HOSTS_ATTEMPTED" => {
            (Syntax::Bare, |_| Ok(attempted(Attempted::Hosts { port: true })))
        }
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => {
            (Syntax::Bare, |_| Ok(attempted(Attempted::Hosts { port: false })))
        }
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => {
            (Syntax::Bare, |_| Ok(attempted(Attempted::Names { port: true })))
        }
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => {
            (Syntax::Bare, |_| Ok(attempted(Attempted::Names { port: false })))
        }
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => {
            (Syntax::Bare, |_| Ok(attempted(Attempted::ConnectionIds)))
        }
        _ => return None,
    })
}

macro_rules! string {
    ($of:expr) => {
        (Syntax::Bare, |_| Ok(Kind::Str($of)))
    };
}

fn set(text: Option<&str>) -> Option<&str> {
    text.filter(|t| !t.is_empty())
}

fn strings(command: &str) -> Option<(Syntax, Build)> {
    Some(match command {
        "CONNECTION_TERMINATION_DETAILS" => {
            string!(|i| i.connection_termination_details.as_deref())
        }
        "ROUTE_NAME" => string!(|i| set(i.route_name.as_deref())),
        "VIRTUAL_CLUSTER_NAME" => string!(|i| set(i.virtual_cluster_name.as_deref())),
        "UPSTREAM_CLUSTER" => string!(|i| {
            let up = &i.upstream;
            set(up.cluster_observability_name.as_deref()).or(set(up.cluster.as_deref()))
        }),
        "UPSTREAM_CLUSTER_RAW" => string!(|i| set(i.upstream.cluster.as_deref())),
        "FILTER_CHAIN_NAME" => string!(|i| set(Some(&i.connection.filter_chain_name))),
        "CUSTOM_FLAGS" => string!(|i| Some(&i.custom_flags)),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => (Syntax::Bare, |_| Ok(Kind::TransportFailure)),
        "STREAM_ID" => (Syntax::Bare, |_| Ok(Kind::StreamId)),
        "UNIQUE_ID" => (Syntax::Bare, |_| Ok(Kind::UniqueId)),
        "HOSTNAME" => (Syntax::Bare, |_| Ok(Kind::Fixed(hostname()))),
        "ENVIRONMENT" => (Syntax::RequiredLength, |p| {
            let value = std::env::var_os(p).map(std::ffi::OsString::into_encoded_bytes);
            Ok(Kind::Fixed(value.unwrap_or_else(|| b"-".to_vec()).into()))
        }),
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => {
            (Syntax::Bare, |_| Ok(Kind::Fixed(Box::default())))
        }
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => string!(|_| Some("Normal")),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => {
            string!(|i| i.upstream.remote.as_ref().map(|_| "Normal"))
        }
        _ => return None,
    })
}

fn hostname() -> Box<[u8]> {
    nix::unistd::gethostname()
        .map_or_else(|_| b"-".to_vec(), std::ffi::OsString::into_encoded_bytes)
        .into()
}

/// Operators over tracing and QUIC, and fingerprints that are not taken: never there.
fn never(command: &str) -> Option<(Syntax, Build)> {
    matches!(
        command,
        "TRACE_ID"
            | "SPAN_ID"
            | "ROUNDTRIP_DURATION"
            | "DOWNSTREAM_HANDSHAKE_DURATION"
            | "DOWNSTREAM_LOCAL_CLOSE_REASON"
            | "UPSTREAM_LOCAL_CLOSE_REASON"
            | "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID"
            | "UPSTREAM_SERVER_NAME"
            | "TLS_JA3_FINGERPRINT"
            | "TLS_JA4_FINGERPRINT"
            | "DOWNSTREAM_TLS_GROUP"
            | "UPSTREAM_TLS_GROUP"
            | "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256"
            | "DOWNSTREAM_PEER_ISSUER_SERIAL"
    )
    .then_some((Syntax::Bare, |_| Ok(Kind::Never(Box::default()))))
}
