//! The terminal filter for opaque TCP. pb `extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::{Entered, stream_info};
use crate::access_log::AccessLogs;
use crate::cluster::WorkerCluster;
use crate::cluster::original_dst::Asking;
use crate::config::cluster::RoutingPriority;
use crate::config::tcp_proxy::TcpProxy;
use crate::conn_pool::{PoolFailure, TcpLease};
use crate::format::{self, AccessLogType};
use crate::io::Io;
use crate::load_balancer::PickContext;
use crate::stats::Block;
use crate::stats::names::{ClusterStat, TcpProxyStat};
use crate::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::worker::WorkerContext;
use crate::worker::timers::Timer;

/// Bytes that are taken of a client while its upstream connection is being made.
const EARLY_BYTES: usize = 16 * 1024;

/// A TCP proxy on one worker.
pub struct WorkerTcpProxy {
    pub(super) config: Arc<TcpProxy>,
    pub(super) stats: Block<TcpProxyStat>,
    logs: AccessLogs,
}

impl fmt::Debug for WorkerTcpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerTcpProxy").field("stat_prefix", &self.config.stat_prefix).finish()
    }
}

impl WorkerTcpProxy {
    pub fn new(config: Arc<TcpProxy>, worker: &WorkerContext) -> Self {
        let scope = worker.registry.scope(&format!("tcp.{}", config.stat_prefix));
        Self {
            stats: scope.block(worker.index),
            logs: worker.access_logs.bind(&config.access_log),
            config,
        }
    }

    /// Counts and logs a connection that a filter before has closed after `received` bytes.
    pub(super) fn refused(&self, info: &mut StreamInfo, received: u64) {
        self.stats.inc(TcpProxyStat::DownstreamCxTotal);
        self.stats.add(TcpProxyStat::DownstreamCxRxBytesTotal, received);
        info.bytes_received = received;
        self.end(info);
    }

    fn end(&self, info: &mut StreamInfo) {
        info.timing.end = Some(Instant::now());
        self.log(info, AccessLogType::TcpConnectionEnd);
    }

    pub(super) fn log(&self, info: &StreamInfo, kind: AccessLogType) {
        if !self.logs.is_empty() {
            let mut cx = format::Ctx::new(info);
            cx.access_log_type = kind;
            self.logs.log(&cx);
        }
    }
}

/// One proxied connection.
pub struct TcpConnection {
    pub worker: Rc<WorkerContext>,
    pub proxy: Rc<WorkerTcpProxy>,
    pub info: Rc<ConnectionInfo>,
    pub handle: Entered,
}

/// The clocks that run from a connection's beginning.
pub(super) struct Clocks {
    /// `max_downstream_connection_duration`.
    pub(super) age: Timer,
    /// `access_log_flush_interval`.
    flush: Timer,
}

/// The client's bytes that came before there was an upstream.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) read: BytesMut,
    /// The client has sent its FIN behind them.
    pub(super) finished: bool,
}

/// What ended waiting for an upstream connection.
enum Wait<T> {
    Over(T),
    ClientGone,
    TooOld,
}

/// What is known of a connection while it is served. Its end, when this is dropped, is counted and logged: also where its
/// task is ended by force.
pub(super) struct Session<'a> {
    connection: &'a TcpConnection,
    pub(super) info: Box<StreamInfo>,
    pub(super) lease: Option<TcpLease>,
    /// It was the upstream that ended it.
    pub(super) by_upstream: bool,
}

impl<'a> Session<'a> {
    fn new(connection: &'a TcpConnection) -> Self {
        let info = Box::new(stream_info(&connection.info));
        Self { connection, info, lease: None, by_upstream: false }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let proxy = &self.connection.proxy;
        let bytes = self.info.upstream.bytes;
        if let Some(lease) = self.lease.take() {
            proxy.stats.add(TcpProxyStat::DownstreamCxRxBytesTotal, bytes.wire_sent);
            if bytes.wire_sent > 0 {
                // Nothing stays in it; but it has been used.
                proxy.stats.gauge_add(TcpProxyStat::DownstreamCxRxBytesBuffered, 0);
            }
            proxy.stats.add(TcpProxyStat::DownstreamCxTxBytesTotal, bytes.wire_received);
            lease.close(self.by_upstream, bytes.wire_received, bytes.wire_sent);
        }
        if !std::thread::panicking() {
            proxy.end(&mut self.info);
            let connection = self.connection;
            let info = &mut *self.info;
            connection.handle.leave(|| std::mem::replace(info, stream_info(&connection.info)));
        }
    }
}

impl TcpConnection {
    /// Serves the connection to its end; `read` has what listener filters took.
    pub async fn serve(self, mut io: Io, read: BytesMut) {
        let proxy = &self.proxy;
        proxy.stats.inc(TcpProxyStat::DownstreamCxTotal);
        let mut session = Session::new(&self);
        if proxy.config.flush_log_on_start {
            proxy.log(&session.info, AccessLogType::TcpConnectionStart);
        }
        let mut clocks = Clocks::new(&self.worker, &proxy.config, &session.info);
        let mut early = Early { read, finished: false };
        session.lease = self.connect(&mut io, &mut early, &mut clocks, &mut session.info).await;
        if session.lease.is_some() {
            if proxy.config.flush_log_on_connected {
                proxy.log(&session.info, AccessLogType::TcpUpstreamConnected);
            }
            self.relay(&mut io, &mut session, early, &mut clocks).await;
        } else if !early.read.is_empty() {
            // Nobody takes what the client has sent.
            io.reset_on_drop();
        }
    }

