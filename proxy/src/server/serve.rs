//! The control thread: starts what a compiled configuration asks for, and serves until the process is to end.
//!
//! Order: access log writer, clusters, sockets, admin interface, DNS, workers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admin_state::ServerAdmin;
use super::args::{Mode, Options};
use super::lifecycle::{Exit, Lifecycle};
use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::admin::{Admin, AdminListener};
use crate::cluster::dns::{DnsDiscovery, Resolvers};
use crate::cluster::{ClusterMap, SharedCluster};
use crate::config::compile::configuration::Configuration;
use crate::hcm::request_headers::LocalInfo;
use crate::listener::sockets::{self, BoundListener};
use crate::stats::Registry;
use crate::stats::names::{ClusterManagerStat, ListenerManagerStat, ServerStat};
use crate::telemetry::Log;
use crate::worker::run::{WorkerSetup, start};

/// How long start-up waits for the first answers of DNS before it serves without.
const INITIAL_DNS_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything that stands before the first worker starts.
pub(super) struct Prepared {
    pub(super) configuration: Configuration,
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
    let Prepared { configuration, registry, workers, started } = prepared;
    let access_log = AccessLogWriter::start(
        FlushOptions {
            interval: options.file_flush_interval(),
            min_size: options.file_flush_min_size(),
        },
        &registry,
    )?;
    let Configuration { bootstrap, listeners, clusters, raw, ignored, unknown_fields, .. } =
        configuration;
    let (raw_clusters, shared): (Vec<_>, Vec<_>) = clusters
        .into_iter()
        .map(|(raw, cluster)| (raw, Arc::new(SharedCluster::new(Arc::new(cluster), &registry))))
        .unzip();
    let map = Arc::new(ClusterMap::new(shared.iter().cloned()));
    let breakers = map.clone();
    registry.before_read(move || breakers.write_breaker_gauges());
    let (raw_listeners, listeners): (Vec<_>, Vec<_>) =
        listeners.into_iter().map(|(raw, listener)| (raw, Arc::new(listener))).unzip();
    let mut bound: Vec<BoundListener> = Vec::new();
    for listener in &listeners {
        bound.push(if listener.bind_to_port {
            sockets::bind(listener, workers)?
        } else {
            BoundListener::unbound(listener, workers)
        });
    }
    let (lifecycle, exit) = Lifecycle::new(options);
    let state = Rc::new(ServerAdmin {
        started,
        options: options.clone(),
        workers: workers as u32,
        node: bootstrap.node.bytes.clone(),
        listeners: listeners.clone(),
        addresses: bound.iter().map(|b| b.addresses.clone()).collect(),
        clusters: map.clone(),
        cluster_order: shared.iter().map(|c| c.config.name.clone()).collect(),
        raw_bootstrap: raw,
        raw_listeners,
        raw_clusters,
        loaded_at: std::time::SystemTime::now(),
        ignored,
        lifecycle: lifecycle.clone(),
        access_log: access_log.clone(),
        log,
    });
    // The admin interface answers while the rest starts.
    start_admin(&state, bootstrap.admin.as_ref(), &registry, options).await?;
    let discoveries = start_dns(&shared).await;
    count(&registry, &shared, listeners.len(), workers, &unknown_fields);
    let local = Arc::new(LocalInfo {
        service_cluster: bootstrap.node.cluster.clone(),
        service_node: bootstrap.node.id.clone(),
    });
    let mut seeds = rand::rng();
    let mut per_worker: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (listener, bound) in listeners.iter().zip(bound) {
        for (worker, sockets) in per_worker.iter_mut().zip(bound.workers) {
            worker.push((listener.clone(), sockets));
        }
    }
    for (index, listeners) in per_worker.into_iter().enumerate() {
        let handle = start(WorkerSetup {
            index,
            listeners,
            clusters: map.clone(),
            registry: registry.clone(),
            access_log: access_log.clone(),
            local: local.clone(),
            seed: rand::Rng::random(&mut seeds),
            ended: lifecycle.worker_ended(),
        })?;
        lifecycle.add_worker(handle);
    }
    lifecycle.set_live();
    let server = registry.scope("server").shared::<ServerStat>();
    server.record(ServerStat::InitializationTimeMs, started.elapsed().as_millis() as u64);
    registry
        .scope("listener_manager")
        .shared::<ListenerManagerStat>()
        .gauge_set(ListenerManagerStat::WorkersStarted, 1);
    tracing::info!(workers, listeners = listeners.len(), clusters = shared.len(), "serving");
    ready(&state)?;
    if options.mode == Mode::InitOnly {
        lifecycle.quit();
    }
    let outcome = exit.wait(&lifecycle).await;
    drop(discoveries);
    access_log.drain();
    match outcome {
        Exit::Clean => Ok(()),
        Exit::WorkerDied => anyhow::bail!("a worker ended by itself"),
    }
}

async fn start_admin(
    state: &Rc<ServerAdmin>,
    config: Option<&crate::config::admin::AdminConfig>,
    registry: &Registry,
    options: &Options,
) -> anyhow::Result<()> {
    let Some(config) = config else { return Ok(()) };
    let listener = AdminListener::bind(config)
        .map_err(|e| anyhow::anyhow!("admin: address: cannot bind: {e}"))?;
    let Some(listener) = listener else { return Ok(()) };
    let address = listener.local_address()?;
    tracing::info!(%address, "admin interface");
    if let Some(path) = &options.admin_address_path {
        std::fs::write(path, &address)?;
    }
    // The control thread counts and buffers as one more worker.
    let logs = WorkerAccessLogs::new(state.access_log.clone(), state.workers as usize);
    let logs = logs.bind(&config.access_log);
    let admin = Rc::new(Admin::new(state.clone(), registry.clone(), config, Some(logs)));
    tokio::task::spawn_local(admin.serve(listener));
    Ok(())
}

/// Starts DNS and waits for the first answers.
async fn start_dns(clusters: &[Arc<SharedCluster>]) -> Vec<DnsDiscovery> {
    let resolvers = Resolvers::default();
    let mut seeds = rand::rng();
    let mut discoveries: Vec<_> = clusters
        .iter()
        .filter_map(|c| DnsDiscovery::start(c, &resolvers, rand::Rng::random(&mut seeds)))
        .collect();
    let all = async {
        for discovery in &mut discoveries {
            discovery.initialised().await;
        }
    };
    if tokio::time::timeout(INITIAL_DNS_TIMEOUT, all).await.is_err() {
        tracing::warn!("DNS has not answered for every cluster; serving without");
    }
    discoveries
}

fn count(
    registry: &Registry,
    clusters: &[Arc<SharedCluster>],
    listeners: usize,
    workers: usize,
    unknown: &[String],
) {
    let manager = registry.scope("cluster_manager").shared::<ClusterManagerStat>();
    manager.gauge_set(ClusterManagerStat::ActiveClusters, clusters.len() as u64);
    manager.add(ClusterManagerStat::ClusterAdded, clusters.len() as u64);
    let manager = registry.scope("listener_manager").shared::<ListenerManagerStat>();
    manager.gauge_set(ListenerManagerStat::TotalListenersActive, listeners as u64);
    manager.add(ListenerManagerStat::ListenerAdded, listeners as u64);
    manager.add(ListenerManagerStat::ListenerCreateSuccess, (listeners * workers) as u64);
    let server = registry.scope("server").shared::<ServerStat>();
    server.add(ServerStat::StaticUnknownFields, unknown.len() as u64);
}
