//! Stage 8: connection pools, per worker, no locks. A picked host in, a lease on a connection out.
//!
//! A pool belongs to a host, a protocol, a routing priority and the transport socket options that the downstream
//! side asks for. A warm HTTP/1 lease costs no allocation, no system call and no wait. Everybody else queues up to
//! `max_pending_requests` while connections open. Limits count over all workers (`cluster::circuit_breaker`).

mod auto;
mod connect;
mod http1;
mod http2;
mod pending;
mod pools;
mod record;
mod seat;
mod tcp;

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

pub use tcp::TcpLease;

use crate::cluster::HostContext;
use crate::cluster::circuit_breaker::{Overflow, Resource};
use crate::cluster::host::Host;
use crate::codec::head::Protocol;
use crate::codec::{ClientStream, raw};
use crate::config::cluster::RoutingPriority;
use crate::stats::names::ClusterStat;
use crate::stream_info::Address;
use crate::tls::TlsInfo;
use crate::upstream::{ConnectError, TransportSocketOptions};
use auto::AutoPool;
use connect::Transport;
use http1::{Http1Pool, Ready};
use http2::{Http2Pool, StreamSlot};
use pools::Pools;
use record::{CxRecord, RqGuard};
use seat::{Seat, SeatSlot};

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolFailure {
    /// A circuit breaker is open: response flag `UO`.
    #[error("overflow of {0}")]
    Overflow(Overflow),
    /// The connection could not be opened: `UF`.
    #[error("connection failure: {0}")]
    Connect(#[from] ConnectError),
    /// `connect_timeout` passed: `UF`.
    #[error("connection timeout")]
    Timeout,
    /// The pool was closed while the request waited.
    #[error("connection pool closed")]
    LocalClose,
}

impl PoolFailure {
    /// The reset reason as Envoy words it in its local reply and its response code details.
    pub fn reset_reason(&self) -> &'static str {
        match self {
            Self::Overflow(_) => "overflow",
            Self::Connect(error) if error.local => "local connection failure",
            Self::Connect(_) => "remote connection failure",
            Self::Timeout => "connection timeout",
            Self::LocalClose => "local connection failure",
        }
    }

    /// `max_connection_pools` was reached.
    pub fn is_of_pools(&self) -> bool {
        matches!(self, Self::Overflow(Overflow { resource: Resource::ConnectionPools, .. }))
    }

    /// Whether a host is known to have been meant: not where the queue before it was full, as in Envoy.
    pub fn names_host(&self) -> bool {
        !matches!(self, Self::Overflow(Overflow { resource: Resource::PendingRequests, .. }))
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub fn transport_failure(&self) -> Option<&Arc<str>> {
        match self {
            Self::Connect(error) => Some(&error.reason),
            Self::Overflow(_) | Self::Timeout | Self::LocalClose => None,
        }
    }
}

#[derive(Debug)]
enum HttpPool {
    Http1(Rc<Http1Pool>),
    Http2(Rc<Http2Pool>),
    Auto(Rc<AutoPool>),
}

/// What connections speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PoolKind {
    Http1,
    Http2,
    /// What each negotiates.
    Auto,
}

impl HttpPool {
    fn kind(&self) -> PoolKind {
        match self {
            Self::Http1(_) => PoolKind::Http1,
            Self::Http2(_) => PoolKind::Http2,
            Self::Auto(_) => PoolKind::Auto,
        }
    }

    fn try_acquire(&self) -> Option<Result<Lease, PoolFailure>> {
        match self {
            Self::Http1(pool) => pool.try_acquire(),
            Self::Http2(pool) => pool.try_acquire(),
            Self::Auto(pool) => pool.try_acquire(),
        }
    }

