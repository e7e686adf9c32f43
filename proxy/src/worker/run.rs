//! A worker's thread: its runtime, its listeners, and what control tells it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::WorkerContext;
use super::closing::{Closing, ListenerDrain};
use super::listeners::{ListenerCommand, Listeners};
use super::timers::Timers;
use crate::access_log::{AccessLogWriter, WorkerAccessLogs};
use crate::cluster::{ClusterMap, WorkerClusters};
use crate::hcm::request_headers::LocalInfo;
use crate::listener::sockets::SocketHandle;
use crate::stats::Registry;

/// What control tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Tells the connections of listeners to end after what is in flight.
    Drain(ListenerDrain),
    /// Stops accepting on these listeners; their sockets close once their queues are empty.
    StopListeners(Arc<[usize]>),
    /// Stops accepting, drains everything, and ends when no connection is left.
    Exit,
    /// Ends now.
    Abort,
    /// The listener of a number.
    Listener(usize, ListenerCommand),
    /// Another version of a cluster is in force, or none.
    ClusterChanged(Arc<str>),
    /// A cluster's host set has changed: close idle connections to hosts that have gone.
    HostsChanged(Arc<str>),
}

/// A worker as control sees it.
#[derive(Debug)]
pub struct WorkerHandle {
    pub commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread's end.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker thread panicked");
        }
    }
}

/// What a worker starts with.
pub struct WorkerSetup {
    pub index: usize,
    pub clusters: Arc<ClusterMap>,
    pub registry: Registry,
    pub access_log: Arc<AccessLogWriter>,
    pub local: Arc<LocalInfo>,
    pub seed: u64,
    pub closing: Arc<Closing>,
    /// Told once, when the thread has ended.
    pub ended: mpsc::UnboundedSender<usize>,
}

/// Starts a worker's thread.
///
/// # Errors
/// The thread or its runtime cannot be made.
pub fn start(setup: WorkerSetup) -> io::Result<WorkerHandle> {
    let (commands, inbox) = mpsc::unbounded_channel();
    // Made here so that a failure is an error of the caller.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One connection's readiness is served before the reactor is asked again; h2 streams are tasks too.
        .event_interval(61)
        .build()?;
    let thread = std::thread::Builder::new().name(format!("wrk:worker_{}", setup.index)).spawn(
        move || {
            let _end = TellEnd { index: setup.index, ended: setup.ended.clone() };
            let local = LocalSet::new();
            let access_logs = runtime.block_on(local.run_until(run(setup, inbox)));
            // Connections that are left are dropped with the set, and have their lines written.
            let entered = runtime.enter();
            drop(local);
            drop(entered);
            access_logs.flush();
        },
    )?;
    Ok(WorkerHandle { commands, thread: Some(thread) })
}

/// Says that a worker has ended, also where it panicked.
pub(super) struct TellEnd {
    pub(super) index: usize,
    pub(super) ended: mpsc::UnboundedSender<usize>,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        let _ = self.ended.send(self.index);
    }
}

/// The worker's life; gives its access logs, to which what is dropped may still write.
async fn run(
    setup: WorkerSetup,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) -> Rc<WorkerAccessLogs> {
    let timers = Timers::new(Instant::now());
    let clusters = WorkerClusters::new(setup.clusters, setup.index, timers.clone(), setup.seed);
    let access_logs = WorkerAccessLogs::new(setup.access_log, setup.index);
    let mut worker = WorkerContext::new(
        setup.index,
        timers.clone(),
        clusters,
        setup.registry,
        access_logs.clone(),
        setup.local,
        setup.seed ^ 0x9e37_79b9_7f4a_7c15,
    );
    worker.closing = setup.closing;
    let worker = Rc::new(worker);
    let mut drives = tokio::task::spawn_local(async move { timers.drive().await });
    let mut listeners = Listeners::new(worker.clone());
    loop {
        // A panic in a connection's task is that connection's. Without these tasks nobody is served: the worker ends, and
        // the process with it.
        let command = tokio::select! {
            command = inbox.recv() => command,
            failed = listeners.failed() => {
                tracing::error!(worker = worker.index, %failed, "an accept loop panicked");
                break;
            }
            ended = &mut drives => {
                tracing::error!(worker = worker.index, ?ended, "the timers panicked");
                break;
            }
        };
        let Some(command) = command else { break };
        match command {
            Command::Drain(drain) => listeners.drain(drain),
            Command::StopListeners(numbers) => {
                listeners.stop(|number| numbers.contains(&number));
            }
            Command::Listener(number, command) => listeners.apply(number, command),
            Command::ClusterChanged(name) => worker.clusters.forget(&name),
            Command::HostsChanged(name) => worker.clusters.refresh_one(&name),
            Command::Abort => break,
            Command::Exit => {
                listeners.stop(|_| true);
                worker.connections.drain_all();
                wait_for_the_end(&worker, &mut listeners, &mut inbox).await;
                break;
            }
        }
    }
    access_logs
}

/// Until nobody waits to be accepted and the last connection has ended, or `Abort`. What control planes send meanwhile
/// still reaches the requests in flight; listeners no longer change.
async fn wait_for_the_end(
    worker: &WorkerContext,
    listeners: &mut Listeners,
    inbox: &mut mpsc::UnboundedReceiver<Command>,
) {
    let connections = worker.connections.clone();
    loop {
        let end = async {
            listeners.closed().await;
            std::future::poll_fn(|cx| connections.poll_empty(cx)).await;
        };
        let command = tokio::select! {
            () = end => return,
            command = inbox.recv() => command,
        };
        match command {
            Some(Command::ClusterChanged(name)) => worker.clusters.forget(&name),
            Some(Command::HostsChanged(name)) => worker.clusters.refresh_one(&name),
            // Nobody is to wait in a queue that nobody serves.
            Some(Command::Listener(_, ListenerCommand::Put { sockets: Some(sockets), .. })) => {
                sockets.iter().for_each(SocketHandle::close);
            }
            Some(
                Command::Listener(..)
                | Command::Drain(_)
                | Command::StopListeners(_)
                | Command::Exit,
            ) => {}
            Some(Command::Abort) | None => return,
        }
    }
}
