//! What the wire, the streams and the owner of one HTTP/2 connection know of each other: its socket, its
//! counters, and what the wire has found out about the peer.

use std::cell::{Cell, RefCell};
use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use super::fault::Http2Fault;
use super::frame::kind;
use crate::io::Io;
use crate::stats::Block;
use crate::stats::names::{ClusterStat, Http2Stat, HttpStat};

/// Where the bytes of a connection are counted.
#[derive(Debug, Clone)]
pub enum Traffic {
    Downstream(Block<HttpStat>),
    Upstream(Block<ClusterStat>),
}

/// The statistics of a codec: `http2.*` and the byte counters beside it.
#[derive(Debug, Clone)]
pub struct Counters {
    pub codec: Block<Http2Stat>,
    pub traffic: Traffic,
}

impl Counters {
    /// For tests.
    pub fn detached() -> Self {
        Self { codec: Block::detached(), traffic: Traffic::Downstream(Block::detached()) }
    }

    pub(super) fn received(&self, bytes: usize) {
        match &self.traffic {
            Traffic::Downstream(stats) => {
                stats.add(HttpStat::DownstreamCxRxBytesTotal, bytes as u64);
            }
            Traffic::Upstream(stats) => {
                stats.add(ClusterStat::UpstreamCxRxBytesTotal, bytes as u64);
            }
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        match &self.traffic {
            Traffic::Downstream(stats) => {
                stats.add(HttpStat::DownstreamCxTxBytesTotal, bytes as u64);
            }
            Traffic::Upstream(stats) => {
                stats.add(ClusterStat::UpstreamCxTxBytesTotal, bytes as u64);
            }
        }
    }
}

/// A header block that the crate h2 has been given and has not yet been asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gate {
    pub(super) stream: u32,
    /// The block opens the stream; otherwise it is trailers.
    pub(super) opens: bool,
    /// Nothing of the message is to follow.
    pub(super) ends: bool,
}

/// Frames of which there were too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    Priority,
    WindowUpdate,
    /// Frames without payload, one after the other.
    Empty,
    /// Answers to PING and SETTINGS that the peer does not take.
    Control,
}

impl Flood {
    pub(super) fn stat(self) -> Http2Stat {
        match self {
            Self::Priority => Http2Stat::InboundPriorityFramesFlood,
            Self::WindowUpdate => Http2Stat::InboundWindowUpdateFramesFlood,
            Self::Empty => Http2Stat::InboundEmptyFramesFlood,
            Self::Control => Http2Stat::OutboundControlFlood,
        }
    }
}

/// What is wrong with a frame whose header tells: whether GOAWAY says so, with which code (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Culprit {
    Silent,
    Code(u32),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) is_server: bool,
    /// A request that breaks the rules of HTTP ends alone, not with its connection.
    pub(super) stream_errors: bool,
    pub(super) io: RefCell<Io>,
    pub(super) counters: Counters,
    /// Streams that the peer has opened (server), or we have (client).
    pub(super) opened: Cell<u32>,
    /// Streams open now.
    pub(super) active: Cell<u32>,
    /// Streams that the peer reset before their answer was complete.
    pub(super) reset_early: Cell<u32>,
    /// DATA frames sent: each may be answered by window updates.
    pub(super) data_sent: Cell<u64>,
    /// The peer is over a budget.
    pub(super) flooded: Cell<Option<Flood>>,
    /// No byte is read before the owner has seen what became of this block.
    pub(super) gate: Cell<Option<Gate>>,
    /// The newest stream that was accepted.
    pub(super) accepted: Cell<u32>,
    /// The newest stream whose message has ended without trailers.
    pub(super) last_ended: Cell<u32>,
    /// Messages of the peer that have ended, in whatever way.
    pub(super) ended: Cell<u32>,
    /// The peer has sent GOAWAY.
    pub(super) goaway: Cell<bool>,
    /// The new stream whose header block is not whole yet.
    pub(super) open_head: Cell<Option<u32>>,
    /// The streams whose trailers break the rules of HTTP, and how, until the stream has heard of it.
    pub(super) bad_trailers: RefCell<Vec<(u32, Http2Fault)>>,
    /// The stream whose header block the crate h2 refused.
    pub(super) refused: Cell<Option<u32>>,
    /// The frame that cannot have been meant, where its header tells.
    pub(super) culprit: Cell<Option<Culprit>>,
    /// The last frame that came whole or in part: its type.
    pub(super) last_kind: Cell<u8>,
    /// The connection cannot go on: nothing that the crate h2 writes leaves any more.
    pub(super) broken: Cell<bool>,
    /// Bytes of ours that go before anything else.
    pub(super) outbox: RefCell<Vec<u8>>,
    /// A GOAWAY of ours is among them.
    told: Cell<bool>,
    /// The peer has sent its FIN, or the socket failed.
    pub(super) peer_closed: Cell<bool>,
    /// The answer to the PING between the two GOAWAY frames of a drain has come and is held back.
    pub(super) pong: Cell<Pong>,
    /// The last header block, or the payload of the last SETTINGS frame.
    pub(super) block: RefCell<Kept>,
}

