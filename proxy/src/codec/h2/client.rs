//! The client's end of an HTTP/2 connection.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use h2::client::{Connection, ResponseFuture, SendRequest};

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame, ParseFault};
use crate::io::Io;
use crate::stats::names::Http2Stat;
use crate::stream_info::ByteMeter;

use super::Settings;
use super::convert;
use super::fault::Http2Fault;
use super::inbound::Budgets;
use super::keepalive::Keepalive;
use super::shared::{Counters, Shared};
use super::stream::{RESET_BYTES, RecvHalf, SendHalf, fault_of, head_bytes};
use super::wire::Wire;

/// As for HTTP/1: an endless row of interim responses is an attack or a loop.
const MAX_INFORMATIONAL: u8 = 100;

/// The pool's handle on an upstream HTTP/2 connection, whose `Driver` runs as a task of its own.
#[derive(Debug)]
pub struct ClientConn {
    /// In a cell because asking whether it is ready wants `&mut`.
    send: RefCell<SendRequest<Bytes>>,
    settings: Arc<Settings>,
    shared: Rc<Shared>,
    ended: Rc<Cell<bool>>,
}

/// Moves the bytes of a connection; spawned by its pool. Ends with the connection, with the reason.
#[derive(Debug)]
pub struct Driver {
    connection: Connection<Wire, Bytes>,
    keepalive: Option<Keepalive>,
    shared: Rc<Shared>,
    ended: Rc<Cell<bool>>,
}

impl Future for Driver {
    type Output = Fault;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Fault> {
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(cx).is_ready()
        {
            self.ended.set(true);
            return Poll::Ready(Fault::Io(std::io::ErrorKind::TimedOut));
        }
        let polled = Pin::new(&mut self.connection).poll(cx);
        if self.shared.flooded.get().is_some() {
            self.ended.set(true);
            return Poll::Ready(Http2Fault::Flood.into());
        }
        let result = ready!(polled);
        self.ended.set(true);
        Poll::Ready(match result {
            Ok(()) => Fault::Eof,
            Err(error) => fault_of(&error),
        })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.ended.set(true);
    }
}

impl ClientConn {
    /// Writes the preface and SETTINGS.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn handshake(
        io: Io,
        settings: Arc<Settings>,
        counters: Counters,
    ) -> Result<(Self, Driver), Fault> {
        let shared = Rc::new(Shared::new(false, io, counters));
        let wire = Wire::new(BytesMut::new(), Budgets::new(&settings), Rc::clone(&shared));
        let options = &settings.options;
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(options.initial_stream_window_size)
            .initial_connection_window_size(options.initial_connection_window_size)
            .header_table_size(options.hpack_table_size)
            .max_header_list_size(settings.max_head_bytes)
            .max_send_buffer_size(settings.max_send_buffer_bytes)
            .initial_max_send_streams(options.max_concurrent_streams as usize)
            .enable_push(false)
            .handshake(wire)
            .await
            .map_err(|error| fault_of(&error))?;
        let keepalive = Keepalive::new(options.connection_keepalive, || connection.ping_pong());
        let ended = Rc::new(Cell::new(false));
        let driver =
            Driver { connection, keepalive, shared: Rc::clone(&shared), ended: Rc::clone(&ended) };
        Ok((Self { send: RefCell::new(send), settings, shared, ended }, driver))
    }

    /// A stream for one request. Nothing is sent before its head.
    pub fn open(&self) -> ClientStream {
        self.shared.opened.set(self.shared.opened.get() + 1);
        self.shared.active.set(self.shared.active.get() + 1);
        ClientStream {
            conn: self.send.borrow().clone(),
            send: SendHalf::new(Rc::clone(&self.shared)),
            response: None,
            recv: None,
            upgrade: None,
            max_count: self.settings.max_header_count,
            informational: 0,
            received_any: false,
            reset_counted: false,
            meter: ByteMeter::default(),
            shared: Rc::clone(&self.shared),
        }
    }

    /// Streams that may be open at once: the peer's SETTINGS, and our own limit.
    pub fn max_concurrent_streams(&self) -> usize {
        let ours = self.settings.options.max_concurrent_streams as usize;
        self.send.borrow().current_max_send_streams().min(ours)
    }

    /// Whether the peer has said that it takes no new streams.
    pub fn has_goaway(&self) -> bool {
        self.shared.goaway.get()
    }

    /// Whether every request has got its answer, or a reset.
    pub fn is_all_answered(&self) -> bool {
        self.shared.ended.get() >= self.shared.opened.get()
    }

    /// Streams that are open.
    pub fn active_streams(&self) -> usize {
        self.shared.active.get() as usize
    }

    /// Whether the connection takes no new streams: it ended, failed, or the peer sent GOAWAY.
    pub fn is_closed(&self) -> bool {
        if self.ended.get() {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Whether the peer takes extended CONNECT (RFC 8441).
    pub fn is_connect_protocol_enabled(&self) -> bool {
        self.send.borrow().is_extended_connect_protocol_enabled()
    }
}

/// One request on an upstream HTTP/2 connection. What was sent has to be flushed before it is dropped.
#[derive(Debug)]
pub struct ClientStream {
    conn: SendRequest<Bytes>,
    send: SendHalf,
    response: Option<ResponseFuture>,
    recv: Option<RecvHalf>,
    /// The protocol that was asked for.
    upgrade: Option<Bytes>,
    max_count: usize,
    informational: u8,
    received_any: bool,
    reset_counted: bool,
    meter: ByteMeter,
    shared: Rc<Shared>,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get() - 1);
    }
}

