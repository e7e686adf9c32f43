//! How an attempt fails, and what the client is told when it is the last one.

use http::StatusCode;

use crate::codec::Fault;
use crate::codec::head::{HeaderList, Protocol};
use crate::codec::name::names;
use crate::hcm::local_reply::LocalReply;
use crate::stream_info::ResponseFlags;

/// Envoy's stream reset reasons, with its words for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    LocalReset,
    RemoteReset,
    /// REFUSED_STREAM, or a GOAWAY before the stream.
    RemoteRefused,
    LocalConnectionFailure,
    RemoteConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination,
    /// A circuit breaker.
    Overflow,
    ProtocolError,
}

impl ResetReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LocalReset => "local reset",
            Self::RemoteReset => "remote reset",
            Self::RemoteRefused => "remote refused stream reset",
            Self::LocalConnectionFailure => "local connection failure",
            Self::RemoteConnectionFailure => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
        }
    }

    pub fn flag(self) -> ResponseFlags {
        match self {
            Self::LocalReset => ResponseFlags::LOCAL_RESET,
            Self::RemoteReset | Self::RemoteRefused => ResponseFlags::UPSTREAM_REMOTE_RESET,
            Self::LocalConnectionFailure
            | Self::RemoteConnectionFailure
            | Self::ConnectionTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            Self::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            Self::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            Self::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        }
    }

    pub fn is_connect_failure(self) -> bool {
        matches!(
            self,
            Self::LocalConnectionFailure | Self::RemoteConnectionFailure | Self::ConnectionTimeout
        )
    }

    /// What a fault of the upstream's side is called.
    pub fn of(fault: Fault) -> Self {
        match fault {
            Fault::Parse(_) => Self::ProtocolError,
            Fault::Eof | Fault::Io(_) => Self::ConnectionTermination,
            Fault::GoAway { .. } => Self::RemoteRefused,
            fault @ Fault::Reset { remote: true, .. } if fault.is_unprocessed() => {
                Self::RemoteRefused
            }
            Fault::Reset { remote: true, .. } => Self::RemoteReset,
            // By our codec: what the host sent did not fit together.
            Fault::Reset { remote: false, .. } => Self::ProtocolError,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::ProtocolError => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    pub reason: ResetReason,
    /// The connection's own words, as `delayed connect error: Connection refused`.
    pub transport: Option<std::sync::Arc<str>>,
    /// The codec's details, for a protocol error.
    pub details: Option<&'static str>,
}

impl Failure {
    pub fn new(reason: ResetReason) -> Self {
        Self { reason, transport: None, details: None }
    }

    /// A fault on a connection that speaks `protocol`. HTTP/1 says no more than that it was one, as in Envoy.
    pub fn of(fault: Fault, protocol: Protocol) -> Self {
        let details = match fault {
            Fault::Parse(parse) if protocol == Protocol::Http2 => Some(parse.details()),
            _ => None,
        };
        Self { reason: ResetReason::of(fault), transport: None, details }
    }

    /// `upstream_reset_{before,after}_response_started{reason|transport failure}`.
    pub fn code_details(&self, when: &str) -> String {
        let mut inside = self.reason.as_str().to_owned();
        if let Some(more) = self.transport.as_deref().or(self.details) {
            inside.push('|');
            inside.push_str(more);
        }
        format!("upstream_reset_{when}_response_started{{{}}}", inside.replace(' ', "_"))
    }

    /// The answer to a request none of whose attempts got a response.
    pub fn reply(&self, retried: bool, suppress_envoy_headers: bool) -> LocalReply {
        // The transport's own words stay in the details and the log, as in Envoy: they are not the client's business.
        let body = format!(
            "upstream connect error or disconnect/reset before headers. {}reset reason: {}",
            if retried { "retried and the latest " } else { "" },
            self.reason.as_str()
        );
        let mut reply = LocalReply::new(self.reason.status(), self.code_details("before"))
            .body(body)
            .flag(self.reason.flag());
        if self.reason == ResetReason::Overflow && !suppress_envoy_headers {
            let mut headers = HeaderList::new();
            headers.append(&names::X_ENVOY_OVERLOADED, b"true");
            reply.headers = Some(headers);
        }
        reply
    }
}
