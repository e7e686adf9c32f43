//! The server's end of an HTTP/2 connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::Settings;

/// A downstream HTTP/2 connection.
#[derive(Debug)]
pub struct ServerConn {
    io: Io,
    settings: Arc<Settings>,
}

impl ServerConn {
    /// `read` has what was read already, the preface included.
    pub fn new(io: Io, _read: BytesMut, settings: Arc<Settings>) -> Self {
        Self { io, settings }
    }

    /// Drives the connection and gives the next request, whether it has no body, and its stream; `None`
    /// when the connection has ended. Must be polled for as long as there are streams.
    #[expect(clippy::type_complexity, reason = "the tuple is taken apart at once")]
    pub fn poll_accept(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(RequestHead, bool, ServerStream), Fault>>> {
        Poll::Pending
    }

    /// GOAWAY in two steps (RFC 9113 §6.8): streams on their way are still taken, then the connection ends.
    pub fn drain(&mut self) {}

    /// Whether a stream is open.
    pub fn has_streams(&self) -> bool {
        self.settings.max_header_count == 0
    }

    /// Ends the connection now, with a GOAWAY of this code.
    pub fn abort(&mut self, _code: u32) {}

    pub fn io(&self) -> &Io {
        &self.io
    }
}

/// One request of a downstream HTTP/2 connection.
#[derive(Debug)]
pub struct ServerStream {
    meter: ByteMeter,
}

impl ServerStream {
    pub(in crate::codec) fn poll_frame(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        Poll::Pending
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        false
    }

    pub(in crate::codec) fn send_informational(&mut self, _head: &ResponseHead) {}

    pub(in crate::codec) fn send_head(&mut self, _head: &ResponseHead, _end: bool) {}

    pub(in crate::codec) fn send_data(&mut self, _data: Bytes, _end: bool) {}

    pub(in crate::codec) fn send_trailers(&mut self, _trailers: &HeaderList) {}

    pub(in crate::codec) fn buffered(&self) -> usize {
        0
    }

    pub(in crate::codec) fn poll_flush(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    pub(in crate::codec) fn poll_closed(&mut self, _cx: &mut Context<'_>) -> Poll<Fault> {
        Poll::Pending
    }

    pub(in crate::codec) fn reset(&mut self, _code: u32) {}

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
