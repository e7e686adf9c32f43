//! The bytes under an HTTP/2 connection: what was read already comes first, and frames are looked at on their
//! way in (`inbound`) and out (`outbound`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{code, kind};
use super::inbound::{Budgets, Inbound, Seen, shutdown_pong};
use super::outbound::{Outbound, Stop};
use super::shared::{Culprit, Pong, Shared};
use crate::stats::names::Http2Stat;

/// What the crate h2 reads from and writes to.
#[derive(Debug)]
pub(super) struct Wire {
    /// Read, and not yet given out.
    early: BytesMut,
    shared: Rc<Shared>,
    inbound: Inbound,
    outbound: Outbound,
    /// A server says nothing before it has looked at all that it was sent with the preface: that may break the
    /// protocol. Until then its frames are in the outbox.
    holding: bool,
}

impl Wire {
    pub(super) fn new(early: BytesMut, budgets: Budgets, shared: Rc<Shared>) -> Self {
        shared.counters.received(early.len());
        let is_server = shared.is_server;
        let outbound = if is_server { Outbound::default() } else { Outbound::behind_preface() };
        Self {
            early,
            inbound: Inbound::new(is_server, budgets),
            outbound,
            holding: is_server,
            shared,
        }
    }

    /// Looks at what was put behind `before`, and takes back what is not to be seen yet.
    fn inspect(&mut self, buf: &mut ReadBuf<'_>, before: usize, source: Source) {
        let pong = shutdown_pong().len();
        let mut from = before;
        let mut removed = 0;
        loop {
            match self.inbound.inspect(&buf.filled()[from..], &self.shared) {
                Seen::All => break,
                Seen::Gate(at) => {
                    if source == Source::Socket {
                        self.early.extend_from_slice(&buf.filled()[from + at..]);
                    }
                    buf.set_filled(from + at);
                    break;
                }
                Seen::Pong(at) => {
                    self.shared.pong.set(Pong::Held);
                    from += at;
                    let end = buf.filled().len();
                    buf.filled_mut().copy_within(from + pong..end, from);
                    buf.set_filled(end - pong);
                    removed += pong;
                }
            }
        }
        if source == Source::Early {
            self.early.advance(buf.filled().len() - before + removed);
        }
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        if self.shared.broken.get() {
            return Poll::Ready(Ok(total));
        }
        let mut after = self.outbound;
        let mut resets = 0;
        let outcome = after.scan(slices, total, &self.shared, &mut resets);
        let n = match outcome {
            Err((at, stop)) if at == 0 || self.holding => {
                self.hold(slices, at);
                self.stop(stop);
                return Poll::Ready(Ok(total));
            }
            // What comes before goes out first.
            Err((at, _)) => {
                ready!(self.poll_held(cx))?;
                let first = slices.iter().find(|slice| !slice.is_empty());
                let first = first.map_or(&[][..], |slice| &slice[..slice.len().min(at)]);
                ready!(self.shared.io.borrow_mut().poll_write(cx, first))?
            }
            Ok(()) if self.holding => {
                self.hold(slices, total);
                total
            }
            Ok(()) => {
                ready!(self.poll_held(cx))?;
                ready!(self.shared.io.borrow_mut().poll_write_vectored(cx, slices))?
            }
        };
        if n == total {
            self.outbound = after;
        } else {
            resets = 0;
            // Nothing stops here: it was looked for already.
            let _ = self.outbound.scan(slices, n, &self.shared, &mut resets);
        }
        if !self.holding {
            self.shared.counters.sent(n);
        }
        if resets > 0 {
            self.shared.counters.codec.add(Http2Stat::TxReset, resets.into());
        }
        Poll::Ready(Ok(n))
    }

    /// Puts the first `n` bytes into the outbox.
    fn hold(&self, slices: &[IoSlice<'_>], n: usize) {
        let mut outbox = self.shared.outbox.borrow_mut();
        let mut left = n;
        for slice in slices {
            let n = slice.len().min(left);
            outbox.extend_from_slice(&slice[..n]);
            left -= n;
        }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.holding = false;
        self.shared.poll_outbox(cx)
    }

    /// The peer broke the protocol: nothing else leaves.
    fn stop(&mut self, stop: Stop) {
        let shared = &self.shared;
        shared.broken.set(true);
        match stop {
            Stop::Refused { stream } => shared.refused.set(Some(stream)),
            Stop::GoAway { last_stream, code } => {
                let by_last_frame = match (code, shared.last_kind.get()) {
                    (code::PROTOCOL_ERROR, kind::DATA) => Culprit::Code(code::STREAM_CLOSED),
                    (code::PROTOCOL_ERROR, _) => Culprit::Silent,
                    // The crate h2 knows better than that something is wrong.
                    (code, _) => Culprit::Code(code),
                };
                if shared.gate.get().is_none()
                    && shared.flooded.get().is_none()
                    && let Culprit::Code(code) = shared.culprit.get().unwrap_or(by_last_frame)
                {
                    shared.say_goodbye(last_stream, code);
                }
            }
        }
    }
}

/// Where bytes given out come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Socket,
    /// They are still there.
    Early,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shared.gate.get().is_some() {
            // Whoever polls the connection opens it and polls again.
            return Poll::Pending;
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let pong = shutdown_pong();
        if this.shared.pong.get() == Pong::Due
            && this.inbound.is_at_boundary()
            && buf.remaining() >= pong.len()
        {
            this.shared.pong.set(Pong::Given);
            buf.put_slice(&pong);
            return Poll::Ready(Ok(()));
        }
        loop {
            let before = buf.filled().len();
            let source = if this.early.is_empty() { Source::Socket } else { Source::Early };
            match source {
                Source::Socket => {
                    let mut io = this.shared.io.borrow_mut();
                    let Poll::Ready(read) = Pin::new(&mut *io).poll_read(cx, buf) else {
                        this.holding = false;
                        return Poll::Pending;
                    };
                    let n = buf.filled().len() - before;
                    if read.is_err() || n == 0 {
                        this.shared.peer_closed.set(true);
                        return Poll::Ready(read);
                    }
                    this.shared.counters.received(n);
                }
                Source::Early => {
                    let n = this.early.len().min(buf.remaining());
                    buf.put_slice(&this.early[..n]);
                }
            }
            this.inspect(buf, before, source);
            // Nothing is left when all was a PONG: no bytes would mean the end.
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.holding || this.shared.broken.get() {
            return Poll::Ready(Ok(()));
        }
        this.poll_held(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.broken.get() {
            // A farewell may have to leave first.
            return Poll::Ready(Ok(()));
        }
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        this.shared.io.borrow_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
