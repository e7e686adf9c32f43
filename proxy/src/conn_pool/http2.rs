//! HTTP/2 connections of one host: streams on the most recently used one that has room, another connection when all
//! are full.
//!
//! A connection has room for the lesser of `max_concurrent_streams` and what the peer's SETTINGS admit. One task per
//! connection drives it and sees to its timers; a connection that the peer is going to close (GOAWAY), or that is
//! too old, leaves the list and ends with its last stream.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::auto::AutoPool;
use super::connect::{Transport, connect};
use super::pending::{Left, PendingQueue, Ticket};
use super::record::{CxKind, CxRecord, PendingGuard, RqGuard};
use super::seat::{Seat, SeatSlot};
use super::{Lease, PoolFailure};
use crate::cluster::HostContext;
use crate::codec::h2::{ClientConn, ClientStream, Driver, Settings};
use crate::config::cluster::RoutingPriority;
use crate::io::Io;
use crate::stats::names::ClusterStat;
use crate::stream_info::Address;
use crate::tls::TlsInfo;
use crate::upstream::TransportSocketOptions;
use crate::worker::timers::Timer;

/// One connection, held by the pool while it takes streams and by each of its streams. Its driver ends once nobody
/// holds it.
pub(super) struct Http2Connection {
    handle: ClientConn,
    pool: Weak<Http2Pool>,
    pub(super) id: u64,
    pub(super) local: Option<Address>,
    pub(super) tls: Option<Arc<TlsInfo>>,
    pub(super) connect_duration: Option<Duration>,
    opened: Instant,
    active: Cell<usize>,
    /// Streams so far; the driver reads it at the end.
    requests: Rc<Cell<u32>>,
    idle_since: Cell<Instant>,
    /// In the pool's list: it takes streams.
    listed: Cell<bool>,
    idle_timeout: Option<Duration>,
    driver: RefCell<Option<Waker>>,
    /// When the driver looks at what time has done; `None`: never.
    looks: Cell<Option<Instant>>,
    /// It has to look before what its timer is armed for.
    looks_earlier: Cell<bool>,
}

impl fmt::Debug for Http2Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A place for one stream.
#[derive(Debug)]
pub(super) struct StreamSlot {
    connection: Rc<Http2Connection>,
    first: bool,
}

impl StreamSlot {
    pub(super) fn connection(&self) -> &Http2Connection {
        &self.connection
    }

    /// Whether it is the connection's first.
    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    pub(super) fn open(&self) -> ClientStream {
        self.connection.handle.open()
    }

    /// The exchange is complete.
    pub(super) fn complete(self) {
        let connection = &self.connection;
        if connection.active.get() == 1 && !connection.listed.get() {
            connection.count_end_in_reading();
        }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.set(connection.active.get() - 1);
        if !connection.listed.get() {
            // It serves nobody else; its end may leave a place to who waits.
            return;
        }
        if connection.active.get() == 0 {
            connection.note_idle(Instant::now());
        }
        if let Some(pool) = connection.pool.upgrade() {
            pool.serve_pending();
        }
    }
}

pub(super) struct Http2Pool {
    host: Rc<HostContext>,
    priority: RoutingPriority,
    transport: Transport,
    settings: Arc<Settings>,
    /// Those that take streams, most recently used last.
    connections: RefCell<Vec<Rc<Http2Connection>>>,
    pending: PendingQueue<StreamSlot>,
    connecting: Cell<usize>,
    /// All connections: connecting, listed, and those that end with their last stream.
    open: Cell<usize>,
    pub(super) seat: SeatSlot,
    draining: Cell<bool>,
    /// Who has the queue, where ALPN decides what connections speak.
    auto: Weak<AutoPool>,
}

impl fmt::Debug for Http2Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Pool").finish_non_exhaustive()
    }
}

