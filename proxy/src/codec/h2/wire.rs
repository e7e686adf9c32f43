//! The bytes under an HTTP/2 connection: what was read already comes first, and the headers of the
//! peer's frames are looked at on their way, because the crate h2 answers PING, SETTINGS, PRIORITY and
//! WINDOW_UPDATE floods for ever (FAULTS D5, D6) and shows none of them.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::io::Io;

const PREFACE_BYTES: u32 = 24;
const FRAME_HEADER_BYTES: usize = 9;

/// Control frames a peer may send at once beyond what its streams explain. Envoy's default for queued
/// answers (`max_outbound_control_frames`) is the same.
const CONTROL_BURST: u32 = 1000;
/// Control frames per second that are earned back, so that keepalive PINGs never add up to a flood.
const CONTROL_PER_SECOND: f64 = 10.0;

/// What both the wire and the streams of a connection know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Streams that the peer has opened (server), or we have (client).
    pub(super) opened: Cell<u32>,
    /// Streams open now.
    pub(super) active: Cell<u32>,
    /// Streams that the peer reset before their answer was complete.
    pub(super) reset_early: Cell<u32>,
    /// DATA frames sent: each may be answered by window updates.
    pub(super) data_sent: Cell<u64>,
    /// The peer is over a budget.
    pub(super) flooded: Cell<bool>,
}

/// Budgets that depend on configuration (`Http2ProtocolOptions`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Budgets {
    pub(super) priority_per_stream: u32,
    pub(super) window_updates_per_data: u32,
}

/// An `Io` with a frame counter on its reading side.
#[derive(Debug)]
pub(super) struct Wire {
    io: Io,
    early: BytesMut,
    budgets: Budgets,
    shared: Rc<Shared>,
    /// Bytes of the current frame's payload (or the preface) still to come.
    skip: u32,
    header: [u8; FRAME_HEADER_BYTES],
    header_len: usize,
    control_tokens: f64,
    control_at: Option<Instant>,
    priority: u64,
    window_updates: u64,
}

impl Wire {
    pub(super) fn new(
        io: Io,
        early: BytesMut,
        server: bool,
        budgets: Budgets,
        shared: Rc<Shared>,
    ) -> Self {
        Self {
            io,
            early,
            budgets,
            shared,
            skip: if server { PREFACE_BYTES } else { 0 },
            header: [0; FRAME_HEADER_BYTES],
            header_len: 0,
            control_tokens: f64::from(CONTROL_BURST),
            control_at: None,
            priority: 0,
            window_updates: 0,
        }
    }

    /// Goes over the frame headers in bytes just read.
    fn inspect(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = (self.skip as usize).min(bytes.len());
                self.skip -= n as u32;
                bytes = &bytes[n..];
                continue;
            }
            let n = (FRAME_HEADER_BYTES - self.header_len).min(bytes.len());
            self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[..n]);
            self.header_len += n;
            bytes = &bytes[n..];
            if self.header_len == FRAME_HEADER_BYTES {
                self.header_len = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]);
                self.count(kind, flags);
            }
        }
    }

    fn count(&mut self, kind: u8, flags: u8) {
        const PRIORITY: u8 = 2;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const WINDOW_UPDATE: u8 = 8;
        const ACK: u8 = 1;
        let streams = u64::from(self.shared.opened.get());
        let over = match kind {
            PING | SETTINGS if flags & ACK == 0 => self.take_control_token(),
            PRIORITY => {
                self.priority += 1;
                self.priority > u64::from(self.budgets.priority_per_stream) * (1 + streams)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                // As Envoy counts it: each stream and each DATA frame sent earns some.
                let data = self.shared.data_sent.get();
                let earned = streams + u64::from(self.budgets.window_updates_per_data) * data;
                self.window_updates > 5 + 2 * earned
            }
            _ => false,
        };
        if over {
            self.shared.flooded.set(true);
        }
    }

    /// Whether the bucket is empty.
    fn take_control_token(&mut self) -> bool {
        let now = Instant::now();
        if let Some(at) = self.control_at.replace(now) {
            let earned = (now - at).as_secs_f64() * CONTROL_PER_SECOND;
            self.control_tokens = (self.control_tokens + earned).min(f64::from(CONTROL_BURST));
        }
        self.control_tokens -= 1.0;
        self.control_tokens < 0.0
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.early.is_empty() {
            std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let n = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..n]);
            this.early.advance(n);
        }
        this.inspect(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
