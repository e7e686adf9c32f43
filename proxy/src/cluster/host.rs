//! Hosts of a cluster and their sets: shared by all workers.
//!
//! A `Host` lives as long as its address is in the cluster (`membership`); its counts are relaxed atomics, because Envoy
//! counts over all workers. A `HostSet` is immutable: any change of members, weights or health is a new set.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use rustc_hash::FxHasher;

use super::locality::{LocalityHosts, localities};
use super::membership::{Change, merge};
use crate::config::cluster::Cluster;
use crate::config::core::{ConfigAddress, Locality, Metadata, MetadataMap};
use crate::config::endpoint::{HealthStatus, LoadAssignment, LocalityEndpoints};
use crate::config::runtime;
use crate::load_balancer::priority::{PriorityHealth, PriorityLoads};
use crate::stream_info::Address;
use crate::tls::ClientContext;

/// What load balancers make of a host's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

impl From<HealthStatus> for Health {
    fn from(status: HealthStatus) -> Self {
        match status {
            HealthStatus::Unknown | HealthStatus::Healthy => Self::Healthy,
            HealthStatus::Degraded => Self::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => {
                Self::Unhealthy
            }
        }
    }
}

/// A host's counts over all workers, as `/clusters` shows them.
#[derive(Debug, Default)]
pub struct HostStats {
    pub cx_active: AtomicU32,
    pub rq_active: AtomicU32,
    pub rq_pending_active: AtomicU32,
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
}

/// One upstream host.
#[derive(Debug)]
pub struct Host {
    pub address: Address,
    /// `Endpoint.hostname`, or the name that was resolved.
    pub hostname: Option<Arc<str>>,
    pub locality: Arc<Locality>,
    pub stats: HostStats,
    metadata: ArcSwapOption<MetadataMap>,
    /// The cluster's transport socket for it.
    transport: ArcSwapOption<ClientContext>,
    canary: AtomicBool,
    priority: AtomicU32,
    weight: AtomicU32,
    /// `HealthStatus` as the control plane gave it.
    health: AtomicU8,
    /// No longer in the cluster: connections are not given back to a pool.
    removed: AtomicBool,
    /// Was picked since `take_picked`: what is cleaned up of an `ORIGINAL_DST` cluster was not.
    picked: AtomicBool,
}

impl Host {
    pub(super) fn new(cluster: &Cluster, spec: HostSpec) -> Self {
        Self {
            canary: AtomicBool::new(is_canary(spec.metadata.as_ref())),
            transport: ArcSwapOption::new(cluster.transport.of(spec.metadata.as_ref()).cloned()),
            address: spec.address,
            hostname: spec.hostname,
            locality: spec.locality,
            metadata: ArcSwapOption::new(spec.metadata),
            priority: AtomicU32::new(spec.priority),
            stats: HostStats::default(),
            weight: AtomicU32::new(spec.weight),
            health: AtomicU8::new(spec.health as u8),
            removed: AtomicBool::new(false),
            picked: AtomicBool::new(false),
        }
    }

    /// `LbEndpoint.metadata`
    pub fn metadata(&self) -> Option<Metadata> {
        self.metadata.load_full()
    }

    /// The cluster's transport socket for it; `None`: plain. A connection keeps the one that it was opened with.
    pub fn transport(&self) -> Option<Arc<ClientContext>> {
        self.transport.load_full()
    }

    /// Whether `transport` is TLS.
    pub fn is_tls(&self) -> bool {
        self.transport.load().is_some()
    }

    /// Endpoint metadata `envoy.lb: {canary: true}`.
    pub fn is_canary(&self) -> bool {
        self.canary.load(Ordering::Relaxed)
    }

