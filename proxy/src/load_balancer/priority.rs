//! Which priority takes which share of the traffic: Envoy's priority levels, overprovisioning and panic.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>

use crate::cluster::host::Source;

/// What the maths needs to know of one priority. Weights are host counts, or sums of host weights under
/// `weighted_priority_health`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PriorityHealth {
    pub hosts: u32,
    /// Healthy and degraded hosts.
    pub available: u32,
    pub healthy_weight: u64,
    pub degraded_weight: u64,
    pub total_weight: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    healthy: u8,
    degraded: u8,
    panic: bool,
}

/// Percentages of traffic by priority; they sum to 100.
#[derive(Debug, Default)]
pub struct PriorityLoads(Box<[Load]>);

/// The priority that was chosen, and which of its hosts may be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub priority: usize,
    pub source: Source,
    /// Too few hosts are healthy: all are used (`lb_healthy_panic`).
    pub panic: bool,
}

impl PriorityLoads {
    /// `overprovisioning` and `panic_threshold` in percent.
    pub fn new(health: &[PriorityHealth], overprovisioning: u32, panic_threshold: u8) -> Self {
        let share = |weight: u64, total: u64| -> u32 {
            (u64::from(overprovisioning) * weight).checked_div(total).unwrap_or(0).min(100) as u32
        };
        let healthy: Vec<u32> =
            health.iter().map(|h| share(h.healthy_weight, h.total_weight)).collect();
        let degraded: Vec<u32> =
            health.iter().map(|h| share(h.degraded_weight, h.total_weight)).collect();
        let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
        let mut loads = vec![Load::default(); health.len()];
        if available > 0 {
            distribute(&mut loads, &healthy, &degraded, available);
        } else if let Some(first) = loads.first_mut() {
            first.healthy = 100;
        }
        if panic_threshold > 0 || available > 0 {
            let mut all_panic = true;
            for (load, health) in loads.iter_mut().zip(health) {
                load.panic = available != 100 && is_in_panic(health, panic_threshold);
                all_panic &= load.panic;
            }
            if all_panic {
                distribute_in_total_panic(&mut loads, health);
            }
        }
        Self(loads.into())
    }

    /// The priority for a random number.
    pub fn choose(&self, random: u64) -> Choice {
        // 1 to 100, so that a share of 0 is never chosen.
        let point = (random % 100) as u32 + 1;
        let mut reached = 0;
        for (priority, load) in self.0.iter().enumerate() {
            reached += u32::from(load.healthy);
            if point <= reached {
                return Self::choice(priority, *load, Source::Healthy);
            }
        }
        for (priority, load) in self.0.iter().enumerate() {
            reached += u32::from(load.degraded);
            if point <= reached {
                return Self::choice(priority, *load, Source::Degraded);
            }
        }
        Choice { priority: 0, source: Source::Healthy, panic: false }
    }

    fn choice(priority: usize, load: Load, source: Source) -> Choice {
        let source = if load.panic { Source::All } else { source };
        Choice { priority, source, panic: load.panic }
    }

    /// Whether every pick goes to the healthy hosts of priority 0: then no random number is needed.
    pub fn is_plain(&self) -> bool {
        self.0.first().is_some_and(|load| load.healthy == 100 && !load.panic)
    }
}

/// Healthy hosts first, by priority; what is left over to degraded ones, by priority.
fn distribute(loads: &mut [Load], healthy: &[u32], degraded: &[u32], available: u32) {
    let mut left = 100;
    for (load, share) in loads.iter_mut().zip(healthy) {
        load.healthy = (share * 100 / available).min(left) as u8;
        left -= u32::from(load.healthy);
    }
    for (load, share) in loads.iter_mut().zip(degraded) {
        load.degraded = (share * 100 / available).min(left) as u8;
        left -= u32::from(load.degraded);
    }
    // What rounding left over.
    if let Some(first) = healthy.iter().position(|share| *share > 0) {
        loads[first].healthy += left as u8;
    } else if let Some(first) = degraded.iter().position(|share| *share > 0) {
        loads[first].degraded += left as u8;
    }
}

fn is_in_panic(health: &PriorityHealth, threshold: u8) -> bool {
    let percent = match health.hosts {
        0 => 0.0,
        hosts => 100.0 * f64::from(health.available) / f64::from(hosts),
    };
    percent < f64::from(threshold)
}

