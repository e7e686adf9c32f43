//! One cluster as all workers share it: configuration, circuit breakers, the newest host set.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use prost::Message as _;
use rustc_hash::{FxHashMap, FxHasher};

use super::circuit_breaker::{Breakers, Resource};
use super::host::{Health, HostSet};
use super::membership::{Change, Members, compare};
use super::original_dst::Destinations;
use crate::config::cluster::{Cluster, Discovery, RoutingPriority};
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::endpoint::compile_discovered_assignment;
use crate::config::endpoint::LoadAssignment;
use crate::config::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::config::runtime;
use crate::stats::names::{
    CircuitBreakerStat, ClusterBudgetStat, ClusterEndpointStat, ClusterLbStat, ClusterSizeStat,
    ClusterStat, ClusterSubsetStat, ClusterUpdateStat, Http1Stat, Http2Stat,
};
use crate::stats::{Registry, Scope, SharedBlock};
use crate::tls::stats::SslStats;

const MILLION: u64 = 1_000_000;

/// A request is dropped before it gets a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropOverload {
    /// A share of the requests is.
    Some,
    /// Every request is.
    All,
}

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
    /// Millionths of the requests that are dropped (`drop_overloads`).
    drop_overload: AtomicU32,
    /// EDS: the assignment of a cluster whose hosts nobody has asked for yet.
    assignment: Mutex<Option<Bytes>>,
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
            breakers: Breakers::new(config.name.clone(), config.circuit_breakers.clone()),
            drop_overload: AtomicU32::new(config.load_assignment.drop_overload),
            config,
            scope,
            codecs: Default::default(),
            hosts: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            destinations: Destinations::default(),
            assignment: Mutex::new(None),
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
        // One thread makes them, from the newest assignment: all must see the same hosts.
        let mut assignment = self.assignment();
        if let Some(set) = self.hosts.load_full() {
            return set;
        }
        let made = Arc::new(self.first_hosts(assignment.take().as_deref()));
        self.hosts.store(Some(made.clone()));
        made
    }

    fn assignment(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new assignment of endpoints: `compiled` of `bytes`. Where nobody has used the cluster only the bytes are kept.
    /// Gives whether the hosts of somebody have changed.
    pub fn assign(&self, compiled: &LoadAssignment, bytes: &Bytes) -> bool {
        self.drop_overload.store(compiled.drop_overload, Ordering::Relaxed);
        let members = Members::of(compiled);
        if self.hosts.load().is_none() && self.keep(compiled, bytes, members) {
            return false;
        }
        let old = self.hosts();
        let (new, change) = HostSet::of_assignment(&self.config, compiled, Some(&old));
        self.note_assignment(members, old.priorities.len() as u32 - 1, change);
        if change.is_seen {
            self.publish(new, change);
        }
        change.is_seen
    }

    /// Keeps the bytes for whoever asks first; `false` where somebody has asked by now. Only this thread assigns.
    fn keep(&self, compiled: &LoadAssignment, bytes: &Bytes, members: Members) -> bool {
        let waiting = self.assignment().clone();
        let old = waiting.as_deref().map(decode_assignment);
        let change = compare(old.as_ref(), compiled);
        let mut waiting = self.assignment();
        if self.hosts.load().is_some() {
            return false;
        }
        *waiting = Some(bytes.clone());
        drop(waiting);
        let last = old.map_or(0, |old| Members::of(&old).last);
        self.note_assignment(members, last, change);
        self.write_membership(change.priorities, members.total, members.healthy, members.degraded);
        true
    }

    /// `last`: the last priority before.
    fn note_assignment(&self, members: Members, last: u32, change: Change) {
        let heaviest = if last > members.last { 1 } else { members.heaviest };
        let stats = self.scope.shared::<ClusterEndpointStat>();
        stats.gauge_set(ClusterEndpointStat::MaxHostWeight, heaviest.into());
        if !change.is_seen {
            self.update_stats().inc(ClusterUpdateStat::UpdateNoRebuild);
        }
    }

    /// Whether a request is one of those that are to be dropped.
    #[inline]
    pub fn drops(&self, random: impl FnOnce() -> u64) -> Option<DropOverload> {
        let share = self.drop_overload.load(Ordering::Relaxed);
        if share == 0 {
            return None;
        }
        let limit = runtime::integer(runtime::DROP_OVERLOAD_LIMIT);
        let limit = limit.map_or(MILLION, |percent| percent.min(100) * MILLION / 100);
        match u64::from(share).min(limit) {
            MILLION => Some(DropOverload::All),
            share => (random() % MILLION < share).then_some(DropOverload::Some),
        }
    }

    /// The assignment that nobody has used yet.
    pub fn unused_assignment(&self) -> Option<LoadAssignment> {
        self.assignment().as_deref().map(decode_assignment)
    }

    /// The newest host set where somebody has used it.
    pub fn hosts_if_made(&self) -> Option<Arc<HostSet>> {
        if matches!(self.config.discovery, Discovery::OriginalDst(_)) {
            let all = self.destinations.all();
            return Some(Arc::new(HostSet::from_hosts(
                &self.config,
                &self.config.load_assignment,
                all,
            )));
        }
        self.hosts.load_full()
    }

    fn first_hosts(&self, assignment: Option<&[u8]>) -> HostSet {
        if let Some(bytes) = assignment {
            return HostSet::of_assignment(&self.config, &decode_assignment(bytes), None).0;
        }
        match self.config.discovery {
            Discovery::Static => HostSet::of_static(&self.config, None),
            Discovery::Dns(_) | Discovery::Eds(_) | Discovery::OriginalDst(_) => {
                let assignment = &self.config.load_assignment;
                HostSet::build(&self.config, assignment, None, Vec::new()).0
            }
        }
    }

    /// Changes whenever a new host set is there.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Puts a new host set in force for all workers.
    pub fn publish(&self, set: HostSet, change: Change) {
        self.write_membership_of(&set, change);
        self.hosts.store(Some(Arc::new(set)));
        self.bump_generation();
    }

    fn write_membership_of(&self, set: &HostSet, change: Change) {
        let (healthy, degraded) = (set.count(Health::Healthy), set.count(Health::Degraded));
        self.write_membership(change.priorities, set.hosts.len(), healthy, degraded);
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
                    let localities = self.config.load_assignment.localities.iter();
                    let used = localities.filter(|locality| !locality.endpoints.is_empty());
                    let priorities: BTreeSet<u32> =
                        used.map(|locality| locality.priority).collect();
                    let joined = priorities.len() as u64;
                    let stats = self.write_membership(joined, total, healthy, degraded);
                    stats.add(ClusterEndpointStat::DefaultTotalMatchCount, total as u64);
                }
            }
            Discovery::Dns(_) | Discovery::Eds(_) | Discovery::OriginalDst(_) => {}
        }
    }

    /// `changes`: of how many priorities.
    pub(super) fn write_membership(
        &self,
        changes: u64,
        total: usize,
        healthy: usize,
        degraded: usize,
    ) -> SharedBlock<ClusterEndpointStat> {
        let stats = self.scope.shared::<ClusterEndpointStat>();
        stats.add(ClusterEndpointStat::MembershipChange, changes);
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

/// An assignment that has compiled before.
fn decode_assignment(bytes: &[u8]) -> LoadAssignment {
    let found = Diagnostics::default();
    ClusterLoadAssignment::decode(bytes)
        .map(|pb| compile_discovered_assignment(&pb, &found.root()))
        .unwrap_or_default()
}

/// How many parts the map of clusters has: a change copies one of them.
const SHARDS: usize = 64;

type Shard = FxHashMap<Arc<str>, Arc<SharedCluster>>;

/// Every cluster of the process by name; read by workers, changed by the control thread.
///
/// In parts, so that one changed cluster among thousands costs a copy of a few dozen pointers.
pub struct ClusterMap {
    shards: Box<[ArcSwap<Shard>]>,
}

impl Default for ClusterMap {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect() }
    }
}

