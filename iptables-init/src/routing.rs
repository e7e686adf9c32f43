//! The plan's routing: the policy route that keeps TPROXY's packets in the namespace, and `::6` on `lo`. What is there
//! already is left; what is removed is exactly what would have been added.

use std::io;
use std::net::Ipv6Addr;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use crate::netlink::{ACT, ADD, LIST, Netlink, attribute, attributes, number};
use crate::plan::Routing;

const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
/// Of each kind, the next number deletes and the one after it lists.
const DELETE: u16 = 1;
const GET: u16 = 2;

const V4: u8 = 2;
const V6: u8 = 10;

/// Of a rule: `FRA_IIFNAME`, `FRA_PRIORITY`, `FRA_FWMARK`, `FRA_TABLE`, `FRA_FWMASK`, `FRA_OIFNAME`.
const RULE_INPUT: u16 = 3;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_OUTPUT: u16 = 17;

/// One thing that a run has added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// By family, mark and table.
    Rule(u8, u32, u32),
    Route(u8, u32),
    Address,
}

impl Added {
    /// As `ip` has it, for `--dry-run` and for errors.
    #[must_use]
    pub fn text(self) -> String {
        let family = |family| if family == V6 { "-6 " } else { "" };
        match self {
            Self::Rule(f, mark, table) => {
                format!("ip {}rule add fwmark {mark} lookup {table}", family(f))
            }
            Self::Route(f, table) => {
                format!("ip {}route add local default dev lo table {table}", family(f))
            }
            Self::Address => "ip -6 addr add ::6/128 dev lo".into(),
        }
    }
}

/// What a plan needs, in order.
#[must_use]
pub fn wanted(routing: &Routing) -> Vec<Added> {
    let mut out = Vec::new();
    if routing.inbound_address {
        out.push(Added::Address);
    }
    if let Some((mark, table)) = routing.local_route {
        let families = if routing.ipv6 { &[V4, V6][..] } else { &[V4] };
        for family in families {
            out.push(Added::Route(*family, table));
            out.push(Added::Rule(*family, mark, table));
        }
    }
    out
}

/// Adds what is not there; gives what was added.
///
/// # Errors
/// The one that could not be added, as `ip` has it; the others have been taken back.
pub fn add(routing: &Routing) -> Result<Vec<Added>, (String, io::Error)> {
    let mut added = Vec::new();
    for one in wanted(routing) {
        match change(one, true) {
            Ok(true) => added.push(one),
            Ok(false) => {}
            Err(error) => {
                remove(&added);
                return Err((one.text(), error));
            }
        }
    }
    Ok(added)
}

/// Removes what was added, as far as it is there.
pub fn remove(added: &[Added]) {
    for one in added.iter().rev() {
        // What is not there, or of a family that the kernel does not have, is no fault.
        let _ = change(*one, false);
    }
}

/// Removes whatever a run with this mark and table may have left, of both families.
pub fn clean((mark, table): (u32, u32)) {
    let routing = Routing { local_route: Some((mark, table)), inbound_address: true, ipv6: true };
    remove(&wanted(&routing));
}

/// Adds or removes one; whether anything changed.
fn change(one: Added, add: bool) -> io::Result<bool> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let (kind, body) = match one {
        Added::Rule(family, mark, table) => {
            let there = rules(&mut netlink, family, mark, table)?;
            if add != there.is_empty() {
                return Ok(false);
            }
            for priority in there {
                let body = rule(family, mark, table, Some(priority));
                netlink.request(NEW_RULE + DELETE, ACT, &body)?;
            }
            if !add {
                return Ok(true);
            }
            (NEW_RULE, rule(family, mark, table, None))
        }
        Added::Route(family, table) => (NEW_ROUTE, route(family, table, add)?),
        Added::Address => (NEW_ADDRESS, address()?),
    };
    let (kind, flags) = if add { (kind, ADD) } else { (kind + DELETE, ACT) };
    match netlink.request(kind, flags, &body) {
        Ok(_) => Ok(true),
        Err(error) if add && error.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct fib_rule_hdr` and what the rule is known by.
fn rule(family: u8, mark: u32, table: u32, priority: Option<u32>) -> Vec<u8> {
    const TO_TABLE: u8 = 1;
    let mut body = vec![family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    if let Some(priority) = priority {
        attribute(&mut body, RULE_PRIORITY, &priority.to_ne_bytes());
    }
    attribute(&mut body, RULE_MARK, &mark.to_ne_bytes());
    attribute(&mut body, RULE_TABLE, &table.to_ne_bytes());
    body
}

/// Priorities of the rules that say just this: the kernel deletes by what it is given, and would take one that says
/// more.
fn rules(netlink: &mut Netlink, family: u8, mark: u32, table: u32) -> io::Result<Vec<u32>> {
    let header = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let answers = netlink.request(NEW_RULE + GET, LIST, &header)?;
    let rules = answers.iter().filter_map(|(_, body)| {
        // Lengths of source and destination, and the type of service.
        if body.get(..4)? != [family, 0, 0, 0] {
            return None;
        }
        let attributes = attributes(body.get(12..)?);
        let find = |kind| attributes.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value);
        let is = |kind, value: u32| find(kind).is_some_and(|bytes| number(bytes) == value);
        let plain = find(RULE_INPUT).is_none() && find(RULE_OUTPUT).is_none();
        let ours = is(RULE_MARK, mark) && is(RULE_MASK, u32::MAX) && is(RULE_TABLE, table);
        (plain && ours).then(|| find(RULE_PRIORITY).map_or(0, number))
    });
    Ok(rules.collect())
}

/// `struct rtmsg`: a local route for any destination.
fn route(family: u8, table: u32, add: bool) -> io::Result<Vec<u8>> {
    const LOCAL: u8 = 2;
    // `boot`, as `ip` adds them; whoever added it, it is removed.
    let protocol = if add { 3 } else { 0 };
    // IPv6 has no scopes; of IPv4, a local route is the host's.
    let scope = if family == V4 { 254 } else { 0 };
    let mut body = vec![family, 0, 0, 0, 0, protocol, scope, LOCAL, 0, 0, 0, 0];
    attribute(&mut body, 15, &table.to_ne_bytes());
    attribute(&mut body, 4, &loopback()?.to_ne_bytes());
    Ok(body)
}

/// `struct ifaddrmsg`: `::6/128` on `lo`, without looking for duplicates.
fn address() -> io::Result<Vec<u8>> {
    const NO_DAD: u8 = 2;
    let mut body = vec![V6, 128, NO_DAD, 0];
    body.extend(loopback()?.to_ne_bytes());
    let address = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).octets();
    attribute(&mut body, 1, &address);
    attribute(&mut body, 2, &address);
    Ok(body)
}

fn loopback() -> io::Result<u32> {
    Ok(if_nametoindex("lo")?)
}
