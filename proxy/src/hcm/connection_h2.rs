//! A downstream HTTP/2 connection: requests at once, idle time and age, drain in two steps, and what becomes of
//! those whose peer breaks the protocol.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;

use super::connection::{Closed, HttpConnection, IdleWait};
use super::live::WorkerHcm;
use super::premature::PrematureResets;
use super::respond::count_cut;
use super::stream::{
    ActiveStream, Fate, HeadLimit, StreamSetup, handle_stream, head_timed_out, refuse,
};
use crate::codec::h2::{self, Http2Fault};
use crate::codec::head::{Protocol, RequestHead};
use crate::codec::{Fault, ServerStream};
use crate::io::Io;
use crate::stats::names::HttpStat;
use crate::worker::connections::Drain;
use crate::worker::timers::Timer;

/// RFC 9113 §7.
const ENHANCE_YOUR_CALM: u32 = 0xb;

impl HttpConnection {
    pub(super) async fn serve_h2(&self, io: Io, read: BytesMut, first: &Rc<WorkerHcm>) -> Closed {
        let counters = first.h2_counters(&self.worker);
        let mut conn = h2::ServerConn::new(io, read, first.h2.clone(), counters);
        let mut wait = IdleWait::new(self, first);
        let mut drain = H2Drain::new(self);
        let mut guard = CutShort { hcm: first, streams: Rc::default(), ended: false };
        let streams = guard.streams.clone();
        let mut refused = false;
        let mut slow_head = 0;
        let closed = poll_fn(|cx| {
            if streams.last.take() {
                conn.drain();
            }
            loop {
                match conn.poll_accept(cx) {
                    Poll::Ready(Some(Ok((head, end, stream)))) => {
                        wait.served += 1;
                        wait.idle.disarm();
                        let hcm = self.slot.current(&self.worker);
                        if self.is_last(&hcm, &wait) {
                            conn.drain();
                        }
                        if let Some(fault) = stream.rejected() {
                            refused = true;
                            let setup =
                                self.setup(hcm, ServerStream::H2(Box::new(stream)), head, end);
                            refuse(setup, fault.into());
                            continue;
                        }
                        refused = false;
                        self.spawn_h2(hcm, head, end, stream, &streams, cx);
                    }
                    Poll::Ready(Some(Err(fault))) => return Poll::Ready(Err(fault)),
                    Poll::Ready(None) => {
                        // Without a drain it was the peer who said that it goes.
                        let local = conn.is_draining() && !conn.peer_closed();
                        let closed = if local { Closed::Local } else { Closed::Remote };
                        return Poll::Ready(Ok(closed));
                    }
                    Poll::Pending => break,
                }
            }
            if streams.flood.get() {
                first.stats.inc(HttpStat::DownstreamRqTooManyPrematureResets);
                conn.abort(ENHANCE_YOUR_CALM);
                return Poll::Ready(Ok(Closed::Local));
            }
            self.poll_h2_head(&mut conn, &mut wait, &mut slow_head, &streams, cx);
            self.poll_h2_limits(&mut conn, &mut wait, &mut drain, streams.active.get(), first, cx)
                .map(Ok)
        })
        .await;
        guard.ended = true;
        let fault = match closed {
            Ok(closed) => {
                self.count_active(first, closed, streams.active.get() > 0);
                if conn.peer_closed() {
                    return closed;
                }
                // Who hears that it is over may close first.
                self.linger(&self.slot.current(&self.worker), |cx| conn.poll_close(cx)).await;
                return if conn.peer_closed() { Closed::Remote } else { closed };
            }
            Err(fault) => fault,
        };
        let closed = if conn.peer_closed() { Closed::Remote } else { Closed::Local };
        let flood = fault == Http2Fault::Flood.into();
        if matches!(fault, Fault::Parse(_)) && !flood {
            first.stats.inc(HttpStat::DownstreamCxProtocolError);
        }
        self.count_active(first, closed, refused || streams.active.get() > 0);
        self.linger(&self.slot.current(&self.worker), |cx| conn.poll_close(cx)).await;
        closed
    }

    fn count_active(&self, hcm: &WorkerHcm, closed: Closed, active: bool) {
        if active {
            hcm.stats.inc(HttpStat::DownstreamCxDestroyActiveRq);
            hcm.stats.inc(match closed {
                Closed::Local => HttpStat::DownstreamCxDestroyLocalActiveRq,
                Closed::Remote => HttpStat::DownstreamCxDestroyRemoteActiveRq,
            });
        }
    }

