//! Envoy's statistics by scope: names, kinds and order as Envoy 1.40 prints them.

mod cluster;
mod http;
mod listener;
mod route;
mod server;
mod tls;
mod xds;

pub use cluster::{
    CircuitBreakerStat, ClusterBudgetStat, ClusterEndpointStat, ClusterLbStat, ClusterSizeStat,
    ClusterStat, ClusterSubsetStat, ClusterUpdateStat,
};
pub use http::{Http1Stat, Http2Stat, HttpStat, HttpTracingStat, RouterStat};
pub use listener::{
    HttpInspectorStat, ListenerConfigStat, ListenerHttpStat, ListenerManagerStat, ListenerStat,
    ListenerWorkerStat, ProxyProtocolErrorStat, ProxyProtocolStat, TcpProxyStat, TlsInspectorStat,
};
pub use route::{RouteStat, RouteTimeStat};
pub use server::{
    ClusterManagerStat, DnsStat, FilesystemStat, OverloadStat, RuntimeStat, ServerStat,
    ThreadClusterStat, WatchdogStat,
};
pub use tls::{SslFactoryStat, SslStat};
pub use xds::{EdsStat, ExtensionStat, RdsStat, ReloadStat, SubscriptionStat};
