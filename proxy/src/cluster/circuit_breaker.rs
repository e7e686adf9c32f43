//! Circuit breakers: exact limits over all workers, per cluster and routing priority.
//!
//! `cluster.v3.CircuitBreakers`. Each count is one relaxed atomic; a compare-and-swap admits, so that the limit
//! is never passed and nobody is refused because of another's attempt. A refusal names its limit.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::config::cluster::{CircuitBreakers, RoutingPriority, Thresholds};
use crate::config::runtime::{self, Own};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    Connections,
    PendingRequests,
    Requests,
    Retries,
    ConnectionPools,
}

impl Resource {
    /// The field of `Thresholds` that holds the limit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::PendingRequests => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
            Self::ConnectionPools => "max_connection_pools",
        }
    }
}

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow {
    pub resource: Resource,
    pub priority: RoutingPriority,
    pub limit: u32,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let priority = name_of(self.priority);
        write!(f, "circuit_breakers.{priority}.{} of {}", self.resource.as_str(), self.limit)
    }
}

impl std::error::Error for Overflow {}

fn name_of(priority: RoutingPriority) -> &'static str {
    match priority {
        RoutingPriority::Default => "default",
        RoutingPriority::High => "high",
    }
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    pools: AtomicU32,
    /// A bit by resource: it was acquired at least once, so that its gauge counts as used.
    used: AtomicU8,
}

