//! Compiled HTTP protocol options, of connection managers and of clusters.
//!
//! From `core.v3.{HttpProtocolOptions, Http1ProtocolOptions, Http2ProtocolOptions}` and
//! `extensions.upstreams.http.v3.HttpProtocolOptions`; defaults are those of Envoy 1.40.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::head::Protocol;
use crate::codec::name::HeaderName;

/// What becomes of a request with a header name that has an underscore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadersWithUnderscoresAction {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

/// A compiled `core.v3.HttpProtocolOptions`; `None` in a timeout or limit means that there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonHttpOptions {
    /// Default 1 h; zero in the proto switches it off.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// Default 100.
    pub max_headers_count: u32,
    /// `max_response_headers_kb`, in KiB; by default 80 in HTTP/1 and 60 in HTTP/2.
    pub max_response_headers_kb: Option<u32>,
    pub max_stream_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub headers_with_underscores_action: HeadersWithUnderscoresAction,
}

impl Default for CommonHttpOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_headers_count: 100,
            max_response_headers_kb: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            headers_with_underscores_action: HeadersWithUnderscoresAction::Allow,
        }
    }
}

/// How an HTTP/1 encoder writes header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderKeyFormat {
    /// Lower case, Envoy's default.
    #[default]
    Lower,
    /// `proper_case_words`.
    ProperCaseWords,
    /// `stateful_formatter: preserve_case`.
    PreserveCase,
}

/// A compiled `core.v3.Http1ProtocolOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Options {
    /// Default true.
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<Arc<str>>,
    pub header_key_format: HeaderKeyFormat,
    pub enable_trailers: bool,
    pub override_stream_error_on_invalid_http_message: bool,
    pub send_fully_qualified_url: bool,
    pub allow_custom_methods: bool,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: None,
            header_key_format: HeaderKeyFormat::Lower,
            enable_trailers: false,
            override_stream_error_on_invalid_http_message: false,
            send_fully_qualified_url: false,
            allow_custom_methods: false,
        }
    }
}

/// A compiled `core.v3.KeepaliveSettings`: HTTP/2 PINGs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeepaliveSettings {
    /// `None`: only `connection_idle_interval` sends PINGs.
    pub interval: Option<Duration>,
    pub timeout: Duration,
    /// Percent of `interval`; default 15.
    pub interval_jitter: f64,
    pub connection_idle_interval: Option<Duration>,
}

/// A compiled `core.v3.Http2ProtocolOptions`.
#[derive(Debug, Clone, PartialEq)]
pub struct Http2Options {
    pub hpack_table_size: u32,
    pub max_concurrent_streams: u32,
    pub initial_stream_window_size: u32,
    pub initial_connection_window_size: u32,
    pub allow_connect: bool,
    pub max_outbound_frames: u32,
    pub max_outbound_control_frames: u32,
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    pub max_inbound_priority_frames_per_stream: u32,
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    pub override_stream_error_on_invalid_http_message: bool,
    pub connection_keepalive: Option<KeepaliveSettings>,
}

impl Http2Options {
    /// Whether a message that breaks the rules of HTTP ends its stream only, not its connection.
    pub fn stream_errors(&self) -> bool {
        self.override_stream_error_on_invalid_http_message
    }
}

impl Default for Http2Options {
    /// The defaults of Envoy 1.40, written in its `http2_protocol_options` docs.
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 << 20,
            initial_connection_window_size: 24 << 20,
            allow_connect: false,
            max_outbound_frames: 10_000,
            max_outbound_control_frames: 1000,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            override_stream_error_on_invalid_http_message: false,
            connection_keepalive: None,
        }
    }
}

/// How a cluster chooses the protocol towards its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamProtocolChoice {
    #[default]
    Http1,
    Http2,
    /// `use_downstream_protocol_config`: as the request came in.
    Downstream,
    /// `auto_config`: by ALPN; HTTP/1 where the transport socket negotiates none.
    Auto,
}

/// pb `UpstreamHttpProtocolOptions`: what the request's host means to TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoSni {
    /// It is the SNI.
    pub sni: bool,
    /// The certificate has to have it among its names.
    pub validate: bool,
    /// The header that names it instead of the authority.
    pub header: Option<HeaderName>,
}

/// A cluster's `HttpProtocolOptions`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UpstreamHttpOptions {
    pub choice: UpstreamProtocolChoice,
    pub common: CommonHttpOptions,
    pub http1: Http1Options,
    pub http2: Http2Options,
    pub auto_sni: Option<AutoSni>,
}

impl UpstreamHttpOptions {
    /// The upstream protocol of a request; `alpn` is what the transport socket would negotiate, `None` without TLS.
    pub fn protocol(&self, downstream: Protocol, alpn: Option<&[u8]>) -> Protocol {
        match self.choice {
            UpstreamProtocolChoice::Http1 => Protocol::Http11,
            UpstreamProtocolChoice::Http2 => Protocol::Http2,
            UpstreamProtocolChoice::Downstream => match downstream {
                Protocol::Http2 => Protocol::Http2,
                Protocol::Http10 | Protocol::Http11 => Protocol::Http11,
            },
            UpstreamProtocolChoice::Auto => match alpn {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http11,
            },
        }
    }
}
