//! The rules of `outrigger-init` beside those of the real istio-iptables: for forty combinations of flags, where does
//! each of a matrix of connections end? With iptables of both flavours and with nft.
//!
//! Needs root, network namespaces, iptables, nft, and pilot-agent (`MESH_BIN`).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tests::pod::{Pod, Probe, Who};

/// Flags, or `VARIABLE=value`. The proxy is user and group 1337 unless they say so.
const COMBINATIONS: &[&str] = &[
    "-p 15001",
    "-i *",
    "-b *",
    "-i * -b * -d 15090,80",
    "-i * -b * -u 1337 -g 1337 -m REDIRECT",
    "-i * -b * --dual-stack",
    "-i * -b 80,443 -o 22,9000",
    "-i * -b 79:81 -d 80",
    "-i * -b * -x 10.9.0.3/32",
    "-i * -b * -x 10.9.0.3/32,fd09::3/128 --dual-stack",
    "-i 10.9.0.2/32 -b *",
    "-i 10.9.0.2/32,fd09::2/128 -b * --dual-stack",
    "-i 10.9.0.0/24 -x 10.9.0.2/31 -q 443",
    "-q 80,443",
    "-q 80,443 -o 443 --dual-stack",
    "-i 127.0.0.0/8,10.9.0.0/24 -b *",
    "-i * -b * -c net1",
    "-i * -b * -c net+,eth9 --dual-stack",
    "-i * -b * -c + --dual-stack",
    "-i * -b * -k net1",
    "-i 10.9.0.0/24 -k net1,net9 -b 80",
    "-i 10.9.0.0/24,10.7.0.0/16 -k net1 -c eth0",
    "-i * -b * -z 15053 -p 15006",
    "-i * -b * -e 443",
    "-i * -b * -u 1000",
    "-i * -b * -u 1337,1000 -g 100",
    "-i * -b * -u 1337 -g 0,100",
    "ISTIO_OUTBOUND_OWNER_GROUPS=100 -i * -b *",
    "ISTIO_OUTBOUND_OWNER_GROUPS=100,1000 -i * --redirect-dns",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=100,0 -i * -b * --dual-stack",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.0/8 -i * -b *",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.0/29 -i * -b * -m TPROXY",
    "-i * -b * --redirect-dns",
    "-i * -b * --redirect-dns --dual-stack -o 53",
    "-i * -b * --redirect-dns --capture-all-dns --dual-stack",
    "--redirect-dns --capture-all-dns -u 1337,1000 --drop-invalid",
    "-i * -b * --drop-invalid --dual-stack",
    "-i * -b * -m TPROXY",
    "-i * -b * -d 80 -m TPROXY --dual-stack --drop-invalid --redirect-dns",
    "-i * -b 80,9000 -m TPROXY -c net1 -t 1400 -r 77",
    "-i * -m TPROXY --dual-stack --capture-all-dns --redirect-dns",
];

/// Which program puts which rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Istio,
    Nft,
    Legacy,
    Native,
}

impl Rules {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Istio | Self::Nft => &["--force-iptables-binary", "nft"],
            Self::Legacy => &["--force-iptables-binary", "legacy"],
            Self::Native => &["--native-nftables"],
        }
    }

    /// The program with one of the combinations.
    fn command(self, line: &str) -> Command {
        let mut command = match self {
            Self::Istio => {
                let bin = std::env::var_os("MESH_BIN").map_or_else(PathBuf::new, PathBuf::from);
                let mut command = Command::new(bin.join("pilot-agent"));
                command.arg("istio-iptables");
                command
            }
            _ => Command::new(init()),
        };
        for word in line.split(' ') {
            match word.split_once('=') {
                Some((name, value)) => command.env(name, value),
                None => command.arg(word),
            };
        }
        command.args(self.flags());
        command
    }
}

/// `OUTRIGGER_INIT_BIN`, or this workspace's release build.
fn init() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/outrigger-init");
    std::env::var_os("OUTRIGGER_INIT_BIN").map_or_else(built, PathBuf::from)
}

