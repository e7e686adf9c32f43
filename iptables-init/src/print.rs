//! `--dry-run`: what would be done, as the scripts and commands that would do it.

use crate::backend::iptables::Contents;
use crate::backend::nft;
use crate::plan::Plan;
use crate::routing;
use crate::rule::Family;
use crate::settings::{Action, Backend, Job};

/// All of it, on a namespace that has nothing yet.
#[must_use]
pub fn text(job: &Job) -> String {
    match job.action {
        Action::Nothing => return "# no rules: --skip-rule-apply\n".into(),
        Action::Cleanup => {
            let protocol = routing::OURS;
            return format!(
                "# iptables, ip6tables, nft: every chain of ours, and the jumps to it\n\
                 # ip rule, ip route, ip address: what is of protocol {protocol}\n"
            );
        }
        Action::Apply => {}
    }
    let plan = Plan::new(&job.settings);
    let mut out = String::new();
    for one in routing::wanted(&plan.routing) {
        out += &format!("# {}\n", one.text());
    }
    if job.backend == Backend::Nftables {
        return out + "# nft -f -\n" + &nft::script(&[], Some(&plan));
    }
    for rules in &plan.families {
        let program = match rules.family {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        };
        let script = Contents::default().script(&Contents::of_plan(rules));
        out += &format!("# {program} --noflush\n{script}");
    }
    out
}
