//! What is counted about a connection and about a request on it; given back when dropped.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::seat::Seat;
use crate::cluster::HostContext;
use crate::cluster::circuit_breaker::{Overflow, Resource};
use crate::codec::h1::IdleEnd;
use crate::config::cluster::RoutingPriority;
use crate::io::Io;
use crate::stats::names::{ClusterStat, Http2Stat};
use crate::stream_info::{Address, ByteMeter};
use crate::tls::TlsInfo;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CxKind {
    Http1,
    Http2,
    Tcp,
}

/// How a connection ended, for `upstream_cx_destroy_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Local,
    LocalWithRequest,
    Remote,
    RemoteWithRequest,
}

/// One upstream connection's place in the breakers, gauges and counters, from the first SYN to its end.
#[derive(Debug)]
pub(super) struct CxRecord {
    host: Rc<HostContext>,
    pub(super) id: u64,
    opened: Instant,
    /// `None` until connected.
    pub(super) connect_duration: Option<Duration>,
    pub(super) local: Option<Address>,
    /// Under TLS: what the handshake established.
    pub(super) tls: Option<Arc<TlsInfo>>,
    /// Requests so far, the present one included.
    pub(super) requests: u32,
    priority: RoutingPriority,
    kind: CxKind,
    end: End,
    /// Of the pool that it belongs to.
    pub(super) seat: Option<Rc<Seat>>,
}

impl CxRecord {
    /// Counts a new connection. `anyway`: the pool has none, so that the limit does not hold.
    pub(super) fn new(
        host: Rc<HostContext>,
        priority: RoutingPriority,
        kind: CxKind,
        anyway: bool,
    ) -> Result<Self, Overflow> {
        let cluster = &host.cluster;
        let breakers = &cluster.shared.breakers;
        let per_host = cluster.config.circuit_breakers.per_host_max_connections[priority as usize];
        let cx_active = &host.host.stats.cx_active;
        let admitted = match per_host {
            Some(limit) if cx_active.load(Relaxed) >= limit => {
                Err(Overflow { resource: Resource::Connections, priority, limit })
            }
            _ => breakers.try_acquire(Resource::Connections, priority),
        };
        if let Err(overflow) = admitted {
            cluster.stats.inc(ClusterStat::UpstreamCxOverflow);
            if !anyway {
                return Err(overflow);
            }
            breakers.acquire_anyway(Resource::Connections, priority);
        }
        cx_active.fetch_add(1, Relaxed);
        host.host.stats.cx_total.fetch_add(1, Relaxed);
        cluster.stats.inc(ClusterStat::UpstreamCxTotal);
        cluster.stats.gauge_inc(ClusterStat::UpstreamCxActive);
        let id = cluster.next_connection_id();
        let mut record = Self {
            host,
            id,
            opened: Instant::now(),
            connect_duration: None,
            local: None,
            tls: None,
            requests: 0,
            priority,
            kind,
            end: End::Local,
            seat: None,
        };
        record.speak(kind);
        Ok(record)
    }

    /// What it carries, where that is known only once it is connected.
    pub(super) fn speak(&mut self, kind: CxKind) {
        let cluster = &self.host.cluster;
        match kind {
            CxKind::Http1 => {
                cluster.shared.declare_codec(false);
                cluster.stats.inc(ClusterStat::UpstreamCxHttp1Total);
            }
            CxKind::Http2 => {
                cluster.shared.declare_codec(true);
                cluster.stats.inc(ClusterStat::UpstreamCxHttp2Total);
                cluster.http2_counters().codec.inc(Http2Stat::Nghttp2UpstreamConnections);
            }
            CxKind::Tcp => {}
        }
        self.kind = kind;
    }

    pub(super) fn connected(&mut self, io: &Io) {
        let took = self.opened.elapsed();
        let stats = &self.host.cluster.stats;
        stats.record(ClusterStat::UpstreamCxConnectMs, took.as_millis() as u64);
        self.connect_duration = Some(took);
        self.tls = io.tls().cloned();
        // A unix socket that connects has no name.
        self.local = io.local_address().ok().filter(|local| local.ip().is_some());
    }

    /// As Envoy counts a connection whose protocol was negotiated: as one without, then as one with it.
    pub(super) fn count_again(&self) {
        self.host.host.stats.cx_total.fetch_add(1, Relaxed);
        self.host.cluster.stats.inc(ClusterStat::UpstreamCxTotal);
    }

    /// The connection never came to be.
    pub(super) fn connect_failed(&mut self, timed_out: bool, local: bool) {
        let stats = &self.host.cluster.stats;
        stats.inc(ClusterStat::UpstreamCxConnectFail);
        if timed_out {
            stats.inc(ClusterStat::UpstreamCxConnectTimeout);
        }
        self.host.host.stats.cx_connect_fail.fetch_add(1, Relaxed);
        self.end = if timed_out || local { End::Local } else { End::Remote };
    }

    /// The peer closed it, with no request on it.
    pub(super) fn end_by_peer(&mut self) {
        self.end = End::Remote;
    }

    /// It ends while no request is on it.
    pub(super) fn end_idle(&mut self, end: IdleEnd) {
        match end {
            IdleEnd::Closed => self.end_by_peer(),
            IdleEnd::Unasked => self.host.cluster.stats.inc(ClusterStat::UpstreamCxProtocolError),
            IdleEnd::TimedOut => {}
        }
    }

