//! Buffers lent to connections: a connection holds one only while bytes are in it.
//!
//! Read buffers are `BytesMut`, so that body frames are slices of them, not copies; a buffer whose frames
//! are gone is used again without an allocation. Write queues take heads and small bodies by copy (one
//! `write` for both) and large `Bytes` by reference (one `writev`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};

use crate::io::Io;

/// Room for a usual head and its body in one read; also nginx's and HAProxy's read size.
const READ_BYTES: usize = 16 * 1024;
/// For connections whose reads fill the small size: bulk bodies in fewer calls.
const BULK_READ_BYTES: usize = 64 * 1024;
/// Less room than this is not worth a system call.
const MIN_READ_ROOM: usize = 2 * 1024;
/// Buffers kept by a thread; more are freed.
const SPARE_BUFFERS: usize = 64;
/// Write queues that grew beyond this are freed, not kept.
const SPARE_QUEUE_BYTES: usize = 64 * 1024;
/// Up to this size, copying costs less than one more element of `writev`.
const COPY_BYTES: usize = 4 * 1024;
/// Frames of 16 KiB are slices of the largest buffers, with what their peers may keep off that size for themselves.
const SLICE_SHARE: usize = 5;
/// Elements of one `writev`.
const SLICES: usize = 32;

#[derive(Default)]
struct Spare {
    read: Vec<BytesMut>,
    bulk: Vec<BytesMut>,
    #[expect(clippy::vec_box, reason = "a box goes to a connection and back as it is")]
    queues: Vec<Box<Pending>>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::new(Spare::default());
}

/// A read buffer with its size class.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    pub(super) bytes: BytesMut,
    bulk: bool,
    /// Whether `bytes` came from the spare ones (or goes there).
    lent: bool,
    /// Bytes of the allocation that `bytes` are in.
    allocated: u32,
    /// What a read beside `poll_fill` has met.
    failed: Option<io::Error>,
}

impl ReadBuffer {
    pub(super) fn new(bytes: BytesMut) -> Self {
        let allocated = bytes.capacity() as u32;
        Self { bytes, bulk: false, lent: false, allocated, failed: None }
    }

    /// Reads once. A buffer is lent for it and goes back when nothing came.
    pub(super) fn poll_fill(
        &mut self,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.bytes.capacity() == 0 {
            // Most first tries come too early: no buffer is lent for them.
            ready!(io.poll_read_ready(cx));
        }
        self.make_room();
        let room = self.bytes.capacity() - self.bytes.len();
        let result = io.poll_read(cx, &mut self.bytes);
        match &result {
            Poll::Ready(Ok(n)) => self.bulk = *n == room && room >= READ_BYTES,
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        if self.bytes.is_empty() {
            self.release();
        }
        result
    }

    fn make_room(&mut self) {
        if self.bytes.capacity() - self.bytes.len() >= MIN_READ_ROOM {
            return;
        }
        let size = if self.bulk { BULK_READ_BYTES } else { READ_BYTES };
        if self.bytes.is_empty() {
            self.release();
            self.bytes = lend(size);
            self.lent = true;
        } else {
            self.bytes.reserve(size);
        }
        self.allocated = self.bytes.capacity() as u32;
    }

    /// A frame of fewer bytes than this is to be copied out if it is to be kept: as a slice it would keep an allocation
    /// that is many times its size.
    pub(super) fn slice_bytes(&self) -> usize {
        (self.allocated as usize).min(BULK_READ_BYTES) / SLICE_SHARE
    }

    /// What the next `poll_fill` is to say.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.failed = Some(error);
    }

    /// Takes the bytes away; for connections that become something else.
    pub(super) fn take(&mut self) -> BytesMut {
        self.lent = false;
        std::mem::take(&mut self.bytes)
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn release(&mut self) {
        if !self.bytes.is_empty() || !self.lent {
            return;
        }
        self.lent = false;
        let bytes = std::mem::take(&mut self.bytes);
        // The thread-local may be gone when a thread ends: then the memory is freed.
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut() {
                let class = if self.bulk { &mut spare.bulk } else { &mut spare.read };
                if class.len() < SPARE_BUFFERS {
                    class.push(bytes);
                }
            }
        });
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.bytes.clear();
        self.release();
    }
}

/// A buffer with this much room: a spare one whose frames are gone, or a new one.
fn lend(size: usize) -> BytesMut {
    SPARE.with_borrow_mut(|spare| {
        let class = if size > READ_BYTES { &mut spare.bulk } else { &mut spare.read };
        // One whose frames are still in use is of no use here: those frames keep its memory.
        while let Some(mut bytes) = class.pop() {
            if bytes.try_reclaim(size) {
                return bytes;
            }
        }
        BytesMut::with_capacity(size)
    })
}

/// What is to be written: copied bytes with shared ones between them.
#[derive(Debug, Default)]
struct Pending {
    copied: Vec<u8>,
    /// How much of `copied` is out.
    done: usize,
    /// `(offset in copied before which it goes, bytes)`.
    shared: VecDeque<(usize, Bytes)>,
    shared_bytes: usize,
}

/// An ordered queue of bytes to write; holds no memory when empty.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    pending: Option<Box<Pending>>,
}

impl WriteQueue {
    /// Bytes not yet written.
    pub(super) fn len(&self) -> usize {
        self.pending.as_ref().map_or(0, |p| p.copied.len() - p.done + p.shared_bytes)
    }

