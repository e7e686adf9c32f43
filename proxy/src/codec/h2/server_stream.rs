//! The server's end of an HTTP/2 stream.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::stats::names::Http2Stat;
use crate::stream_info::ByteMeter;

use super::connection::{Connection, Shared};
use super::fault::Http2Fault;
use super::frame::code;
use super::stream::Key;

/// RST_STREAM, whole.
pub(super) const RESET_BYTES: u64 = 13;

/// RFC 9113 §4.1.
const FRAME_HEADER_BYTES: u64 = 9;

/// A head's size before compression, with its frame header.
pub(super) fn head_bytes(list: &HeaderList) -> u64 {
    list.byte_size() as u64 + FRAME_HEADER_BYTES
}

/// As DATA, with its frame's header.
pub(super) fn data_bytes(data: &Bytes) -> u64 {
    data.len() as u64 + FRAME_HEADER_BYTES
}

/// One request of a downstream HTTP/2 connection. What was sent has to be flushed before it is dropped.
#[derive(Debug)]
pub struct ServerStream {
    /// There is none of a stream that was refused.
    key: Option<Key>,
    rejected: Option<Http2Fault>,
    /// Of an extended CONNECT or CONNECT.
    early: Option<Box<Early>>,
    asked: Asked,
    meter: ByteMeter,
    shared: Shared,
    reset_noted: bool,
}

/// What a request asks for, in the proxy's own form: an answer to an extended CONNECT is one to an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Exchange,
    /// An extended CONNECT (RFC 8441): 101 grants it.
    Upgrade,
    /// Any success grants it (RFC 9110 §9.3.6).
    Connect,
}

impl Asked {
    pub(super) fn of(head: &RequestHead) -> Self {
        if head.upgrade.is_some() {
            Self::Upgrade
        } else if head.method == Method::CONNECT {
            Self::Connect
        } else {
            Self::Exchange
        }
    }

    /// Whether an answer of this status makes a tunnel of the stream.
    fn is_granted_by(self, status: StatusCode) -> bool {
        match self {
            Self::Exchange => false,
            Self::Upgrade => status == StatusCode::SWITCHING_PROTOCOLS,
            Self::Connect => status.is_success(),
        }
    }
}

/// Bytes of an extended CONNECT or CONNECT that has no answer yet: they are held back.
#[derive(Debug, Default)]
struct Early {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// When the stream's end had come behind them.
    ended: Option<Instant>,
    /// They may be taken; where the answer is no, the upstream's codec sends none of them.
    answered: bool,
}

/// So much is held; a client that sends more waits.
const EARLY_BYTES: usize = 16 * 1024;

impl Drop for ServerStream {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.borrow_mut().release(key);
        }
    }
}

impl ServerStream {
    /// What comes of a CONNECT waits for the answer, unless its `end` has come with the head.
    pub(super) fn new(
        key: Key,
        shared: &Shared,
        meter: ByteMeter,
        asked: Asked,
        end: bool,
    ) -> Self {
        Self {
            key: Some(key),
            rejected: None,
            early: (asked != Asked::Exchange && !end).then(Box::default),
            asked,
            meter,
            shared: Rc::clone(shared),
            reset_noted: false,
        }
    }

    pub(super) fn refused(shared: &Shared, fault: Http2Fault, meter: ByteMeter) -> Self {
        Self {
            key: None,
            rejected: Some(fault),
            early: None,
            asked: Asked::Exchange,
            meter,
            shared: Rc::clone(shared),
            reset_noted: false,
        }
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
        let Some(key) = self.key else { return Poll::Ready(Ok(None)) };
        let polled = poll_incoming(&mut self.shared.borrow_mut(), key, &mut self.meter, cx);
        let result = ready!(polled);
        match result {
            Ok(Some(Frame::Trailers(_))) => {
                self.shared.borrow().counters.codec.inc(Http2Stat::Trailers);
            }
            Err(Fault::Parse(_)) => self.reset(code::PROTOCOL_ERROR),
            Err(fault) => self.note_reset(fault),
            Ok(_) => {}
        }
        Poll::Ready(result)
    }

    /// Takes what comes before the answer.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        while self.early.as_ref().is_some_and(|e| e.ended.is_none() && e.bytes < EARLY_BYTES) {
            let frame = ready!(self.poll_received(cx))?;
            let ended = self.has_all();
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

    /// Nothing of the request is left in the connection.
    fn has_all(&self) -> bool {
        self.key.is_none_or(|key| has_all(&self.shared.borrow(), key))
    }

    pub(in crate::codec) fn held_bytes(&self) -> usize {
        let early = self.early.as_ref().map_or(0, |early| {
            let data = early.frames.iter().map(|frame| match frame {
                Frame::Data(data) => data.len(),
                Frame::Trailers(_) => 0,
            });
            data.sum()
        });
        early + self.dropped().0 as usize
    }

    /// Bytes of data that nobody has been given and nobody will be, and in how many frames they came.
    fn dropped(&self) -> (u32, u32) {
        let connection = self.shared.borrow();
        let stream = self.key.and_then(|key| connection.streams.get(key));
        stream.map_or((0, 0), |s| (s.incoming.dropped, s.incoming.dropped_frames))
    }

    /// When the whole request was here, though nobody has been given it yet.
    pub(in crate::codec) fn ended_early(&self) -> Option<Instant> {
        self.early.as_ref().and_then(|early| early.ended)
    }

