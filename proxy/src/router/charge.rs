//! What responses count as, per cluster and virtual cluster. Follows Envoy's `CodeStatsImpl`.

use std::time::Duration;

use http::StatusCode;

use crate::cluster::{Tracked, WorkerCluster};
use crate::codec::head::ResponseHead;
use crate::codec::name::names;
use crate::config::route::{Route, VirtualHost};
use crate::hcm::stream::ActiveStream;
use crate::stats::names::{ClusterBudgetStat, ClusterSizeStat, ClusterStat, RouteStat};

/// What counts the request beside its cluster, from here on.
pub(super) fn note_route(s: &mut ActiveStream<'_>, host: &VirtualHost, route: &Route) {
    s.route_stats.clear();
    if let Some(cluster) = host.virtual_cluster(&s.request) {
        // The rest has no name but in statistics.
        let named = !cluster.headers.is_empty();
        s.info.virtual_cluster_name = named.then(|| cluster.name.clone());
        s.route_stats.push(cluster.stats.clone());
    }
    s.route_stats.extend(route.stats.clone());
}

/// Counts for the request's virtual cluster and route.
pub(super) fn count(s: &ActiveStream<'_>, stat: RouteStat) {
    s.route_stats.iter().for_each(|stats| stats.inc(stat));
}

/// An upstream's response head.
pub(super) fn response(
    s: &ActiveStream<'_>,
    cluster: &WorkerCluster,
    head: &ResponseHead,
    canary: bool,
) {
    codes(s, cluster, head.status, canary);
}

/// Milliseconds since all of a request had come to the router: what filters held back does not count.
pub(super) fn service_time(s: &ActiveStream<'_>) -> Option<u64> {
    let received = s.info.timing.last_downstream_rx.or_else(|| s.down.ended_early());
    let since = received.max(s.info.timing.routed);
    received?;
    Some(s.now.saturating_duration_since(since?).as_millis() as u64)
}

/// How long an upstream took to answer all of a request that had come whole.
pub(super) fn time(s: &ActiveStream<'_>, cluster: &WorkerCluster, canary: bool) {
    if !counts_codes(s) {
        return;
    }
    let Some(took) = service_time(s) else { return };
    cluster.stats.record(ClusterStat::UpstreamRqTime, took);
    cluster.codes.time(s.info.is_internal, canary, took);
    s.route_stats.iter().for_each(|stats| stats.time(took));
}

/// A reply in the place of an upstream's response.
pub(super) fn local(s: &ActiveStream<'_>, cluster: &WorkerCluster, status: StatusCode) {
    codes(s, cluster, status, false);
}

/// `dynamic_stats` of the router; health checks that the proxy answers count nowhere.
fn counts_codes(s: &ActiveStream<'_>) -> bool {
    s.hcm.config.router.dynamic_stats && !s.info.is_health_check
}

fn codes(s: &ActiveStream<'_>, cluster: &WorkerCluster, status: StatusCode, canary: bool) {
    if !counts_codes(s) {
        return;
    }
    cluster.stats.inc(ClusterStat::UpstreamRqCompleted);
    cluster.codes.charge(status.as_u16(), s.info.is_internal, canary);
    s.route_stats.iter().for_each(|stats| stats.charge(status.as_u16()));
}

/// Whether the response says that a canary made it.
pub(super) fn is_canary(head: &ResponseHead) -> bool {
    head.headers.get(&names::X_ENVOY_UPSTREAM_CANARY) == Some(b"true")
}

/// A try's part in `track_cluster_stats`: its request, and its share of `per_try_timeout`.
pub(super) fn attempt(
    s: &ActiveStream<'_>,
    tracked: &Tracked,
    took: Duration,
    per_try: Option<Duration>,
) {
    if let Some(budgets) = &tracked.budgets {
        budgets.record(ClusterBudgetStat::PerTryPercentUsed, percent(took, per_try));
    }
    if let Some(sizes) = &tracked.sizes {
        let head = &s.request;
        let pseudo = [
            (":authority", head.authority().map_or(0, <[u8]>::len)),
            (":method", head.method.as_str().len()),
            (":path", head.path().map_or(0, <[u8]>::len)),
            (":scheme", head.scheme.map_or(0, |scheme| scheme.as_str().len())),
        ];
        let bytes: usize = pseudo.iter().map(|(name, value)| name.len() + value).sum();
        let (bytes, lines) = (bytes + head.headers.byte_size(), pseudo.len() + head.headers.len());
        sizes.record(ClusterSizeStat::RqHeadersSize, bytes as u64);
        sizes.record(ClusterSizeStat::RqHeadersCount, lines as u64);
        sizes.record(ClusterSizeStat::RqBodySize, s.info.bytes_received);
    }
}

/// Bytes and lines of a response's head, as Envoy counts them.
pub(super) fn head_size(head: &ResponseHead) -> (u64, u64) {
    let status = ":status200".len();
    ((status + head.headers.byte_size()) as u64, head.headers.len() as u64 + 1)
}

/// A try's response in `request_response_sizes`.
pub(super) fn response_size(s: &ActiveStream<'_>, tracked: &Tracked, bytes: u64, lines: u64) {
    if let Some(sizes) = &tracked.sizes {
        sizes.record(ClusterSizeStat::RsHeadersSize, bytes);
        sizes.record(ClusterSizeStat::RsHeadersCount, lines);
        sizes.record(ClusterSizeStat::RsBodySize, s.info.bytes_sent);
    }
}

/// How much of the route's timeout was needed, once there is a whole response or a timeout.
pub(super) fn budget(s: &ActiveStream<'_>, cluster: &WorkerCluster, timeout: Option<Duration>) {
    if let Some(budgets) = cluster.tracked.as_ref().and_then(|t| t.budgets.as_ref()) {
        let since = s.info.timing.last_downstream_rx.unwrap_or(s.info.start);
        let took = s.now.saturating_duration_since(since);
        budgets.record(ClusterBudgetStat::PercentUsed, percent(took, timeout));
    }
}

/// Of no limit nothing is used.
fn percent(took: Duration, limit: Option<Duration>) -> u64 {
    let limit = limit.map_or(0, |limit| limit.as_millis() as u64);
    (took.as_millis() as u64 * 100).checked_div(limit).unwrap_or(0)
}