impl Counts {
    fn mark_used(&self, resource: Resource) {
        let bit = 1 << resource as u8;
        if self.used.load(Ordering::Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn of(&self, resource: Resource) -> &AtomicU32 {
        match resource {
            Resource::Connections => &self.connections,
            Resource::PendingRequests => &self.pending,
            Resource::Requests => &self.requests,
            Resource::Retries => &self.retries,
            Resource::ConnectionPools => &self.pools,
        }
    }
}

/// The counts of one cluster.
#[derive(Debug)]
pub struct Breakers {
    /// The cluster's name.
    name: Arc<str>,
    config: Arc<CircuitBreakers>,
    counts: [Counts; 2],
}

impl Breakers {
    pub fn new(name: Arc<str>, config: Arc<CircuitBreakers>) -> Self {
        Self { name, config, counts: Default::default() }
    }

    pub fn thresholds(&self, priority: RoutingPriority) -> &Thresholds {
        self.config.of(priority)
    }

    /// The present limit: the runtime's where it has one. That of retries moves with the traffic where there is a retry
    /// budget.
    pub fn limit(&self, resource: Resource, priority: RoutingPriority) -> u32 {
        let thresholds = self.config.of(priority);
        let configured = match resource {
            Resource::Connections => thresholds.max_connections,
            Resource::PendingRequests => thresholds.max_pending_requests,
            Resource::Requests => thresholds.max_requests,
            Resource::ConnectionPools => thresholds.max_connection_pools,
            Resource::Retries => {
                let in_runtime = |field| self.in_runtime(priority, field);
                let percent = in_runtime("retry_budget.budget_percent");
                let least = in_runtime("retry_budget.min_retry_concurrency").map(|n| n as u32);
                let budget = thresholds.retry_budget;
                if budget.is_some() || percent.is_some() || least.is_some() {
                    let budget = budget.unwrap_or_default();
                    let active = self.count(Resource::Requests, priority)
                        + self.count(Resource::PendingRequests, priority);
                    let percent = percent.unwrap_or(budget.percent);
                    let share = percent / 100.0 * f64::from(active);
                    return (share as u32).max(least.unwrap_or(budget.min_retry_concurrency));
                }
                thresholds.max_retries
            }
        };
        self.in_runtime(priority, resource.as_str()).map_or(configured, |limit| limit as u32)
    }

    fn in_runtime(&self, priority: RoutingPriority, field: &str) -> Option<f64> {
        runtime::has(Own::CircuitBreakers)
            .then(|| runtime::breaker(&self.name, name_of(priority), field))
            .flatten()
    }

    pub fn count(&self, resource: Resource, priority: RoutingPriority) -> u32 {
        self.counts[priority as usize].of(resource).load(Ordering::Relaxed)
    }

    /// Whether one more would be refused: Envoy's `*_open` gauges.
    pub fn is_open(&self, resource: Resource, priority: RoutingPriority) -> bool {
        self.count(resource, priority) >= self.limit(resource, priority)
    }

    /// Whether it was ever acquired; a refusal alone does not count, as in Envoy.
    pub fn was_used(&self, resource: Resource, priority: RoutingPriority) -> bool {
        let used = self.counts[priority as usize].used.load(Ordering::Relaxed);
        used & (1 << resource as u8) != 0
    }

    /// What is left to the limit: Envoy's `remaining_*` gauges. Unlimited pools count down from 2^64 - 1, as there.
    pub fn remaining(&self, resource: Resource, priority: RoutingPriority) -> u64 {
        let count = u64::from(self.count(resource, priority));
        match self.limit(resource, priority) {
            u32::MAX if resource == Resource::ConnectionPools => u64::MAX - count,
            limit => u64::from(limit).saturating_sub(count),
        }
    }

    /// Counts one more, unless the limit is reached. The caller gives it back by `release`.
    pub fn try_acquire(
        &self,
        resource: Resource,
        priority: RoutingPriority,
    ) -> Result<(), Overflow> {
        let limit = self.limit(resource, priority);
        let counts = &self.counts[priority as usize];
        let admit = |n: u32| (n < limit).then_some(n + 1);
        match counts.of(resource).fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit) {
            Ok(_) => {
                counts.mark_used(resource);
                Ok(())
            }
            Err(_) => Err(Overflow { resource, priority, limit }),
        }
    }

    /// Counts one more, whatever the limit: a pool without a connection may always open one.
    pub fn acquire_anyway(&self, resource: Resource, priority: RoutingPriority) {
        let counts = &self.counts[priority as usize];
        counts.mark_used(resource);
        counts.of(resource).fetch_add(1, Ordering::Relaxed);
    }

    /// The last connection pool of a host is gone: Envoy then writes the gauges of both priorities.
    pub fn note_pools_gone(&self) {
        for counts in &self.counts {
            counts.mark_used(Resource::ConnectionPools);
        }
    }

    pub fn release(&self, resource: Resource, priority: RoutingPriority) {
        let before = self.counts[priority as usize].of(resource).fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "{} released without being acquired", resource.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::RetryBudget;

    const DEFAULT: RoutingPriority = RoutingPriority::Default;

    fn breakers(thresholds: Thresholds) -> Breakers {
        let config = CircuitBreakers { default: thresholds, ..Default::default() };
        Breakers::new("c".into(), Arc::new(config))
    }

    #[test]
    fn a_refusal_names_its_limit() {
        let breakers = breakers(Thresholds { max_requests: 1, ..Thresholds::default() });
        assert!(breakers.try_acquire(Resource::Requests, DEFAULT).is_ok());
        let refused = breakers.try_acquire(Resource::Requests, DEFAULT).unwrap_err();
        assert_eq!(refused.to_string(), "circuit_breakers.default.max_requests of 1");
        assert!(breakers.try_acquire(Resource::Requests, RoutingPriority::High).is_ok());
        breakers.release(Resource::Requests, DEFAULT);
        assert!(breakers.try_acquire(Resource::Requests, DEFAULT).is_ok());
    }

    #[test]
    fn limits_are_exact_under_two_threads() {
        let limit = 7;
        let breakers = breakers(Thresholds { max_requests: limit, ..Thresholds::default() });
        let (peak, admitted) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut held = 0;
                    for turn in 0..100_000_u32 {
                        if turn % 3 == 0 && held > 0 {
                            breakers.release(Resource::Requests, DEFAULT);
                            held -= 1;
                        } else if breakers.try_acquire(Resource::Requests, DEFAULT).is_ok() {
                            held += 1;
                            admitted.fetch_add(1, Ordering::Relaxed);
                            let now = breakers.count(Resource::Requests, DEFAULT);
                            peak.fetch_max(now, Ordering::Relaxed);
                        }
                    }
                    (0..held).for_each(|_| breakers.release(Resource::Requests, DEFAULT));
                });
            }
        });
        assert_eq!(peak.load(Ordering::Relaxed), limit);
        assert!(admitted.load(Ordering::Relaxed) > limit);
        assert_eq!(breakers.count(Resource::Requests, DEFAULT), 0);
    }

    #[test]
    fn a_retry_budget_follows_the_traffic() {
        let budget = RetryBudget { percent: 20.0, min_retry_concurrency: 3 };
        let breakers = breakers(Thresholds { retry_budget: Some(budget), ..Thresholds::default() });
        assert_eq!(breakers.limit(Resource::Retries, DEFAULT), 3);
        (0..50).for_each(|_| breakers.acquire_anyway(Resource::Requests, DEFAULT));
        assert_eq!(breakers.limit(Resource::Retries, DEFAULT), 10);
    }
}
