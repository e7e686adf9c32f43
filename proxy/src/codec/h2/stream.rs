//! The streams of a connection: what has come and is not taken, what is to go and may not yet, and by which
//! number which is found.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};

use crate::codec::Fault;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};

/// A place among the streams; its owner's until the owner gives it back.
pub(super) type Key = u32;

/// How the sent half ends, once its queue is empty.
#[derive(Debug, Default)]
pub(super) enum Ending {
    #[default]
    Open,
    End,
    Trailers(HeaderList),
    /// It has.
    Ended,
}

/// Body and trailers from the peer.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Heads of responses, in order.
    pub(super) heads: VecDeque<ResponseHead>,
    data: VecDeque<Bytes>,
    /// Small frames behind them, joined: a peer could send one byte a frame for all of a window.
    small: BytesMut,
    /// How many of them.
    small_frames: u32,
    pub(super) trailers: Option<HeaderList>,
    /// Bytes of data that were dropped with their stream, and how many frames they came in.
    pub(super) dropped: u32,
    pub(super) dropped_frames: u32,
    /// The peer has said all.
    pub(super) ended: bool,
    /// What the peer may still send.
    pub(super) window: i64,
    /// What was taken and has not been given back to the peer's window.
    pub(super) taken: u32,
    /// What `content-length` says is still to come.
    pub(super) length: Option<u64>,
    /// The final head of a response has come.
    pub(super) answered: bool,
    pub(super) informational: u8,
    /// Whatever the head of the response says: it has no body.
    pub(super) bodiless: bool,
    /// A success makes a tunnel of it, in which a length has no meaning (RFC 9113 §8.5).
    pub(super) tunnel: bool,
}

/// So many frames wait each by itself.
const SINGLE_FRAMES: usize = 8;

/// Small frames are joined up to this.
const JOINED_BYTES: usize = 16 * 1024;

impl Incoming {
    /// A frame's data.
    pub(super) fn add(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let joined = self.data.len() >= SINGLE_FRAMES && data.len() < JOINED_BYTES / 4;
        if joined && self.small.len() + data.len() <= JOINED_BYTES {
            self.small.extend_from_slice(&data);
            self.small_frames += 1;
            return;
        }
        if !self.small.is_empty() {
            self.data.push_back(self.small.split().freeze());
        }
        self.data.push_back(data);
    }

    /// The data that came first, and how many frames beyond one it came in, as far as is known.
    pub(super) fn next(&mut self) -> Option<(Bytes, u32)> {
        if let Some(data) = self.data.pop_front() {
            return Some((data, 0));
        }
        if self.small.is_empty() {
            return None;
        }
        let frames = std::mem::take(&mut self.small_frames);
        Some((std::mem::take(&mut self.small).freeze(), frames.saturating_sub(1)))
    }

    /// Bytes that nobody has taken.
    pub(super) fn unread(&self) -> usize {
        self.data.iter().map(Bytes::len).sum::<usize>() + self.small.len()
    }

    /// Drops what nobody has taken, and says how many bytes of data that was.
    pub(super) fn discard(&mut self) -> u32 {
        // What lacks a part never comes to its end.
        self.ended = self.is_taken();
        let unread = self.unread() as u32;
        self.dropped += unread;
        self.dropped_frames += self.data.len() as u32 + std::mem::take(&mut self.small_frames);
        self.data = VecDeque::new();
        self.small = BytesMut::new();
        self.trailers = None;
        unread
    }

    /// All of the message has come, and has been taken.
    pub(super) fn is_taken(&self) -> bool {
        self.ended && self.data.is_empty() && self.small.is_empty() && self.trailers.is_none()
    }
}

/// Body and trailers on their way to the peer.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    data: VecDeque<Bytes>,
    /// Small pieces behind them, joined.
    small: BytesMut,
    /// Bytes of both.
    pub(super) queued: usize,
    pub(super) ending: Ending,
    /// What the peer takes; below zero after a change of its settings.
    pub(super) window: i64,
    /// It has its place among those that wait for the connection.
    pub(super) is_ready: bool,
}

impl Outgoing {
    /// Puts data behind what waits. A piece that is alone is kept as it is.
    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let waits = self.queued > 0;
        self.queued += data.len();
        let is_small = waits && data.len() < JOINED_BYTES / 4;
        if is_small && self.small.len() + data.len() <= JOINED_BYTES {
            self.small.extend_from_slice(&data);
            return;
        }
        self.seal();
        if is_small {
            self.small.extend_from_slice(&data);
        } else {
            self.data.push_back(data);
        }
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.data.push_back(std::mem::take(&mut self.small).freeze());
        }
    }

    /// Takes as much of the first piece as there may be of it.
    pub(super) fn take(&mut self, most: usize) -> Option<Bytes> {
        if self.data.is_empty() {
            self.seal();
        }
        let front = self.data.front_mut()?;
        let length = front.len().min(most);
        if length == 0 {
            return None;
        }
        self.queued -= length;
        if length == front.len() { self.data.pop_front() } else { Some(front.split_to(length)) }
    }

    /// Drops what waits.
    pub(super) fn clear(&mut self) {
        (self.data, self.small, self.queued) = (VecDeque::new(), BytesMut::new(), 0);
    }

    /// Bytes that take up memory here.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.data.iter().map(Bytes::len).sum::<usize>()
            + self.data.capacity() * size_of::<Bytes>()
            + self.small.capacity()
    }
}

