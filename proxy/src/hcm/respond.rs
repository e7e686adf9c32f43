//! The response's way out: through the filters, the connection manager's own changes, to the client; and the
//! end of the stream, which every way out passes.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;

use super::frames::ResponseSource;
use super::local_reply::{self, LocalReply};
use super::premature;
use super::response_headers;
use super::stream::{ActiveStream, Direction, Fate, Life, Progress, StreamEnd, reset_code};
use super::stream_timers::Expired;
use crate::codec::h2::Http2Fault;
use crate::codec::head::{Protocol, ResponseHead};
use crate::codec::queue::FrameQueue;
use crate::codec::{Fault, Frame, ParseFault, ServerStream};
use crate::format;
use crate::http_filters::Flow;
use crate::stats::Block;
use crate::stats::names::{HttpStat, HttpTracingStat, ListenerHttpStat};
use crate::stream_info::{ResponseFlags, TraceReason};
use crate::worker::connections::Cut;

/// The body of a local reply.
struct LocalBody(Option<Bytes>);

impl ResponseSource for LocalBody {
    fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamEnd>> {
        Poll::Ready(Ok(self.0.take().map(Frame::Data)))
    }

    fn is_end(&self) -> bool {
        self.0.is_none()
    }

    /// While a filter holds the reply back, the client may still be sending.
    fn poll_request(
        &mut self,
        stream: &mut ActiveStream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), StreamEnd> {
        if stream.progress == Progress::Nothing || stream.outbound.wait.is_some() {
            stream.discard_request(cx)?;
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }

    fn timed_out(
        &mut self,
        _stream: &mut ActiveStream<'_>,
        _expired: Expired,
    ) -> Option<StreamEnd> {
        None
    }
}

impl ActiveStream<'_> {
    /// Sends a reply of our own; it passes the response hooks of every filter. After the head has gone the
    /// stream can only be cut off.
    pub(super) async fn local_reply(&mut self, reply: LocalReply) -> Result<(), StreamEnd> {
        if self.progress != Progress::Nothing {
            self.info.flags.insert(reply.flags);
            self.info.set_details(reply.details);
            return Err(StreamEnd::Reset(reset_code::INTERNAL_ERROR));
        }
        self.make_filters();
        let (head, mut body) = self.compose(reply);
        let end = body.0.is_none();
        match self.respond(head, end, &mut body).await {
            // A filter answers in place of the answer: that goes straight out.
            Err(StreamEnd::Reply(reply)) if self.progress == Progress::Nothing => {
                let (head, mut body) = self.compose(*reply);
                let end = body.0.is_none();
                // No filter has seen its head, so none sees its body.
                self.chain.pass_response();
                self.send_head(head, end);
                self.pump(&mut body, end).await
            }
            outcome => outcome,
        }
    }

    fn compose(&mut self, mut reply: LocalReply) -> (ResponseHead, LocalBody) {
        // Whatever was held of another response is of no use.
        self.outbound = Direction::default();
        self.info.flags.insert(reply.flags);
        self.info.set_details(reply.details.clone());
        self.add_route_headers(&mut reply);
        let config = &self.hcm.config.local_reply;
        let (head, body) = local_reply::respond(reply, config, Some(&self.request), &mut self.info);
        self.local_reply_body = body.clone();
        (head, LocalBody(Some(body).filter(|b| !b.is_empty())))
    }

    /// The response header operations of a route to a cluster are for every reply of ours too.
    fn add_route_headers(&self, reply: &mut LocalReply) {
        if self.route.action().is_none() {
            return;
        }
        let Some(matched) = self.route.matched() else { return };
        let mut head = ResponseHead::new(reply.status, self.request.protocol);
        for ops in self.route.table().response_header_ops(matched) {
            ops.apply_response(&mut head, Some(&self.request), &self.info);
        }
        if let Some(headers) = &reply.headers {
            for (name, value) in headers.iter() {
                head.headers.push_raw(name, value);
            }
        }
        reply.headers = Some(head.headers);
    }

