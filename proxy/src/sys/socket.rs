//! Socket options by raw level and name, as `core.v3.SocketOption` gives them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `setsockopt(2)` with a value of plain bytes.
///
/// # Errors
/// What the kernel says of level, name or value.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so open; the kernel reads `value.len()` bytes at the pointer, all of
    // them initialised, and keeps neither.
    #[expect(unsafe_code, reason = "no crate has setsockopt for any level and name")]
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn sets_and_refuses() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let size = 65_536_i32.to_ne_bytes();
        assert!(set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &size).is_ok());
        assert!(set_option(socket.as_fd(), libc::SOL_SOCKET, -1, &size).is_err());
    }
}
