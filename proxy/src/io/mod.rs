//! Byte streams under codecs and tunnels: TCP, unix, and an in-memory pair (internal listeners, tests,
//! benches); TLS comes on top of any of them.
//!
//! Everything is poll-based, so that one task drives both directions of a connection. Reads go into spare
//! capacity; a read that fills less than it was given tells the reactor that the socket is drained, so
//! that no system call has to end in EAGAIN to find out.

pub mod memory;

use std::io::{self, IoSlice, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::io::poll_read_buf;

use crate::stream_info::Address;
use crate::tls::{TlsInfo, TlsStream};

/// A connection's bytes.
#[derive(Debug)]
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Memory(memory::MemoryStream),
    /// TLS over any of them.
    Tls(Box<TlsStream>),
}

impl Io {
    /// Two connected in-memory ends; each direction holds at most `capacity` bytes.
    pub fn pair(capacity: usize) -> (Self, Self) {
        let (a, b) = memory::pair(capacity);
        (Self::Memory(a), Self::Memory(b))
    }

    /// Ready when a read is worth trying: bytes, an end or an error. Leaves the task's waker otherwise.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(s) => s.poll_read_ready(cx).map(|_| ()),
            Self::Unix(s) => s.poll_read_ready(cx).map(|_| ()),
            Self::Memory(_) => Poll::Ready(()),
            Self::Tls(s) => s.poll_read_ready(cx),
        }
    }

    /// Reads into the spare capacity of `buf`, which must not be zero; 0 is the end of the stream.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(buf.capacity() > buf.len());
        match self {
            Self::Tcp(s) => poll_read_buf(Pin::new(s), cx, buf),
            Self::Unix(s) => poll_read_buf(Pin::new(s), cx, buf),
            Self::Memory(s) => poll_read_buf(Pin::new(s), cx, buf),
            Self::Tls(s) => s.poll_read(cx, buf),
        }
    }

    /// As `poll_read`, but no more than `limit` bytes, for which there must be room.
    pub(crate) fn poll_read_limited(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => poll_read_buf(Pin::new(s), cx, &mut buf.limit(limit)),
            Self::Unix(s) => poll_read_buf(Pin::new(s), cx, &mut buf.limit(limit)),
            Self::Memory(s) => poll_read_buf(Pin::new(s), cx, &mut buf.limit(limit)),
            Self::Tls(s) => s.poll_read(cx, buf),
        }
    }

    /// Writes what the kernel takes of `bytes`. TLS may take more than the kernel does: see `poll_flush`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Unix(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Memory(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Tls(s) => s.poll_write_vectored(cx, &[IoSlice::new(bytes)]),
        }
    }

    /// Ready when the kernel has everything that was written. Whoever has written the last of what there is to write
    /// must not wait for anything else before.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Memory(_) => Poll::Ready(Ok(())),
            Self::Tls(s) => s.poll_flush(cx),
        }
    }

    /// Writes what the kernel takes of `slices`, in one call.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Self::Memory(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Self::Tls(s) => s.poll_write_vectored(cx, slices),
        }
    }

    /// Ends the sending direction (FIN, behind close_notify under TLS); reading goes on.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Memory(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => s.poll_shutdown(cx),
        }
    }

    /// The plain TCP socket, where there is nothing on top of it: for splice and socket options.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(s) => Some(s),
            Self::Unix(_) | Self::Memory(_) | Self::Tls(_) => None,
        }
    }

    /// Reads now, whatever is known about readiness, what a peer has to say that may wait for our acknowledgement: up
    /// to `room` bytes to the end of `buf`. Plain TCP only; zero where there is nothing.
    ///
    /// A peer that writes in two pieces without TCP_NODELAY (RFC 896) holds the second back until the first is
    /// acknowledged, for which the kernel takes 40 ms. The acknowledgement goes out at once instead; where the peer is
    /// on this machine, its second piece is there when that call returns.
    ///
    /// # Errors
    /// The connection is broken. The kernel says that once: to the next reader it would look like an end.
    pub(crate) fn read_behind_nagle(&self, buf: &mut BytesMut, room: usize) -> io::Result<usize> {
        let Self::Tcp(socket) = self else { return Ok(0) };
        let socket = socket2::SockRef::from(socket);
        let start = buf.len();
        buf.resize(start + room, 0);
        // The read before has emptied the socket.
        let _ = socket.set_tcp_quickack(true);
        let read = (&*socket).read(&mut buf[start..]);
        buf.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            // An end is there for the next ordinary read, too.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            read => read,
        }
    }

    /// Dropping it sends an RST instead of a FIN: what the peer sent was not taken, or what it was to get is
    /// lost, and it must see that.
    pub fn reset_on_drop(&self) {
        match self {
            Self::Tcp(socket) => {
                let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            Self::Tls(s) => s.reset_on_drop(),
            Self::Unix(_) | Self::Memory(_) => {}
        }
    }

    /// Whether the bytes are protected by TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What its handshake established, under TLS.
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        match self {
            Self::Tls(s) => Some(s.info()),
            Self::Tcp(_) | Self::Unix(_) | Self::Memory(_) => None,
        }
    }

    /// Why TLS has failed after its handshake.
    pub fn transport_failure(&self) -> Option<&Arc<str>> {
        match self {
            Self::Tls(s) => s.failure(),
            Self::Tcp(_) | Self::Unix(_) | Self::Memory(_) => None,
        }
    }

    /// The address of our end.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(s) => Address::Ip(s.local_addr()?),
            Self::Unix(s) => pipe(&s.local_addr()?),
            Self::Memory(s) => Address::Internal(s.name()),
            Self::Tls(s) => return s.io().local_address(),
        })
    }

    /// The address of the peer's end.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn peer_address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(s) => Address::Ip(s.peer_addr()?),
            Self::Unix(s) => pipe(&s.peer_addr()?),
            Self::Memory(s) => Address::Internal(s.name()),
            Self::Tls(s) => return s.io().peer_address(),
        })
    }
}

fn pipe(addr: &tokio::net::unix::SocketAddr) -> Address {
    Address::Pipe(Arc::from(addr.as_pathname().and_then(|p| p.to_str()).unwrap_or("")))
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<TlsStream> for Io {
    fn from(stream: TlsStream) -> Self {
        Self::Tls(Box::new(stream))
    }
}

impl From<UnixStream> for Io {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

// hyper wants tokio's traits.
impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Memory(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => s.poll_read_into(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Io::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Io::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Io::poll_shutdown(self.get_mut(), cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Io::poll_write_vectored(self.get_mut(), cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::io::Write as _;

    /// A peer that writes in two pieces, with Nagle's algorithm on.
    #[tokio::test]
    async fn the_second_piece_is_there_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut io = Io::from(stream);
        for _ in 0..20 {
            peer.write_all(b"head").unwrap();
            peer.write_all(b"body").unwrap();
            let mut got = BytesMut::with_capacity(4);
            poll_fn(|cx| io.poll_read(cx, &mut got)).await.unwrap();
            assert_eq!(got, b"head"[..]);
            while got.len() < 8 {
                io.read_behind_nagle(&mut got, 100).unwrap();
            }
            assert_eq!(got, b"headbody"[..]);
            poll_fn(|cx| io.poll_write(cx, b"more")).await.unwrap();
            io::Read::read_exact(&mut peer, &mut [0; 4]).unwrap();
        }
        assert_eq!(io.read_behind_nagle(&mut BytesMut::new(), 100).unwrap(), 0);
        // A reset is no end.
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let error = loop {
            match io.read_behind_nagle(&mut BytesMut::new(), 100) {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
