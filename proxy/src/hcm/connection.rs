//! One downstream HTTP connection: which codec speaks, requests one after another or at once, idle and age
//! limits, drain.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::active::ActiveConnection;
use super::live::{HcmSlot, WorkerHcm};
use super::stream::{
    ActiveStream, Fate, HeadLimit, StreamSetup, abandon_unread, handle_stream, head_timed_out,
    reject_unread,
};
use crate::codec::head::{Protocol, RequestHead};
use crate::codec::{Fault, ParseFault, ServerStream, h1};
use crate::config::hcm::CodecType;
use crate::config::protocol_options::HeadersWithUnderscoresAction;
use crate::filter_chain::Entered;
use crate::io::Io;
use crate::stats::names::HttpStat;
use crate::stream_info::ConnectionInfo;
use crate::worker::WorkerContext;
use crate::worker::connections::{Drain, LAST_CALL};
use crate::worker::timers::Timer;

/// So much of RFC 9113 §3.4's preface tells HTTP/2, as in Envoy: no request of HTTP/1 begins so.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2";

/// A connection as the connection manager takes it over.
pub struct HttpConnection {
    pub worker: Rc<WorkerContext>,
    pub slot: Rc<HcmSlot>,
    pub info: Rc<ConnectionInfo>,
    pub handle: Entered,
    /// `per_connection_buffer_limit_bytes`.
    pub limit: usize,
}

/// Why a connection ended, for its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    Local,
    Remote,
}

impl HttpConnection {
    /// Serves the connection to its end. `read` has what listener filters took.
    ///
    /// Thousands of idle connections are this future: a block and not an `async fn`, whose arguments would lie
    /// in it twice, and everything large that only some need in a box.
    pub fn serve(self, io: Io, read: BytesMut) -> impl Future<Output = ()> {
        let hcm = self.slot.current(&self.worker);
        let conn = h1::ServerConn::new(io, read, hcm.h1.clone());
        let mut active = ActiveConnection::new(self, hcm, conn);
        async move {
            let mut begun = None;
            let codec = match (active.hcm.config.codec, &mut active.conn) {
                // What ALPN says holds, whatever the bytes.
                (CodecType::Auto, Some(conn)) => {
                    let agreed = active.connection.negotiated();
                    let seen = active.connection.sniff(conn, &active.hcm, &mut begun).await;
                    seen.map(|seen| agreed.unwrap_or(seen))
                }
                (explicit, _) => Ok(explicit),
            };
            let closed = match codec {
                Ok(CodecType::Http2) => match active.box_h2() {
                    Some(served) => Some(served.await),
                    None => None,
                },
                Ok(_) => {
                    active.speaks(
                        HttpStat::DownstreamCxHttp1Total,
                        HttpStat::DownstreamCxHttp1Active,
                    );
                    match &mut active.conn {
                        Some(conn) => {
                            Some(active.connection.serve_h1(conn, &active.hcm, begun).await)
                        }
                        None => None,
                    }
                }
                Err(closed) => Some(closed),
            };
            active.closed.set(closed);
        }
    }

    /// What TLS has agreed upon.
    fn negotiated(&self) -> Option<CodecType> {
        let alpn = self.info.tls.get()?.alpn.as_deref()?;
        Some(if alpn == "h2" { CodecType::Http2 } else { CodecType::Http1 })
    }

    /// Tells HTTP/2 by its preface; or how the connection ended before it said anything. `begun` is when a first byte
    /// came that told neither: what is no more in the time of a head is taken for the beginning of one.
    async fn sniff(
        &self,
        conn: &mut h1::ServerConn,
        hcm: &WorkerHcm,
        begun: &mut Option<Instant>,
    ) -> Result<CodecType, Closed> {
        let mut idle = self.worker.timers.timer();
        if let Some(timeout) = hcm.config.common.idle_timeout {
            idle.arm(Instant::now() + timeout);
        }
        let mut last_call = false;
        poll_fn(|cx| {
            if let Poll::Ready(sniffed) = conn.poll_sniff(H2_PREFACE, cx) {
                return Poll::Ready(match sniffed {
                    Some(true) => Ok(CodecType::Http2),
                    Some(false) => Ok(CodecType::Http1),
                    None => Err(Closed::Remote),
                });
            }
            let drains = self.handle.poll_drain(Drain::No, cx).is_ready();
            if drains && !conn.head_started() && !last_call {
                last_call = true;
                idle.arm(Instant::now() + LAST_CALL);
            }
            if conn.head_started() && begun.is_none() {
                let now = Instant::now();
                *begun = Some(now);
                match HeadLimit::of(hcm) {
                    Some((timeout, _)) => idle.arm(now + timeout),
                    None => idle.disarm(),
                }
            }
            if idle.poll(cx).is_ready() {
                if begun.is_some() {
                    return Poll::Ready(Ok(CodecType::Http1));
                }
                hcm.stats.inc(if last_call {
                    HttpStat::DownstreamCxDrainClose
                } else {
                    HttpStat::DownstreamCxIdleTimeout
                });
                return Poll::Ready(Err(Closed::Local));
            }
            Poll::Pending
        })
        .await
    }