    /// The tail that copied bytes go to.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.pending_mut().copied
    }

    fn pending_mut(&mut self) -> &mut Pending {
        self.pending.get_or_insert_with(|| {
            SPARE.with_borrow_mut(|spare| spare.queues.pop()).unwrap_or_default()
        })
    }

    /// Appends bytes: small ones by copy, large ones as they are.
    pub(super) fn push(&mut self, bytes: Bytes) {
        let pending = self.pending_mut();
        if bytes.len() <= COPY_BYTES {
            pending.copied.extend_from_slice(&bytes);
        } else {
            pending.shared_bytes += bytes.len();
            pending.shared.push_back((pending.copied.len(), bytes));
        }
    }

    /// Drops what was not written.
    pub(super) fn clear(&mut self) {
        if let Some(mut pending) = self.pending.take() {
            pending.copied.clear();
            pending.shared.clear();
            pending.done = 0;
            pending.shared_bytes = 0;
            give_back(pending);
        }
    }

    /// Ready when the queue is empty.
    pub(super) fn poll_flush(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(pending) = &mut self.pending else { return io.poll_flush(cx) };
        while !pending.is_empty() {
            let written = ready!(pending.poll_write(io, cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            pending.advance(written);
        }
        self.clear();
        io.poll_flush(cx)
    }
}

impl Drop for WriteQueue {
    fn drop(&mut self) {
        self.clear();
    }
}

fn give_back(pending: Box<Pending>) {
    if pending.copied.capacity() > SPARE_QUEUE_BYTES {
        return;
    }
    let _ = SPARE.try_with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.queues.len() < SPARE_BUFFERS
        {
            spare.queues.push(pending);
        }
    });
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.done == self.copied.len() && self.shared.is_empty()
    }

    fn poll_write(&self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.shared.is_empty() {
            return io.poll_write(cx, &self.copied[self.done..]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let mut at = self.done;
        for (before, bytes) in &self.shared {
            // A shared element needs up to two slices.
            if used + 2 > SLICES {
                return io.poll_write_vectored(cx, &slices[..used]);
            }
            if *before > at {
                slices[used] = IoSlice::new(&self.copied[at..*before]);
                used += 1;
                at = *before;
            }
            slices[used] = IoSlice::new(bytes);
            used += 1;
        }
        if at < self.copied.len() && used < SLICES {
            slices[used] = IoSlice::new(&self.copied[at..]);
            used += 1;
        }
        io.poll_write_vectored(cx, &slices[..used])
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let until = self.shared.front().map_or(self.copied.len(), |(before, _)| *before);
            let step = written.min(until - self.done);
            self.done += step;
            written -= step;
            if written == 0 {
                break;
            }
            let Some((_, bytes)) = self.shared.front_mut() else { break };
            let step = written.min(bytes.len());
            bytes.advance(step);
            self.shared_bytes -= step;
            written -= step;
            if bytes.is_empty() {
                self.shared.pop_front();
            }
        }
        // A peer that reads slowly must not make the written part pile up.
        if self.done > SPARE_QUEUE_BYTES {
            self.copied.drain(..self.done);
            for (before, _) in &mut self.shared {
                *before -= self.done;
            }
            self.done = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use tokio::io::AsyncReadExt;

    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn small_and_large_pieces_come_out_in_order() {
        block_on(async {
            let (mut a, mut b) = Io::pair(1000);
            let mut queue = WriteQueue::default();
            let mut want = Vec::new();
            for i in 0..100_usize {
                let piece = vec![i as u8; if i % 3 == 0 { 10_000 } else { i }];
                want.extend_from_slice(&piece);
                queue.push(Bytes::from(piece));
                queue.tail().extend_from_slice(b"--");
                want.extend_from_slice(b"--");
            }
            assert_eq!(queue.len(), want.len());
            let write = async {
                poll_fn(|cx| queue.poll_flush(&mut a, cx)).await.unwrap();
                drop(a);
            };
            let mut got = Vec::new();
            let read = b.read_to_end(&mut got);
            let (write, read) = (pin!(write), pin!(read));
            futures_util::future::join(write, read).await.1.unwrap();
            assert_eq!(got, want);
            assert_eq!(queue.len(), 0);
            assert!(queue.pending.is_none());
        });
    }

    #[test]
    fn an_idle_read_holds_no_buffer_and_frames_share_it() {
        block_on(async {
            let (mut a, mut b) = Io::pair(100_000);
            let mut buffer = ReadBuffer::default();
            poll_fn(|cx| {
                assert!(buffer.poll_fill(&mut a, cx).is_pending());
                assert_eq!(buffer.bytes.capacity(), 0);
                Poll::Ready(())
            })
            .await;
            poll_fn(|cx| b.poll_write(cx, &[7; 20_000])).await.unwrap();
            let n = poll_fn(|cx| buffer.poll_fill(&mut a, cx)).await.unwrap();
            assert_eq!(n, READ_BYTES);
            let frame = buffer.bytes.split().freeze();
            let n = poll_fn(|cx| buffer.poll_fill(&mut a, cx)).await.unwrap();
            assert_eq!(n, 20_000 - READ_BYTES);
            assert!(buffer.bytes.capacity() >= BULK_READ_BYTES);
            assert_eq!(frame[0], 7);
        });
    }
}
