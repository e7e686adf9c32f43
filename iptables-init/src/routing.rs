//! The plan's routing: the policy route that keeps TPROXY's packets in the namespace, and `::6` on `lo`. What is there
//! already is left; what is added says by its protocol number that it is ours, and only that is removed.

use std::io;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use crate::netlink::{ACT, ADD, Answer, LIST, Netlink, attribute, attributes, number};
use crate::plan::Routing;

const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
/// Of each kind, the next number deletes and the one after it lists.
const DELETE: u16 = 1;
const GET: u16 = 2;

/// `RTN_LOCAL`
const LOCAL_ROUTE: u8 = 2;

const V4: u8 = 2;
const V6: u8 = 10;

/// Who has added a route, a rule or an address: any number that no other program is known to use.
pub const OURS: u8 = 150;

/// Of a rule: `FRA_PRIORITY`, `FRA_FWMARK`, `FRA_SUPPRESS_IFGROUP`, `FRA_SUPPRESS_PREFIXLEN`, `FRA_TABLE`,
/// `FRA_FWMASK`, `FRA_PROTOCOL`.
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_SUPPRESS: [u16; 2] = [13, 14];
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;
/// Of a route: `RTA_OIF`, `RTA_TABLE`.
const ROUTE_OUTPUT: u16 = 4;
const ROUTE_TABLE: u16 = 15;
/// Of an address: `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_PROTO` (of Linux 5.18 and later).
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_PROTOCOL: u16 = 11;

