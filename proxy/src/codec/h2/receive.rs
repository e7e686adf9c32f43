//! Frames of the peer: from bytes to events and to changes of the connection's state. What is wrong with a frame
//! ends its stream or the connection as nghttp2 and Envoy on it do, or more strictly where FAULTS.md says so.

use bytes::{Buf, Bytes, BytesMut};

use super::connection::{ACK, Block, Broken, Connection, Event, MAX_WINDOW, OUR_PING};
use super::fault::Http2Fault;
use super::frame::{
    HEADER_BYTES, Header, MAX_FRAME_BYTES, code, flag, kind, setting, whole_word, word,
};
use super::stream::{EndedBy, Key, Stream};
use crate::codec::Fault;
use crate::codec::buffer::ReadBuffer;

/// Smaller bodies are copied, whatever their read buffer.
const MIN_SLICE_BYTES: usize = 4096;

/// As nghttp2 has it; more where the limit of the head wants more.
const MAX_CONTINUATIONS: usize = 8;

/// Entries of one SETTINGS frame, as in nghttp2: each may touch every stream.
const MAX_SETTINGS: usize = 32;

impl Connection {
    /// Takes whole frames from `read` up to the next event; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The connection has ended: `ended` says why.
    pub(super) fn receive(&mut self, read: &mut ReadBuffer) -> Result<Option<Event>, ()> {
        if self.ended.is_some() {
            return Err(());
        }
        self.slice_bytes = read.slice_bytes().max(MIN_SLICE_BYTES);
        match self.frames(&mut read.bytes) {
            Ok(event) => Ok(event),
            Err(broken) => {
                let in_request = self
                    .block
                    .take()
                    .is_some_and(|block| self.is_server && block.header.stream > self.newest);
                let cut = in_request && broken.fault == Http2Fault::Codec;
                self.give_up(broken);
                if broken.by_request || cut {
                    return Ok(Some(Event::Refused { fault: broken.fault, told: false }));
                }
                Err(())
            }
        }
    }

