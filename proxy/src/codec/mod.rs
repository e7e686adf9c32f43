//! HTTP codecs: HTTP/1 of our own on httparse, HTTP/2 of our own, one interface over both.
//!
//! A station that has a `ServerStream` or a `ClientStream` pulls frames with `poll_frame` and hands
//! frames over with `send_*`, which only buffer; `poll_flush` moves them out. One task can so drive both
//! directions of a stream with `&mut` alone. Whoever sends looks at `buffered` and stops pulling the other
//! side above its limit: that is all of the flow control between the two.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::stream_info::ByteMeter;

pub use fault::{Fault, ParseFault};

mod buffer;

#[cfg(test)]
mod conformance;

pub mod fault;

pub mod head;

pub mod name;

pub mod queue;

pub mod h1;

pub mod h2;

pub mod raw;

/// A piece of a message's body.
#[derive(Debug, Clone)]
pub enum Frame {
    Data(Bytes),
    /// Always the last frame.
    Trailers(HeaderList),
}

/// A request being served: frames of the request in, the response out.
#[derive(Debug)]
pub enum ServerStream<'a> {
    H1(&'a mut h1::ServerConn),
    /// Boxed: one allocation costs less than its moves.
    H2(Box<h2::ServerStream>),
}

impl ServerStream<'_> {
    /// The next frame of the request; `None` is its end.
    ///
    /// For an HTTP/1 upgrade or CONNECT this is pending after the body until the answer's head has been
    /// sent: bytes that came early are held back, and are frames only after a 101 (2xx to CONNECT).
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        match self {
            Self::H1(s) => s.poll_frame(cx),
            Self::H2(s) => s.poll_frame(cx),
        }
    }

    /// A fault of the request that is known before anyone asks for a frame. In HTTP/2 that is the stream's end by its
    /// peer, too: whoever polls for it is woken, since nobody may want frames.
    pub fn poll_known_fault(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        match self {
            Self::H1(s) => s.take_known_fault().map_or(Poll::Pending, Poll::Ready),
            Self::H2(s) => s.poll_closed(cx),
        }
    }

    /// Whether the last frame has been given out, as far as is known without reading on: the caller may
    /// then pass `end` along with it.
    pub fn is_end(&self) -> bool {
        match self {
            Self::H1(s) => s.is_end(),
            Self::H2(s) => s.is_end(),
        }
    }

    /// A 1xx head other than 101; dropped where the client's protocol has none (HTTP/1.0).
    pub fn send_informational(&mut self, head: &ResponseHead) {
        match self {
            Self::H1(s) => s.send_informational(head),
            Self::H2(s) => s.send_informational(head),
        }
    }

    /// The final head; framing and connection fields are the codec's.
    pub fn send_head(&mut self, head: &ResponseHead, end: bool) {
        match self {
            Self::H1(s) => s.send_head(head, end),
            Self::H2(s) => s.send_head(head, end),
        }
    }

    /// Body bytes; `end` completes the message.
    pub fn send_data(&mut self, data: Bytes, end: bool) {
        match self {
            Self::H1(s) => s.send_data(data, end),
            Self::H2(s) => s.send_data(data, end),
        }
    }

    /// Completes the message; an encoding that has no trailers ends it without them.
    pub fn send_trailers(&mut self, trailers: &HeaderList) {
        match self {
            Self::H1(s) => s.send_trailers(trailers),
            Self::H2(s) => s.send_trailers(trailers),
        }
    }

    /// Bytes taken by `send_*` that are not yet the kernel's (h1) or the peer's window's (h2).
    pub fn buffered(&self) -> usize {
        match self {
            Self::H1(s) => s.buffered(),
            Self::H2(s) => s.buffered(),
        }
    }

    /// Ready when all that was sent is out.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::H1(s) => s.poll_flush(cx),
            Self::H2(s) => s.poll_flush(cx),
        }
    }

    /// Ready when the peer has gone or has reset the stream. For the time after the request's end. Bytes of a
    /// pipelined request are kept.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        match self {
            Self::H1(s) => s.poll_closed(cx),
            Self::H2(s) => s.poll_closed(cx),
        }
    }

    /// Bytes that are nobody's: they came behind an upgrade or CONNECT that was not granted, or not yet, or were
    /// dropped with an HTTP/2 stream that its peer has reset.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::H1(s) => s.held_bytes(),
            Self::H2(s) => s.held_bytes(),
        }
    }

    /// When all of a request had come whose bytes are held for an answer.
    pub fn ended_early(&self) -> Option<Instant> {
        match self {
            Self::H1(_) => None,
            Self::H2(s) => s.ended_early(),
        }
    }

    /// Ends the stream where it is. HTTP/1 has no other way than to close the connection.
    pub fn reset(&mut self, code: u32) {
        match self {
            Self::H1(s) => s.reset(),
            Self::H2(s) => s.reset(code),
        }
    }

    /// Bytes on the wire so far. HTTP/2 counts fields before compression, frame headers included.
    pub fn meter(&self) -> ByteMeter {
        match self {
            Self::H1(s) => s.meter(),
            Self::H2(s) => s.meter(),
        }
    }
}

