//! Stage 6: clusters. `SharedCluster` is what all workers share, `WorkerCluster` what one worker adds on first
//! use: its statistics block, its load balancer and, through its hosts, its connection pools.
//!
//! A worker reads the newest host set at each pick; only a changed generation costs more than one load.

mod assignment;
pub mod circuit_breaker;
pub mod codes;
pub mod dns;
pub mod grpc;
pub mod host;
pub mod locality;
pub mod membership;
pub mod original_dst;
mod shared;
mod status;

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use shared::{ClusterMap, DropOverload, SharedCluster};

use crate::codec::h2;
use crate::config::cluster::{Cluster, Discovery, OriginalDst, RoutingPriority};
use crate::conn_pool::HostPools;
use crate::load_balancer::{LoadBalancer, PickContext, Rng};
use crate::stats::Block;
use crate::stats::names::{
    ClusterBudgetStat, ClusterLbStat, ClusterSizeStat, ClusterStat, Http2Stat,
};
use crate::tls::stats::SslStats;
use crate::worker::timers::Timers;
use circuit_breaker::{Overflow, Resource};
use host::{Host, HostSet};

/// What `track_cluster_stats` asks for.
#[derive(Debug)]
pub struct Tracked {
    pub budgets: Option<Block<ClusterBudgetStat>>,
    pub sizes: Option<Block<ClusterSizeStat>>,
}

impl Tracked {
    fn new(shared: &SharedCluster, worker: usize) -> Option<Self> {
        let config = &shared.config;
        let tracked = Self {
            budgets: config.track_timeout_budgets.then(|| shared.scope.block(worker)),
            sizes: config.track_request_response_sizes.then(|| shared.scope.block(worker)),
        };
        (tracked.budgets.is_some() || tracked.sizes.is_some()).then_some(tracked)
    }
}

/// What a worker's hosts and pools need of their cluster.
#[derive(Debug)]
pub struct ClusterContext {
    pub config: Arc<Cluster>,
    pub shared: Arc<SharedCluster>,
    pub stats: Block<ClusterStat>,
    pub lb_stats: Block<ClusterLbStat>,
    worker: usize,
    /// Made with the first HTTP/2 connection.
    http2: OnceCell<Block<Http2Stat>>,
    /// Where a transport socket of the cluster is TLS.
    pub ssl: Option<Rc<SslStats>>,
    /// Made with the first call that is counted.
    grpc: OnceCell<grpc::GrpcCalls>,
    pub codes: codes::ClusterCodes,
    /// `None` unless the configuration asks for some of it.
    pub tracked: Option<Tracked>,
    pub timers: Timers,
    ids: Rc<ConnectionIds>,
}

/// Numbers of a worker's upstream connections, unique in the process: the worker's number, one bit that tells
/// them from downstream ids, and a count.
#[derive(Debug)]
pub struct ConnectionIds(Cell<u64>);

impl ConnectionIds {
    pub fn new(worker: usize) -> Self {
        Self(Cell::new((worker as u64) << 48 | 1 << 47))
    }

    fn next(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

impl ClusterContext {
    /// The counters of an HTTP/2 connection.
    pub fn http2_counters(&self) -> h2::Counters {
        let codec = self.http2.get_or_init(|| self.shared.scope.scope("http2").block(self.worker));
        h2::Counters { codec: codec.clone(), traffic: h2::Traffic::Upstream(self.stats.clone()) }
    }

    /// gRPC calls, as the filter `grpc_stats` counts them.
    pub fn grpc(&self) -> &grpc::GrpcCalls {
        self.grpc.get_or_init(|| grpc::GrpcCalls::new(self.shared.scope.scope("grpc"), self.worker))
    }

    /// A number that no other connection of the process has.
    pub fn next_connection_id(&self) -> u64 {
        self.ids.next()
    }

    /// Counts a retry against the breakers; counts `upstream_rq_retry_overflow` where it is refused.
    pub fn try_retry(self: &Rc<Self>, priority: RoutingPriority) -> Result<RetryGuard, Overflow> {
        match self.shared.breakers.try_acquire(Resource::Retries, priority) {
            Ok(()) => Ok(RetryGuard { cluster: self.clone(), priority }),
            Err(overflow) => {
                self.stats.inc(ClusterStat::UpstreamRqRetryOverflow);
                Err(overflow)
            }
        }
    }
}

/// One retry in flight; gives its place back when dropped.
#[derive(Debug)]
pub struct RetryGuard {
    cluster: Rc<ClusterContext>,
    priority: RoutingPriority,
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.cluster.shared.breakers.release(Resource::Retries, self.priority);
    }
}

/// A host and its cluster, as pools and connections of one worker hold them.
#[derive(Debug)]
pub struct HostContext {
    pub host: Arc<Host>,
    pub cluster: Rc<ClusterContext>,
}

/// A host as one worker sees it: with its connection pools.
#[derive(Debug)]
pub struct WorkerHost {
    pub context: Rc<HostContext>,
    pub pools: HostPools,
}

impl WorkerHost {
    fn new(host: Arc<Host>, cluster: Rc<ClusterContext>) -> Self {
        let context = Rc::new(HostContext { host, cluster });
        Self { pools: HostPools::new(context.clone()), context }
    }
}

impl Deref for WorkerHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.context.host
    }
}

