//! The admin port's socket (`admin.address`, `admin.socket_options`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::config::admin::AdminConfig;
use crate::config::core::{ConfigAddress, SocketFamily, SocketState};
use crate::upstream::set_socket_option;

/// As for other listeners; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where the admin interface listens.
#[derive(Debug)]
pub enum AdminListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AdminListener {
    /// Opens the configured socket; `None` when no address is configured. Must run inside of the runtime that will
    /// serve it.
    ///
    /// # Errors
    /// The address is a name, or the kernel refuses it or an option.
    pub fn bind(config: &AdminConfig) -> io::Result<Option<Self>> {
        match &config.address {
            None => Ok(None),
            Some(ConfigAddress::Ip { addr, ipv4_compat }) => {
                bind_tcp(config, *addr, *ipv4_compat).map(|listener| Some(Self::Tcp(listener)))
            }
            Some(ConfigAddress::Pipe { path, .. }) => {
                // A socket that an earlier process left would keep the path.
                let _ = std::fs::remove_file(&**path);
                UnixListener::bind(&**path).map(|listener| Some(Self::Unix(listener)))
            }
            Some(ConfigAddress::Dns { .. }) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "the admin address is a name"))
            }
        }
    }

    /// For `--admin-address-path`: the address with the port that the kernel gave.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn local_address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| address.to_string()),
            Self::Unix(listener) => listener.local_addr().map(|address| {
                address.as_pathname().map(|path| path.display().to_string()).unwrap_or_default()
            }),
        }
    }
}

fn bind_tcp(config: &AdminConfig, address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!both)?;
    }
    let apply = |state| -> io::Result<()> {
        for option in config.socket_options.iter().filter(|option| option.state == state) {
            let fits = match option.family {
                SocketFamily::Any => true,
                SocketFamily::Ipv4 => address.is_ipv4(),
                SocketFamily::Ipv6 => address.is_ipv6(),
            };
            if fits {
                set_socket_option(socket.as_fd(), option)?;
            }
        }
        Ok(())
    };
    apply(SocketState::Prebind)?;
    socket.bind(&SockAddr::from(address))?;
    apply(SocketState::Bound)?;
    socket.listen(BACKLOG)?;
    apply(SocketState::Listening)?;
    TcpListener::from_std(socket.into())
}