    /// It ends behind its only request.
    pub(super) fn end_closed(&mut self, remote: bool) {
        self.end = if remote { End::Remote } else { End::Local };
    }

    /// It ends in the middle of a request.
    pub(super) fn end_with_request(&mut self, remote: bool) {
        self.end = if remote { End::RemoteWithRequest } else { End::LocalWithRequest };
    }

    /// When it was opened.
    pub(super) fn opened(&self) -> Instant {
        self.opened
    }
}

impl Drop for CxRecord {
    fn drop(&mut self) {
        let cluster = &self.host.cluster;
        let stats = &cluster.stats;
        cluster.shared.breakers.release(Resource::Connections, self.priority);
        if self.host.host.stats.cx_active.fetch_sub(1, Relaxed) == 1 {
            cluster.shared.breakers.note_pools_gone();
        }
        stats.gauge_dec(ClusterStat::UpstreamCxActive);
        stats.inc(ClusterStat::UpstreamCxDestroy);
        let remote = matches!(self.end, End::Remote | End::RemoteWithRequest);
        stats.inc(if remote {
            ClusterStat::UpstreamCxDestroyRemote
        } else {
            ClusterStat::UpstreamCxDestroyLocal
        });
        if matches!(self.end, End::LocalWithRequest | End::RemoteWithRequest) {
            stats.inc(ClusterStat::UpstreamCxDestroyWithActiveRq);
            stats.inc(if remote {
                ClusterStat::UpstreamCxDestroyRemoteWithActiveRq
            } else {
                ClusterStat::UpstreamCxDestroyLocalWithActiveRq
            });
        }
        if self.connect_duration.is_some() {
            let length = self.opened.elapsed().as_millis() as u64;
            stats.record(ClusterStat::UpstreamCxLengthMs, length);
            if self.kind != CxKind::Tcp {
                stats.record(ClusterStat::UpstreamRqPerCx, u64::from(self.requests));
            }
        }
    }
}

/// One request's place in the breakers, gauges and counters.
#[derive(Debug)]
pub(super) struct RqGuard {
    host: Rc<HostContext>,
    priority: RoutingPriority,
}

impl RqGuard {
    pub(super) fn new(host: &Rc<HostContext>, priority: RoutingPriority) -> Result<Self, Overflow> {
        let cluster = &host.cluster;
        if let Err(overflow) = cluster.shared.breakers.try_acquire(Resource::Requests, priority) {
            cluster.stats.inc(ClusterStat::UpstreamRqActiveOverflow);
            return Err(overflow);
        }
        Ok(Self::counted(host, priority))
    }

    /// Of a plain connection, which counts as a request and is never one too many: so Envoy.
    pub(super) fn unlimited(host: &Rc<HostContext>, priority: RoutingPriority) -> Self {
        host.cluster.shared.breakers.acquire_anyway(Resource::Requests, priority);
        Self::counted(host, priority)
    }

    fn counted(host: &Rc<HostContext>, priority: RoutingPriority) -> Self {
        let cluster = &host.cluster;
        host.host.stats.rq_total.fetch_add(1, Relaxed);
        host.host.stats.rq_active.fetch_add(1, Relaxed);
        cluster.stats.inc(ClusterStat::UpstreamRqTotal);
        cluster.stats.gauge_inc(ClusterStat::UpstreamRqActive);
        Self { host: host.clone(), priority }
    }

    pub(super) fn host(&self) -> &Rc<HostContext> {
        &self.host
    }

    pub(super) fn count_bytes(&self, meter: ByteMeter) {
        let stats = &self.host.cluster.stats;
        stats.add(ClusterStat::UpstreamCxRxBytesTotal, meter.wire_received);
        stats.add(ClusterStat::UpstreamCxTxBytesTotal, meter.wire_sent);
        if meter.wire_received > 0 {
            // Nothing stays in it; but it has been used.
            stats.gauge_add(ClusterStat::UpstreamCxRxBytesBuffered, 0);
        }
    }
}

impl Drop for RqGuard {
    fn drop(&mut self) {
        self.host.cluster.shared.breakers.release(Resource::Requests, self.priority);
        self.host.host.stats.rq_active.fetch_sub(1, Relaxed);
        self.host.cluster.stats.gauge_dec(ClusterStat::UpstreamRqActive);
    }
}

/// One waiting request's place in the breakers, gauges and counters.
#[derive(Debug)]
pub(super) struct PendingGuard {
    host: Rc<HostContext>,
    priority: RoutingPriority,
}

impl PendingGuard {
    pub(super) fn new(host: &Rc<HostContext>, priority: RoutingPriority) -> Result<Self, Overflow> {
        let cluster = &host.cluster;
        let breakers = &cluster.shared.breakers;
        if let Err(overflow) = breakers.try_acquire(Resource::PendingRequests, priority) {
            cluster.stats.inc(ClusterStat::UpstreamRqPendingOverflow);
            return Err(overflow);
        }
        host.host.stats.rq_pending_active.fetch_add(1, Relaxed);
        cluster.stats.inc(ClusterStat::UpstreamRqPendingTotal);
        cluster.stats.gauge_inc(ClusterStat::UpstreamRqPendingActive);
        Ok(Self { host: host.clone(), priority })
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.host.cluster.shared.breakers.release(Resource::PendingRequests, self.priority);
        self.host.host.stats.rq_pending_active.fetch_sub(1, Relaxed);
        self.host.cluster.stats.gauge_dec(ClusterStat::UpstreamRqPendingActive);
    }
}
