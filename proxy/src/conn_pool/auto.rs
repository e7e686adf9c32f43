//! Connections that leave their protocol to ALPN (`auto_config`): each finds out for itself, and the peer may come to
//! another decision with the next.
//!
//! One queue for all who wait, whatever will serve them. A connection that is established goes into a pool of its
//! protocol, which has no queue of its own then, and tells this one when there is something to be had. Envoy:
//! `HttpConnPoolImplMixed`.

use std::cell::Cell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use super::connect::{Transport, connect};
use super::http1::{Http1Pool, Ready};
use super::http2::{Http2Pool, StreamSlot};
use super::pending::{Left, PendingQueue, Ticket};
use super::record::{CxKind, CxRecord, PendingGuard};
use super::seat::{Seat, SeatSlot};
use super::{Lease, PoolFailure};
use crate::cluster::HostContext;
use crate::codec::h2::{ClientConn, Driver};
use crate::config::cluster::RoutingPriority;
use crate::io::Io;
use crate::stats::names::ClusterStat;
use crate::upstream::TransportSocketOptions;

/// A connection that knows what it speaks.
enum Established {
    Http1(Io),
    Http2(ClientConn, Driver),
}

/// What serves a request.
pub(super) enum Free {
    Http1(Ready),
    Http2(StreamSlot),
}

pub(super) struct AutoPool {
    host: Rc<HostContext>,
    priority: RoutingPriority,
    transport: Transport,
    http1: Rc<Http1Pool>,
    http2: Rc<Http2Pool>,
    pending: PendingQueue<Free>,
    connecting: Cell<usize>,
    pub(super) seat: SeatSlot,
}

impl fmt::Debug for AutoPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AutoPool").field("connecting", &self.connecting).finish_non_exhaustive()
    }
}

impl AutoPool {
    pub(super) fn new(
        host: Rc<HostContext>,
        priority: RoutingPriority,
        options: Option<Arc<TransportSocketOptions>>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|auto: &Weak<Self>| Self {
            http1: Http1Pool::new(host.clone(), priority, options.clone(), auto.clone()),
            http2: Http2Pool::new(host.clone(), priority, options.clone(), auto.clone()),
            host,
            priority,
            transport: Transport { options, protocols: &["h2", "http/1.1"] },
            pending: PendingQueue::default(),
            connecting: Cell::new(0),
            seat: SeatSlot::default(),
        })
    }

    pub(super) fn is_used(&self) -> bool {
        !self.pending.is_empty() || self.has_connections()
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty() || self.http1.is_busy() || self.http2.is_busy()
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.pending.is_empty()
    }

    fn has_connections(&self) -> bool {
        self.connecting.get() > 0 || self.http1.is_used() || self.http2.is_used()
    }

    /// A stream on a connection that has room, or an idle connection; `None` where there is neither.
    pub(super) fn try_acquire(&self) -> Option<Result<Lease, PoolFailure>> {
        self.http2.try_acquire().or_else(|| self.http1.try_acquire())
    }

    /// Waits for a new connection, or for something that comes free before.
    pub(super) async fn wait(self: Rc<Self>, _seat: Rc<Seat>) -> Result<Lease, PoolFailure> {
        let pending =
            PendingGuard::new(&self.host, self.priority).map_err(PoolFailure::Overflow)?;
        let place = Place { ticket: self.pending.join(), pool: &self };
        self.open_connections();
        let free = place.ticket.outcome().await?;
        drop(place);
        drop(pending);
        match free {
            Free::Http1(ready) => self.http1.lease(ready),
            Free::Http2(slot) => self.http2.lease(slot),
        }
    }

    /// A connection of HTTP/1 is free: for who waits longest.
    pub(super) fn serve(&self, ready: Ready) -> Result<(), Ready> {
        self.pending.serve(Free::Http1(ready)).map_err(|free| match free {
            Free::Http1(ready) => ready,
            Free::Http2(_) => unreachable!("what was not taken comes back"),
        })
    }

    /// A connection of HTTP/2 may have room, or the limit leaves place for another connection.
    pub(super) fn serve_pending(self: &Rc<Self>) {
        while !self.pending.is_empty() {
            let Some(slot) = self.http2.reserve() else { break };
            // Nobody leaves the queue between the check and here.
            drop(self.pending.serve(Free::Http2(slot)));
        }
        self.open_connections();
    }

    /// Opens connections until as many are on their way as requests wait, or the limit is reached.
    pub(super) fn open_connections(self: &Rc<Self>) {
        while self.connecting.get() < self.pending.len() {
            // Without any connection those who wait would wait for ever: one is opened whatever the limit.
            let anyway = !self.has_connections();
            let host = self.host.clone();
            let Ok(mut record) = CxRecord::new(host, self.priority, CxKind::Tcp, anyway) else {
                return;
            };
            record.seat = self.seat.held();
            self.connecting.set(self.connecting.get() + 1);
            tokio::task::spawn_local(self.clone().open_connection(Box::new(record)));
        }
    }

    async fn open_connection(self: Rc<Self>, mut record: Box<CxRecord>) {
        let outcome = self.establish(&mut record).await;
        // Those who still wait when this one has served whom it can are counted without it.
        self.connecting.set(self.connecting.get() - 1);
        match outcome {
            Ok(Established::Http1(io)) => self.http1.adopt(io, record),
            Ok(Established::Http2(handle, driver)) => self.http2.adopt(handle, driver, *record),
            Err(failure) => {
                // As in Envoy: whoever waits decides anew, by its retry policy.
                let ejected = self.pending.fail_all(&failure) as u64;
                let stats = &self.host.cluster.stats;
                stats.add(ClusterStat::UpstreamRqPendingFailureEject, ejected);
            }
        }
    }

    async fn establish(&self, record: &mut CxRecord) -> Result<Established, PoolFailure> {
        let io = connect(&self.host, &self.transport, record).await?;
        if io.tls().is_some_and(|tls| tls.alpn.as_deref() == Some("h2")) {
            record.speak(CxKind::Http2);
            let (handle, driver) = self.http2.greet(io, record).await?;
            Ok(Established::Http2(handle, driver))
        } else {
            record.speak(CxKind::Http1);
            Ok(Established::Http1(io))
        }
    }

    /// No connection stays any longer than its requests.
    pub(super) fn drain(&self) {
        self.http1.drain();
        self.http2.drain();
    }
}

/// A place in the queue, which is left when the request is given up.
struct Place<'a> {
    ticket: Ticket<'a, Free>,
    pool: &'a Rc<AutoPool>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.ticket.leave() {
            Left::Served(Ok(Free::Http1(ready))) => self.pool.http1.offer(ready, Instant::now()),
            Left::Waiting => {
                self.pool.host.cluster.stats.inc(ClusterStat::UpstreamRqCancelled);
            }
            Left::Served(Ok(Free::Http2(_)) | Err(_)) | Left::Done => {}
        }
    }
}
