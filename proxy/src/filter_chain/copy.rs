//! Bytes from one end to the other and back, with half-close: a FIN passes as a FIN.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};

use crate::io::Io;

/// A read is at most this; the buffer is given back when it is empty.
const CHUNK: usize = 16 * 1024;

/// One direction.
#[derive(Debug, Default)]
pub struct Direction {
    buffer: BytesMut,
    /// The reading side has sent its FIN.
    read_closed: bool,
    /// The FIN has been passed on.
    pub finished: bool,
    /// Bytes passed on.
    pub bytes: u64,
    /// A read took a whole chunk: the next may be larger.
    bulk: bool,
}

/// Largest buffer of a direction that is in full flow.
const BULK: usize = 128 * 1024;

impl Direction {
    /// `buffer` has what was read already.
    pub fn new(buffer: BytesMut) -> Self {
        Self { buffer, ..Self::default() }
    }

    /// Moves what can be moved; Ready when the FIN has been passed on. True when anything moved.
    ///
    /// # Errors
    /// Which side failed.
    pub fn poll(
        &mut self,
        from: &mut Io,
        to: &mut Io,
        cx: &mut Context<'_>,
        moved: &mut bool,
    ) -> Poll<Result<(), CopyError>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.buffer.is_empty() {
                let n = ready!(to.poll_write(cx, &self.buffer)).map_err(CopyError::Write)?;
                *moved = true;
                self.bytes += n as u64;
                self.buffer.advance(n);
            }
            if self.read_closed {
                ready!(to.poll_shutdown(cx)).map_err(CopyError::Write)?;
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            let want = if self.bulk { BULK } else { CHUNK };
            self.buffer.reserve(want);
            match from.poll_read(cx, &mut self.buffer) {
                Poll::Pending => {
                    // An idle connection holds no buffer.
                    self.buffer = BytesMut::new();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => self.read_closed = true,
                Poll::Ready(Ok(n)) => {
                    *moved = true;
                    self.bulk = n >= CHUNK;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(CopyError::Read(error))),
            }
        }
    }
}

/// Which end failed, as seen by a direction.
#[derive(Debug)]
pub enum CopyError {
    Read(io::Error),
    Write(io::Error),
}
