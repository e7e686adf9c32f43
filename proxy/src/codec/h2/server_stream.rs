//! The server's end of an HTTP/2 stream.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;

use crate::codec::head::{HeaderList, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::stats::names::Http2Stat;
use crate::stream_info::ByteMeter;

use super::convert;
use super::fault::Http2Fault;
use super::shared::{Flood, Shared};
use super::stream::{RESET_BYTES, RecvHalf, SendHalf, fault_of, head_bytes};

/// One request of a downstream HTTP/2 connection. What was sent has to be flushed before it is dropped.
#[derive(Debug)]
pub struct ServerStream {
    id: u32,
    /// As `recv`, there is none on a stream that was refused.
    respond: Option<SendResponse<Bytes>>,
    send: SendHalf,
    recv: Option<RecvHalf>,
    rejected: Option<Http2Fault>,
    /// Of an extended CONNECT or CONNECT.
    early: Option<Box<Early>>,
    /// A success makes a tunnel of it, in which a length has no meaning (RFC 9113 §8.5).
    tunnel: bool,
    pub(super) meter: ByteMeter,
    shared: Rc<Shared>,
    early_reset_counted: bool,
}

/// Bytes of an extended CONNECT or CONNECT that has no answer yet: they are held back.
#[derive(Debug, Default)]
struct Early {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// When the stream's end had come behind them.
    ended: Option<Instant>,
    answered: bool,
}

/// So much is held; a client that sends more waits.
const EARLY_BYTES: usize = 16 * 1024;

impl Drop for ServerStream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get() - 1);
        self.take_blame();
    }
}

impl ServerStream {
    pub(super) fn new(
        id: u32,
        respond: Option<SendResponse<Bytes>>,
        recv: Option<RecvHalf>,
        shared: &Rc<Shared>,
        rejected: Option<Http2Fault>,
    ) -> Self {
        shared.active.set(shared.active.get() + 1);
        Self {
            id,
            respond,
            send: SendHalf::new(Rc::clone(shared)),
            recv,
            rejected,
            early: None,
            tunnel: false,
            meter: ByteMeter::default(),
            shared: Rc::clone(shared),
            early_reset_counted: false,
        }
    }

    /// `tunnel`: it is a CONNECT. What comes of it waits for the answer, unless its `end` has come with the head.
    pub(super) fn hold(&mut self, tunnel: bool, end: bool) {
        self.tunnel = tunnel;
        self.early = (tunnel && !end).then(Box::default);
    }

