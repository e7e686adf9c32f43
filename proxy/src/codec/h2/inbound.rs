//! The headers of the peer's frames on their way to the crate h2, which answers floods of control frames for
//! ever (FAULTS D5, D6), has one code for everything that it cannot read, and shows none of them.
//!
//! A server's bytes are cut behind each header block: what the crate makes of it is then told from what it makes
//! of anything behind it.

use tokio::time::Instant;

use super::Settings;
use super::frame::{HEADER_BYTES, Header, code, flag, kind};
use super::shared::{Culprit, Flood, Gate, Pong, Shared};

const PREFACE_BYTES: u32 = 24;

/// What the crate h2 lets the peer send (RFC 9113 §4.2).
const MAX_FRAME_BYTES: u32 = 16_384;

/// The payload of the PING that the crate h2 sends between the two GOAWAY frames of a drain.
const SHUTDOWN_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// Limits that depend on configuration (`Http2ProtocolOptions`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Budgets {
    priority_per_stream: u32,
    window_updates_per_data: u32,
    empty_frames: u32,
    control_frames: u32,
}

impl Budgets {
    pub(super) fn new(settings: &Settings) -> Self {
        let options = &settings.options;
        Self {
            priority_per_stream: options.max_inbound_priority_frames_per_stream,
            window_updates_per_data: options.max_inbound_window_update_frames_per_data_frame_sent,
            empty_frames: options.max_consecutive_inbound_frames_with_empty_payload,
            control_frames: options.max_outbound_control_frames,
        }
    }
}

/// Bytes that were inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    All,
    /// The block that ends here is to be looked at first.
    Gate(usize),
    /// A PONG from here on, of 17 bytes, is not to be given out.
    Pong(usize),
}

#[derive(Debug)]
pub(super) struct Inbound {
    is_server: bool,
    budgets: Budgets,
    /// Bytes of the current frame's payload (or the preface) still to come.
    skip: u32,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// The frame whose payload comes.
    current: Option<Header>,
    /// The stream whose header block is open.
    open_block: Option<Gate>,
    newest: u32,
    priority: u64,
    window_updates: u64,
    empty: u32,
    /// DATA and header frames.
    messages: u64,
    control: ControlBudget,
}

impl Inbound {
    pub(super) fn new(is_server: bool, budgets: Budgets) -> Self {
        Self {
            is_server,
            budgets,
            skip: if is_server { PREFACE_BYTES } else { 0 },
            header: [0; HEADER_BYTES],
            header_len: 0,
            current: None,
            open_block: None,
            newest: 0,
            priority: 0,
            window_updates: 0,
            empty: 0,
            messages: 0,
            control: ControlBudget::new(budgets.control_frames),
        }
    }

