//! The client's end of an HTTP/2 connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::{Fault, Frame};
use crate::io::Io;
use crate::stream_info::ByteMeter;

use super::Settings;

/// The pool's handle on an upstream HTTP/2 connection, whose `Driver` runs as a task of its own.
#[derive(Debug)]
pub struct ClientConn {
    settings: Arc<Settings>,
}

/// Moves the bytes of a connection; spawned by its pool. Ends with the connection.
#[derive(Debug)]
pub struct Driver {
    io: Io,
}

impl Future for Driver {
    type Output = Fault;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Fault> {
        let _ = &self.io;
        Poll::Pending
    }
}

impl ClientConn {
    /// Writes the preface and SETTINGS.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn handshake(io: Io, settings: Arc<Settings>) -> Result<(Self, Driver), Fault> {
        Ok((Self { settings }, Driver { io }))
    }

    /// A stream for one request. Nothing is sent before its head.
    pub fn open(&mut self) -> ClientStream {
        ClientStream { meter: ByteMeter::default() }
    }

    /// Streams the peer admits at once, by its SETTINGS.
    pub fn max_concurrent_streams(&self) -> usize {
        self.settings.options.max_concurrent_streams as usize
    }

    /// Streams that are open.
    pub fn active_streams(&self) -> usize {
        0
    }

    /// Whether the connection takes no new streams: it ended, failed, or the peer sent GOAWAY.
    pub fn is_closed(&self) -> bool {
        false
    }

    /// Whether the peer takes extended CONNECT (RFC 8441).
    pub fn is_connect_protocol_enabled(&self) -> bool {
        false
    }
}

/// One request on an upstream HTTP/2 connection.
#[derive(Debug)]
pub struct ClientStream {
    meter: ByteMeter,
}

impl ClientStream {
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
        false
    }

    pub(in crate::codec) fn reset(&mut self, _code: u32) {}

    pub(in crate::codec) fn received_any(&self) -> bool {
        false
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
