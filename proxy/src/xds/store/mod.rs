//! The store: every resource by type and name, the version in force, the one that warms, and the one that was refused.
//!
//! An update (`apply`) compiles each resource alone. A good one is put in force once what it names is there; a bad one is
//! named to whoever sent it, and the version before stays. Equal bytes change nothing. `!Send`: belongs to the control
//! thread. Order: `Stage`.

mod by_name;
mod cds;
mod clusters;
mod dump;
mod endpoints;
mod extensions;
mod lds;
mod listeners;
mod routes;
mod secrets;
mod sockets;
mod stats;
mod subscriptions;
mod turn;
mod update;
mod version;

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::LocalBoxFuture;
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, watch};

use self::clusters::{ClusterVersion, Clusters};
use self::endpoints::{EndpointsEntry, EndpointsKey};
use self::extensions::Extensions;
use self::listeners::{Listeners, Stopped};
use self::routes::RouteConfigurations;
use self::secrets::SecretEntries;
pub use self::stats::Event;
use self::stats::SubscriptionStats;
use self::subscriptions::Subscriptions;
use self::turn::{Turn, Waiter};
use self::version::Raw;
use super::resource::{Rejection, ResourceType, Told, TypeUpdate, Wanted};
use super::subscription::Consumer;
use crate::cluster::dns::Resolvers;
use crate::cluster::{ClusterMap, SharedCluster};
use crate::config::cluster::Cluster;
use crate::config::compile::CompileContext;
use crate::config::compile::diagnostic::Diagnostic;
use crate::config::compile::slots::Slots;
use crate::config::core::BindConfig;
use crate::config::json;
use crate::config::listener::Listener;
use crate::config::source::{ConfigSource, Source};
use crate::http_filters::ExtraFilters;
use crate::server::lifecycle::Lifecycle;
use crate::stats::names::{ClusterManagerStat, ListenerManagerStat, ReloadStat};
use crate::stats::{Registry, SharedBlock};
use crate::tls::Secrets;
use crate::worker::WorkerContext;
use crate::worker::run::Command;

/// How often what workers have let go of is looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// How far the start has come. Make before break: nothing of a later stage is asked for before all of an earlier one is
/// there, or has not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Clusters with their endpoints, names and secrets.
    Clusters,
    /// Listeners with their routes and secrets.
    Listeners,
    /// The workers may start.
    Live,
}

/// What the store works with.
pub struct Setup {
    pub registry: Registry,
    /// `cluster_manager.upstream_bind_config` of the bootstrap.
    pub upstream_bind: Option<BindConfig>,
    pub extra_filters: ExtraFilters,
    pub slots: Slots,
    pub secrets: Secrets,
    /// Where the workers look for clusters.
    pub map: Arc<ClusterMap>,
    pub lifecycle: Lifecycle,
    /// How many there will be.
    pub workers: usize,
    /// `--drain-strategy`
    pub drain_gradually: bool,
    /// `dynamic_resources.cds_config` and `lds_config`.
    pub clusters: Option<ConfigSource>,
    pub listeners: Option<ConfigSource>,
}

/// The subscription to a whole type.
#[derive(Debug)]
struct Whole {
    source: ConfigSource,
    stats: SubscriptionStats,
    /// The first response is there, or has not come in time.
    arrived: bool,
    /// The first response is being taken, in however many turns.
    begun: bool,
    /// Of the last response.
    version: String,
}

struct State {
    stage: Stage,
    clusters: Clusters,
    endpoints: FxHashMap<EndpointsKey, EndpointsEntry>,
    listeners: Listeners,
    routes: RouteConfigurations,
    extensions: Extensions,
    secrets: SecretEntries,
    subscriptions: Subscriptions,
    /// As the streams know it.
    holds_clusters: bool,
    whole_clusters: Option<Whole>,
    whole_listeners: Option<Whole>,
    ignored: BTreeMap<(ResourceType, String, String), Diagnostic>,
    /// What workers may still have.
    retired: Vec<Arc<dyn Any + Send + Sync>>,
}

