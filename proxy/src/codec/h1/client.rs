//! The client's end of an HTTP/1 connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::ClientSettings;

/// An upstream HTTP/1 connection: one request at a time.
#[derive(Debug)]
pub struct ClientConn {
    io: Io,
    settings: Arc<ClientSettings>,
    meter: ByteMeter,
}

impl ClientConn {
    pub fn new(io: Io, settings: Arc<ClientSettings>) -> Self {
        Self { io, settings, meter: ByteMeter::default() }
    }

    /// Whether the exchange is complete and left the connection fit for another.
    pub fn is_reusable(&self) -> bool {
        false
    }

    /// For a pooled connection: ready when the peer closed it or sent something unasked; either way it is
    /// of no more use. Costs no system call while nothing happens, holds no buffer.
    pub fn poll_idle(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    pub fn io(&self) -> &Io {
        &self.io
    }

    pub(in crate::codec) fn send_head(&mut self, _head: &RequestHead, _end: bool) {}

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

    pub(in crate::codec) fn poll_head(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, bool), Fault>> {
        Poll::Pending
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

    pub(in crate::codec) fn reset(&mut self) {}

    pub(in crate::codec) fn received_any(&self) -> bool {
        false
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