/// Everything that can be told apart: by user, by group, by address, by port, by interface.
fn probes() -> Result<Vec<Probe>> {
    let mut probes = Vec::new();
    let mut add = |who: &[Who], udp: bool, from: Option<&str>, to: &[&str]| -> Result<()> {
        for who in who {
            for to in to {
                let from: Option<IpAddr> = from.map(str::parse).transpose()?;
                let to: SocketAddr = to.parse().with_context(|| (*to).to_owned())?;
                probes.push(Probe { who: *who, udp, from, to });
            }
        }
        Ok(())
    };
    let pod = [(1000, 1000), (1337, 1337), (1337, 1000), (1000, 1337), (1000, 100), (0, 0)];
    let pod = pod.map(|(user, group)| Who::Pod(user, group));
    let itself =
        ["127.0.0.1:80", "127.0.0.1:53", "127.0.0.1:15008", "127.0.0.5:80", "127.0.0.9:80"];
    add(&pod, false, None, &itself)?;
    add(&pod, false, None, &["10.9.0.1:80", "10.9.0.1:53", "10.9.0.1:443", "10.9.0.1:15008"])?;
    let others = ["10.9.0.2:80", "10.9.0.2:443", "10.9.0.2:22", "10.9.0.2:53", "10.9.0.2:15008"];
    add(&pod, false, None, &others)?;
    add(&pod, false, None, &["10.9.0.3:80", "10.9.0.3:53", "10.9.0.3:443", "10.8.0.2:80"])?;
    add(&pod, false, None, &["[::1]:80", "[fd09::1]:80", "[fd09::1]:53", "[fd09::1]:15008"])?;
    add(&pod, false, None, &["[fd09::2]:80", "[fd09::2]:53", "[fd09::2]:443", "[fd09::3]:80"])?;
    add(&pod, true, None, &["10.9.0.2:53", "127.0.0.1:53", "10.9.0.1:53", "10.9.0.2:9000"])?;
    add(&pod, true, None, &["[fd09::2]:53", "[::1]:53", "[fd09::2]:9000"])?;
    // What the proxy sends to its application, and what nobody listens to.
    add(&pod[..2], false, Some("127.0.0.6"), &["127.0.0.1:80", "10.9.0.1:80"])?;
    add(&pod[..2], false, Some("::6"), &["[::1]:80", "[fd09::1]:80"])?;
    add(&pod[..2], false, None, &["127.0.0.1:7", "10.9.0.1:7", "10.9.0.2:7"])?;
    let ports =
        ["10.9.0.1:80", "10.9.0.1:443", "10.9.0.1:9000", "10.9.0.1:15090", "10.9.0.1:15008"];
    let neighbour = [Who::Neighbour];
    add(&neighbour, false, None, &ports)?;
    add(
        &neighbour,
        false,
        None,
        &["10.9.0.1:15001", "10.9.0.1:15006", "10.9.0.1:53", "10.9.0.1:7"],
    )?;
    add(&neighbour, false, None, &["10.8.0.1:80", "10.8.0.1:9000", "10.7.0.9:80", "10.7.0.9:443"])?;
    add(&neighbour, false, None, &["[fd09::1]:80", "[fd09::1]:15090", "[fd09::1]:15008"])?;
    add(&neighbour, true, None, &["10.9.0.1:53", "10.9.0.1:9000", "[fd09::1]:53"])?;
    Ok(probes)
}