    /// Why the request was refused, whose head is not known then.
    pub fn rejected(&self) -> Option<Http2Fault> {
        self.rejected
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if let Some(early) = &mut self.early {
            if !early.answered {
                return self.poll_early(cx);
            }
            if let Some(frame) = early.frames.pop_front() {
                return Poll::Ready(Ok(Some(frame)));
            }
        }
        self.poll_received(cx)
    }

    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(None)) };
        let mut result = ready!(recv.poll_frame(cx, &mut self.meter));
        let by_trailers = matches!(result, Ok(Some(Frame::Trailers(_))) | Err(_));
        if by_trailers && let Some(fault) = self.take_blame() {
            result = Err(fault.into());
        } else if let Ok(Some(Frame::Trailers(_))) = result {
            self.shared.counters.codec.inc(Http2Stat::Trailers);
        }
        result = result.map_err(|fault| self.explain(fault));
        match result {
            Err(Fault::Parse(_)) => self.reset(Reason::PROTOCOL_ERROR.into()),
            Err(fault) => self.note_reset(fault),
            Ok(_) => {}
        }
        Poll::Ready(result)
    }

    /// What is wrong with its trailers.
    fn take_blame(&self) -> Option<Http2Fault> {
        let mut bad = self.shared.bad_trailers.borrow_mut();
        let at = bad.iter().position(|(stream, _)| *stream == self.id)?;
        Some(bad.swap_remove(at).1)
    }

    /// The end of the connection, where it has a name.
    fn explain(&self, fault: Fault) -> Fault {
        let ended = matches!(fault, Fault::GoAway { remote: false, .. });
        if ended && self.shared.flooded.get() == Some(Flood::Empty) {
            return Http2Fault::EmptyFrames.into();
        }
        fault
    }

    /// Takes what comes before the answer.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        while self.early.as_ref().is_some_and(|e| e.ended.is_none() && e.bytes < EARLY_BYTES) {
            let frame = ready!(self.poll_received(cx))?;
            let ended = self.recv.as_ref().is_none_or(RecvHalf::is_end);
            let Some(early) = &mut self.early else { break };
            if let Some(Frame::Data(data)) = &frame {
                early.bytes += data.len();
            }
            early.frames.extend(frame);
            if ended {
                early.ended = Some(Instant::now());
            }
        }
        Poll::Pending
    }

    pub(in crate::codec) fn held_bytes(&self) -> usize {
        self.early.as_ref().map_or(0, |early| {
            let data = early.frames.iter().map(|frame| match frame {
                Frame::Data(data) => data.len(),
                Frame::Trailers(_) => 0,
            });
            data.sum()
        })
    }

    /// When the whole request was here, though nobody has been given it yet.
    pub(in crate::codec) fn ended_early(&self) -> Option<Instant> {
        self.early.as_ref().and_then(|early| early.ended)
    }

    /// Counts a stream that the peer reset before its answer was complete, once.
    fn note_reset(&mut self, fault: Fault) {
        if let Fault::Reset { remote: true, .. } = fault
            && !self.send.is_ended()
            && !std::mem::replace(&mut self.early_reset_counted, true)
        {
            self.shared.reset_early.set(self.shared.reset_early.get() + 1);
            self.shared.counters.codec.inc(Http2Stat::RxReset);
            self.meter.wire_received += RESET_BYTES;
        }
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        let given_out = |early: &Early| early.answered && early.frames.is_empty();
        self.early.as_deref().is_none_or(given_out)
            && self.recv.as_ref().is_none_or(RecvHalf::is_end)
    }

    pub(in crate::codec) fn send_informational(&mut self, head: &ResponseHead) {
        let size = head_bytes(&head.headers);
        self.meter.wire_sent += size;
        self.meter.header_sent += size;
        // Fails only when the final head is out or the stream is gone.
        if let Some(respond) = &mut self.respond {
            let _ = respond.send_informational(convert::response_to_h2(head));
        }
    }

    pub(in crate::codec) fn send_head(&mut self, head: &ResponseHead, end: bool) {
        if let Some(early) = &mut self.early {
            early.answered = true;
        }
        let size = head_bytes(&head.headers);
        self.meter.wire_sent += size;
        self.meter.header_sent += size;
        let Some(respond) = &mut self.respond else { return };
        let mut response = convert::response_to_h2(head);
        if self.tunnel && response.status().is_success() {
            response.headers_mut().remove(http::header::CONTENT_LENGTH);
        }
        match respond.send_response(response, end) {
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
        let reset = match (self.send.stream_mut(), &mut self.respond) {
            (Some(stream), _) => stream.poll_reset(cx),
            (None, Some(respond)) => respond.poll_reset(cx),
            (None, None) => return Poll::Pending,
        };
        let fault = match ready!(reset) {
            Ok(reason) => Fault::Reset { code: reason.into(), remote: true },
            Err(error) => self.explain(fault_of(&error)),
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
        match (self.send.stream_mut(), &mut self.respond) {
            (Some(stream), _) => stream.send_reset(Reason::from(code)),
            (None, Some(respond)) => respond.send_reset(Reason::from(code)),
            (None, None) => return,
        }
        if !self.early_reset_counted && !self.shared.broken.get() {
            self.meter.wire_sent += RESET_BYTES;
        }
        self.send.fail(Fault::Reset { code, remote: false });
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
