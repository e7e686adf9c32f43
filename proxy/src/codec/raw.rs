//! A plain TCP connection where an upstream's HTTP connection would be: what a CONNECT carries goes out as it is.
//!
//! The answer to the request is ours, a 200 as soon as there is a connection (pb `ConnectConfig`). A FIN passes as a
//! FIN in both directions.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;

use super::buffer::{ReadBuffer, WriteQueue};
use super::head::{Protocol, ResponseHead};
use super::{Fault, Frame};
use crate::io::Io;
use crate::stream_info::ByteMeter;

/// One upstream connection of one request.
#[derive(Debug)]
pub struct ClientConn {
    io: Io,
    read: ReadBuffer,
    out: WriteQueue,
    /// The head of the answer has been given out.
    answered: bool,
    /// The request has ended: FIN behind what is queued.
    finish: bool,
    /// The peer has sent its FIN.
    ended: bool,
    /// Our FIN went first.
    peer_last: bool,
    meter: ByteMeter,
}

impl ClientConn {
    /// `first` goes out before anything of the request: a PROXY header, or nothing.
    pub fn new(io: Io, first: Bytes) -> Self {
        let mut conn = Self {
            io,
            read: ReadBuffer::default(),
            out: WriteQueue::default(),
            answered: false,
            finish: false,
            ended: false,
            peer_last: false,
            meter: ByteMeter::default(),
        };
        conn.meter.header_sent = first.len() as u64;
        conn.send_data(first, false);
        conn
    }

    /// Whether the peer ended its direction after ours had ended: it has closed the connection.
    pub fn peer_closed_last(&self) -> bool {
        self.peer_last
    }

    pub(super) fn send_data(&mut self, data: Bytes, end: bool) {
        if !data.is_empty() {
            self.meter.wire_sent += data.len() as u64;
            self.out.push(data);
        }
        self.finish |= end;
    }

    pub(super) fn buffered(&self) -> usize {
        self.out.len()
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        ready!(self.out.poll_flush(&mut self.io, cx))?;
        if self.finish {
            ready!(self.io.poll_shutdown(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_head(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, bool), Fault>> {
        if std::mem::replace(&mut self.answered, true) {
            return Poll::Pending;
        }
        Poll::Ready(Ok((ResponseHead::new(StatusCode::OK, Protocol::Http11), false)))
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let read = ready!(self.read.poll_fill(&mut self.io, cx))?;
        self.meter.wire_received += read as u64;
        if read == 0 {
            self.ended = true;
            self.peer_last = self.finish;
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(Frame::Data(self.read.take().freeze()))))
    }

    pub(super) fn is_end(&self) -> bool {
        self.ended
    }

    pub(super) fn reset(&mut self) {
        self.out.clear();
    }

    pub(super) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