    /// Connects to a host of the cluster, as often as the configuration allows.
    async fn connect(
        &self,
        io: &mut Io,
        early: &mut Early,
        clocks: &mut Clocks,
        info: &mut StreamInfo,
    ) -> Option<TcpLease> {
        let config = &self.proxy.config;
        let sni = self.info.requested_server_name.as_ref().filter(|_| config.cluster_by_sni);
        let name = sni.unwrap_or_else(|| config.cluster.pick(self.worker.random()));
        let Some(cluster) = self.worker.clusters.get(name) else {
            self.proxy.stats.inc(TcpProxyStat::DownstreamCxNoRoute);
            info.flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        info.upstream.cluster = Some(cluster.config.name.clone());
        info.upstream.cluster_observability_name = cluster.config.alt_stat_name.clone();
        let mut backoff = config.backoff;
        for attempt in 1..=config.max_connect_attempts {
            let opened = self.attempt(&cluster, attempt, io, early, clocks, info).await?;
            if let Some(lease) = opened {
                return Some(lease);
            }
            if attempt < config.max_connect_attempts
                && let Some((wait, max)) = backoff
            {
                let ms = wait.as_millis().max(1) as u64;
                let wait_for = Duration::from_millis(self.worker.random() % ms);
                let slept = pin!(self.worker.timers.sleep_until(Instant::now() + wait_for));
                self.wait(slept, io, early, clocks, info).await?;
                backoff = Some(((wait * 2).min(max), max));
            }
        }
        info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        cluster.stats.inc(ClusterStat::UpstreamCxConnectAttemptsExceeded);
        None
    }

    /// One attempt; `Some(None)` when another may follow.
    async fn attempt(
        &self,
        cluster: &WorkerCluster,
        attempt: u32,
        io: &mut Io,
        early: &mut Early,
        clocks: &mut Clocks,
        info: &mut StreamInfo,
    ) -> Option<Option<TcpLease>> {
        let asking = Asking { stream: Some(info), head: None };
        let Ok(host) = cluster.pick(&PickContext { asking, ..PickContext::default() }) else {
            info.flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
            return None;
        };
        info.upstream.attempts = attempt;
        info.upstream.host = Some(host.address.clone());
        let options = self.info.upstream_options.as_ref();
        let connecting = pin!(host.pools.connect_tcp(RoutingPriority::Default, options));
        match self.wait(connecting, io, early, clocks, info).await? {
            Ok(lease) => {
                info.upstream.local = lease.local_address().cloned();
                info.upstream.tls = lease.io.tls().cloned();
                info.upstream.remote = Some(host.address.clone());
                info.upstream.connection_id = Some(lease.connection_id());
                info.upstream.connect_duration = lease.connect_duration();
                Some(Some(lease))
            }
            Err(PoolFailure::Overflow(_)) => {
                info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                None
            }
            Err(failure) => {
                info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
                info.upstream.transport_failure = failure.transport_failure().cloned();
                Some(None)
            }
        }
    }

    /// Waits for what leads to an upstream; `None` when the client has reset its connection or its time is over.
    /// A client that has only sent its FIN may still want an answer.
    async fn wait<T>(
        &self,
        mut what: std::pin::Pin<&mut impl Future<Output = T>>,
        io: &mut Io,
        early: &mut Early,
        clocks: &mut Clocks,
        info: &mut StreamInfo,
    ) -> Option<T> {
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(value) = what.as_mut().poll(cx) {
                return Poll::Ready(Wait::Over(value));
            }
            while !early.finished && early.read.len() < EARLY_BYTES {
                if io.poll_read_ready(cx).is_pending() {
                    break;
                }
                early.read.reserve(EARLY_BYTES);
                match io.poll_read(cx, &mut early.read) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => early.finished = true,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Wait::ClientGone),
                }
            }
            if early.read.is_empty() {
                // A silent client holds no buffer.
                early.read = BytesMut::new();
            }
            if clocks.age.poll(cx).is_ready() {
                return Poll::Ready(Wait::TooOld);
            }
            self.flush_log(clocks, info, cx);
            Poll::Pending
        })
        .await;
        match outcome {
            Wait::Over(value) => Some(value),
            Wait::ClientGone => None,
            Wait::TooOld => {
                self.too_old(info);
                None
            }
        }
    }

    pub(super) fn too_old(&self, info: &mut StreamInfo) {
        self.proxy.stats.inc(TcpProxyStat::MaxDownstreamConnectionDuration);
        info.flags.insert(ResponseFlags::DURATION_TIMEOUT);
    }

    /// Writes the line of each `access_log_flush_interval` that is over.
    pub(super) fn flush_log(&self, clocks: &mut Clocks, info: &StreamInfo, cx: &mut Context<'_>) {
        let Some(interval) = self.proxy.config.access_log_flush_interval else { return };
        while clocks.flush.poll(cx).is_ready() {
            self.proxy.log(info, AccessLogType::TcpPeriodic);
            clocks.flush.arm(Instant::now() + interval);
        }
    }
}

impl Clocks {
    fn new(worker: &WorkerContext, config: &TcpProxy, info: &StreamInfo) -> Self {
        let mut age = worker.timers.timer();
        if let Some(duration) = config.max_connection_duration {
            age.arm(info.start + duration);
        }
        let mut flush = worker.timers.timer();
        if let Some(interval) = config.access_log_flush_interval {
            flush.arm(info.start + interval);
        }
        Self { age, flush }
    }
}
