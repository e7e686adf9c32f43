//! The server's end of an HTTP/1 connection: requests in, one at a time, responses out.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};

use crate::codec::buffer::{ReadBuffer, WriteQueue};
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame, ParseFault};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::ServerSettings;
use super::body::{BodyDecoder, Step, TrailerLimits};
use super::encode::{self, BodyEncoder, ResponseContext, Sent};
use super::head_scan::HeadScan;
use super::request::parse_request;

/// Bytes of later requests that are read while one is served, to see whether the client is still there.
/// A client that sends more waits.
const PIPELINED_BYTES: usize = 4 * 1024;

/// What became of an upgrade or CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrade {
    No,
    /// Asked for; what the client sends behind its request is held until the answer.
    Held,
    /// Granted: raw bytes both ways.
    Tunnel,
    /// Answered otherwise: nobody knows what the bytes behind the request are, so none are read.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    /// No final head yet.
    Due,
    Body(BodyEncoder),
    Done,
}

/// A downstream HTTP/1 connection: one request at a time, pipelined ones wait in order.
#[derive(Debug)]
pub struct ServerConn {
    io: Io,
    read: ReadBuffer,
    out: WriteQueue,
    settings: Arc<ServerSettings>,
    scan: HeadScan,
    body: BodyDecoder,
    response: Response,
    upgrade: Upgrade,
    /// Somebody has asked for the bytes that are held: they count as received.
    awaited: bool,
    is_connect: bool,
    to_head: bool,
    http10: bool,
    /// The connection ends after the response.
    close: bool,
    /// The peer's direction has ended.
    peer_closed: bool,
    /// The bytes of the request's body that have come are not one.
    broken: Option<ParseFault>,
    /// Our direction ends when the queue is empty (a tunnel's end).
    finish: bool,
    /// It has ended.
    finished: bool,
    meter: ByteMeter,
}

impl ServerConn {
    /// `read` has what was read already (by a listener filter or a protocol sniffer).
    pub fn new(io: Io, read: BytesMut, settings: Arc<ServerSettings>) -> Self {
        Self {
            io,
            read: ReadBuffer::new(read),
            out: WriteQueue::default(),
            settings,
            scan: HeadScan::default(),
            body: BodyDecoder::Done,
            response: Response::Done,
            upgrade: Upgrade::No,
            awaited: false,
            is_connect: false,
            to_head: false,
            http10: false,
            close: false,
            peer_closed: false,
            broken: None,
            finish: false,
            finished: false,
            meter: ByteMeter::default(),
        }
    }

    /// Whether the peer opens with `preface`; `None` when it leaves before it has said anything. Takes nothing,
    /// and holds no buffer while nothing has come.
    pub fn poll_sniff(&mut self, preface: &[u8], cx: &mut Context<'_>) -> Poll<Option<bool>> {
        loop {
            let seen = self.read.bytes.len().min(preface.len());
            if self.read.bytes[..seen] != preface[..seen] {
                return Poll::Ready(Some(false));
            }
            if seen == preface.len() {
                return Poll::Ready(Some(true));
            }
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(0) if seen == 0 => return Poll::Ready(None),
                // What came is for `poll_head` to judge.
                Ok(0) => {
                    self.peer_closed = true;
                    return Poll::Ready(Some(false));
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(None),
            }
        }
    }

