//! The client's end of an HTTP/1 connection: a request out, its response in.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Method;

use crate::codec::buffer::{ReadBuffer, WriteQueue};
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame, ParseFault};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::ClientSettings;
use super::body::{BodyDecoder, Step, TrailerLimits};
use super::encode::{self, BodyEncoder, RequestContext, Sent};
use super::head_scan::HeadScan;
use super::response::{Asked, parse_response};

/// FAULTS G5: an endless row of interim responses is an attack or a loop.
const MAX_INFORMATIONAL: u8 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// None sent yet, or the last one is complete.
    Done,
    Body(BodyEncoder),
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
    informational: u8,
    meter: ByteMeter,
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
            informational: 0,
            meter: ByteMeter::default(),
        }
    }

    /// Whether the exchange is complete and left the connection fit for another.
    pub fn is_reusable(&self) -> bool {
        !self.close
            && !self.tunnel
            && self.request == Request::Done
            && self.is_end()
            && self.out.len() == 0
            && self.read.bytes.is_empty()
    }

    /// For a pooled connection: ready when the peer closed it or sent something unasked; either way it is
    /// of no more use. Costs no system call while nothing happens, holds no buffer.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.read.release();
        if self.read.bytes.is_empty() {
            // Bytes, an end or an error: all the same.
            let _ = ready!(self.read.poll_fill(&mut self.io, cx));
        }
        self.close = true;
        Poll::Ready(())
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
        self.request = Request::Body(body);
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
        let Request::Body(body) = &mut self.request else { return };
        let before = self.out.len();
        let sent = send(body, &mut self.out);
        let until_eof = *body == BodyEncoder::Eof;
        self.meter.wire_sent += (self.out.len() - before) as u64;
        if sent == Sent::Mismatch {
            // The peer must not take a cut request for a whole one, nor the rest for the next.
            self.close = true;
            self.finish = true;
        }
        if end {
            self.request = Request::Done;
            self.finish |= until_eof;
        }
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
        let mut end = false;
        loop {
            if self.scan.should_parse(&self.read.bytes, end) {
                match parse_response(&self.read.bytes, &self.settings, self.asked) {
                    Ok(Some(parsed)) => return Poll::Ready(self.begin(parsed)),
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Err(self.refuse(fault))),
                }
            }
            if end {
                return Poll::Ready(Err(Fault::Eof));
            }
            let read = ready!(self.read.poll_fill(&mut self.io, cx));
            end = self.fail_on(read)? == 0;
            self.close |= end;
            self.received_any |= !end;
        }
    }

    fn begin(
        &mut self,
        parsed: super::response::ParsedResponse,
    ) -> Result<(ResponseHead, bool), Fault> {
        self.read.bytes.advance(parsed.consumed);
        self.scan = HeadScan::default();
        self.meter.wire_received += parsed.consumed as u64;
        self.meter.header_received += parsed.consumed as u64;
        if parsed.head.is_informational() {
            self.informational += 1;
            if self.informational > MAX_INFORMATIONAL {
                return Err(self.refuse(ParseFault::TooManyInformational));
            }
            return Ok((parsed.head, false));
        }
        self.tunnel = parsed.tunnel;
        self.close |= !parsed.keep_alive;
        self.response = Response::Body(BodyDecoder::new(parsed.framing));
        Ok((parsed.head, self.is_end()))
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        let limits = TrailerLimits {
            enabled: self.settings.enable_trailers,
            max_bytes: self.settings.max_head_bytes,
            max_count: self.settings.max_header_count,
        };
        loop {
            let Response::Body(body) = &mut self.response else { return Poll::Ready(Ok(None)) };
            let before = self.read.bytes.len();
            let step = body.decode(&mut self.read.bytes, limits);
            let until_eof = matches!(body, BodyDecoder::Eof);
            self.meter.wire_received += (before - self.read.bytes.len()) as u64;
            match step {
                Ok(Step::Data(data)) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                Ok(Step::Trailers(list)) => return Poll::Ready(Ok(Some(Frame::Trailers(list)))),
                Ok(Step::End) => return Poll::Ready(Ok(None)),
                Ok(Step::NeedMore) => {}
                Err(fault) => return Poll::Ready(Err(self.refuse(fault))),
            }
            let read = ready!(self.read.poll_fill(&mut self.io, cx));
            if self.fail_on(read)? == 0 {
                self.close = true;
                if !until_eof {
                    return Poll::Ready(Err(Fault::Eof));
                }
                self.response = Response::Body(BodyDecoder::Done);
                return Poll::Ready(Ok(None));
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