impl fmt::Debug for ClusterMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len: usize = self.shards.iter().map(|shard| shard.load().len()).sum();
        write!(f, "ClusterMap({len})")
    }
}

impl ClusterMap {
    pub fn new(clusters: impl IntoIterator<Item = Arc<SharedCluster>>) -> Self {
        let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::default()).collect();
        for cluster in clusters {
            let name = cluster.config.name.clone();
            shards[shard_of(&name)].insert(name, cluster);
        }
        Self { shards: shards.into_iter().map(ArcSwap::from_pointee).collect() }
    }

    fn shard(&self, name: &str) -> &ArcSwap<Shard> {
        &self.shards[shard_of(name)]
    }

    pub fn get(&self, name: &str) -> Option<Arc<SharedCluster>> {
        self.shard(name).load().get(name).cloned()
    }

    /// Puts a cluster in force. Only one thread may change the map.
    pub fn insert(&self, cluster: Arc<SharedCluster>) {
        let shard = self.shard(&cluster.config.name);
        let mut changed = Shard::clone(&shard.load());
        changed.insert(cluster.config.name.clone(), cluster);
        shard.store(Arc::new(changed));
    }

    /// Takes a cluster out. Only one thread may change the map.
    pub fn remove(&self, name: &str) {
        let shard = self.shard(name);
        let mut changed = Shard::clone(&shard.load());
        changed.remove(name);
        shard.store(Arc::new(changed));
    }

    /// All clusters, in no order.
    pub fn all(&self) -> Vec<Arc<SharedCluster>> {
        let shards = self.shards.iter();
        shards.flat_map(|shard| shard.load().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// See `SharedCluster::write_breaker_gauges`.
    pub fn write_breaker_gauges(&self) {
        for shard in &self.shards {
            shard.load().values().for_each(|cluster| cluster.write_breaker_gauges());
        }
    }
}

fn shard_of(name: &str) -> usize {
    let mut hasher = FxHasher::default();
    name.hash(&mut hasher);
    // The upper bits are the well mixed ones.
    (hasher.finish() >> 32) as usize % SHARDS
}