    fn wait(self, seat: Rc<Seat>) -> LocalBoxFuture<'static, Result<Lease, PoolFailure>> {
        match self {
            Self::Http1(pool) => Box::pin(pool.wait(seat)),
            Self::Http2(pool) => Box::pin(pool.wait(seat)),
            Self::Auto(pool) => Box::pin(pool.wait(seat)),
        }
    }

    fn seat(&self) -> &SeatSlot {
        match self {
            Self::Http1(pool) => &pool.seat,
            Self::Http2(pool) => &pool.seat,
            Self::Auto(pool) => &pool.seat,
        }
    }

    /// Whether a request is on one of its connections, or waits for one.
    fn is_busy(&self) -> bool {
        match self {
            Self::Http1(pool) => pool.is_busy(),
            Self::Http2(pool) => pool.is_busy(),
            Self::Auto(pool) => pool.is_busy(),
        }
    }

    /// Closes idle connections; busy ones close when their requests are done.
    fn drain(&self) {
        match self {
            Self::Http1(pool) => pool.drain(),
            Self::Http2(pool) => pool.drain(),
            Self::Auto(pool) => pool.drain(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    priority: RoutingPriority,
    pool: HttpPool,
}

impl Entry {
    /// Whether it has a connection, or somebody who waits for one or holds the pool.
    fn is_used(&self) -> bool {
        match &self.pool {
            HttpPool::Http1(pool) => Rc::strong_count(pool) > 1 || pool.is_used(),
            HttpPool::Http2(pool) => Rc::strong_count(pool) > 1 || pool.is_used(),
            HttpPool::Auto(pool) => Rc::strong_count(pool) > 1 || pool.is_used(),
        }
    }

    /// Whether it holds a place among pools for nobody.
    fn is_spare(&self) -> bool {
        self.pool.seat().held().is_some() && !self.pool.is_busy()
    }

    fn is(&self, kind: PoolKind, priority: RoutingPriority) -> bool {
        self.pool.kind() == kind && self.priority == priority
    }
}

/// What a pool has for a request.
pub enum Acquire {
    /// A warm connection, or a stream on one.
    Ready(Lease),
    /// To be waited for. Cancel-safe: a connection that opens for a caller who has gone stays in the pool.
    Wait(LocalBoxFuture<'static, Result<Lease, PoolFailure>>),
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Wait(_) => "Wait",
        })
    }
}

/// The pools of one host on one worker.
pub struct HostPools {
    host: Rc<HostContext>,
    http: RefCell<Pools>,
}

impl fmt::Debug for HostPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPools").field("http", &self.http).finish()
    }
}

impl HostPools {
    pub(crate) fn new(host: Rc<HostContext>) -> Self {
        Self { host, http: RefCell::default() }
    }

