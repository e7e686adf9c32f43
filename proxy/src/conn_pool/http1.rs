//! HTTP/1 connections of one host: a stack of idle ones, most recently used on top.
//!
//! One task per pool watches all idle connections with one waker: it drops those that the peer closes at once, and
//! those that were idle or open for too long when the earliest deadline passes. It sleeps otherwise.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::auto::AutoPool;
use super::connect::{Transport, connect};
use super::pending::{Left, PendingQueue, Ticket};
use super::record::{CxKind, CxRecord, PendingGuard, RqGuard};
use super::seat::{Seat, SeatSlot};
use super::{Lease, PoolFailure};
use crate::cluster::HostContext;
use crate::codec::h1::{ClientConn, ClientSettings, IdleEnd};
use crate::config::cluster::RoutingPriority;
use crate::io::Io;
use crate::stats::names::ClusterStat;
use crate::upstream::TransportSocketOptions;
use crate::worker::timers::Timer;

/// A connection that no request is on.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) conn: Box<ClientConn>,
    pub(super) record: Box<CxRecord>,
}

#[derive(Debug)]
struct Idle {
    ready: Ready,
    since: Instant,
}

pub(super) struct Http1Pool {
    host: Rc<HostContext>,
    priority: RoutingPriority,
    transport: Transport,
    settings: Arc<ClientSettings>,
    /// Newest last, so that `since` never falls.
    idle: RefCell<Vec<Idle>>,
    pending: PendingQueue<Ready>,
    connecting: Cell<usize>,
    /// All connections: connecting, busy and idle.
    open: Cell<usize>,
    /// Of the watching task, once it runs.
    watcher: RefCell<Option<Waker>>,
    /// A deadline is set, maybe for a connection that is no longer there.
    armed: Cell<bool>,
    draining: Cell<bool>,
    pub(super) seat: SeatSlot,
    /// Who has the queue, where ALPN decides what connections speak.
    auto: Weak<AutoPool>,
}

