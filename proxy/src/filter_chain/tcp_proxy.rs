//! The terminal filter for opaque TCP. pb `extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;

use super::Entered;
use super::copy::{CopyError, Direction};
use crate::access_log::AccessLogs;
use crate::cluster::WorkerCluster;
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
use crate::worker::connections::Drain;

/// A TCP proxy on one worker.
pub struct WorkerTcpProxy {
    config: Arc<TcpProxy>,
    stats: Block<TcpProxyStat>,
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
}

/// One proxied connection.
pub struct TcpConnection {
    pub worker: Rc<WorkerContext>,
    pub proxy: Rc<WorkerTcpProxy>,
    pub info: Rc<ConnectionInfo>,
    pub handle: Entered,
    /// `per_connection_buffer_limit_bytes`.
    pub limit: usize,
}

impl TcpConnection {
    /// Serves the connection to its end; `read` has what listener filters took.
    pub async fn serve(self, mut io: Io, read: BytesMut) {
        let proxy = self.proxy.clone();
        proxy.stats.inc(TcpProxyStat::DownstreamCxTotal);
        let started = self.info.started;
        let wall = SystemTime::now() - started.elapsed();
        let mut info = StreamInfo::new(self.info.clone(), self.info.id, started, wall);
        if let Some((mut lease, cluster)) = self.connect(&mut io, &mut info).await {
            if proxy.config.flush_log_on_connected {
                self.log(&info, AccessLogType::TcpUpstreamConnected);
            }
            let (remote, received, sent) =
                self.tunnel(&mut io, &mut lease, &cluster, read, &mut info).await;
            lease.close(remote, received, sent);
        }
        info.timing.end = Some(Instant::now());
        self.log(&info, AccessLogType::TcpConnectionEnd);
    }

    fn log(&self, info: &StreamInfo, kind: AccessLogType) {
        if !self.proxy.logs.is_empty() {
            let mut cx = format::Ctx::new(info);
            cx.access_log_type = kind;
            self.proxy.logs.log(&cx);
        }
    }