    /// Sends a response whose head is here and whose body comes from `source`.
    pub async fn respond(
        &mut self,
        mut head: ResponseHead,
        end: bool,
        source: &mut dyn ResponseSource,
    ) -> Result<(), StreamEnd> {
        self.timers.response_began(self.now);
        let mut end = end;
        let mut at = self.chain.len();
        while at > 0 {
            let (chain, mut cx) = self.filter_context();
            match chain.response_head(at - 1, &mut cx, &mut head, end) {
                Flow::Continue => at -= 1,
                Flow::BufferBody { limit } => {
                    if !end {
                        // Boxed: most streams never need it.
                        end = Box::pin(self.collect_response(at - 1, limit, source)).await?;
                    }
                    at -= 1;
                }
                Flow::Reply(reply) => return Err(StreamEnd::Reply(reply)),
                Flow::Reset => return Err(StreamEnd::Reset(reset_code::NO_ERROR)),
                Flow::Wait(mut done) => {
                    self.during_response(source, |_, _, cx| done.poll_unpin(cx).map(Ok)).await?;
                }
            }
        }
        if source.is_local() {
            self.note_known_end();
            // What is left of the request could be taken for another one.
            self.close_after |= !self.inbound.ended;
        }
        self.send_head(head, end);
        self.pump(source, end).await
    }

