//! The bounded copy of a request's body that retries and mirrors are made from. Frames are shared, not copied.

use bytes::Bytes;

use crate::codec::Frame;

/// What has been sent of a body.
#[derive(Debug, Default)]
pub struct Replay {
    frames: Vec<Frame>,
    bytes: usize,
    limit: usize,
    overflowed: bool,
}

impl Replay {
    /// `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Keeps a frame; true when that is one too many and all are dropped: nothing can be repeated any more.
    pub fn push(&mut self, frame: &Frame) -> bool {
        if self.overflowed {
            return false;
        }
        if let Frame::Data(data) = frame {
            self.bytes += data.len();
        }
        if self.bytes > self.limit {
            self.overflowed = true;
            self.frames = Vec::new();
            return true;
        }
        self.frames.push(frame.clone());
        false
    }

    /// Every frame so far is here.
    pub fn is_whole(&self) -> bool {
        !self.overflowed
    }

    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// All data as one piece, for a mirror.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes kept.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The frames' data, shared.
    pub fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().filter_map(|f| match f {
            Frame::Data(data) => Some(data),
            Frame::Trailers(_) => None,
        })
    }
}
