//! A pod for redirect rules: a network namespace with two interfaces, a neighbour behind them, servers on every port
//! that matters in both, and connections that tell where they have ended.
//!
//! The pod is 10.9.0.1 and fd09::1 on `eth0`, and 10.8.0.1 on `net1`; its neighbour is .2 and .3. Its name servers are
//! the neighbour's .2.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::namespace::{Namespace, shell};

/// For what never takes long: there are servers wherever a probe may end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports that something listens on, in the pod and in its neighbour: applications', the proxy's (outbound, inbound,
/// tunnel, DNS), and some that rules leave alone.
const PORTS: &[u16] = &[22, 53, 80, 443, 8080, 9000, 15001, 15006, 15008, 15053, 15090];
const UDP_PORTS: &[u16] = &[53, 9000, 15053];

/// Addresses of the links, known on both sides: looking for neighbours before a link is ready takes a second.
const POD_LINK: &str = "02:00:00:00:09:01";
const NEIGHBOUR_LINK: &str = "02:00:00:00:09:02";

/// Who opens a connection: user and group of the pod, or the neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Pod(u32, u32),
    Neighbour,
}

/// One connection, or one datagram and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    pub who: Who,
    pub udp: bool,
    pub from: Option<IpAddr>,
    pub to: SocketAddr,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "UDP" } else { "TCP" };
        match self.who {
            Who::Pod(user, group) => write!(f, "{user}/{group} {protocol} ")?,
            Who::Neighbour => write!(f, "neighbour {protocol} ")?,
        }
        if let Some(from) = self.from {
            write!(f, "{from} ")?;
        }
        write!(f, "→ {}", self.to)
    }
}

/// A pod and its neighbour, with servers.
#[derive(Debug)]
pub struct Pod {
    pod: Namespace,
    neighbour: Namespace,
    _nameservers: NamedTempFile,
}

impl Pod {
    /// Makes both. Needs root.
    ///
    /// # Errors
    /// Without the right to make namespaces.
    pub async fn new() -> Result<Self> {
        let (pod, neighbour) = (Namespace::new()?, Namespace::new()?);
        let nameservers = NamedTempFile::new()?;
        std::fs::write(nameservers.path(), "nameserver 10.9.0.2\nnameserver fd09::2\n")?;
        let (file, thread) = (nameservers.path().display().to_string(), neighbour.thread);
        pod.run(move || async move {
            unshare(CloneFlags::CLONE_NEWNS)?;
            shell(&format!(
                "mount --make-rprivate /; mount --bind {file} /etc/resolv.conf
                 ip link add eth0 address {POD_LINK} type veth peer name eth0 address {NEIGHBOUR_LINK} netns {thread}
                 ip link add net1 address {POD_LINK} type veth peer name net1 address {NEIGHBOUR_LINK} netns {thread}
                 ip addr add 10.9.0.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad
                 ip addr add 10.8.0.1/24 dev net1; ip link set eth0 up; ip link set net1 up
                 for a in 10.9.0.2 10.9.0.3 fd09::2 fd09::3; do ip neigh add $a lladdr {NEIGHBOUR_LINK} dev eth0; done
                 ip neigh add 10.8.0.2 lladdr {NEIGHBOUR_LINK} dev net1; ip addr add ::6/128 dev lo
                 for f in all lo eth0 net1; do echo 0 >/proc/sys/net/ipv4/conf/$f/rp_filter; done
                 echo 1 >/proc/sys/net/ipv4/ip_forward"
            ))
        })
        .await??;
        neighbour
            .run(|| async {
                shell(&format!(
                    "ip addr add 10.9.0.2/24 dev eth0; ip addr add 10.9.0.3/24 dev eth0
                     ip addr add fd09::2/64 dev eth0 nodad; ip addr add fd09::3/64 dev eth0 nodad
                     ip addr add 10.8.0.2/24 dev net1; ip link set eth0 up; ip link set net1 up
                     for a in 10.9.0.1 fd09::1; do ip neigh add $a lladdr {POD_LINK} dev eth0; done
                     ip neigh add 10.8.0.1 lladdr {POD_LINK} dev net1; ip route add 10.7.0.0/24 via 10.8.0.1"
                ))
            })
            .await??;
        pod.run(|| async { serve("pod") }).await??;
        neighbour.run(|| async { serve("neighbour") }).await??;
        Ok(Self { pod, neighbour, _nameservers: nameservers })
    }

