//! The client's end of an HTTP/2 connection.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;

use crate::codec::Fault;
use crate::io::Io;

use super::Settings;
use super::client_stream::ClientStream;
use super::connection::{Connection, Shared};
use super::counters::Counters;
use super::frame::code;
use super::transport::{Transport, Turn};

/// The pool's handle on an upstream HTTP/2 connection, whose `Driver` runs as a task of its own.
#[derive(Debug)]
pub struct ClientConn {
    settings: Arc<Settings>,
    shared: Shared,
}

/// Moves the bytes of a connection; spawned by its pool. Ends with the connection, with the reason, or when nobody
/// holds the connection or a stream of it any more.
#[derive(Debug)]
pub struct Driver {
    transport: Transport,
    shared: Shared,
}

impl Future for Driver {
    type Output = Fault;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fault> {
        let this = self.get_mut();
        let is_left = Rc::strong_count(&this.shared) == 1;
        let connection = &mut *this.shared.borrow_mut();
        if is_left {
            connection.go_away_at_last(code::NO_ERROR);
        }
        loop {
            match this.transport.turn(connection, cx) {
                // A client is asked nothing.
                Turn::Event(_) => {}
                Turn::Ended => {
                    // What went wrong is said if the socket takes it.
                    let _ = this.transport.poll_flush(connection, cx);
                    return Poll::Ready(connection.ended.unwrap_or(Fault::Eof));
                }
                Turn::Waiting => break,
            }
        }
        if is_left || connection.peer.going && connection.is_idle_client() {
            connection.end(Fault::Eof, Fault::Eof);
            return Poll::Ready(Fault::Eof);
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.borrow_mut().end(Fault::Eof, Fault::Eof);
    }
}

impl Drop for ClientConn {
    fn drop(&mut self) {
        self.shared.borrow_mut().wake();
    }
}

impl ClientConn {
    /// The preface and SETTINGS go out with the driver's first turn.
    ///
    /// # Errors
    /// None today: the socket's come from the driver.
    pub async fn handshake(
        io: Io,
        settings: Arc<Settings>,
        counters: Counters,
    ) -> Result<(Self, Driver), Fault> {
        let connection = Connection::new(false, Arc::clone(&settings), counters);
        let mut transport = Transport::new(io, BytesMut::new());
        transport.keep_alive(&connection);
        let shared = Rc::new(RefCell::new(connection));
        let driver = Driver { transport, shared: Rc::clone(&shared) };
        Ok((Self { settings, shared }, driver))
    }

    /// A stream for one request. Nothing is sent before its head.
    pub fn open(&self) -> ClientStream {
        ClientStream::new(&self.shared)
    }

    /// Streams that may be open at once: the peer's SETTINGS, and our own limit.
    pub fn max_concurrent_streams(&self) -> usize {
        let ours = self.settings.options.max_concurrent_streams;
        self.shared.borrow().peer.max_streams.min(ours) as usize
    }

    /// Whether the peer has said that it takes no new streams.
    pub fn has_goaway(&self) -> bool {
        self.shared.borrow().peer.going
    }

    /// Whether every request has got its answer, or a reset.
    pub fn is_all_answered(&self) -> bool {
        let connection = self.shared.borrow();
        connection.ended_messages >= connection.budget.opened
    }

    /// Whether the connection takes no new streams: it ended, failed, or the peer sent GOAWAY.
    pub fn is_closed(&self) -> bool {
        let connection = self.shared.borrow();
        connection.ended.is_some() || connection.peer.going || !connection.has_numbers()
    }

    /// Whether the peer takes extended CONNECT (RFC 8441).
    pub fn is_connect_protocol_enabled(&self) -> bool {
        self.shared.borrow().peer.connect_protocol
    }
}
