//! The client's end of an HTTP/2 stream.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;

use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::name::names;
use crate::codec::{Fault, Frame};
use crate::stats::names::Http2Stat;
use crate::stream_info::ByteMeter;

use super::connection::Shared;
use super::frame::code;
use super::server_stream::{
    RESET_BYTES, buffered, data_bytes, has_all, head_bytes, poll_incoming, poll_sent,
};
use super::stream::Key;

/// One request on an upstream HTTP/2 connection. What was sent has to be flushed before it is dropped.
#[derive(Debug)]
pub struct ClientStream {
    key: Key,
    shared: Shared,
    /// The protocol that was asked for.
    upgrade: Option<Bytes>,
    /// The final head has been given out.
    answered: bool,
    received_any: bool,
    reset_noted: bool,
    meter: ByteMeter,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.borrow_mut().release(self.key);
    }
}

impl ClientStream {
    pub(super) fn new(shared: &Shared) -> Self {
        let key = shared.borrow_mut().add_stream(0);
        Self {
            key,
            shared: Rc::clone(shared),
            upgrade: None,
            answered: false,
            received_any: false,
            reset_noted: false,
            meter: ByteMeter::default(),
        }
    }

    pub(in crate::codec) fn send_head(&mut self, head: &RequestHead, end: bool) {
        let size = head_bytes(&head.headers)
            + (head.path().map_or(0, <[u8]>::len) + head.authority().map_or(0, <[u8]>::len)) as u64;
        self.meter = ByteMeter { wire_sent: size, header_sent: size, ..ByteMeter::default() };
        self.upgrade = head.upgrade_str().map(Bytes::copy_from_slice);
        self.shared.borrow_mut().send_request(self.key, head, end);
    }

    pub(in crate::codec) fn send_data(&mut self, data: Bytes, end: bool) {
        let size = data_bytes(&data);
        if self.shared.borrow_mut().send_data(self.key, data, end) {
            self.meter.wire_sent += size;
        }
    }

    pub(in crate::codec) fn send_trailers(&mut self, trailers: &HeaderList) {
        if self.shared.borrow_mut().send_trailers(self.key, trailers) {
            let size = head_bytes(trailers);
            self.meter.wire_sent += size;
            self.meter.header_sent += size;
        }
    }

    pub(in crate::codec) fn buffered(&self) -> usize {
        buffered(&self.shared.borrow(), self.key)
    }

    pub(in crate::codec) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match ready!(poll_sent(&mut self.shared.borrow_mut(), self.key, cx)) {
            // RFC 9113 §8.1: the server has answered and does not want the rest of the request.
            Err(Fault::Reset { code: code::NO_ERROR, remote: true }) => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }

    /// Counts a reset by the peer, once.
    fn note_reset(&mut self, fault: Fault) {
        if let Fault::Reset { remote: true, .. } = fault
            && !std::mem::replace(&mut self.reset_noted, true)
        {
            self.shared.borrow().counters.codec.inc(Http2Stat::RxReset);
            self.meter.wire_received += RESET_BYTES;
        }
    }

    pub(in crate::codec) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, bool), Fault>> {
        let (next, end) = {
            let connection = &mut *self.shared.borrow_mut();
            let Some(stream) = connection.streams.get_mut(self.key) else {
                return Poll::Ready(Err(Fault::Eof));
            };
            match (stream.incoming.heads.pop_front(), stream.fault) {
                (Some(head), _) => (Ok(head), has_all(connection, self.key)),
                (None, Some(fault)) => (Err(fault), true),
                (None, None) => {
                    stream.wait(cx);
                    return Poll::Pending;
                }
            }
        };
        match next {
            Ok(head) => Poll::Ready(Ok(self.take_head(head, end))),
            Err(fault) => {
                self.note_reset(fault);
                Poll::Ready(Err(fault))
            }
        }
    }

    fn take_head(&mut self, mut head: ResponseHead, end: bool) -> (ResponseHead, bool) {
        self.received_any = true;
        if let Some(upgrade) = &self.upgrade
            && head.status.is_success()
        {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            head.headers.remove(&names::CONTENT_LENGTH);
            head.headers.append(&names::UPGRADE, upgrade);
            head.headers.append(&names::CONNECTION, b"upgrade");
        }
        let size = head_bytes(&head.headers);
        self.meter.wire_received += size;
        self.meter.header_received += size;
        self.answered |= !head.is_informational();
        let end = end && self.answered;
        (head, end)
    }

    pub(in crate::codec) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if !self.answered {
            return Poll::Ready(Ok(None));
        }
        let polled = poll_incoming(&mut self.shared.borrow_mut(), self.key, &mut self.meter, cx);
        let result = ready!(polled);
        if let Err(fault) = result {
            self.note_reset(fault);
        }
        Poll::Ready(result)
    }

    pub(in crate::codec) fn is_end(&self) -> bool {
        self.answered && has_all(&self.shared.borrow(), self.key)
    }

    pub(in crate::codec) fn reset(&mut self, code: u32) {
        let connection = &mut *self.shared.borrow_mut();
        if connection.streams.get(self.key).is_some_and(|stream| stream.id != 0) {
            self.meter.wire_sent += RESET_BYTES;
        }
        connection.reset(self.key, code);
    }

    pub(in crate::codec) fn received_any(&self) -> bool {
        self.received_any
    }

    pub(in crate::codec) fn meter(&self) -> ByteMeter {
        self.meter
    }
}
