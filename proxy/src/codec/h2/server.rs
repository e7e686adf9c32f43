//! The server's end of an HTTP/2 connection.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use h2::server::{Connection, Handshake, SendResponse};

use crate::codec::Fault;
use crate::codec::head::{Protocol, RequestHead};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::Settings;
use super::block::{self, Survey};
use super::convert;
use super::fault::Http2Fault;
use super::frame::code;
use super::inbound::Budgets;
use super::keepalive::Keepalive;
use super::server_stream::ServerStream;
use super::shared::{Counters, Gate, Pong, Shared};
use super::stream::{RESET_BYTES, RecvHalf, fault_of, head_bytes};
use super::wire::Wire;
use crate::stats::names::Http2Stat;

/// Streams reset by the peer before their answer, above which a connection that resets more than half of
/// its streams is closed (CVE-2023-44487; Envoy's default is 500).
const MAX_EARLY_RESETS: u32 = 100;

/// Streams with bad trailers that have not heard of it, above which the connection is closed.
const MAX_BAD_TRAILERS: usize = 1024;

/// RFC 9113 §3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read at first: a small request fits beside the preface.
const PREFACE_READ_BYTES: usize = 1024;

enum State {
    /// What was read of the preface; nothing is sent before it is whole.
    Preface(BytesMut),
    Handshake(Handshake<Wire, Bytes>),
    Open(Connection<Wire, Bytes>),
    /// The connection cannot go on; the owner hears why with the next poll.
    Broken(Fault),
    Closed,
}

/// A downstream HTTP/2 connection.
pub struct ServerConn {
    state: State,
    settings: Arc<Settings>,
    shared: Rc<Shared>,
    keepalive: Option<Keepalive>,
    draining: bool,
}

impl std::fmt::Debug for ServerConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("h2::ServerConn").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// A request, whether it has no body, and its stream; where the stream is refused (`ServerStream::rejected`) the
/// head is empty.
pub type Accepted = (RequestHead, bool, ServerStream);

/// One step of an open connection: `None` where the next has to follow at once.
type Step = Option<Option<Result<Accepted, Fault>>>;

impl ServerConn {
    /// `read` has what was read already, the preface included.
    pub fn new(io: Io, read: BytesMut, settings: Arc<Settings>, counters: Counters) -> Self {
        counters.codec.inc(Http2Stat::Nghttp2DownstreamConnections);
        let mut shared = Shared::new(true, io, counters);
        shared.stream_errors = settings.options.stream_errors();
        Self {
            state: State::Preface(read),
            settings,
            shared: Rc::new(shared),
            keepalive: None,
            draining: false,
        }
    }

    fn handshake(&self, read: BytesMut) -> Handshake<Wire, Bytes> {
        let settings = &self.settings;
        let wire = Wire::new(read, Budgets::new(settings), Rc::clone(&self.shared));
        let options = &settings.options;
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(options.initial_stream_window_size)
            .initial_connection_window_size(options.initial_connection_window_size)
            .max_concurrent_streams(options.max_concurrent_streams)
            .header_table_size(options.hpack_table_size)
            .max_header_list_size(settings.decoder_head_bytes())
            .max_send_buffer_size(settings.max_send_buffer_bytes);
        if options.allow_connect {
            builder.enable_connect_protocol();
        }
        builder.handshake(wire)
    }

