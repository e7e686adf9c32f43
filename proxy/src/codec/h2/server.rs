//! The server's end of an HTTP/2 connection.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use http::Method;

use crate::codec::Fault;
use crate::codec::head::{Protocol, RequestHead};
use crate::io::Io;
use crate::stats::names::Http2Stat;
use crate::stream_info::ByteMeter;

use super::Settings;
use super::connection::{Connection, Event, Going, Shared};
use super::counters::Counters;
use super::fault::Http2Fault;
use super::frame::code;
use super::server_stream::{Asked, RESET_BYTES, ServerStream, head_bytes};
use super::transport::{Transport, Turn};

/// RFC 9113 §3.4.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is sent before the peer's preface is whole.
    Preface,
    Open,
    /// The connection cannot go on; the owner hears why with the next poll.
    Broken(Fault),
    Closed,
}

/// A downstream HTTP/2 connection.
#[derive(Debug)]
pub struct ServerConn {
    state: State,
    transport: Transport,
    shared: Shared,
}

/// A request, whether it has no body, and its stream; where the stream is refused (`ServerStream::rejected`) the
/// head is empty.
pub type Accepted = (RequestHead, bool, ServerStream);

impl ServerConn {
    /// `read` has what was read already, the preface included.
    pub fn new(io: Io, read: BytesMut, settings: Arc<Settings>, counters: Counters) -> Self {
        counters.codec.inc(Http2Stat::Nghttp2DownstreamConnections);
        counters.received(read.len());
        Self {
            state: State::Preface,
            transport: Transport::new(io, read),
            shared: Rc::new(RefCell::new(Connection::new(true, settings, counters))),
        }
    }

    /// Drives the connection and gives the next request; `None` when the connection has ended. Must be
    /// polled for as long as there are streams. After `Err(Fault::Parse(_))` see `poll_close`.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, Fault>>> {
        loop {
            match self.state {
                State::Preface => {
                    self.state = match ready!(self.poll_preface(cx)) {
                        Ok(()) => {
                            self.transport.keep_alive(&self.shared.borrow());
                            State::Open
                        }
                        Err(fault) => State::Broken(fault),
                    };
                }
                State::Open => return self.poll_open(cx),
                State::Broken(fault) => {
                    self.state = State::Closed;
                    return Poll::Ready(Some(Err(fault)));
                }
                State::Closed => return Poll::Ready(None),
            }
        }
    }

    fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            let read = &mut self.transport.read.bytes;
            let seen = read.len().min(PREFACE.len());
            if read[..seen] != PREFACE[..seen] {
                self.shared.borrow_mut().out.queue.clear();
                return Poll::Ready(Err(Http2Fault::Codec.into()));
            }
            if seen == PREFACE.len() {
                read.advance(seen);
                return Poll::Ready(Ok(()));
            }
            ready!(self.transport.poll_read(&self.shared.borrow(), cx))?;
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, Fault>>> {
        let turn = self.transport.turn(&mut self.shared.borrow_mut(), cx);
        let ended = match turn {
            Turn::Event(event) => return Poll::Ready(Some(Ok(self.accept(event)))),
            Turn::Ended => self.shared.borrow().ended,
            Turn::Waiting => {
                ready!(self.poll_gone(cx));
                Some(Fault::Eof)
            }
        };
        match ended {
            Some(Fault::Eof) | None => {
                self.state = State::Closed;
                Poll::Ready(None)
            }
            Some(fault) => {
                self.state = State::Closed;
                Poll::Ready(Some(Err(fault)))
            }
        }
    }

    /// Ready when one side has said that it goes, and all streams are done.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let connection = &mut *self.shared.borrow_mut();
        let leaves = connection.going == Going::Final || connection.peer.going;
        if !leaves || connection.streams.open() > 0 {
            return Poll::Pending;
        }
        connection.go_away_at_last(code::NO_ERROR);
        let flushed = ready!(self.transport.poll_flush(connection, cx));
        connection.end(Fault::Eof, Fault::Eof);
        self.transport.peer_closed |= flushed.is_err();
        Poll::Ready(())
    }

    fn accept(&self, event: Event) -> Accepted {
        match event {
            Event::Request { key, head, end } => {
                let size = head_bytes(&head.headers)
                    + (head.path().map_or(0, <[u8]>::len) + head.authority().map_or(0, <[u8]>::len))
                        as u64;
                let meter = ByteMeter {
                    wire_received: size,
                    header_received: size,
                    ..ByteMeter::default()
                };
                let asked = Asked::of(&head);
                (head, end, ServerStream::new(key, &self.shared, meter, asked, end))
            }
            Event::Refused { fault, told } => {
                let sent = if told { RESET_BYTES } else { 0 };
                let meter = ByteMeter { wire_sent: sent, ..ByteMeter::default() };
                let head = RequestHead::new(Method::GET, Protocol::Http2);
                (head, false, ServerStream::refused(&self.shared, fault, meter))
            }
        }
    }

    /// The number of a request whose head has begun and is not whole.
    pub fn begun_head(&self) -> Option<u32> {
        self.shared.borrow().begun_head()
    }

    /// The stream of that request, to be answered without its head; `None` where it would have been refused.
    pub fn give_up_head(&mut self) -> Option<ServerStream> {
        let key = self.shared.borrow_mut().give_up_head()?;
        let meter = ByteMeter::default();
        Some(ServerStream::new(key, &self.shared, meter, Asked::Exchange, false))
    }

    /// Sends what is left to say and a FIN, and waits for the peer's. Only after `poll_accept` has ended.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.transport.poll_close(&mut self.shared.borrow_mut(), cx)
    }

    /// Whether the peer has closed its side.
    pub fn peer_closed(&self) -> bool {
        self.transport.peer_closed
    }

    /// GOAWAY in two steps (RFC 9113 §6.8): streams on their way are still taken, until `finish_drain`. False where
    /// that is under way, or the connection has ended.
    pub fn drain(&mut self) -> bool {
        self.shared.borrow_mut().announce_leave()
    }

    /// Whether a drain has begun, by `drain` or by an answer.
    pub fn is_draining(&self) -> bool {
        self.shared.borrow().drains
    }

    /// The second GOAWAY of a drain: no new stream is taken any more.
    pub fn finish_drain(&mut self) {
        let connection = &mut *self.shared.borrow_mut();
        if connection.going < Going::Final {
            // Those that tell of a fault are not counted, as in Envoy.
            connection.counters.codec.inc(Http2Stat::GoawaySent);
            connection.go_away_at_last(code::NO_ERROR);
        }
    }

    /// Ends the connection now, with a GOAWAY of this code, which leaves at once where the socket takes it.
    pub fn abort(&mut self, code: u32) {
        let connection = &mut *self.shared.borrow_mut();
        match self.state {
            State::Open => {
                connection.go_away_at_last(code);
                let mut cx = Context::from_waker(Waker::noop());
                let _ = self.transport.poll_flush(connection, &mut cx);
            }
            State::Preface => connection.out.queue.clear(),
            State::Broken(_) | State::Closed => {}
        }
        connection.end(Fault::Eof, Fault::Eof);
        self.state = State::Closed;
    }
}

impl Drop for ServerConn {
    fn drop(&mut self) {
        self.shared.borrow_mut().end(Fault::Eof, Fault::Eof);
    }
}
