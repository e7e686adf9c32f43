//! How much of what costs us more than it costs the peer one connection may bring (FAULTS D1 to D6), counted
//! as Envoy counts it.

use tokio::time::Instant;

use super::Settings;
use super::frame::{Header, flag, kind};
use crate::stats::names::Http2Stat;

/// Frames of which there were too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    Priority,
    WindowUpdate,
    /// Frames without payload, one after the other.
    Empty,
    /// Answers to PING and SETTINGS that the peer does not take.
    Control,
    /// Frames of any kind that the peer does not take.
    Outbound,
    /// Streams that have to be reset.
    Resets,
}

impl Flood {
    pub(super) fn stat(self) -> Option<Http2Stat> {
        match self {
            Self::Priority => Some(Http2Stat::InboundPriorityFramesFlood),
            Self::WindowUpdate => Some(Http2Stat::InboundWindowUpdateFramesFlood),
            Self::Empty => Some(Http2Stat::InboundEmptyFramesFlood),
            Self::Control => Some(Http2Stat::OutboundControlFlood),
            Self::Outbound => Some(Http2Stat::OutboundFlood),
            Self::Resets => None,
        }
    }
}

/// Streams that we had to reset for what their peer did (CVE-2025-8671), above which a connection is closed where they
/// are more than half of its streams.
const MAX_STREAM_ERRORS: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Budget {
    priority_per_stream: u32,
    window_updates_per_data: u32,
    max_empty: u32,
    priority: u64,
    window_updates: u64,
    empty: u32,
    /// DATA and header frames.
    messages: u64,
    /// DATA frames sent: each may be answered by window updates.
    pub(super) data_sent: u64,
    /// Streams that the peer has opened (server), or we have (client).
    pub(super) opened: u32,
    stream_errors: u32,
    control: ControlBudget,
}

impl Budget {
    pub(super) fn new(settings: &Settings) -> Self {
        let options = &settings.options;
        Self {
            priority_per_stream: options.max_inbound_priority_frames_per_stream,
            window_updates_per_data: options.max_inbound_window_update_frames_per_data_frame_sent,
            max_empty: options.max_consecutive_inbound_frames_with_empty_payload,
            priority: 0,
            window_updates: 0,
            empty: 0,
            messages: 0,
            data_sent: 0,
            opened: 0,
            stream_errors: 0,
            control: ControlBudget::new(options.max_outbound_control_frames),
        }
    }

    /// Takes a frame of the peer into account.
    pub(super) fn count(&mut self, header: Header) -> Result<(), Flood> {
        let streams = u64::from(self.opened);
        match header.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => {
                // Padding is no payload, but a frame with padding costs its sender as much as one with payload.
                self.messages += 1;
                let ends = header.kind != kind::CONTINUATION && header.has(flag::END_STREAM);
                self.empty = if header.length > 0 || ends { 0 } else { self.empty + 1 };
                if self.empty > self.max_empty {
                    return Err(Flood::Empty);
                }
            }
            kind::PING | kind::SETTINGS
                if !header.has(flag::ACK)
                    && self.control.is_spent_by(self.data_sent + self.messages) =>
            {
                return Err(Flood::Control);
            }
            kind::PRIORITY => {
                self.priority += 1;
                if self.priority > u64::from(self.priority_per_stream) * (1 + streams) {
                    return Err(Flood::Priority);
                }
            }
            kind::WINDOW_UPDATE => {
                self.window_updates += 1;
                let earned = streams + u64::from(self.window_updates_per_data) * self.data_sent;
                if self.window_updates > 5 + 2 * earned {
                    return Err(Flood::WindowUpdate);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A stream ends because its peer broke a rule.
    pub(super) fn count_stream_error(&mut self) -> Result<(), Flood> {
        self.stream_errors += 1;
        let many = self.stream_errors > MAX_STREAM_ERRORS.max(self.opened / 2);
        if many { Err(Flood::Resets) } else { Ok(()) }
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
