//! What a route does with its requests: forward, redirect, answer.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};

use super::retry::RetryPolicy;
use super::{CorsPolicy, PerFilterConfigs};
use crate::codec::name::HeaderName;
use crate::config::core::RuntimeFraction;
use crate::config::header_ops::HeaderOps;
use crate::config::matcher::re2::RegexReplace;
use crate::config::rate_limit::RateLimit;
use crate::format::SubstitutionFormat;

/// The action of a route.
#[derive(Debug)]
pub enum Action {
    Route(Box<RouteAction>),
    Redirect(Box<RedirectAction>),
    DirectResponse(Box<DirectResponseAction>),
    /// Nothing leaves: for filters that answer by themselves.
    NonForwarding,
}

/// `envoy.config.route.v3.RouteAction`.
#[derive(Debug)]
pub struct RouteAction {
    pub cluster: ClusterSpecifier,
    /// Answer when the cluster does not exist. Default 503.
    pub cluster_not_found_response_code: StatusCode,
    pub path_rewrite: Option<PathRewrite>,
    pub host_rewrite: Option<HostRewrite>,
    /// The old host is added to `x-forwarded-host` where it is rewritten.
    pub append_x_forwarded_host: bool,
    pub timeouts: RouteTimeouts,
    /// The route's own or its virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// The route's own, or its virtual host's, or the table's.
    pub mirrors: Arc<[MirrorPolicy]>,
    pub priority: Priority,
    /// Upgrades that the route allows or forbids, over those of the connection manager.
    pub upgrades: Box<[UpgradeConfig]>,
    /// Deprecated; the cors filter reads it where it has no per-route configuration at any level.
    pub cors: Option<Arc<CorsPolicy>>,
    pub rate_limits: Box<[RateLimit]>,
    /// The virtual host's rate limits hold beside the route's.
    pub include_vh_rate_limits: bool,
}

impl RouteAction {
    /// What ends a CONNECT here, or a POST that is to be treated so: its payload goes on as TCP.
    pub fn connect_config(&self, method: &Method) -> Option<&ConnectConfig> {
        let config = self.upgrades.iter().find_map(|upgrade| upgrade.connect.as_ref())?;
        let wanted = *method == Method::CONNECT || (*method == Method::POST && config.allow_post);
        wanted.then_some(config)
    }
}

/// `envoy.config.core.v3.RoutingPriority`: which circuit breaker thresholds count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    #[default]
    Default,
    High,
}

/// Where a request goes.
#[derive(Debug)]
pub enum ClusterSpecifier {
    Cluster(Arc<str>),
    /// The first value of this header names the cluster.
    Header(HeaderName),
    Weighted(WeightedClusters),
}

/// `envoy.config.route.v3.WeightedCluster`.
#[derive(Debug)]
pub struct WeightedClusters {
    pub clusters: Box<[ClusterWeight]>,
    /// Never 0.
    pub total: u32,
    /// A number in this header takes the place of the random one.
    pub random_header: Option<HeaderName>,
}

/// One share.
#[derive(Debug)]
pub struct ClusterWeight {
    pub cluster: ClusterName,
    /// Sum of the weights up to and with this one: the share is `[previous, upto)`.
    pub upto: u32,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    pub host_rewrite_literal: Option<Box<[u8]>>,
    pub per_filter: PerFilterConfigs,
}

/// A cluster by name or by the header that names it.
#[derive(Debug)]
pub enum ClusterName {
    Name(Arc<str>),
    Header(HeaderName),
}

/// Changes `:path`, its query kept.
#[derive(Debug)]
pub enum PathRewrite {
    /// Takes the place of what the route matched: the prefix, the whole path, and for regexes and
    /// CONNECT the whole path too.
    Prefix(Box<[u8]>),
    Regex(RegexReplace),
}

/// Changes `:authority`.
#[derive(Debug)]
pub enum HostRewrite {
    Literal(Box<[u8]>),
    /// The first value of this header, where it has one that is not empty.
    Header(HeaderName),
    /// The path without its query, with every match replaced.
    PathRegex(RegexReplace),
    /// `auto_host_rewrite`: the hostname of the upstream host, known only after the pick.
    Auto,
}

/// The timers of a route. `Some(0)` means no limit where the connection manager has one.
#[derive(Debug, Clone)]
pub struct RouteTimeouts {
    /// From the end of the request to the end of the response. Default 15 s; zero: none.
    pub timeout: Duration,
    /// Overrides the connection manager's `stream_idle_timeout`.
    pub idle: Option<Duration>,
    /// `max_stream_duration.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `max_stream_duration` is there: then the grpc fields below are its own, and `grpc-timeout`
    /// bounds the stream, else it takes the place of `timeout`.
    pub uses_max_stream_duration: bool,
    /// Upper limit of `grpc-timeout`; zero: none; `None`: the header is not looked at.
    pub grpc_timeout_max: Option<Duration>,
    /// Taken off `grpc-timeout`, where that leaves something.
    pub grpc_timeout_offset: Option<Duration>,
}

impl RouteTimeouts {
    /// `timeout` when the route does not say.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self {
            timeout: Self::DEFAULT_TIMEOUT,
            idle: None,
            max_stream_duration: None,
            uses_max_stream_duration: false,
            grpc_timeout_max: None,
            grpc_timeout_offset: None,
        }
    }
}

/// `RouteAction.RequestMirrorPolicy`.
#[derive(Debug)]
pub struct MirrorPolicy {
    pub cluster: ClusterName,
    pub fraction: RuntimeFraction,
    /// `-shadow` is not added to the host.
    pub disable_shadow_host_suffix_append: bool,
    pub request_headers: HeaderOps,
    pub host_rewrite_literal: Option<Box<[u8]>>,
}

/// `RouteAction.UpgradeConfig`.
#[derive(Debug)]
pub struct UpgradeConfig {
    /// Lower case, as `websocket` or `connect`.
    pub upgrade_type: Box<str>,
    pub enabled: bool,
    pub connect: Option<ConnectConfig>,
}

/// CONNECT requests end here: their payload goes upstream as TCP.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// The PROXY header sent upstream first, if any: its version, 1 or 2.
    pub proxy_protocol: Option<u8>,
    /// POST requests are treated so too.
    pub allow_post: bool,
}

/// `envoy.config.route.v3.RedirectAction`.
#[derive(Debug)]
pub struct RedirectAction {
    pub response_code: StatusCode,
    pub scheme: SchemeRedirect,
    pub host: Option<Box<[u8]>>,
    pub port: Option<u16>,
    pub path: Option<PathRedirect>,
    pub strip_query: bool,
}

#[derive(Debug)]
pub enum SchemeRedirect {
    Keep,
    Https,
    To(Box<[u8]>),
}

#[derive(Debug)]
pub enum PathRedirect {
    /// `path_redirect`; a query of its own takes the place of the request's.
    Path(Box<[u8]>),
    /// As `PathRewrite::Prefix` and `PathRewrite::Regex`.
    Rewrite(PathRewrite),
}

/// `envoy.config.route.v3.DirectResponseAction`.
#[derive(Debug)]
pub struct DirectResponseAction {
    pub status: StatusCode,
    pub body: Option<Arc<[u8]>>,
    /// Formats the body; `%LOCAL_REPLY_BODY%` is `body`.
    pub body_format: Option<SubstitutionFormat>,
}