impl fmt::Debug for Http1Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Pool").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Http1Pool {
    pub(super) fn new(
        host: Rc<HostContext>,
        priority: RoutingPriority,
        options: Option<Arc<TransportSocketOptions>>,
        auto: Weak<AutoPool>,
    ) -> Rc<Self> {
        let http = &host.cluster.config.http;
        Rc::new(Self {
            settings: Arc::new(ClientSettings::new(&http.http1, &http.common)),
            host,
            priority,
            transport: Transport { options, protocols: &["http/1.1"] },
            idle: RefCell::default(),
            pending: PendingQueue::default(),
            connecting: Cell::new(0),
            open: Cell::new(0),
            watcher: RefCell::default(),
            armed: Cell::new(false),
            draining: Cell::new(false),
            seat: SeatSlot::default(),
            auto,
        })
    }

    pub(super) fn is_used(&self) -> bool {
        self.open.get() > 0 || !self.pending.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        let without_request = self.idle.borrow().len() + self.connecting.get();
        self.open.get() > without_request || !self.pending.is_empty()
    }

    /// An idle connection, newest first; `None` where there is none.
    pub(super) fn try_acquire(self: &Rc<Self>) -> Option<Result<Lease, PoolFailure>> {
        loop {
            let Idle { mut ready, .. } = self.idle.borrow_mut().pop()?;
            if let Some(end) = self.idle_end(&mut ready.conn) {
                ready.record.end_idle(end);
                self.closed(ready.record);
                continue;
            }
            return Some(self.lease(ready));
        }
    }

    /// Waits for a connection: a new one, or one that comes free before.
    pub(super) async fn wait(self: Rc<Self>, _seat: Rc<Seat>) -> Result<Lease, PoolFailure> {
        let pending =
            PendingGuard::new(&self.host, self.priority).map_err(PoolFailure::Overflow)?;
        let place = Place { ticket: self.pending.join(), pool: &self };
        self.open_connections();
        let ready = place.ticket.outcome().await?;
        drop(place);
        drop(pending);
        self.lease(ready)
    }

    pub(super) fn lease(self: &Rc<Self>, mut ready: Ready) -> Result<Lease, PoolFailure> {
        match RqGuard::new(&self.host, self.priority) {
            Ok(rq) => {
                ready.record.requests += 1;
                Ok(Lease::new_http1(self.clone(), ready, rq))
            }
            Err(overflow) => {
                self.offer(ready, Instant::now());
                Err(PoolFailure::Overflow(overflow))
            }
        }
    }

    /// Opens connections until as many are on their way as requests wait, or the limit is reached.
    fn open_connections(self: &Rc<Self>) {
        while self.connecting.get() < self.pending.len() {
            // Without any connection those who wait would wait for ever: one is opened whatever the limit.
            let anyway = self.open.get() == 0;
            let host = self.host.clone();
            let Ok(mut record) = CxRecord::new(host, self.priority, CxKind::Http1, anyway) else {
                return;
            };
            record.seat = self.seat.held();
            self.connecting.set(self.connecting.get() + 1);
            self.open.set(self.open.get() + 1);
            tokio::task::spawn_local(self.clone().open_connection(Box::new(record)));
        }
    }

    async fn open_connection(self: Rc<Self>, mut record: Box<CxRecord>) {
        let outcome = connect(&self.host, &self.transport, &mut record).await;
        self.connecting.set(self.connecting.get() - 1);
        match outcome {
            Ok(io) => {
                let conn = Box::new(ClientConn::new(io, self.settings.clone()));
                self.offer(Ready { conn, record }, Instant::now());
            }
            Err(failure) => {
                // As in Envoy: whoever waits decides anew, by its retry policy.
                let ejected = self.pending.fail_all(&failure) as u64;
                let stats = &self.host.cluster.stats;
                stats.add(ClusterStat::UpstreamRqPendingFailureEject, ejected);
                self.closed(record);
            }
        }
    }

    /// Takes a connection that was opened for whichever protocol it would negotiate.
    pub(super) fn adopt(self: &Rc<Self>, io: Io, record: Box<CxRecord>) {
        self.open.set(self.open.get() + 1);
        let conn = Box::new(ClientConn::new(io, self.settings.clone()));
        self.offer(Ready { conn, record }, Instant::now());
    }

    /// Takes back a connection whose exchange is complete.
    pub(super) fn release(self: &Rc<Self>, ready: Ready, reusable: bool, now: Instant) {
        let stats = &self.host.cluster.stats;
        let limits = &self.host.cluster.config.http.common;
        let mut ready = ready;
        if ready.conn.said_close() {
            stats.inc(ClusterStat::UpstreamCxCloseNotify);
        }
        if ready.conn.peer_ended() {
            ready.record.end_by_peer();
        } else if ready.conn.has_unasked() {
            stats.inc(ClusterStat::UpstreamCxProtocolError);
        } else if !ready.conn.is_reusable() {
            // What follows closes it.
        } else if limits.max_requests_per_connection.is_some_and(|n| ready.record.requests >= n) {
            stats.inc(ClusterStat::UpstreamCxMaxRequests);
        } else if self.is_too_old(&ready.record, now) {
            stats.inc(ClusterStat::UpstreamCxMaxDurationReached);
        } else if reusable {
            self.offer(ready, now);
            return;
        }
        let Ready { conn, record } = ready;
        drop(conn);
        self.closed(record);
    }

    fn is_too_old(&self, record: &CxRecord, now: Instant) -> bool {
        let limit = self.host.cluster.config.http.common.max_connection_duration;
        limit.is_some_and(|limit| now.saturating_duration_since(record.opened()) >= limit)
    }

    /// Gives a connection to who waits longest, else to the stack.
    pub(super) fn offer(self: &Rc<Self>, ready: Ready, now: Instant) {
        let Err(mut ready) = self.pending.serve(ready) else {
            // As in Envoy the rest may open connections, or count that it may not.
            return self.open_connections();
        };
        if let Some(auto) = self.auto.upgrade() {
            match auto.serve(ready) {
                Ok(()) => return auto.open_connections(),
                Err(back) => ready = back,
            }
        }
        if self.draining.get() || self.host.host.is_removed() {
            self.closed(ready.record);
            return;
        }
        if self.watcher.borrow().is_none() {
            self.start_watching();
        }
        if let Some(end) = self.idle_end(&mut ready.conn) {
            ready.record.end_idle(end);
            self.closed(ready.record);
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() == idle.capacity() {
            // Doubling would leave up to half of what thousands of idle connections take unused.
            let more = (idle.len() / 4).max(2);
            idle.reserve_exact(more);
        }
        idle.push(Idle { ready, since: now });
        drop(idle);
        if !self.armed.replace(true)
            && let Some(watcher) = &*self.watcher.borrow()
        {
            watcher.wake_by_ref();
        }
    }

    /// Leaves the watcher's waker with the connection where it is alive.
    fn idle_end(&self, conn: &mut ClientConn) -> Option<IdleEnd> {
        let end = match &*self.watcher.borrow() {
            Some(watcher) => conn.poll_idle(&mut Context::from_waker(watcher)),
            None => conn.poll_idle(&mut Context::from_waker(Waker::noop())),
        };
        match end {
            Poll::Ready(end) => Some(end),
            Poll::Pending => None,
        }
    }

    /// A connection is gone; those who wait because of the limit may have its place.
    pub(super) fn closed(self: &Rc<Self>, record: Box<CxRecord>) {
        drop(record);
        self.open.set(self.open.get() - 1);
        if !self.pending.is_empty() {
            self.open_connections();
        }
        if let Some(auto) = self.auto.upgrade() {
            auto.serve_pending();
        }
    }

    /// No connection stays any longer than its request.
    pub(super) fn drain(self: &Rc<Self>) {
        self.draining.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        for Idle { ready, .. } in idle {
            self.closed(ready.record);
        }
        // So that the watching task sees that it is no longer needed.
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
    }

    fn start_watching(self: &Rc<Self>) {
        // The first poll comes later; until then nobody is woken, and that poll looks at everything.
        self.watcher.replace(Some(Waker::noop().clone()));
        let (pool, timer) = (Rc::downgrade(self), self.host.cluster.timers.timer());
        tokio::task::spawn_local(watch(pool, timer));
    }

    /// Drops what is closed or expired, and sets the timer to the next deadline.
    fn sweep(self: &Rc<Self>, cx: &mut Context<'_>, timer: &mut Timer) {
        let now = Instant::now();
        let config = &self.host.cluster.config.http.common;
        let stats = &self.host.cluster.stats;
        let mut gone = Vec::new();
        let mut next: Option<Instant> = None;
        let mut idle = self.idle.borrow_mut();
        let mut at = 0;
        while at < idle.len() {
            let entry = &mut idle[at];
            let expires = config.idle_timeout.map(|timeout| entry.since + timeout);
            let ends = config.max_connection_duration.map(|d| entry.ready.record.opened() + d);
            if let Poll::Ready(end) = entry.ready.conn.poll_idle(cx) {
                entry.ready.record.end_idle(end);
            } else if expires.is_some_and(|at| at <= now) {
                stats.inc(ClusterStat::UpstreamCxIdleTimeout);
            } else if ends.is_some_and(|at| at <= now) {
                stats.inc(ClusterStat::UpstreamCxMaxDurationReached);
            } else {
                next = [expires, ends, next].into_iter().flatten().min();
                at += 1;
                continue;
            }
            // Order is what expiry rests on: no `swap_remove`.
            gone.push(idle.remove(at).ready.record);
        }
        drop(idle);
        // With all connections busy the next look may be late, so that a busy pool does not wake this task with
        // every connection that comes back.
        let limits = [config.idle_timeout, config.max_connection_duration];
        let shortest = limits.into_iter().flatten().min();
        if next.is_none() && self.open.get() > 0 {
            next = shortest.map(|shortest| now + shortest);
        }
        self.armed.set(next.is_some() || shortest.is_none());
        match next {
            Some(deadline) => timer.arm(deadline),
            None => timer.disarm(),
        }
        for record in gone {
            self.closed(record);
        }
    }
}

