//! Frames to be sent: each goes behind the ones before it into one queue. DATA waits in its stream while a window
//! or the queue is full.

use bytes::Bytes;

use super::budget::Flood;
use super::connection::{Broken, Connection, Going};
use super::encode;
use super::fault::Http2Fault;
use super::frame::{HEADER_BYTES, Header, MAX_FRAME_BYTES, code, flag, kind};
use super::hpack::Encoder;
use super::stream::{EndedBy, Ending, Key};
use crate::codec::Fault;
use crate::codec::buffer::WriteQueue;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::stats::names::Http2Stat;

/// Above this, DATA waits in its stream: the next head need not wait behind it.
const QUEUED_BYTES: usize = 128 * 1024;

/// Above this, nothing is read: frames answer frames.
const STUFFED_BYTES: usize = 1024 * 1024;

/// Streams of a client have odd numbers of 31 bits.
const MAX_STREAM: u32 = (1 << 31) - 1;

/// What is on its way to the socket.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) queue: WriteQueue,
    frames: u32,
    control_frames: u32,
}

impl Outbox {
    pub(super) fn note_empty(&mut self) {
        self.frames = 0;
        self.control_frames = 0;
    }

    /// Of `before` bytes some are out. Which frame they belong to is not known: so many as their share.
    pub(super) fn note_progress(&mut self, before: usize) {
        let left = self.queue.len() as u64;
        let share = |frames: u32| (u64::from(frames) * left).div_ceil(before as u64) as u32;
        self.frames = share(self.frames);
        self.control_frames = share(self.control_frames);
    }
}

