//! The vocabulary of the plan: a rule is what it matches and what becomes of a packet that matches it, of one address
//! family; backends write it in their own words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family: each has rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// A table of the kernel's packet filter, in the order in which they are filled: what redirects comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Raw,
    Mangle,
    Nat,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mangle, Self::Nat];

    /// Its name, as iptables has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// Where packets enter a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What comes in by an interface, `lo` included, before it is routed.
    Prerouting,
    /// What a process of this namespace sends.
    Output,
}

/// A chain of ours. Nothing else belongs to us but the jumps that lead into them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// What to redirect as outbound.
    Redirect,
    /// What to redirect as inbound.
    InRedirect,
    /// Mark of packets of connections that a transparent socket has.
    Divert,
    /// Gives new connections to the transparent socket.
    Tproxy,
    /// Packets of no known connection.
    Drop,
    /// DNS requests to the agent's server.
    OutputDns,
    /// Which incoming connections are redirected.
    Inbound,
    /// Which outgoing connections are redirected.
    Output,
    /// The marks of `mangle`, before `Inbound`.
    Prerouting,
}

impl Chain {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Redirect,
        Self::InRedirect,
        Self::Divert,
        Self::Tproxy,
        Self::Drop,
        Self::OutputDns,
        Self::Inbound,
        Self::Output,
        Self::Prerouting,
    ];

    /// Its name in iptables; those that Istio's rules have too carry Istio's name, so that each replaces the other's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Redirect => "ISTIO_REDIRECT",
            Self::InRedirect => "ISTIO_IN_REDIRECT",
            Self::Divert => "ISTIO_DIVERT",
            Self::Tproxy => "ISTIO_TPROXY",
            Self::Drop => "ISTIO_DROP",
            Self::OutputDns => "ISTIO_OUTPUT_DNS",
            Self::Inbound => "ISTIO_INBOUND",
            Self::Output => "ISTIO_OUTPUT",
            Self::Prerouting => "ISTIO_PREROUTING",
        }
    }
}

/// An IP prefix; bits of the address beyond it are kept, and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub bits: u8,
}

impl Cidr {
    /// Just this address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// `address/bits`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits: u8 = bits.parse().ok().filter(|_| plain)?;
        (bits <= Self::host(address).bits).then_some(Self { address, bits })
    }

    /// The family whose packets it matches.
    #[must_use]
    pub fn family(self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address with the bits beyond the prefix cleared.
    fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                Ipv4Addr::from(u32::from(a) & mask).into()
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                Ipv6Addr::from(u128::from(a) & mask).into()
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.bits)
    }
}

/// Numbers from the first to the last: ports, user ids, group ids. Mostly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<T> {
    pub first: T,
    pub last: T,
}

impl<T: Copy + PartialEq + fmt::Display> Range<T> {
    /// Just this number.
    pub fn one(number: T) -> Self {
        Self { first: number, last: number }
    }

    /// `first`, or both with what the backend puts between them.
    pub fn text(self, between: char) -> String {
        if self.first == self.last {
            self.first.to_string()
        } else {
            format!("{}{between}{}", self.first, self.last)
        }
    }
}

/// What a packet has to be; a rule's matches all have to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    Tcp,
    Udp,
    /// By which interface it comes; `+` at the end stands for any rest.
    In(String),
    /// By which interface it leaves.
    Out(String),
    From(Cidr),
    To(Cidr),
    NotTo(Cidr),
    /// Source port; needs a protocol before it, as all ports do.
    FromPort(u16),
    Port(Range<u16>),
    NotPorts(Vec<u16>),
    /// The user of the socket that sends it.
    User(Range<u32>),
    NotUser(Range<u32>),
    Group(Range<u32>),
    NotGroup(Range<u32>),
    /// Of none of these, of which there is one at least.
    NoneOfGroups(Vec<Range<u32>>),
    Mark(u32),
    NotMark(u32),
    ConnectionMark(u32),
    /// Of no connection that is known, and not the start of one.
    Invalid,
    /// Of a connection that has seen packets both ways, or that belongs to one.
    Established,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the chain before; nothing of ours, at the end.
    Return,
    Accept,
    Drop,
    Jump(Chain),
    /// To this port of this namespace.
    Redirect(u16),
    /// To the transparent socket on a port, with a mark that keeps the packet here; dropped if there is no such socket.
    Tproxy {
        port: u16,
        mark: u32,
    },
    /// Mark it, and go on.
    SetMark(u32),
    /// Keep its mark with its connection, and go on.
    SaveMark,
    /// Mark it as its connection is, and go on.
    RestoreMark,
    /// Look its connection up in this zone, and go on.
    Zone(u16),
}

/// Matches and a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
}

impl Rule {
    /// A rule for packets that are all of this.
    pub fn new(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Self {
        Self { matches: matches.into(), verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_as_they_are_written() {
        for (text, canonical) in
            [("10.1.2.3/8", "10.0.0.0/8"), ("0.0.0.0/0", "0.0.0.0/0"), ("fd09::5/64", "fd09::/64")]
        {
            assert_eq!(Cidr::parse(text).map(|c| c.to_string()).as_deref(), Some(canonical));
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "300.0.0.0/8", "10.0.0.0/+8", "fd::/129", "/8", ""]
        {
            assert_eq!(Cidr::parse(text), None, "{text}");
        }
    }
}