/// A request being made: frames of the request out, the response in. Owned by its attempt; an
/// HTTP/1 connection goes back to its pool by `into_h1` afterwards.
#[derive(Debug)]
pub enum ClientStream {
    /// Boxed: it moves between its pool and attempt after attempt.
    H1(Box<h1::ClientConn>),
    /// Boxed: one allocation costs less than the moves on its way from the pool to the attempt.
    H2(Box<h2::ClientStream>),
    /// No HTTP at all: the payload of a CONNECT that ends here.
    Raw(Box<raw::ClientConn>),
}

impl ClientStream {
    /// The request's head; framing and connection fields are the codec's.
    pub fn send_head(&mut self, head: &RequestHead, end: bool) {
        match self {
            Self::H1(s) => s.send_head(head, end),
            Self::H2(s) => s.send_head(head, end),
            Self::Raw(s) => s.send_data(Bytes::new(), end),
        }
    }

    /// Body bytes; `end` completes the message.
    pub fn send_data(&mut self, data: Bytes, end: bool) {
        match self {
            Self::H1(s) => s.send_data(data, end),
            Self::H2(s) => s.send_data(data, end),
            Self::Raw(s) => s.send_data(data, end),
        }
    }

    /// Completes the message; an encoding that has no trailers ends it without them.
    pub fn send_trailers(&mut self, trailers: &HeaderList) {
        match self {
            Self::H1(s) => s.send_trailers(trailers),
            Self::H2(s) => s.send_trailers(trailers),
            Self::Raw(s) => s.send_data(Bytes::new(), true),
        }
    }

    /// Bytes taken by `send_*` that are not yet the kernel's (h1) or the peer's window's (h2).
    pub fn buffered(&self) -> usize {
        match self {
            Self::H1(s) => s.buffered(),
            Self::H2(s) => s.buffered(),
            Self::Raw(s) => s.buffered(),
        }
    }

    /// Ready when all that was sent is out.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::H1(s) => s.poll_flush(cx),
            Self::H2(s) => s.poll_flush(cx),
            Self::Raw(s) => s.poll_flush(cx),
        }
    }

    /// The next head and whether it is all of the response. 1xx heads (but 101) come first, each once.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(ResponseHead, bool), Fault>> {
        match self {
            Self::H1(s) => s.poll_head(cx),
            Self::H2(s) => s.poll_head(cx),
            Self::Raw(s) => s.poll_head(cx),
        }
    }

    /// The next frame of the response; `None` is its end. Only after the final head.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Fault>> {
        match self {
            Self::H1(s) => s.poll_frame(cx),
            Self::H2(s) => s.poll_frame(cx),
            Self::Raw(s) => s.poll_frame(cx),
        }
    }

    /// As for `ServerStream`.
    pub fn is_end(&self) -> bool {
        match self {
            Self::H1(s) => s.is_end(),
            Self::H2(s) => s.is_end(),
            Self::Raw(s) => s.is_end(),
        }
    }

    /// Whether an upgrade or CONNECT was refused, so that nothing of the request goes any more. In HTTP/2 its frames
    /// do no harm.
    pub fn has_refused_tunnel(&self) -> bool {
        match self {
            Self::H1(s) => s.has_refused_tunnel(),
            Self::H2(_) | Self::Raw(_) => false,
        }
    }

    /// Ends the stream where it is. HTTP/1: the connection cannot be used again.
    pub fn reset(&mut self, code: u32) {
        match self {
            Self::H1(s) => s.reset(),
            Self::H2(s) => s.reset(code),
            Self::Raw(s) => s.reset(),
        }
    }

    /// Whether any byte of a response has come for this request. While none has, a failure on a reused
    /// connection is most likely its being stale.
    pub fn received_any(&self) -> bool {
        match self {
            Self::H1(s) => s.received_any(),
            Self::H2(s) => s.received_any(),
            Self::Raw(_) => true,
        }
    }

    /// Bytes on the wire so far, of this request. HTTP/2 counts fields before compression.
    pub fn meter(&self) -> ByteMeter {
        match self {
            Self::H1(s) => s.meter(),
            Self::H2(s) => s.meter(),
            Self::Raw(s) => s.meter(),
        }
    }

    /// The HTTP/1 connection, for its pool; look at `is_reusable` there.
    pub fn into_h1(self) -> Option<Box<h1::ClientConn>> {
        match self {
            Self::H1(conn) => Some(conn),
            Self::H2(_) | Self::Raw(_) => None,
        }
    }
}
