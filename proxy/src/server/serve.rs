//! The control thread: starts what a compiled configuration asks for, and serves until the process is to end.
//!
//! Order: access log writer, clusters, sockets, admin interface; then what is fetched, stage by stage (`xds::store::Stage`);
//! then the workers. A signal ends the process at any time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admin_state::ServerAdmin;
use super::args::{DrainStrategy, Mode, Options};
use super::control;
use super::lifecycle::{Exit, Lifecycle};
use super::signals::Signals;
use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::admin::{Admin, AdminListener, ServerState};
use crate::cluster::ClusterMap;
use crate::config::bootstrap::Bootstrap;
use crate::config::compile::configuration::Configuration;
use crate::config::compile::slots::Slots;
use crate::config::compile::tls::redact::redacted;
use crate::config::json::RawResource;
use crate::hcm::request_headers::LocalInfo;
use crate::http_filters::ExtraFilters;
use crate::stats::Registry;
use crate::stats::names::ServerStat;
use crate::sys::program;
use crate::telemetry::Log;
use crate::tls::Secrets;
use crate::worker::WorkerContext;
use crate::worker::run::{WorkerSetup, start};
use crate::xds::files::{self, UnknownFields};
use crate::xds::store::{Setup, Stage, Store, Wants};
use crate::xds::subscription::Subscriptions;

/// After the process went live, what control planes and connections begin with is over too: its pages go back as those
/// that reading the configuration needed have gone before.
const START_IS_OVER: Duration = Duration::from_secs(10);

/// Everything that stands before the first worker starts.
pub(super) struct Prepared {
    pub(super) configuration: Configuration,
    pub(super) extra_filters: ExtraFilters,
    pub(super) slots: Slots,
    pub(super) secrets: Secrets,
    pub(super) registry: Registry,
    pub(super) workers: usize,
    pub(super) started: Instant,
}

pub(super) async fn serve(
    prepared: Prepared,
    options: &Options,
    log: Log,
    ready: impl FnOnce(&ServerAdmin) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Prepared { configuration, extra_filters, slots, secrets, registry, workers, started } =
        prepared;
    let access_log = AccessLogWriter::start(
        FlushOptions {
            interval: options.file_flush_interval(),
            min_size: options.file_flush_min_size(),
        },
        &registry,
    )?;
    let Configuration {
        bootstrap,
        listeners,
        clusters,
        secrets: fixed,
        raw,
        ignored,
        unknown_fields,
    } = configuration;
    let server = registry.scope("server").shared::<ServerStat>();
    server.add(ServerStat::StaticUnknownFields, unknown_fields.len() as u64);
    let map = Arc::new(ClusterMap::default());
    let breakers = map.clone();
    registry.before_read(move || breakers.write_breaker_gauges());
    let (lifecycle, exit) = Lifecycle::new(options);
    let inventory = secrets.inventory.clone();
    let (store, wants) = Store::new(Setup {
        registry: registry.clone(),
        upstream_bind: bootstrap.upstream_bind.clone(),
        extra_filters,
        slots,
        secrets,
        map: map.clone(),
        lifecycle: lifecycle.clone(),
        workers,
        drain_gradually: options.drain_strategy == DrainStrategy::Gradual,
        clusters: bootstrap.dynamic.clusters.clone(),
        listeners: bootstrap.dynamic.listeners.clone(),
    });
    let raw_clusters = clusters.iter().map(|(raw, _)| raw.clone()).collect();
    let raw_listeners = listeners.iter().map(|(raw, _)| raw.clone()).collect();
    store.add_static_clusters(clusters);
    store.add_static_listeners(listeners)?;
    let state = Rc::new(ServerAdmin {
        started,
        options: options.clone(),
        workers: workers as u32,
        node: bootstrap.node.bytes.clone(),
        store: store.clone(),
        inventory,
        raw_bootstrap: raw,
        raw_listeners,
        raw_clusters,
        raw_secrets: fixed.into_iter().map(hidden).collect(),
        loaded_at: std::time::SystemTime::now(),
        ignored,
        lifecycle: lifecycle.clone(),
        access_log: access_log.clone(),
        log,
    });
    let _signals = Signals::heed(&state)?;
    // The admin interface answers while the rest starts.
    let admin_logs = start_admin(&state, bootstrap.admin.as_ref(), &registry, options).await?;
    let local = Arc::new(LocalInfo {
        service_cluster: bootstrap.node.cluster.clone(),
        service_node: bootstrap.node.id.clone(),
    });
    let control = control::start_context(
        workers,
        map.clone(),
        registry.clone(),
        access_log.clone(),
        local.clone(),
    );
    let _subscriptions = start_sources(&store, wants, &bootstrap, control, options);
    let begin = async {
        store.start();
        store.reached(Stage::Listeners).await;
        lifecycle.set_stage(ServerState::Initializing);
        store.reached(Stage::Live).await;
        start_workers(&local, &state, &map, &registry)?;
        store.workers_started();
        lifecycle.set_stage(ServerState::Live);
        let took = started.elapsed().as_millis() as u64;
        server.record(ServerStat::InitializationTimeMs, took);
        tracing::info!(workers, "serving");
        ready(&state)?;
        stay(&lifecycle, options).await
    };
    let outcome = tokio::select! {
        outcome = exit.wait(&lifecycle) => outcome,
        outcome = begin => return outcome,
    };
    admin_logs.inspect(|logs| logs.flush());
    access_log.drain();
    match outcome {
        Exit::Clean => Ok(()),
        Exit::WorkerDied => anyhow::bail!("a worker ended by itself"),
    }
}