    /// Runs a program in the pod, with an environment besides ours; its output, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn command(&self, mut command: Command) -> Result<std::process::Output> {
        self.pod.run(move || async move { command.output() }).await?.context("cannot run it")
    }

    /// Runs a script in the pod and gives what it prints.
    ///
    /// # Errors
    /// When a command of it fails.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let mut command = Command::new("sh");
        command.arg("-euc").arg(script);
        let done = self.command(command).await?;
        if !done.status.success() {
            bail!("{script}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Where each probe ends.
    ///
    /// # Errors
    /// When a namespace is gone.
    pub async fn fates(&self, probes: &[Probe]) -> Result<Vec<String>> {
        let mut fates = Vec::new();
        for same in probes.chunk_by(|a, b| a.who == b.who) {
            let (who, same) = (same[0].who, same.to_vec());
            let namespace = if who == Who::Neighbour { &self.neighbour } else { &self.pod };
            let ended = namespace.run(move || async move {
                // A thread of its own: it is in this namespace, and credentials are a thread's.
                let (tell, told) = tokio::sync::oneshot::channel();
                std::thread::spawn(move || {
                    if let Who::Pod(user, group) = who {
                        setfsgid(Gid::from_raw(group));
                        setfsuid(Uid::from_raw(user));
                    }
                    let _ = tell.send(same.iter().map(fate).collect::<Vec<_>>());
                });
                told.await
            });
            fates.extend(ended.await?.context("a probe panicked")?);
        }
        Ok(fates)
    }
}

/// What the server says that a probe has reached, or why it has reached none.
fn fate(probe: &Probe) -> String {
    let answer = if probe.udp { ask_udp(probe) } else { ask_tcp(probe) };
    answer.unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer".into(),
        kind => kind.to_string(),
    })
}

fn ask_tcp(probe: &Probe) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(probe.to), Type::STREAM, None)?;
    if let Some(from) = probe.from {
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    socket.connect_timeout(&SockAddr::from(probe.to), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    let mut stream = std::net::TcpStream::from(socket);
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_udp(probe: &Probe) -> io::Result<String> {
    let any: SocketAddr =
        if probe.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("it is one");
    let socket = UdpSocket::bind(probe.from.map_or(any, |from| SocketAddr::new(from, 0)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(probe.to)?;
    socket.send(b"?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Servers on all ports, of both families; each tells which it is, and under which address it was reached.
fn serve(name: &'static str) -> Result<()> {
    for port in PORTS {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        // As the proxy in mode TPROXY.
        if *port == 15006 {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpTransparent, &true)?;
        }
        socket.bind(&SockAddr::from(SocketAddr::from(([0u16; 8], *port))))?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket.into())?;
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let at = stream.local_addr().map(|at| at.ip().to_canonical().to_string());
                let text = format!("{name} {port} as {}", at.unwrap_or_default());
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
    }
    for port in UDP_PORTS {
        // One for each address, so that an answer comes from the one that was asked; those of others cannot be had.
        for address in ["10.9.0.1", "10.9.0.2", "127.0.0.1", "fd09::1", "fd09::2", "::1"] {
            let address: IpAddr = address.parse()?;
            // The agent's server is the proxy's user: rules know its answers by that.
            let user = if *port == 15053 { 1337 } else { 0 };
            setfsuid(Uid::from_raw(user));
            let bound = UdpSocket::bind((address, *port));
            setfsuid(Uid::from_raw(0));
            let Ok(socket) = bound else { continue };
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 128];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
                    let text = format!("{name} {port} as {address}");
                    let _ = socket.send_to(text.as_bytes(), peer).await;
                }
            });
        }
    }
    Ok(())
}
