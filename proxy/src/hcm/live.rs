//! A connection manager on one worker: its compiled configuration with everything resolved.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::HcmScope;
use crate::access_log::AccessLogs;
use crate::codec::{h1, h2};
use crate::config::hcm::HttpConnectionManager;
use crate::config::listener::{Direction, Listener};
use crate::config::route::RouteTable;
use crate::config::route::slot::Routes;
use crate::http_filters::local_ratelimit;
use crate::stats::Block;
use crate::stats::names::{HttpStat, HttpTracingStat, ListenerHttpStat, RouterStat};
use crate::stream_info::ConnectionInfo;
use crate::worker::WorkerContext;

/// A connection manager's compiled form, its counters, logs and codec settings. `!Send`.
pub struct WorkerHcm {
    pub config: Arc<HttpConnectionManager>,
    /// The listener's traffic leaves: spans are those of a client. Any other direction is taken for inbound.
    pub egress: bool,
    pub scope: HcmScope,
    pub stats: Block<HttpStat>,
    pub router_stats: Block<RouterStat>,
    pub tracing_stats: Block<HttpTracingStat>,
    pub listener_stats: Block<ListenerHttpStat>,
    pub logs: AccessLogs,
    pub upstream_logs: AccessLogs,
    pub h1: Arc<h1::ServerSettings>,
    pub h2: Arc<h2::Settings>,
    /// Made with the first HTTP/2 connection.
    h2_counters: OnceCell<h2::Counters>,
    /// The table that the last stream took.
    routes: RefCell<Arc<RouteTable>>,
}

impl fmt::Debug for WorkerHcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHcm").field("stat_prefix", &self.config.stat_prefix).finish()
    }
}

impl WorkerHcm {
    /// `listener_prefix` is the listener's `stat_prefix`.
    pub fn new(
        config: Arc<HttpConnectionManager>,
        listener_prefix: &str,
        egress: bool,
        worker: &WorkerContext,
    ) -> Self {
        let registry = &worker.registry;
        let scope = registry.scope(&format!("http.{}", config.stat_prefix));
        scope.declare::<HttpTracingStat>();
        let listener_scope =
            registry.scope(&format!("listener.{listener_prefix}.http.{}", config.stat_prefix));
        let kb = config.max_request_headers_kb;
        let hcm_scope = HcmScope { scope: scope.clone(), registry: registry.clone() };
        for filter in config.filters.iter() {
            filter.config.declare(&hcm_scope);
        }
        let routes = config.routes.load();
        declare_routes(&routes, &hcm_scope);
        let mut h1 = h1::ServerSettings::new(&config.http1, &config.common, Some(kb));
        h1.validate_scheme = config.use_remote_address && config.xff_num_trusted_hops == 0;
        Self {
            stats: scope.block(worker.index),
            router_stats: scope.block(worker.index),
            tracing_stats: scope.block(worker.index),
            listener_stats: listener_scope.block(worker.index),
            logs: worker.access_logs.bind(&config.access_log),
            upstream_logs: worker.access_logs.bind(&config.router.upstream_log),
            h1: Arc::new(h1),
            h2: Arc::new(h2::Settings::new(&config.http2, &config.common, kb)),
            h2_counters: OnceCell::new(),
            routes: RefCell::new(routes),
            scope: hcm_scope,
            egress,
            config,
        }
    }

    /// The newest route table.
    pub fn routes(&self) -> Arc<RouteTable> {
        let mut routes = self.routes.borrow_mut();
        if let Routes::Discovered(slot) = &self.config.routes {
            let newest = slot.load();
            if !Arc::ptr_eq(&routes, &newest) {
                declare_routes(&newest, &self.scope);
                *routes = newest.clone();
            }
        }
        routes.clone()
    }

    /// The counters of an HTTP/2 connection.
    pub fn h2_counters(&self, worker: &WorkerContext) -> h2::Counters {
        let made = self.h2_counters.get_or_init(|| h2::Counters {
            codec: worker.registry.scope("http2").block(worker.index),
            traffic: h2::Traffic::Downstream(self.stats.clone()),
        });
        made.clone()
    }
}

/// Makes the statistics exist that routes, virtual clusters and the filters' per-route configurations name.
fn declare_routes(routes: &RouteTable, scope: &HcmScope) {
    for host in &routes.virtual_hosts {
        let clusters = host.virtual_clusters.iter().map(|cluster| &cluster.stats);
        let routes = host.routes.iter().filter_map(|route| route.stats.as_ref());
        clusters.chain(routes).for_each(|stats| stats.declare(&scope.registry));
    }
    routes.for_each_filter_config(|config| local_ratelimit::declare_per_route(config, scope));
}

/// The place where new streams look for their connection manager: remakes the live form when control has
/// published a new compiled one.
pub struct HcmSlot {
    published: Arc<ArcSwap<HttpConnectionManager>>,
    listener_prefix: Arc<str>,
    egress: bool,
    live: RefCell<Rc<WorkerHcm>>,
}

impl fmt::Debug for HcmSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HcmSlot").field("live", &self.live).finish_non_exhaustive()
    }
}

impl HcmSlot {
    pub fn new(
        published: Arc<ArcSwap<HttpConnectionManager>>,
        listener: &Listener,
        worker: &WorkerContext,
    ) -> Self {
        let egress = listener.direction == Direction::Outbound;
        let listener_prefix = listener.stat_prefix.clone();
        let live = WorkerHcm::new(published.load_full(), &listener_prefix, egress, worker);
        Self { published, listener_prefix, egress, live: RefCell::new(Rc::new(live)) }
    }

    /// The newest one.
    pub fn current(&self, worker: &WorkerContext) -> Rc<WorkerHcm> {
        let published = self.published.load();
        let mut live = self.live.borrow_mut();
        if !Arc::ptr_eq(&live.config, &published) {
            let published = published.clone();
            *live = Rc::new(WorkerHcm::new(published, &self.listener_prefix, self.egress, worker));
        }
        live.clone()
    }

    /// Counts a connection that never came here: a network filter has closed it after `received` bytes.
    /// `told`: it was closed, and did not leave before.
    pub fn refused(&self, info: &ConnectionInfo, told: bool, received: u64) {
        let live = self.live.borrow();
        let stats = &live.stats;
        stats.inc(HttpStat::DownstreamCxTotal);
        if info.is_tls {
            stats.inc(HttpStat::DownstreamCxSslTotal);
            stats.gauge_add(HttpStat::DownstreamCxSslActive, 0);
        }
        stats.inc(HttpStat::DownstreamCxDestroy);
        stats.inc(match told {
            true => HttpStat::DownstreamCxDestroyLocal,
            false => HttpStat::DownstreamCxDestroyRemote,
        });
        stats.add(HttpStat::DownstreamCxRxBytesTotal, received);
        let age = info.started.elapsed();
        stats.record(HttpStat::DownstreamCxLengthMs, age.as_millis() as u64);
    }
}
