//! Rules as iptables writes them, and what iptables-save says there is. Between the two is a script for
//! iptables-restore that leads from one to the other, and touches nothing but chains of ours and jumps to them: with
//! `--noflush` each table changes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::plan::Rules;
use crate::rule::{Chain, Hook, Match, Rule, Table, Verdict};

/// What is ours in the tables of one family, as lines of iptables-save.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<Table, TableContents>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TableContents {
    /// `-A OUTPUT … -j ISTIO_OUTPUT`, and what else of the kernel's chains is Istio's.
    jumps: Vec<String>,
    /// Jumps from chains of others, which stay for as long as the chain that they lead to.
    foreign: Vec<String>,
    /// Chains and their lines.
    chains: BTreeMap<String, Vec<String>>,
}

impl Contents {
    /// What a plan wants.
    #[must_use]
    pub fn of_plan(rules: &Rules) -> Self {
        let tables = rules.tables.iter().map(|(table, chains)| {
            let jumps = chains.jumps.iter();
            let jumps = jumps.map(|(hook, rule)| line(hook_name(*hook), rule));
            let chains = chains.rules.iter().map(|(chain, rules)| {
                let lines = rules.iter().map(|rule| line(chain.name(), rule)).collect();
                (chain.name().to_owned(), lines)
            });
            let (jumps, chains) = (jumps.collect(), chains.collect());
            (*table, TableContents { jumps, foreign: Vec::new(), chains })
        });
        Self(tables.collect())
    }

    /// What iptables-save has printed.
    #[must_use]
    pub fn of_save(text: &str) -> Self {
        let mut out = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
            }
            let Some(table) = table else { continue };
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            match words[..] {
                [chain, ..] if chain.strip_prefix(':').is_some_and(is_ours) => {
                    out.0
                        .entry(table)
                        .or_default()
                        .chains
                        .entry(chain[1..].to_owned())
                        .or_default();
                }
                ["-A", chain, ..] if is_ours(chain) => {
                    let chains = &mut out.0.entry(table).or_default().chains;
                    chains.entry(chain.to_owned()).or_default().push(line.to_owned());
                }
                ["-A", chain, .., "-j" | "-g", target] if is_ours(target) => {
                    let contents = out.0.entry(table).or_default();
                    let jumps =
                        if is_hook(chain) { &mut contents.jumps } else { &mut contents.foreign };
                    jumps.push(line.to_owned());
                }
                _ => {}
            }
        }
        out
    }

    /// Takes for ours what istio-iptables has put right into the kernel's chains, in a table that has its chains: rules
    /// that a plan has in chains of ours, where these have not.
    #[must_use]
    pub fn with_istios(mut self, saved: &str, plan: &Self) -> Self {
        let mut table = None;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
            }
            let Some((table, there)) = table.and_then(|t| Some((t, self.0.get_mut(&t)?))) else {
                continue;
            };
            let known = |contents: &TableContents| {
                contents.chains.values().flatten().any(|other| meaning(other) == meaning(line))
            };
            let by_interface = matches!(
                line.split_ascii_whitespace().collect::<Vec<_>>()[..],
                ["-A", _, "-i" | "-o", _, "-j", "RETURN"]
            );
            let in_hook = line.split_ascii_whitespace().nth(1).is_some_and(is_hook);
            let seen = there.jumps.iter().any(|jump| jump == line);
            if line.starts_with("-A ")
                && in_hook
                && !seen
                && (by_interface || table == Table::Mangle)
                && plan.0.get(&table).is_some_and(known)
                && !known(there)
            {
                there.jumps.push(line.to_owned());
            }
        }
        self
    }

    /// Whether nothing of ours is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The script that leads from this to another; empty when there is nothing to do. Tables that get rules come
    /// first, in the order of [`Table`]; what is only removed goes the other way round.
    #[must_use]
    pub fn script(&self, to: &Self) -> String {
        let none = TableContents::default();
        let gone = Table::ALL.into_iter().rev().filter(|table| !to.0.contains_key(table));
        let mut script = String::new();
        for table in to.0.keys().copied().chain(gone) {
            let (from, to) = (self.0.get(&table), to.0.get(&table));
            if from.is_some() || to.is_some() {
                let _ = writeln!(script, "*{}", table.name());
                from.unwrap_or(&none).change(to.unwrap_or(&none), &mut script);
                script += "COMMIT\n";
            }
        }
        script
    }
}

