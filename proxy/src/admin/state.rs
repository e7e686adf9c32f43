//! What the admin interface asks of the server: a trait of plain data, answered on the control thread.
//!
//! Methods answer at once and cheaply; what may be long (clusters, configuration) is asked for piece by piece, so
//! that a dump never holds more than one piece and never blocks `/ready`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::config::compile::diagnostic::Diagnostic;
use crate::config::pb::envoy::admin::v3::CommandLineOptions;
use crate::stream_info::Address;
use crate::tls::SubjectAltName;

/// The server behind the admin interface.
pub trait AdminState: 'static {
    /// `/ready`, `/server_info`, `server.state`.
    fn server_state(&self) -> ServerState;

    /// Time since this process started.
    fn uptime(&self) -> Duration;

    /// `/server_info`: what the process was started with.
    fn command_line_options(&self) -> CommandLineOptions;

    /// `config.core.v3.Node` of the bootstrap with the command line's overrides, as protobuf.
    fn node(&self) -> Bytes;

    /// Number of downstream connections of all listeners (`server.total_connections`).
    fn total_connections(&self) -> u64 {
        0
    }

    /// `/listeners`: active listeners, in order of configuration.
    fn listeners(&self) -> Vec<ListenerStatus>;

    /// Names of all clusters, hot or cold.
    fn cluster_names(&self) -> Vec<Arc<str>>;

    /// One cluster for `/clusters`; `None` when it has gone since `cluster_names`.
    fn cluster(&self, name: &str) -> Option<ClusterStatus>;

    /// Configuration of one kind for `/config_dump`: handles to raw bytes, in Envoy's order (by name).
    fn config(&self, kind: ConfigKind) -> Vec<ConfigResource>;

    /// `/runtime`.
    fn runtime(&self) -> RuntimeValues;

    /// `/runtime_modify`: overrides in the admin layer; an empty value removes one. The error is the answer's body.
    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String>;

    /// `/certs`; empty without TLS.
    fn certificates(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }

    /// `server.days_until_first_cert_expiring`; `None` without certificates.
    fn days_until_first_certificate_expires(&self) -> Option<u64> {
        None
    }

    /// `/config_ignored`: every field that was applied without.
    fn ignored_configuration(&self) -> Vec<Diagnostic>;

    /// `/rejected`: resources whose newest version was not taken.
    fn rejected(&self) -> Vec<RejectedResource> {
        Vec::new()
    }

    /// `version_info` of a whole type in `/config_dump`; empty for kinds without one.
    fn config_version(&self, kind: ConfigKind) -> String {
        let _ = kind;
        String::new()
    }

    /// `/drain_listeners`.
    fn drain_listeners(&self, how: DrainListeners);

    /// `/healthcheck/fail`: the server answers health checks as failing until [`pass_health_checks`](Self::pass_health_checks).
    fn fail_health_checks(&self);

    /// `/healthcheck/ok`.
    fn pass_health_checks(&self);

    /// `/quitquitquit`: the answer is sent before the process exits.
    fn quit(&self);

    /// `/reopen_logs`.
    fn reopen_logs(&self);
}

/// `admin.v3.ServerInfo.State`; the numbers are `server.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    Live = 0,
    /// After `/healthcheck/fail`, or while the server drains.
    Draining = 1,
    /// Before the listeners' configuration is there.
    PreInitializing = 2,
    /// Targets are warming.
    Initializing = 3,
}

impl ServerState {
    /// Name in `/ready` and `/server_info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// Where a listener or host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    Socket(SocketAddr),
    /// A path, or a name in the abstract namespace with its leading `@`.
    Pipe(PathBuf),
    /// `envoy_internal_address`: server listener name and endpoint id.
    Internal(String, String),
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path) => path.display().fmt(f),
            Self::Internal(listener, endpoint) => write!(f, "envoy://{listener}/{endpoint}"),
        }
    }
}

impl From<&Address> for AdminAddress {
    fn from(address: &Address) -> Self {
        match address {
            Address::Ip(address) => Self::Socket(*address),
            Address::Pipe(path) => Self::Pipe(path.to_string().into()),
            Address::Internal(name) => Self::Internal(name.to_string(), String::new()),
        }
    }
}

/// One of `/listeners`.
#[derive(Debug, Clone)]
pub struct ListenerStatus {
    pub name: String,
    /// The first is the listener's, the others its additional addresses.
    pub addresses: Vec<AdminAddress>,
}

/// One of `/clusters`.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    pub name: Arc<str>,
    /// `alt_stat_name`, or the name.
    pub observability_name: String,
    pub added_via_api: bool,
    /// `eds_cluster_config.service_name`; empty when not set.
    pub eds_service_name: String,
    pub default_thresholds: Thresholds,
    pub high_thresholds: Thresholds,
    pub hosts: Vec<HostStatus>,
}