/// No host may be picked: `no healthy upstream`, response flag `UH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHealthyHost;

/// The host set a worker last saw, with what the worker keeps of each host.
struct View {
    generation: u64,
    set: Arc<HostSet>,
    /// By index into `set.hosts`; made on first pick.
    hosts: Vec<Option<Rc<WorkerHost>>>,
}

/// A cluster on one worker. `!Send`.
pub struct WorkerCluster {
    context: Rc<ClusterContext>,
    balancer: RefCell<LoadBalancer>,
    view: RefCell<View>,
    /// Of an `ORIGINAL_DST` cluster, in place of the view's.
    destinations: RefCell<FxHashMap<SocketAddr, Rc<WorkerHost>>>,
}

impl fmt::Debug for WorkerCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCluster").field("name", &self.context.config.name).finish()
    }
}

impl Deref for WorkerCluster {
    type Target = Rc<ClusterContext>;

    fn deref(&self) -> &Rc<ClusterContext> {
        &self.context
    }
}

impl WorkerCluster {
    /// `worker` is 0-based; `seed` starts the balancer's random numbers.
    pub fn new(
        shared: Arc<SharedCluster>,
        worker: usize,
        timers: Timers,
        ids: Rc<ConnectionIds>,
        seed: u64,
    ) -> Self {
        let generation = shared.generation();
        let set = shared.hosts();
        let hosts = vec![None; set.hosts.len()];
        let context = ClusterContext {
            config: shared.config.clone(),
            stats: shared.scope.block(worker),
            lb_stats: shared.scope.block(worker),
            worker,
            http2: OnceCell::new(),
            ssl: (shared.config.transport.is_tls())
                .then(|| Rc::new(SslStats::new(&shared.scope, false, worker))),
            grpc: OnceCell::new(),
            codes: codes::ClusterCodes::new(shared.scope.clone(), worker),
            tracked: Tracked::new(&shared, worker),
            timers,
            ids,
            shared,
        };
        Self {
            context: Rc::new(context),
            balancer: RefCell::new(LoadBalancer::new(seed)),
            view: RefCell::new(View { generation, set, hosts }),
            destinations: RefCell::default(),
        }
    }

