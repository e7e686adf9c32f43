//! Rules as nft(8) writes them: a table for each of iptables', by Istio's names, filled in one transaction. Rules of an
//! earlier run go in the same transaction.

use std::fmt::Write as _;

use crate::netlink::NftTable;
use crate::plan::{Chains, Plan};
use crate::rule::{Chain, Family, Hook, Match, Rule, Table, Verdict};

/// Families of nftables that our tables may be of, by the kernel's numbers and nft's names. Istio's own are of `inet`.
const FAMILIES: [(u8, &str); 3] = [(2, "ip"), (10, "ip6"), (1, "inet")];

/// The transaction that removes our tables, and makes those of a plan. Empty when there is nothing to do.
#[must_use]
pub fn script(there: &[NftTable], plan: Option<&Plan>) -> String {
    let families = plan.map_or(&[][..], |plan| &plan.families);
    let wanted = |family: &str, table: Table| {
        let rules = families.iter().find(|rules| family_name(rules.family) == family);
        rules.and_then(|rules| rules.tables.get(&table))
    };
    let mut script = String::new();
    for (number, family) in FAMILIES {
        for table in Table::ALL {
            let name = table_name(table);
            let exists = there.iter().any(|(f, n)| *f == number && n == name);
            if exists || wanted(family, table).is_some() {
                let _ = writeln!(script, "add table {family} {name}\ndelete table {family} {name}");
            }
        }
    }
    for (_, family) in FAMILIES {
        for table in Table::ALL {
            if let Some(chains) = wanted(family, table) {
                let _ = writeln!(script, "table {family} {} {{", table_name(table));
                write_chains(table, chains, family, &mut script);
                script += "}\n";
            }
        }
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
    let words: Vec<_> = rule.matches.iter().map(|m| match_text(m, family, protocol)).collect();
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
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::NotMark(mark) => format!("meta mark != {mark}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark}"),
        Match::Invalid => "ct state invalid".into(),
        Match::Established => "ct state related,established".into(),
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
