//! Bytes from one end to the other and back, with half-close: a FIN passes as a FIN.
//!
//! Between two plain TCP ends in full flow bytes go through a pipe by splice(2) and never enter user space; at the
//! first pause the pipe is given back, as the buffer is, so that an idle connection holds neither.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::io::Io;

/// A read is at most this; the buffer is given back when it is empty.
const CHUNK: usize = 16 * 1024;
/// Full chunks in a row after which a direction counts as a bulk transfer.
const BULK_AFTER: u8 = 2;
/// Bytes of a pipe: four times the kernel's default, so that a wake-up moves more than one window.
const PIPE_BYTES: usize = 256 * 1024;
/// Pipes kept by a worker for the next bulk transfer.
const SPARE_PIPES: usize = 16;

/// One direction.
#[derive(Debug, Default)]
pub struct Direction {
    buffer: BytesMut,
    pipe: Option<Pipe>,
    /// The reading side has sent its FIN.
    read_closed: bool,
    /// The FIN has been passed on.
    pub finished: bool,
    /// Bytes passed on.
    pub bytes: u64,
    full_chunks: u8,
}

/// Which end failed, as seen by a direction.
#[derive(Debug)]
pub enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    /// The peer sent an RST.
    pub fn is_reset(&self) -> bool {
        let (Self::Read(error) | Self::Write(error)) = self;
        error.kind() == io::ErrorKind::ConnectionReset
    }
}

impl Direction {
    /// `buffer` has what was read already; `read_closed` when the FIN was, too.
    pub fn new(buffer: BytesMut, read_closed: bool) -> Self {
        Self { buffer, read_closed, ..Self::default() }
    }

    /// Moves what can be moved; Ready when the FIN has been passed on. `moved` is set when anything was.
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
            ready!(to.poll_flush(cx)).map_err(CopyError::Write)?;
            if self.full_chunks >= BULK_AFTER
                && !self.read_closed
                && let (Some(from), Some(to)) = (from.tcp(), to.tcp())
            {
                match self.poll_splice(from, to, cx, moved)? {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Spliced::End) => self.read_closed = true,
                    // No pipe to be had: the buffer serves.
                    Poll::Ready(Spliced::Unavailable) => self.full_chunks = 0,
                }
            }
            if self.read_closed {
                ready!(to.poll_shutdown(cx)).map_err(CopyError::Write)?;
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            self.buffer.reserve(CHUNK);
            match from.poll_read(cx, &mut self.buffer) {
                Poll::Pending => {
                    self.buffer = BytesMut::new();
                    self.full_chunks = 0;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => self.read_closed = true,
                Poll::Ready(Ok(n)) => {
                    *moved = true;
                    self.full_chunks =
                        if n >= CHUNK { self.full_chunks.saturating_add(1) } else { 0 };
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(CopyError::Read(error))),
            }
        }
    }

    /// Moves bytes through a pipe until the source pauses (Pending, the pipe given back) or ends.
    fn poll_splice(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        cx: &mut Context<'_>,
        moved: &mut bool,
    ) -> Result<Poll<Spliced>, CopyError> {
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            None => match Pipe::take() {
                Ok(pipe) => self.pipe.insert(pipe),
                Err(_) => return Ok(Poll::Ready(Spliced::Unavailable)),
            },
        };
        loop {
            while pipe.filled > 0 {
                match to.poll_write_ready(cx) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(ready) => ready.map_err(CopyError::Write)?,
                }
                let sent =
                    to.try_io(Interest::WRITABLE, || splice_some(&pipe.read, to, pipe.filled));
                match sent {
                    Ok(n) => {
                        *moved = true;
                        self.bytes += n as u64;
                        pipe.filled -= n;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(CopyError::Write(error)),
                }
            }
            match from.poll_read_ready(cx) {
                Poll::Pending => {
                    self.full_chunks = 0;
                    if let Some(pipe) = self.pipe.take() {
                        pipe.give_back();
                    }
                    return Ok(Poll::Pending);
                }
                Poll::Ready(ready) => ready.map_err(CopyError::Read)?,
            }
            // The pipe is empty: EAGAIN can only mean that the socket is.
            let taken =
                from.try_io(Interest::READABLE, || splice_some(from, &pipe.write, PIPE_BYTES));
            match taken {
                Ok(0) => return Ok(Poll::Ready(Spliced::End)),
                Ok(n) => pipe.filled = n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(CopyError::Read(error)),
            }
        }
    }
}

enum Spliced {
    End,
    Unavailable,
}

fn splice_some(from: impl AsFd, to: impl AsFd, limit: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, limit, flags)?)
}

/// A pipe for splice(2).
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes inside.
    filled: usize,
}

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused above the user's limit of pipe pages: the default size serves too.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        Ok(Self { read, write, filled: 0 })
    }

    /// Only an empty pipe may serve another connection.
    fn give_back(self) {
        if self.filled == 0 {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_PIPES {
                    spare.push(self);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    #[tokio::test]
    async fn bulk_and_its_fin_arrive_whole_through_the_pipe() {
        let (mut client, down) = pair().await;
        let (up, mut server) = pair().await;
        let sent: Vec<u8> = (0..4_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let client = async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        };
        let server = async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert!(got == expected, "{} bytes", got.len());
        };
        let (mut from, mut to) = (Io::from(down), Io::from(up));
        let mut direction = Direction::default();
        let copy = poll_fn(|cx| direction.poll(&mut from, &mut to, cx, &mut false));
        let (_client, (), copied) = tokio::join!(client, server, copy);
        copied.unwrap();
        assert_eq!(direction.bytes, 4_000_000);
        assert!(direction.finished);
    }

    #[tokio::test]
    async fn ends_that_are_not_tcp_are_copied() {
        let (mut client, mut from) = Io::pair(64 * 1024);
        let (mut to, mut server) = Io::pair(64 * 1024);
        let client = async move {
            client.write_all(&[7; 300_000]).await.unwrap();
            client.shutdown().await.unwrap();
            client
        };
        let server = async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), 300_000);
        };
        let mut direction = Direction::default();
        let copy = poll_fn(|cx| direction.poll(&mut from, &mut to, cx, &mut false));
        let (_client, (), copied) = tokio::join!(client, server, copy);
        copied.unwrap();
    }
}
