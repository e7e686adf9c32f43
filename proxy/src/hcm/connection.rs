//! One downstream HTTP connection: which codec speaks, requests one after another or at once, idle and age
//! limits, drain.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::live::{HcmSlot, WorkerHcm};
use super::stream::{Fate, StreamSetup, handle_stream, reject_unread};
use crate::codec::{Fault, ServerStream, h1, h2};
use crate::config::hcm::CodecType;
use crate::io::Io;
use crate::stats::declare_http2;
use crate::stats::names::HttpStat;
use crate::stream_info::ConnectionInfo;
use crate::worker::WorkerContext;
use crate::worker::connections::{ConnectionHandle, Drain};
use crate::worker::timers::Timer;

/// RFC 9113 §3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long an HTTP/1 connection that drains waits for one more request, to be answered with `connection: close`.
/// Closed at once, it could cross a request on its way, which its client could not repeat.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A first read that tells the protocol; small, since a silent connection holds it.
const SNIFF_BYTES: usize = 1024;

/// A connection as the connection manager takes it over.
pub struct HttpConnection {
    pub worker: Rc<WorkerContext>,
    pub slot: Rc<HcmSlot>,
    pub info: Rc<ConnectionInfo>,
    pub handle: ConnectionHandle,
    /// `per_connection_buffer_limit_bytes`.
    pub limit: usize,
}

/// Why a connection ended, for its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Local,
    Remote,
}

impl HttpConnection {
    /// Serves the connection to its end. `read` has what listener filters took.
    pub async fn serve(self, io: Io, mut read: BytesMut) {
        let hcm = self.slot.current(&self.worker);
        let stats = &hcm.stats;
        stats.inc(HttpStat::DownstreamCxTotal);
        stats.gauge_inc(HttpStat::DownstreamCxActive);
        let mut io = io;
        let codec = match hcm.config.codec {
            CodecType::Auto => self.sniff(&mut io, &mut read, &hcm).await,
            explicit => Some(explicit),
        };
        let closed = match codec {
            Some(CodecType::Http2) => {
                declare_http2(&self.worker.registry);
                stats.inc(HttpStat::DownstreamCxHttp2Total);
                stats.gauge_inc(HttpStat::DownstreamCxHttp2Active);
                let closed = self.serve_h2(io, read, &hcm).await;
                stats.gauge_dec(HttpStat::DownstreamCxHttp2Active);
                closed
            }
            Some(_) => {
                stats.inc(HttpStat::DownstreamCxHttp1Total);
                stats.gauge_inc(HttpStat::DownstreamCxHttp1Active);
                let closed = self.serve_h1(io, read, &hcm).await;
                stats.gauge_dec(HttpStat::DownstreamCxHttp1Active);
                closed
            }
            None => Closed::Remote,
        };
        stats.gauge_dec(HttpStat::DownstreamCxActive);
        stats.inc(HttpStat::DownstreamCxDestroy);
        stats.inc(match closed {
            Closed::Local => HttpStat::DownstreamCxDestroyLocal,
            Closed::Remote => HttpStat::DownstreamCxDestroyRemote,
        });
        let age = self.info.started.elapsed();
        stats.record(HttpStat::DownstreamCxLengthMs, age.as_millis() as u64);
    }