    /// Between two frames.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.skip == 0 && self.header_len == 0
    }

    /// Goes over bytes just read.
    pub(super) fn inspect(&mut self, bytes: &[u8], shared: &Shared) -> Seen {
        let mut at = 0;
        while at < bytes.len() {
            if self.skip > 0 {
                let n = (self.skip as usize).min(bytes.len() - at);
                self.payload(&bytes[at..at + n], shared);
                self.skip -= n as u32;
                at += n;
            } else {
                if self.header_len == 0 && is_shutdown_pong(&bytes[at..], shared) {
                    return Seen::Pong(at);
                }
                let n = (HEADER_BYTES - self.header_len).min(bytes.len() - at);
                self.header[self.header_len..self.header_len + n]
                    .copy_from_slice(&bytes[at..at + n]);
                self.header_len += n;
                at += n;
                if self.header_len < HEADER_BYTES {
                    break;
                }
                self.header_len = 0;
                let header = Header::parse(self.header);
                self.skip = header.length;
                self.begin(header, shared);
            }
            if self.skip == 0
                && let Some(header) = self.current.take()
                && self.end(header, shared)
            {
                return Seen::Gate(at);
            }
        }
        Seen::All
    }

    fn begin(&mut self, header: Header, shared: &Shared) {
        self.current = Some(header);
        shared.last_kind.set(header.kind);
        if let Some(culprit) = self.fault(header) {
            shared.accuse(culprit);
        }
        self.count(header, shared);
        match header.kind {
            kind::DATA | kind::HEADERS if header.has(flag::END_STREAM) => {
                shared.ended.set(shared.ended.get() + 1);
                if header.kind == kind::DATA || header.stream > self.newest {
                    shared.last_ended.set(header.stream);
                }
            }
            kind::RST_STREAM => shared.ended.set(shared.ended.get() + 1),
            kind::GOAWAY => shared.goaway.set(true),
            _ => {}
        }
        if header.kind == kind::SETTINGS {
            shared.block.borrow_mut().clear();
        }
        if header.kind == kind::HEADERS && shared.culprit.get().is_none() {
            let opens = self.is_server && header.stream > self.newest;
            let ends = header.has(flag::END_STREAM);
            self.open_block = Some(Gate { stream: header.stream, opens, ends });
            self.newest = self.newest.max(header.stream);
            shared.block.borrow_mut().clear();
            shared.open_head.set(opens.then_some(header.stream));
        }
    }

    fn payload(&mut self, bytes: &[u8], shared: &Shared) {
        let Some(header) = self.current else { return };
        if matches!(header.kind, kind::DATA | kind::HEADERS)
            && header.has(flag::PADDED)
            && self.skip == header.length
            && bytes.first().is_some_and(|pad| u32::from(*pad) >= header.length)
        {
            shared.accuse(Culprit::Code(code::PROTOCOL_ERROR));
        }
        let kept = match header.kind {
            kind::HEADERS | kind::CONTINUATION => self.is_server,
            kind => kind == kind::SETTINGS,
        };
        if !kept {
            return;
        }
        shared.block.borrow_mut().push(bytes);
    }

    /// A frame is whole; whether the crate h2 has to be asked about it.
    fn end(&mut self, header: Header, shared: &Shared) -> bool {
        if header.kind == kind::SETTINGS && asks_for_too_much(shared.block.borrow().beginning()) {
            shared.accuse(Culprit::Code(code::FLOW_CONTROL_ERROR));
        }
        if header.kind == kind::HEADERS
            && self.is_server
            && (header.has(flag::PADDED) || header.has(flag::PRIORITY))
        {
            let mut block = shared.block.borrow_mut();
            block.strip(header.has(flag::PADDED), header.has(flag::PRIORITY));
        }
        if !matches!(header.kind, kind::HEADERS | kind::CONTINUATION)
            || !header.has(flag::END_HEADERS)
        {
            return false;
        }
        let Some(gate) = self.open_block.take() else { return false };
        if !self.is_server {
            return false;
        }
        shared.open_head.set(None);
        shared.gate.set(Some(gate));
        true
    }

    /// What no peer may send, where the frame's header shows it, and what Envoy makes of it.
    fn fault(&self, header: Header) -> Option<Culprit> {
        let Header { length, kind, stream, .. } = header;
        if let Some(open) = self.open_block
            && (kind != kind::CONTINUATION || stream != open.stream)
        {
            return Some(Culprit::Code(code::PROTOCOL_ERROR));
        }
        let size = match kind {
            kind::PING => length != 8,
            kind::PRIORITY => length != 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => length != 4,
            kind::SETTINGS => length % 6 != 0 || header.has(flag::ACK) && length != 0,
            _ => length > MAX_FRAME_BYTES,
        };
        if size {
            return Some(Culprit::Code(code::FRAME_SIZE_ERROR));
        }
        let idle = stream == 0 || self.is_server && stream > self.newest;
        match kind {
            kind::DATA if idle => Some(Culprit::Code(code::PROTOCOL_ERROR)),
            kind::CONTINUATION if self.open_block.is_none() => {
                Some(Culprit::Code(code::PROTOCOL_ERROR))
            }
            kind::HEADERS if stream == 0 || self.is_server && stream.is_multiple_of(2) => {
                Some(Culprit::Silent)
            }
            kind::PING | kind::SETTINGS | kind::GOAWAY if stream != 0 => Some(Culprit::Silent),
            kind::RST_STREAM if idle => Some(Culprit::Silent),
            kind::WINDOW_UPDATE if idle && stream != 0 => Some(Culprit::Silent),
            kind::PUSH_PROMISE => Some(Culprit::Code(code::PROTOCOL_ERROR)),
            _ => None,
        }
    }

    /// Envoy's limits, counted as it does.
    fn count(&mut self, header: Header, shared: &Shared) {
        let streams = u64::from(shared.opened.get());
        match header.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => {
                // Padding is no payload, but a frame with padding costs its sender as much as one with payload.
                self.messages += 1;
                let ends = header.kind != kind::CONTINUATION && header.has(flag::END_STREAM);
                self.empty = if header.length > 0 || ends { 0 } else { self.empty + 1 };
                if self.empty > self.budgets.empty_frames {
                    shared.flood(Flood::Empty);
                }
            }
            kind::PING | kind::SETTINGS
                if !header.has(flag::ACK)
                    && self.control.is_spent_by(shared.data_sent.get() + self.messages) =>
            {
                shared.flood(Flood::Control);
            }
            kind::PRIORITY => {
                self.priority += 1;
                if self.priority > u64::from(self.budgets.priority_per_stream) * (1 + streams) {
                    shared.flood(Flood::Priority);
                }
            }
            kind::WINDOW_UPDATE => {
                self.window_updates += 1;
                let data = shared.data_sent.get();
                let earned = streams + u64::from(self.budgets.window_updates_per_data) * data;
                if self.window_updates > 5 + 2 * earned {
                    shared.flood(Flood::WindowUpdate);
                }
            }
            _ => {}
        }
    }
}