    /// Connects to a host of the cluster, as often as the configuration allows.
    async fn connect(
        &self,
        io: &mut Io,
        info: &mut StreamInfo,
    ) -> Option<(TcpLease, Rc<WorkerCluster>)> {
        let config = &self.proxy.config;
        let name = config.cluster.pick(self.worker.random());
        let Some(cluster) = self.worker.clusters.get(name) else {
            self.proxy.stats.inc(TcpProxyStat::DownstreamCxNoRoute);
            info.flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        info.upstream.cluster = Some(cluster.config.name.clone());
        let mut backoff = config.backoff;
        for attempt in 1..=config.max_connect_attempts {
            info.upstream.attempts = attempt;
            let Ok(host) = cluster.pick(&PickContext { reject: None, max_attempts: 1 }) else {
                info.flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
                return None;
            };
            info.upstream.host = Some(host.address.clone());
            match host.pools.connect_tcp(RoutingPriority::Default).await {
                Ok(lease) => {
                    info.upstream.local = lease.local_address().cloned();
                    info.upstream.remote = Some(host.address.clone());
                    info.upstream.connection_id = Some(lease.connection_id());
                    info.upstream.connect_duration = lease.connect_duration();
                    return Some((lease, cluster));
                }
                Err(PoolFailure::Overflow(_)) => {
                    info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                    return None;
                }
                Err(failure) => {
                    info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
                    info.upstream.transport_failure = failure.transport_failure().cloned();
                }
            }
            if attempt < config.max_connect_attempts
                && let Some((wait, max)) = backoff
            {
                let ms = wait.as_millis().max(1) as u64;
                let wait_for = Duration::from_millis(self.worker.random() % ms);
                self.worker.timers.sleep_until(Instant::now() + wait_for).await;
                backoff = Some(((wait * 2).min(max), max));
            }
        }
        info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        cluster.stats.inc(ClusterStat::UpstreamCxConnectAttemptsExceeded);
        let _ = io;
        None
    }

    /// Copies both ways until both are done, one fails, or a limit is reached. Whether the upstream ended it, and
    /// its bytes received and sent.
    async fn tunnel(
        &self,
        down: &mut Io,
        lease: &mut TcpLease,
        cluster: &WorkerCluster,
        read: BytesMut,
        info: &mut StreamInfo,
    ) -> (bool, u64, u64) {
        let config = &self.proxy.config;
        let timers = &self.worker.timers;
        let mut idle = timers.timer();
        let mut last = Instant::now();
        if let Some(timeout) = config.idle_timeout {
            idle.arm(last + timeout);
        }
        let mut age = timers.timer();
        if let Some(duration) = config.max_connection_duration {
            age.arm(self.info.started + duration);
        }
        let mut to_up = Direction::new(read);
        let mut to_down = Direction::default();
        let mut reset = false;
        let mut client_first = false;
        let outcome = poll_fn(|cx| {
            let mut moved = false;
            let up = to_up.poll(down, &mut lease.io, cx, &mut moved);
            let back = to_down.poll(&mut lease.io, down, cx, &mut moved);
            if moved {
                last = Instant::now();
            }
            match (up, back) {
                (Poll::Ready(Err(error)), _) => {
                    reset = error.is_reset();
                    return Poll::Ready(End::of(&error, true));
                }
                (_, Poll::Ready(Err(error))) => {
                    reset = error.is_reset();
                    return Poll::Ready(End::of(&error, false));
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Done),
                (Poll::Ready(Ok(())), Poll::Pending) => client_first = true,
                _ => {}
            }
            while idle.poll(cx).is_ready() {
                let timeout = config.idle_timeout.unwrap_or_default();
                if last.elapsed() >= timeout {
                    return Poll::Ready(End::Idle);
                }
                idle.arm(last + timeout);
            }
            if age.poll(cx).is_ready() {
                return Poll::Ready(End::TooOld);
            }
            if self.handle.poll_drain(Drain::Graceful, cx).is_ready() {
                return Poll::Ready(End::Drained);
            }
            Poll::Pending
        })
        .await;
        let stats = &self.proxy.stats;
        match outcome {
            End::Idle => stats.inc(TcpProxyStat::IdleTimeout),
            End::TooOld => {
                stats.inc(TcpProxyStat::MaxDownstreamConnectionDuration);
                info.flags.insert(ResponseFlags::DURATION_TIMEOUT);
            }
            End::Drained => stats.inc(TcpProxyStat::DownstreamCxDrainClose),
            End::Done | End::Upstream | End::Downstream => {}
        }
        if reset {
            // A reset passes as a reset: data may be missing, and the other end must see that.
            let other = if outcome == End::Upstream { down } else { &mut lease.io };
            if let Some(socket) = other.tcp() {
                let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            if outcome == End::Upstream {
                info.flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
            }
        }
        info.downstream_bytes.wire_received = to_up.bytes;
        info.downstream_bytes.wire_sent = to_down.bytes;
        info.bytes_received = to_up.bytes;
        info.bytes_sent = to_down.bytes;
        info.upstream.bytes.wire_sent = to_up.bytes;
        info.upstream.bytes.wire_received = to_down.bytes;
        stats.add(TcpProxyStat::DownstreamCxRxBytesTotal, to_up.bytes);
        stats.add(TcpProxyStat::DownstreamCxTxBytesTotal, to_down.bytes);
        let _ = cluster;
        // Whose FIN came last has closed the connection.
        let remote = outcome == End::Upstream || (outcome == End::Done && client_first);
        (remote, to_down.bytes, to_up.bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Upstream,
    Downstream,
    Idle,
    TooOld,
    Drained,
}

impl End {
    /// `to_up`: the direction that failed carried the client's bytes.
    fn of(error: &CopyError, to_up: bool) -> Self {
        match (error, to_up) {
            (CopyError::Read(_), true) | (CopyError::Write(_), false) => Self::Downstream,
            (CopyError::Read(_), false) | (CopyError::Write(_), true) => Self::Upstream,
        }
    }
}
