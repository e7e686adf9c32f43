//! Hosts of a cluster and their sets: shared by all workers.
//!
//! A `Host` lives as long as its address is in the cluster; its counts are relaxed atomics, because Envoy
//! counts over all workers. A `HostSet` is immutable: any change of members, weights or health is a new set.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustc_hash::FxHashMap;

use crate::config::cluster::Cluster;
use crate::config::core::{ConfigAddress, Locality, Metadata};
use crate::config::endpoint::{HealthStatus, LoadAssignment};
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
    pub metadata: Option<Metadata>,
    pub priority: u32,
    pub stats: HostStats,
    /// The cluster's transport socket for it; `None`: plain.
    pub transport: Option<Arc<ClientContext>>,
    /// Endpoint metadata `envoy.lb: {canary: true}`.
    pub canary: bool,
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
        let lb = spec.metadata.as_ref().and_then(|m| m.get("envoy.lb"));
        let canary = lb.and_then(|lb| lb.get("canary")).and_then(serde_json::Value::as_bool);
        Self {
            canary: canary.unwrap_or(false),
            transport: cluster.transport.of(spec.metadata.as_ref()).cloned(),
            address: spec.address,
            hostname: spec.hostname,
            locality: spec.locality,
            metadata: spec.metadata,
            priority: spec.priority,
            stats: HostStats::default(),
            weight: AtomicU32::new(spec.weight),
            health: AtomicU8::new(spec.health as u8),
            removed: AtomicBool::new(false),
            picked: AtomicBool::new(false),
        }
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

    fn is_same(&self, spec: &HostSpec) -> bool {
        self.address == spec.address
            && self.priority == spec.priority
            && self.hostname == spec.hostname
            && self.locality == spec.locality
            && self.metadata == spec.metadata
    }
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
}

impl HostSet {
    /// A set of hosts; those of `old` that are the same stay, with their counts. Hosts that are gone are marked.
    pub fn build(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        old: Option<&Self>,
        specs: Vec<HostSpec>,
    ) -> Self {
        let mut kept: FxHashMap<&Address, &Arc<Host>> = old
            .map(|set| set.hosts.iter().map(|host| (&host.address, host)).collect())
            .unwrap_or_default();
        let mut specs = specs;
        specs.sort_by_key(|spec| spec.priority);
        let mut hosts: Vec<Arc<Host>> = Vec::with_capacity(specs.len());
        for spec in specs {
            match kept.get(&spec.address) {
                Some(host) if host.is_same(&spec) => {
                    host.weight.store(spec.weight, Ordering::Relaxed);
                    host.health.store(spec.health as u8, Ordering::Relaxed);
                    hosts.push(Arc::clone(host));
                    kept.remove(&spec.address);
                }
                _ => hosts.push(Arc::new(Host::new(cluster, spec))),
            }
        }
        for host in kept.values() {
            host.mark_removed();
        }
        Self::from_hosts(cluster, assignment, hosts.into())
    }

    pub(super) fn from_hosts(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        hosts: Box<[Arc<Host>]>,
    ) -> Self {
        let count = hosts.last().map_or(1, |host| host.priority + 1);
        let mut priorities = Vec::with_capacity(count as usize);
        let mut health = Vec::with_capacity(count as usize);
        for priority in 0..count {
            let start = hosts.partition_point(|host| host.priority < priority) as u32;
            let end = hosts.partition_point(|host| host.priority <= priority) as u32;
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
            });
        }
        let loads = PriorityLoads::new(
            &health,
            assignment.overprovisioning_factor,
            cluster.healthy_panic_threshold,
        );
        let weighted = hosts.iter().any(|host| host.weight() != hosts[0].weight());
        Self { hosts, priorities: priorities.into(), loads, weighted }
    }

    /// The set of a `STATIC` cluster.
    pub fn of_static(cluster: &Cluster, old: Option<&Self>) -> Self {
        Self::of_assignment(cluster, &cluster.load_assignment, old)
    }

    /// The set that a load assignment of addresses gives.
    pub fn of_assignment(
        cluster: &Cluster,
        assignment: &LoadAssignment,
        old: Option<&Self>,
    ) -> Self {
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

    /// Hosts in one state of health.
    pub fn count(&self, health: Health) -> usize {
        self.hosts.iter().filter(|host| host.health() == health).count()
    }

    /// The host with this address.
    pub fn find(&self, address: SocketAddr) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.address.ip() == Some(address))
    }
}