impl Http2Pool {
    pub(super) fn new(
        host: Rc<HostContext>,
        priority: RoutingPriority,
        options: Option<Arc<TransportSocketOptions>>,
        auto: Weak<AutoPool>,
    ) -> Rc<Self> {
        let http = &host.cluster.config.http;
        let settings = Settings::new(
            &http.http2,
            &http.common,
            http.common.max_response_headers_kb.unwrap_or(60),
        );
        Rc::new(Self {
            settings: Arc::new(settings),
            host,
            priority,
            transport: Transport { options, protocols: &["h2"] },
            connections: RefCell::default(),
            pending: PendingQueue::default(),
            connecting: Cell::new(0),
            open: Cell::new(0),
            seat: SeatSlot::default(),
            draining: Cell::new(false),
            auto,
        })
    }

    pub(super) fn is_used(&self) -> bool {
        self.open.get() > 0 || !self.pending.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        let connections = self.connections.borrow();
        !self.pending.is_empty()
            || self.open.get() > self.connecting.get() + connections.len()
            || connections.iter().any(|connection| connection.active.get() > 0)
    }

    /// A stream on a connection that has room; `None` where none has.
    pub(super) fn try_acquire(self: &Rc<Self>) -> Option<Result<Lease, PoolFailure>> {
        let slot = self.reserve()?;
        Some(self.lease(slot))
    }

    /// Waits for a new connection, or for a stream to end before.
    pub(super) async fn wait(self: Rc<Self>, _seat: Rc<Seat>) -> Result<Lease, PoolFailure> {
        let pending =
            PendingGuard::new(&self.host, self.priority).map_err(PoolFailure::Overflow)?;
        let place = Place { ticket: self.pending.join(), pool: &self };
        self.open_connections();
        let slot = place.ticket.outcome().await?;
        drop(place);
        drop(pending);
        self.lease(slot)
    }

    pub(super) fn lease(&self, slot: StreamSlot) -> Result<Lease, PoolFailure> {
        let rq = RqGuard::new(&self.host, self.priority).map_err(PoolFailure::Overflow)?;
        Ok(Lease::new_http2(slot, rq))
    }

    fn room(&self, connection: &Http2Connection) -> bool {
        let handle = &connection.handle;
        connection.active.get() < handle.max_concurrent_streams() && !handle.is_closed()
    }

    /// Takes a place on the most recently used connection that has one.
    pub(super) fn reserve(&self) -> Option<StreamSlot> {
        let mut connections = self.connections.borrow_mut();
        let at = connections.iter().rposition(|connection| self.room(connection))?;
        let last = connections.len() - 1;
        if at != last {
            connections[at..].rotate_left(1);
        }
        let connection = connections[last].clone();
        let requests = connection.requests.get() + 1;
        connection.requests.set(requests);
        connection.active.set(connection.active.get() + 1);
        let limit = self.host.cluster.config.http.common.max_requests_per_connection;
        if limit.is_some_and(|limit| requests >= limit) {
            connections.pop();
            connection.listed.set(false);
            self.host.cluster.stats.inc(ClusterStat::UpstreamCxMaxRequests);
        }
        Some(StreamSlot { connection, first: requests == 1 })
    }

    /// Gives places to those who wait, and opens connections for the rest.
    fn serve_pending(self: &Rc<Self>) {
        while !self.pending.is_empty() {
            let Some(slot) = self.reserve() else { break };
            // Nobody leaves the queue between the check and here.
            drop(self.pending.serve(slot));
        }
        self.open_connections();
        if let Some(auto) = self.auto.upgrade() {
            auto.serve_pending();
        }
    }

    fn open_connections(self: &Rc<Self>) {
        let at_once = self.settings.options.max_concurrent_streams;
        let in_all = self.host.cluster.config.http.common.max_requests_per_connection;
        let streams = in_all.map_or(at_once, |in_all| in_all.min(at_once)) as usize;
        while self.connecting.get().saturating_mul(streams) < self.pending.len() {
            let anyway = self.open.get() == 0;
            let host = self.host.clone();
            let Ok(mut record) = CxRecord::new(host, self.priority, CxKind::Http2, anyway) else {
                return;
            };
            record.seat = self.seat.held();
            self.connecting.set(self.connecting.get() + 1);
            self.open.set(self.open.get() + 1);
            tokio::task::spawn_local(self.clone().open_connection(record));
        }
    }

