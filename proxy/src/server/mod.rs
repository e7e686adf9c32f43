//! The process: flags, bootstrap, workers, control thread, life cycle.
//!
//! `run` reads and compiles everything before it starts anything: a wrong configuration leaves nothing half
//! started. The calling thread becomes the control thread: DNS, admin, signals.

pub mod admin_state;
pub mod args;
pub mod cpu;
pub mod lifecycle;
pub mod quickstart;
pub mod version;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::admin::{Admin, AdminListener};
use crate::cluster::dns::{DnsDiscovery, Resolvers};
use crate::cluster::{ClusterMap, SharedCluster};
use crate::config::compile::CompileContext;
use crate::config::compile::configuration::{Configuration, load_configuration};
use crate::config::runtime;
use crate::hcm::request_headers::LocalInfo;
use crate::http_filters::ExtraFilters;
use crate::listener::sockets::{self, BoundListener};
use crate::stats::Registry;
use crate::stats::names::{ClusterManagerStat, ListenerManagerStat, ServerStat};
use crate::telemetry::{Log, LogOptions};
use crate::worker::run::{WorkerSetup, start};
use admin_state::ServerAdmin;
use args::{Command, Mode, Options};
use lifecycle::{Exit, Lifecycle};

/// How long start-up waits for the first answers of DNS before it serves without.
const INITIAL_DNS_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs a command line to its end. `extra_filters` are HTTP filters beside the built-in ones.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    extra_filters: &ExtraFilters,
) -> ExitCode {
    let command = match Command::parse(arguments) {
        Ok(command) => command,
        Err(exit) => {
            let write = |out: &mut dyn io::Write| out.write_all(exit.message.as_bytes());
            // Nobody is left to hear of a closed terminal.
            let _ =
                if exit.code == 0 { write(&mut io::stdout()) } else { write(&mut io::stderr()) };
            return ExitCode::from(exit.code);
        }
    };
    let outcome = match command {
        Command::Run(options) => run(&options, extra_filters, |_| Ok(())),
        Command::Quickstart(quickstart) => run_quickstart(&quickstart, extra_filters),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("{error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run_quickstart(
    quickstart: &args::QuickstartOptions,
    extra_filters: &ExtraFilters,
) -> anyhow::Result<()> {
    let mut line: Vec<OsString> = vec!["outrigger".into(), "-l".into(), "warn".into()];
    line.extend(["--file-flush-interval-msec".into(), "100".into()]);
    match &quickstart.config_path {
        Some(path) => line.extend(["-c".into(), path.into()]),
        None => line.extend(["--config-yaml".into(), quickstart::BOOTSTRAP.into()]),
    }
    let Ok(Command::Run(options)) = Command::parse(line) else {
        anyhow::bail!("the quickstart's own command line is wrong");
    };
    quickstart::start_services()?;
    run(&options, extra_filters, |_| {
        io::Write::write_all(&mut io::stdout(), quickstart::INTRODUCTION.as_bytes())?;
        quickstart::start_traffic()
    })
}

/// Everything that stands before the first worker starts.
struct Prepared {
    configuration: Configuration,
    registry: Registry,
    workers: usize,
    started: Instant,
}

/// Starts the server and serves until it is told to end. `ready` is called once, when it serves.
///
/// # Errors
/// The configuration is wrong, or something it asks for cannot be had.
pub fn run(
    options: &Options,
    extra_filters: &ExtraFilters,
    ready: impl FnOnce(&ServerAdmin) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let log = Log::install(&LogOptions {
        level: options.log_level,
        components: options.component_log_level.0.clone(),
        format: options.log_format.clone().unwrap_or_else(|| args::DEFAULT_LOG_FORMAT.to_owned()),
        escaped: options.log_format_escaped,
        path: options.log_path.clone(),
    })?;
    let mut configuration = load_configuration(options, &CompileContext { extra_filters })?;
    for unknown in &configuration.unknown_fields {
        tracing::warn!("unknown field passed over: {unknown}");
    }
    for ignored in &configuration.ignored {
        tracing::warn!("applied without: {ignored}");
    }
    if options.mode == Mode::Validate {
        let source = options
            .config_path
            .as_ref()
            .map_or_else(|| "--config-yaml".to_owned(), |path| path.display().to_string());
        io::Write::write_all(
            &mut io::stdout(),
            format!("configuration '{source}' OK\n").as_bytes(),
        )?;
        return Ok(());
    }
    if options.log_format.is_none()
        && let Some(pattern) = configuration.bootstrap.log_pattern.take()
    {
        log.set_pattern(pattern);
    }
    let workers = match options.concurrency {
        Some(n) => n.max(1),
        None => cpu::default_concurrency(options.cpuset_threads),
    } as usize;
    let registry = Registry::new(std::mem::take(&mut configuration.bootstrap.stats));
    runtime::publish(std::mem::take(&mut configuration.bootstrap.runtime));
    let prepared = Prepared { configuration, registry, workers, started };
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    control.block_on(local.run_until(serve(prepared, options, log, ready)))
}

async fn serve(
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
