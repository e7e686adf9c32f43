//! The headers of the frames that the crate h2 writes: resets are counted, and a GOAWAY that says
//! that the peer broke the protocol is kept back, since the connection's owner has to know of it first; so is a
//! reset that says it of a request, unless the request alone is to end.

use std::io::IoSlice;

use super::frame::{HEADER_BYTES, Header, code, kind};
use super::shared::Shared;

/// A frame header and what of the payload of RST_STREAM and GOAWAY counts.
const HEAD_BYTES: usize = HEADER_BYTES + 8;

/// A GOAWAY with one of these codes is the owner's, or about a flood.
const TOLD: [u32; 2] = [code::NO_ERROR, code::ENHANCE_YOUR_CALM];

/// A frame that does not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    GoAway { last_stream: u32, code: u32 },
    Refused { stream: u32 },
}

/// Where in which frame the writing is. Small, since it is copied for each write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outbound {
    skip: u32,
    head: [u8; HEAD_BYTES],
    len: u8,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { skip: 0, head: [0; HEAD_BYTES], len: 0 }
    }
}

impl Outbound {
    /// For the client's end, whose preface comes first.
    pub(super) fn behind_preface() -> Self {
        Self { skip: 24, ..Self::default() }
    }

    /// Goes over at most `limit` bytes; `Err` has the offset of a frame that is to stop and what it is.
    pub(super) fn scan(
        &mut self,
        slices: &[IoSlice<'_>],
        limit: usize,
        shared: &Shared,
        resets: &mut u32,
    ) -> Result<(), (usize, Stop)> {
        let mut offset = 0;
        for slice in slices {
            let mut rest = &slice[..slice.len().min(limit - offset)];
            while !rest.is_empty() {
                if self.skip > 0 {
                    let n = (self.skip as usize).min(rest.len());
                    self.skip -= n as u32;
                    offset += n;
                    rest = &rest[n..];
                    continue;
                }
                let wanted = self.wanted() - usize::from(self.len);
                let n = wanted.min(rest.len());
                let at = usize::from(self.len);
                self.head[at..at + n].copy_from_slice(&rest[..n]);
                self.len += n as u8;
                offset += n;
                rest = &rest[n..];
                if usize::from(self.len) < self.wanted() {
                    continue;
                }
                let start = offset.checked_sub(usize::from(self.len));
                if let Some(stop) = self.frame(shared, resets)
                    && let Some(start) = start
                {
                    return Err((start, stop));
                }
            }
        }
        Ok(())
    }

    /// Bytes of the frame's head that are wanted, as far as is known.
    fn wanted(&self) -> usize {
        if usize::from(self.len) < HEADER_BYTES {
            return HEADER_BYTES;
        }
        match self.head[3] {
            kind::RST_STREAM => HEADER_BYTES + 4,
            kind::GOAWAY => HEADER_BYTES + 8,
            _ => HEADER_BYTES,
        }
    }

    fn word(&self, at: usize) -> u32 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.head[at + i]);
        u32::from_be_bytes([a, b, c, d])
    }

    /// A head is whole.
    fn frame(&mut self, shared: &Shared, resets: &mut u32) -> Option<Stop> {
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&self.head[..HEADER_BYTES]);
        let header = Header::parse(bytes);
        let beyond = u32::from(self.len) - HEADER_BYTES as u32;
        self.skip = header.length.saturating_sub(beyond);
        self.len = 0;
        match header.kind {
            kind::RST_STREAM => {
                let refused = self.word(HEADER_BYTES) == code::PROTOCOL_ERROR
                    && is_refusal(header.stream, shared);
                if refused && !shared.stream_errors {
                    return Some(Stop::Refused { stream: header.stream });
                }
                if refused {
                    shared.refused.set(Some(header.stream));
                }
                *resets += 1;
            }
            kind::GOAWAY if !TOLD.contains(&self.word(HEADER_BYTES + 4)) => {
                let (last_stream, code) = (self.word(HEADER_BYTES), self.word(HEADER_BYTES + 4));
                return Some(Stop::GoAway { last_stream, code });
            }
            _ => {}
        }
        None
    }
}

/// Whether a reset is for the head or the trailers that were just given to the crate h2.
fn is_refusal(stream: u32, shared: &Shared) -> bool {
    shared.is_server && shared.gate.get().is_some_and(|gate| gate.stream == stream)
}