    /// A connection (HTTP/1) or a stream (HTTP/2) for one request.
    ///
    /// # Errors
    /// See `PoolFailure`.
    pub fn try_acquire(
        &self,
        protocol: Protocol,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Result<Acquire, PoolFailure> {
        let kind = match protocol {
            Protocol::Http2 => PoolKind::Http2,
            _ => PoolKind::Http1,
        };
        self.acquire_of(kind, priority, options)
    }

    /// As `try_acquire` for a cluster that leaves the protocol to ALPN: each connection finds out.
    ///
    /// # Errors
    /// See `PoolFailure`.
    pub fn try_acquire_negotiated(
        &self,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Result<Acquire, PoolFailure> {
        self.acquire_of(PoolKind::Auto, priority, options)
    }

    fn acquire_of(
        &self,
        kind: PoolKind,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Result<Acquire, PoolFailure> {
        let pool = self.pool(kind, priority, options);
        if let Some(result) = pool.try_acquire() {
            return result.map(Acquire::Ready);
        }
        let seat = self.seat(&pool, priority)?;
        Ok(Acquire::Wait(pool.wait(seat)))
    }

    /// The pool's place among pools; where none is left, that of another of the host's that has nothing to do.
    fn seat(&self, pool: &HttpPool, priority: RoutingPriority) -> Result<Rc<Seat>, PoolFailure> {
        let slot = pool.seat();
        if let Some(seat) = slot.held() {
            return Ok(seat);
        }
        let taken = slot.take(&self.host, priority).or_else(|overflow| {
            let Some(spare) = self.http.borrow_mut().take_spare(priority) else {
                return Err(overflow);
            };
            spare.pool.drain();
            spare.pool.seat().give_back();
            slot.take(&self.host, priority)
        });
        taken.map_err(|overflow| {
            self.host.cluster.stats.inc(ClusterStat::UpstreamCxPoolOverflow);
            PoolFailure::Overflow(overflow)
        })
    }

    /// As `try_acquire`, with the wait.
    ///
    /// # Errors
    /// See `PoolFailure`.
    pub async fn acquire(
        &self,
        protocol: Protocol,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Result<Lease, PoolFailure> {
        match self.try_acquire(protocol, priority, options)? {
            Acquire::Ready(lease) => Ok(lease),
            Acquire::Wait(wait) => wait.await,
        }
    }

    /// A connection of its own for one downstream connection.
    ///
    /// # Errors
    /// See `PoolFailure`.
    pub async fn connect_tcp(
        &self,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> Result<TcpLease, PoolFailure> {
        let transport = Transport { options: options.cloned(), ..Transport::default() };
        tcp::connect(&self.host, priority, &transport).await
    }

    /// A plain connection for the payload of one CONNECT; `first` goes out before it.
    pub fn tunnel(
        &self,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
        first: Bytes,
    ) -> Acquire {
        let host = self.host.clone();
        let transport = Transport { options: options.cloned(), ..Transport::default() };
        Acquire::Wait(Box::pin(async move {
            let (io, record, rq) = tcp::connect(&host, priority, &transport).await?.into_parts();
            let stream = ClientStream::Raw(Box::new(raw::ClientConn::new(io, first)));
            let base = Base::Tcp { record: Box::new(record) };
            Ok(Lease { stream: Some(stream), base: Some(base), rq, reused: false })
        }))
    }

    fn pool(
        &self,
        kind: PoolKind,
        priority: RoutingPriority,
        options: Option<&Arc<TransportSocketOptions>>,
    ) -> HttpPool {
        let mut pools = self.http.borrow_mut();
        if let Some(entry) = pools.find(kind, priority, options) {
            return entry.pool.clone();
        }
        let (host, owned, alone) = (self.host.clone(), options.cloned(), Weak::new());
        let pool = match kind {
            PoolKind::Http1 => HttpPool::Http1(Http1Pool::new(host, priority, owned, alone)),
            PoolKind::Http2 => HttpPool::Http2(Http2Pool::new(host, priority, owned, alone)),
            PoolKind::Auto => HttpPool::Auto(AutoPool::new(host, priority, owned)),
        };
        pools.insert(Entry { priority, pool: pool.clone() }, options);
        pool
    }

    /// Closes idle connections; busy ones close when their requests are done.
    pub fn drain(&self) {
        for entry in self.http.borrow().iter() {
            entry.pool.drain();
        }
    }
}

impl Drop for HostPools {
    fn drop(&mut self) {
        self.drain();
    }
}

impl Clone for HttpPool {
    fn clone(&self) -> Self {
        match self {
            Self::Http1(pool) => Self::Http1(pool.clone()),
            Self::Http2(pool) => Self::Http2(pool.clone()),
            Self::Auto(pool) => Self::Auto(pool.clone()),
        }
    }
}

/// What a lease stands on.
#[derive(Debug)]
enum Base {
    Http1 { pool: Rc<Http1Pool>, record: Box<CxRecord> },
    Http2(StreamSlot),
    Tcp { record: Box<CxRecord> },
}

/// A connection or stream, for one request. Ends by `release` or `close`; when dropped it closes.
#[derive(Debug)]
pub struct Lease {
    /// `None` only once it was given back.
    stream: Option<ClientStream>,
    /// As `stream`.
    base: Option<Base>,
    rq: RqGuard,
    reused: bool,
}

impl Lease {
    fn new_http1(pool: Rc<Http1Pool>, ready: Ready, rq: RqGuard) -> Self {
        let reused = ready.record.requests > 1;
        let base = Base::Http1 { pool, record: ready.record };
        Self { stream: Some(ClientStream::H1(ready.conn)), base: Some(base), rq, reused }
    }

    fn new_http2(slot: StreamSlot, rq: RqGuard) -> Self {
        let reused = !slot.is_first();
        let stream = ClientStream::H2(Box::new(slot.open()));
        Self { stream: Some(stream), base: Some(Base::Http2(slot)), rq, reused }
    }

    /// Whether the connection has served a request before: only then a failure without an answer may be a stale
    /// connection's.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.rq.host().host
    }

    /// What it speaks; a plain connection, where that is asked, behaves as one of HTTP/1.
    pub fn protocol(&self) -> Protocol {
        match self.stream {
            Some(ClientStream::H2(_)) => Protocol::Http2,
            Some(ClientStream::H1(ref conn)) => conn.protocol(),
            Some(ClientStream::Raw(_)) | None => Protocol::Http11,
        }
    }

    /// It speaks no HTTP.
    pub fn is_raw(&self) -> bool {
        matches!(self.base, Some(Base::Tcp { .. }))
    }

    /// Unique in the process.
    pub fn connection_id(&self) -> u64 {
        match &self.base {
            Some(Base::Http1 { record, .. } | Base::Tcp { record }) => record.id,
            Some(Base::Http2(slot)) => slot.connection().id,
            None => 0,
        }
    }

    /// Our end's address.
    pub fn local_address(&self) -> Option<&Address> {
        match &self.base {
            Some(Base::Http1 { record, .. } | Base::Tcp { record }) => record.local.as_ref(),
            Some(Base::Http2(slot)) => slot.connection().local.as_ref(),
            None => None,
        }
    }

    /// What the handshake established, under TLS.
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        match &self.base {
            Some(Base::Http1 { record, .. } | Base::Tcp { record }) => record.tls.as_ref(),
            Some(Base::Http2(slot)) => slot.connection().tls.as_ref(),
            None => None,
        }
    }

    /// How long connecting took.
    pub fn connect_duration(&self) -> Option<Duration> {
        match &self.base {
            Some(Base::Http1 { record, .. } | Base::Tcp { record }) => record.connect_duration,
            Some(Base::Http2(slot)) => slot.connection().connect_duration,
            None => None,
        }
    }

    /// The exchange is complete. `reusable`: the caller has nothing against another on the connection; whether its
    /// state allows one is the pool's to see.
    pub fn release(mut self, reusable: bool, now: Instant) {
        let (Some(stream), Some(base)) = (self.stream.take(), self.base.take()) else { return };
        // HTTP/2 bytes are counted by their connection.
        match base {
            Base::Http1 { pool, record } => {
                self.rq.count_bytes(stream.meter());
                if let Some(conn) = stream.into_h1() {
                    pool.release(Ready { conn, record }, reusable, now);
                }
            }
            Base::Tcp { mut record } => {
                self.rq.count_bytes(stream.meter());
                let remote = matches!(&stream, ClientStream::Raw(c) if c.peer_closed_last());
                record.end_closed(remote);
            }
            Base::Http2(slot) => slot.complete(),
        }
    }

    /// The exchange failed or was given up. `remote`: the peer closed or reset the connection. HTTP/1: it is closed;
    /// HTTP/2: only the stream ends, which the caller has reset.
    pub fn close(mut self, remote: bool) {
        self.abandon(remote);
    }

    fn abandon(&mut self, remote: bool) {
        let (Some(stream), Some(base)) = (self.stream.take(), self.base.take()) else { return };
        let (pool, mut record) = match base {
            Base::Http1 { pool, record } => (pool, record),
            Base::Tcp { mut record } => {
                self.rq.count_bytes(stream.meter());
                return record.end_with_request(remote);
            }
            Base::Http2(_) => return,
        };
        self.rq.count_bytes(stream.meter());
        if let Some(conn) = stream.into_h1()
            && conn.said_close()
        {
            let stats = &self.rq.host().cluster.stats;
            stats.inc(ClusterStat::UpstreamCxCloseNotify);
        }
        record.end_with_request(remote);
        pool.closed(record);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.abandon(false);
    }
}

impl Deref for Lease {
    type Target = ClientStream;

    fn deref(&self) -> &ClientStream {
        self.stream.as_ref().expect("a lease has its stream until it is given back by value")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut ClientStream {
        self.stream.as_mut().expect("a lease has its stream until it is given back by value")
    }
}

#[cfg(test)]
mod tests;