struct Inner {
    setup: Setup,
    resolvers: Resolvers,
    state: RefCell<State>,
    clusters: SharedBlock<ClusterManagerStat>,
    listeners: SharedBlock<ListenerManagerStat>,
    stage: watch::Sender<Stage>,
    streams: mpsc::UnboundedSender<Told>,
    files: mpsc::UnboundedSender<Wanted>,
    sweeps: Cell<bool>,
    /// The control thread's own use of clusters.
    control: OnceCell<Rc<WorkerContext>>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Store(Rc<Inner>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stage", &self.stage()).finish_non_exhaustive()
    }
}

/// What is wanted of whom, as it changes. A whole type is wanted by a message without names.
#[derive(Debug)]
pub struct Wants {
    /// Of `Source::Ads` and `Source::Api`.
    pub streams: mpsc::UnboundedReceiver<Told>,
    /// Of `Source::Path`.
    pub files: mpsc::UnboundedReceiver<Wanted>,
}

impl Store {
    pub fn new(setup: Setup) -> (Self, Wants) {
        let registry = &setup.registry;
        let whole = |source: &Option<ConfigSource>, scope| {
            source.clone().map(|source| Whole {
                source,
                stats: SubscriptionStats::own(registry.scope(scope)),
                arrived: false,
                begun: false,
                version: String::new(),
            })
        };
        let state = State {
            stage: Stage::Clusters,
            clusters: Clusters::default(),
            endpoints: FxHashMap::default(),
            listeners: Listeners::default(),
            routes: RouteConfigurations::default(),
            extensions: Extensions::default(),
            secrets: SecretEntries::default(),
            subscriptions: Subscriptions::default(),
            holds_clusters: false,
            whole_clusters: whole(&setup.clusters, "cluster_manager.cds"),
            whole_listeners: whole(&setup.listeners, "listener_manager.lds"),
            ignored: BTreeMap::new(),
            retired: Vec::new(),
        };
        if setup.clusters.is_some() {
            registry.scope("cluster_manager.cds").declare::<ReloadStat>();
        }
        let (streams, of_streams) = mpsc::unbounded_channel();
        let (files, of_files) = mpsc::unbounded_channel();
        let store = Self(Rc::new(Inner {
            clusters: registry.scope("cluster_manager").shared(),
            listeners: registry.scope("listener_manager").shared(),
            state: RefCell::new(state),
            resolvers: Resolvers::default(),
            stage: watch::Sender::new(Stage::Clusters),
            streams,
            files,
            sweeps: Cell::new(false),
            control: OnceCell::new(),
            setup,
        }));
        (store, Wants { streams: of_streams, files: of_files })
    }

    /// Takes the clusters of the bootstrap; they are there before any other.
    pub fn add_static_clusters(&self, clusters: Vec<(json::RawResource, Cluster)>) {
        let mut turn = self.turn();
        for (raw, config) in clusters {
            let shared = Arc::new(SharedCluster::new(Arc::new(config), &self.setup().registry));
            turn.add_static_cluster(ClusterVersion::new(static_raw(&raw), shared));
        }
        // No stage ends before the start.
        turn.pause();
    }

    /// Takes the listeners of the bootstrap and binds their sockets.
    ///
    /// # Errors
    /// One cannot be bound.
    pub fn add_static_listeners(
        &self,
        listeners: Vec<(json::RawResource, Listener)>,
    ) -> anyhow::Result<()> {
        let mut turn = self.turn();
        for (raw, config) in listeners {
            turn.add_static_listener(static_raw(&raw), config).map_err(anyhow::Error::msg)?;
        }
        turn.pause();
        Ok(())
    }

    /// Begins to fetch what the bootstrap names.
    pub fn start(&self) {
        let mut turn = self.turn();
        turn.want_whole(ResourceType::Cluster);
        turn.finish();
    }

    /// A source could not be reached, or what it said could not be read: counted with every subscription of its, or
    /// with that of one name.
    pub fn failed(&self, source: &Source, resource_type: ResourceType, name: Option<&str>) {
        let turn = self.turn();
        match resource_type {
            ResourceType::Endpoints => turn.endpoints_failed(source, name),
            ResourceType::Routes => turn.routes_failed(source, name),
            ResourceType::Cluster | ResourceType::Listener => {
                turn.whole_failed(source, resource_type);
            }
            ResourceType::Secret => turn.secrets_failed(source, name),
            ResourceType::Extension => turn.extensions_failed(source, name),
        }
        turn.finish();
    }