    /// Counts a stream that the peer reset before its answer was complete, once.
    fn note_reset(&mut self, fault: Fault) {
        if let Fault::Reset { remote: true, .. } = fault
            && !std::mem::replace(&mut self.reset_noted, true)
        {
            self.shared.borrow().counters.codec.inc(Http2Stat::RxReset);
            self.meter.wire_received += RESET_BYTES;
        }
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        let given_out = |early: &Early| early.answered && early.frames.is_empty();
        self.early.as_deref().is_none_or(given_out) && self.has_all()
    }

    /// The connection drains from here on, as by `ServerConn::drain`.
    pub fn drain_connection(&mut self) -> bool {
        self.shared.borrow_mut().announce_leave()
    }

    pub(in crate::codec) fn send_informational(&mut self, head: &ResponseHead) {
        self.put_head(head, false);
    }

    pub(in crate::codec) fn send_head(&mut self, head: &ResponseHead, end: bool) {
        if let Some(early) = &mut self.early {
            early.answered = true;
        }
        self.put_head(head, end);
    }

    fn put_head(&mut self, head: &ResponseHead, end: bool) {
        let size = head_bytes(&head.headers);
        self.meter.wire_sent += size;
        self.meter.header_sent += size;
        if let Some(key) = self.key {
            let tunnel = self.asked.is_granted_by(head.status);
            self.shared.borrow_mut().send_response(key, head, tunnel, end);
        }
    }

    pub(in crate::codec) fn send_data(&mut self, data: Bytes, end: bool) {
        let Some(key) = self.key else { return };
        let size = data_bytes(&data);
        if self.shared.borrow_mut().send_data(key, data, end) {
            self.meter.wire_sent += size;
        }
    }

    pub(in crate::codec) fn send_trailers(&mut self, trailers: &HeaderList) {
        let Some(key) = self.key else { return };
        if self.shared.borrow_mut().send_trailers(key, trailers) {
            let size = head_bytes(trailers);
            self.meter.wire_sent += size;
            self.meter.header_sent += size;
        }
    }

    pub(in crate::codec) fn buffered(&self) -> usize {
        self.key.map_or(0, |key| buffered(&self.shared.borrow(), key))
    }

    pub(in crate::codec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(key) = self.key else { return Poll::Ready(Ok(())) };
        let sent = poll_sent(&mut self.shared.borrow_mut(), key, cx);
        let result = ready!(sent);
        if let Err(fault) = result {
            self.note_reset(fault);
        }
        Poll::Ready(result)
    }

    pub(in crate::codec) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let Some(key) = self.key else { return Poll::Pending };
        let fault = {
            let connection = &mut *self.shared.borrow_mut();
            let Some(stream) = connection.streams.get_mut(key) else { return Poll::Pending };
            match stream.fault {
                Some(fault) => fault,
                None => {
                    stream.wait(cx);
                    return Poll::Pending;
                }
            }
        };
        self.note_reset(fault);
        Poll::Ready(fault)
    }

    pub(in crate::codec) fn reset(&mut self, code: u32) {
        let Some(key) = self.key else { return };
        let connection = &mut *self.shared.borrow_mut();
        let Some(stream) = connection.streams.get(key) else { return };
        // After a complete response NO_ERROR goes out behind it, when the stream is dropped.
        if code == code::NO_ERROR && stream.is_answered() && stream.fault.is_none() {
            return;
        }
        if !self.reset_noted && connection.ended.is_none() {
            self.meter.wire_sent += RESET_BYTES;
        }
        connection.reset(key, code);
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        let (bytes, frames) = self.dropped();
        let dropped = u64::from(bytes) + u64::from(frames) * FRAME_HEADER_BYTES;
        ByteMeter { wire_received: self.meter.wire_received + dropped, ..self.meter }
    }
}

/// The next frame of a body.
pub(super) fn poll_incoming(
    connection: &mut Connection,
    key: Key,
    meter: &mut ByteMeter,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame>, Fault>> {
    let is_server = connection.is_server;
    let Some(stream) = connection.streams.get_mut(key) else { return Poll::Ready(Ok(None)) };
    if let Some(fault) = stream.fault
        && is_server
    {
        return Poll::Ready(Err(fault));
    }
    if let Some((data, more_frames)) = stream.incoming.next() {
        meter.wire_received += data_bytes(&data) + u64::from(more_frames) * FRAME_HEADER_BYTES;
        connection.take(key, data.len() as u32);
        return Poll::Ready(Ok(Some(Frame::Data(data))));
    }
    if let Some(trailers) = stream.incoming.trailers.take() {
        let size = head_bytes(&trailers);
        meter.wire_received += size;
        meter.header_received += size;
        return Poll::Ready(Ok(Some(Frame::Trailers(trailers))));
    }
    if stream.incoming.ended {
        return Poll::Ready(Ok(None));
    }
    if let Some(fault) = stream.fault {
        return Poll::Ready(Err(fault));
    }
    stream.wait(cx);
    Poll::Pending
}

/// All of the peer's message has been taken.
pub(super) fn has_all(connection: &Connection, key: Key) -> bool {
    connection.streams.get(key).is_none_or(|stream| stream.incoming.is_taken())
}

/// Bytes that the peer's window or the socket has not admitted yet.
pub(super) fn buffered(connection: &Connection, key: Key) -> usize {
    connection.streams.get(key).map_or(0, |stream| stream.outgoing.queued)
}

/// Ready when nothing is buffered.
pub(super) fn poll_sent(
    connection: &mut Connection,
    key: Key,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Fault>> {
    let Some(stream) = connection.streams.get_mut(key) else { return Poll::Ready(Ok(())) };
    if let Some(fault) = stream.fault {
        return Poll::Ready(Err(fault));
    }
    if stream.outgoing.queued == 0 {
        return Poll::Ready(Ok(()));
    }
    stream.wait(cx);
    Poll::Pending
}