    fn frames(&mut self, read: &mut BytesMut) -> Result<Option<Event>, Broken> {
        loop {
            let Some(header) = Header::parse(read) else { return Ok(None) };
            self.check(header)?;
            let whole = HEADER_BYTES + header.length;
            if read.len() < whole {
                return Ok(None);
            }
            if let Err(flood) = self.budget.count(header) {
                return Err(self.flood(flood));
            }
            if header.kind == kind::DATA {
                self.data(header, read)?;
                continue;
            }
            let event = self.frame(header, &read[HEADER_BYTES..whole])?;
            read.advance(whole);
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// What no peer may send, as far as the frame's header tells.
    fn check(&self, header: Header) -> Result<(), Broken> {
        let Header { length, kind, stream, .. } = header;
        if let Some(open) = &self.block
            && (kind != kind::CONTINUATION || stream != open.header.stream)
        {
            return Err(Broken::told(code::PROTOCOL_ERROR));
        }
        let size = match kind {
            kind::PING => length != 8,
            kind::PRIORITY => length != 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => length != 4,
            kind::SETTINGS => !length.is_multiple_of(6) || header.has(ACK) && length != 0,
            kind::GOAWAY => !(8..=MAX_FRAME_BYTES).contains(&length),
            _ => false,
        };
        if size || length > MAX_FRAME_BYTES {
            return Err(Broken::told(code::FRAME_SIZE_ERROR));
        }
        let silent = Err(Broken::silent(Http2Fault::Codec));
        let idle = stream == 0 || self.is_idle(stream);
        match kind {
            kind::DATA if idle => Err(Broken::told(code::PROTOCOL_ERROR)),
            kind::CONTINUATION if self.block.is_none() => Err(Broken::told(code::PROTOCOL_ERROR)),
            kind::HEADERS if stream == 0 || stream.is_multiple_of(2) => silent,
            kind::HEADERS if !self.is_server && idle => silent,
            kind::PRIORITY if stream == 0 => silent,
            kind::PING | kind::SETTINGS | kind::GOAWAY if stream != 0 => silent,
            kind::RST_STREAM if idle => silent,
            kind::WINDOW_UPDATE if idle && stream != 0 => silent,
            kind::PUSH_PROMISE => Err(Broken::told(code::PROTOCOL_ERROR)),
            // RFC 9113 §3.4.
            _ if !self.peer.settings_seen && (kind != kind::SETTINGS || header.has(ACK)) => {
                Err(Broken::told(code::PROTOCOL_ERROR))
            }
            _ => Ok(()),
        }
    }

    /// Nobody has opened it yet.
    fn is_idle(&self, stream: u32) -> bool {
        stream > self.newest || stream.is_multiple_of(2)
    }

    fn frame(&mut self, header: Header, payload: &[u8]) -> Result<Option<Event>, Broken> {
        match header.kind {
            kind::HEADERS => return self.headers(header, payload),
            kind::CONTINUATION => return self.continuation(header, payload),
            kind::PRIORITY if word(payload) == header.stream => {
                // Counted: a peer that has us reset its streams leaves our work on them behind (CVE-2025-8671).
                if let Some(key) = self.streams.key_of(header.stream) {
                    let fault = Fault::Reset { code: code::PROTOCOL_ERROR, remote: false };
                    return self.stream_error(key, code::PROTOCOL_ERROR, fault).map(|()| None);
                }
                let reason = code::PROTOCOL_ERROR.to_be_bytes();
                self.put_control(kind::RST_STREAM, 0, header.stream, &reason)?;
                self.budget.count_stream_error().map_err(|flood| self.flood(flood))?;
            }
            kind::RST_STREAM => self.rst_stream(header.stream, whole_word(payload)),
            kind::SETTINGS if header.has(ACK) => self.decoder.acknowledged(),
            kind::SETTINGS => {
                self.settings_frame(payload)?;
                self.put_control(kind::SETTINGS, ACK, 0, &[])?;
                // Behind the answer: the peer takes its settings for accepted from there on.
                self.pump_open();
                self.admit_waiting();
            }
            kind::PING if header.has(ACK) && self.pinging && payload == OUR_PING => {
                self.pinging = false;
                self.wake();
            }
            kind::PING if header.has(ACK) => {}
            kind::PING => self.put_control(kind::PING, ACK, 0, payload)?,
            kind::GOAWAY => self.goaway(word(payload), whole_word(&payload[4..])),
            kind::WINDOW_UPDATE => self.window_update(header.stream, word(payload))?,
            _ => {}
        }
        Ok(None)
    }

    /// DATA, whose header is still in front of it.
    fn data(&mut self, header: Header, read: &mut BytesMut) -> Result<(), Broken> {
        read.advance(HEADER_BYTES);
        let length = header.length;
        self.receive_window -= length as i64;
        if self.receive_window < 0 {
            return Err(Broken::told(code::FLOW_CONTROL_ERROR));
        }
        let (front, body) = if header.has(flag::PADDED) {
            let padding = read.first().map_or(usize::MAX, |padding| usize::from(*padding));
            match length.checked_sub(padding.saturating_add(1)) {
                Some(body) => (1, body),
                None => return Err(Broken::told(code::PROTOCOL_ERROR)),
            }
        } else {
            (0, length)
        };
        let Some(key) = self.streams.key_of(header.stream) else {
            if self.recent.find(header.stream) == Some(EndedBy::Peer) {
                return Err(Broken::told(code::STREAM_CLOSED));
            }
            read.advance(length);
            self.give_back(length as u32);
            return Ok(());
        };
        let Some(fault) = self.check_data(key, length, body, header.has(flag::END_STREAM))? else {
            let data = if body < self.slice_bytes {
                let data = Bytes::copy_from_slice(&read[front..front + body]);
                read.advance(length);
                data
            } else {
                let mut data = read.split_to(length);
                data.advance(front);
                data.truncate(body);
                data.freeze()
            };
            self.add_data(key, data, header.has(flag::END_STREAM));
            if length > body {
                self.take(key, (length - body) as u32);
            }
            return Ok(());
        };
        read.advance(length);
        self.give_back(length as u32);
        self.stream_error(key, fault, Fault::Reset { code: fault, remote: false })
    }

    /// The code that a stream ends with for a DATA frame that it may not have.
    fn check_data(
        &mut self,
        key: Key,
        length: usize,
        body: usize,
        end: bool,
    ) -> Result<Option<u32>, Broken> {
        let is_server = self.is_server;
        let Some(stream) = self.streams.get_mut(key) else { return Ok(None) };
        let incoming = &mut stream.incoming;
        if incoming.ended {
            return Err(Broken::told(code::STREAM_CLOSED));
        }
        incoming.window -= length as i64;
        if incoming.window < 0 {
            return Ok(Some(code::FLOW_CONTROL_ERROR));
        }
        let early = !is_server && !incoming.answered;
        let empty = incoming.bodiless && body > 0;
        let mut wrong = false;
        if let Some(left) = &mut incoming.length {
            match left.checked_sub(body as u64) {
                Some(rest) => *left = rest,
                None => wrong = true,
            }
            wrong |= end && *left > 0;
        }
        Ok((early || empty || wrong).then_some(code::PROTOCOL_ERROR))
    }

    fn add_data(&mut self, key: Key, data: Bytes, end: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.incoming.add(data);
        stream.wake();
        if end {
            self.end_of_message(key);
        }
    }

    /// The peer has said all on this stream.
    pub(super) fn end_of_message(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.incoming.ended = true;
        stream.wake();
        self.ended_messages += 1;
        self.close_if_done(key);
    }

    /// Ends a stream for what its peer did.
    pub(super) fn stream_error(&mut self, key: Key, code: u32, fault: Fault) -> Result<(), Broken> {
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let id = stream.id;
        self.ended_messages += u32::from(!stream.incoming.ended);
        self.put_reset(id, code);
        self.fail(key, fault, EndedBy::Us);
        self.wake();
        self.budget.count_stream_error().map_err(|flood| self.flood(flood))
    }

    fn headers(&mut self, header: Header, payload: &[u8]) -> Result<Option<Event>, Broken> {
        let mut block = payload;
        if header.has(flag::PADDED) {
            let Some((padding, rest)) = block.split_first() else {
                return Err(Broken::told(code::FRAME_SIZE_ERROR));
            };
            let Some(length) = rest.len().checked_sub(usize::from(*padding)) else {
                return Err(Broken::told(code::PROTOCOL_ERROR));
            };
            block = &rest[..length];
        }
        let mut bad_priority = false;
        if header.has(flag::PRIORITY) {
            let Some((priority, rest)) = block.split_at_checked(5) else {
                return Err(Broken::told(code::FRAME_SIZE_ERROR));
            };
            bad_priority = word(priority) == header.stream;
            block = rest;
        }
        if header.has(flag::END_HEADERS) {
            return self.block(header, block, bad_priority);
        }
        let bytes = block.to_vec();
        self.block = Some(Block { header, bytes, frames: 0, bad_priority, given_up: false });
        Ok(None)
    }

    fn continuation(&mut self, header: Header, payload: &[u8]) -> Result<Option<Event>, Broken> {
        let limit = (self.settings.max_head_bytes as usize).saturating_mul(2) + 32 * 1024;
        let Some(block) = &mut self.block else {
            return Err(Broken::told(code::PROTOCOL_ERROR));
        };
        block.frames += 1;
        let frames = MAX_CONTINUATIONS.max(limit / MAX_FRAME_BYTES + 1);
        if block.frames as usize > frames || block.bytes.len() + payload.len() > limit {
            return Err(Broken::told(code::ENHANCE_YOUR_CALM));
        }
        block.bytes.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        let Some(block) = self.block.take() else { return Ok(None) };
        if block.given_up {
            return self.skip(&block.bytes).map(|()| None);
        }
        self.block(block.header, &block.bytes, block.bad_priority)
    }

    fn rst_stream(&mut self, id: u32, code: u32) {
        let Some(key) = self.streams.key_of(id) else { return };
        let Some(stream) = self.streams.get(key) else { return };
        self.ended_messages += u32::from(!stream.incoming.ended);
        self.fail(key, Fault::Reset { code, remote: true }, EndedBy::Peer);
    }

    fn settings_frame(&mut self, payload: &[u8]) -> Result<(), Broken> {
        self.peer.settings_seen = true;
        let silent = Broken::silent(Http2Fault::Codec);
        if payload.len() > 6 * MAX_SETTINGS {
            return Err(Broken::told(code::ENHANCE_YOUR_CALM));
        }
        // Applied once, whatever the number of entries: it costs a walk over all streams.
        let mut window = None;
        for pair in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([pair[0], pair[1]]);
            let value = whole_word(&pair[2..]);
            match id {
                setting::HEADER_TABLE_SIZE => self.encoder.set_max_table(value),
                setting::ENABLE_PUSH if value > u32::from(self.is_server) => return Err(silent),
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return Err(Broken::told(code::FLOW_CONTROL_ERROR));
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                setting::MAX_FRAME_SIZE => {
                    let max = value as usize;
                    if !(MAX_FRAME_BYTES..1 << 24).contains(&max) {
                        return Err(silent);
                    }
                    self.peer.max_frame = max;
                }
                setting::ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(silent),
                setting::ENABLE_CONNECT_PROTOCOL => self.peer.connect_protocol |= value == 1,
                _ => {}
            }
        }
        window.map_or(Ok(()), |window| self.initial_window(window))
    }

    /// Windows of open streams change with it (RFC 9113 §6.9.2).
    fn initial_window(&mut self, value: i64) -> Result<(), Broken> {
        let change = value - self.peer.initial_window;
        self.peer.initial_window = value;
        for (_, stream) in self.streams.all_mut() {
            if stream.id == 0 || stream.closed {
                continue;
            }
            stream.outgoing.window += change;
            if stream.outgoing.window > MAX_WINDOW {
                return Err(Broken::told(code::FLOW_CONTROL_ERROR));
            }
        }
        Ok(())
    }

    /// Windows may have opened: what waits for them goes on.
    fn pump_open(&mut self) {
        let waits = |stream: &Stream| !stream.closed && stream.outgoing.queued > 0;
        let waiting = self.streams.all_mut().filter(|(_, stream)| waits(stream));
        let waiting: Vec<Key> = waiting.map(|(key, _)| key).collect();
        for key in waiting {
            self.pump_and_tell(key);
        }
    }

    /// What held a stream's data back does so no more: who waits for it to be out has to hear.
    pub(super) fn pump_and_tell(&mut self, key: Key) {
        self.pump(key);
        if let Some(stream) = self.streams.get_mut(key)
            && stream.outgoing.queued == 0
        {
            stream.wake();
        }
    }

    fn goaway(&mut self, last: u32, code: u32) {
        self.peer.going = true;
        if !self.is_server {
            let fault = Fault::GoAway { code, remote: true };
            for key in self.streams.above(last) {
                let ended = self.streams.get(key).is_some_and(|stream| stream.incoming.ended);
                self.ended_messages += u32::from(!ended);
                self.fail(key, fault, EndedBy::Peer);
            }
            for key in std::mem::take(&mut self.waiting) {
                self.fail(key, fault, EndedBy::Peer);
            }
        }
        self.wake();
    }

    fn window_update(&mut self, id: u32, more: u32) -> Result<(), Broken> {
        let more = i64::from(more);
        if id == 0 {
            if more == 0 {
                return Err(Broken::silent(Http2Fault::Codec));
            }
            self.send_window += more;
            if self.send_window > MAX_WINDOW {
                return Err(Broken::told(code::FLOW_CONTROL_ERROR));
            }
            self.pump_ready();
            return Ok(());
        }
        let Some(key) = self.streams.key_of(id) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        stream.outgoing.window += more;
        if more == 0 {
            return Err(Broken::silent(Http2Fault::Codec));
        }
        if stream.outgoing.window > MAX_WINDOW {
            let code = code::FLOW_CONTROL_ERROR;
            return self.stream_error(key, code, Fault::Reset { code, remote: false });
        }
        if stream.outgoing.queued > 0 {
            self.pump_and_tell(key);
        }
        Ok(())
    }
}
