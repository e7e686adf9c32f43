//! The client's end of an HTTP/1 connection: a request out, its response in.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Method;

use crate::codec::buffer::{ReadBuffer, WriteQueue};
use crate::codec::head::{HeaderList, Protocol, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame, ParseFault};
use crate::config::protocol_options::HeadersWithUnderscoresAction;
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::ClientSettings;
use super::body::{BodyDecoder, Step, TrailerLimits};
use super::encode::{self, BodyEncoder, RequestContext, Sent};
use super::head_scan::HeadScan;
use super::response::{Asked, parse_response};

/// FAULTS G5: an endless row of interim responses is an attack or a loop.
const MAX_INFORMATIONAL: u8 = 100;

/// Of a body that follows its head at once.
const BODY_BEHIND_HEAD: usize = 4 * 1024;
/// After so many heads behind which there was nothing, a connection's peer is taken for one that does not hold back.
const LONE_HEADS: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// None sent yet, or the last one is complete.
    Done,
    Body(BodyEncoder),
    /// An upgrade or CONNECT that was not granted, or not yet: the server would take bytes behind it for its next
    /// request, so that none leave.
    NoTunnel,
}

#[derive(Debug)]
enum Response {
    /// None is due.
    None,
    Head,
    Body(BodyDecoder),
}

/// An upstream HTTP/1 connection: one request at a time.
#[derive(Debug)]
pub struct ClientConn {
    io: Io,
    read: ReadBuffer,
    out: WriteQueue,
    settings: Arc<ClientSettings>,
    scan: HeadScan,
    request: Request,
    response: Response,
    asked: Asked,
    tunnel: bool,
    /// No further exchange: the peer said so, the framing needs it, or something failed.
    close: bool,
    /// Our direction ends when the queue is empty.
    finish: bool,
    received_any: bool,
    /// The response in hand said `connection: close`, or was HTTP/1.0 without `keep-alive`.
    said_close: bool,
    /// The peer's end of the stream has been read.
    peer_ended: bool,
    /// Of the last response.
    protocol: Protocol,
    informational: u8,
    /// Heads in a row behind which nothing came at once.
    lone_heads: u8,
    meter: ByteMeter,
}

/// Why an idle connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleEnd {
    /// The peer closed or reset it.
    Closed,
    /// Bytes that nobody asked for, which are no 408 of a server that has waited long enough.
    Unasked,
    /// A server's farewell: 408 without a request.
    TimedOut,
}

impl ClientConn {
    pub fn new(io: Io, settings: Arc<ClientSettings>) -> Self {
        Self {
            io,
            read: ReadBuffer::default(),
            out: WriteQueue::default(),
            settings,
            scan: HeadScan::default(),
            request: Request::Done,
            response: Response::None,
            asked: Asked::default(),
            tunnel: false,
            close: false,
            finish: false,
            received_any: false,
            said_close: false,
            peer_ended: false,
            protocol: Protocol::Http11,
            informational: 0,
            lone_heads: 0,
            meter: ByteMeter::default(),
        }
    }

    /// Whether the response said that it was the connection's last.
    pub fn said_close(&self) -> bool {
        self.said_close
    }

    /// Whether the peer has ended the stream, as some responses do.
    pub fn peer_ended(&self) -> bool {
        self.peer_ended
    }

    /// Whether there are bytes behind a complete response, which nobody asked for.
    pub fn has_unasked(&self) -> bool {
        self.is_end() && !self.tunnel && !self.read.bytes.is_empty()
    }

    /// What the peer was last seen to speak.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether the exchange is complete and left the connection fit for another.
    pub fn is_reusable(&self) -> bool {
        !self.close
            && !self.tunnel
            && !self.finish
            && self.request == Request::Done
            && self.is_end()
            && self.out.len() == 0
            && self.read.bytes.is_empty()
    }

