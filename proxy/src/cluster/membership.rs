//! From one list of hosts to the next: a host that stays is the same object, with its pools and counts, whatever its
//! control plane says anew of its weight, health, metadata or priority. As Envoy's `updateDynamicHostList`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::host::{Host, HostSet, HostSpec};
use crate::config::cluster::Cluster;
use crate::stream_info::Address;

/// What an update has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Priorities that hosts have joined or left: `membership_change` counts each.
    pub priorities: u64,
    /// Whether balancers have to look again: at members, weights, health, metadata or priorities.
    pub is_seen: bool,
}

/// The hosts of `specs`, by priority, then in order. Those of `old` that have gone are marked.
pub(super) fn merge(
    cluster: &Cluster,
    old: Option<&HostSet>,
    mut specs: Vec<HostSpec>,
) -> (Box<[Arc<Host>]>, Change) {
    // DNS may give an address twice, and so may a static cluster.
    let mut known: FxHashMap<&Address, SmallVec<[&Arc<Host>; 1]>> = FxHashMap::default();
    for host in old.iter().flat_map(|set| set.hosts.iter().rev()) {
        known.entry(&host.address).or_default().push(host);
    }
    specs.sort_by_key(|spec| spec.priority);
    let mut change = Change::default();
    let mut touched = BTreeSet::new();
    let mut hosts = Vec::with_capacity(specs.len());
    for spec in specs {
        let same = known.get_mut(&spec.address).and_then(|hosts| {
            let at = hosts.iter().rposition(|host| host.is_same(&spec))?;
            Some(hosts.remove(at))
        });
        if let Some(host) = same {
            let before = host.priority();
            if before != spec.priority {
                touched.extend([before, spec.priority]);
            }
            change.is_seen |= host.update(cluster, spec);
            hosts.push(Arc::clone(host));
        } else {
            touched.insert(spec.priority);
            hosts.push(Arc::new(Host::new(cluster, spec)));
        }
    }
    for host in known.values().flatten() {
        host.mark_removed();
        touched.insert(host.priority());
    }
    change.priorities = touched.len() as u64;
    change.is_seen |= !touched.is_empty();
    (hosts.into(), change)
}