    /// Picks a host by the cluster's policy; counts panic and failure.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Rc<WorkerHost>, NoHealthyHost> {
        self.refresh();
        let config = &self.context.config;
        if let Discovery::OriginalDst(original) = &config.discovery {
            return self.pick_destination(original, context);
        }
        let mut view = self.view.borrow_mut();
        let pick = self.balancer.borrow_mut().pick(
            &config.lb_policy,
            config.fail_traffic_on_panic,
            &view.set,
            context,
        );
        if pick.panic {
            self.context.lb_stats.inc(ClusterLbStat::LbHealthyPanic);
        }
        let Some(index) = pick.host else {
            self.context.stats.inc(ClusterStat::UpstreamCxNoneHealthy);
            return Err(NoHealthyHost);
        };
        let view = &mut *view;
        let slot = &mut view.hosts[index as usize];
        let host = slot.get_or_insert_with(|| {
            let host = view.set.hosts[index as usize].clone();
            Rc::new(WorkerHost::new(host, self.context.clone()))
        });
        Ok(host.clone())
    }

    /// The host that the one who asks wants, made where there is none yet.
    fn pick_destination(
        &self,
        config: &OriginalDst,
        context: &PickContext<'_>,
    ) -> Result<Rc<WorkerHost>, NoHealthyHost> {
        let to = original_dst::destination(config, context.asking, &self.context.stats);
        let host = to.and_then(|to| {
            let mut destinations = self.destinations.borrow_mut();
            if let Some(host) = destinations.get(&to).filter(|host| !host.is_removed()) {
                return Some(host.clone());
            }
            let host = self.context.shared.destination(config, to, &self.context.timers)?;
            let host = Rc::new(WorkerHost::new(host, self.context.clone()));
            destinations.insert(to, host.clone());
            Some(host)
        });
        let Some(host) = host else {
            self.context.stats.inc(ClusterStat::UpstreamCxNoneHealthy);
            return Err(NoHealthyHost);
        };
        host.mark_picked();
        Ok(host)
    }

    /// Takes the newest host set, if there is one: hosts that stay keep their pools, those of removed hosts drain.
    /// `pick` does this by itself; the worker calls it when it is told of a change, so that idle connections to
    /// removed hosts close without waiting for traffic.
    pub fn refresh(&self) {
        let generation = self.context.shared.generation();
        let mut view = self.view.borrow_mut();
        if view.generation == generation {
            return;
        }
        if matches!(self.context.config.discovery, Discovery::OriginalDst(_)) {
            view.generation = generation;
            // Hosts go when they have no connection left.
            self.destinations.borrow_mut().retain(|_, host| !host.is_removed());
            return;
        }
        let set = self.context.shared.hosts();
        let mut known: FxHashMap<*const Host, Rc<WorkerHost>> = view
            .hosts
            .drain(..)
            .flatten()
            .map(|host| (Arc::as_ptr(&host.context.host), host))
            .collect();
        let keep = !self.context.config.close_connections_on_host_set_change;
        let hosts =
            set.hosts.iter().map(|host| if keep { known.remove(&Arc::as_ptr(host)) } else { None });
        let hosts = hosts.collect();
        *view = View { generation, set, hosts };
        drop(view);
        self.balancer.borrow_mut().reset();
        for host in known.into_values() {
            host.pools.drain();
        }
    }

    /// Its connections end once they are idle: another version has taken its place, or none has.
    fn retire(&self) {
        for host in self.view.borrow().hosts.iter().flatten() {
            host.pools.drain();
        }
        self.destinations.borrow().values().for_each(|host| host.pools.drain());
    }

    /// The host set as of the last pick.
    pub fn host_set(&self) -> Arc<HostSet> {
        self.view.borrow().set.clone()
    }
}

/// A worker's clusters, each made on first use.
pub struct WorkerClusters {
    map: Arc<ClusterMap>,
    worker: usize,
    timers: Timers,
    ids: Rc<ConnectionIds>,
    rng: RefCell<Rng>,
    known: RefCell<FxHashMap<Arc<str>, Rc<WorkerCluster>>>,
    /// Clusters made so far: `thread_local_cluster_manager.worker_N.clusters_inflated`.
    inflated: Cell<u64>,
}

impl fmt::Debug for WorkerClusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerClusters").field("inflated", &self.inflated).finish_non_exhaustive()
    }
}

impl WorkerClusters {
    pub fn new(map: Arc<ClusterMap>, worker: usize, timers: Timers, seed: u64) -> Self {
        Self {
            map,
            worker,
            timers,
            ids: Rc::new(ConnectionIds::new(worker)),
            rng: RefCell::new(Rng::new(seed)),
            known: RefCell::default(),
            inflated: Cell::new(0),
        }
    }

    /// The cluster of a name; `None` where there is none (`NC`).
    pub fn get(&self, name: &str) -> Option<Rc<WorkerCluster>> {
        if let Some(cluster) = self.known.borrow().get(name) {
            return Some(cluster.clone());
        }
        let shared = self.map.get(name)?;
        let seed = self.rng.borrow_mut().next();
        let name = shared.config.name.clone();
        let cluster = Rc::new(WorkerCluster::new(
            shared,
            self.worker,
            self.timers.clone(),
            self.ids.clone(),
            seed,
        ));
        self.known.borrow_mut().insert(name, cluster.clone());
        self.inflated.set(self.inflated.get() + 1);
        Some(cluster)
    }

    /// How many clusters this worker has made.
    pub fn inflated(&self) -> u64 {
        self.inflated.get()
    }

    /// The cluster of a name has changed or gone: who asks next gets the newest one. Streams keep theirs.
    pub fn forget(&self, name: &str) {
        let mut known = self.known.borrow_mut();
        // This worker may have asked the map before control's word reached it.
        let newest = self.map.get(name);
        let is_newest = |cluster: &WorkerCluster| {
            newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, &cluster.shared))
        };
        if known.get(name).is_some_and(|cluster| is_newest(cluster)) {
            return;
        }
        let old = known.remove(name);
        drop(known);
        if let Some(cluster) = old {
            self.inflated.set(self.inflated.get() - 1);
            cluster.retire();
        }
    }

    /// `WorkerCluster::refresh` of one cluster, if it is in use here.
    pub fn refresh_one(&self, name: &str) {
        let known = self.known.borrow().get(name).cloned();
        if let Some(cluster) = known {
            cluster.refresh();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
