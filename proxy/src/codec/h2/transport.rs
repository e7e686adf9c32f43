//! The socket under a connection: bytes go to its state, and what gathers there goes out once a turn.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use super::connection::{Connection, Event};
use super::keepalive::Keepalive;
use crate::codec::Fault;
use crate::codec::buffer::ReadBuffer;
use crate::io::Io;
use crate::stats::names::Http2Stat;

/// Reads of one turn: whoever takes the bytes has to run between them.
const READS: usize = 4;

/// Requests of one turn, after which what there is goes out before more are taken.
const EVENTS: u32 = 32;

#[derive(Debug)]
pub(super) struct Transport {
    io: Io,
    pub(super) read: ReadBuffer,
    keepalive: Option<Keepalive>,
    /// Given out since bytes were last sent.
    events: u32,
    /// The peer has sent its FIN, or the socket failed.
    pub(super) peer_closed: bool,
}

/// What a turn has come to.
#[derive(Debug)]
pub(super) enum Turn {
    Event(Event),
    /// The peer has ended it, or it cannot go on: the connection knows why.
    Ended,
    /// Nothing more to read for now, and all is out that the socket takes.
    Waiting,
}

impl Transport {
    pub(super) fn new(io: Io, read: BytesMut) -> Self {
        Self { io, read: ReadBuffer::new(read), keepalive: None, events: 0, peer_closed: false }
    }

    /// The connection is open: PINGs may go.
    pub(super) fn keep_alive(&mut self, connection: &Connection) {
        self.keepalive = Keepalive::new(connection.settings.options.connection_keepalive);
    }

    /// Reads once; the end is an error.
    pub(super) fn poll_read(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        let read = ready!(self.read.poll_fill(&mut self.io, cx));
        Poll::Ready(match read {
            Ok(0) => {
                self.peer_closed = true;
                Err(Fault::Eof)
            }
            Ok(n) => {
                connection.counters.received(n);
                Ok(())
            }
            Err(error) => {
                self.peer_closed = true;
                Err(error.into())
            }
        })
    }

    /// Moves the connection on as far as it goes without anybody else.
    pub(super) fn turn(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Turn {
        connection.attend(cx);
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(connection, cx).is_ready()
        {
            connection.counters.codec.inc(Http2Stat::KeepaliveTimeout);
            connection.end(Fault::Io(io::ErrorKind::TimedOut), Fault::Eof);
            return Turn::Ended;
        }
        if self.events >= EVENTS {
            self.events = 0;
            if self.flush(connection, cx).is_err() {
                return Turn::Ended;
            }
            // The streams begun so far have their turn before more of them are.
            cx.waker().wake_by_ref();
            connection.leave();
            return Turn::Waiting;
        }
        let mut reads = 0;
        while !connection.is_stuffed() {
            match connection.receive(&mut self.read) {
                Ok(Some(event)) => {
                    self.events += 1;
                    return Turn::Event(event);
                }
                Ok(None) => {}
                Err(()) => return Turn::Ended,
            }
            if self.read.bytes.is_empty() {
                self.read.release();
            }
            if reads == READS {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match self.poll_read(connection, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fault)) => {
                    connection.end(fault, fault);
                    return Turn::Ended;
                }
                Poll::Pending => break,
            }
        }
        self.events = 0;
        if self.flush(connection, cx).is_err() {
            return Turn::Ended;
        }
        connection.leave();
        Turn::Waiting
    }

    /// Sends as much as the socket takes.
    fn flush(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Result<(), ()> {
        let was_stuffed = connection.is_stuffed();
        if let Poll::Ready(Err(error)) = connection.poll_flush(&mut self.io, cx) {
            self.peer_closed = true;
            let fault = Fault::from(error);
            connection.end(fault, fault);
            return Err(());
        }
        if let Err(broken) = connection.check_outbox() {
            connection.give_up(broken);
            return Err(());
        }
        if was_stuffed && !connection.is_stuffed() {
            // There may be bytes that were not looked at.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Sends what is left.
    pub(super) fn poll_flush(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        connection.poll_flush(&mut self.io, cx)
    }

    /// Sends what is left and a FIN, and waits for the peer's: bytes that nobody reads would make the kernel
    /// answer with a reset, which takes back what was sent.
    pub(super) fn poll_close(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if ready!(connection.poll_flush(&mut self.io, cx)).is_err()
            || ready!(self.io.poll_shutdown(cx)).is_err()
        {
            return Poll::Ready(());
        }
        while !self.peer_closed {
            self.read.bytes.clear();
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => self.peer_closed = true,
            }
        }
        Poll::Ready(())
    }
}
