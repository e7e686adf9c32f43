//! The two directions of a proxied TCP connection: until both are done, one fails, or a limit is reached.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use super::copy::{CopyError, Direction};
use super::tcp_proxy::{Clocks, Early, Session, TcpConnection};
use crate::conn_pool::TcpLease;
use crate::io::Io;
use crate::stats::names::TcpProxyStat;
use crate::stream_info::{ResponseFlags, StreamInfo};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Upstream,
    Downstream,
    Idle,
    TooOld,
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

/// What both directions have come to.
struct Outcome {
    end: End,
    /// The failure was an RST.
    reset: bool,
    /// The client's FIN had been passed on when the upstream's was.
    client_first: bool,
}

impl TcpConnection {
    /// Copies both ways, if there is an upstream connection. The session knows at all times what has passed.
    pub(super) async fn relay(
        &self,
        down: &mut Io,
        session: &mut Session<'_>,
        early: Early,
        clocks: &mut Clocks,
    ) {
        let Session { info, lease: Some(lease), by_upstream, .. } = session else { return };
        let mut to_up = Direction::new(early.read, early.finished);
        let mut to_down = Direction::default();
        let Outcome { end, reset, client_first } =
            self.copy(down, lease, &mut to_up, &mut to_down, clocks, info).await;
        let stats = &self.proxy.stats;
        match end {
            End::Idle => stats.inc(TcpProxyStat::IdleTimeout),
            End::TooOld => self.too_old(info),
            End::Done | End::Upstream | End::Downstream => {}
        }
        if reset {
            // A reset passes as a reset: data may be missing, and the other end must see that.
            if end == End::Upstream {
                down.reset_on_drop();
                info.flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
            } else {
                lease.io.reset_on_drop();
            }
        }
        // Whose FIN came last has closed the connection.
        *by_upstream = end == End::Upstream || (end == End::Done && client_first);
    }

    async fn copy(
        &self,
        down: &mut Io,
        lease: &mut TcpLease,
        to_up: &mut Direction,
        to_down: &mut Direction,
        clocks: &mut Clocks,
        info: &mut StreamInfo,
    ) -> Outcome {
        let config = &self.proxy.config;
        let mut idle = self.worker.timers.timer();
        let mut last = Instant::now();
        if let Some(timeout) = config.idle_timeout {
            idle.arm(last + timeout);
        }
        let mut client_first = false;
        let mut reset = false;
        let end = poll_fn(|cx| {
            let mut moved = false;
            let up = to_up.poll(down, &mut lease.io, cx, &mut moved);
            let back = to_down.poll(&mut lease.io, down, cx, &mut moved);
            meter(info, to_up, to_down);
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
            if clocks.age.poll(cx).is_ready() {
                return Poll::Ready(End::TooOld);
            }
            if config.access_log_flush_interval.is_some() {
                self.flush_log(clocks, info, cx);
            }
            Poll::Pending
        })
        .await;
        Outcome { end, reset, client_first }
    }
}

fn meter(info: &mut StreamInfo, to_up: &Direction, to_down: &Direction) {
    info.downstream_bytes.wire_received = to_up.bytes;
    info.downstream_bytes.wire_sent = to_down.bytes;
    info.bytes_received = to_up.bytes;
    info.bytes_sent = to_down.bytes;
    info.upstream.bytes.wire_sent = to_up.bytes;
    info.upstream.bytes.wire_received = to_down.bytes;
}
