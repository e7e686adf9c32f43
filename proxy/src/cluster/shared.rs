//! One cluster as all workers share it: configuration, circuit breakers, the newest host set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHashMap;

use super::circuit_breaker::{Breakers, Resource};
use super::host::{Health, HostSet};
use super::original_dst::Destinations;
use crate::config::cluster::{Cluster, Discovery, RoutingPriority};
use crate::stats::names::{
    CircuitBreakerStat, ClusterBudgetStat, ClusterEndpointStat, ClusterLbStat, ClusterSizeStat,
    ClusterStat, ClusterSubsetStat, ClusterUpdateStat, Http1Stat, Http2Stat,
};
use crate::stats::{Registry, Scope, SharedBlock};
use crate::tls::stats::SslStats;

/// What all workers share of one cluster.
#[derive(Debug)]
pub struct SharedCluster {
    pub config: Arc<Cluster>,
    pub breakers: Breakers,
    pub scope: Scope,
    /// Statistics of the upstream codecs, which exist once a connection spoke HTTP/1 or HTTP/2.
    codecs: [OnceLock<Scope>; 2],
    /// `None` until somebody asks: the hosts of an unused static cluster are not made.
    hosts: ArcSwapOption<HostSet>,
    /// Moves with every published host set.
    generation: AtomicU64,
    /// The hosts of an `ORIGINAL_DST` cluster, in place of `hosts`.
    pub(super) destinations: Destinations,
}

impl SharedCluster {
    pub fn new(config: Arc<Cluster>, registry: &Registry) -> Self {
        let scope = registry.scope(&format!("cluster.{}", config.observability_name()));
        scope.declare::<ClusterStat>();
        scope.declare::<ClusterLbStat>();
        scope.declare::<ClusterSubsetStat>();
        scope.declare::<CircuitBreakerStat>();
        scope.declare::<ClusterEndpointStat>();
        scope.declare::<ClusterUpdateStat>();
        if config.track_timeout_budgets {
            scope.declare::<ClusterBudgetStat>();
        }
        if config.track_request_response_sizes {
            scope.declare::<ClusterSizeStat>();
        }
        if config.transport.is_tls() {
            SslStats::declare(&scope, false);
            config.transport.contexts().for_each(|context| context.count_in(&scope));
        }
        let cluster = Self {
            breakers: Breakers::new(config.circuit_breakers.clone()),
            config,
            scope,
            codecs: Default::default(),
            hosts: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            destinations: Destinations::default(),
        };
        cluster.update_stats().gauge_set(ClusterUpdateStat::WarmingState, 0);
        cluster.write_first_membership();
        cluster.write_breaker_gauges();
        cluster
    }

    /// Makes `cluster.<name>.http1` exist, or `http2`.
    pub fn declare_codec(&self, http2: bool) {
        self.codecs[usize::from(http2)].get_or_init(|| {
            let codec = self.scope.scope(if http2 { "http2" } else { "http1" });
            if http2 {
                codec.declare::<Http2Stat>();
            } else {
                codec.declare::<Http1Stat>();
            }
            codec
        });
    }

    /// Counted where the cluster is updated, by threads that are not workers.
    pub fn update_stats(&self) -> SharedBlock<ClusterUpdateStat> {
        self.scope.shared()
    }

    /// The newest host set.
    pub fn hosts(&self) -> Arc<HostSet> {
        if let Some(set) = self.hosts.load_full() {
            return set;
        }
        let made = Arc::new(self.first_hosts());
        // Another thread may have been faster: all must see the same hosts.
        let previous = self.hosts.compare_and_swap(&None::<Arc<HostSet>>, Some(made.clone()));
        previous.as_ref().map_or(made, Arc::clone)
    }

    /// The newest host set where somebody has used it.
    pub fn hosts_if_made(&self) -> Option<Arc<HostSet>> {
        if matches!(self.config.discovery, Discovery::OriginalDst(_)) {
            let all = self.destinations.all();
            return Some(Arc::new(HostSet::from_hosts(&self.config, all)));
        }
        self.hosts.load_full()
    }

    fn first_hosts(&self) -> HostSet {
        match self.config.discovery {
            Discovery::Static => HostSet::of_static(&self.config, None),
            Discovery::StrictDns(_) | Discovery::OriginalDst(_) => {
                HostSet::build(&self.config, None, Vec::new())
            }
        }
    }

    /// Changes whenever a new host set is there.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Puts a new host set in force for all workers.
    pub fn publish(&self, set: HostSet) {
        self.write_membership(
            set.hosts.len(),
            set.count(Health::Healthy),
            set.count(Health::Degraded),
        );
        self.hosts.store(Some(Arc::new(set)));
        self.bump_generation();
    }