/// `::6`, where the proxy connects to its application from.
const INBOUND: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];

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
                format!("ip {}rule add fwmark {mark} lookup {table} protocol {OURS}", family(f))
            }
            Self::Route(f, table) => {
                let family = family(f);
                format!("ip {family}route add local default dev lo table {table} protocol {OURS}")
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

/// Takes back what this run has added, as far as it goes.
pub fn remove(added: &[Added]) {
    for one in added.iter().rev() {
        let _ = change(*one, false);
    }
}

/// Removes what is ours, but for what is to stay.
///
/// # Errors
/// The first that could not be removed, as `ip` adds it; all others are.
pub fn clean(stay: &[Added]) -> Result<(), (String, io::Error)> {
    let ours = ours().map_err(|error| ("ip rule; ip route; ip address".to_owned(), error))?;
    let mut first = Ok(());
    for one in ours.into_iter().filter(|one| !stay.contains(one)) {
        let removed = change(one, false).map(|_| ());
        first = first.and(removed.map_err(|error| (one.text(), error)));
    }
    first
}

/// Adds or removes one; whether anything changed.
fn change(one: Added, add: bool) -> io::Result<bool> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let (kind, body) = match one {
        Added::Rule(family, mark, table) => {
            let there = rules(&mut netlink, family)?;
            let there = there.iter().filter(|rule| rule.mark == mark && rule.table == table);
            if !add {
                for own in there.filter(|rule| rule.protocol == Some(OURS)) {
                    let body = rule(family, mark, table, Some(own.priority));
                    netlink.request(NEW_RULE + DELETE, ACT, &body)?;
                }
                return Ok(true);
            }
            if there.count() != 0 {
                return Ok(false);
            }
            (NEW_RULE, rule(family, mark, table, None))
        }
        Added::Route(family, table) => (NEW_ROUTE, route(family, table)?),
        Added::Address => (NEW_ADDRESS, address()?),
    };
    let (kind, flags) = if add { (kind, ADD) } else { (kind + DELETE, ACT) };
    match netlink.request(kind, flags, &body) {
        Ok(_) => Ok(true),
        Err(error) if add && error.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an earlier run has added, rules before their routes.
fn ours() -> io::Result<Vec<Added>> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut ours = Vec::new();
    for family in [V4, V6] {
        let rules = rules(&mut netlink, family)?;
        let rules = rules.iter().filter(|rule| rule.protocol == Some(OURS));
        ours.extend(rules.map(|rule| Added::Rule(family, rule.mark, rule.table)));
        let routes = list(&mut netlink, NEW_ROUTE, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        let routes = routes.iter().filter_map(|(_, body)| our_route(family, body));
        ours.extend(routes.map(|table| Added::Route(family, table)));
    }
    let addresses = list(&mut netlink, NEW_ADDRESS, &[V6, 0, 0, 0, 0, 0, 0, 0])?;
    let addresses: Vec<_> = addresses.iter().map(|(_, body)| body.as_slice()).collect();
    if our_address(&addresses, loopback()?) {
        ours.push(Added::Address);
    }
    ours.dedup();
    Ok(ours)
}

/// All of a kind; none where the kernel does not have the family.
fn list(netlink: &mut Netlink, kind: u16, body: &[u8]) -> io::Result<Vec<Answer>> {
    match netlink.request(kind + GET, LIST, body) {
        Err(error)
            if [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]
                .iter()
                .any(|none| error.raw_os_error() == Some(*none as i32)) =>
        {
            Ok(Vec::new())
        }
        listed => listed,
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
    attribute(&mut body, RULE_PROTOCOL, &[OURS]);
    body
}

/// A rule that says no more than ours do: a mark leads to a table.
#[derive(Debug, PartialEq, Eq)]
struct MarkRule {
    priority: u32,
    mark: u32,
    table: u32,
    protocol: Option<u8>,
}

fn rules(netlink: &mut Netlink, family: u8) -> io::Result<Vec<MarkRule>> {
    let answers = list(netlink, NEW_RULE, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    Ok(answers.iter().filter_map(|(_, body)| mark_rule(family, body)).collect())
}

fn mark_rule(family: u8, body: &[u8]) -> Option<MarkRule> {
    // Lengths of source and destination, and the type of service; the action; flags, of which one negates the rule.
    if body.get(..4)? != [family, 0, 0, 0] || body.get(7..12)? != [1, 0, 0, 0, 0] {
        return None;
    }
    let mut rule = MarkRule { priority: 0, mark: 0, table: 0, protocol: None };
    let mut whole = false;
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RULE_PRIORITY => rule.priority = number(value),
            RULE_MARK => rule.mark = number(value),
            RULE_MASK => whole = number(value) == u32::MAX,
            RULE_TABLE => rule.table = number(value),
            RULE_PROTOCOL => rule.protocol = value.first().copied(),
            kind if RULE_SUPPRESS.contains(&kind) && number(value) == u32::MAX => {}
            // It says more.
            _ => return None,
        }
    }
    (whole && rule.mark != 0).then_some(rule)
}

/// `struct rtmsg`: a local route for any destination.
fn route(family: u8, table: u32) -> io::Result<Vec<u8>> {
    // IPv6 has no scopes; of IPv4, a local route is the host's.
    let scope = if family == V4 { 254 } else { 0 };
    let mut body = vec![family, 0, 0, 0, 0, OURS, scope, LOCAL_ROUTE, 0, 0, 0, 0];
    attribute(&mut body, ROUTE_TABLE, &table.to_ne_bytes());
    attribute(&mut body, ROUTE_OUTPUT, &loopback()?.to_ne_bytes());
    Ok(body)
}

/// The table of a route, if it is one of ours.
fn our_route(family: u8, body: &[u8]) -> Option<u32> {
    let [of, 0, 0, 0, _, OURS, _, LOCAL_ROUTE] = *body.get(..8)? else { return None };
    let attributes = attributes(body.get(12..)?);
    let (_, table) = attributes.iter().find(|(kind, _)| *kind == ROUTE_TABLE)?;
    (of == family).then(|| number(table))
}

/// `struct ifaddrmsg`: `::6/128` on `lo`, without looking for duplicates.
fn address() -> io::Result<Vec<u8>> {
    const NO_DAD: u8 = 2;
    let mut body = vec![V6, 128, NO_DAD, 0];
    body.extend(loopback()?.to_ne_bytes());
    attribute(&mut body, ADDRESS, &INBOUND);
    attribute(&mut body, ADDRESS_LOCAL, &INBOUND);
    attribute(&mut body, ADDRESS_PROTOCOL, &[OURS]);
    Ok(body)
}

/// Whether `::6` on `lo` is among the addresses and ours. An older kernel tells of no address who added it; there, it is.
fn our_address(addresses: &[&[u8]], interface: u32) -> bool {
    let find = |body: &[u8], wanted| {
        let attributes = attributes(body.get(8..)?);
        attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    let told = addresses.iter().any(|body| find(body, ADDRESS_PROTOCOL).is_some());
    addresses.iter().any(|body| {
        body.get(..2) == Some(&[V6, 128])
            && body.get(4..8).is_some_and(|index| number(index) == interface)
            && find(body, ADDRESS).as_deref() == Some(&INBOUND)
            && (!told || find(body, ADDRESS_PROTOCOL).as_deref() == Some(&[OURS]))
    })
}

fn loopback() -> io::Result<u32> {
    Ok(if_nametoindex("lo")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule as the kernel tells it.
    fn told(flags: u8, more: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = rule(V4, 1337, 133, Some(32765));
        body[8] = flags;
        attribute(&mut body, RULE_MASK, &u32::MAX.to_ne_bytes());
        attribute(&mut body, RULE_SUPPRESS[1], &u32::MAX.to_ne_bytes());
        for (kind, value) in more {
            attribute(&mut body, *kind, value);
        }
        body
    }

    #[test]
    fn a_rule_that_says_more_is_not_ours() {
        let plain = MarkRule { priority: 32765, mark: 1337, table: 133, protocol: Some(OURS) };
        assert_eq!(mark_rule(V4, &told(0, &[])), Some(plain));
        assert_eq!(mark_rule(V6, &told(0, &[])), None);
        // `not from all fwmark 1337`, `uidrange 0-0`, `fwmark 1337/0xffff`
        assert_eq!(mark_rule(V4, &told(2, &[])), None);
        assert_eq!(mark_rule(V4, &told(0, &[(20, &[0; 8])])), None);
        assert_eq!(mark_rule(V4, &told(0, &[(RULE_MASK, &0xffff_u32.to_ne_bytes())])), None);
    }

    #[test]
    fn a_route_is_ours_by_its_protocol() {
        let body = route(V4, 133).expect("there is lo");
        assert_eq!(our_route(V4, &body), Some(133));
        assert_eq!(our_route(V6, &body), None);
        let boot = [&body[..5], &[3], &body[6..]].concat();
        assert_eq!(our_route(V4, &boot), None);
    }

    #[test]
    fn an_address_is_ours_by_its_protocol_if_the_kernel_tells_any() {
        let own = address().expect("there is lo");
        let lo = loopback().expect("there is lo");
        let foreign = &own[..own.len() - 8];
        assert!(our_address(&[&own], lo));
        assert!(!our_address(&[&own], lo + 1));
        assert!(our_address(&[foreign], lo));
        let mut other = own.clone();
        other[23] = 1;
        assert!(!our_address(&[&other, foreign], lo));
    }
}
