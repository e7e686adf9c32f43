//! Rules as nft(8) writes them: a table for each of iptables', by Istio's names, filled in one transaction. Rules of an
//! earlier run go in the same transaction.

use std::fmt::Write as _;

use crate::netlink::NftTable;
use crate::plan::{Chains, Plan};
use crate::rule::{Chain, Family, Hook, Match, Range, Rule, Table, Verdict};

/// Families of nftables that our tables may be of, by the kernel's numbers and nft's names. Istio's own are of `inet`.
const FAMILIES: [(u8, &str); 3] = [(2, "ip"), (10, "ip6"), (1, "inet")];

/// Our tables among those of the kernel: family and name.
pub fn ours(there: &[NftTable]) -> impl Iterator<Item = (&'static str, &'static str)> {
    let tables = FAMILIES.iter().flat_map(|family| Table::ALL.map(|table| (family, table)));
    tables.filter_map(|((number, family), table)| {
        let name = table_name(table);
        let exists = there.iter().any(|(f, n)| f == number && n == name);
        exists.then_some((*family, name))
    })
}

/// The transaction that removes our tables, and makes those of a plan. Empty when there is nothing to do.
#[must_use]
pub fn script(there: &[NftTable], plan: Option<&Plan>) -> String {
    // Only what is there: to make and delete each table first costs a quarter of nft's time.
    let mut script = removal(there, None);
    for rules in plan.map_or(&[][..], |plan| &plan.families) {
        let family = family_name(rules.family);
        for (table, chains) in &rules.tables {
            let _ = writeln!(script, "table {family} {} {{", table_name(*table));
            write_chains(*table, chains, family, &mut script);
            script += "}\n";
        }
    }
    script
}

/// The start of it: all tables that are there or will be are no more.
#[must_use]
pub fn removal(there: &[NftTable], plan: Option<&Plan>) -> String {
    let mut tables: Vec<_> = ours(there).collect();
    for rules in plan.map_or(&[][..], |plan| &plan.families) {
        let wanted =
            rules.tables.keys().map(|table| (family_name(rules.family), table_name(*table)));
        tables.extend(wanted);
    }
    tables.sort_unstable();
    tables.dedup();
    let mut script = String::new();
    for (family, name) in tables {
        let _ = writeln!(script, "add table {family} {name}\ndelete table {family} {name}");
    }
    script
}

fn write_chains(table: Table, chains: &Chains, family: &str, script: &mut String) {
    for (chain, rules) in &chains.rules {
        let _ = writeln!(script, "  chain {} {{", chain_name(*chain));
        for rule in rules {
            write_rule(rule, family, script);
        }
        *script += "  }\n";
    }
    for hook in [Hook::Prerouting, Hook::Output] {
        let jumps: Vec<_> = chains.jumps.iter().filter(|(h, _)| *h == hook).collect();
        if jumps.is_empty() {
            continue;
        }
        // As iptables' own: a changed mark routes anew, connections are known from -200 on.
        let (name, (kind, priority)) = match (hook, table) {
            (Hook::Prerouting, Table::Raw) => ("prerouting", ("filter", -300)),
            (Hook::Prerouting, Table::Mangle) => ("prerouting", ("filter", -150)),
            (Hook::Prerouting, Table::Nat) => ("prerouting", ("nat", -100)),
            (Hook::Output, Table::Raw) => ("output", ("filter", -300)),
            (Hook::Output, Table::Mangle) => ("output", ("route", -150)),
            (Hook::Output, Table::Nat) => ("output", ("nat", -100)),
        };
        let _ = writeln!(script, "  chain {name} {{");
        let _ = writeln!(script, "    type {kind} hook {name} priority {priority}; policy accept;");
        for (_, rule) in jumps {
            write_rule(rule, family, script);
        }
        *script += "  }\n";
    }
}

