//! A compiled `cluster.v3.Cluster`: plain, immutable, `Send + Sync`.
//!
//! Kept small, for a mesh has thousands: options that most clusters leave alone are behind one shared `Arc`.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::name::HeaderName;
use crate::config::core::{BindConfig, Metadata, RuntimeDouble, TcpKeepalive};
use crate::config::endpoint::LoadAssignment;
use crate::config::protocol_options::UpstreamHttpOptions;
use crate::config::source::ConfigSource;
use crate::tls::{ClientContext, SecretUse};

/// `core.v3.RoutingPriority`: which circuit breakers a request counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum RoutingPriority {
    #[default]
    Default,
    High,
}

/// Where a cluster's hosts come from.
#[derive(Debug, Clone)]
pub enum Discovery {
    Static,
    Dns(Box<DnsOptions>),
    OriginalDst(Box<OriginalDst>),
    Eds(Box<EdsOptions>),
}

/// What an `ORIGINAL_DST` cluster goes by: its `original_dst_lb_config` and `cleanup_interval`. Metadata comes before
/// the header, and both before the connection's own original destination.
#[derive(Debug, Clone)]
pub struct OriginalDst {
    /// `use_http_header`: the header that names the destination; default `x-envoy-original-dst-host`.
    pub http_header: Option<HeaderName>,
    /// `metadata_key`: namespace, then the path.
    pub metadata_key: Option<Box<[Box<str>]>>,
    /// `upstream_port_override`.
    pub port_override: Option<u16>,
    /// How long a host that nobody picks stays, at least. Default 5 s.
    pub cleanup_interval: Duration,
}

/// `Cluster.EdsClusterConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdsOptions {
    pub source: ConfigSource,
    /// The name to ask for: `service_name`, or the cluster's.
    pub service_name: Arc<str>,
    /// `service_name` as it was written, for `/clusters`; empty where it was not.
    pub written_name: Arc<str>,
}

/// `Cluster.DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsLookupFamily {
    /// IPv6, and IPv4 where it has none.
    #[default]
    Auto,
    V4Only,
    V6Only,
    /// IPv4, and IPv6 where it has none.
    V4Preferred,
    All,
}

/// What a DNS cluster goes by: the fields of a `Cluster` of type `STRICT_DNS` or `LOGICAL_DNS`, or a
/// `clusters.dns.v3.DnsCluster`.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsOptions {
    /// Default 5 s.
    pub refresh_rate: Duration,
    /// Back-off after failures: base and maximum. Both are `refresh_rate` where the proto has none.
    pub failure_refresh_rate: (Duration, Duration),
    /// A random time up to this is added to each refresh.
    pub jitter: Duration,
    pub respect_ttl: bool,
    /// Records that expire sooner are asked for again after this time. Default 0.
    pub min_refresh_rate: Duration,
    /// `all_addresses_in_single_endpoint`, `LOGICAL_DNS`: one endpoint, at the first address of the newest answer.
    pub single_endpoint: bool,
    pub lookup_family: DnsLookupFamily,
    pub use_tcp: bool,
    /// Name servers; empty means the system's.
    pub resolvers: Box<[std::net::SocketAddr]>,
}

/// The load balancing policy.
#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest(LeastRequestOptions),
    Random,
    /// By whoever finds the hosts: `ORIGINAL_DST`.
    ClusterProvided,
}

/// `LeastRequestLbConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct LeastRequestOptions {
    /// Default 2.
    pub choice_count: u32,
    /// Default 1.0; `None` stands for the default.
    pub active_request_bias: Option<Box<RuntimeDouble>>,
    /// `selection_method: FULL_SCAN`.
    pub full_scan: bool,
}

impl Default for LeastRequestOptions {
    fn default() -> Self {
        Self { choice_count: 2, active_request_bias: None, full_scan: false }
    }
}

/// `Thresholds.RetryBudget`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of active and pending requests; default 20.
    pub percent: f64,
    /// Default 3.
    pub min_retry_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_retry_concurrency: 3 }
    }
}

/// `CircuitBreakers.Thresholds` of one priority; defaults 1024, 1024, 1024, 3, unlimited pools.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    pub max_connection_pools: u32,
    pub retry_budget: Option<RetryBudget>,
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            max_connection_pools: u32::MAX,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// Both priorities' thresholds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CircuitBreakers {
    pub default: Thresholds,
    pub high: Thresholds,
    /// `per_host_thresholds.max_connections`, by priority.
    pub per_host_max_connections: [Option<u32>; 2],
}