/// Circuit breakers of one priority, as configured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thresholds {
    pub max_connections: u64,
    pub max_pending_requests: u64,
    pub max_requests: u64,
    pub max_retries: u64,
}

/// One host of a cluster.
#[derive(Debug, Clone)]
pub struct HostStatus {
    pub address: AdminAddress,
    /// Host name of a DNS cluster, or `endpoint.hostname`.
    pub hostname: String,
    pub health: HostHealth,
    pub weight: u32,
    pub priority: u32,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub canary: bool,
    pub stats: HostStats,
}

/// Health flags of a host; none set is healthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostHealth {
    pub failed_active_health_check: bool,
    pub failed_outlier_check: bool,
    pub failed_eds_health: bool,
    pub degraded_eds_health: bool,
    pub degraded_active_health_check: bool,
    pub pending_active_health_check: bool,
    pub pending_dynamic_removal: bool,
    pub excluded_via_immediate_hc_fail: bool,
    pub active_health_check_timeout: bool,
    pub eds_status_draining: bool,
}

/// Counters of a host, over all workers.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostStats {
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_error: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
    pub cx_active: u64,
    pub rq_active: u64,
    pub rq_pending_active: u64,
}

/// Parts of `/config_dump`, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigKind {
    /// One resource, `envoy.config.bootstrap.v3.Bootstrap`.
    Bootstrap,
    Clusters,
    /// Asked for only with `include_eds`.
    Endpoints,
    Listeners,
    ScopedRoutes,
    Routes,
    Secrets,
    /// Filters whose configuration was discovered.
    Extensions,
}

/// Where a resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigState {
    /// From the bootstrap.
    Static,
    Active,
    Warming,
    Draining,
    /// No version of it was ever taken.
    Rejected,
}

/// One resource of `/config_dump`.
#[derive(Debug, Clone)]
pub struct ConfigResource {
    pub name: String,
    pub state: ConfigState,
    /// `version_info`; empty for static ones.
    pub version: String,
    pub last_updated: SystemTime,
    /// As in an `Any`: `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    pub type_url: &'static str,
    /// The message in protobuf form.
    pub value: Bytes,
    /// The newest update, when it was rejected.
    pub rejected: Option<RejectedUpdate>,
}

/// `admin.v3.UpdateFailureState`.
#[derive(Debug, Clone)]
pub struct RejectedUpdate {
    pub version: String,
    pub last_update_attempt: SystemTime,
    /// Field paths and reasons.
    pub details: String,
    /// The message in protobuf form.
    pub value: Bytes,
}

/// One of `/rejected`.
#[derive(Debug, Clone)]
pub struct RejectedResource {
    /// `cluster`, `listener` and so on.
    pub kind: &'static str,
    pub name: String,
    pub version: String,
    /// No good version has come since then.
    pub since: SystemTime,
    pub last_attempt: SystemTime,
    /// The version before serves.
    pub last_good_in_force: bool,
    /// Field path (empty: the whole resource) and reason.
    pub problems: Vec<(String, String)>,
}

/// `/runtime`: values by layer.
#[derive(Debug, Clone, Default)]
pub struct RuntimeValues {
    /// Names of layers, lowest first.
    pub layers: Vec<String>,
    /// Ordered by key.
    pub entries: Vec<RuntimeEntry>,
}

/// One key of the runtime.
#[derive(Debug, Clone)]
pub struct RuntimeEntry {
    pub key: String,
    /// The value in force.
    pub final_value: String,
    /// One for each layer; empty where a layer does not set the key.
    pub layer_values: Vec<String>,
}

/// Query of `/drain_listeners`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainListeners {
    /// Only listeners with `traffic_direction: INBOUND`.
    pub inbound_only: bool,
    /// Keep accepting for the drain time, closing connections as they finish, before listeners stop.
    pub graceful: bool,
    /// Drain connections, never stop the listeners.
    pub skip_exit: bool,
}

/// One of `/certs`.
#[derive(Debug, Clone, Default)]
pub struct CertificateStatus {
    pub ca: Vec<CertificateDetails>,
    pub chain: Vec<CertificateDetails>,
}

/// `admin.v3.CertificateDetails`.
#[derive(Debug, Clone)]
pub struct CertificateDetails {
    pub path: String,
    /// Lower-case hexadecimal.
    pub serial_number: String,
    pub subject_alt_names: Box<[SubjectAltName]>,
    pub valid_from: SystemTime,
    pub expiration_time: SystemTime,
}
