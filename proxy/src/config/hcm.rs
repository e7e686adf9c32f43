//! Compiled HTTP connection manager. From pb `HttpConnectionManager`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLogConfigs;
use super::cidr::Cidr;
use super::local_reply::LocalReplyConfig;
use super::name::NameId;
use super::protocol_options::{CommonHttpOptions, Http1Options, Http2Options};
use super::route::slot::Routes;
use crate::codec::head::Scheme;
use crate::http_filters::chain::FilterConfig;

/// A connection manager as the streams of its connections see it. Timeouts: `None` is no timeout.
#[derive(Debug)]
pub struct HttpConnectionManager {
    pub stat_prefix: Arc<str>,
    pub codec: CodecType,
    pub routes: Routes,
    /// The router, always last, is not in the list.
    pub filters: Arc<[HttpFilter]>,
    pub router: RouterConfig,
    pub common: CommonHttpOptions,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// KiB; default 60.
    pub max_request_headers_kb: u32,

    /// Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    /// Between the two GOAWAY frames. Default 5 s.
    pub drain_timeout: Duration,
    /// How long a connection closed with bytes unread lingers. Default 1 s; zero closes at once.
    pub delayed_close_timeout: Duration,
    /// HTTP/1: keep the connection after a bad request where that is possible.
    pub stream_error_on_invalid_message: bool,

    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    pub scheme_overwrite: Option<Scheme>,
    /// `scheme_header_transformation.match_upstream`: the request's scheme is that of the upstream's transport.
    pub scheme_of_upstream: bool,
    pub via: Option<Arc<str>>,
    pub add_user_agent: bool,
    pub forward_client_cert: ForwardClientCert,
    pub client_cert_details: ClientCertDetails,
    pub request_id: RequestIdConfig,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: usize,
    pub skip_xff_append: bool,
    pub internal_addresses: InternalAddresses,
    pub represent_ipv4_as_mapped: bool,
    pub append_x_forwarded_port: bool,
    pub proxy_100_continue: bool,
    pub proxy_status: Option<ProxyStatus>,

    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,

    /// Upgrade types, lower case, and whether each is allowed where a route does not say.
    pub upgrades: Vec<(Arc<str>, bool)>,
    pub access_log: AccessLogConfigs,
    pub flush_log_on_new_request: bool,
    pub flush_log_on_tunnel: bool,
    pub access_log_flush_interval: Option<Duration>,
    pub local_reply: LocalReplyConfig,
    /// Tracing is configured: trace bits go into request ids, decorator operations are sent.
    pub tracing: Option<Tracing>,
}

/// pb `forward_client_cert_details`: what becomes of `x-forwarded-client-cert`. Every value but the last removes it
/// where the client showed no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// pb `set_current_client_cert_details`: what an element says besides the fingerprint and our own URI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

impl ClientCertDetails {
    /// Each set of details has its own number, below 32.
    pub fn number(self) -> usize {
        let bits = [self.subject, self.cert, self.chain, self.dns, self.uri];
        bits.into_iter().fold(0, |number, bit| number << 1 | usize::from(bit))
    }
}

/// pb `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecType {
    /// By ALPN where there is TLS, else by the HTTP/2 preface.
    Auto,
    Http1,
    Http2,
}

/// One HTTP filter of the list.
#[derive(Debug)]
pub struct HttpFilter {
    pub name: Arc<str>,
    /// The key of its per-route configurations.
    pub slot: NameId,
    /// Off unless a route switches it on.
    pub disabled: bool,
    pub config: FilterConfig,
}

/// pb `extensions.filters.http.router.v3.Router`.
#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    pub suppress_envoy_headers: bool,
    /// Names of headers checked strictly, as in `strict_check_headers`.
    pub strict_check_headers: Vec<Arc<str>>,
    pub respect_expected_rq_timeout: bool,
    pub upstream_log: AccessLogConfigs,
    pub dynamic_stats: bool,
    pub start_child_span: bool,
    pub suppress_grpc_request_failure_code_stats: bool,
}

/// pb `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// Request ids: pb `generate_request_id` and the `UuidRequestIdConfig` extension.
#[derive(Debug, Clone)]
pub struct RequestIdConfig {
    pub generate: bool,
    pub preserve_external: bool,
    pub always_in_response: bool,
    /// Put the trace reason into the id's 14th digit.
    pub pack_trace_reason: bool,
    pub use_for_trace_sampling: bool,
}

/// Which peers count as internal.
#[derive(Debug, Clone, Default)]
pub struct InternalAddresses {
    pub unix_sockets: bool,
    pub ranges: Vec<Cidr>,
}

impl InternalAddresses {
    /// What an `internal_address_config` without ranges means: RFC 1918, RFC 4193 and loopback.
    pub fn private() -> Vec<Cidr> {
        let v4 = [([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16)];
        let v4 = v4.into_iter().chain([([127, 0, 0, 1], 32)]);
        let v6 = [(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7), (Ipv6Addr::LOCALHOST, 128)];
        v4.map(|(ip, len)| Cidr::new(ip.into(), len))
            .chain(v6.map(|(ip, len)| Cidr::new(ip.into(), len)))
            .collect()
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }
}

/// pb `path_with_escaped_slashes_action`: what becomes of `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    #[default]
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// 307 to the path with the slashes unescaped.
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// pb `strip_matching_host_port`, `strip_any_host_port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    No,
    /// Where it is the listener's own port.
    Matching,
    Any,
}

/// pb `ProxyStatusConfig`.
#[derive(Debug, Clone)]
pub struct ProxyStatus {
    pub name: ProxyName,
    pub remove_details: bool,
    pub remove_connection_termination_details: bool,
    pub remove_response_flags: bool,
    pub set_recommended_response_code: bool,
}

/// What `Proxy-Status` calls us.
#[derive(Debug, Clone)]
pub enum ProxyName {
    ServerName,
    NodeId,
    Literal(Arc<str>),
}

/// pb `HttpConnectionManager.Tracing` without a provider: sampling decides the trace bits of request ids.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// In hundredths of a percent, 0–10 000.
    pub client_sampling: u32,
    pub random_sampling: u32,
    pub overall_sampling: u32,
}