    /// Tells HTTP/2 by its preface. `None`: the peer left, or said nothing in time.
    async fn sniff(&self, io: &mut Io, read: &mut BytesMut, hcm: &WorkerHcm) -> Option<CodecType> {
        let mut idle = self.worker.timers.timer();
        if let Some(timeout) = hcm.config.common.idle_timeout {
            idle.arm(Instant::now() + timeout);
        }
        poll_fn(|cx| {
            loop {
                let seen = read.len().min(H2_PREFACE.len());
                if read[..seen] != H2_PREFACE[..seen] {
                    return Poll::Ready(Some(CodecType::Http1));
                }
                if seen == H2_PREFACE.len() {
                    return Poll::Ready(Some(CodecType::Http2));
                }
                if self.handle.poll_drain(Drain::No, cx).is_ready() && read.is_empty() {
                    return Poll::Ready(None);
                }
                if idle.poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                read.reserve(SNIFF_BYTES);
                match io.poll_read(cx, read) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) if read.is_empty() => return Poll::Ready(None),
                    // What came is for the HTTP/1 codec to judge.
                    Poll::Ready(Ok(0)) => return Poll::Ready(Some(CodecType::Http1)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                }
            }
        })
        .await
    }

    async fn serve_h1(&self, io: Io, read: BytesMut, first: &Rc<WorkerHcm>) -> Closed {
        let mut conn = h1::ServerConn::new(io, read, first.h1.clone());
        let mut wait = Box::new(IdleWait::new(self, first));
        let mut served = 0u32;
        loop {
            let hcm = self.slot.current(&self.worker);
            let next = poll_fn(|cx| self.poll_next_h1(&mut conn, &mut wait, cx)).await;
            match next {
                Next::Request(head, end) => {
                    served += 1;
                    let close_after = self.is_last(&hcm, served, &wait);
                    let setup = StreamSetup {
                        worker: self.worker.clone(),
                        hcm: hcm.clone(),
                        connection: self.info.clone(),
                        down: ServerStream::H1(&mut conn),
                        request: head,
                        end,
                        limit: self.limit,
                        close_after,
                    };
                    let fate = Box::pin(handle_stream(setup)).await;
                    if fate != Fate::Complete || !conn.is_reusable() {
                        self.linger(&mut conn, &hcm).await;
                        return match fate {
                            Fate::Complete | Fate::Cut => Closed::Local,
                            Fate::PeerGone => Closed::Remote,
                        };
                    }
                    wait.restart(&hcm);
                }
                Next::Bad(fault) => {
                    hcm.stats.inc(HttpStat::DownstreamCxProtocolError);
                    let setup = StreamSetup {
                        worker: self.worker.clone(),
                        hcm: hcm.clone(),
                        connection: self.info.clone(),
                        down: ServerStream::H1(&mut conn),
                        request: super::request_head::unread(crate::codec::head::Protocol::Http11),
                        end: false,
                        limit: self.limit,
                        close_after: true,
                    };
                    Box::pin(reject_unread(setup, fault)).await;
                    self.linger(&mut conn, &hcm).await;
                    return Closed::Local;
                }
                Next::HeadTimeout => {
                    hcm.stats.inc(HttpStat::DownstreamRqHeaderTimeout);
                    let setup = StreamSetup {
                        worker: self.worker.clone(),
                        hcm: hcm.clone(),
                        connection: self.info.clone(),
                        down: ServerStream::H1(&mut conn),
                        request: super::request_head::unread(crate::codec::head::Protocol::Http11),
                        end: false,
                        limit: self.limit,
                        close_after: true,
                    };
                    Box::pin(super::stream::head_timed_out(setup)).await;
                    self.linger(&mut conn, &hcm).await;
                    return Closed::Local;
                }
                Next::Closed => return Closed::Remote,
                Next::Limit(stat) => {
                    if let Some(stat) = stat {
                        hcm.stats.inc(stat);
                    }
                    return Closed::Local;
                }
            }
        }
    }

    /// The response in hand is the connection's last.
    fn is_last(&self, hcm: &WorkerHcm, served: u32, wait: &IdleWait) -> bool {
        if self.handle.drain_state() != Drain::No {
            hcm.stats.inc(HttpStat::DownstreamCxDrainClose);
            return true;
        }
        if hcm.config.common.max_requests_per_connection.is_some_and(|max| served >= max) {
            hcm.stats.inc(HttpStat::DownstreamCxMaxRequestsReached);
            return true;
        }
        wait.too_old
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
        let mut seen = self.handle.drain_state();
        loop {
            if seen == Drain::Now {
                return Poll::Ready(Next::Limit(None));
            }
            if seen == Drain::Graceful && !started && !wait.last_call {
                wait.last_call = true;
                wait.idle.arm(Instant::now() + LAST_CALL);
            }
            match self.handle.poll_drain(seen, cx) {
                Poll::Ready(state) => seen = state,
                Poll::Pending => break,
            }
        }
        if started {
            wait.idle.disarm();
            if let Some(timeout) = wait.head_timeout
                && !wait.head.is_armed()
            {
                wait.head.arm(Instant::now() + timeout);
            }
            if wait.head.poll(cx).is_ready() {
                return Poll::Ready(Next::HeadTimeout);
            }
        } else if wait.idle.poll(cx).is_ready() {
            if wait.last_call {
                return Poll::Ready(Next::Limit(Some(HttpStat::DownstreamCxDrainClose)));
            }
            return Poll::Ready(Next::Limit(Some(HttpStat::DownstreamCxIdleTimeout)));
        }
        if wait.age.poll(cx).is_ready() {
            wait.too_old = true;
            if !started {
                let stat = HttpStat::DownstreamCxMaxDurationReached;
                return Poll::Ready(Next::Limit(Some(stat)));
            }
        }
        Poll::Pending
    }

    /// Lets the last response arrive: FIN, then the peer's, for at most `delayed_close_timeout`.
    async fn linger(&self, conn: &mut h1::ServerConn, hcm: &WorkerHcm) {
        let timeout = hcm.config.delayed_close_timeout;
        if timeout.is_zero() {
            return;
        }
        let mut timer = self.worker.timers.timer();
        timer.arm(Instant::now() + timeout);
        let late = poll_fn(|cx| {
            if conn.poll_close(cx).is_ready() {
                return Poll::Ready(false);
            }
            timer.poll(cx).map(|()| true)
        })
        .await;
        if late {
            hcm.stats.inc(HttpStat::DownstreamCxDelayedCloseTimeout);
        }
    }

    async fn serve_h2(&self, io: Io, read: BytesMut, first: &Rc<WorkerHcm>) -> Closed {
        let mut conn = h2::ServerConn::new(io, read, first.h2.clone());
        let mut wait = Box::new(IdleWait::new(self, first));
        let active = Rc::new(Cell::new(0usize));
        let mut served = 0u32;
        let mut seen = Drain::No;
        let mut draining = false;
        // Bounds the wait for a peer that does not answer the PING between the two GOAWAY frames.
        let mut last_call = self.worker.timers.timer();
        let mut called = false;
        poll_fn(|cx| {
            loop {
                match conn.poll_accept(cx) {
                    Poll::Ready(Some(Ok((head, end, stream)))) => {
                        served += 1;
                        wait.idle.disarm();
                        let hcm = self.slot.current(&self.worker);
                        let last = self.is_last(&hcm, served, &wait);
                        if last && !draining {
                            draining = true;
                            conn.drain();
                        }
                        self.spawn_h2(hcm, head, end, stream, &active, cx);
                        continue;
                    }
                    Poll::Ready(Some(Err(fault))) => {
                        if matches!(fault, Fault::Parse(_)) {
                            first.stats.inc(HttpStat::DownstreamCxProtocolError);
                        }
                        return Poll::Ready(Closed::Remote);
                    }
                    Poll::Ready(None) => {
                        return Poll::Ready(if draining { Closed::Local } else { Closed::Remote });
                    }
                    Poll::Pending => {}
                }
                break;
            }
            if active.get() == 0 {
                if !wait.idle.is_armed() && !draining {
                    wait.restart(first);
                }
            } else {
                wait.idle.disarm();
            }
            if let Poll::Ready(state) = self.handle.poll_drain(seen, cx) {
                seen = state;
                if state == Drain::Now {
                    conn.abort(0);
                    return Poll::Ready(Closed::Local);
                }
                if !draining {
                    draining = true;
                    first.stats.inc(HttpStat::DownstreamCxDrainClose);
                    conn.drain();
                }
                cx.waker().wake_by_ref();
            }
            if wait.idle.poll(cx).is_ready() && !draining {
                first.stats.inc(HttpStat::DownstreamCxIdleTimeout);
                draining = true;
                conn.drain();
                cx.waker().wake_by_ref();
            }
            if wait.age.poll(cx).is_ready() && !draining {
                first.stats.inc(HttpStat::DownstreamCxMaxDurationReached);
                draining = true;
                conn.drain();
                cx.waker().wake_by_ref();
            }
            if draining && !called {
                if !last_call.is_armed() {
                    last_call.arm(Instant::now() + first.config.drain_timeout);
                }
                called = last_call.poll(cx).is_ready();
            }
            if called && active.get() == 0 {
                conn.abort(super::stream::reset_code::NO_ERROR);
                return Poll::Ready(Closed::Local);
            }
            Poll::Pending
        })
        .await
    }

    fn spawn_h2(
        &self,
        hcm: Rc<WorkerHcm>,
        head: crate::codec::head::RequestHead,
        end: bool,
        stream: h2::ServerStream,
        active: &Rc<Cell<usize>>,
        cx: &Context<'_>,
    ) {
        active.set(active.get() + 1);
        let setup = StreamSetup {
            worker: self.worker.clone(),
            hcm,
            connection: self.info.clone(),
            down: ServerStream::H2(stream),
            request: head,
            end,
            limit: self.limit,
            close_after: false,
        };
        let active = active.clone();
        let connection = cx.waker().clone();
        tokio::task::spawn_local(async move {
            // Boxed once here: moved unboxed, its kilobytes are copied at every step into the task.
            Box::pin(handle_stream(setup)).await;
            active.set(active.get() - 1);
            if active.get() == 0 {
                // The connection's idle timer starts.
                connection.wake();
            }
        });
    }
}

enum Next {
    Request(crate::codec::head::RequestHead, bool),
    Bad(Fault),
    HeadTimeout,
    Closed,
    Limit(Option<HttpStat>),
}

/// The timers of a connection between requests.
struct IdleWait {
    idle: Timer,
    head: Timer,
    age: Timer,
    head_timeout: Option<Duration>,
    too_old: bool,
    /// The connection drains: `idle` is its last call.
    last_call: bool,
}

impl IdleWait {
    fn new(connection: &HttpConnection, hcm: &WorkerHcm) -> Self {
        let timers = &connection.worker.timers;
        let mut wait = Self {
            idle: timers.timer(),
            head: timers.timer(),
            age: timers.timer(),
            head_timeout: hcm.config.request_headers_timeout,
            too_old: false,
            last_call: false,
        };
        if let Some(age) = hcm.config.common.max_connection_duration {
            wait.age.arm(connection.info.started + age);
        }
        wait.restart(hcm);
        wait
    }

    fn restart(&mut self, hcm: &WorkerHcm) {
        self.head_timeout = hcm.config.request_headers_timeout;
        match hcm.config.common.idle_timeout {
            Some(timeout) => self.idle.arm(Instant::now() + timeout),
            None => self.idle.disarm(),
        }
    }
}