    /// What the control thread itself asks of clusters follows their changes too.
    pub fn set_control(&self, control: Rc<WorkerContext>) {
        // There is one.
        let _ = self.0.control.set(control);
    }

    pub fn stage(&self) -> Stage {
        *self.0.stage.borrow()
    }

    /// Waits for a stage. Cancel-safe.
    pub async fn reached(&self, stage: Stage) {
        let mut stages = self.0.stage.subscribe();
        // The sender lives as long as the store.
        let _ = stages.wait_for(|now| *now >= stage).await;
    }

    /// The workers run: they get their listeners.
    pub fn workers_started(&self) {
        let mut turn = self.turn();
        turn.start_listeners();
        self.show_listeners(&turn.state.listeners);
        turn.finish();
        self.0.listeners.gauge_set(ListenerManagerStat::WorkersStarted, 1);
    }

    /// `/drain_listeners`, at its end: listeners, or those for inbound traffic, take no more connections; an update
    /// brings none that would.
    pub fn stop_listeners(&self, inbound_only: bool) {
        let mut turn = self.turn();
        turn.stop_listeners(if inbound_only { Stopped::Inbound } else { Stopped::All });
        turn.finish();
    }

    fn turn(&self) -> Turn<'_> {
        Turn::new(self)
    }

    fn setup(&self) -> &Setup {
        &self.0.setup
    }

    fn resolvers(&self) -> &Resolvers {
        &self.0.resolvers
    }

    fn cluster_stats(&self) -> &SharedBlock<ClusterManagerStat> {
        &self.0.clusters
    }

    fn listener_stats(&self) -> &SharedBlock<ListenerManagerStat> {
        &self.0.listeners
    }

    fn show_clusters(&self, clusters: &Clusters) {
        let stats = self.cluster_stats();
        stats.gauge_set(ClusterManagerStat::ActiveClusters, clusters.active as u64);
        stats.gauge_set(ClusterManagerStat::WarmingClusters, clusters.warming as u64);
    }

    fn show_listeners(&self, listeners: &Listeners) {
        let stats = self.listener_stats();
        let set = |stat, value: usize| stats.gauge_set(stat, value as u64);
        // Until the workers run, Envoy calls every listener active.
        let (active, warming) = match listeners.started {
            true => (listeners.order.len(), listeners.warming()),
            false => (listeners.known(), 0),
        };
        set(ListenerManagerStat::TotalListenersActive, active);
        set(ListenerManagerStat::TotalListenersWarming, warming);
        // Not in use before the first goes.
        if listeners.have_drained {
            set(ListenerManagerStat::TotalListenersDraining, listeners.draining.len());
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        self.setup().lifecycle.tell(command);
    }

    /// Another version of a cluster is in force, or none.
    fn tell_cluster_changed(&self, name: &Arc<str>) {
        self.tell(|| Command::ClusterChanged(name.clone()));
        if let Some(control) = self.0.control.get() {
            control.clusters.forget(name);
        }
    }

    /// A cluster in use has other hosts.
    fn tell_hosts_changed(&self, name: &Arc<str>) {
        self.tell(|| Command::HostsChanged(name.clone()));
        if let Some(control) = self.0.control.get() {
            control.clusters.refresh_one(name);
        }
    }

    fn want(&self, wanted: Vec<Wanted>) {
        for one in wanted {
            // Nobody fetches once the process ends.
            if matches!(one.source, Source::Path(_)) {
                let _ = self.0.files.send(one);
            } else {
                let _ = self.0.streams.send(Told::Wanted(one));
            }
        }
    }

    /// Time is up for some, or what they waited for is there.
    fn waited(&self, waiters: Vec<Waiter>, time: Option<Duration>) {
        let mut turn = self.turn();
        for waiter in waiters {
            match waiter {
                Waiter::Cluster(name, serial) => turn.cluster_waited(&name, serial, time),
                Waiter::Listener(name, serial) => {
                    turn.listener_waited(&name, serial, time.unwrap_or_default());
                }
                Waiter::Type(kind) => turn.whole_timed_out(kind),
                Waiter::Stale(key) => turn.endpoints_stale(&key),
                Waiter::Drained(serial) => turn.listener_drained(serial),
                Waiter::ChainsDrained(count) => {
                    let stat = ListenerManagerStat::TotalFilterChainsDraining;
                    self.listener_stats().gauge_add(stat, -(count as i64));
                }
            }
        }
        turn.finish();
    }

    /// Drops what no worker has any more, now and again while there is something that one may have.
    fn sweep(&self) {
        if self.0.sweeps.replace(true) {
            return;
        }
        let store = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let mut state = store.0.state.borrow_mut();
                state.retired.retain(|one| Arc::strong_count(one) > 1);
                if state.retired.is_empty() {
                    break;
                }
            }
            store.0.sweeps.set(false);
        });
    }
}

