//! The server's end of an HTTP/2 connection.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use h2::server::{Connection, Handshake, SendResponse};
use http::StatusCode;

use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame, ParseFault};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::Settings;
use super::convert::{self, Reject};
use super::keepalive::Keepalive;
use super::stream::{RecvHalf, SendHalf, fault_of, head_bytes};
use super::wire::{Shared, Wire};

/// Streams reset by the peer before their answer, above which a connection that resets more than half of
/// its streams is closed (CVE-2023-44487; Envoy's default is 500).
const MAX_EARLY_RESETS: u32 = 100;

enum State {
    Handshake(Handshake<Wire, Bytes>),
    Open(Connection<Wire, Bytes>),
    Closed,
}

/// A downstream HTTP/2 connection.
pub struct ServerConn {
    state: State,
    settings: Arc<Settings>,
    shared: Rc<Shared>,
    keepalive: Option<Keepalive>,
    draining: bool,
    flooded: bool,
}

impl std::fmt::Debug for ServerConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("h2::ServerConn").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// A request, whether it has no body, and its stream.
pub type Accepted = (RequestHead, bool, ServerStream);

impl ServerConn {
    /// `read` has what was read already, the preface included.
    pub fn new(io: Io, read: BytesMut, settings: Arc<Settings>) -> Self {
        let shared = Rc::new(Shared::default());
        let wire = Wire::new(io, read, true, settings.budgets(), Rc::clone(&shared));
        let options = &settings.options;
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(options.initial_stream_window_size)
            .initial_connection_window_size(options.initial_connection_window_size)
            .max_concurrent_streams(options.max_concurrent_streams)
            .header_table_size(options.hpack_table_size)
            .max_header_list_size(settings.max_head_bytes)
            .max_send_buffer_size(settings.max_send_buffer_bytes);
        if options.allow_connect {
            builder.enable_connect_protocol();
        }
        Self {
            state: State::Handshake(builder.handshake(wire)),
            settings,
            shared,
            keepalive: None,
            draining: false,
            flooded: false,
        }
    }

    /// Drives the connection and gives the next request; `None` when the connection has ended. Must be
    /// polled for as long as there are streams.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, Fault>>> {
        loop {
            match &mut self.state {
                State::Handshake(handshake) => match ready!(Pin::new(handshake).poll(cx)) {
                    Ok(connection) => self.open(connection),
                    Err(error) => {
                        self.state = State::Closed;
                        return Poll::Ready(Some(Err(fault_of(&error))));
                    }
                },
                State::Open(_) => {
                    if let Some(accepted) = ready!(self.poll_open(cx)) {
                        return Poll::Ready(accepted);
                    }
                }
                State::Closed => return Poll::Ready(None),
            }
        }
    }

    fn open(&mut self, mut connection: Connection<Wire, Bytes>) {
        let settings = self.settings.options.connection_keepalive;
        self.keepalive = Keepalive::new(settings, || connection.ping_pong());
        if self.draining {
            connection.graceful_shutdown();
        }
        self.state = State::Open(connection);
    }

    /// One step of an open connection; `None` where the next has to follow at once.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Option<Option<Result<Accepted, Fault>>>> {
        let State::Open(connection) = &mut self.state else { return Poll::Ready(None) };
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(cx).is_ready()
        {
            self.state = State::Closed;
            return Poll::Ready(Some(Some(Err(Fault::Io(std::io::ErrorKind::TimedOut)))));
        }
        let accepted = connection.poll_accept(cx);
        let early = self.shared.reset_early.get();
        let resets = early >= MAX_EARLY_RESETS && early > self.shared.opened.get() / 2;
        if !self.flooded && (resets || self.shared.flooded.get()) {
            self.flooded = true;
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            // Whoever hears of it drops the connection: the frame has to leave before.
            let _ = connection.poll_closed(cx);
            return Poll::Ready(Some(Some(Err(Fault::Parse(ParseFault::Flood)))));
        }
        match ready!(accepted) {
            Some(Ok((request, respond))) => {
                Poll::Ready(self.accept(request, respond).map(|accepted| Some(Ok(accepted))))
            }
            Some(Err(error)) => {
                self.state = State::Closed;
                Poll::Ready(Some(Some(Err(fault_of(&error)))))
            }
            None => {
                self.state = State::Closed;
                Poll::Ready(Some(None))
            }
        }
    }

    fn accept(
        &self,
        request: http::Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Accepted> {
        self.shared.opened.set(self.shared.opened.get() + 1);
        let (parts, recv) = request.into_parts();
        let max_count = self.settings.max_header_count;
        let head = match convert::request_from_h2(parts, max_count) {
            Ok(head) => head,
            Err(Reject::Malformed) => {
                respond.send_reset(Reason::PROTOCOL_ERROR);
                return None;
            }
            Err(Reject::TooManyHeaders) => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                let answer = ResponseHead::new(status, Protocol::Http2);
                // Fails only when the stream is gone.
                let _ = respond.send_response(convert::response_to_h2(&answer), true);
                return None;
            }
        };
        let size = head_bytes(&head.headers)
            + (head.path().map_or(0, <[u8]>::len) + head.authority().map_or(0, <[u8]>::len)) as u64;
        let meter =
            ByteMeter { wire_received: size, header_received: size, ..ByteMeter::default() };
        let recv = RecvHalf::new(recv, max_count);
        let held = head.upgrade.is_some() || head.method == http::Method::CONNECT;
        let end = recv.is_end() && !held;
        self.shared.active.set(self.shared.active.get() + 1);
        let stream = ServerStream {
            respond,
            send: SendHalf::new(Rc::clone(&self.shared)),
            recv,
            held,
            meter,
            shared: Rc::clone(&self.shared),
            early_reset_counted: false,
        };
        Some((head, end, stream))
    }

    /// GOAWAY in two steps (RFC 9113 §6.8): streams on their way are still taken, then the connection ends.
    pub fn drain(&mut self) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }

    /// Whether a stream is open.
    pub fn has_streams(&self) -> bool {
        self.shared.active.get() > 0
    }

    /// Ends the connection now, with a GOAWAY of this code, which leaves at once where the socket takes it.
    pub fn abort(&mut self, code: u32) {
        match &mut self.state {
            State::Open(connection) => {
                connection.abrupt_shutdown(Reason::from(code));
                let _ = connection.poll_closed(&mut Context::from_waker(Waker::noop()));
            }
            State::Handshake(_) | State::Closed => self.state = State::Closed,
        }
    }
}

