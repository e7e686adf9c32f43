//! The bounded copy of a request's body that retries are made from. Large frames are shared, not copied.

use crate::codec::Frame;
use crate::codec::queue::FrameQueue;

/// What has been sent of a body.
#[derive(Debug, Default)]
pub struct Replay {
    frames: FrameQueue<()>,
    limit: usize,
    /// Nothing is kept any more, and nothing can be repeated.
    closed: bool,
}

impl Replay {
    /// `limit` in bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Keeps a frame; true when that is one too many and all are dropped: nothing can be repeated any more.
    pub fn push(&mut self, frame: &Frame) -> bool {
        if self.closed {
            return false;
        }
        self.frames.push(Some(frame.clone()), ());
        if self.frames.payload() > self.limit {
            self.close();
        }
        self.closed
    }

    /// Whether so many bytes more could still be kept.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.frames.payload() + bytes <= self.limit
    }

    /// Nothing is going to be repeated: a body that goes on for days must not pile up here.
    pub fn close(&mut self) {
        self.closed = true;
        self.frames.clear();
    }

    /// Every frame so far is here.
    pub fn is_whole(&self) -> bool {
        !self.closed
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What has been sent; small frames may have become one.
    pub fn frames(&mut self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn nothing_is_kept_once_it_is_closed() {
        let frame = Frame::Data(Bytes::from_static(&[0; 100]));
        let mut replay = Replay::new(150);
        assert!(!replay.push(&frame));
        replay.close();
        assert!(!replay.push(&frame) && !replay.push(&frame), "not one too many");
        assert!(replay.is_empty() && !replay.is_whole());
    }

    #[test]
    fn the_frame_beyond_the_limit_drops_all() {
        let frame = Frame::Data(Bytes::from_static(&[0; 100]));
        let mut replay = Replay::new(150);
        assert!(!replay.push(&frame) && replay.is_whole());
        assert!(replay.push(&frame) && !replay.push(&frame));
        assert!(replay.is_empty() && !replay.is_whole());
    }
}