/// Watches the idle connections of a pool for as long as it lives.
async fn watch(pool: Weak<Http1Pool>, mut timer: Timer) {
    poll_fn(|cx| {
        let Some(pool) = pool.upgrade().filter(|pool| !pool.draining.get()) else {
            return Poll::Ready(());
        };
        let known = pool.watcher.borrow().as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if !known {
            pool.watcher.replace(Some(cx.waker().clone()));
        }
        // Once to see whether it fired, once to leave the waker with the new deadline.
        let _ = timer.poll(cx);
        pool.sweep(cx, &mut timer);
        let _ = timer.poll(cx);
        Poll::Pending
    })
    .await;
}

/// A place in the queue, which is left when the request is given up.
struct Place<'a> {
    ticket: Ticket<'a, Ready>,
    pool: &'a Rc<Http1Pool>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.ticket.leave() {
            Left::Served(Ok(ready)) => self.pool.offer(ready, Instant::now()),
            Left::Waiting => {
                self.pool.host.cluster.stats.inc(ClusterStat::UpstreamRqCancelled);
            }
            Left::Served(Err(_)) | Left::Done => {}
        }
    }
}

/// What the pool itself keeps of an idle connection.
#[cfg(test)]
pub(super) const IDLE_BYTES: usize = size_of::<Idle>();
