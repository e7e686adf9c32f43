//! The two halves of an HTTP/2 stream, the same on both sides of a connection.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::codec::head::HeaderList;
use crate::codec::{Fault, Frame};
use crate::stream_info::ByteMeter;

use super::convert;
use super::shared::Shared;

/// RST_STREAM, whole.
pub(super) const RESET_BYTES: u64 = 13;

/// RFC 9113 §4.1.
const FRAME_HEADER_BYTES: u64 = 9;

/// The fault for an error of h2.
pub(super) fn fault_of(error: &h2::Error) -> Fault {
    let code = error.reason().map_or(u32::from(Reason::INTERNAL_ERROR), u32::from);
    if let Some(io) = error.get_io() {
        return Fault::Io(io.kind());
    }
    let remote = error.is_remote();
    if error.is_go_away() { Fault::GoAway { code, remote } } else { Fault::Reset { code, remote } }
}

/// How the sent half ends, once its queue is empty.
#[derive(Debug)]
enum Ending {
    Open,
    End,
    Trailers(HeaderMap),
    Ended,
}

/// Body and trailers on their way to the peer. Keeps what the peer's window does not admit.
#[derive(Debug)]
pub(super) struct SendHalf {
    stream: Option<SendStream<Bytes>>,
    queue: VecDeque<Bytes>,
    queued: usize,
    ending: Ending,
    fault: Option<Fault>,
    shared: Rc<Shared>,
}

impl SendHalf {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self {
            stream: None,
            queue: VecDeque::new(),
            queued: 0,
            ending: Ending::Open,
            fault: None,
            shared,
        }
    }

    /// The head is out; `end` says that nothing follows.
    pub(super) fn begin(&mut self, stream: SendStream<Bytes>, end: bool) {
        self.stream = Some(stream);
        if end {
            self.ending = Ending::Ended;
        }
    }

    pub(super) fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Drops what is not sent: nobody wants it.
    pub(super) fn abandon(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.ending = Ending::Ended;
        self.fault = None;
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.ending, Ending::Ended)
    }

    pub(super) fn stream_mut(&mut self) -> Option<&mut SendStream<Bytes>> {
        self.stream.as_mut()
    }

    pub(super) fn data(&mut self, data: Bytes, end: bool, meter: &mut ByteMeter) {
        if !matches!(self.ending, Ending::Open) {
            return;
        }
        meter.wire_sent += data.len() as u64 + FRAME_HEADER_BYTES;
        self.queued += data.len();
        if !data.is_empty() {
            self.queue.push_back(data);
        }
        if end {
            self.ending = Ending::End;
        }
        self.pump();
    }

    pub(super) fn trailers(&mut self, list: &HeaderList, meter: &mut ByteMeter) {
        if !matches!(self.ending, Ending::Open) {
            return;
        }
        let size = head_bytes(list);
        meter.wire_sent += size;
        meter.header_sent += size;
        self.ending = Ending::Trailers(convert::trailers_to_h2(list));
        self.pump();
    }

    pub(super) fn buffered(&self) -> usize {
        self.queued
    }

    /// Hands h2 what the window admits.
    fn pump(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if self.queued > 0 && stream.capacity() < self.queued {
            stream.reserve_capacity(self.queued);
        }
        let mut capacity = stream.capacity();
        while let Some(front) = self.queue.front_mut() {
            if capacity == 0 {
                return;
            }
            let n = front.len().min(capacity);
            let piece = front.split_to(n);
            if front.is_empty() {
                self.queue.pop_front();
            }
            capacity -= n;
            self.queued -= n;
            let end = self.queue.is_empty() && matches!(self.ending, Ending::End);
            self.shared.data_sent.set(self.shared.data_sent.get() + 1 + n as u64 / 16_384);
            if let Err(error) = stream.send_data(piece, end) {
                self.fault.get_or_insert(fault_of(&error));
                return;
            }
            if end {
                self.ending = Ending::Ended;
            }
        }
        let sent = match std::mem::replace(&mut self.ending, Ending::Ended) {
            Ending::Open => {
                self.ending = Ending::Open;
                return;
            }
            Ending::End => stream.send_data(Bytes::new(), true),
            Ending::Trailers(map) => stream.send_trailers(map),
            Ending::Ended => return,
        };
        if let Err(error) = sent {
            self.fault.get_or_insert(fault_of(&error));
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            if let Some(fault) = self.fault {
                return Poll::Ready(Err(fault));
            }
            self.pump();
            if self.queue.is_empty() {
                return Poll::Ready(self.fault.map_or(Ok(()), Err));
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => self.fail(fault_of(&error)),
                None => {
                    // The stream is closed: for the reason, ask once more.
                    let fault = match stream.poll_reset(cx) {
                        Poll::Ready(Ok(reason)) => {
                            Fault::Reset { code: reason.into(), remote: true }
                        }
                        Poll::Ready(Err(error)) => fault_of(&error),
                        Poll::Pending => Fault::Eof,
                    };
                    self.fail(fault);
                }
            }
        }
    }
}

/// Body and trailers from the peer. The window is opened again as frames are taken: whoever does not
/// take them holds the peer back.
#[derive(Debug)]
pub(super) struct RecvHalf {
    stream: RecvStream,
    data_done: bool,
    ended: bool,
    max_count: usize,
}

impl RecvHalf {
    pub(super) fn new(stream: RecvStream, max_count: usize) -> Self {
        let ended = stream.is_end_stream();
        Self { stream, data_done: ended, ended, max_count }
    }

    pub(super) fn is_end(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        meter: &mut ByteMeter,
    ) -> Poll<Result<Option<Frame>, Fault>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        while !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    meter.wire_received += data.len() as u64 + FRAME_HEADER_BYTES;
                    // Fails only when the stream is gone, which the next poll says.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if data.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Err(fault_of(&error))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.ended = true;
        match trailers {
            Ok(None) => Poll::Ready(Ok(None)),
            Ok(Some(map)) => match convert::trailers_from_h2(&map, self.max_count) {
                Ok(list) => {
                    let size = head_bytes(&list);
                    meter.wire_received += size;
                    meter.header_received += size;
                    Poll::Ready(Ok(Some(Frame::Trailers(list))))
                }
                Err(fault) => Poll::Ready(Err(fault.into())),
            },
            Err(error) => Poll::Ready(Err(fault_of(&error))),
        }
    }
}

/// A head's size before compression, with its frame header.
pub(super) fn head_bytes(list: &HeaderList) -> u64 {
    list.byte_size() as u64 + FRAME_HEADER_BYTES
}
