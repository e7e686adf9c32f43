//! Localities of a priority under `locality_weighted_lb_config`: each takes its weight's share of the traffic, less
//! what of its hosts cannot be used.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/locality_weight>

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::{Health, Host};
use crate::config::endpoint::LoadAssignment;

/// One locality's hosts (indices into `HostSet::hosts`) and its share among the others of its priority.
#[derive(Debug)]
pub struct LocalityHosts {
    pub healthy: Shared,
    pub degraded: Shared,
}

/// The hosts in one state of health.
#[derive(Debug)]
pub struct Shared {
    pub hosts: Box<[u32]>,
    /// 0 where none may be picked.
    pub weight: f64,
}

/// The localities of a priority, whose hosts start at index `start`; those without a weight get no traffic.
pub(super) fn localities(
    assignment: &LoadAssignment,
    priority: u32,
    start: u32,
    hosts: &[Arc<Host>],
) -> Box<[LocalityHosts]> {
    let mut weights = BTreeMap::new();
    for locality in assignment.localities.iter().filter(|one| one.priority == priority) {
        if let Some(weight) = locality.weight {
            weights.insert(&*locality.locality, weight);
        }
    }
    if weights.is_empty() {
        return Box::default();
    }
    let mut groups: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (i, host) in hosts.iter().enumerate() {
        groups.entry(&*host.locality).or_default().push(start + i as u32);
    }
    let one = |(locality, members): (_, Vec<u32>)| {
        let weight = f64::from(weights.get(locality).copied().unwrap_or(0));
        let shared = |wanted: Health| {
            let is_wanted = |at: &&u32| hosts[(**at - start) as usize].health() == wanted;
            let usable: Box<[u32]> = members.iter().filter(is_wanted).copied().collect();
            let ratio = usable.len() as f64 / members.len() as f64;
            let factor = f64::from(assignment.overprovisioning_factor) / 100.0;
            Shared { weight: weight * (factor * ratio).min(1.0), hosts: usable }
        };
        LocalityHosts { healthy: shared(Health::Healthy), degraded: shared(Health::Degraded) }
    };
    groups.into_iter().map(one).collect()
}