impl TableContents {
    fn change(&self, to: &Self, script: &mut String) {
        let mut add = |words: &[&str]| {
            let _ = writeln!(script, "{}", words.concat());
        };
        // Makes a chain, or empties it.
        for chain in self.chains.keys().chain(to.chains.keys()).collect::<BTreeSet<_>>() {
            add(&[":", chain, " - [0:0]"]);
        }
        for line in to.chains.values().flatten() {
            add(&[line]);
        }
        // A jump that is there already keeps its place among the rules of others.
        let mut kept: Vec<&String> = Vec::new();
        for jump in &self.jumps {
            if to.jumps.contains(jump) && !kept.contains(&jump) {
                kept.push(jump);
            } else {
                add(&["-D", jump.strip_prefix("-A").unwrap_or(jump)]);
            }
        }
        for jump in to.jumps.iter().filter(|jump| !kept.contains(jump)) {
            add(&[jump]);
        }
        let leads_nowhere = |line: &&String| {
            let target = line.split_ascii_whitespace().next_back();
            !target.is_some_and(|target| to.chains.contains_key(target))
        };
        for line in self.foreign.iter().filter(leads_nowhere) {
            add(&["-D", line.strip_prefix("-A").unwrap_or(line)]);
        }
        for chain in self.chains.keys().filter(|chain| !to.chains.contains_key(*chain)) {
            add(&["-X ", chain]);
        }
    }
}

/// Whether a chain has one of our names.
#[must_use]
pub fn is_ours(chain: &str) -> bool {
    Chain::ALL.into_iter().any(|ours| ours.name() == chain)
}

fn is_hook(chain: &str) -> bool {
    ["PREROUTING", "OUTPUT"].contains(&chain)
}

/// What a line says but for its chain: our words, in an order of their own, for those of iptables-save.
fn meaning(line: &str) -> Vec<String> {
    let whole = ["--nfmask", "--ctmask", "0xffffffff"];
    let words = line.split_ascii_whitespace().skip(2).filter(|word| !whole.contains(word));
    let mut words: Vec<_> = words
        .map(|word| match word.strip_suffix("/0xffffffff").unwrap_or(word) {
            "--set-xmark" => "--set-mark".to_owned(),
            word => {
                let hex = word.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
                hex.map_or_else(|| word.to_owned(), |number| number.to_string())
            }
        })
        .collect();
    words.sort_unstable();
    words
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Output => "OUTPUT",
    }
}

/// `-A CHAIN …`
fn line(chain: &str, rule: &Rule) -> String {
    let mut out = format!("-A {chain}");
    for one in &rule.matches {
        out.push(' ');
        out += &match_text(one);
    }
    out += " -j ";
    out += &verdict_text(rule.verdict);
    out
}