/// All priorities panic: load by number of hosts.
fn distribute_in_total_panic(loads: &mut [Load], health: &[PriorityHealth]) {
    let total: u32 = health.iter().map(|h| h.hosts).sum();
    let mut left = 100;
    for (load, health) in loads.iter_mut().zip(health) {
        load.degraded = 0;
        load.healthy = (100 * health.hosts).checked_div(total).unwrap_or(0) as u8;
        left -= load.healthy;
    }
    let first = health.iter().position(|h| h.hosts > 0).unwrap_or(0);
    loads[first].healthy += left;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(healthy, degraded, total)` hosts of each priority.
    fn loads(priorities: &[(u32, u32, u32)]) -> Vec<(u8, u8, bool)> {
        let health: Vec<_> = priorities
            .iter()
            .map(|(healthy, degraded, hosts)| PriorityHealth {
                hosts: *hosts,
                available: healthy + degraded,
                healthy_weight: u64::from(*healthy),
                degraded_weight: u64::from(*degraded),
                total_weight: u64::from(*hosts),
            })
            .collect();
        let loads = PriorityLoads::new(&health, 140, 50);
        loads.0.iter().map(|l| (l.healthy, l.degraded, l.panic)).collect()
    }

    /// The tables of Envoy's documentation, "Priority levels" and "Panic threshold".
    #[test]
    fn as_documented() {
        assert_eq!(loads(&[(100, 0, 100), (100, 0, 100)]), [(100, 0, false), (0, 0, false)]);
        assert_eq!(loads(&[(72, 0, 100), (72, 0, 100)]), [(100, 0, false), (0, 0, false)]);
        assert_eq!(loads(&[(71, 0, 100), (71, 0, 100)]), [(99, 0, false), (1, 0, false)]);
        assert_eq!(loads(&[(50, 0, 100), (50, 0, 100)]), [(70, 0, false), (30, 0, false)]);
        assert_eq!(loads(&[(25, 0, 100), (100, 0, 100)]), [(35, 0, false), (65, 0, false)]);
        assert_eq!(loads(&[(25, 0, 100), (25, 0, 100)]), [(50, 0, true), (50, 0, true)]);
        assert_eq!(loads(&[(0, 0, 100), (0, 0, 100)]), [(50, 0, true), (50, 0, true)]);
        assert_eq!(loads(&[(5, 0, 100), (65, 0, 100)]), [(8, 0, true), (92, 0, false)]);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_leave() {
        assert_eq!(loads(&[(50, 50, 100)]), [(70, 30, false)]);
        assert_eq!(loads(&[(0, 100, 100)]), [(0, 100, false)]);
    }

    #[test]
    fn an_empty_cluster_panics_on_priority_0() {
        assert_eq!(loads(&[(0, 0, 0)]), [(100, 0, true)]);
    }

    #[test]
    fn choice_follows_the_loads() {
        let health = [(25, 100), (100, 100)].map(|(healthy, hosts)| PriorityHealth {
            hosts,
            available: healthy,
            healthy_weight: u64::from(healthy),
            degraded_weight: 0,
            total_weight: u64::from(hosts),
        });
        let loads = PriorityLoads::new(&health, 140, 0);
        let first = (0..1000).filter(|r| loads.choose(*r).priority == 0).count();
        assert_eq!(first, 350);
    }

    proptest::proptest! {
        #[test]
        fn shares_always_sum_to_100(
            hosts in proptest::collection::vec((0_u32..50, 0_u32..50, 0_u32..50), 1..6),
            overprovisioning in 1_u32..400,
            threshold in 0_u8..=100,
            random: u64,
        ) {
            let health: Vec<_> = hosts
                .iter()
                .map(|(healthy, degraded, rest)| PriorityHealth {
                    hosts: healthy + degraded + rest,
                    available: healthy + degraded,
                    healthy_weight: u64::from(*healthy),
                    degraded_weight: u64::from(*degraded),
                    total_weight: u64::from(healthy + degraded + rest),
                })
                .collect();
            let loads = PriorityLoads::new(&health, overprovisioning, threshold);
            let sum: u32 =
                loads.0.iter().map(|l| u32::from(l.healthy) + u32::from(l.degraded)).sum();
            proptest::prop_assert_eq!(sum, 100);
            let choice = loads.choose(random);
            proptest::prop_assert!(choice.priority < health.len());
            // A priority without a usable host is chosen only where no priority has one.
            let chosen = &health[choice.priority];
            let usable = if choice.panic { chosen.hosts } else { chosen.available };
            let nobody = health.iter().all(|h| h.available == 0);
            proptest::prop_assert!(usable > 0 || nobody, "{:?}", choice);
        }
    }
}
