//! What responses count as, per cluster and virtual cluster. Follows Envoy's `CodeStatsImpl`.

use http::StatusCode;

use crate::cluster::WorkerCluster;
use crate::codec::head::ResponseHead;
use crate::codec::name::names;
use crate::hcm::stream::ActiveStream;
use crate::stats::names::ClusterStat;

/// An upstream's response head.
pub(super) fn response(s: &ActiveStream<'_>, cluster: &WorkerCluster, head: &ResponseHead) {
    codes(s, cluster, head.status, is_canary(head));
}

/// Milliseconds since all of a request had come to the router: what filters held back does not count.
pub(super) fn service_time(s: &ActiveStream<'_>) -> Option<u64> {
    let since = s.info.timing.last_downstream_rx.max(s.info.timing.routed);
    s.info.timing.last_downstream_rx?;
    Some(s.now.saturating_duration_since(since?).as_millis() as u64)
}

/// How long an upstream took to answer all of a request that had come whole.
pub(super) fn time(s: &ActiveStream<'_>, cluster: &WorkerCluster, canary: bool) {
    let Some(took) = service_time(s) else { return };
    cluster.stats.record(ClusterStat::UpstreamRqTime, took);
    cluster.codes.time(s.info.is_internal, canary, took);
}

/// A reply in the place of an upstream's response.
pub(super) fn local(s: &ActiveStream<'_>, cluster: &WorkerCluster, status: StatusCode) {
    codes(s, cluster, status, false);
}

fn codes(s: &ActiveStream<'_>, cluster: &WorkerCluster, status: StatusCode, canary: bool) {
    cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
    cluster.codes.charge(status.as_u16(), s.info.is_internal, canary);
}

/// Whether the response says that a canary made it.
pub(super) fn is_canary(head: &ResponseHead) -> bool {
    head.headers.get(&names::X_ENVOY_UPSTREAM_CANARY) == Some(b"true")
}