fn match_text(one: &Match) -> String {
    match one {
        Match::Tcp => "-p tcp".into(),
        Match::Udp => "-p udp".into(),
        Match::In(interface) => format!("-i {interface}"),
        Match::Out(interface) => format!("-o {interface}"),
        Match::From(range) => format!("-s {range}"),
        Match::To(range) => format!("-d {range}"),
        Match::NotTo(range) => format!("! -d {range}"),
        Match::FromPort(port) => format!("--sport {port}"),
        Match::Port(ports) => format!("--dport {}", ports.text(':')),
        Match::NotPorts(ports) => match ports[..] {
            [port] => format!("! --dport {port}"),
            _ => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                format!("-m multiport ! --dports {}", ports.join(","))
            }
        },
        Match::User(ids) => format!("-m owner --uid-owner {}", ids.text('-')),
        Match::NotUser(ids) => format!("-m owner ! --uid-owner {}", ids.text('-')),
        Match::Group(ids) => format!("-m owner --gid-owner {}", ids.text('-')),
        Match::NotGroup(ids) => format!("-m owner ! --gid-owner {}", ids.text('-')),
        Match::NoneOfGroups(groups) => {
            let each = groups.iter().map(|ids| match_text(&Match::NotGroup(*ids)));
            each.collect::<Vec<_>>().join(" ")
        }
        Match::Mark(mark) => format!("-m mark --mark {mark}"),
        Match::NotMark(mark) => format!("-m mark ! --mark {mark}"),
        Match::ConnectionMark(mark) => format!("-m connmark --mark {mark}"),
        Match::Invalid => "-m conntrack --ctstate INVALID".into(),
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED".into(),
    }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Return => "RETURN".into(),
        Verdict::Accept => "ACCEPT".into(),
        Verdict::Drop => "DROP".into(),
        Verdict::Jump(chain) => chain.name().into(),
        Verdict::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        Verdict::Tproxy { port, mark } => {
            format!("TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}")
        }
        Verdict::SetMark(mark) => format!("MARK --set-mark {mark}"),
        Verdict::SaveMark => "CONNMARK --save-mark".into(),
        Verdict::RestoreMark => "CONNMARK --restore-mark".into(),
        Verdict::Zone(zone) => format!("CT --zone {zone}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated by iptables-save\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE - [0:0]\n\
        :ISTIO_OUTPUT - [0:0]\n:ISTIO_OTHER - [0:0]\n-A OUTPUT -o eth1 -j RETURN\n-A OUTPUT -j ISTIO_OUTPUT\n\
        -A OUTPUT -j ISTIO_OUTPUT\n-A OUTPUT -j KUBE\n-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\nCOMMIT\n\
        *filter\n:ISTIO_OUTPUT - [0:0]\nCOMMIT\n";

    #[test]
    fn what_is_ours_is_removed_and_nothing_else() {
        let there = Contents::of_save(SAVED);
        assert_eq!(
            there.script(&Contents::default()),
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-D OUTPUT -j ISTIO_OUTPUT\n-D OUTPUT -j ISTIO_OUTPUT\n\
             -X ISTIO_OUTPUT\nCOMMIT\n"
        );
        assert_eq!(Contents::default().script(&Contents::default()), "");
    }

    #[test]
    fn istios_rules_outside_its_chains_go_with_them() {
        let planned = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A ISTIO_OUTPUT -o eth1 -j RETURN\n\
            -A ISTIO_OUTPUT -d 10.0.0.0/8 -j RETURN\nCOMMIT\n*mangle\n:ISTIO_OUTPUT - [0:0]\n\
            -A ISTIO_OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark\n";
        let planned = Contents::of_save(planned);
        let istios = "*mangle\n:ISTIO_INBOUND - [0:0]\n-A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK \
            --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n-A OUTPUT -o eth2 -j RETURN\nCOMMIT\n\
            *nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -o eth1 -j RETURN\n-A OUTPUT -d 10.0.0.0/8 -j RETURN\n\
            -A KUBE -j ISTIO_OUTPUT\n";
        let there = Contents::of_save(istios).with_istios(istios, &planned);
        assert_eq!(
            there.script(&Contents::default()),
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-D OUTPUT -o eth1 -j RETURN\n-D KUBE -j ISTIO_OUTPUT\n-X ISTIO_OUTPUT\n\
             COMMIT\n*mangle\n:ISTIO_INBOUND - [0:0]\n-D OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK \
             --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n-X ISTIO_INBOUND\nCOMMIT\n"
        );
        assert!(!there.script(&planned).contains("KUBE"));
        // Beside a chain of ours that has it, it is another's.
        let ours = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -o eth1 -j RETURN\n-A ISTIO_OUTPUT -o eth1 -j RETURN\n";
        let there = Contents::of_save(ours);
        assert_eq!(there.clone().with_istios(ours, &planned), there);
    }

    #[test]
    fn a_jump_that_is_there_stays_and_its_double_goes() {
        let there = Contents::of_save(SAVED);
        let wanted = Contents::of_save("*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n");
        assert_eq!(
            there.script(&wanted),
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-D OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"
        );
    }
}
