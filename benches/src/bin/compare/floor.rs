//! The floor: a relay that reads what comes on one connection and writes it to the other, and looks at nothing.
//!
//! It makes the two reads and two writes of a forwarded request and no other system call but `epoll_wait`, on one
//! thread, with one upstream connection for each downstream one. What it costs is the kernel's part of any proxy of
//! sockets on this host; a bar below it cannot be cleared.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Where from and where to, both on 127.0.0.1.
#[derive(Clone, Debug, Args)]
pub struct Spec {
    /// Port to listen on.
    #[arg(long)]
    pub listen: u16,
    /// Port of the backend.
    #[arg(long)]
    pub backend: u16,
}

/// The listener's mark among events; a connection's is its index.
const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 256;
/// Larger than any message of the scenarios that it takes part in.
const BUFFER: usize = 64 * 1024;

/// Relays until it is killed.
pub fn main(spec: &Spec) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, spec.listen))
        .with_context(|| format!("cannot listen on port {}", spec.listen))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut relay = Relay { epoll, ends: Vec::new(), buffer: vec![0; BUFFER] };
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = relay.epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            if event.data() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    relay.connect(client, spec.backend)?;
                }
            } else {
                relay.pass_on(event.data() as usize);
            }
        }
    }
}

/// Both ends of connection `n` are `ends[2n]` and `ends[2n + 1]`.
struct Relay {
    epoll: Epoll,
    ends: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Relay {
    fn connect(&mut self, client: TcpStream, backend: u16) -> Result<()> {
        let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, backend))?;
        for end in [client, upstream] {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            self.epoll.add(&end, EpollEvent::new(interest, self.ends.len() as u64))?;
            self.ends.push(end);
        }
        Ok(())
    }

    /// One read and one write; an end of either side ends the other.
    fn pass_on(&mut self, from: usize) {
        let to = from ^ 1;
        let passed = match self.ends[from].read(&mut self.buffer) {
            Ok(0) => false,
            Ok(length) => self.ends[to].write_all(&self.buffer[..length]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if !passed {
            // The connections of a turn stay few: they are kept, closed, until the relay is killed.
            for end in [from, to] {
                let _ = self.ends[end].shutdown(Shutdown::Both);
                let _ = self.epoll.delete(&self.ends[end]);
            }
        }
    }
}
