//! Stage 7: load balancers. A host set, a policy and a random number in, the index of a host out.
//!
//! One balancer per worker and cluster, `!Send`; its state is made anew when the host set changes. What it
//! balances on (active requests, weights, health) is shared by all workers through the hosts.

mod edf;
pub mod priority;

use crate::cluster::host::{Candidates, Host, HostSet, Source};
use crate::cluster::original_dst::Asking;
use crate::config::cluster::{LbPolicy, LeastRequestOptions};
use edf::Edf;
use priority::Choice;
use std::sync::atomic::Ordering;

/// A small random number generator (splitmix64): picks need speed, not secrecy.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[inline]
    #[expect(clippy::should_implement_trait, reason = "not a sequence that one iterates")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How one list of hosts (priority and source) is walked.
#[derive(Debug)]
enum Walk {
    /// Not asked for yet.
    Unmade,
    /// Equal weights under round robin: plain rotation, from a random start. `checked`: the weights of the present
    /// host set were looked at.
    Rotation {
        next: u64,
        checked: bool,
    },
    Weighted(Edf),
    /// Sampled anew for every pick.
    Sampled,
}

/// A worker's balancer of one cluster.
#[derive(Debug)]
pub struct LoadBalancer {
    rng: Rng,
    /// Start of every rotation, so that workers do not walk in step.
    seed: u64,
    /// By priority, then source.
    walks: Vec<[Walk; 3]>,
    /// Where localities are weighted: by priority, then healthy and degraded.
    localities: Vec<[Localities; 2]>,
}

/// How the localities of a priority take turns, and the hosts in each.
#[derive(Debug, Default)]
struct Localities {
    /// `None`: not asked for yet.
    turns: Option<Edf>,
    walks: Vec<Walk>,
}

/// A picked host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Index into `HostSet::hosts`; `None`: no host may be used.
    pub host: Option<u32>,
    /// The priority was in panic: `lb_healthy_panic`.
    pub panic: bool,
}

/// What a caller may ask of a pick beyond the policy.
#[derive(Clone, Copy, Default)]
pub struct PickContext<'a> {
    /// Retry host predicates: true means another host, please.
    pub reject: Option<&'a dyn Fn(&Host) -> bool>,
    /// `host_selection_retry_max_attempts`: how often a rejected pick is repeated; the last pick stands.
    pub max_attempts: u32,
    /// What says where an `ORIGINAL_DST` cluster goes.
    pub asking: Asking<'a>,
}

impl LoadBalancer {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let seed = rng.next();
        Self { rng, seed, walks: Vec::new(), localities: Vec::new() }
    }

    /// To be called when the host set has changed; rotations go on where they were.
    pub fn reset(&mut self) {
        let localities = self.localities.iter_mut().flatten();
        let in_localities = localities.flat_map(|localities| {
            localities.turns = None;
            &mut localities.walks
        });
        for walk in self.walks.iter_mut().flatten().chain(in_localities) {
            match walk {
                Walk::Rotation { checked, .. } => *checked = false,
                Walk::Unmade | Walk::Weighted(_) | Walk::Sampled => *walk = Walk::Unmade,
            }
        }
    }

    /// Picks a host.
    pub fn pick(
        &mut self,
        policy: &LbPolicy,
        fail_on_panic: bool,
        set: &HostSet,
        context: &PickContext<'_>,
    ) -> Pick {
        let mut pick = self.pick_once(policy, fail_on_panic, set);
        let Some(reject) = context.reject else { return pick };
        for _ in 0..context.max_attempts {
            match pick.host {
                Some(host) if reject(&set.hosts[host as usize]) => {}
                _ => break,
            }
            pick = self.pick_once(policy, fail_on_panic, set);
        }
        pick
    }

    fn pick_once(&mut self, policy: &LbPolicy, fail_on_panic: bool, set: &HostSet) -> Pick {
        let choice = if set.loads.is_plain() {
            Choice { priority: 0, source: Source::Healthy, panic: false }
        } else {
            set.loads.choose(self.rng.next())
        };
        if choice.panic && fail_on_panic {
            return Pick { host: None, panic: true };
        }
        let priority = &set.priorities[choice.priority];
        let host = match self.pick_locality(policy, set, choice) {
            Some(host) => Some(host),
            None => {
                let candidates = priority.candidates(choice.source);
                self.pick_from(policy, set, choice, candidates)
            }
        };
        Pick { host, panic: choice.panic }
    }

    /// A host of the locality whose turn it is; `None` where localities are not weighted, or none has a weight.
    fn pick_locality(&mut self, policy: &LbPolicy, set: &HostSet, choice: Choice) -> Option<u32> {
        let all = set.priorities[choice.priority].localities();
        let degraded = match choice.source {
            Source::All => return None,
            Source::Healthy => false,
            Source::Degraded => true,
        };
        if all.is_empty() {
            return None;
        }
        if self.localities.len() < set.priorities.len() {
            self.localities.resize_with(set.priorities.len(), Default::default);
        }
        let shared = |i: u32| {
            let locality = &all[i as usize];
            if degraded { &locality.degraded } else { &locality.healthy }
        };
        let Self { rng, seed, localities, .. } = self;
        let Localities { turns, walks } = &mut localities[choice.priority][usize::from(degraded)];
        let turns = turns.get_or_insert_with(|| {
            let count = all.len() as u32;
            let weighted = (0..count).map(|i| (i, shared(i).weight));
            let mut turns = Edf::new(weighted.filter(|(_, weight)| *weight > 0.0));
            // Sets change often: the first turn is not always the same locality's.
            for _ in 0..rng.next() % u64::from(count) {
                turns.pick(|i| shared(i).weight);
            }
            turns
        });
        let locality = turns.pick(|i| shared(i).weight)?;
        if walks.len() < all.len() {
            walks.resize_with(all.len(), || Walk::Unmade);
        }
        let candidates = Candidates::List(&shared(locality).hosts);
        walk_on(&mut walks[locality as usize], rng, *seed, policy, set, candidates)
    }

    fn pick_from(
        &mut self,
        policy: &LbPolicy,
        set: &HostSet,
        choice: Choice,
        candidates: Candidates<'_>,
    ) -> Option<u32> {
        if self.walks.len() < set.priorities.len() {
            self.walks.resize_with(set.priorities.len(), || [const { Walk::Unmade }; 3]);
        }
        let walk = &mut self.walks[choice.priority][choice.source as usize];
        walk_on(walk, &mut self.rng, self.seed, policy, set, candidates)
    }
}

