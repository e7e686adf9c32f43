//! A compiled `endpoint.v3.ClusterLoadAssignment`, compact: an endpoint is below 100 bytes, localities
//! and repeated strings are shared.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;

use crate::config::core::{ConfigAddress, Locality, Metadata};

/// `core.v3.HealthStatus` of an endpoint, as the control plane says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

/// One `LbEndpoint`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: ConfigAddress,
    /// `Endpoint.hostname`; for a name to resolve, the name.
    pub hostname: Option<Arc<str>>,
    pub metadata: Option<Metadata>,
    /// `load_balancing_weight`; default 1.
    pub weight: u32,
    pub health: HealthStatus,
}

/// One `LocalityLbEndpoints`.
#[derive(Debug, Clone)]
pub struct LocalityEndpoints {
    pub locality: Arc<Locality>,
    /// 0 is the highest.
    pub priority: u32,
    /// `load_balancing_weight` of the locality, where it has a name.
    pub weight: Option<u32>,
    pub endpoints: Box<[Endpoint]>,
}

/// A compiled `ClusterLoadAssignment`.
#[derive(Debug, Clone)]
pub struct LoadAssignment {
    pub localities: Box<[LocalityEndpoints]>,
    /// `policy.overprovisioning_factor`, in percent; default 140.
    pub overprovisioning_factor: u32,
    /// `policy.weighted_priority_health`.
    pub weighted_priority_health: bool,
    /// `policy.drop_overloads`, the only one: requests that are dropped, in millionths.
    pub drop_overload: u32,
    /// `policy.endpoint_stale_after`: the endpoints are forgotten after this time without another assignment.
    pub stale_after: Option<Duration>,
}

impl Default for LoadAssignment {
    fn default() -> Self {
        Self {
            localities: Box::default(),
            overprovisioning_factor: 140,
            weighted_priority_health: false,
            drop_overload: 0,
            stale_after: None,
        }
    }
}

impl LoadAssignment {
    /// Without endpoints whose address came before, in whatever locality.
    pub fn remove_duplicates(&mut self) {
        let total: usize = self.localities.iter().map(|one| one.endpoints.len()).sum();
        let distinct =
            self.endpoints().map(|(_, one)| &one.address).collect::<FxHashSet<_>>().len();
        if distinct == total {
            return;
        }
        let mut seen = FxHashSet::default();
        for locality in &mut self.localities {
            let endpoints = std::mem::take(&mut locality.endpoints).into_vec();
            let first = endpoints.into_iter().filter(|one| seen.insert(one.address.clone()));
            locality.endpoints = first.collect();
        }
    }

    /// All endpoints, priorities mixed as the localities are.
    pub fn endpoints(&self) -> impl Iterator<Item = (&LocalityEndpoints, &Endpoint)> {
        self.localities.iter().flat_map(|l| l.endpoints.iter().map(move |e| (l, e)))
    }
}