    /// Takes a connection that was opened for whichever protocol it would negotiate.
    pub(super) fn adopt(self: &Rc<Self>, handle: ClientConn, driver: Driver, record: CxRecord) {
        self.open.set(self.open.get() + 1);
        self.add(handle, driver, record);
    }

    /// The beginning of HTTP/2 on a new connection.
    pub(super) async fn greet(
        &self,
        io: Io,
        record: &mut CxRecord,
    ) -> Result<(ClientConn, Driver), PoolFailure> {
        let counters = self.host.cluster.http2_counters();
        ClientConn::handshake(io, self.settings.clone(), counters).await.map_err(|_| {
            record.end_by_peer();
            PoolFailure::LocalClose
        })
    }

    async fn open_connection(self: Rc<Self>, mut record: CxRecord) {
        let outcome = match connect(&self.host, &self.transport, &mut record).await {
            Ok(io) => self.greet(io, &mut record).await,
            Err(failure) => Err(failure),
        };
        self.connecting.set(self.connecting.get() - 1);
        match outcome {
            Ok((handle, driver)) => self.add(handle, driver, record),
            Err(failure) => {
                let ejected = self.pending.fail_all(&failure) as u64;
                let stats = &self.host.cluster.stats;
                stats.add(ClusterStat::UpstreamRqPendingFailureEject, ejected);
                self.closed(record);
            }
        }
    }

    fn add(self: &Rc<Self>, handle: ClientConn, driver: Driver, mut record: CxRecord) {
        let connection = Rc::new(Http2Connection {
            handle,
            pool: Rc::downgrade(self),
            id: record.id,
            local: record.local.take(),
            tls: record.tls.take(),
            connect_duration: record.connect_duration,
            opened: record.opened(),
            active: Cell::new(0),
            requests: Rc::default(),
            idle_since: Cell::new(Instant::now()),
            listed: Cell::new(false),
            idle_timeout: self.host.cluster.config.http.common.idle_timeout,
            driver: RefCell::default(),
            looks: Cell::new(None),
            looks_earlier: Cell::new(true),
        });
        let timer = self.host.cluster.timers.timer();
        let (pool, weak) = (Rc::downgrade(self), Rc::downgrade(&connection));
        tokio::task::spawn_local(drive(driver, pool, weak, record, timer));
        let is_waited_for = !self.pending.is_empty()
            || self.auto.upgrade().is_some_and(|auto| auto.is_waited_for());
        if !self.draining.get() || is_waited_for {
            connection.listed.set(true);
            self.connections.borrow_mut().push(connection);
        }
        self.serve_pending();
        if self.draining.get() {
            self.drain();
        }
    }

    /// The connection takes no more streams.
    fn unlist(self: &Rc<Self>, connection: &Rc<Http2Connection>) -> bool {
        let mut connections = self.connections.borrow_mut();
        let at = connections.iter().position(|listed| Rc::ptr_eq(listed, connection));
        connection.listed.set(false);
        at.map(|at| connections.remove(at)).is_some()
    }

    /// A connection is gone; those who wait because of the limit may have its place.
    fn closed(self: &Rc<Self>, record: CxRecord) {
        drop(record);
        self.open.set(self.open.get() - 1);
        self.serve_pending();
    }

    /// Connections end with their last stream.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        let connections = std::mem::take(&mut *self.connections.borrow_mut());
        connections.iter().for_each(|connection| connection.listed.set(false));
    }
}