    /// Idle time, age and drain of an HTTP/2 connection; ready when it is closed by us.
    fn poll_h2_limits(
        &self,
        conn: &mut h2::ServerConn,
        wait: &mut IdleWait,
        drain: &mut H2Drain,
        active: usize,
        hcm: &WorkerHcm,
        cx: &mut Context<'_>,
    ) -> Poll<Closed> {
        if active > 0 {
            wait.idle.disarm();
        } else if !wait.idle.is_armed() && !conn.is_draining() {
            wait.restart(hcm, self.worker.clock.now());
        }
        if let Poll::Ready(state) = self.handle.poll_drain(drain.seen, cx) {
            drain.seen = state;
            if conn.drain() {
                hcm.stats.inc(HttpStat::DownstreamCxDrainClose);
            }
            cx.waker().wake_by_ref();
        }
        if wait.idle.poll(cx).is_ready() && conn.drain() {
            hcm.stats.inc(HttpStat::DownstreamCxIdleTimeout);
            cx.waker().wake_by_ref();
        }
        if wait.age.poll(cx).is_ready() && conn.drain() {
            hcm.stats.inc(HttpStat::DownstreamCxMaxDurationReached);
            cx.waker().wake_by_ref();
        }
        if conn.is_draining() && !drain.called {
            if !drain.last_call.is_armed() {
                drain.last_call.arm(Instant::now() + hcm.config.drain_timeout);
            }
            if drain.last_call.poll(cx).is_ready() {
                drain.called = true;
                conn.finish_drain();
                cx.waker().wake_by_ref();
            }
        }
        if drain.called && active == 0 {
            conn.abort(super::stream::reset_code::NO_ERROR);
            return Poll::Ready(Closed::Local);
        }
        Poll::Pending
    }

    fn spawn_h2(
        &self,
        hcm: Rc<WorkerHcm>,
        head: RequestHead,
        end: bool,
        stream: h2::ServerStream,
        streams: &Rc<Streams>,
        cx: &Context<'_>,
    ) {
        let setup = self.setup(hcm, ServerStream::H2(Box::new(stream)), head, end);
        // Boxed here: its kilobytes are not copied at every step into the task.
        let stream = Box::pin(handle_stream(Box::new(ActiveStream::new(setup))));
        Self::run_h2(stream, streams, cx);
    }

    /// A head that comes in pieces has its time, as in HTTP/1: no other stream can say anything meanwhile. `slow` is the
    /// one that was seen last.
    fn poll_h2_head(
        &self,
        conn: &mut h2::ServerConn,
        wait: &mut IdleWait,
        slow: &mut u32,
        streams: &Rc<Streams>,
        cx: &mut Context<'_>,
    ) {
        let Some(id) = conn.begun_head() else {
            if wait.begun.take().is_some() {
                wait.head.disarm();
            }
            return;
        };
        let hcm = self.slot.current(&self.worker);
        if wait.begun.is_none() || std::mem::replace(slow, id) != id {
            *slow = id;
            let now = self.worker.clock.now();
            (wait.begun, wait.head_timeout) = (Some(now), HeadLimit::of(&hcm));
            match wait.head_timeout {
                Some((timeout, _)) => wait.head.arm(now + timeout),
                None => wait.head.disarm(),
            }
        }
        if let Some((_, limit)) = wait.head_timeout
            && wait.head.poll(cx).is_ready()
            && let Some(stream) = conn.give_up_head()
        {
            hcm.stats.inc(limit.stat());
            let unread = super::request_head::unread(Protocol::Http2);
            let setup = self.setup(hcm, ServerStream::H2(Box::new(stream)), unread, false);
            let setup = StreamSetup { begun: wait.begun.take(), ..setup };
            Self::run_h2(Box::pin(head_timed_out(setup, limit)), streams, cx);
        }
    }

    fn run_h2(
        stream: Pin<Box<impl Future<Output = Fate> + 'static>>,
        streams: &Rc<Streams>,
        cx: &Context<'_>,
    ) {
        streams.active.set(streams.active.get() + 1);
        let open = OpenStream { streams: streams.clone(), connection: cx.waker().clone() };
        tokio::task::spawn_local(async move {
            let fate = stream.await;
            if fate == Fate::Last {
                open.streams.last.set(true);
            }
            let (streams, premature) = (&open.streams, fate == Fate::Premature);
            if streams.resets.count(premature) {
                streams.flood.set(true);
            }
            drop(open);
        });
    }
}

/// What a connection knows of its streams.
#[derive(Default)]
struct Streams {
    active: Cell<usize>,
    /// One of them was to be the last.
    last: Cell<bool>,
    resets: PrematureResets,
    /// There were too many.
    flood: Cell<bool>,
}

/// A stream among those of its connection, until its task ends, however that is.
struct OpenStream {
    streams: Rc<Streams>,
    connection: Waker,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let active = self.streams.active.get() - 1;
        self.streams.active.set(active);
        if self.streams.flood.get() || self.streams.last.get() || active == 0 {
            // The connection ends, or drains, or its idle timer starts.
            self.connection.wake_by_ref();
        }
    }
}

/// Counts the requests of a connection whose task goes before it has come to its end.
struct CutShort<'a> {
    hcm: &'a WorkerHcm,
    streams: Rc<Streams>,
    ended: bool,
}

impl Drop for CutShort<'_> {
    fn drop(&mut self) {
        if !self.ended && self.streams.active.get() > 0 {
            count_cut(&self.hcm.stats);
        }
    }
}

/// How far the drain of an HTTP/2 connection has come: GOAWAY without a last stream, then, `drain_timeout` later,
/// one with it.
struct H2Drain {
    seen: Drain,
    last_call: Timer,
    called: bool,
}

impl H2Drain {
    fn new(connection: &HttpConnection) -> Self {
        let last_call = connection.worker.timers.timer();
        Self { seen: Drain::No, last_call, called: false }
    }
}
