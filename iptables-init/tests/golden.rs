//! What flags become, as text: each file of `tests/golden` starts with `$` and flags, goes on with what `--dry-run`
//! prints on a host with given addresses, for iptables and for nft. `UPDATE_GOLDEN=1` writes them anew.

use std::net::IpAddr;
use std::path::Path;

use iptables_init::args::Arguments;
use iptables_init::host::Host;
use iptables_init::plan::{Plan, Rules};
use iptables_init::print;
use iptables_init::rule::{Chain, Verdict};
use iptables_init::settings::Job;

fn host() -> Host {
    let addresses = ["127.0.0.1", "10.9.0.1", "::1", "fd09::1"];
    Host {
        addresses: addresses.map(|a| a.parse().expect("an address")).into(),
        nameservers: Ok(["10.0.0.2", "fd00::2"].map(|a| a.parse::<IpAddr>().expect("one")).into()),
        user: |_| None,
        group: |_| None,
    }
}

/// Words of the form `NAME=value` before the flags are the environment.
fn job(line: &str, more: &[&str]) -> Job {
    let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let is_variable = |word: &&&str| word.starts_with("ISTIO_");
    let variables: Vec<_> = words.iter().filter(is_variable).map(|w| w.split_once('=')).collect();
    let flags = words.iter().filter(|word| !is_variable(word)).chain(more).map(Into::into);
    let arguments =
        Arguments::parse(std::iter::once("outrigger-init".into()).chain(flags), |name| {
            variables
                .iter()
                .flatten()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        });
    Job::new(&arguments.expect("a line"), &host()).expect("right settings")
}

#[test]
fn flags_become_these_rules() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differ = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(dir).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        let line = text.lines().next().and_then(|line| line.strip_prefix("$ ")).expect("flags");
        let iptables = print::text(&job(line, &[]));
        let nft = print::text(&job(line, &["--native-nftables"]));
        let now = format!("$ {line}\n\n{iptables}\n{nft}");
        files += 1;
        if now != text && update {
            std::fs::write(&path, now).expect("written");
        } else if now != text {
            differ.push(format!("{}:\n{now}", path.display()));
        }
    }
    assert!(files > 8, "only {files} files");
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn every_chain_is_led_to() {
    let modes =
        ["", "-m TPROXY ", "-m TPROXY -b 80 ", "-b * ", "-k eth1 ", "-m TPROXY -b * -k eth1 "];
    for mode in modes {
        for dns in ["", "--redirect-dns ", "--redirect-dns --capture-all-dns "] {
            for rest in ["", "--drop-invalid ", "--dual-stack --drop-invalid -c eth2"] {
                let line = format!("{mode}{dns}{rest}");
                for Rules { tables, .. } in Plan::new(&job(&line, &[]).settings).families {
                    for (table, chains) in tables {
                        let jumps = chains.jumps.iter().map(|(_, rule)| rule);
                        let targets: Vec<Chain> = jumps
                            .chain(chains.rules.values().flatten())
                            .filter_map(|rule| match rule.verdict {
                                Verdict::Jump(chain) => Some(chain),
                                _ => None,
                            })
                            .collect();
                        for chain in chains.rules.keys() {
                            // Nothing may be redirected as outbound; the chain is Istio's, too.
                            let led = targets.contains(chain) || *chain == Chain::Redirect;
                            assert!(led, "{line}: {table:?} {chain:?}");
                        }
                        for chain in targets {
                            assert!(
                                chains.rules.contains_key(&chain),
                                "{line}: {table:?} {chain:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
