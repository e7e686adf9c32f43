//! The compiled bootstrap: what the process itself is made of, beside its listeners and clusters.

use std::sync::Arc;

use bytes::Bytes;

use super::admin::AdminConfig;
use super::core::BindConfig;
use super::runtime::Runtime;
use super::source::{ApiSource, ConfigSource};
use super::stats::StatsConfig;
use crate::telemetry::Pattern;

/// `envoy.config.bootstrap.v3.Bootstrap` without its static resources.
#[derive(Debug)]
pub struct Bootstrap {
    pub node: Node,
    /// `admin`; without an address there is no admin interface.
    pub admin: Option<AdminConfig>,
    /// `stats_config`, `stats_flush_interval`, `deferred_stat_options` and `--stats-tag`.
    pub stats: StatsConfig,
    /// `application_log_config.log_format`; `--log-format` counts without it.
    pub log_pattern: Option<Pattern>,
    /// `layered_runtime`; to be published.
    pub runtime: Runtime,
    /// `cluster_manager.upstream_bind_config`
    pub upstream_bind: Option<BindConfig>,
    pub dynamic: DynamicResources,
}

/// `dynamic_resources`
#[derive(Debug, Clone, Default)]
pub struct DynamicResources {
    /// `ads_config`: the one stream for everything that names `ads` as its source.
    pub ads: Option<Arc<ApiSource>>,
    /// `cds_config`
    pub clusters: Option<ConfigSource>,
    /// `lds_config`
    pub listeners: Option<ConfigSource>,
}

/// `node`, with the command line's flags over it.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    pub zone: String,
    /// The whole message, encoded: what a control plane is told, and `/server_info` shows.
    pub bytes: Bytes,
}
