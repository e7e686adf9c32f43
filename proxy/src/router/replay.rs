//! The bounded copy of a request's body that retries and mirrors are made from. Large frames are shared, not copied.

use crate::codec::Frame;
use crate::codec::queue::FrameQueue;

/// What has been sent of a body.
#[derive(Debug, Default)]
pub struct Replay {
    frames: FrameQueue<()>,
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
        self.frames.push(Some(frame.clone()), ());
        self.overflowed = self.frames.payload() > self.limit;
        if self.overflowed {
            self.frames.clear();
        }
        self.overflowed
    }

    /// Every frame so far is here.
    pub fn is_whole(&self) -> bool {
        !self.overflowed
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What has been sent; small frames may have become one.
    pub fn frames(&mut self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().flatten()
    }
}