impl ClientStream {
    pub(in crate::codec) fn send_head(&mut self, head: &RequestHead, end: bool) {
        let size = head_bytes(&head.headers)
            + (head.path().map_or(0, <[u8]>::len) + head.authority().map_or(0, <[u8]>::len)) as u64;
        self.meter = ByteMeter { wire_sent: size, header_sent: size, ..ByteMeter::default() };
        self.upgrade = head.upgrade_str().map(Bytes::copy_from_slice);
        let Some(request) = convert::request_to_h2(head) else {
            self.send.fail(Http2Fault::HeaderField.into());
            return;
        };
        match self.conn.send_request(request, end) {
            Ok((response, stream)) => {
                self.response = Some(response);
                self.send.begin(stream, end);
            }
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
        match ready!(self.send.poll_flush(cx)) {
            // RFC 9113 §8.1: the server has answered and does not want the rest of the request.
            Err(Fault::Reset { code: 0, remote: true }) => {
                self.send.abandon();
                Poll::Ready(Ok(()))
            }
            result => Poll::Ready(result),
        }
    }

    pub(in crate::codec) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, bool), Fault>> {
        let outcome = ready!(self.poll_any_head(cx));
        if let Err(fault) = outcome {
            self.note_reset(fault);
        }
        Poll::Ready(outcome)
    }

    /// Counts a reset by the peer, once.
    fn note_reset(&mut self, fault: Fault) {
        if let Fault::Reset { remote: true, .. } = fault
            && !std::mem::replace(&mut self.reset_counted, true)
        {
            self.shared.counters.codec.inc(Http2Stat::RxReset);
            self.meter.wire_received += RESET_BYTES;
        }
    }

    fn poll_any_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(ResponseHead, bool), Fault>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(self.send.fault().unwrap_or(Fault::Eof)));
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let interim = interim.map_err(|error| fault_of(&error))?;
            self.received_any = true;
            self.informational += 1;
            if self.informational > MAX_INFORMATIONAL {
                self.reset(Reason::ENHANCE_YOUR_CALM.into());
                return Poll::Ready(Err(Fault::Parse(ParseFault::TooManyInformational)));
            }
            let (parts, ()) = interim.into_parts();
            return Poll::Ready(self.head(parts).map(|head| (head, false)));
        }
        let response = ready!(Pin::new(response).poll(cx)).map_err(|error| fault_of(&error))?;
        self.received_any = true;
        let (parts, recv) = response.into_parts();
        let head = self.head(parts)?;
        let recv = RecvHalf::new(recv, self.max_count);
        let end = recv.is_end();
        self.recv = Some(recv);
        Poll::Ready(Ok((head, end)))
    }

    fn head(&mut self, parts: http::response::Parts) -> Result<ResponseHead, Fault> {
        let upgrade = self.upgrade.as_deref();
        match convert::response_from_h2(parts.status, &parts.headers, self.max_count, upgrade) {
            Ok(head) => {
                let size = head_bytes(&head.headers);
                self.meter.wire_received += size;
                self.meter.header_received += size;
                Ok(head)
            }
            Err(fault) => {
                self.reset(Reason::PROTOCOL_ERROR.into());
                Err(fault.into())
            }
        }
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(None)) };
        let result = ready!(recv.poll_frame(cx, &mut self.meter));
        match result {
            Err(Fault::Parse(_)) => self.reset(Reason::PROTOCOL_ERROR.into()),
            Err(fault) => self.note_reset(fault),
            Ok(_) => {}
        }
        Poll::Ready(result)
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        self.recv.as_ref().is_some_and(RecvHalf::is_end)
    }

    pub(in crate::codec) fn reset(&mut self, code: u32) {
        if let Some(stream) = self.send.stream_mut() {
            stream.send_reset(Reason::from(code));
            self.meter.wire_sent += RESET_BYTES;
        }
        self.send.fail(Fault::Reset { code, remote: false });
    }

    pub(in crate::codec) fn received_any(&self) -> bool {
        self.received_any
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