    /// Makes the workers look at their hosts again.
    pub(super) fn bump_generation(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A static cluster's membership, without making its hosts.
    fn write_first_membership(&self) {
        let count = |health| {
            let endpoints = self.config.load_assignment.endpoints();
            endpoints.filter(|(_, e)| Health::from(e.health) == health).count()
        };
        match self.config.discovery {
            Discovery::Static => {
                let (healthy, degraded) = (count(Health::Healthy), count(Health::Degraded));
                let total = healthy + degraded + count(Health::Unhealthy);
                if total > 0 {
                    let stats = self.write_membership(total, healthy, degraded);
                    stats.add(ClusterEndpointStat::DefaultTotalMatchCount, total as u64);
                }
            }
            Discovery::StrictDns(_) | Discovery::OriginalDst(_) => {}
        }
    }

    pub(super) fn write_membership(
        &self,
        total: usize,
        healthy: usize,
        degraded: usize,
    ) -> SharedBlock<ClusterEndpointStat> {
        let stats = self.scope.shared::<ClusterEndpointStat>();
        stats.inc(ClusterEndpointStat::MembershipChange);
        stats.gauge_set(ClusterEndpointStat::MembershipTotal, total as u64);
        stats.gauge_set(ClusterEndpointStat::MembershipHealthy, healthy as u64);
        stats.gauge_set(ClusterEndpointStat::MembershipDegraded, degraded as u64);
        stats.gauge_set(ClusterEndpointStat::MembershipExcluded, 0);
        stats
    }

    /// Writes the `circuit_breakers.*` gauges; to be called before statistics are read. Nothing is written, and
    /// no block made, for breakers that were never used.
    pub fn write_breaker_gauges(&self) {
        use CircuitBreakerStat as Stat;
        const GAUGES: [(RoutingPriority, Resource, Stat, Stat); 10] = {
            use Resource::{ConnectionPools, Connections, PendingRequests, Requests, Retries};
            use RoutingPriority::{Default, High};
            [
                (Default, Connections, Stat::DefaultCxOpen, Stat::DefaultRemainingCx),
                (Default, ConnectionPools, Stat::DefaultCxPoolOpen, Stat::DefaultRemainingCxPools),
                (Default, Requests, Stat::DefaultRqOpen, Stat::DefaultRemainingRq),
                (
                    Default,
                    PendingRequests,
                    Stat::DefaultRqPendingOpen,
                    Stat::DefaultRemainingPending,
                ),
                (Default, Retries, Stat::DefaultRqRetryOpen, Stat::DefaultRemainingRetries),
                (High, Connections, Stat::HighCxOpen, Stat::HighRemainingCx),
                (High, ConnectionPools, Stat::HighCxPoolOpen, Stat::HighRemainingCxPools),
                (High, Requests, Stat::HighRqOpen, Stat::HighRemainingRq),
                (High, PendingRequests, Stat::HighRqPendingOpen, Stat::HighRemainingPending),
                (High, Retries, Stat::HighRqRetryOpen, Stat::HighRemainingRetries),
            ]
        };
        let mut stats = None;
        for (priority, resource, open, remaining) in GAUGES {
            let used = self.breakers.was_used(resource, priority);
            let track = self.breakers.thresholds(priority).track_remaining;
            if !used && !track {
                continue;
            }
            let stats = stats.get_or_insert_with(|| self.scope.shared::<Stat>());
            if used {
                stats.gauge_set(open, u64::from(self.breakers.is_open(resource, priority)));
            }
            if track {
                stats.gauge_set(remaining, self.breakers.remaining(resource, priority));
            }
        }
    }
}

/// Every cluster of the process by name; read by workers, changed by the control thread.
#[derive(Debug, Default)]
pub struct ClusterMap {
    clusters: ArcSwap<FxHashMap<Arc<str>, Arc<SharedCluster>>>,
}

impl ClusterMap {
    pub fn new(clusters: impl IntoIterator<Item = Arc<SharedCluster>>) -> Self {
        let by_name = clusters.into_iter().map(|c| (c.config.name.clone(), c)).collect();
        Self { clusters: ArcSwap::from_pointee(by_name) }
    }

    pub fn get(&self, name: &str) -> Option<Arc<SharedCluster>> {
        self.clusters.load().get(name).cloned()
    }

    /// All clusters, in no order.
    pub fn all(&self) -> Vec<Arc<SharedCluster>> {
        self.clusters.load().values().cloned().collect()
    }

    /// See `SharedCluster::write_breaker_gauges`.
    pub fn write_breaker_gauges(&self) {
        self.clusters.load().values().for_each(|cluster| cluster.write_breaker_gauges());
    }
}
