//! The mesh of `tests/mesh/` over every network, of Outriggers behind the rules of `outrigger-init`: each row of the
//! table holds, and nothing passes the proxies that should not.
//!
//! Needs root, network namespaces, iptables of both flavours, nft and the binaries that `tests/mesh/build.sh` builds
//! (`MESH_BIN`); of the kernel NAT and TPROXY for both families, without which the rules are not installed and a test
//! fails.

use anyhow::{Result, ensure};
use tests::mesh::capture;
use tests::mesh::cases::{self, table};
use tests::mesh::network::{Families, Interception, Network};
use tests::mesh::{Mesh, Setup};

/// Which program puts rules into the kernel: whichever the machine has, or the one that was asked for.
const DEFAULT: &str = "";
const LEGACY: &str = "--force-iptables-binary legacy";
const NATIVE: &str = "--native-nftables";

/// Whose rules.
enum Rules {
    Ours(&'static [&'static str]),
    Istios,
}

/// Meshes named `name` with a network, one for each way to install rules: nothing is wrong in them.
fn holds(name: &str, families: Families, interception: Interception, rules: &Rules) -> Result<()> {
    let network = Network { families, interception };
    let init = std::env::var("OUTRIGGER_INIT_BIN").unwrap_or_else(|_| "outrigger-init".into());
    let commands: Vec<_> = match rules {
        Rules::Istios => vec![None],
        Rules::Ours(backends) => {
            let dual = if families == Families::Dual { "--dual-stack" } else { "" };
            let flags = format!("-p 15001 -z 15006 -u 1337 -m {} {dual}", network.mode());
            let command =
                |backend| format!("{init} {flags} -i * -x '' -b * -d 15090,15021,15020 {backend}");
            backends.iter().map(|backend| Some(command(backend))).collect()
        }
    };
    let mut wrong = Vec::new();
    for command in commands {
        let redirect = command.as_deref();
        let proxy_config = Some(capture::PROXY_CONFIG);
        let setup = Setup { redirect, network, proxy_config, ..Setup::default() };
        let mesh = Mesh::of_outriggers(name, &setup)?;
        // A proxy is ready before it has all there is.
        mesh.settled()?;
        let mut say = |what: String| wrong.push(format!("rules by {redirect:?}: {what}"));
        for ipv6 in [false, true] {
            let there = match families {
                Families::Ipv4 => !ipv6,
                Families::Ipv6 => ipv6,
                Families::Dual => true,
            };
            if there {
                let rows = cases::rows_over(network, ipv6)?;
                table(&mesh, &rows)?.1.into_iter().for_each(&mut say);
                capture::leaks(&mesh, ipv6)?.into_iter().for_each(&mut say);
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn ipv4_redirected() -> Result<()> {
    let rules = Rules::Ours(&[DEFAULT, LEGACY, NATIVE]);
    holds("mesh-r4", Families::Ipv4, Interception::Redirect, &rules)
}

#[test]
fn ipv6_redirected() -> Result<()> {
    let rules = Rules::Ours(&[DEFAULT, LEGACY, NATIVE]);
    holds("mesh-r6", Families::Ipv6, Interception::Redirect, &rules)
}

#[test]
fn ipv4_transparent() -> Result<()> {
    let rules = Rules::Ours(&[DEFAULT, NATIVE]);
    holds("mesh-t4", Families::Ipv4, Interception::Tproxy, &rules)
}

#[test]
fn ipv6_transparent() -> Result<()> {
    let rules = Rules::Ours(&[DEFAULT, LEGACY]);
    holds("mesh-t6", Families::Ipv6, Interception::Tproxy, &rules)
}

#[test]
fn dual_stack_redirected() -> Result<()> {
    let rules = Rules::Ours(&[DEFAULT]);
    holds("mesh-rd", Families::Dual, Interception::Redirect, &rules)
}

#[test]
fn dual_stack_transparent() -> Result<()> {
    let rules = Rules::Ours(&[NATIVE]);
    holds("mesh-td", Families::Dual, Interception::Tproxy, &rules)
}

/// What the tests above expect is what Istio's own rules do.
#[test]
fn istios_own_rules_do_the_same() -> Result<()> {
    let (redirect, tproxy) = (Interception::Redirect, Interception::Tproxy);
    holds("mesh-i4", Families::Ipv4, redirect, &Rules::Istios)?;
    holds("mesh-i6", Families::Ipv6, tproxy, &Rules::Istios)
}
