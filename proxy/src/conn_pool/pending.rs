//! Requests that wait for a connection, first come, first served.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::PoolFailure;

/// One waiting request.
struct Waiter<T> {
    outcome: Cell<Option<Result<T, PoolFailure>>>,
    waker: Cell<Option<Waker>>,
}

impl<T> Waiter<T> {
    fn deliver(&self, outcome: Result<T, PoolFailure>) {
        self.outcome.set(Some(outcome));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The queue of one pool; `T` is what a waiter gets.
pub(super) struct PendingQueue<T>(RefCell<VecDeque<Rc<Waiter<T>>>>);

impl<T> Default for PendingQueue<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> fmt::Debug for PendingQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingQueue({})", self.len())
    }
}

impl<T> PendingQueue<T> {
    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Joins the queue.
    pub(super) fn join(&self) -> Ticket<'_, T> {
        let waiter = Rc::new(Waiter { outcome: Cell::new(None), waker: Cell::new(None) });
        self.0.borrow_mut().push_back(waiter.clone());
        Ticket { queue: self, waiter }
    }

    /// Gives to the first in the queue; back to the caller where nobody waits.
    pub(super) fn serve(&self, value: T) -> Result<(), T> {
        let first = self.0.borrow_mut().pop_front();
        match first {
            Some(waiter) => {
                waiter.deliver(Ok(value));
                Ok(())
            }
            None => Err(value),
        }
    }

    /// Fails all that wait; how many.
    pub(super) fn fail_all(&self, failure: &PoolFailure) -> usize {
        let waiters = std::mem::take(&mut *self.0.borrow_mut());
        let count = waiters.len();
        for waiter in waiters {
            waiter.deliver(Err(failure.clone()));
        }
        count
    }
}

/// A place in the queue.
pub(super) struct Ticket<'a, T> {
    queue: &'a PendingQueue<T>,
    waiter: Rc<Waiter<T>>,
}

impl<T> Ticket<'_, T> {
    /// Waits for the outcome. Cancel-safe: it stays in the ticket.
    pub(super) async fn outcome(&self) -> Result<T, PoolFailure> {
        poll_fn(|cx| match self.waiter.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                self.waiter.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    /// Leaves the queue.
    pub(super) fn leave(&self) -> Left<T> {
        if let Some(outcome) = self.waiter.outcome.take() {
            return Left::Served(outcome);
        }
        let mut queue = self.queue.0.borrow_mut();
        let before = queue.len();
        queue.retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        if queue.len() < before { Left::Waiting } else { Left::Done }
    }
}

/// How a place in the queue was left.
pub(super) enum Left<T> {
    /// An outcome had come that nobody took.
    Served(Result<T, PoolFailure>),
    /// Still in the queue: the request was given up.
    Waiting,
    /// Its outcome had been taken.
    Done,
}
