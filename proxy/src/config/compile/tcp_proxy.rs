//! pb TcpProxy to its compiled form.

use std::sync::Arc;
use std::time::Duration;

use super::access_log;
use super::core::{
    compile_duration_at_least, compile_optional_duration, compile_positive_duration,
    compile_u32_at_least,
};
use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use crate::config::tcp_proxy::{ClusterChoice, TcpProxy};

/// pb `idle_timeout`, default.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The least that several durations may be.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Compiles a TCP proxy; `cluster_by_sni`: behind the filter `sni_cluster`.
#[expect(deprecated, reason = "the older fields of access_log_options are read too")]
pub fn compile_tcp_proxy(
    pb: &pb::TcpProxy,
    cluster_by_sni: bool,
    path: &FieldPath<'_>,
) -> Option<TcpProxy> {
    if pb.stat_prefix.is_empty() {
        path.field("stat_prefix").error("value length must be at least 1 characters");
    }
    let reject = |set: bool, name: &str| {
        if set {
            path.field(name).error("is not supported");
        }
    };
    reject(pb.on_demand.is_some(), "on_demand");
    reject(pb.tunneling_config.is_some(), "tunneling_config");
    reject(pb.metadata_match.is_some(), "metadata_match");
    reject(!pb.proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs");
    reject(pb.upstream_connect_mode != 0, "upstream_connect_mode");
    let cluster = match &pb.cluster_specifier {
        Some(pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            Some(ClusterChoice::One(name.as_str().into()))
        }
        Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            compile_weighted(weighted, &path.field("weighted_clusters"))
        }
        None => {
            path.field("cluster_specifier").error("is required");
            None
        }
    };
    let idle_timeout = match &pb.idle_timeout {
        None => Some(DEFAULT_IDLE_TIMEOUT),
        some => compile_optional_duration(some.as_ref(), &path.field("idle_timeout"))
            .filter(|d| !d.is_zero()),
    };
    let options = pb.access_log_options.as_ref();
    let flush_interval = options
        .and_then(|o| o.access_log_flush_interval.as_ref())
        .or(pb.access_log_flush_interval.as_ref());
    Some(TcpProxy {
        stat_prefix: pb.stat_prefix.as_str().into(),
        cluster: cluster?,
        cluster_by_sni,
        idle_timeout,
        max_connection_duration: pb.max_downstream_connection_duration.as_ref().and_then(|age| {
            let path = path.field("max_downstream_connection_duration");
            compile_duration_at_least(age, MILLISECOND, &path)
        }),
        max_connect_attempts: compile_u32_at_least(
            pb.max_connect_attempts.as_ref(),
            1,
            &path.field("max_connect_attempts"),
        )
        .unwrap_or(1),
        backoff: pb
            .backoff_options
            .as_ref()
            .and_then(|backoff| compile_backoff(backoff, &path.field("backoff_options"))),
        access_log: access_log::compile_access_logs(&pb.access_log, "access_log", path),
        flush_log_on_connected: pb.flush_access_log_on_connected
            || options.is_some_and(|o| o.flush_access_log_on_connected),
        flush_log_on_start: options.is_some_and(|o| o.flush_access_log_on_start),
        access_log_flush_interval: compile_flush_interval(
            flush_interval,
            &path.field("access_log_flush_interval"),
        ),
    })
}

/// pb `core.v3.BackoffStrategy`: the base and the longest wait.
fn compile_backoff(
    pb: &pb_core::BackoffStrategy,
    path: &FieldPath<'_>,
) -> Option<(Duration, Duration)> {
    let base_path = path.field("base_interval");
    let Some(base) = &pb.base_interval else {
        base_path.error("value is required");
        return None;
    };
    let base = compile_duration_at_least(base, MILLISECOND, &base_path)?;
    let path = path.field("max_interval");
    let max = match &pb.max_interval {
        Some(max) => compile_positive_duration(max, &path)?,
        None => base * 10,
    };
    if max < base {
        path.error("max_interval must be greater than or equal to the base_interval");
        return None;
    }
    Some((base, max))
}

/// pb `access_log_flush_interval`: at least 1 ms; 0 is refused, as in Envoy.
pub(super) fn compile_flush_interval(
    pb: Option<&crate::config::pb::google::protobuf::Duration>,
    path: &FieldPath<'_>,
) -> Option<Duration> {
    compile_duration_at_least(pb?, MILLISECOND, path)
}

fn compile_weighted(
    pb: &pb::tcp_proxy::WeightedCluster,
    path: &FieldPath<'_>,
) -> Option<ClusterChoice> {
    let mut sum = 0u64;
    let mut totals: Vec<(u64, Arc<str>)> = Vec::new();
    for (i, cluster) in pb.clusters.iter().enumerate() {
        let at = path.index("clusters", i);
        if cluster.weight == 0 {
            at.field("weight").error("value must be greater than or equal to 1");
        }
        if cluster.metadata_match.is_some() {
            at.field("metadata_match").error("is not supported");
        }
        sum += u64::from(cluster.weight);
        totals.push((sum, cluster.name.as_str().into()));
    }
    if totals.is_empty() {
        path.field("clusters").error("value must contain at least 1 item(s)");
        return None;
    }
    Some(ClusterChoice::Weighted(totals))
}
