//! An in-memory connection: two bounded pipes; and listeners for them, by name. All of it lives on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustc_hash::FxHashMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;

/// Bytes that a direction of a connection to a listener holds.
const CAPACITY: usize = 64 * 1024;

thread_local! {
    static LISTENERS: RefCell<FxHashMap<Arc<str>, Rc<RefCell<Backlog>>>> = RefCell::default();
}

/// Connections that a listener has not taken yet.
#[derive(Debug, Default)]
struct Backlog {
    waiting: VecDeque<MemoryStream>,
    acceptor: Option<Waker>,
}

/// Takes the connections to `Address::Internal(name)` of its thread, until it is dropped.
#[derive(Debug)]
pub struct MemoryListener {
    name: Arc<str>,
    backlog: Rc<RefCell<Backlog>>,
}

impl MemoryListener {
    /// Takes the place of an earlier listener of the same name.
    pub fn bind(name: &str) -> Self {
        let (name, backlog): (Arc<str>, _) = (name.into(), Rc::default());
        LISTENERS.with_borrow_mut(|all| all.insert(name.clone(), Rc::clone(&backlog)));
        Self { name, backlog }
    }

    /// The next connection. Cancel-safe.
    pub async fn accept(&self) -> Io {
        poll_fn(|cx| {
            let mut backlog = self.backlog.borrow_mut();
            if let Some(stream) = backlog.waiting.pop_front() {
                return Poll::Ready(Io::Memory(stream));
            }
            backlog.acceptor = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        LISTENERS.with_borrow_mut(|all| {
            if all.get(&self.name).is_some_and(|backlog| Rc::ptr_eq(backlog, &self.backlog)) {
                all.remove(&self.name);
            }
        });
    }
}

/// Connects to a listener of this thread; `None` where nobody listens.
pub(crate) fn connect(name: &str) -> Option<MemoryStream> {
    let backlog = LISTENERS.with_borrow(|all| all.get(name).cloned())?;
    let (ours, theirs) = pair(CAPACITY);
    let mut backlog = backlog.borrow_mut();
    backlog.waiting.push_back(theirs);
    if let Some(acceptor) = backlog.acceptor.take() {
        acceptor.wake();
    }
    Some(ours)
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The writer is done: the reader sees the end after the bytes.
    finished: bool,
    /// The reader is gone: writing fails with a broken pipe.
    abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// One end of a pair. Dropping it ends both directions.
#[derive(Debug)]
pub struct MemoryStream {
    incoming: Rc<RefCell<Pipe>>,
    outgoing: Rc<RefCell<Pipe>>,
    name: Arc<str>,
}

/// Two connected ends; each direction holds at most `capacity` bytes.
pub(super) fn pair(capacity: usize) -> (MemoryStream, MemoryStream) {
    let pipe = || Rc::new(RefCell::new(Pipe { capacity, ..Pipe::default() }));
    let (there, back) = (pipe(), pipe());
    let name: Arc<str> = Arc::from("memory");
    (
        MemoryStream {
            incoming: Rc::clone(&back),
            outgoing: Rc::clone(&there),
            name: Arc::clone(&name),
        },
        MemoryStream { incoming: there, outgoing: back, name },
    )
}

impl MemoryStream {
    /// What `Address::Internal` shows.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        let mut out = self.outgoing.borrow_mut();
        out.finished = true;
        out.wake_reader();
        let mut incoming = self.incoming.borrow_mut();
        incoming.abandoned = true;
        incoming.wake_writer();
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut pipe = self.incoming.borrow_mut();
        if pipe.bytes.is_empty() {
            if pipe.finished {
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = pipe.bytes.len().min(buf.remaining());
        let read = pipe.bytes.read(buf.initialize_unfilled_to(n))?;
        buf.advance(read);
        pipe.wake_writer();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = self.outgoing.borrow_mut();
        if pipe.abandoned || pipe.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut room = pipe.capacity - pipe.bytes.len().min(pipe.capacity);
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut written = 0;
        for slice in slices {
            let n = slice.len().min(room);
            pipe.bytes.write_all(&slice[..n])?;
            written += n;
            room -= n;
        }
        pipe.wake_reader();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.outgoing.borrow_mut();
        pipe.finished = true;
        pipe.wake_reader();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[tokio::test]
    async fn a_listener_takes_what_connects_to_its_name_while_it_lives() {
        assert!(connect("a").is_none());
        let listener = MemoryListener::bind("a");
        let mut client = Io::Memory(connect("a").unwrap());
        let mut server = listener.accept().await;
        assert_eq!(poll_fn(|cx| client.poll_write(cx, b"hello")).await.unwrap(), 5);
        let mut got = BytesMut::with_capacity(16);
        assert_eq!(poll_fn(|cx| server.poll_read(cx, &mut got)).await.unwrap(), 5);
        assert_eq!(&got[..], b"hello");
        let again = MemoryListener::bind("a");
        drop(listener);
        assert!(connect("a").is_some());
        drop(again);
        assert!(connect("a").is_none());
    }
}