    /// Its requests are to know why it was ended by force.
    pub(super) fn note_cut(&self) {
        self.info.cut.set(Some(self.worker.connections.cut_of(self.info.key).unwrap_or_default()));
    }

    async fn serve_h1(
        &self,
        conn: &mut h1::ServerConn,
        first: &Rc<WorkerHcm>,
        begun: Option<Instant>,
    ) -> Closed {
        let mut wait = IdleWait::new(self, first);
        wait.begun = begun;
        loop {
            let next = poll_fn(|cx| self.poll_next_h1(conn, &mut wait, cx)).await;
            let fate = match self.start_h1(next, conn, &mut wait) {
                Ok(stream) => stream.await,
                Err(closed) => return closed,
            };
            if fate != Fate::Complete || !conn.is_reusable() {
                if matches!(fate, Fate::PeerGone | Fate::Premature) {
                    let stats = &self.slot.current(&self.worker).stats;
                    stats.inc(HttpStat::DownstreamCxDestroyActiveRq);
                    stats.inc(HttpStat::DownstreamCxDestroyRemoteActiveRq);
                }
                self.linger(&self.slot.current(&self.worker), |cx| conn.poll_close(cx)).await;
                return match fate {
                    Fate::Complete | Fate::Cut | Fate::Last => Closed::Local,
                    Fate::PeerGone | Fate::Premature => Closed::Remote,
                };
            }
            // In the turn of the stream that has just ended.
            wait.restart(&self.slot.current(&self.worker), self.worker.clock.recent());
        }
    }

    /// The future that answers what came; or how the connection ends. It is boxed: an idle connection has no
    /// room for it.
    fn start_h1<'a>(
        &self,
        next: Next,
        conn: &'a mut h1::ServerConn,
        wait: &mut IdleWait,
    ) -> Result<Pin<Box<dyn Future<Output = Fate> + 'a>>, Closed> {
        let hcm = self.slot.current(&self.worker);
        let unread = || super::request_head::unread(Protocol::Http11);
        let begun = wait.begun.take();
        Ok(match next {
            Next::Request(head, _) if has_rejected_underscore(&hcm, &head) => {
                let fault = conn.refuse_request(ParseFault::UnexpectedUnderscore);
                let setup = self.setup(hcm, ServerStream::H1(conn), unread(), false);
                Box::pin(reject_unread(StreamSetup { begun, close_after: true, ..setup }, fault))
            }
            Next::Request(head, end) => {
                wait.served += 1;
                let last = self.is_last(&hcm, wait);
                let setup = self.setup(hcm, ServerStream::H1(conn), head, end);
                let setup = StreamSetup { begun, close_after: last, draining: last, ..setup };
                let stream = ActiveStream::new(setup);
                Box::pin(handle_stream(Box::new(stream)))
            }
            Next::Bad(fault) => {
                let setup = self.setup(hcm, ServerStream::H1(conn), unread(), false);
                Box::pin(reject_unread(StreamSetup { begun, close_after: true, ..setup }, fault))
            }
            Next::HeadTimeout(limit) => {
                hcm.stats.inc(limit.stat());
                conn.give_up_head();
                let setup = self.setup(hcm, ServerStream::H1(conn), unread(), false);
                Box::pin(head_timed_out(StreamSetup { begun, close_after: true, ..setup }, limit))
            }
            Next::Closed if conn.request_was_begun() => {
                let setup = self.setup(hcm, ServerStream::H1(conn), unread(), false);
                Box::pin(abandon_unread(StreamSetup { begun, ..setup }))
            }
            Next::Closed => return Err(Closed::Remote),
            Next::Limit(stat) => {
                hcm.stats.inc(stat);
                return Err(Closed::Local);
            }
        })
    }

    pub(super) fn setup<'a>(
        &self,
        hcm: Rc<WorkerHcm>,
        down: ServerStream<'a>,
        request: RequestHead,
        end: bool,
    ) -> StreamSetup<'a> {
        StreamSetup {
            worker: self.worker.clone(),
            hcm,
            connection: self.info.clone(),
            down,
            request,
            end,
            begun: None,
            limit: self.limit,
            close_after: false,
            draining: false,
        }
    }

    /// Whether the request in hand is the connection's last by a limit, of requests or of age.
    pub(super) fn is_last(&self, hcm: &WorkerHcm, wait: &IdleWait) -> bool {
        let max = hcm.config.common.max_requests_per_connection;
        let at_limit = max.is_some_and(|max| wait.served >= max);
        if at_limit {
            hcm.stats.inc(HttpStat::DownstreamCxMaxRequestsReached);
        }
        at_limit || wait.too_old
    }

    /// An HTTP/1 connection between requests.
    fn poll_next_h1(
        &self,
        conn: &mut h1::ServerConn,
        wait: &mut IdleWait,
        cx: &mut Context<'_>,
    ) -> Poll<Next> {
        match conn.poll_head(cx) {
            Poll::Ready(Ok(Some((head, end)))) => {
                wait.idle.disarm();
                wait.head.disarm();
                return Poll::Ready(Next::Request(head, end));
            }
            Poll::Ready(Ok(None)) => return Poll::Ready(Next::Closed),
            Poll::Ready(Err(fault @ Fault::Parse(_))) => return Poll::Ready(Next::Bad(fault)),
            Poll::Ready(Err(_)) => return Poll::Ready(Next::Closed),
            Poll::Pending => {}
        }
        let started = conn.head_started();
        if self.handle.poll_drain(Drain::No, cx).is_ready() && !started && !wait.last_call {
            wait.last_call = true;
            wait.idle.arm(Instant::now() + LAST_CALL);
        }
        if started {
            wait.idle.disarm();
            let begun = *wait.begun.get_or_insert_with(Instant::now);
            if let Some((timeout, _)) = wait.head_timeout
                && !wait.head.is_armed()
            {
                wait.head.arm(begun + timeout);
            }
            if wait.head.poll(cx).is_ready() {
                let limit = wait.head_timeout.map_or(HeadLimit::Head, |(_, limit)| limit);
                return Poll::Ready(Next::HeadTimeout(limit));
            }
        } else if wait.idle.poll(cx).is_ready() {
            if wait.last_call {
                return Poll::Ready(Next::Limit(HttpStat::DownstreamCxDrainClose));
            }
            return Poll::Ready(Next::Limit(HttpStat::DownstreamCxIdleTimeout));
        }
        if wait.age.poll(cx).is_ready() {
            wait.too_old = true;
            if !started {
                let stat = HttpStat::DownstreamCxMaxDurationReached;
                return Poll::Ready(Next::Limit(stat));
            }
        }
        Poll::Pending
    }

    /// Lets the last response arrive: FIN, then the peer's, for at most `delayed_close_timeout`.
    pub(super) async fn linger(
        &self,
        hcm: &WorkerHcm,
        mut poll_close: impl FnMut(&mut Context<'_>) -> Poll<()>,
    ) {
        let timeout = hcm.config.delayed_close_timeout;
        if timeout.is_zero() {
            return;
        }
        let mut timer = self.worker.timers.timer();
        timer.arm(Instant::now() + timeout);
        let late = poll_fn(|cx| {
            if poll_close(cx).is_ready() {
                return Poll::Ready(false);
            }
            timer.poll(cx).map(|()| true)
        })
        .await;
        if late {
            hcm.stats.inc(HttpStat::DownstreamCxDelayedCloseTimeout);
        }
    }
}

