//! Frames that wait: `FrameQueue`. A body of one-byte frames takes up about as much memory here as its bytes: small
//! frames are joined into one growing buffer, which also lets go of the read buffers that they are slices of.
//! A frame that is alone is kept as it is, without a copy.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::Frame;

/// Larger frames are kept as they are: their place in the queue and the rest of their read buffer weigh little beside
/// their bytes.
const SMALL_BYTES: usize = 4 * 1024;
/// A joined buffer of this size is complete, so that growing never copies much.
const JOINED_BYTES: usize = 16 * 1024;

/// Frames in the order they came, each with a mark; `None` is the end. Only frames of one mark are joined.
#[derive(Debug)]
pub struct FrameQueue<M> {
    frames: VecDeque<(Option<Frame>, M)>,
    /// The bytes of the last frame, where it is one that still grows; its place in `frames` is empty then.
    tail: BytesMut,
    payload: usize,
}

impl<M> Default for FrameQueue<M> {
    fn default() -> Self {
        Self { frames: VecDeque::new(), tail: BytesMut::new(), payload: 0 }
    }
}

impl<M: PartialEq> FrameQueue<M> {
    /// Puts a frame behind the others.
    pub fn push(&mut self, frame: Option<Frame>, mark: M) {
        self.payload += payload(frame.as_ref());
        if let Some(Frame::Data(data)) = &frame
            && data.len() <= SMALL_BYTES
            && self.join(data, &mark)
        {
            return;
        }
        self.seal();
        self.frames.push_back((frame, mark));
    }

    /// Puts a frame before the others.
    pub fn push_front(&mut self, frame: Option<Frame>, mark: M) {
        self.payload += payload(frame.as_ref());
        self.frames.push_front((frame, mark));
    }

    /// Appends to the last frame, if that is a small one too; whether it was.
    fn join(&mut self, data: &Bytes, mark: &M) -> bool {
        let Some((Some(Frame::Data(last)), of_last)) = self.frames.back_mut() else { return false };
        if of_last != mark || last.len() > SMALL_BYTES {
            return false;
        }
        if !last.is_empty() {
            self.tail.extend_from_slice(&std::mem::take(last));
        }
        self.tail.extend_from_slice(data);
        if self.tail.len() >= JOINED_BYTES {
            self.seal();
        }
        true
    }

    /// Makes the growing bytes the frame that they are.
    fn seal(&mut self) {
        if let Some((Some(Frame::Data(last)), _)) = self.frames.back_mut()
            && !self.tail.is_empty()
        {
            *last = std::mem::take(&mut self.tail).freeze();
        }
    }

    /// Takes the first frame.
    pub fn pop(&mut self) -> Option<(Option<Frame>, M)> {
        if self.frames.len() == 1 {
            self.seal();
        }
        let first = self.frames.pop_front()?;
        self.payload -= payload(first.0.as_ref());
        Some(first)
    }

    /// Every frame, in order.
    pub fn iter(&mut self) -> impl Iterator<Item = &Option<Frame>> {
        self.seal();
        self.frames.iter().map(|(frame, _)| frame)
    }

    /// The first thing here is the end.
    pub fn is_at_end(&self) -> bool {
        matches!(self.frames.front(), Some((None, _)))
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops all frames.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes of data here: what Envoy's limits are about.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Bytes that the frames take up here, their places in the queue included.
    pub fn held(&self) -> usize {
        self.payload + self.frames.len() * size_of::<(Option<Frame>, M)>()
    }
}

fn payload(frame: Option<&Frame>) -> usize {
    match frame {
        Some(Frame::Data(data)) => data.len(),
        Some(Frame::Trailers(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::head::HeaderList;

    fn data(bytes: &'static [u8]) -> Option<Frame> {
        Some(Frame::Data(Bytes::from_static(bytes)))
    }

    fn drain(queue: &mut FrameQueue<u8>) -> Vec<(usize, u8)> {
        let mut frames = Vec::new();
        while let Some((frame, mark)) = queue.pop() {
            frames.push((payload(frame.as_ref()), mark));
        }
        frames
    }

    #[test]
    fn a_megabyte_of_single_bytes_is_held_as_a_megabyte() {
        let mut queue = FrameQueue::default();
        let read = Bytes::from(vec![7; READ]);
        for i in 0..MANY {
            queue.push(Some(Frame::Data(read.slice(i % READ..i % READ + 1))), 0);
        }
        queue.push(None, 0);
        assert_eq!(queue.payload(), MANY);
        assert!(queue.held() < MANY + MANY / 100, "{} bytes", queue.held());
        assert_eq!(queue.frames.len(), MANY / JOINED_BYTES + 1);
        let room: usize = queue.frames.capacity() * size_of::<(Option<Frame>, u8)>();
        assert!(room < MANY / 100, "{room} bytes of places");
        let bytes: usize = drain(&mut queue).iter().map(|(len, _)| len).sum();
        assert_eq!((bytes, queue.held()), (MANY, 0));
        // None of them keeps the buffer that it came in.
        assert!(read.is_unique());
    }

    const READ: usize = 16 * 1024;
    const MANY: usize = 1 << 20;

    #[test]
    fn frames_keep_their_order_and_marks() {
        let mut queue = FrameQueue::default();
        let large: &[u8] = &[0; SMALL_BYTES + 1];
        for (frame, mark) in [
            (data(b"ab"), 0),
            (data(b"c"), 0),
            (data(b"d"), 1),
            (Some(Frame::Data(Bytes::copy_from_slice(large))), 1),
            (data(b"e"), 1),
            (data(b""), 1),
            (data(b"f"), 1),
            (Some(Frame::Trailers(HeaderList::default())), 1),
            (None, 1),
        ] {
            queue.push(frame, mark);
        }
        assert!(!queue.is_at_end());
        assert_eq!(queue.iter().count(), 6);
        let last = queue.frames.get(3).cloned();
        assert!(matches!(last, Some((Some(Frame::Data(ef)), 1)) if ef == "ef"));
        let sizes = [(3, 0), (1, 1), (large.len(), 1), (2, 1), (0, 1), (0, 1)];
        assert_eq!(drain(&mut queue), sizes);
    }

    #[test]
    fn a_frame_alone_is_not_copied_and_one_taken_while_it_grows_is_whole() {
        let mut queue = FrameQueue::default();
        let bytes = Bytes::from(vec![1, 2]);
        queue.push(Some(Frame::Data(bytes.clone())), ());
        let Some((Some(Frame::Data(alone)), ())) = queue.pop() else { panic!("no data") };
        assert_eq!(alone.as_ptr(), bytes.as_ptr());
        queue.push(data(b"a"), ());
        queue.push(data(b"b"), ());
        assert!(matches!(queue.pop(), Some((Some(Frame::Data(ab)), ())) if ab == "ab"));
        queue.push(None, ());
        queue.push_front(data(b"c"), ());
        assert!(matches!(queue.pop(), Some((Some(Frame::Data(c)), ())) if c == "c"));
        assert!(queue.is_at_end());
        queue.clear();
        assert!(queue.is_empty());
    }
}
