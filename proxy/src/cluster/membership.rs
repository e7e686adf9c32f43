//! From one list of hosts to the next: a host that stays is the same object, with its pools and counts, whatever its
//! control plane says anew of its weight, health, metadata or priority. As Envoy's `updateDynamicHostList`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::host::{Health, Host, HostSet, HostSpec, policy_hash};
use crate::config::cluster::Cluster;
use crate::config::core::{ConfigAddress, Locality};
use crate::config::endpoint::{Endpoint, LoadAssignment, LocalityEndpoints};
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

/// What an assignment says, as statistics have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) total: usize,
    pub(super) healthy: usize,
    pub(super) degraded: usize,
    /// The greatest weight in the last priority, as `HostSet::heaviest_of_last`.
    pub(super) heaviest: u32,
    /// The last priority that has hosts, or 0.
    pub(super) last: u32,
}

impl Members {
    pub(super) fn of(assignment: &LoadAssignment) -> Self {
        let mut members = Self { total: 0, healthy: 0, degraded: 0, heaviest: 1, last: 0 };
        for (locality, endpoint) in hosts_of(assignment) {
            members.total += 1;
            match Health::from(endpoint.health) {
                Health::Healthy => members.healthy += 1,
                Health::Degraded => members.degraded += 1,
                Health::Unhealthy => {}
            }
            if members.total == 1 || locality.priority > members.last {
                (members.last, members.heaviest) = (locality.priority, endpoint.weight);
            } else if locality.priority == members.last {
                members.heaviest = members.heaviest.max(endpoint.weight);
            }
        }
        members
    }
}

/// What `merge` would say of the hosts of two assignments, without making them: for a cluster that nobody has used.
pub(super) fn compare(old: Option<&LoadAssignment>, new: &LoadAssignment) -> Change {
    type Name<'a> = (&'a ConfigAddress, Option<&'a str>, &'a Locality);
    fn name<'a>(locality: &'a LocalityEndpoints, endpoint: &'a Endpoint) -> Name<'a> {
        (&endpoint.address, endpoint.hostname.as_deref(), &locality.locality)
    }
    let mut change = Change {
        is_seen: old.is_none_or(|old| policy_hash(old) != policy_hash(new)),
        ..Change::default()
    };
    let mut touched = BTreeSet::new();
    let mut known: FxHashMap<Name<'_>, (u32, &Endpoint)> = FxHashMap::default();
    for (locality, endpoint) in old.into_iter().flat_map(hosts_of) {
        known.insert(name(locality, endpoint), (locality.priority, endpoint));
    }
    for (locality, endpoint) in hosts_of(new) {
        match known.remove(&name(locality, endpoint)) {
            Some((priority, before)) => {
                if priority != locality.priority {
                    touched.extend([priority, locality.priority]);
                }
                change.is_seen |= Health::from(before.health) != Health::from(endpoint.health)
                    || before.weight != endpoint.weight
                    || before.metadata != endpoint.metadata;
            }
            None => {
                touched.insert(locality.priority);
            }
        }
    }
    touched.extend(known.values().map(|(priority, _)| *priority));
    change.priorities = touched.len() as u64;
    change.is_seen |= !touched.is_empty();
    change
}

/// Endpoints that become hosts: names to be resolved are for clusters of DNS alone.
fn hosts_of(assignment: &LoadAssignment) -> impl Iterator<Item = (&LocalityEndpoints, &Endpoint)> {
    assignment
        .endpoints()
        .filter(|(_, endpoint)| !matches!(endpoint.address, ConfigAddress::Dns { .. }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::tests::cluster;
    use crate::config::cluster::LbPolicy;
    use crate::config::endpoint::HealthStatus;

    fn endpoint() -> impl Strategy<Value = (u16, Option<bool>, u32, bool, usize)> {
        (1..6u16, any::<Option<bool>>(), 1..3u32, any::<bool>(), 0..3usize)
    }

    /// Up to three localities with a priority and a weight.
    fn assignment() -> impl Strategy<Value = LoadAssignment> {
        let endpoints = prop::collection::vec(endpoint(), 0..5);
        let locality = (0..3u32, any::<Option<bool>>(), any::<bool>(), endpoints);
        prop::collection::vec(locality, 0..4).prop_map(|localities| {
            let locality =
                |(priority, weight, east, endpoints): (u32, Option<bool>, bool, Vec<_>)| {
                    let endpoint = |(port, hostname, weight, canary, health)| Endpoint {
                        address: ConfigAddress::Ip {
                            addr: ([127, 0, 0, 1], port).into(),
                            ipv4_compat: false,
                        },
                        hostname: Option::map(hostname, |one| if one { "a" } else { "b" }.into()),
                        metadata: Some(canary).filter(|canary| *canary).map(|canary| {
                            let lb = serde_json::json!({"envoy.lb": {"canary": canary}});
                            Arc::new(lb.as_object().cloned().unwrap())
                        }),
                        weight,
                        health: [
                            HealthStatus::Unknown,
                            HealthStatus::Draining,
                            HealthStatus::Degraded,
                        ][health],
                    };
                    LocalityEndpoints {
                        locality: Arc::new(Locality {
                            region: if east { "east" } else { "west" }.into(),
                            ..Locality::default()
                        }),
                        priority,
                        weight: weight.map(u32::from),
                        endpoints: endpoints.into_iter().map(endpoint).collect(),
                    }
                };
            let localities = localities.into_iter().map(locality).collect();
            let mut assignment = LoadAssignment { localities, ..LoadAssignment::default() };
            assignment.remove_duplicates();
            assignment
        })
    }

    proptest! {
        #[test]
        fn assignments_compare_as_their_hosts_do(
            old in prop::option::of(assignment()),
            new in assignment(),
        ) {
            let cluster = cluster(&[], LbPolicy::RoundRobin);
            let hosts = |assignment: &LoadAssignment, old: Option<&HostSet>| {
                HostSet::of_assignment(&cluster, assignment, old)
            };
            let before = old.as_ref().map(|old| hosts(old, None).0);
            let (set, change) = hosts(&new, before.as_ref());
            prop_assert_eq!(compare(old.as_ref(), &new), change);
            let members = Members::of(&new);
            prop_assert_eq!(members, Members {
                total: set.hosts.len(),
                healthy: set.count(Health::Healthy),
                degraded: set.count(Health::Degraded),
                heaviest: set.heaviest_of_last(),
                last: set.priorities.len() as u32 - 1,
            });
        }
    }
}