impl CircuitBreakers {
    pub fn of(&self, priority: RoutingPriority) -> &Thresholds {
        match priority {
            RoutingPriority::Default => &self.default,
            RoutingPriority::High => &self.high,
        }
    }
}

/// What a connection towards a host is opened with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SocketOptions {
    pub keepalive: Option<TcpKeepalive>,
    /// `upstream_bind_config`, the bootstrap's where the cluster has none.
    pub bind: Option<BindConfig>,
}

/// The transport sockets of a cluster.
#[derive(Debug, Default)]
pub struct UpstreamTransport {
    /// `transport_socket`; `None`: plain.
    pub default: Option<Arc<ClientContext>>,
    /// `transport_socket_matches`; the first that fits an endpoint's metadata wins.
    pub matches: Vec<TransportMatch>,
}

/// pb `Cluster.TransportSocketMatch`.
#[derive(Debug)]
pub struct TransportMatch {
    pub name: Box<str>,
    /// Keys and values that the endpoint's `envoy.transport_socket_match` has to have.
    pub criteria: serde_json::Map<String, serde_json::Value>,
    /// `None`: plain.
    pub socket: Option<Arc<ClientContext>>,
}

impl UpstreamTransport {
    /// The match of an endpoint with this metadata; `None` for the default.
    pub fn find(&self, metadata: Option<&Metadata>) -> Option<&TransportMatch> {
        const KEY: &str = "envoy.transport_socket_match";
        let values = metadata.and_then(|all| all.get(KEY)).and_then(|v| v.as_object());
        self.matches.iter().find(|entry| {
            let mut criteria = entry.criteria.iter();
            criteria.all(|(key, value)| values.is_some_and(|v| v.get(key) == Some(value)))
        })
    }

    /// The socket of an endpoint with this metadata; `None`: plain.
    pub fn of(&self, metadata: Option<&Metadata>) -> Option<&Arc<ClientContext>> {
        match self.find(metadata) {
            Some(found) => found.socket.as_ref(),
            None => self.default.as_ref(),
        }
    }

    /// All that are TLS.
    pub fn contexts(&self) -> impl Iterator<Item = &Arc<ClientContext>> {
        self.default.iter().chain(self.matches.iter().filter_map(|entry| entry.socket.as_ref()))
    }

    /// The slots of all their secrets: what warming waits for.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretUse> {
        self.contexts().flat_map(|context| context.settings().common.slots())
    }

    /// Whether any of them is TLS.
    pub fn is_tls(&self) -> bool {
        self.contexts().next().is_some()
    }
}

/// A compiled cluster.
#[derive(Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    pub alt_stat_name: Option<Arc<str>>,
    pub discovery: Discovery,
    pub lb_policy: LbPolicy,
    /// `common_lb_config.healthy_panic_threshold`, in percent; default 50, 0 switches panic off.
    pub healthy_panic_threshold: u8,
    /// `zone_aware_lb_config.fail_traffic_on_panic`.
    pub fail_traffic_on_panic: bool,
    /// `locality_weighted_lb_config`: localities share the traffic by their weights.
    pub locality_weighted: bool,
    pub close_connections_on_host_set_change: bool,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// Bytes that may wait for one upstream stream; default 1 MiB, `usize::MAX` where there is no limit.
    pub per_connection_buffer_limit: usize,
    pub circuit_breakers: Arc<CircuitBreakers>,
    pub http: Arc<UpstreamHttpOptions>,
    pub socket: Arc<SocketOptions>,
    pub transport: UpstreamTransport,
    pub load_assignment: LoadAssignment,
    pub metadata: Option<Metadata>,
    /// `track_timeout_budgets` or `track_cluster_stats.timeout_budgets`.
    pub track_timeout_budgets: bool,
    /// `track_cluster_stats.request_response_sizes`.
    pub track_request_response_sizes: bool,
}

impl Cluster {
    /// `alt_stat_name` where there is one, else the name: what statistics and `%UPSTREAM_CLUSTER%` print.
    pub fn observability_name(&self) -> &Arc<str> {
        self.alt_stat_name.as_ref().unwrap_or(&self.name)
    }

    /// `http.common.max_requests_per_connection`, which replaces the deprecated field of the cluster.
    pub fn max_requests_per_connection(&self) -> Option<u32> {
        self.http.common.max_requests_per_connection
    }
}