    /// Drives the connection and gives the next request; `None` when the connection has ended. Must be
    /// polled for as long as there are streams. After `Err(Fault::Parse(_))` see `poll_close`.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, Fault>>> {
        loop {
            match &mut self.state {
                State::Preface(_) => {
                    let outcome = ready!(self.poll_preface(cx));
                    self.state = match outcome {
                        Ok(read) => State::Handshake(self.handshake(read)),
                        Err(fault) => State::Broken(fault),
                    };
                }
                State::Handshake(handshake) => match ready!(Pin::new(handshake).poll(cx)) {
                    Ok(connection) => self.open(connection),
                    Err(error) => self.state = State::Broken(fault_of(&error)),
                },
                State::Open(_) => {
                    if let Some(accepted) = ready!(self.poll_open(cx)) {
                        return Poll::Ready(accepted);
                    }
                }
                State::Broken(fault) => {
                    let fault = *fault;
                    self.state = State::Closed;
                    return Poll::Ready(Some(Err(fault)));
                }
                State::Closed => return Poll::Ready(None),
            }
        }
    }

    fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<Result<BytesMut, Fault>> {
        let State::Preface(read) = &mut self.state else { return Poll::Ready(Err(Fault::Eof)) };
        loop {
            let seen = read.len().min(PREFACE.len());
            if read[..seen] != PREFACE[..seen] {
                self.shared.counters.received(read.len());
                return Poll::Ready(Err(Http2Fault::Codec.into()));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Ok(std::mem::take(read)));
            }
            read.reserve(PREFACE_READ_BYTES);
            match ready!(self.shared.io.borrow_mut().poll_read(cx, read)) {
                Ok(1..) => {}
                Ok(0) => {
                    self.shared.peer_closed.set(true);
                    return Poll::Ready(Err(Fault::Eof));
                }
                Err(error) => {
                    self.shared.peer_closed.set(true);
                    return Poll::Ready(Err(error.into()));
                }
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

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let State::Open(connection) = &mut self.state else { return Poll::Ready(None) };
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(cx).is_ready()
        {
            self.shared.counters.codec.inc(Http2Stat::KeepaliveTimeout);
            self.state = State::Broken(Fault::Io(std::io::ErrorKind::TimedOut));
            return Poll::Ready(None);
        }
        let accepted = connection.poll_accept(cx);
        let early = self.shared.reset_early.get();
        let resets = early >= MAX_EARLY_RESETS && early > self.shared.opened.get() / 2;
        if resets || self.shared.flooded.get().is_some() {
            return Poll::Ready(self.give_up_flood());
        }
        let gate = self.shared.gate.take();
        match accepted {
            Poll::Ready(Some(Ok((request, respond)))) => {
                self.shared.accepted.set(respond.stream_id().as_u32());
                let stream = self.accept(request, respond);
                if let Some(fault) = stream.2.rejected()
                    && fault.ends_connection()
                    && !self.shared.stream_errors
                {
                    self.give_up(fault);
                }
                Poll::Ready(Some(Some(Ok(stream))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(self.failed(gate, &error)),
            Poll::Ready(None) if self.shared.broken.get() => {
                Poll::Ready(self.give_up(Http2Fault::Codec))
            }
            Poll::Ready(None) => {
                self.state = State::Closed;
                Poll::Ready(Some(None))
            }
            Poll::Pending => self.check_block(gate),
        }
    }

    /// No request came of what was read: whether a header block was to blame.
    fn check_block(&mut self, gate: Option<Gate>) -> Poll<Step> {
        if let Some(id) = self.shared.refused.take() {
            if id > self.shared.accepted.get() {
                let incomplete = self.survey().is_some_and(Survey::is_incomplete);
                let fault = messaging_fault(incomplete);
                if !self.shared.stream_errors {
                    self.give_up(fault);
                }
                let mut refused = self.refuse(id, fault);
                if self.shared.stream_errors {
                    refused.2.meter.wire_sent = RESET_BYTES;
                }
                return Poll::Ready(Some(Some(Ok(refused))));
            }
            let ends = gate.is_none_or(|gate| gate.ends);
            return Poll::Ready(self.bad_trailers(id, messaging_fault(!ends)));
        }
        match gate {
            None => Poll::Pending,
            Some(gate) if !gate.opens && self.survey().is_some_and(|survey| survey.pseudo) => {
                Poll::Ready(self.bad_trailers(gate.stream, Http2Fault::HeaderField))
            }
            // What is behind the block may be read now.
            Some(_) => Poll::Ready(None),
        }
    }

    /// `None`: the block is not HPACK, or is not kept in full.
    fn survey(&self) -> Option<Survey> {
        // A field of the dynamic table counts 32 bytes at least (RFC 7541 §4.1).
        let fields = self.settings.options.hpack_table_size.max(4096) / 32;
        block::survey(self.shared.block.borrow().whole()?, fields)
    }

    /// Trailers that break the rules: their stream ends with this fault, and so does the connection, unless
    /// errors are to end streams alone.
    fn bad_trailers(&mut self, stream: u32, fault: Http2Fault) -> Step {
        let unheard = self.blame_trailers(stream, fault);
        if self.shared.stream_errors && unheard <= MAX_BAD_TRAILERS {
            return None;
        }
        self.give_up(fault)
    }

    /// Gives how many streams have bad trailers and do not know it.
    fn blame_trailers(&self, stream: u32, fault: Http2Fault) -> usize {
        self.shared.counters.codec.inc(Http2Stat::RxMessagingError);
        self.shared.counters.codec.inc(Http2Stat::Trailers);
        let mut bad = self.shared.bad_trailers.borrow_mut();
        bad.push((stream, fault));
        bad.len()
    }

    /// The crate h2 has ended the connection.
    fn failed(&mut self, gate: Option<Gate>, error: &h2::Error) -> Step {
        if !self.shared.broken.get() {
            self.state = State::Broken(fault_of(error));
            return None;
        }
        let readable = self.survey().is_some();
        if let Some(gate) = gate
            && !gate.opens
            && gate.stream <= self.shared.accepted.get()
            && readable
            && self.shared.culprit.get().is_none()
            && gate.stream != self.shared.last_ended.get()
        {
            self.blame_trailers(gate.stream, Http2Fault::HeaderField);
            return self.give_up(Http2Fault::HeaderField);
        }
        let opens = gate.filter(|gate| gate.opens).map(|gate| gate.stream);
        let Some(id) = opens.or(self.shared.open_head.get()) else {
            return self.give_up(Http2Fault::Codec);
        };
        let fault = if gate.is_some() && readable {
            Http2Fault::HeaderField
        } else {
            if gate.is_some() && self.shared.block.borrow().whole().is_some() {
                self.shared.say_goodbye(self.shared.accepted.get(), code::COMPRESSION_ERROR);
            }
            Http2Fault::Codec
        };
        self.give_up(fault);
        Some(Some(Ok(self.refuse(id, fault))))
    }

    /// Too many frames end the connection without a word, as in Envoy; who resets too many requests is told.
    fn give_up_flood(&mut self) -> Step {
        if self.shared.flooded.get().is_none() {
            self.shared.say_goodbye(self.shared.accepted.get(), code::ENHANCE_YOUR_CALM);
        }
        self.give_up(Http2Fault::Flood)
    }

    /// Ends the connection and every stream on it. What the crate h2 has to say about it does not leave.
    fn give_up(&mut self, fault: Http2Fault) -> Step {
        self.shared.broken.set(true);
        if let State::Open(connection) = &mut self.state {
            connection.abrupt_shutdown(Reason::PROTOCOL_ERROR);
            // The streams hear of it.
            let _ = connection.poll_closed(&mut Context::from_waker(Waker::noop()));
        }
        self.state = State::Broken(fault.into());
        None
    }

    /// A stream that never was one to the crate h2.
    fn refuse(&self, id: u32, fault: Http2Fault) -> Accepted {
        if fault.is_messaging() {
            self.shared.counters.codec.inc(Http2Stat::RxMessagingError);
        }
        self.shared.accepted.set(id);
        self.shared.opened.set(self.shared.opened.get() + 1);
        let head = RequestHead::new(http::Method::GET, Protocol::Http2);
        (head, false, ServerStream::new(id, None, None, &self.shared, Some(fault)))
    }

    fn accept(
        &self,
        request: http::Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Accepted {
        let id = respond.stream_id().as_u32();
        let (parts, recv) = request.into_parts();
        let head = match convert::request_from_h2(parts, &self.settings) {
            Ok(head) => head,
            Err(fault) => {
                let (stat, code) = match fault {
                    Http2Fault::TooManyHeaders => {
                        (Http2Stat::HeaderOverflow, Reason::INTERNAL_ERROR)
                    }
                    Http2Fault::HeaderListTooLarge => {
                        (Http2Stat::HeaderListSizeTooLarge, Reason::INTERNAL_ERROR)
                    }
                    Http2Fault::Underscore => (
                        Http2Stat::RequestsRejectedWithUnderscoresInHeaders,
                        Reason::INTERNAL_ERROR,
                    ),
                    _ => (Http2Stat::RxMessagingError, Reason::PROTOCOL_ERROR),
                };
                self.shared.counters.codec.inc(stat);
                let ends = fault.ends_connection() && !self.shared.stream_errors;
                let refused = self.refuse_silently(id, fault);
                if ends {
                    return refused;
                }
                respond.send_reset(code);
                let (head, end, mut stream) = refused;
                stream.meter.wire_sent = RESET_BYTES;
                return (head, end, stream);
            }
        };
        self.shared.opened.set(self.shared.opened.get() + 1);
        let size = head_bytes(&head.headers)
            + (head.path().map_or(0, <[u8]>::len) + head.authority().map_or(0, <[u8]>::len)) as u64;
        let recv = RecvHalf::new(recv, self.settings.max_header_count);
        let held = head.upgrade.is_some() || head.method == http::Method::CONNECT;
        let end = recv.is_end();
        let mut stream = ServerStream::new(id, Some(respond), Some(recv), &self.shared, None);
        stream.hold(held, end);
        stream.meter =
            ByteMeter { wire_received: size, header_received: size, ..ByteMeter::default() };
        (head, end, stream)
    }

    /// As `refuse`, for what the crate h2 took and is counted already.
    fn refuse_silently(&self, id: u32, fault: Http2Fault) -> Accepted {
        self.shared.opened.set(self.shared.opened.get() + 1);
        let head = RequestHead::new(http::Method::GET, Protocol::Http2);
        (head, false, ServerStream::new(id, None, None, &self.shared, Some(fault)))
    }

    /// Sends what is left to say and a FIN, and waits for the peer's. Only after `poll_accept` has ended.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_close(cx)
    }

    /// Whether the peer has closed its side.
    pub fn peer_closed(&self) -> bool {
        self.shared.peer_closed.get()
    }

    /// The second GOAWAY of a drain: no new stream is taken any more.
    pub fn finish_drain(&mut self) {
        self.shared.pong.set(match self.shared.pong.get() {
            Pong::Held => Pong::Due,
            // A late one passes.
            Pong::Hold => Pong::Given,
            pong => pong,
        });
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
            State::Preface(_) | State::Handshake(_) | State::Broken(_) | State::Closed => {
                self.state = State::Closed;
            }
        }
    }
}

/// How a head or trailers break the rules: as a whole, or by a field.
fn messaging_fault(incomplete: bool) -> Http2Fault {
    if incomplete { Http2Fault::Messaging } else { Http2Fault::HeaderField }
}