/// Bytes kept to be looked at: the beginning, where they are many.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    partial: bool,
}

impl Kept {
    /// More is not kept.
    const MAX_BYTES: usize = 4096;

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.partial = false;
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.partial |= self.bytes.len() + bytes.len() > Self::MAX_BYTES;
        if !self.partial {
            self.bytes.extend_from_slice(bytes);
        }
    }

    pub(super) fn beginning(&self) -> &[u8] {
        &self.bytes
    }

    /// `None` where something is missing.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        (!self.partial).then_some(&self.bytes)
    }

    /// Leaves the fields of a HEADERS frame alone (RFC 9113 §6.2), whose payload this is.
    pub(super) fn strip(&mut self, padded: bool, priority: bool) {
        if self.partial {
            return;
        }
        let padding = match self.bytes.first() {
            Some(length) if padded => usize::from(*length),
            _ => 0,
        };
        let front = usize::from(padded) + if priority { 5 } else { 0 };
        match self.bytes.len().checked_sub(padding) {
            Some(end) if front <= end => {
                self.bytes.truncate(end);
                self.bytes.drain(..front);
            }
            _ => self.partial = true,
        }
    }
}

/// See `Shared::pong`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pong {
    /// It may come: it is taken out.
    #[default]
    Hold,
    Held,
    /// To be given to the crate h2 with the next bytes.
    Due,
    Given,
}

impl Shared {
    pub(super) fn new(is_server: bool, io: Io, counters: Counters) -> Self {
        Self {
            is_server,
            stream_errors: false,
            io: RefCell::new(io),
            counters,
            opened: Cell::default(),
            active: Cell::default(),
            reset_early: Cell::default(),
            data_sent: Cell::default(),
            flooded: Cell::default(),
            gate: Cell::default(),
            accepted: Cell::default(),
            last_ended: Cell::default(),
            ended: Cell::default(),
            goaway: Cell::default(),
            open_head: Cell::default(),
            bad_trailers: RefCell::default(),
            refused: Cell::default(),
            culprit: Cell::default(),
            last_kind: Cell::new(u8::MAX),
            broken: Cell::default(),
            outbox: RefCell::default(),
            told: Cell::default(),
            peer_closed: Cell::default(),
            pong: Cell::default(),
            block: RefCell::default(),
        }
    }

    /// The first fault found is the one that counts.
    pub(super) fn accuse(&self, culprit: Culprit) {
        if self.culprit.get().is_none() {
            self.culprit.set(Some(culprit));
        }
    }

    /// A GOAWAY that leaves before the connection is closed.
    pub(super) fn say_goodbye(&self, last_stream: u32, code: u32) {
        self.told.set(true);
        let mut frame = self.outbox.borrow_mut();
        frame.extend_from_slice(&[0, 0, 8, kind::GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&last_stream.to_be_bytes());
        frame.extend_from_slice(&code.to_be_bytes());
    }

    /// Sends what is left and a FIN, and waits for the peer's: bytes that nobody reads would make the kernel
    /// answer with a reset, which takes back what was sent.
    pub(super) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.broken.get() && !self.told.get() {
            self.outbox.borrow_mut().clear();
        }
        if ready!(self.poll_outbox(cx)).is_err() {
            return Poll::Ready(());
        }
        let mut io = self.io.borrow_mut();
        if ready!(io.poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        let mut bytes = BytesMut::with_capacity(1024);
        while !self.peer_closed.get() {
            bytes.clear();
            match ready!(io.poll_read(cx, &mut bytes)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => self.peer_closed.set(true),
            }
        }
        Poll::Ready(())
    }

    /// Sends what goes before anything else.
    pub(super) fn poll_outbox(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox.borrow_mut();
        while !outbox.is_empty() {
            let n = ready!(self.io.borrow_mut().poll_write(cx, &outbox))?;
            self.counters.sent(n);
            outbox.drain(..n);
        }
        self.io.borrow_mut().poll_flush(cx)
    }

    pub(super) fn flood(&self, flood: Flood) {
        if self.flooded.get().is_none() {
            self.flooded.set(Some(flood));
            self.broken.set(true);
            self.counters.codec.inc(flood.stat());
        }
    }
}
