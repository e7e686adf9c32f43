//! Netlink: requests to the kernel as bytes, for what needs no program: policy routes, addresses, and which nftables
//! tables there are. Layouts are those of `linux/rtnetlink.h`, `linux/fib_rules.h` and `linux/netfilter/nf_tables.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const ACT: u16 = 0x5;
/// `ACT | NLM_F_CREATE | NLM_F_EXCL`.
pub const ADD: u16 = ACT | 0x600;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
pub const LIST: u16 = 0x301;
/// The kernel answers at once; this is for one that does not.
const PATIENCE_SECONDS: i64 = 10;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message of an answer: its type and what follows its header.
pub type Answer = (u16, Vec<u8>);

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// # Errors
    /// When the kernel does not have that part.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and waits for all of its answer.
    ///
    /// # Errors
    /// What the kernel says of the request.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Answer>> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 65536];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            let mut rest = &buffer[..length];
            while let Some((kind, sequence, body, after)) = split(rest) {
                rest = after;
                match kind {
                    _ if sequence != self.sequence => {}
                    ERROR | DONE => return finish(body).map(|()| answers),
                    kind => answers.push((kind, body.to_vec())),
                }
            }
        }
    }
}

/// The first message of a packet: type, sequence number, body, and what follows it.
fn split(packet: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = usize::try_from(number(packet.get(..4)?)).ok()?;
    let kind = short(packet.get(4..6)?);
    let sequence = number(packet.get(8..12)?);
    let body = packet.get(HEADER..length)?;
    let after = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, sequence, body, after))
}

/// The end of an answer: an error's number, negative, or none.
fn finish(body: &[u8]) -> io::Result<()> {
    match body.get(..4).map(|code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]])) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

/// Up to four bytes of the kernel's byte order.
pub fn number(bytes: &[u8]) -> u32 {
    let mut out = [0; 4];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    u32::from_ne_bytes(out)
}

fn short(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_ne_bytes)
}

/// Appends an attribute to a request.
pub fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes here are addresses and numbers");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes that follow the fixed part of an answer.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut out = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.get(..2), bytes.get(2..4)) {
        let length = usize::from(short(length));
        let Some(value) = bytes.get(4..length) else { break };
        // The upper bits say that it holds others, or is in network byte order.
        out.push((short(kind) & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

/// A table of nftables: its family (`AF_INET` and its like, 1 for inet) and its name.
pub type NftTable = (u8, String);

/// The nftables tables of this network namespace; those of iptables-nft are among them. None where the kernel has no
/// nftables.
///
/// # Errors
/// Without the capability NET_ADMIN.
pub fn nft_tables() -> io::Result<Option<Vec<NftTable>>> {
    // NFT_MSG_GETTABLE, NFTA_TABLE_NAME
    let answers = nft_list(1)?;
    Ok(answers.map(|answers| {
        let table = |body: &[u8]| Some((*body.first()?, nft_name(body, 1)?));
        answers.iter().filter_map(|(_, body)| table(body)).collect()
    }))
}

/// A chain of nftables: its table and its name.
pub type NftChain = (NftTable, String);

/// The chains of all of them.
///
/// # Errors
/// Without the capability NET_ADMIN.
pub fn nft_chains() -> io::Result<Vec<NftChain>> {
    // NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    let answers = nft_list(4)?.unwrap_or_default();
    let chain = |body: &[u8]| Some(((*body.first()?, nft_name(body, 1)?), nft_name(body, 3)?));
    Ok(answers.iter().filter_map(|(_, body)| chain(body)).collect())
}

/// What the kernel has of one kind; None where it has no nftables.
fn nft_list(kind: u16) -> io::Result<Option<Vec<Answer>>> {
    // NFNL_SUBSYS_NFTABLES; an empty nfgenmsg.
    const NFTABLES: u16 = 10 << 8;
    let answer = Netlink::open(SockProtocol::NetlinkNetFilter)
        .and_then(|mut netlink| netlink.request(NFTABLES | kind, LIST, &[0; 4]));
    match answer {
        Ok(answers) => Ok(Some(answers)),
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Err(error),
        Err(_) => Ok(None),
    }
}

/// An attribute that is a name.
fn nft_name(body: &[u8], kind: u16) -> Option<String> {
    let attributes = attributes(body.get(4..)?);
    let (_, name) = attributes.iter().find(|(k, _)| *k == kind)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let mut body = Vec::new();
        attribute(&mut body, 1, b"nat\0");
        attribute(&mut body, 2, &[7]);
        attribute(&mut body, 3, &133_u32.to_ne_bytes());
        let found = attributes(&body);
        assert_eq!(found, [(1, &b"nat\0"[..]), (2, &[7]), (3, &133_u32.to_ne_bytes())]);
        assert_eq!(attributes(&body[..body.len() - 1]).len(), 2);
        assert_eq!(nft_name(&[&[2, 0, 0, 0][..], &body].concat(), 1).as_deref(), Some("nat"));
    }

    #[test]
    fn what_is_no_message_is_none() {
        assert!(split(&[0; 16]).is_none_or(|(_, _, body, _)| body.is_empty()));
        assert!(split(&[255; 20]).is_none());
        assert!(finish(&(-1_i32).to_ne_bytes()).is_err());
        assert!(finish(&[]).is_ok());
    }
}