    /// Takes the whole body in, through filter `at`, which holds the head back; whether it is empty.
    async fn collect_response(
        &mut self,
        at: usize,
        limit: usize,
        source: &mut dyn ResponseSource,
    ) -> Result<bool, StreamEnd> {
        let mut collected = FrameQueue::default();
        loop {
            let poll = |s: &mut Self, source: &mut dyn ResponseSource, cx: &mut Context<'_>| {
                s.poll_response_downto(cx, source, at)
            };
            let frame = self.during_response(source, poll).await?;
            let end = frame.is_none();
            collected.push(frame, at);
            if collected.payload() > limit {
                self.hcm.stats.inc(HttpStat::RsTooLarge);
                let reply = LocalReply::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "response_payload_too_large",
                )
                .body("Internal Server Error");
                return Err(StreamEnd::Reply(Box::new(reply)));
            }
            if end {
                let is_empty = collected.payload() == 0 && !self.outbound.had_trailers;
                self.outbound.collected = collected;
                return Ok(is_empty);
            }
        }
    }

    /// The head as the client gets it.
    pub(super) fn send_head(&mut self, mut head: ResponseHead, end: bool) {
        let hcm = self.hcm.clone();
        self.info.response_code = Some(head.status);
        response_headers::mutate(
            &mut head,
            Some(&self.request),
            &self.info,
            &hcm.config,
            &self.worker,
            self.now,
        );
        super::decorator::response(self, &mut head);
        self.count_response(head.status);
        if !self.inbound.ended && self.down.ended_early().is_none() {
            self.hcm.stats.inc(HttpStat::DownstreamRqResponseBeforeRqComplete);
            // What is left of the request could be taken for another one; of a tunnel nothing is.
            self.close_after |= head.status != StatusCode::SWITCHING_PROTOCOLS;
        }
        if let Some(age) = hcm.config.common.max_connection_duration
            && self.info.connection.started + age <= self.now
            && matches!(self.down, ServerStream::H1(_))
        {
            self.hcm.stats.inc(HttpStat::DownstreamCxMaxDurationReached);
            (self.close_after, self.draining) = (true, true);
        }
        self.ask_to_go();
        if self.close_after
            && let ServerStream::H1(conn) = &mut self.down
        {
            conn.close_after_response();
        }
        self.info.timing.first_downstream_tx = Some(self.now);
        self.down.send_head(&head, end);
        self.progress = Progress::HeadSent;
        let tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS;
        self.response = Some(head);
        if tunnel && hcm.config.flush_log_on_tunnel {
            self.log(format::AccessLogType::DownstreamTunnelSuccessfullyEstablished);
        }
    }

    /// Whether the connection is to go is asked now, as in Envoy: requests that were in flight when the operator said so
    /// are told, too. An HTTP/2 client hears it before the head.
    fn ask_to_go(&mut self) {
        let (worker, key) = (&self.worker, self.info.connection.key);
        let listener = || worker.connections.listener_of(key);
        let goes = !self.draining
            && (worker.connections.is_told(key)
                || worker.closing.closes(listener, self.now, || worker.random()));
        if !goes {
            return;
        }
        let begins = match &mut self.down {
            ServerStream::H1(_) => {
                self.close_after = true;
                true
            }
            ServerStream::H2(stream) => stream.drain_connection(),
        };
        if begins {
            self.hcm.stats.inc(HttpStat::DownstreamCxDrainClose);
        }
    }

    /// Moves the body until everything is out; the request goes on meanwhile.
    async fn pump(&mut self, source: &mut dyn ResponseSource, end: bool) -> Result<(), StreamEnd> {
        let (mut ended, mut told) = (end, false);
        let mut first = true;
        poll_fn(|cx| {
            self.note_turn(&mut first);
            source.poll_request(self, cx)?;
            if !ended {
                ended = self.poll_body(source, cx)?;
            }
            if ended && !told {
                told = true;
                self.timers.response_ended();
                source.ended(self);
            }
            let flushed = match self.down.poll_flush(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(fault)) => {
                    let end = self.downstream_fault(fault);
                    return Poll::Ready(Err(end));
                }
                Poll::Pending => false,
            };
            if ended && flushed {
                self.info.timing.last_downstream_tx = Some(self.now);
                self.progress = Progress::Complete;
                return Poll::Ready(Ok(()));
            }
            if flushed && !ended && self.was_full {
                // There is room again and the source was left with frames.
                self.was_full = false;
                cx.waker().wake_by_ref();
            }
            self.poll_cut(source, cx).map(Err)
        })
        .await
    }

    /// Frames from the source to the codec, as long as there is room; whether that was the last.
    fn poll_body(
        &mut self,
        source: &mut dyn ResponseSource,
        cx: &mut Context<'_>,
    ) -> Result<bool, StreamEnd> {
        while self.down.buffered() < self.limit {
            let frame = match self.poll_response(cx, source) {
                Poll::Pending => return Ok(false),
                Poll::Ready(frame) => frame?,
            };
            self.timers.touch(self.now);
            match frame {
                Some(Frame::Data(data)) => {
                    self.info.bytes_sent += data.len() as u64;
                    let last = source.is_end()
                        && !self.chain.reads_response_end()
                        && self.outbound.collected.is_empty();
                    self.down.send_data(data, last);
                    if last {
                        return Ok(true);
                    }
                }
                Some(Frame::Trailers(trailers)) => {
                    self.down.send_trailers(&trailers);
                    self.response_trailers = Some(trailers);
                    return Ok(true);
                }
                None => {
                    self.down.send_data(Bytes::new(), true);
                    return Ok(true);
                }
            }
        }
        self.was_full = true;
        Ok(false)
    }

    pub(super) fn count_request(&mut self) {
        self.life = Life::Counted;
        let stats = &self.hcm.stats;
        stats.inc(HttpStat::DownstreamRqTotal);
        stats.gauge_inc(HttpStat::DownstreamRqActive);
        stats.inc(match self.request.protocol {
            Protocol::Http10 | Protocol::Http11 => HttpStat::DownstreamRqHttp1Total,
            Protocol::Http2 => HttpStat::DownstreamRqHttp2Total,
        });
    }

    /// A 1xx head on its way to the client.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        self.timers.touch(self.now);
        self.count_response(head.status);
        self.down.send_informational(head);
    }

    fn count_response(&self, status: StatusCode) {
        if self.hcm.config.tracing.is_some() {
            let reason = self.info.trace_reason.filter(|_| !self.info.is_health_check);
            self.hcm.tracing_stats.inc(match reason {
                None => HttpTracingStat::NotTraceable,
                Some(TraceReason::Sampling) => HttpTracingStat::RandomSampling,
                Some(TraceReason::ServiceForced) => HttpTracingStat::ServiceForced,
                Some(TraceReason::ClientForced) => HttpTracingStat::ClientEnabled,
            });
        }
        if self.info.is_health_check {
            return;
        }
        let stats = &self.hcm.stats;
        let listener = &self.hcm.listener_stats;
        stats.inc(HttpStat::DownstreamRqCompleted);
        listener.inc(ListenerHttpStat::DownstreamRqCompleted);
        let (stat, listener_stat) = match status.as_u16() / 100 {
            1 => (HttpStat::DownstreamRq1xx, ListenerHttpStat::DownstreamRq1xx),
            2 => (HttpStat::DownstreamRq2xx, ListenerHttpStat::DownstreamRq2xx),
            3 => (HttpStat::DownstreamRq3xx, ListenerHttpStat::DownstreamRq3xx),
            4 => (HttpStat::DownstreamRq4xx, ListenerHttpStat::DownstreamRq4xx),
            5 => (HttpStat::DownstreamRq5xx, ListenerHttpStat::DownstreamRq5xx),
            _ => return,
        };
        stats.inc(stat);
        listener.inc(listener_stat);
    }

    /// The end of a stream whose task goes before it has come to one.
    pub(super) fn cut(&mut self) {
        if self.request.protocol != Protocol::Http2 {
            count_cut(&self.hcm.stats);
        }
        if std::thread::panicking() {
            // What has failed is not asked for more.
            self.life = Life::Finished;
            self.hcm.stats.gauge_dec(HttpStat::DownstreamRqActive);
            if self.upgraded {
                self.hcm.stats.gauge_dec(HttpStat::DownstreamCxUpgradesActive);
            }
            return;
        }
        let connection = &self.info.connection;
        if connection.cut.get().is_none() {
            let why = self.worker.connections.cut_of(connection.key);
            connection.cut.set(Some(why.unwrap_or_default()));
        }
        self.finish(Err(StreamEnd::Downstream(Fault::Eof)));
    }

    /// The one place where a stream ends: resets what is cut off, counts, runs `on_end`, logs. Whether the
    /// connection may go on.
    pub(super) fn finish(&mut self, outcome: Result<(), StreamEnd>) -> Fate {
        let end = self.info.timing.last_downstream_tx.unwrap_or_else(Instant::now);
        self.life = Life::Finished;
        self.now = end;
        self.timers.clear();
        if self.broke_protocol {
            self.info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        if self.head_read {
            self.info.bytes_received += self.down.held_bytes() as u64;
        }
        let stats = &self.hcm.stats;
        let fate = match outcome {
            Ok(()) => {
                if !self.inbound.ended {
                    stats.inc(HttpStat::DownstreamRqRxReset);
                    self.down.reset(reset_code::NO_ERROR);
                }
                if self.upgrade_refused { Fate::Last } else { Fate::Complete }
            }
            Err(StreamEnd::Downstream(fault)) => {
                stats.inc(HttpStat::DownstreamRqRxReset);
                note_downstream_fault(&mut self.info, fault);
                self.down.reset(reset_code::CANCEL);
                if self.is_premature(fault, end) { Fate::Premature } else { Fate::PeerGone }
            }
            Err(StreamEnd::Reset(code)) => {
                stats.inc(HttpStat::DownstreamRqTxReset);
                stats.inc(HttpStat::DownstreamRqRxReset);
                self.down.reset(code);
                Fate::Cut
            }
            // A reply in answer to a reply has been sent or dropped by then.
            Err(StreamEnd::Reply(_)) => {
                self.down.reset(reset_code::INTERNAL_ERROR);
                Fate::Cut
            }
        };
        self.hcm.stats.gauge_dec(HttpStat::DownstreamRqActive);
        if self.upgraded {
            self.hcm.stats.gauge_dec(HttpStat::DownstreamCxUpgradesActive);
        }
        if !self.info.is_health_check {
            let took = end.saturating_duration_since(self.info.start);
            self.hcm.stats.record(HttpStat::DownstreamRqTime, took.as_millis() as u64);
        }
        self.info.timing.end = Some(end);
        self.info.downstream_bytes = self.down.meter();
        if self.is_answered_in_passing() {
            let bytes = &mut self.info.downstream_bytes;
            (bytes.wire_sent, bytes.header_sent) = (0, 0);
            self.info.timing.last_downstream_tx = None;
        }
        let bytes = self.info.downstream_bytes;
        self.info.connection.count_stream(self.info.protocol, &bytes);
        // HTTP/2 bytes are counted by their connection.
        if self.request.protocol != Protocol::Http2 {
            self.hcm.stats.add(HttpStat::DownstreamCxRxBytesTotal, bytes.wire_received);
            self.hcm.stats.add(HttpStat::DownstreamCxTxBytesTotal, bytes.wire_sent);
        }
        if !self.chain.is_empty() {
            let (chain, mut cx) = self.filter_context();
            chain.end(&mut cx);
        }
        self.log(format::AccessLogType::DownstreamEnd);
        fate
    }

    /// Whether the client has reset a stream that had no answer yet, and that soon after it began.
    fn is_premature(&self, fault: Fault, end: Instant) -> bool {
        matches!(fault, Fault::Reset { remote: true, .. })
            && self.info.response_code.is_none()
            && premature::is_soon(end.saturating_duration_since(self.info.start))
    }

    /// An HTTP/2 request that was answered by us at once, before its end: Envoy's codec writes nothing while it
    /// reads, so that its logs know of no byte sent.
    fn is_answered_in_passing(&self) -> bool {
        self.request.protocol == Protocol::Http2
            && !self.inbound.ended
            && self.info.upstream.host.is_none()
            && self.info.timing.first_downstream_tx == Some(self.info.start)
    }

    /// Writes a line to each access log that wants one.
    pub(super) fn log(&self, access_log_type: format::AccessLogType) {
        if self.hcm.logs.is_empty() {
            return;
        }
        self.hcm.logs.log(&format::Ctx {
            info: &self.info,
            request: self.head_read.then_some(&self.request),
            response: self.response.as_ref(),
            trailers: self.response_trailers.as_ref(),
            local_reply_body: &self.local_reply_body,
            access_log_type,
        });
    }
}

