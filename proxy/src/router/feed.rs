//! What a mirror has still to send of its request: the request's stream puts it in, the mirror's task takes it out.
//!
//! The request waits where a mirror has as much before it as may be buffered, as in Envoy; the mirror sees to it that
//! this has an end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::codec::Frame;
use crate::codec::queue::FrameQueue;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The request goes on.
    Open,
    /// All of it is here.
    Complete,
    /// It ended before it was complete.
    Cancelled,
    /// The mirror takes no more.
    Closed,
}

/// See the module.
pub(super) struct Feed {
    frames: RefCell<FrameQueue<()>>,
    state: Cell<State>,
    /// In bytes.
    limit: usize,
    mirror: Cell<Option<Waker>>,
    /// Of the request, where it waits for room.
    request: Cell<Option<Waker>>,
}

impl Feed {
    pub(super) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            frames: RefCell::default(),
            state: Cell::new(State::Open),
            limit,
            mirror: Cell::default(),
            request: Cell::default(),
        })
    }

    /// The next frame of the request; `None` is its end.
    pub(super) fn push(&self, frame: Option<Frame>) {
        if self.state.get() != State::Open {
            return;
        }
        if frame.is_none() {
            self.state.set(State::Complete);
        }
        self.frames.borrow_mut().push(frame, ());
        wake(&self.mirror);
    }

    /// Whether it takes more; otherwise the request is woken when it does.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> bool {
        if self.state.get() != State::Open || self.has_room() {
            return true;
        }
        self.request.set(Some(cx.waker().clone()));
        wake(&self.mirror);
        false
    }

    fn has_room(&self) -> bool {
        self.frames.borrow().held() < self.limit
    }

    /// The request has ended; a mirror of one that was not complete ends with it.
    pub(super) fn cancel(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Cancelled);
            wake(&self.mirror);
        }
    }

    /// The mirror is woken by what comes.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        self.mirror.set(Some(cx.waker().clone()));
    }

    pub(super) fn is_complete(&self) -> bool {
        self.state.get() == State::Complete
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.state.get() == State::Cancelled
    }

    /// The request waits for the mirror.
    pub(super) fn holds_back(&self) -> bool {
        let request = self.request.take();
        let holds_back = request.is_some();
        self.request.set(request);
        holds_back
    }

    /// In bytes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// What comes next; the inner `None` is the end.
    pub(super) fn pop(&self) -> Option<Option<Frame>> {
        let (frame, ()) = self.frames.borrow_mut().pop()?;
        if self.has_room() {
            wake(&self.request);
        }
        Some(frame)
    }

    /// Whether nothing but the end is left, which is taken then.
    pub(super) fn take_end(&self) -> bool {
        let mut frames = self.frames.borrow_mut();
        let end = frames.is_at_end();
        if end {
            frames.pop();
        }
        end
    }

    /// The mirror takes no more.
    pub(super) fn close(&self) {
        self.state.set(State::Closed);
        self.frames.borrow_mut().clear();
        wake(&self.request);
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn data(bytes: &'static [u8]) -> Option<Frame> {
        Some(Frame::Data(Bytes::from_static(bytes)))
    }

    #[test]
    fn a_request_waits_for_room_and_for_no_mirror_that_is_gone() {
        let cx = Context::from_waker(Waker::noop());
        let feed = Feed::new(100);
        assert!(feed.poll_room(&cx));
        feed.push(data(&[0; 100]));
        assert!(!feed.poll_room(&cx) && feed.holds_back());
        assert!(feed.pop().is_some() && !feed.holds_back() && feed.poll_room(&cx));
        feed.push(data(&[0; 100]));
        assert!(!feed.poll_room(&cx));
        feed.close();
        assert!(feed.poll_room(&cx) && !feed.holds_back());
        feed.push(data(b"a"));
        assert!(feed.pop().is_none());
    }

    #[test]
    fn only_a_request_that_was_not_complete_takes_its_mirror_along() {
        let feed = Feed::new(100);
        feed.push(data(b"a"));
        feed.push(None);
        feed.cancel();
        assert!(feed.is_complete() && !feed.is_cancelled() && !feed.take_end());
        assert!(matches!(feed.pop(), Some(Some(Frame::Data(_)))) && feed.take_end());
        let feed = Feed::new(100);
        feed.push(data(b"a"));
        feed.cancel();
        assert!(feed.is_cancelled());
    }
}