fn write_rule(rule: &Rule, family: &str, script: &mut String) {
    let protocol = if rule.matches.contains(&Match::Udp) { "udp" } else { "tcp" };
    let matches = rule.matches.iter().filter(|m| !is_any(m));
    let words: Vec<_> = matches.map(|m| match_text(m, family, protocol)).collect();
    let mut add = |verdict: &str| {
        let words = words.iter().map(String::as_str).chain(["counter", verdict]);
        let _ = writeln!(script, "    {}", words.collect::<Vec<_>>().join(" "));
    };
    match rule.verdict {
        // Where there is no such socket, this goes on to the next rule, and iptables' drops the packet: without the
        // proxy, its connections would get to the application.
        Verdict::Tproxy { port, mark } => {
            add(&format!("tproxy to :{port} meta mark set {mark} accept"));
            add("drop");
        }
        verdict => add(&verdict_text(verdict)),
    }
}

/// Whether a packet of whatever interface matches: nft has no word for it.
fn is_any(one: &Match) -> bool {
    matches!(one, Match::In(name) | Match::Out(name) if name == "+")
}

fn match_text(one: &Match, family: &str, protocol: &str) -> String {
    let interface = |name: &String| match name.strip_suffix('+') {
        Some(start) => format!("\"{start}*\""),
        None => format!("\"{name}\""),
    };
    match one {
        Match::Tcp => "meta l4proto tcp".into(),
        Match::Udp => "meta l4proto udp".into(),
        Match::In(name) => format!("iifname {}", interface(name)),
        Match::Out(name) => format!("oifname {}", interface(name)),
        Match::From(range) => format!("{family} saddr {range}"),
        Match::To(range) => format!("{family} daddr {range}"),
        Match::NotTo(range) => format!("{family} daddr != {range}"),
        Match::FromPort(port) => format!("{protocol} sport {port}"),
        Match::Port(ports) => format!("{protocol} dport {}", ports.text('-')),
        Match::NotPorts(ports) => match ports[..] {
            [port] => format!("{protocol} dport != {port}"),
            _ => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                format!("{protocol} dport != {{ {} }}", ports.join(", "))
            }
        },
        Match::User(ids) => format!("meta skuid {}", ids.text('-')),
        Match::NotUser(ids) => format!("meta skuid != {}", ids.text('-')),
        Match::Group(ids) => format!("meta skgid {}", ids.text('-')),
        Match::NotGroup(ids) => format!("meta skgid != {}", ids.text('-')),
        Match::NoneOfGroups(groups) => none_of(groups),
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::NotMark(mark) => format!("meta mark != {mark}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark}"),
        Match::Invalid => "ct state invalid".into(),
        Match::Established => "ct state related,established".into(),
    }
}

/// A set, since the kernel takes no more than 128 expressions in a rule; ranges of a set may not overlap.
fn none_of(groups: &[Range<u32>]) -> String {
    let mut groups = groups.to_vec();
    groups.sort_unstable_by_key(|range| range.first);
    let mut apart: Vec<Range<u32>> = Vec::new();
    for range in groups {
        match apart.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => apart.push(range),
        }
    }
    match apart[..] {
        [one] => match_text(&Match::NotGroup(one), "", ""),
        _ => {
            let apart: Vec<_> = apart.iter().map(|range| range.text('-')).collect();
            format!("meta skgid != {{ {} }}", apart.join(", "))
        }
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Jump(chain) => format!("jump {}", chain_name(chain)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Tproxy { port, .. } => format!("tproxy to :{port}"),
        Verdict::SetMark(mark) => format!("meta mark set {mark}"),
        Verdict::SaveMark => "ct mark set meta mark".into(),
        Verdict::RestoreMark => "meta mark set ct mark".into(),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Raw => "istio-proxy-raw",
        Table::Mangle => "istio-proxy-mangle",
        Table::Nat => "istio-proxy-nat",
    }
}

fn chain_name(chain: Chain) -> String {
    chain.name().to_ascii_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_set_are_apart() {
        let range = |first, last| Range { first, last };
        let text = none_of(&[range(7, 9), range(1, 1), range(5, 8), range(1, 1)]);
        assert_eq!(text, "meta skgid != { 1, 5-9 }");
        assert_eq!(none_of(&[range(3, 3)]), "meta skgid != 3");
    }
}