    /// For a pooled connection: ready when the peer closed it or sent something unasked; either way it is
    /// of no more use. Costs no system call while nothing happens, holds no buffer.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<IdleEnd> {
        self.read.release();
        if self.read.bytes.is_empty() {
            // An end or an error: all the same.
            let _ = ready!(self.read.poll_fill(&mut self.io, cx));
        }
        self.close = true;
        let status = self.read.bytes.get(8..12);
        Poll::Ready(match status {
            _ if self.read.bytes.is_empty() => IdleEnd::Closed,
            Some(b" 408") => IdleEnd::TimedOut,
            Some(_) | None => IdleEnd::Unasked,
        })
    }

    pub fn io(&self) -> &Io {
        &self.io
    }

    pub(in crate::codec) fn send_head(&mut self, head: &RequestHead, end: bool) {
        self.scan = HeadScan::default();
        self.asked = Asked {
            head: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            upgrade: head.upgrade.is_some(),
        };
        self.response = Response::Head;
        self.received_any = false;
        self.said_close = false;
        self.informational = 0;
        let body = encode::request_head(
            self.out.tail(),
            head,
            RequestContext {
                end,
                absolute_form: self.settings.send_fully_qualified_url,
                format: self.settings.header_key_format,
            },
        );
        let sent = self.out.len() as u64;
        self.meter = ByteMeter { wire_sent: sent, header_sent: sent, ..ByteMeter::default() };
        self.request = if self.asked.is_tunnel() { Request::NoTunnel } else { Request::Body(body) };
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
        let before = self.out.len();
        let sent = match &mut self.request {
            Request::Done => return,
            Request::NoTunnel => Sent::Fits,
            Request::Body(body) => send(body, &mut self.out),
        };
        self.meter.wire_sent += (self.out.len() - before) as u64;
        if sent == Sent::Mismatch {
            // The peer must not take a cut request for a whole one, nor the rest for the next.
            self.close = true;
            self.finish = true;
        }
        if end {
            self.request = Request::Done;
            // The end of an upgraded request is its connection's; CONNECT has a half-close.
            self.finish |= self.asked.connect && !self.has_refused_tunnel();
        }
    }

    /// The answer to an upgrade or CONNECT was no: the connection takes nothing more, and has no other exchange.
    pub(in crate::codec) fn has_refused_tunnel(&self) -> bool {
        self.asked.is_tunnel() && !self.tunnel && matches!(self.response, Response::Body(_))
    }

    pub(in crate::codec) fn buffered(&self) -> usize {
        self.out.len()
    }

    pub(in crate::codec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let flushed = ready!(self.out.poll_flush(&mut self.io, cx));
        self.fail_on(flushed)?;
        if self.finish {
            let finished = ready!(self.io.poll_shutdown(cx));
            self.fail_on(finished)?;
        }
        Poll::Ready(Ok(()))
    }

    fn fail_on<T>(&mut self, result: std::io::Result<T>) -> Result<T, Fault> {
        result.map_err(|error| {
            self.close = true;
            error.into()
        })
    }

    fn refuse(&mut self, fault: ParseFault) -> Fault {
        self.close = true;
        Fault::Parse(fault)
    }

    pub(in crate::codec) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, bool), Fault>> {
        let mut gone = None;
        loop {
            if self.scan.should_parse(&self.read.bytes, gone.is_some()) {
                match parse_response(&self.read.bytes, &self.settings, self.asked) {
                    Ok(Some(parsed)) => return Poll::Ready(self.begin(parsed)),
                    Ok(None) => {}
                    Err(fault) => {
                        if fault.head_was_read() {
                            self.meter.header_received += self.read.bytes.len() as u64;
                        }
                        return Poll::Ready(Err(self.refuse(fault)));
                    }
                }
            }
            if let Some(fault) = gone {
                let cut = !self.read.bytes.is_empty();
                let fault = if cut { self.refuse(ParseFault::Truncated) } else { fault };
                return Poll::Ready(Err(fault));
            }
            gone = match ready!(self.poll_fill(cx)) {
                Ok(0) => Some(Fault::Eof),
                Ok(_) => None,
                Err(fault) => Some(fault),
            };
        }
    }

    /// Reads; at the end of the stream or an error there will be no other exchange.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        let read = ready!(self.read.poll_fill(&mut self.io, cx));
        let bytes = self.fail_on(read)?;
        self.meter.wire_received += bytes as u64;
        self.received_any |= bytes > 0;
        if bytes == 0 {
            self.close = true;
            self.peer_ended = true;
        }
        Poll::Ready(Ok(bytes))
    }

    fn begin(
        &mut self,
        parsed: super::response::ParsedResponse,
    ) -> Result<(ResponseHead, bool), Fault> {
        self.read.bytes.advance(parsed.consumed);
        self.scan = HeadScan::default();
        self.meter.header_received += parsed.consumed as u64;
        if parsed.head.is_informational() {
            self.informational += 1;
            if self.informational > MAX_INFORMATIONAL {
                return Err(self.refuse(ParseFault::TooManyInformational));
            }
            return Ok((parsed.head, false));
        }
        self.tunnel = parsed.tunnel;
        self.said_close = parsed.says_close;
        self.protocol = parsed.head.protocol;
        self.close |= !parsed.keep_alive || self.asked.is_tunnel();
        if self.tunnel && self.request == Request::NoTunnel {
            self.request = Request::Body(BodyEncoder::Eof);
        }
        self.response = Response::Body(BodyDecoder::new(parsed.framing));
        let is_alone = !self.tunnel && !self.is_end() && self.read.bytes.is_empty();
        if is_alone && self.lone_heads < LONE_HEADS {
            self.fetch_body();
        }
        Ok((parsed.head, self.is_end()))
    }

    /// A head without anything of its body: many applications write them one after the other. What there is of the
    /// body goes on together with the head.
    fn fetch_body(&mut self) {
        let room = self.read.bytes.capacity().min(BODY_BEHIND_HEAD);
        if room > 0 {
            match self.io.read_behind_nagle(&mut self.read.bytes, room) {
                Ok(0) => self.lone_heads += 1,
                Ok(bytes) => {
                    self.lone_heads = 0;
                    self.meter.wire_received += bytes as u64;
                }
                Err(error) => self.read.fail(error),
            }
        }
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        let limits = TrailerLimits {
            enabled: self.settings.enable_trailers,
            max_bytes: self.settings.max_head_bytes,
            max_count: self.settings.max_header_count,
            underscores: HeadersWithUnderscoresAction::Allow,
        };
        loop {
            let Response::Body(body) = &mut self.response else { return Poll::Ready(Ok(None)) };
            let step = body.decode(&mut self.read.bytes, limits, &mut self.scan);
            let until_eof = matches!(body, BodyDecoder::Eof);
            match step {
                Ok(Step::Data(data)) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                Ok(Step::Trailers(list)) => return Poll::Ready(Ok(Some(Frame::Trailers(list)))),
                Ok(Step::End) => return Poll::Ready(Ok(None)),
                Ok(Step::NeedMore) => {}
                Err(fault) => return Poll::Ready(Err(self.refuse(fault))),
            }
            match ready!(self.poll_fill(cx)) {
                // A tunnel ends as a whole, as in Envoy, unless our end of it has ended before.
                Ok(0) if self.tunnel && !self.finish => return Poll::Ready(Err(Fault::Eof)),
                Ok(0) if until_eof => {
                    self.response = Response::Body(BodyDecoder::Done);
                    return Poll::Ready(Ok(None));
                }
                Ok(0) => return Poll::Ready(Err(self.refuse(ParseFault::Truncated))),
                Err(fault) if until_eof => return Poll::Ready(Err(fault)),
                Err(_) => return Poll::Ready(Err(self.refuse(ParseFault::Truncated))),
                Ok(_) => {}
            }
        }
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        match &self.response {
            Response::None => true,
            Response::Head => false,
            Response::Body(body) => body.is_done(),
        }
    }

    pub(in crate::codec) fn reset(&mut self) {
        self.close = true;
        self.request = Request::Done;
        self.out.clear();
    }

    pub(in crate::codec) fn received_any(&self) -> bool {
        self.received_any
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