    /// The next request and whether it has no body; `None` when the peer closed between requests. Holds no
    /// buffer while nothing has come.
    ///
    /// A `Fault::Parse` is to be answered (`send_head` works then) and the connection closed.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(RequestHead, bool)>, Fault>> {
        loop {
            if self.scan.should_parse(&self.read.bytes, self.peer_closed) {
                match parse_request(&self.read.bytes, &self.settings, self.io.is_tls()) {
                    Ok(Some(parsed)) => {
                        self.read.bytes.advance(parsed.consumed);
                        let head = self.begin(parsed);
                        let end = self.is_end();
                        return Poll::Ready(Ok(Some((head, end))));
                    }
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Err(self.refuse_head(fault))),
                }
            }
            if !self.peer_closed && ready!(self.read.poll_fill(&mut self.io, cx))? > 0 {
                continue;
            }
            if !std::mem::replace(&mut self.peer_closed, true) {
                continue;
            }
            let clean = self.read.bytes.iter().all(|b| matches!(b, b'\r' | b'\n'));
            return Poll::Ready(if clean { Ok(None) } else { Err(Fault::Eof) });
        }
    }

    fn begin(&mut self, parsed: super::request::ParsedRequest) -> RequestHead {
        let head = parsed.head;
        self.scan = HeadScan::default();
        // What follows an upgrade is held, whatever a length says: it is for who grants it.
        self.body = match head.upgrade {
            Some(_) => BodyDecoder::Done,
            None => BodyDecoder::new(parsed.framing),
        };
        self.broken = self.body.check(&self.read.bytes).err();
        self.response = Response::Due;
        self.is_connect = head.method == Method::CONNECT;
        self.to_head = head.method == Method::HEAD;
        self.http10 = head.protocol == Protocol::Http10;
        self.upgrade =
            if self.is_connect || head.upgrade.is_some() { Upgrade::Held } else { Upgrade::No };
        self.awaited = false;
        self.close |= !parsed.keep_alive;
        let bytes = parsed.consumed as u64;
        self.meter =
            ByteMeter { wire_received: bytes, header_received: bytes, ..ByteMeter::default() };
        head
    }

    /// A head that cannot be understood: it gets an answer all the same.
    fn refuse_head(&mut self, fault: ParseFault) -> Fault {
        self.response = Response::Due;
        self.to_head = false;
        self.is_connect = false;
        self.http10 = false;
        // All of it came, whatever it was.
        let bytes = self.read.bytes.len() as u64;
        self.meter = ByteMeter {
            wire_received: bytes,
            header_received: if fault.head_was_read() { bytes } else { 0 },
            ..ByteMeter::default()
        };
        self.refuse(fault)
    }

    /// Whether anything has come of the head that never did: from its first byte on it counts as a request.
    pub fn request_was_begun(&mut self) -> bool {
        let begun = self.head_started();
        if begun {
            let bytes = self.read.bytes.len() as u64;
            self.meter = ByteMeter { wire_received: bytes, ..ByteMeter::default() };
            self.close = true;
        }
        begun
    }

    /// Refuses the request whose head was given out, before anything was made of it.
    pub fn refuse_request(&mut self, fault: ParseFault) -> Fault {
        self.refuse(fault)
    }

    /// Nothing more is read as a request; the answer, where one is still due, is the last.
    fn refuse(&mut self, fault: ParseFault) -> Fault {
        self.close = true;
        self.body = BodyDecoder::Done;
        self.upgrade = Upgrade::No;
        Fault::Parse(fault)
    }

    /// Whether a part of the next head has come: the head's timer runs, not the idle one.
    pub fn head_started(&self) -> bool {
        !self.read.bytes.is_empty()
    }

    /// The rest of a head that has begun is not waited for: the answer to it is the last.
    pub fn give_up_head(&mut self) {
        self.response = Response::Due;
        (self.to_head, self.is_connect, self.http10) = (false, false, false);
        let wire_received = self.read.bytes.len() as u64;
        self.meter = ByteMeter { wire_received, ..ByteMeter::default() };
        self.close = true;
        self.body = BodyDecoder::Done;
        (self.upgrade, self.awaited) = (Upgrade::Refused, false);
    }

    /// The response in hand, or the next one, says `connection: close`, and the connection ends after it.
    pub fn close_after_response(&mut self) {
        self.close = true;
    }

    /// Treats the current upgrade as a plain request: what follows is the next request.
    pub fn ignore_upgrade(&mut self) {
        if self.upgrade == Upgrade::Held && !self.is_connect {
            self.upgrade = Upgrade::No;
        }
    }

    /// Whether another request may follow: request and response complete, nobody asked to close.
    pub fn is_reusable(&self) -> bool {
        !self.close
            && self.response == Response::Done
            && self.body.is_done()
            && self.upgrade == Upgrade::No
    }

    /// Flushes, sends FIN and reads on to the peer's end, so that an answer sent early is not lost to a
    /// reset. The caller bounds it by `delayed_close_timeout`.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.finish = true;
        if ready!(self.poll_flush(cx)).is_err() {
            return Poll::Ready(());
        }
        while !self.peer_closed {
            self.read.bytes.clear();
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(0) | Err(_) => self.peer_closed = true,
                Ok(_) => {}
            }
        }
        Poll::Ready(())
    }

    pub fn io(&self) -> &Io {
        &self.io
    }

    /// For tests and raw relays: the socket and the bytes read beyond what was given out.
    pub fn into_parts(mut self) -> (Io, BytesMut) {
        let read = self.read.take();
        (self.io, read)
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if self.body.is_done() && !self.peer_closed {
            match self.upgrade {
                Upgrade::No => return Poll::Ready(Ok(None)),
                Upgrade::Held => return self.poll_held(cx),
                // Neither granted nor ended: such a request is never complete, as in Envoy.
                Upgrade::Refused => return Poll::Pending,
                Upgrade::Tunnel => self.body = BodyDecoder::Eof,
            }
        }
        if let Some(fault) = self.broken.take() {
            return Poll::Ready(Err(self.refuse(fault)));
        }
        let limits = self.trailer_limits();
        loop {
            let before = self.read.bytes.len();
            let step = self.body.decode(&mut self.read.bytes, limits, &mut self.scan);
            self.meter.wire_received += (before - self.read.bytes.len()) as u64;
            match step {
                Ok(Step::Data(data)) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                Ok(Step::Trailers(list)) => return Poll::Ready(Ok(Some(Frame::Trailers(list)))),
                Ok(Step::End) => return Poll::Ready(Ok(None)),
                Ok(Step::NeedMore) => {}
                Err(fault) => return Poll::Ready(Err(self.refuse(fault))),
            }
            if self.peer_closed || ready!(self.read.poll_fill(&mut self.io, cx))? == 0 {
                // A tunnel ends as a whole, as in Envoy: there is no half-close on a connection of HTTP/1.
                self.peer_closed = true;
                self.close = true;
                return Poll::Ready(Err(Fault::Eof));
            }
            if let Err(fault) = self.body.check(&self.read.bytes) {
                return Poll::Ready(Err(self.refuse(fault)));
            }
        }
    }

    /// The fault that the next frame would be, as far as bytes have come.
    pub(in crate::codec) fn take_known_fault(&mut self) -> Option<Fault> {
        self.broken.take().map(|fault| self.refuse(fault))
    }

    /// Whether the client is still there while its upgrade waits for an answer; what it sends is kept.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        self.awaited = true;
        while self.read.bytes.len() < PIPELINED_BYTES {
            if ready!(self.read.poll_fill(&mut self.io, cx))? == 0 {
                self.peer_closed = true;
                self.close = true;
                return Poll::Ready(Err(Fault::Eof));
            }
        }
        Poll::Pending
    }

    pub(in crate::codec) fn held_bytes(&self) -> usize {
        match self.upgrade {
            Upgrade::Held | Upgrade::Refused if self.awaited => self.read.bytes.len(),
            _ => 0,
        }
    }

    fn trailer_limits(&self) -> TrailerLimits {
        TrailerLimits {
            enabled: self.settings.enable_trailers,
            max_bytes: self.settings.max_head_bytes,
            max_count: self.settings.max_header_count,
            underscores: self.settings.underscores,
        }
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        self.body.is_done() && (self.peer_closed || self.upgrade == Upgrade::No)
    }

    pub(in crate::codec) fn send_informational(&mut self, head: &ResponseHead) {
        if self.http10 || self.response != Response::Due {
            return;
        }
        let before = self.out.len();
        encode::informational_head(self.out.tail(), head, self.settings.header_key_format);
        self.count_sent(before, true);
    }

    pub(in crate::codec) fn send_head(&mut self, head: &ResponseHead, end: bool) {
        if self.response != Response::Due {
            return;
        }
        let tunnel = self.upgrade == Upgrade::Held
            && if self.is_connect {
                head.status.is_success()
            } else {
                head.status == StatusCode::SWITCHING_PROTOCOLS
            };
        if tunnel {
            self.upgrade = Upgrade::Tunnel;
        } else if self.upgrade == Upgrade::Held {
            self.upgrade = Upgrade::Refused;
            self.close = true;
        }
        // An answer that is complete before its request is the last: the rest of the request is not read.
        self.close |= end && !self.body.is_done();
        let before = self.out.len();
        let (body, close) = encode::response_head(
            self.out.tail(),
            head,
            ResponseContext {
                to_head: self.to_head,
                http10: self.http10,
                tunnel,
                close: self.close,
                end,
                format: self.settings.header_key_format,
            },
        );
        self.count_sent(before, true);
        self.close |= close;
        self.response = Response::Body(body);
        if end {
            self.send_data(Bytes::new(), true);
        }
    }

    pub(in crate::codec) fn send_data(&mut self, data: Bytes, end: bool) {
        self.send_body(end, |body, out| body.data(out, data, end));
    }

    pub(in crate::codec) fn send_trailers(&mut self, trailers: &HeaderList) {
        if self.settings.enable_trailers {
            self.send_body(true, |body, out| body.trailers(out, trailers));
        } else {
            self.send_data(Bytes::new(), true);
        }
    }

    fn send_body(
        &mut self,
        end: bool,
        send: impl FnOnce(&mut BodyEncoder, &mut WriteQueue) -> Sent,
    ) {
        let Response::Body(body) = &mut self.response else { return };
        let before = self.out.len();
        let sent = send(body, &mut self.out);
        let until_eof = *body == BodyEncoder::Eof;
        self.count_sent(before, false);
        self.close |= sent == Sent::Mismatch;
        if end {
            self.response = Response::Done;
            self.close |= !self.body.is_done();
            self.finish |= until_eof;
        }
    }

    fn count_sent(&mut self, before: usize, head: bool) {
        let sent = (self.out.len() - before) as u64;
        self.meter.wire_sent += sent;
        if head {
            self.meter.header_sent += sent;
        }
    }

    pub(in crate::codec) fn buffered(&self) -> usize {
        self.out.len()
    }

    pub(in crate::codec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        ready!(self.out.poll_flush(&mut self.io, cx))?;
        if self.finish && !self.finished {
            ready!(self.io.poll_shutdown(cx))?;
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }

    pub(in crate::codec) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        // A tunnel's halves end on their own.
        while !self.peer_closed
            && self.upgrade != Upgrade::Tunnel
            && self.read.bytes.len() < PIPELINED_BYTES
        {
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(0) => self.peer_closed = true,
                Ok(_) => {}
                Err(error) => {
                    self.peer_closed = true;
                    self.close = true;
                    return Poll::Ready(error.into());
                }
            }
        }
        if self.peer_closed && self.upgrade != Upgrade::Tunnel {
            self.close = true;
            return Poll::Ready(Fault::Eof);
        }
        Poll::Pending
    }

    pub(in crate::codec) fn reset(&mut self) {
        self.close = true;
        self.response = Response::Done;
        self.body = BodyDecoder::Done;
        self.upgrade = Upgrade::No;
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }

    #[cfg(test)]
    pub(super) fn upgrade_is_plain(&self) -> bool {
        self.upgrade == Upgrade::No
    }

    #[cfg(test)]
    pub(super) fn read_capacity(&self) -> usize {
        self.read.bytes.capacity()
    }
}