/// The start is over; the end comes from outside.
async fn stay(lifecycle: &Lifecycle, options: &Options) -> anyhow::Result<()> {
    if options.mode == Mode::InitOnly {
        lifecycle.quit();
    }
    give_back_pages();
    tokio::time::sleep(START_IS_OVER).await;
    give_back_pages();
    std::future::pending().await
}

fn give_back_pages() {
    if let Err(error) = program::give_back_pages() {
        tracing::debug!(%error, "the pages that starting needed stay mapped");
    }
}

/// Starts what fetches resources for the store; streams end when what is given back is dropped.
fn start_sources(
    store: &Store,
    wants: Wants,
    bootstrap: &Bootstrap,
    control: Rc<WorkerContext>,
    options: &Options,
) -> Rc<Subscriptions> {
    let fetched = store.clone();
    let unknown = if options.reject_unknown_dynamic_fields {
        UnknownFields::Reject
    } else if options.ignore_unknown_dynamic_fields {
        UnknownFields::Ignore
    } else {
        UnknownFields::Warn(control.registry.scope("server").shared())
    };
    tokio::task::spawn_local(async move {
        if let Err(error) = files::fetch(fetched, unknown, wants.files).await {
            tracing::error!(%error, "files are not watched");
        }
    });
    store.set_control(control.clone());
    let (node, ads) = (&bootstrap.node.bytes, bootstrap.dynamic.ads.clone());
    Subscriptions::start(control, node, ads, Rc::new(store.clone()), wants.streams)
}

fn start_workers(
    local: &Arc<LocalInfo>,
    state: &ServerAdmin,
    map: &Arc<ClusterMap>,
    registry: &Registry,
) -> anyhow::Result<()> {
    let mut seeds = rand::rng();
    for index in 0..state.workers as usize {
        let handle = start(WorkerSetup {
            index,
            clusters: map.clone(),
            registry: registry.clone(),
            access_log: state.access_log.clone(),
            local: local.clone(),
            seed: rand::Rng::random(&mut seeds),
            closing: state.lifecycle.closing(),
            ended: state.lifecycle.worker_ended(),
        })?;
        state.lifecycle.add_worker(handle);
    }
    Ok(())
}

/// The secret as the admin interface may show it.
fn hidden(secret: RawResource) -> RawResource {
    RawResource { bytes: redacted(&secret.bytes), ..secret }
}

/// Gives back what is to be flushed at the end: the lines of the admin interface.
async fn start_admin(
    state: &Rc<ServerAdmin>,
    config: Option<&crate::config::admin::AdminConfig>,
    registry: &Registry,
    options: &Options,
) -> anyhow::Result<Option<Rc<WorkerAccessLogs>>> {
    let Some(config) = config else { return Ok(None) };
    let listener = AdminListener::bind(config)
        .map_err(|e| anyhow::anyhow!("admin: address: cannot bind: {e}"))?;
    let Some(listener) = listener else { return Ok(None) };
    let address = listener.local_address()?;
    tracing::info!(%address, "admin interface");
    if let Some(path) = &options.admin_address_path {
        std::fs::write(path, &address)?;
    }
    // The control thread counts and buffers as one more worker.
    let logs = WorkerAccessLogs::new(state.access_log.clone(), state.workers as usize);
    let bound = logs.bind(&config.access_log);
    let admin = Rc::new(Admin::new(state.clone(), registry.clone(), config, Some(bound)));
    tokio::task::spawn_local(admin.serve(listener));
    Ok(Some(logs))
}