/// Whether a name of the head has an underscore that the configuration does not want to see.
fn has_rejected_underscore(hcm: &WorkerHcm, head: &RequestHead) -> bool {
    hcm.config.common.headers_with_underscores_action == HeadersWithUnderscoresAction::RejectRequest
        && head.headers.iter().any(|(name, _)| name.contains(&b'_'))
}

enum Next {
    Request(RequestHead, bool),
    Bad(Fault),
    HeadTimeout(HeadLimit),
    Closed,
    Limit(HttpStat),
}

/// The timers of a connection between requests.
pub(super) struct IdleWait {
    pub(super) idle: Timer,
    pub(super) head: Timer,
    pub(super) age: Timer,
    /// The shortest of the limits that hold for a head.
    pub(super) head_timeout: Option<(Duration, HeadLimit)>,
    /// When the first byte of a head came that is not whole yet.
    pub(super) begun: Option<Instant>,
    too_old: bool,
    /// Requests so far.
    pub(super) served: u32,
    /// The connection drains: `idle` is its last call.
    last_call: bool,
}

impl IdleWait {
    pub(super) fn new(connection: &HttpConnection, hcm: &WorkerHcm) -> Self {
        let timers = &connection.worker.timers;
        let mut wait = Self {
            idle: timers.timer(),
            head: timers.timer(),
            age: timers.timer(),
            head_timeout: None,
            begun: None,
            too_old: false,
            served: 0,
            last_call: false,
        };
        if let Some(age) = hcm.config.common.max_connection_duration {
            wait.age.arm(connection.info.started + age);
        }
        wait.restart(hcm, connection.worker.clock.now());
        wait
    }

    pub(super) fn restart(&mut self, hcm: &WorkerHcm, now: Instant) {
        self.head_timeout = HeadLimit::of(hcm);
        match hcm.config.common.idle_timeout {
            Some(timeout) => self.idle.arm(now + timeout),
            None => self.idle.disarm(),
        }
    }
}