impl Setup {
    fn compile_context(&self) -> CompileContext<'_> {
        CompileContext {
            extra_filters: &self.extra_filters,
            slots: &self.slots,
            secrets: &self.secrets,
        }
    }
}

impl Consumer for Store {
    fn apply(&self, update: TypeUpdate) -> LocalBoxFuture<'_, Vec<Rejection>> {
        Box::pin(async move { Self::apply(self, &update).await })
    }

    fn failed(&self, source: &Source, resource_type: ResourceType, name: Option<&str>) {
        Self::failed(self, source, resource_type, name);
    }
}

fn static_raw(raw: &json::RawResource) -> Raw {
    Raw { bytes: raw.bytes.clone(), hash: raw.hash, version: "".into(), updated: SystemTime::now() }
}

impl Turn<'_> {
    fn whole(&mut self, kind: ResourceType) -> Option<&mut Whole> {
        match kind {
            ResourceType::Cluster => self.state.whole_clusters.as_mut(),
            ResourceType::Listener => self.state.whole_listeners.as_mut(),
            _ => None,
        }
    }

    /// A whole type is wanted from now on.
    fn want_whole(&mut self, kind: ResourceType) {
        let Some(whole) = self.whole(kind) else { return };
        whole.stats.started();
        let ConfigSource { source, initial_fetch_timeout } = whole.source.clone();
        if let Some(timeout) = initial_fetch_timeout {
            self.wait(timeout, Waiter::Type(kind));
        }
        let none = Vec::new;
        self.store.want(vec![Wanted { source, resource_type: kind, add: none(), remove: none() }]);
    }

    fn whole_arrived(&mut self, update: &TypeUpdate, rejected: &[Rejection]) {
        let Some(whole) = self.whole(update.resource_type) else { return };
        whole.arrived = true;
        whole.version.clone_from(&update.version);
        if rejected.is_empty() {
            whole.stats.count(Event::Success(&update.version));
        } else {
            whole.stats.count(Event::Rejected);
        }
    }

    fn whole_failed(&self, source: &Source, kind: ResourceType) {
        let whole = match kind {
            ResourceType::Cluster => &self.state.whole_clusters,
            _ => &self.state.whole_listeners,
        };
        if let Some(whole) = whole.as_ref().filter(|whole| whole.source.source == *source) {
            whole.stats.count(Event::Failure);
        }
    }

    /// A response has come: nobody waits for one any more.
    fn whole_began(&mut self, kind: ResourceType) {
        if let Some(whole) = self.whole(kind) {
            whole.begun = true;
        }
    }

    fn whole_timed_out(&mut self, kind: ResourceType) {
        if let Some(whole) = self.whole(kind).filter(|whole| !whole.arrived && !whole.begun) {
            whole.arrived = true;
            whole.stats.count(Event::InitFetchTimeout);
            tracing::warn!("no {kind} configuration in time: goes on without");
        }
    }

    /// Begins the next stage, and the one after it, where everything of this one is there.
    fn advance(&mut self) {
        let has_come = |whole: &Option<Whole>| whole.as_ref().is_none_or(|whole| whole.arrived);
        if self.state.stage == Stage::Clusters
            && has_come(&self.state.whole_clusters)
            && self.state.clusters.warming == 0
        {
            self.begin_stage(Stage::Listeners);
            self.want_whole(ResourceType::Listener);
            self.time_listeners();
        }
        if self.state.stage == Stage::Listeners
            && has_come(&self.state.whole_listeners)
            && self.state.listeners.warming() == 0
        {
            self.begin_stage(Stage::Live);
        }
    }

    fn begin_stage(&mut self, stage: Stage) {
        self.state.stage = stage;
        self.store.0.stage.send_replace(stage);
    }
}

#[cfg(test)]
mod tests;