    /// 0 is the highest.
    pub fn priority(&self) -> u32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// `load_balancing_weight`, at least 1.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub fn health_status(&self) -> HealthStatus {
        match self.health.load(Ordering::Relaxed) {
            1 => HealthStatus::Healthy,
            2 => HealthStatus::Unhealthy,
            3 => HealthStatus::Draining,
            4 => HealthStatus::Timeout,
            5 => HealthStatus::Degraded,
            _ => HealthStatus::Unknown,
        }
    }

    pub fn health(&self) -> Health {
        self.health_status().into()
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(super) fn mark_removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    /// Stores only where that changes something: the cache line is every worker's.
    pub(super) fn mark_picked(&self) {
        if !self.picked.load(Ordering::Relaxed) {
            self.picked.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_picked(&self) -> bool {
        self.picked.swap(false, Ordering::Relaxed)
    }

    /// Whether it goes on as the host of `spec`: the rest is changed in place.
    pub(super) fn is_same(&self, spec: &HostSpec) -> bool {
        self.address == spec.address
            && self.hostname == spec.hostname
            && self.locality == spec.locality
    }

    /// Takes what is said anew; gives whether balancers have to look again.
    pub(super) fn update(&self, cluster: &Cluster, spec: HostSpec) -> bool {
        let health = self.health();
        self.health.store(spec.health as u8, Ordering::Relaxed);
        let mut changed = self.health() != health;
        changed |= self.weight.swap(spec.weight, Ordering::Relaxed) != spec.weight;
        changed |= self.priority.swap(spec.priority, Ordering::Relaxed) != spec.priority;
        if *self.metadata.load() != spec.metadata {
            changed = true;
            self.canary.store(is_canary(spec.metadata.as_ref()), Ordering::Relaxed);
            self.transport.store(cluster.transport.of(spec.metadata.as_ref()).cloned());
            self.metadata.store(spec.metadata);
        }
        changed
    }
}

fn is_canary(metadata: Option<&Metadata>) -> bool {
    let lb = metadata.and_then(|metadata| metadata.get("envoy.lb"));
    let canary = lb.and_then(|lb| lb.get("canary")).and_then(serde_json::Value::as_bool);
    canary.unwrap_or(false)
}

/// What a host is made from.
#[derive(Debug, Clone)]
pub struct HostSpec {
    pub address: Address,
    pub hostname: Option<Arc<str>>,
    pub locality: Arc<Locality>,
    pub metadata: Option<Metadata>,
    pub priority: u32,
    pub weight: u32,
    pub health: HealthStatus,
}

/// Which hosts of a priority may be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    All,
    Healthy,
    Degraded,
}

/// The hosts of one priority: indices into `HostSet::hosts`.
#[derive(Debug)]
pub struct PrioritySet {
    all: Range<u32>,
    /// `None` where all are healthy.
    healthy: Option<Box<[u32]>>,
    degraded: Box<[u32]>,
    /// Where localities are weighted.
    localities: Box<[LocalityHosts]>,
}

/// A list of host indices.
#[derive(Debug, Clone, Copy)]
pub enum Candidates<'a> {
    Range(u32, u32),
    List(&'a [u32]),
}

impl Candidates<'_> {
    pub fn len(self) -> usize {
        match self {
            Self::Range(start, end) => (end - start) as usize,
            Self::List(list) => list.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The host index at a position below `len`.
    pub fn at(self, position: usize) -> u32 {
        match self {
            Self::Range(start, _) => start + position as u32,
            Self::List(list) => list[position],
        }
    }
}

impl PrioritySet {
    pub fn candidates(&self, source: Source) -> Candidates<'_> {
        match source {
            Source::All => Candidates::Range(self.all.start, self.all.end),
            Source::Healthy => match &self.healthy {
                Some(list) => Candidates::List(list),
                None => Candidates::Range(self.all.start, self.all.end),
            },
            Source::Degraded => Candidates::List(&self.degraded),
        }
    }

    /// Its localities, where they are weighted: one is chosen first, then a host in it.
    pub fn localities(&self) -> &[LocalityHosts] {
        &self.localities
    }
}

/// All hosts of a cluster at one moment, with the load of each priority.
#[derive(Debug)]
pub struct HostSet {
    /// Hosts by priority, then in configuration order.
    pub hosts: Box<[Arc<Host>]>,
    pub priorities: Box<[PrioritySet]>,
    pub loads: PriorityLoads,
    /// Weights differ between hosts.
    weighted: bool,
    /// Of what the assignment says beside its hosts.
    policy: u64,
}

impl HostSet {
    /// A set of hosts; those of `old` that are the same stay, with their counts. Hosts that are gone are marked.
    pub fn build(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        old: Option<&Self>,
        specs: Vec<HostSpec>,
    ) -> (Self, Change) {
        let (hosts, mut change) = merge(cluster, old, specs);
        let new = Self::from_hosts(cluster, assignment, hosts);
        change.is_seen |= old.is_none_or(|old| old.policy != new.policy);
        (new, change)
    }

    pub(super) fn from_hosts(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        hosts: Box<[Arc<Host>]>,
    ) -> Self {
        let count = hosts.last().map_or(1, |host| host.priority() + 1);
        let mut priorities = Vec::with_capacity(count as usize);
        let mut health = Vec::with_capacity(count as usize);
        for priority in 0..count {
            let start = hosts.partition_point(|host| host.priority() < priority) as u32;
            let end = hosts.partition_point(|host| host.priority() <= priority) as u32;
            let of = |wanted: Health| -> Box<[u32]> {
                (start..end).filter(|i| hosts[*i as usize].health() == wanted).collect()
            };
            let (healthy, degraded) = (of(Health::Healthy), of(Health::Degraded));
            let weight = |list: &mut dyn Iterator<Item = u32>| -> u64 {
                if assignment.weighted_priority_health {
                    list.map(|i| u64::from(hosts[i as usize].weight())).sum()
                } else {
                    list.count() as u64
                }
            };
            health.push(PriorityHealth {
                hosts: end - start,
                available: (healthy.len() + degraded.len()) as u32,
                healthy_weight: weight(&mut healthy.iter().copied()),
                degraded_weight: weight(&mut degraded.iter().copied()),
                total_weight: weight(&mut (start..end)),
            });
            let all_healthy = healthy.len() == (end - start) as usize;
            priorities.push(PrioritySet {
                all: start..end,
                healthy: (!all_healthy).then_some(healthy),
                degraded,
                localities: match cluster.locality_weighted {
                    true => {
                        let of_priority = &hosts[start as usize..end as usize];
                        localities(assignment, priority, start, of_priority)
                    }
                    false => Box::default(),
                },
            });
        }
        let loads = PriorityLoads::new(
            &health,
            assignment.overprovisioning_factor,
            runtime::panic_threshold().unwrap_or(cluster.healthy_panic_threshold),
        );
        let weighted = hosts.iter().any(|host| host.weight() != hosts[0].weight());
        let policy = policy_hash(assignment);
        Self { hosts, priorities: priorities.into(), loads, weighted, policy }
    }

    /// The set of a `STATIC` cluster.
    pub fn of_static(cluster: &Cluster, old: Option<&Self>) -> Self {
        Self::of_assignment(cluster, &cluster.load_assignment, old).0
    }

    /// The set that a load assignment of addresses gives.
    pub fn of_assignment(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        old: Option<&Self>,
    ) -> (Self, Change) {
        let specs = assignment.endpoints().filter_map(|(locality, endpoint)| {
            let address = match &endpoint.address {
                ConfigAddress::Ip { addr, .. } => Address::Ip(*addr),
                ConfigAddress::Pipe { path, .. } => Address::Pipe(path.clone()),
                // The compiler lets names into DNS clusters only.
                ConfigAddress::Dns { .. } => return None,
            };
            Some(HostSpec {
                address,
                hostname: endpoint.hostname.clone(),
                locality: locality.locality.clone(),
                metadata: endpoint.metadata.clone(),
                priority: locality.priority,
                weight: endpoint.weight,
                health: endpoint.health,
            })
        });
        Self::build(cluster, assignment, old, specs.collect())
    }

    /// Whether any two hosts differ in weight.
    pub fn has_weights(&self) -> bool {
        self.weighted
    }

    /// The greatest weight in the last priority: `max_host_weight`, as Envoy leaves it behind.
    pub fn heaviest_of_last(&self) -> u32 {
        let last = self.priorities.last().map(|one| &self.hosts[one.all.start as usize..]);
        last.into_iter().flatten().map(|host| host.weight()).max().unwrap_or(1)
    }

    /// Hosts in one state of health.
    pub fn count(&self, health: Health) -> usize {
        self.hosts.iter().filter(|host| host.health() == health).count()
    }

    /// The host with this address.
    pub fn find(&self, address: SocketAddr) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.address.ip() == Some(address))
    }
}

/// What an assignment says beside its hosts: of localities with a weight, the last one of a name counts.
pub(super) fn policy_hash(assignment: &LoadAssignment) -> u64 {
    let weight =
        |one: &LocalityEndpoints| Some(((one.priority, one.locality.clone()), one.weight?));
    let weights: BTreeMap<_, _> = assignment.localities.iter().filter_map(weight).collect();
    let mut hasher = FxHasher::default();
    (assignment.overprovisioning_factor, assignment.weighted_priority_health).hash(&mut hasher);
    weights.hash(&mut hasher);
    hasher.finish()
}