impl Http2Connection {
    /// What it reads leads to its end. Envoy closes in the middle of reading then, and counts the rest as an error.
    fn count_end_in_reading(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.host.cluster.stats.inc(ClusterStat::UpstreamCxProtocolError);
        }
    }

    /// Its last stream has ended: the driver looks no later than when it has been idle for too long.
    fn note_idle(&self, now: Instant) {
        self.idle_since.set(now);
        let Some(expires) = self.idle_timeout.map(|timeout| now + timeout) else { return };
        if self.looks.get().is_some_and(|at| at <= expires) {
            return;
        }
        self.looks.set(Some(expires));
        self.looks_earlier.set(true);
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    /// Closes what is closed, idle or open for too long; sets the timer to the next deadline.
    fn check(self: &Rc<Self>, cx: &mut Context<'_>, timer: &mut Timer) {
        let Some(pool) = self.pool.upgrade() else { return };
        let known = self.driver.borrow().as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if !known {
            self.driver.replace(Some(cx.waker().clone()));
        }
        let stats = &pool.host.cluster.stats;
        if self.handle.is_closed() {
            if pool.unlist(self) {
                stats.inc(ClusterStat::UpstreamCxCloseNotify);
                if self.active.get() == 0 {
                    self.count_end_in_reading();
                }
            }
            return;
        }
        let fired = timer.poll(cx).is_ready();
        if !self.looks_earlier.take() && !fired {
            return;
        }
        let config = &pool.host.cluster.config.http.common;
        let now = Instant::now();
        // With streams on it the next look may be late, so that one in turn with idle moments does not wake the driver.
        let idle_since = if self.active.get() == 0 { self.idle_since.get() } else { now };
        let expires = self.idle_timeout.map(|timeout| idle_since + timeout);
        let ends = config.max_connection_duration.map(|limit| self.opened + limit);
        let over = if expires.is_some_and(|at| at <= now) {
            Some(ClusterStat::UpstreamCxIdleTimeout)
        } else if ends.is_some_and(|at| at <= now) {
            Some(ClusterStat::UpstreamCxMaxDurationReached)
        } else {
            None
        };
        if let Some(stat) = over {
            if pool.unlist(self) {
                stats.inc(stat);
            }
            return;
        }
        let next = [expires, ends].into_iter().flatten().min();
        self.looks.set(next);
        if let Some(deadline) = next {
            timer.arm(deadline);
            let _ = timer.poll(cx);
        }
    }
}

/// Drives a connection until it ends.
async fn drive(
    mut driver: Driver,
    pool: Weak<Http2Pool>,
    connection: Weak<Http2Connection>,
    mut record: CxRecord,
    mut timer: Timer,
) {
    let requests = connection.upgrade().map(|connection| connection.requests.clone());
    poll_fn(|cx| {
        if Pin::new(&mut driver).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(connection) = connection.upgrade() {
            connection.check(cx, &mut timer);
        }
        Poll::Pending
    })
    .await;
    let pool = pool.upgrade();
    // Ended by us when nobody held it any more, by the peer otherwise.
    if let Some(connection) = connection.upgrade() {
        let handle = &connection.handle;
        let answered = connection.active.get() == 0 || handle.is_all_answered();
        match (answered, handle.has_goaway()) {
            // GOAWAY and FIN came at once: it was said first.
            (true, true) => {}
            (true, false) => record.end_by_peer(),
            (false, _) => record.end_with_request(true),
        }
        if let Some(pool) = &pool
            && pool.unlist(&connection)
            && handle.has_goaway()
        {
            pool.host.cluster.stats.inc(ClusterStat::UpstreamCxCloseNotify);
            if connection.active.get() == 0 {
                connection.count_end_in_reading();
            }
        }
    }
    record.requests = requests.map_or(0, |requests| requests.get());
    if let Some(pool) = pool {
        pool.closed(record);
    }
}

/// A place in the queue, which is left when the request is given up.
struct Place<'a> {
    ticket: Ticket<'a, StreamSlot>,
    pool: &'a Rc<Http2Pool>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.ticket.leave() {
            Left::Served(outcome) => drop(outcome),
            Left::Waiting => {
                self.pool.host.cluster.stats.inc(ClusterStat::UpstreamRqCancelled);
            }
            Left::Done => {}
        }
    }
}