/// One stream. There is one waker for all that its owner waits for: it is polled from one task.
#[derive(Debug)]
pub(super) struct Stream {
    /// 0 while it waits for the peer to admit it.
    pub(super) id: u32,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    /// Why it cannot go on.
    pub(super) fault: Option<Fault>,
    /// Nothing of it comes or goes any more.
    pub(super) closed: bool,
    /// The request of a stream without number.
    pub(super) head: Option<Box<(RequestHead, bool)>>,
    waker: Option<Waker>,
    waits: bool,
}

impl Stream {
    pub(super) fn new(id: u32, receive: u32, send: i64) -> Self {
        Self {
            id,
            incoming: Incoming { window: i64::from(receive), ..Incoming::default() },
            outgoing: Outgoing { window: send, ..Outgoing::default() },
            fault: None,
            closed: false,
            head: None,
            waker: None,
            waits: false,
        }
    }

    /// Its owner wants to know of any change.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        self.waits = true;
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn wake(&mut self) {
        if std::mem::take(&mut self.waits)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }

    /// Whether our side has said all.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.outgoing.ending, Ending::Ended)
    }

    /// Drops what was not sent.
    pub(super) fn abandon(&mut self) {
        self.outgoing.clear();
        self.outgoing.ending = Ending::Ended;
    }
}

/// All of a connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Boxed: a place that is free costs a pointer, not a stream.
    slots: Vec<Option<Box<Stream>>>,
    free: Vec<Key>,
    /// Those that are not closed, by number.
    open: Vec<(u32, Key)>,
}

/// More places than these are given back when no stream is left.
const KEPT_SLOTS: usize = 16;

impl Streams {
    pub(super) fn insert(&mut self, stream: Stream) -> Key {
        let id = stream.id;
        let stream = Some(Box::new(stream));
        let key = match self.free.pop() {
            Some(key) => {
                self.slots[key as usize] = stream;
                key
            }
            None => {
                self.slots.push(stream);
                self.slots.len() as Key - 1
            }
        };
        if id != 0 {
            self.note_open(id, key);
        }
        key
    }

    /// The stream has its number.
    pub(super) fn note_open(&mut self, id: u32, key: Key) {
        // Numbers only grow.
        self.open.push((id, key));
    }

    /// The stream's number means nothing any more.
    pub(super) fn note_closed(&mut self, id: u32) {
        if let Ok(at) = self.position(id) {
            self.open.remove(at);
        }
    }

    /// Its owner is gone.
    pub(super) fn remove(&mut self, key: Key) -> Option<Box<Stream>> {
        let stream = self.slots.get_mut(key as usize)?.take()?;
        self.free.push(key);
        if self.free.len() == self.slots.len() && self.slots.capacity() > KEPT_SLOTS {
            let open = std::mem::take(&mut self.open);
            *self = Self { open, ..Self::default() };
        }
        Some(stream)
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&Stream> {
        self.slots.get(key as usize)?.as_deref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.slots.get_mut(key as usize)?.as_deref_mut()
    }

    /// The open stream of this number.
    pub(super) fn key_of(&self, id: u32) -> Option<Key> {
        self.position(id).ok().map(|at| self.open[at].1)
    }

    fn position(&self, id: u32) -> Result<usize, usize> {
        self.open.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// Streams that are not closed.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// The keys of those with a number above this.
    pub(super) fn above(&self, id: u32) -> Vec<Key> {
        self.open.iter().filter(|(open, _)| *open > id).map(|(_, key)| *key).collect()
    }

    /// Every stream that has an owner.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = (Key, &mut Stream)> {
        let slots = self.slots.iter_mut().enumerate();
        slots.filter_map(|(key, slot)| Some((key as Key, slot.as_deref_mut()?)))
    }

    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }
}

/// Streams that ended not long ago, and who ended them: frames of theirs may be on their way, or be a fault.
#[derive(Debug, Default)]
pub(super) struct Recent {
    ring: VecDeque<(u32, EndedBy)>,
    /// The highest number that is not kept any more.
    forgotten: u32,
}

/// Who said the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// We did, before the peer had said all: it may not know yet.
    Us,
    Peer,
}

impl Recent {
    const KEPT: usize = 64;

    pub(super) fn note(&mut self, id: u32, by: EndedBy) {
        if self.ring.len() == Self::KEPT
            && let Some((oldest, _)) = self.ring.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.ring.push_back((id, by));
    }

    /// Who ended it, which is not open; `None`: nobody had ever opened it.
    pub(super) fn find(&self, id: u32) -> Option<EndedBy> {
        let found = self.ring.iter().rev().find(|(recent, _)| *recent == id).map(|(_, by)| *by);
        // Of what is forgotten, only harm could be assumed.
        found.or((id <= self.forgotten).then_some(EndedBy::Us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_lost_a_part_has_no_end() {
        let mut cut = Incoming { ended: true, ..Incoming::default() };
        cut.add(Bytes::from_static(b"the rest"));
        assert_eq!(cut.discard(), 8);
        assert!(!cut.is_taken());
        let mut whole = Incoming { ended: true, ..Incoming::default() };
        assert_eq!(whole.discard(), 0);
        assert!(whole.is_taken());
    }
}
