//! What comes of a request before there is a connection to send it on: `Early`.

use std::collections::VecDeque;

use crate::codec::Frame;
use crate::hcm::frames::cost;

/// Frames in the order they came; `None` is the end.
#[derive(Debug, Default)]
pub(super) struct Early {
    frames: VecDeque<Option<Frame>>,
    held: usize,
}

impl Early {
    pub(super) fn push(&mut self, frame: Option<Frame>) {
        self.held += cost(frame.as_ref());
        self.frames.push_back(frame);
    }

    pub(super) fn pop(&mut self) -> Option<Option<Frame>> {
        let frame = self.frames.pop_front()?;
        self.held -= cost(frame.as_ref());
        Some(frame)
    }

    pub(super) fn front(&self) -> Option<&Option<Frame>> {
        self.frames.front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that the frames take up here, their places in the queue included.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn places_count_beside_payload() {
        let mut early = Early::default();
        for _ in 0..100 {
            early.push(Some(Frame::Data(Bytes::from_static(b"x"))));
        }
        early.push(None);
        assert!(early.held() >= 100 + 101 * size_of::<Option<Frame>>());
        assert!(matches!(early.front(), Some(Some(Frame::Data(_)))));
        while early.pop().is_some() {}
        assert_eq!(early.held(), 0);
        assert!(early.is_empty());
    }
}