/// One request of a downstream HTTP/2 connection. What was sent has to be flushed before it is dropped.
#[derive(Debug)]
pub struct ServerStream {
    respond: SendResponse<Bytes>,
    send: SendHalf,
    recv: RecvHalf,
    /// Extended CONNECT or CONNECT without an answer yet: its bytes are held back.
    held: bool,
    meter: ByteMeter,
    shared: Rc<Shared>,
    early_reset_counted: bool,
}

impl Drop for ServerStream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get() - 1);
    }
}

impl ServerStream {
    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if self.held {
            return Poll::Pending;
        }
        let result = ready!(self.recv.poll_frame(cx, &mut self.meter));
        match result {
            Err(Fault::Parse(_)) => self.reset(Reason::PROTOCOL_ERROR.into()),
            Err(fault) => self.note_reset(fault),
            Ok(_) => {}
        }
        Poll::Ready(result)
    }

    /// Counts a stream that the peer reset before its answer was complete, once.
    fn note_reset(&mut self, fault: Fault) {
        if let Fault::Reset { remote: true, .. } = fault
            && !self.send.is_ended()
            && !std::mem::replace(&mut self.early_reset_counted, true)
        {
            self.shared.reset_early.set(self.shared.reset_early.get() + 1);
        }
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        !self.held && self.recv.is_end()
    }

    pub(in crate::codec) fn send_informational(&mut self, head: &ResponseHead) {
        let size = head_bytes(&head.headers);
        self.meter.wire_sent += size;
        self.meter.header_sent += size;
        // Fails only when the final head is out or the stream is gone.
        let _ = self.respond.send_informational(convert::response_to_h2(head));
    }

    pub(in crate::codec) fn send_head(&mut self, head: &ResponseHead, end: bool) {
        self.held = false;
        let size = head_bytes(&head.headers);
        self.meter.wire_sent += size;
        self.meter.header_sent += size;
        match self.respond.send_response(convert::response_to_h2(head), end) {
            Ok(stream) => self.send.begin(stream, end),
            Err(error) => self.send.fail(fault_of(&error)),
        }
    }

    pub(in crate::codec) fn send_data(&mut self, data: Bytes, end: bool) {
        self.send.data(data, end, &mut self.meter);
    }

    pub(in crate::codec) fn send_trailers(&mut self, trailers: &HeaderList) {
        self.send.trailers(trailers, &mut self.meter);
    }

    pub(in crate::codec) fn buffered(&self) -> usize {
        self.send.buffered()
    }

    pub(in crate::codec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let result = ready!(self.send.poll_flush(cx));
        if let Err(fault) = result {
            self.note_reset(fault);
        }
        Poll::Ready(result)
    }

    pub(in crate::codec) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let reset = match self.send.stream_mut() {
            Some(stream) => stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        let fault = match ready!(reset) {
            Ok(reason) => Fault::Reset { code: reason.into(), remote: true },
            Err(error) => fault_of(&error),
        };
        self.note_reset(fault);
        Poll::Ready(fault)
    }

    pub(in crate::codec) fn reset(&mut self, code: u32) {
        // An explicit reset discards what h2 has queued; after a complete response h2 sends
        // NO_ERROR by itself, behind the response, when the stream's handles are dropped.
        if code == u32::from(Reason::NO_ERROR) && self.send.is_ended() {
            return;
        }
        match self.send.stream_mut() {
            Some(stream) => stream.send_reset(Reason::from(code)),
            None => self.respond.send_reset(Reason::from(code)),
        }
        self.send.fail(Fault::Reset { code, remote: false });
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
