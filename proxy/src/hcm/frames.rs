//! Body frames of a stream through its filters, pulled by whoever stands behind them.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use http::StatusCode;

use super::local_reply::LocalReply;
use super::stream::{ActiveStream, Passing, StreamEnd, reset_code};
use super::stream_timers::Expired;
use crate::codec::head::Protocol;
use crate::codec::queue::FrameQueue;
use crate::codec::{Fault, Frame, ParseFault, ServerStream};
use crate::http_filters::Flow;
use crate::stats::names::{Http1Stat, HttpStat};
use crate::stream_info::ResponseFlags;

/// The response before any filter: an upstream's, or a local reply's.
pub trait ResponseSource {
    /// The next frame; `None` is the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>>;

    /// Whether the last frame has been given out, as far as is known without reading on.
    fn is_end(&self) -> bool;

    /// Moves the request on while the response is already under way.
    ///
    /// # Errors
    /// The stream cannot go on.
    fn poll_request(
        &mut self,
        stream: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd>;

    /// Whether we answer ourselves: what is left of the request is then of no use.
    fn is_local(&self) -> bool {
        false
    }

    /// The last frame has gone to the codec: what stood behind the response is free, however slowly the client reads.
    fn ended(&mut self, _stream: &mut ActiveStream<'_>) {}

    /// A timer of the router ran out after the head was sent on.
    fn timed_out(&mut self, stream: &mut ActiveStream<'_>, expired: Expired) -> Option<StreamEnd>;
}

impl ActiveStream<'_> {
    /// The next frame of the request behind all filters; `None` is its end.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>> {
        if !self.chain.reads_request() && self.inbound.collected.is_empty() {
            if self.inbound.ended {
                return Poll::Ready(Ok(None));
            }
            return self.poll_inbound(cx);
        }
        self.poll_request_upto(cx, self.chain.len())
    }

    /// A frame as the codec gives it.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>> {
        let frame = match self.down.poll_frame(cx) {
            Poll::Ready(Ok(frame)) => frame,
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(self.downstream_fault(fault))),
            Poll::Pending => return self.poll_continue(cx),
        };
        self.timers.touch(self.now);
        match &frame {
            Some(Frame::Data(data)) => self.info.bytes_received += data.len() as u64,
            Some(Frame::Trailers(_)) => {
                self.inbound.had_trailers = true;
                self.note_request_end();
            }
            None => self.note_request_end(),
        }
        Poll::Ready(Ok(frame))
    }

    /// A client that holds its body back may wait for the 100 that is still ours.
    fn poll_continue<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, StreamEnd>> {
        if self.progress == super::stream::Progress::Nothing
            && self.down.buffered() > 0
            && let Poll::Ready(Err(fault)) = self.down.poll_flush(cx)
        {
            return Poll::Ready(Err(self.downstream_fault(fault)));
        }
        Poll::Pending
    }

    /// As `poll_request`, through the filters before `upto` only.
    fn poll_request_upto(
        &mut self,
        cx: &mut Context<'_>,
        upto: usize,
    ) -> Poll<Result<Option<Frame>, StreamEnd>> {
        loop {
            if let Some(wait) = &mut self.inbound.wait {
                ready!(wait.poll_unpin(cx));
                self.inbound.wait = None;
            }
            let mut passing = match self.inbound.take_held() {
                Some(passing) => passing,
                None if self.inbound.ended => return Poll::Ready(Ok(None)),
                None => match ready!(self.poll_inbound(cx)) {
                    Ok(frame) => Passing { frame, at: 0 },
                    Err(end) => return Poll::Ready(Err(end)),
                },
            };
            if self.request_hooks(&mut passing, upto)? {
                self.inbound.current = Some(passing);
                continue;
            }
            if matches!(&passing.frame, Some(Frame::Data(data)) if data.is_empty()) {
                continue;
            }
            return Poll::Ready(Ok(passing.frame));
        }
    }

    /// Runs the hooks that are due; true when one of them waits.
    fn request_hooks(&mut self, passing: &mut Passing, upto: usize) -> Result<bool, StreamEnd> {
        let had_trailers = self.inbound.had_trailers;
        while passing.at < upto {
            let at = passing.at;
            let mut last = Bytes::new();
            let (chain, mut cx) = self.filter_context();
            let flow = match &mut passing.frame {
                Some(Frame::Data(data)) => chain.request_data(at, &mut cx, data, false),
                Some(Frame::Trailers(trailers)) => chain.request_trailers(at, &mut cx, trailers),
                None if had_trailers => Flow::Continue,
                None => chain.request_data(at, &mut cx, &mut last, true),
            };
            if pass(flow, &mut self.inbound.wait)? {
                return Ok(true);
            }
            if matches!(passing.frame, Some(Frame::Trailers(_))) {
                last = self.chain.request_tail(at);
            }
            passing.at += 1;
            if !last.is_empty() {
                // A filter added bytes at the end: they go first, then the end, or the trailers.
                self.inbound.collected.push_front(passing.frame.take(), passing.at);
                passing.frame = Some(Frame::Data(last));
            }
        }
        Ok(false)
    }

    /// Takes the whole body in, through filter `at`, which holds the head back.
    pub(super) async fn collect_request(
        &mut self,
        at: usize,
        limit: usize,
    ) -> Result<(), StreamEnd> {
        let mut collected = FrameQueue::default();
        if self.inbound.ended && self.inbound.collected.is_empty() {
            return Ok(());
        }
        loop {
            let frame = self.during(|s, cx| s.poll_request_upto(cx, at + 1)).await?;
            let end = frame.is_none();
            // A body that comes whole, its end with it, is never buffered: no limit is asked, as in Envoy.
            let whole = collected.is_empty() && self.ends_with(&frame);
            let data = matches!(frame, Some(Frame::Data(_)));
            collected.push(frame, at + 1);
            if data && collected.payload() > limit && !whole {
                self.hcm.stats.inc(HttpStat::DownstreamRqTooLarge);
                let reply =
                    LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large")
                        .body("Payload Too Large");
                return Err(StreamEnd::Reply(Box::new(reply)));
            }
            if end {
                break;
            }
        }
        self.inbound.collected = collected;
        Ok(())
    }

    /// Waits for a filter that holds the request's head back; meanwhile as much of the body as may be buffered is
    /// taken in.
    pub(super) async fn wait_reading(
        &mut self,
        mut done: LocalBoxFuture<'static, ()>,
    ) -> Result<(), StreamEnd> {
        self.during(|s, cx| {
            if done.poll_unpin(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            while !s.inbound.ended && s.inbound.collected.held() < s.limit {
                let frame = ready!(s.poll_inbound(cx))?;
                s.inbound.collected.push(frame, 0);
            }
            Poll::Pending
        })
        .await
    }

    /// Takes in and drops what has come of a request that is answered already.
    pub(super) fn discard_request(&mut self, cx: &mut Context<'_>) -> Result<(), StreamEnd> {
        self.inbound.collected.clear();
        while !self.inbound.ended {
            match self.poll_inbound(cx) {
                Poll::Ready(frame) => drop(frame?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Nothing of the request is left to send on, not even an end.
    pub fn request_is_empty(&self) -> bool {
        self.inbound.ended && self.inbound.current.is_none() && self.inbound.collected.is_empty()
    }

    /// Whether the frame just taken was the request's last; if so its end is taken too.
    pub fn take_end(&mut self) -> bool {
        if self.inbound.ended
            || self.chain.reads_request_end()
            || !self.inbound.collected.is_empty()
        {
            return false;
        }
        let end = self.down.is_end();
        if end {
            self.note_request_end();
        }
        end
    }

    /// Whether the request's end came in one frame with this one, as it can in HTTP/2.
    fn ends_with(&self, frame: &Option<Frame>) -> bool {
        matches!((frame, &self.down), (Some(Frame::Data(_)), ServerStream::H2(_)))
            && self.down.is_end()
    }

    /// In HTTP/2 the end may have come with the last frame, and nobody will ask for more.
    pub(super) fn note_known_end(&mut self) {
        let h2 = matches!(self.down, ServerStream::H2(_));
        if h2 && self.info.bytes_received > 0 && !self.inbound.ended && self.down.is_end() {
            self.note_request_end();
        }
    }

    fn note_request_end(&mut self) {
        self.inbound.ended = true;
        self.info.timing.last_downstream_rx = Some(self.now);
        self.timers.set_request(None);
    }

    /// Everything of the request has been taken from the client.
    pub fn request_received(&self) -> bool {
        self.inbound.ended
    }

    /// The next frame of the response behind all filters; `None` is its end.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut dyn ResponseSource,
    ) -> Poll<Result<Option<Frame>, StreamEnd>> {
        if !self.chain.reads_response() && self.outbound.collected.is_empty() {
            return source.poll_frame(cx);
        }
        self.poll_response_downto(cx, source, 0)
    }

    /// As `poll_response`, through the filters from the last one to `downto` only.
    pub(super) fn poll_response_downto(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut dyn ResponseSource,
        downto: usize,
    ) -> Poll<Result<Option<Frame>, StreamEnd>> {
        loop {
            if let Some(wait) = &mut self.outbound.wait {
                ready!(wait.poll_unpin(cx));
                self.outbound.wait = None;
            }
            let mut passing = match self.outbound.take_held() {
                Some(passing) => passing,
                None if self.outbound.ended => return Poll::Ready(Ok(None)),
                None => {
                    let frame = ready!(source.poll_frame(cx))?;
                    self.outbound.ended = frame.is_none();
                    self.outbound.had_trailers |= matches!(frame, Some(Frame::Trailers(_)));
                    Passing { frame, at: self.chain.len() }
                }
            };
            if self.response_hooks(&mut passing, downto)? {
                self.outbound.current = Some(passing);
                continue;
            }
            if matches!(&passing.frame, Some(Frame::Data(data)) if data.is_empty()) {
                continue;
            }
            return Poll::Ready(Ok(passing.frame));
        }
    }

    /// Runs the hooks that are due, last filter first, down to filter `downto`; true when one waits.
    fn response_hooks(&mut self, passing: &mut Passing, downto: usize) -> Result<bool, StreamEnd> {
        let had_trailers = self.outbound.had_trailers;
        while passing.at > downto {
            let at = passing.at - 1;
            let mut last = Bytes::new();
            let (chain, mut cx) = self.filter_context();
            let flow = match &mut passing.frame {
                Some(Frame::Data(data)) => chain.response_data(at, &mut cx, data, false),
                Some(Frame::Trailers(trailers)) => chain.response_trailers(at, &mut cx, trailers),
                None if had_trailers => Flow::Continue,
                None => chain.response_data(at, &mut cx, &mut last, true),
            };
            if pass(flow, &mut self.outbound.wait)? {
                return Ok(true);
            }
            if matches!(passing.frame, Some(Frame::Trailers(_))) {
                last = self.chain.response_tail(at);
            }
            passing.at -= 1;
            if !last.is_empty() {
                self.outbound.collected.push_front(passing.frame.take(), passing.at);
                passing.frame = Some(Frame::Data(last));
            }
        }
        Ok(false)
    }

    /// Waits for a filter, a pool, a timer of a retry: ends early when the client goes or a timer runs out.
    /// Cancel-safe as `poll` is.
    pub async fn during<T>(
        &mut self,
        mut poll: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<Result<T, StreamEnd>>,
    ) -> Result<T, StreamEnd> {
        let mut first = true;
        poll_fn(|cx| {
            self.note_turn(&mut first);
            if let Poll::Ready(done) = poll(self, cx) {
                return Poll::Ready(done);
            }
            self.poll_interrupted(cx).map(Err)
        })
        .await
    }

    /// As `during`, while the router's answer is under way: its timers hold too.
    pub(super) async fn during_response<T>(
        &mut self,
        source: &mut dyn ResponseSource,
        mut poll: impl FnMut(
            &mut Self,
            &mut dyn ResponseSource,
            &mut Context<'_>,
        ) -> Poll<Result<T, StreamEnd>>,
    ) -> Result<T, StreamEnd> {
        let mut first = true;
        poll_fn(|cx| {
            self.note_turn(&mut first);
            source.poll_request(self, cx)?;
            if let Poll::Ready(done) = poll(self, source, cx) {
                return Poll::Ready(done);
            }
            self.poll_cut(source, cx).map(Err)
        })
        .await
    }

    /// Ready when the stream cannot go on, with the timers that the router has for its response.
    pub(super) fn poll_cut(
        &mut self,
        source: &mut dyn ResponseSource,
        cx: &mut Context<'_>,
    ) -> Poll<StreamEnd> {
        loop {
            let end = match ready!(self.poll_event(cx)) {
                Interrupt::End(end) => Some(end),
                Interrupt::Try(expired) => source.timed_out(self, expired),
            };
            if let Some(end) = end {
                return Poll::Ready(end);
            }
        }
    }

    /// Ready when the stream cannot go on: the client is gone, or a timer of the connection manager ran out. The
    /// router's timers have nothing to cut off where it has no part.
    pub fn poll_interrupted(&mut self, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        loop {
            match ready!(self.poll_event(cx)) {
                Interrupt::End(end) => return Poll::Ready(end),
                // It is off now, and what else there is to wait for has not been asked yet.
                Interrupt::Try(_) => {}
            }
        }
    }

    /// As `poll_interrupted`, per-try timers included.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Interrupt> {
        if let Poll::Ready(expired) = self.timers.poll(cx) {
            return Poll::Ready(match expired {
                Expired::PerTry
                | Expired::PerTryIdle
                | Expired::UpstreamMaxDuration
                | Expired::Route => Interrupt::Try(expired),
                Expired::Request | Expired::StreamIdle | Expired::MaxStreamDuration => {
                    Interrupt::End(self.timed_out(expired))
                }
            });
        }
        let fault = if self.inbound.ended {
            self.down.poll_closed(cx)
        } else {
            self.down.poll_known_fault(cx)
        };
        fault.map(|fault| Interrupt::End(self.downstream_fault(fault)))
    }

    fn timed_out(&mut self, expired: Expired) -> StreamEnd {
        let mut grpc_status = None;
        let (stat, body, details, flag) = match expired {
            Expired::Request => {
                let stat = HttpStat::DownstreamRqTimeout;
                (stat, "request timeout", "request_overall_timeout", ResponseFlags::default())
            }
            Expired::StreamIdle => {
                let flag = ResponseFlags::STREAM_IDLE_TIMEOUT;
                (HttpStat::DownstreamRqIdleTimeout, "stream timeout", "stream_idle_timeout", flag)
            }
            _ => {
                // DEADLINE_EXCEEDED: `grpc-timeout` may be what ran out.
                grpc_status = Some(4);
                (
                    HttpStat::DownstreamRqMaxDurationReached,
                    "downstream duration timeout",
                    "max_duration_timeout",
                    ResponseFlags::default(),
                )
            }
        };
        self.hcm.stats.inc(stat);
        let mut reply = LocalReply::new(self.timeout_status(), details).body(body).flag(flag);
        reply.grpc_status = grpc_status;
        StreamEnd::Reply(Box::new(reply))
    }

    /// What a timeout is answered with: it is the client's where its request has not come whole.
    pub fn timeout_status(&self) -> StatusCode {
        if self.inbound.ended { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT }
    }

    /// What a fault of the client's side means for the stream.
    pub fn downstream_fault(&mut self, fault: Fault) -> StreamEnd {
        // In HTTP/2 there is nobody left to answer.
        if let Fault::Parse(parse) = fault
            && !matches!(parse, ParseFault::Http2(_))
        {
            self.close_after = true;
            self.broke_protocol = true;
            if self.request.protocol != Protocol::Http2 {
                self.hcm.stats.inc(HttpStat::DownstreamCxProtocolError);
                if parse == ParseFault::UnexpectedUnderscore {
                    let stat = Http1Stat::RequestsRejectedWithUnderscoresInHeaders;
                    self.worker.registry.scope("http1").block(self.worker.index).inc(stat);
                }
            }
            if self.progress == super::stream::Progress::Nothing {
                let status = parse.status();
                let reply = LocalReply::new(status, parse.details())
                    .body(status.canonical_reason().unwrap_or_default());
                return StreamEnd::Reply(Box::new(reply));
            }
        }
        StreamEnd::Downstream(fault)
    }
}

/// What cuts a wait short.
#[derive(Debug)]
pub enum Interrupt {
    End(StreamEnd),
    /// A timer of the router.
    Try(Expired),
}

/// True when the hook waits.
fn pass(flow: Flow, wait: &mut Option<LocalBoxFuture<'static, ()>>) -> Result<bool, StreamEnd> {
    match flow {
        // Only a head hook can hold a body back; from a data hook there is nothing left to hold.
        Flow::Continue | Flow::BufferBody { .. } => Ok(false),
        Flow::Wait(done) => {
            *wait = Some(done);
            Ok(true)
        }
        Flow::Reply(reply) => Err(StreamEnd::Reply(reply)),
        Flow::Reset => Err(StreamEnd::Reset(reset_code::NO_ERROR)),
    }
}