/// The next host of a list.
fn walk_on(
    walk: &mut Walk,
    rng: &mut Rng,
    seed: u64,
    policy: &LbPolicy,
    set: &HostSet,
    candidates: Candidates<'_>,
) -> Option<u32> {
    match candidates.len() {
        0 => return None,
        1 => return Some(candidates.at(0)),
        _ => {}
    }
    if matches!(walk, Walk::Unmade | Walk::Rotation { checked: false, .. }) {
        make_walk(walk, policy, set, candidates, seed);
    }
    match walk {
        Walk::Rotation { next, .. } => {
            let at = (*next % candidates.len() as u64) as usize;
            *next = next.wrapping_add(1);
            Some(candidates.at(at))
        }
        Walk::Weighted(edf) => edf.pick(|host| weight(policy, &set.hosts[host as usize])),
        Walk::Sampled => Some(match policy {
            LbPolicy::LeastRequest(options) if options.full_scan => {
                least_of_all(rng, set, candidates)
            }
            LbPolicy::LeastRequest(options) => least_of_choices(rng, options, set, candidates),
            LbPolicy::RoundRobin | LbPolicy::Random | LbPolicy::ClusterProvided => {
                random(rng, candidates)
            }
        }),
        Walk::Unmade => None,
    }
}

/// Decides how a list is walked. A rotation goes on where it was unless weights now differ.
fn make_walk(
    walk: &mut Walk,
    policy: &LbPolicy,
    set: &HostSet,
    candidates: Candidates<'_>,
    seed: u64,
) {
    let host = |position| &set.hosts[candidates.at(position) as usize];
    let equal = !set.has_weights()
        || (1..candidates.len()).all(|position| host(position).weight() == host(0).weight());
    *walk = match (policy, equal) {
        (LbPolicy::Random | LbPolicy::ClusterProvided, _) | (LbPolicy::LeastRequest(_), true) => {
            Walk::Sampled
        }
        (LbPolicy::RoundRobin, true) => match walk {
            Walk::Rotation { next, .. } => Walk::Rotation { next: *next, checked: true },
            Walk::Unmade | Walk::Weighted(_) | Walk::Sampled => {
                Walk::Rotation { next: seed, checked: true }
            }
        },
        (LbPolicy::RoundRobin | LbPolicy::LeastRequest(_), false) => {
            let entries = (0..candidates.len())
                .map(|position| (candidates.at(position), weight(policy, host(position))));
            let mut edf = Edf::new(entries);
            // Workers start at different places of the same order.
            for _ in 0..seed % candidates.len() as u64 {
                edf.pick(|host| weight(policy, &set.hosts[host as usize]));
            }
            Walk::Weighted(edf)
        }
    };
}

/// A host's weight for its next turn; under least request it shrinks with the host's active requests.
fn weight(policy: &LbPolicy, host: &Host) -> f64 {
    let weight = f64::from(host.weight());
    match policy {
        LbPolicy::LeastRequest(options) => {
            let active = f64::from(host.stats.rq_active.load(Ordering::Relaxed)) + 1.0;
            match options.active_request_bias.as_ref().map_or(1.0, |bias| bias.in_force()) {
                // The runtime may say what a configuration may not.
                bias if bias.is_nan() || bias < 0.0 => weight / active,
                0.0 => weight,
                1.0 => weight / active,
                bias => weight / active.powf(bias),
            }
        }
        LbPolicy::RoundRobin | LbPolicy::Random | LbPolicy::ClusterProvided => weight,
    }
}

fn random(rng: &mut Rng, candidates: Candidates<'_>) -> u32 {
    candidates.at((rng.next() % candidates.len() as u64) as usize)
}

fn active(set: &HostSet, host: u32) -> u32 {
    set.hosts[host as usize].stats.rq_active.load(Ordering::Relaxed)
}

/// The least loaded of `choice_count` random hosts; the earlier one where equal.
fn least_of_choices(
    rng: &mut Rng,
    options: &LeastRequestOptions,
    set: &HostSet,
    candidates: Candidates<'_>,
) -> u32 {
    let mut best = random(rng, candidates);
    let mut least = active(set, best);
    for _ in 1..options.choice_count {
        let sampled = random(rng, candidates);
        let load = active(set, sampled);
        if load < least {
            (best, least) = (sampled, load);
        }
    }
    best
}

/// The least loaded host; a random one of several.
fn least_of_all(rng: &mut Rng, set: &HostSet, candidates: Candidates<'_>) -> u32 {
    let (mut best, mut least, mut ties) = (candidates.at(0), u32::MAX, 0);
    for position in 0..candidates.len() {
        let host = candidates.at(position);
        let load = active(set, host);
        if load < least {
            (best, least, ties) = (host, load, 1);
        } else if load == least {
            ties += 1;
            if rng.next().is_multiple_of(ties) {
                best = host;
            }
        }
    }
    best
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
