//! The server's end of an HTTP/1 connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::ServerSettings;

/// A downstream HTTP/1 connection: one request at a time, pipelined ones wait in order.
#[derive(Debug)]
pub struct ServerConn {
    io: Io,
    read: BytesMut,
    settings: Arc<ServerSettings>,
    meter: ByteMeter,
}

impl ServerConn {
    /// `read` has what was read already (by a listener filter or a protocol sniffer).
    pub fn new(io: Io, read: BytesMut, settings: Arc<ServerSettings>) -> Self {
        Self { io, read, settings, meter: ByteMeter::default() }
    }

    /// The next request and whether it has no body; `None` when the peer closed between requests. Holds no
    /// buffer while nothing has come.
    ///
    /// A `Fault::Parse` is to be answered (`send_head` works then) and the connection closed.
    pub fn poll_head(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(RequestHead, bool)>, Fault>> {
        Poll::Pending
    }

    /// Whether a part of the next head has come: the head's timer runs, not the idle one.
    pub fn head_started(&self) -> bool {
        !self.read.is_empty()
    }

    /// The response in hand, or the next one, says `connection: close`, and the connection ends after it.
    pub fn close_after_response(&mut self) {}

    /// Treats the current upgrade as a plain request.
    pub fn ignore_upgrade(&mut self) {}

    /// Whether another request may follow: request and response complete, nobody asked to close.
    pub fn is_reusable(&self) -> bool {
        false
    }

    /// Flushes, sends FIN and reads on to the peer's end, so that an answer sent early is not lost to a
    /// reset. The caller bounds it by `delayed_close_timeout`.
    pub fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    pub fn io(&self) -> &Io {
        &self.io
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        Poll::Pending
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        self.settings.enable_trailers
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

    pub(in crate::codec) fn reset(&mut self) {}

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