/// PING and SETTINGS, each of which has to be answered. Kernel buffers hide whether a peer takes the answers, so
/// what counts is whether its messages explain them: gRPC sends a PING for DATA that it got, at most.
#[derive(Debug)]
struct ControlBudget {
    burst: u32,
    tokens: f64,
    at: Option<Instant>,
    explained: u64,
}

impl ControlBudget {
    /// Earned back without any message, so that keepalive PINGs never add up to a flood.
    const PER_SECOND: f64 = 10.0;

    fn new(burst: u32) -> Self {
        Self { burst, tokens: f64::from(burst), at: None, explained: 0 }
    }

    /// Takes one; `messages` is the number of frames so far that explain some.
    fn is_spent_by(&mut self, messages: u64) -> bool {
        let now = Instant::now();
        let idle = self.at.replace(now).map_or(0.0, |at| (now - at).as_secs_f64());
        let new = messages.saturating_sub(std::mem::replace(&mut self.explained, messages));
        let earned = idle * Self::PER_SECOND + new as f64;
        self.tokens = (self.tokens + earned).min(f64::from(self.burst)) - 1.0;
        self.tokens < 0.0
    }
}

/// A window of more than 2^31-1 in a SETTINGS frame (RFC 9113 §6.5.2).
fn asks_for_too_much(settings: &[u8]) -> bool {
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    settings.chunks_exact(6).any(|one| one[..2] == INITIAL_WINDOW_SIZE && one[2] & 0x80 != 0)
}

fn is_shutdown_pong(bytes: &[u8], shared: &Shared) -> bool {
    shared.pong.get() == Pong::Hold
        && bytes.len() >= HEADER_BYTES + SHUTDOWN_PING.len()
        && bytes[..5] == [0, 0, 8, kind::PING, flag::ACK]
        && bytes[HEADER_BYTES..HEADER_BYTES + SHUTDOWN_PING.len()] == SHUTDOWN_PING
}

/// The PONG that was held back.
pub(super) fn shutdown_pong() -> [u8; 17] {
    let mut frame = [0; 17];
    frame[2..5].copy_from_slice(&[8, kind::PING, flag::ACK]);
    frame[HEADER_BYTES..].copy_from_slice(&SHUTDOWN_PING);
    frame
}
