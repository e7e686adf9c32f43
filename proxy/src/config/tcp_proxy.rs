//! Compiled TCP proxy. From pb `extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLogConfigs;

/// Forwards a connection to a cluster.
#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    pub cluster: ClusterChoice,
    /// A connection with a server name goes to the cluster of that name instead. pb
    /// `extensions.filters.network.sni_cluster.v3.SniCluster`.
    pub cluster_by_sni: bool,
    /// No byte in either direction; `None` never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    /// First and longest wait between attempts.
    pub backoff: Option<(Duration, Duration)>,
    pub access_log: AccessLogConfigs,
    /// A line when the upstream connection stands.
    pub flush_log_on_connected: bool,
    /// A line when the connection begins.
    pub flush_log_on_start: bool,
    /// A line each time that so much has passed, from the beginning on.
    pub access_log_flush_interval: Option<Duration>,
}

/// One cluster, or several by weight.
#[derive(Debug)]
pub enum ClusterChoice {
    One(Arc<str>),
    /// Running totals; the last is the sum.
    Weighted(Vec<(u64, Arc<str>)>),
}

impl ClusterChoice {
    /// `random` decides among weighted ones.
    pub fn pick(&self, random: u64) -> &Arc<str> {
        match self {
            Self::One(name) => name,
            Self::Weighted(totals) => {
                let sum = totals.last().map_or(1, |(total, _)| *total);
                let point = random % sum;
                let at = totals.partition_point(|(total, _)| *total <= point);
                &totals[at].1
            }
        }
    }
}