impl Connection {
    /// Queues a small frame.
    pub(super) fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let tail = self.out.queue.tail();
        tail.extend_from_slice(&Header { length: payload.len(), kind, flags, stream }.bytes());
        tail.extend_from_slice(payload);
        self.out.frames += 1;
    }

    /// As `put`, for what a peer can ask for without end and that waits for its reading.
    pub(super) fn put_control(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), Broken> {
        self.put(kind, flags, stream, payload);
        self.out.control_frames += 1;
        let options = &self.settings.options;
        if self.out.control_frames > options.max_outbound_control_frames {
            return Err(self.flood(Flood::Control));
        }
        Ok(())
    }

    /// The peer does not take what it asked for.
    pub(super) fn check_outbox(&mut self) -> Result<(), Broken> {
        if self.out.frames > self.settings.options.max_outbound_frames {
            return Err(self.flood(Flood::Outbound));
        }
        Ok(())
    }

    /// So much waits for the socket that nothing more is read before.
    pub(super) fn is_stuffed(&self) -> bool {
        self.out.queue.len() > STUFFED_BYTES
    }

    /// The peer is over a budget. Who resets too many requests is told; the others are not, as in Envoy.
    pub(super) fn flood(&mut self, flood: Flood) -> Broken {
        if self.flooded.replace(flood).is_none()
            && let Some(stat) = flood.stat()
        {
            self.counters.codec.inc(stat);
        }
        let goaway = (flood == Flood::Resets).then_some(code::ENHANCE_YOUR_CALM);
        Broken { goaway, ..Broken::silent(Http2Fault::Flood) }
    }

    fn put_head(&mut self, stream: u32, end: bool, write: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let tail = self.out.queue.tail();
        let start = tail.len();
        tail.extend_from_slice(&[0; HEADER_BYTES]);
        write(&mut self.encoder, tail);
        let length = tail.len() - start - HEADER_BYTES;
        let end = if end { flag::END_STREAM } else { 0 };
        let mut header =
            Header { length, kind: kind::HEADERS, flags: end | flag::END_HEADERS, stream };
        self.out.frames += 1;
        let max = self.peer.max_frame.min(MAX_FRAME_BYTES);
        if length <= max {
            tail[start..start + HEADER_BYTES].copy_from_slice(&header.bytes());
            return;
        }
        let block = tail.split_off(start + HEADER_BYTES);
        tail.truncate(start);
        let mut pieces = block.chunks(max).peekable();
        header.flags = end;
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                header.flags |= flag::END_HEADERS;
            }
            header.length = piece.len();
            tail.extend_from_slice(&header.bytes());
            tail.extend_from_slice(piece);
            header.kind = kind::CONTINUATION;
            header.flags = 0;
            self.out.frames += 1;
        }
    }

    /// A response's head, interim or final.
    pub(super) fn send_response(&mut self, key: Key, head: &ResponseHead, tunnel: bool, end: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.closed || stream.is_answered() {
            return;
        }
        let id = stream.id;
        if end {
            stream.outgoing.ending = Ending::Ended;
        }
        self.put_head(id, end, |encoder, out| encode::response(encoder, out, head, tunnel));
        if end {
            self.close_if_done(key);
        }
        self.wake();
    }

    /// Whether a client can open one more stream.
    pub(super) fn has_numbers(&self) -> bool {
        self.newest < MAX_STREAM - 1
    }

    /// No request is under way.
    pub(super) fn is_idle_client(&self) -> bool {
        self.streams.open() == 0 && self.waiting.is_empty()
    }

    /// A request's head, as soon as the peer admits one more stream.
    pub(super) fn send_request(&mut self, key: Key, head: &RequestHead, end: bool) {
        if let Some(fault) = self.ended {
            let fault = match fault {
                Fault::Parse(_) => Fault::Eof,
                fault => fault,
            };
            return self.fail(key, fault, EndedBy::Us);
        }
        if self.peer.going || !self.has_numbers() {
            let fault = Fault::GoAway { code: code::NO_ERROR, remote: true };
            return self.fail(key, fault, EndedBy::Us);
        }
        if !encode::can_be_said(head) {
            return self.fail(key, Http2Fault::HeaderField.into(), EndedBy::Us);
        }
        self.budget.opened += 1;
        if self.streams.open() < self.peer.max_streams as usize {
            self.open(key, head, end);
        } else if let Some(stream) = self.streams.get_mut(key) {
            stream.head = Some(Box::new((head.clone(), end)));
            self.waiting.push_back(key);
        }
    }

    fn open(&mut self, key: Key, head: &RequestHead, end: bool) {
        if !self.has_numbers() {
            let fault = Fault::GoAway { code: code::NO_ERROR, remote: true };
            return self.fail(key, fault, EndedBy::Us);
        }
        let window = self.peer.initial_window;
        let Some(stream) = self.streams.get_mut(key) else { return };
        self.newest = if self.newest == 0 { 1 } else { self.newest + 2 };
        let id = self.newest;
        stream.id = id;
        stream.outgoing.window = window;
        stream.incoming.bodiless = head.method == http::Method::HEAD;
        stream.incoming.tunnel = head.method == http::Method::CONNECT || head.upgrade.is_some();
        if end {
            stream.outgoing.ending = Ending::Ended;
        }
        self.streams.note_open(id, key);
        self.counters.codec.gauge_inc(Http2Stat::StreamsActive);
        self.put_head(id, end, |encoder, out| encode::request(encoder, out, head));
        self.wake();
    }

    /// Opens streams that waited, as far as there is room.
    pub(super) fn admit_waiting(&mut self) {
        while self.streams.open() < self.peer.max_streams as usize
            && let Some(key) = self.waiting.pop_front()
        {
            let head = self.streams.get_mut(key).and_then(|stream| stream.head.take());
            if let Some(head) = head {
                self.open(key, &head.0, head.1);
                self.pump_and_tell(key);
            }
        }
    }

    /// Body bytes; `end`: nothing follows. False where nobody wants them any more.
    pub(super) fn send_data(&mut self, key: Key, data: Bytes, end: bool) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return false };
        if !matches!(stream.outgoing.ending, Ending::Open) {
            return false;
        }
        stream.outgoing.push(data);
        if end {
            stream.outgoing.ending = Ending::End;
        }
        self.pump(key);
        true
    }

    /// As `send_data`.
    pub(super) fn send_trailers(&mut self, key: Key, trailers: &HeaderList) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return false };
        if !matches!(stream.outgoing.ending, Ending::Open) {
            return false;
        }
        if stream.outgoing.queued == 0 && stream.id != 0 {
            stream.outgoing.ending = Ending::Ended;
            let id = stream.id;
            self.put_head(id, true, |encoder, out| encode::trailers(encoder, out, trailers));
            self.close_if_done(key);
            self.wake();
        } else {
            stream.outgoing.ending = Ending::Trailers(trailers.clone());
        }
        true
    }

    /// Moves a stream's data to the queue, unless others wait for that.
    pub(super) fn pump(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.outgoing.is_ready || stream.id == 0 {
            return;
        }
        if stream.outgoing.queued == 0 {
            return self.put_end(key);
        }
        if self.ready.is_empty() {
            while self.has_room() && self.put_data(key) {}
        }
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.outgoing.queued > 0 && stream.outgoing.window > 0 {
            stream.outgoing.is_ready = true;
            self.ready.push_back(key);
        }
    }

    fn has_room(&self) -> bool {
        self.out.queue.len() < QUEUED_BYTES
    }

    /// One frame of each stream that has data, in turn, while there is room.
    pub(super) fn pump_ready(&mut self) {
        while self.has_room()
            && self.send_window > 0
            && let Some(key) = self.ready.pop_front()
        {
            self.put_data(key);
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if stream.outgoing.queued > 0 && stream.outgoing.window > 0 {
                self.ready.push_back(key);
                continue;
            }
            stream.outgoing.is_ready = false;
            if stream.outgoing.queued == 0 {
                stream.wake();
            }
        }
    }

    /// Queues one DATA frame, and what has to follow the last; whether there is more.
    fn put_data(&mut self, key: Key) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return false };
        let (id, outgoing) = (stream.id, &mut stream.outgoing);
        let window = outgoing.window.min(self.send_window).max(0) as usize;
        let Some(piece) = outgoing.take(window.min(MAX_FRAME_BYTES)) else { return false };
        let length = piece.len();
        outgoing.window -= length as i64;
        self.send_window -= length as i64;
        let more = outgoing.queued > 0;
        let end = !more && matches!(outgoing.ending, Ending::End);
        if end {
            outgoing.ending = Ending::Ended;
        }
        let flags = if end { flag::END_STREAM } else { 0 };
        let header = Header { length, kind: kind::DATA, flags, stream: id };
        self.out.queue.tail().extend_from_slice(&header.bytes());
        self.out.queue.push(piece);
        self.out.frames += 1;
        self.budget.data_sent += 1;
        self.wake();
        if end {
            self.close_if_done(key);
        } else if !more {
            self.put_end(key);
        }
        more
    }

    /// All data is queued: so is the end, where it is known. It needs no window.
    fn put_end(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let id = stream.id;
        match std::mem::replace(&mut stream.outgoing.ending, Ending::Ended) {
            Ending::Open => {
                stream.outgoing.ending = Ending::Open;
                return;
            }
            Ending::Ended => return,
            Ending::End => self.put(kind::DATA, flag::END_STREAM, id, &[]),
            Ending::Trailers(trailers) => {
                self.put_head(id, true, |encoder, out| encode::trailers(encoder, out, &trailers));
            }
        }
        self.close_if_done(key);
        self.wake();
    }

    /// Ends a stream where it is.
    pub(super) fn reset(&mut self, key: Key, code: u32) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.closed {
            return;
        }
        let by = if stream.incoming.ended { EndedBy::Peer } else { EndedBy::Us };
        let id = stream.id;
        if id == 0 {
            self.waiting.retain(|waiting| *waiting != key);
        } else {
            self.put_reset(id, code);
        }
        self.fail(key, Fault::Reset { code, remote: false }, by);
        self.wake();
    }

    pub(super) fn put_reset(&mut self, id: u32, code: u32) {
        self.put(kind::RST_STREAM, 0, id, &code.to_be_bytes());
        self.counters.codec.inc(Http2Stat::TxReset);
    }

    /// The first GOAWAY of a drain: streams on their way are still taken. False where it is known already that we go.
    pub(super) fn announce_leave(&mut self) -> bool {
        let begins = self.going == Going::No && self.ended.is_none();
        if begins {
            self.going = Going::Announced;
            self.drains = true;
            self.go_away(MAX_STREAM, code::NO_ERROR);
        }
        begins
    }
}