/// A new pod with these rules: where all probes end.
async fn fates(rules: Rules, line: &str, probes: &[Probe]) -> Result<Vec<String>> {
    let pod = Pod::new().await?;
    let done = pod.command(rules.command(line)).await?;
    if !done.status.success() {
        let (out, err) = (done.stdout, done.stderr);
        bail!("{} {}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    }
    pod.fates(probes).await
}

/// Compares every fourth combination, from one on.
fn compare(first: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let probes = probes()?;
    let mut differ = Vec::new();
    let mut ends = std::collections::BTreeSet::new();
    for line in COMBINATIONS.iter().skip(first).step_by(4) {
        let theirs = runtime.block_on(fates(Rules::Istio, line, &probes)).context(*line)?;
        for rules in [Rules::Nft, Rules::Legacy, Rules::Native] {
            let ours = runtime.block_on(fates(rules, line, &probes)).context(*line)?;
            for ((probe, theirs), ours) in probes.iter().zip(&theirs).zip(&ours) {
                if theirs != ours {
                    differ.push(format!("{line}: {rules:?}: {probe}: {theirs} / {ours}"));
                }
            }
        }
        ends.extend(theirs);
    }
    assert!(differ.is_empty(), "{} differ (theirs / ours):\n{}", differ.len(), differ.join("\n"));
    // Or else nothing was compared.
    for port in ["pod 15001", "pod 15006", "pod 80 ", "neighbour 80 "] {
        assert!(ends.iter().any(|end| end.starts_with(port)), "{port}: {ends:?}");
    }
    Ok(())
}

#[test]
fn connections_end_where_istios_rules_lead_them_1_of_4() -> Result<()> {
    compare(0)
}

#[test]
fn connections_end_where_istios_rules_lead_them_2_of_4() -> Result<()> {
    compare(1)
}

#[test]
fn connections_end_where_istios_rules_lead_them_3_of_4() -> Result<()> {
    compare(2)
}

#[test]
fn connections_end_where_istios_rules_lead_them_4_of_4() -> Result<()> {
    compare(3)
}

/// A script in a new pod, where `$INIT` is the program; each command has to succeed.
fn in_a_pod(script: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let script = format!("INIT={}; redirect='-b * -i *'; set -f\n{script}", init().display());
    runtime.block_on(async { Pod::new().await?.shell(&script).await }).map(|_| ())
}

#[test]
fn routes_of_an_earlier_run_go_and_those_of_others_stay() -> Result<()> {
    in_a_pod(
        "ip rule add not fwmark 1400 lookup 77; ip rule add fwmark 1400 uidrange 5-6 lookup 200
         ip rule add fwmark 9 lookup 200; ip route add local default dev lo table 77
         ip rule >before; ip route show table 77 >>before
         $INIT $redirect -m TPROXY -t 1400 -r 200; ip rule | grep -q 'from all fwmark 0x578 lookup 200'
         ip route show table 200 | grep -q local; $INIT $redirect
         if ip route show table 200 2>&1 | grep local; then exit 1; fi
         $INIT $redirect -m TPROXY -t 1400 -r 200 --dual-stack; $INIT --cleanup-only
         ip rule >after; ip route show table 77 >>after
         cmp before after; rm before after"
            .replace("before", "/tmp/outrigger-init-$$.before")
            .replace("after", "/tmp/outrigger-init-$$.after")
            .as_str(),
    )
}

#[test]
fn a_node_s_lock_and_ours_do_not_wait_for_each_other() -> Result<()> {
    in_a_pod(
        "namespace=/proc/self/ns/net
         $INIT $redirect --cni-mode --network-namespace $namespace --force-iptables-binary legacy
         iptables-legacy-save | grep -q ISTIO
         NETWORK_NAMESPACE=/no/such/path $INIT $redirect --force-iptables-binary legacy",
    )
}

#[test]
fn what_no_program_can_remove_is_told() -> Result<()> {
    in_a_pod(
        "for flavour in nft legacy; do
           $INIT $redirect --force-iptables-binary $flavour
           if PATH=/no/such/path $INIT --cleanup-only; then exit 1; fi
           iptables-$flavour-save | grep -q ISTIO; $INIT --cleanup-only
           if iptables-$flavour-save | grep ISTIO; then exit 1; fi
         done",
    )
}

#[test]
fn a_failure_leaves_what_was_there() -> Result<()> {
    in_a_pod(
        "dir=$(mktemp -d); trap 'rm -r $dir' EXIT
         printf '#!/bin/sh\necho no >&2; exit 1\n' >$dir/iptables-nft-restore
         chmod +x $dir/iptables-nft-restore
         $INIT $redirect --native-nftables; nft -n list ruleset | sed 's/packets.*bytes [0-9]*//' >$dir/1
         # Made by another, so that it has to go with a program that fails.
         iptables-nft -t nat -N ISTIO_OUTPUT
         if PATH=$dir:$PATH $INIT -b 80 -i '*' -m TPROXY --native-nftables; then exit 1; fi
         if PATH=$dir:$PATH $INIT -b 80 -i '*' -m TPROXY --force-iptables-binary legacy; then exit 1; fi
         if iptables-legacy-save | grep ISTIO || ip rule | grep fwmark; then exit 1; fi
         iptables-nft -t nat -X ISTIO_OUTPUT; nft delete table ip nat
         nft -n list ruleset | sed 's/packets.*bytes [0-9]*//' >$dir/2; cmp $dir/1 $dir/2
         iptables-nft -t nat -N ISTIO_OUTPUT
         if PATH=$dir:$PATH $INIT --cleanup-only; then exit 1; fi
         if nft list ruleset | grep istio-proxy; then exit 1; fi",
    )
}

#[test]
fn istios_rules_go_with_its_chains() -> Result<()> {
    in_a_pod(
        "for flavour in nft legacy; do for mode in REDIRECT TPROXY; do
           flags=\"$redirect -c net1 -k net2 -m $mode -u 1337 -g 1337 --force-iptables-binary $flavour\"
           $MESH_BIN/pilot-agent istio-iptables $flags >/dev/null 2>&1; $INIT $flags; $INIT --cleanup-only
           if iptables-$flavour-save | grep -e '^-A'; then exit 1; fi
           ip rule del fwmark 1337 2>/dev/null || true
           $INIT -o 30000:,:1023,0:65535 --native-nftables; $INIT --cleanup-only
         done; done",
    )
}

/// A kernel need not take the rules of the flavour that is there.
#[test]
fn the_other_iptables_is_tried_where_neither_was_asked_for() -> Result<()> {
    in_a_pod(
        "dir=$(mktemp -d); trap 'rm -r $dir' EXIT
         printf '#!/bin/sh\necho no >&2; exit 1\n' >$dir/iptables-nft-restore
         chmod +x $dir/iptables-nft-restore
         PATH=$dir:$PATH $INIT $redirect; iptables-legacy-save | grep -q ISTIO_REDIRECT
         if nft list ruleset | grep ISTIO; then exit 1; fi
         $INIT --cleanup-only
         if PATH=$dir:$PATH $INIT $redirect --force-iptables-binary nft; then exit 1; fi
         if iptables-legacy-save | grep ISTIO; then exit 1; fi
         cp $dir/iptables-nft-restore $dir/iptables-legacy-restore
         if PATH=$dir:$PATH $INIT $redirect; then exit 1; fi
         if iptables-legacy-save | grep ISTIO; nft list ruleset | grep ISTIO; then exit 1; fi",
    )
}

#[test]
fn each_family_that_has_rules_is_validated() -> Result<()> {
    in_a_pod(
        "for backend in '--force-iptables-binary nft' '--force-iptables-binary legacy' --native-nftables; do
           flags=\"$redirect -p 15101 -z 15106 --dual-stack $backend --run-validation --probe-timeout 100s\"
           $INIT $flags
         done
         flags=\"$redirect -p 15101 -z 15106 --run-validation --skip-rule-apply\"
         nft delete table ip6 istio-proxy-nat; $INIT $flags --probe-timeout 100s
         status=0; $INIT $flags --probe-timeout 200ms --dual-stack --dry-run || status=$?; test $status = 126",
    )
}

/// A run may be killed anywhere: what comes after it does its work, and a cleanup leaves what was there before.
#[test]
fn two_hundred_killed_runs_leave_nothing() -> Result<()> {
    in_a_pod(
        "state() {
           for save in iptables-nft-save iptables-legacy-save ip6tables-nft-save ip6tables-legacy-save; do
             $save 2>/dev/null | grep -e '^-A' -e '^:.* - ' || true
           done
           nft list tables | grep -e istio -e foreign; nft list table inet foreign; ip rule
           ip -6 rule; ip route show table 133; ip -6 route show table 133 2>/dev/null || true
         }
         for i in iptables-nft iptables-legacy; do
           $i -t nat -N FOREIGN; $i -t nat -A FOREIGN -p tcp --dport 7777 -j RETURN
           $i -t nat -A OUTPUT -j FOREIGN; $i -t mangle -A PREROUTING -i net9 -j RETURN
         done
         nft add table inet foreign; nft add chain inet foreign output; nft add rule inet foreign output accept
         ip rule add fwmark 9 lookup 133; ip route add local default dev lo table 133 protocol static metric 7
         before=$(state); round=0
         while [ $round -lt 200 ]; do
           case $((round % 3)) in
             0) backend='--force-iptables-binary nft' ;;
             1) backend='--force-iptables-binary legacy' ;;
             2) backend=--native-nftables ;;
           esac
           case $((round % 5)) in
             0|1) mode=--redirect-dns ;;
             2) mode='-m TPROXY' ;;
             3) mode='-m TPROXY --dual-stack' ;;
             4) mode=--cleanup-only; $INIT $redirect $backend -m TPROXY ;;
           esac
           $INIT $redirect $backend $mode & killed=$!
           sleep 0.0$(printf %02d $((round * 7 % 30))); kill -9 $killed 2>/dev/null || true
           wait $killed || true
           $INIT $redirect $backend; $INIT $redirect $backend; $INIT --cleanup-only
           after=$(state); round=$((round + 1))
           if [ \"$after\" != \"$before\" ]; then
             echo \"round $round $backend $mode: $before BECAME $after\" >&2; exit 1
           fi
         done",
    )
}

#[test]
fn sixty_four_groups_are_one_rule() -> Result<()> {
    in_a_pod(
        "export ISTIO_OUTBOUND_OWNER_GROUPS=$(seq -s, 2000 2063)
         $INIT $redirect --native-nftables; nft list ruleset | grep -q 2063",
    )
}

#[test]
fn validation_without_a_way_out_and_for_ever() -> Result<()> {
    in_a_pod(
        "ip route del default 2>/dev/null || true
         timeout 100 $INIT $redirect -p 15101 -z 15106 --run-validation --probe-timeout 4000000000000000h",
    )
}

#[test]
fn there_are_forty_combinations_and_more() {
    let different: std::collections::BTreeSet<_> = COMBINATIONS.iter().collect();
    assert_eq!(different.len(), COMBINATIONS.len());
    assert!(different.len() >= 40, "{}", different.len());
}