/// A connection that was ended by force with requests on it: Envoy says that it was the peer who left them.
pub(super) fn count_cut(stats: &Block<HttpStat>) {
    stats.inc(HttpStat::DownstreamCxDestroyActiveRq);
    stats.inc(HttpStat::DownstreamCxDestroyRemoteActiveRq);
}

/// Flags and details for a client that went away.
fn note_downstream_fault(info: &mut crate::stream_info::StreamInfo, fault: Fault) {
    match fault {
        Fault::Reset { remote: true, .. } => {
            info.flags.insert(ResponseFlags::DOWNSTREAM_REMOTE_RESET);
            info.set_details("http2.remote_reset");
        }
        Fault::Parse(parse) => {
            if let ParseFault::Http2(fault) = parse {
                info.flags.insert(if fault.ends_connection() {
                    ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR
                } else {
                    ResponseFlags::DOWNSTREAM_REMOTE_RESET
                });
            }
            info.set_details(parse.details());
        }
        // Reset by our codec: what the peer sent did not fit together.
        Fault::Reset { remote: false, .. } => {
            info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
            info.set_details("http2.remote_reset");
        }
        Fault::GoAway { remote: false, code } if code != reset_code::NO_ERROR => {
            info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
            info.set_details(Http2Fault::Codec.details());
        }
        Fault::Eof | Fault::Io(_) | Fault::GoAway { .. } => {
            info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            let cut = info.connection.cut.get();
            info.set_details(cut.map_or("downstream_remote_disconnect", Cut::details));
        }
    }
}
