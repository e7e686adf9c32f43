//! A cluster as the admin interface shows it (`/clusters`), live hosts or, for a cluster that nothing has used, those of
//! its configuration.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::SharedCluster;
use super::circuit_breaker::{Breakers, Resource};
use super::host::{Host, HostSet};
use crate::admin::{ClusterStatus, HostHealth, HostStats, HostStatus, Thresholds};
use crate::config::cluster::{Discovery, RoutingPriority};
use crate::config::endpoint::{HealthStatus, LoadAssignment};

impl SharedCluster {
    /// The hosts, for who only looks at them.
    pub(super) fn hosts_as_they_are(&self) -> Arc<HostSet> {
        let config = &self.config;
        let assignment = match (self.hosts_if_made(), &config.discovery) {
            (Some(set), _) => return set,
            (None, Discovery::Static) => None,
            (None, Discovery::Eds(_)) => Some(self.unused_assignment().unwrap_or_default()),
            (None, Discovery::Dns(_) | Discovery::OriginalDst(_)) => {
                Some(LoadAssignment::default())
            }
        };
        let assignment = assignment.as_ref().unwrap_or(&config.load_assignment);
        Arc::new(HostSet::of_assignment(config, assignment, None).0)
    }

    /// For `/clusters`. Makes no hosts that were not there.
    pub fn status(&self) -> ClusterStatus {
        let config = &self.config;
        let set = self.hosts_as_they_are();
        let hosts = set.hosts.iter().map(|host| host_status(host)).collect();
        let eds_service_name = match &config.discovery {
            Discovery::Eds(eds) => eds.written_name.to_string(),
            Discovery::Static | Discovery::Dns(_) | Discovery::OriginalDst(_) => String::new(),
        };
        ClusterStatus {
            name: Arc::clone(&config.name),
            observability_name: config.observability_name().to_string(),
            added_via_api: false,
            eds_service_name,
            default_thresholds: thresholds(&self.breakers, RoutingPriority::Default),
            high_thresholds: thresholds(&self.breakers, RoutingPriority::High),
            hosts,
        }
    }
}

fn thresholds(breakers: &Breakers, priority: RoutingPriority) -> Thresholds {
    let limit = |resource| u64::from(breakers.limit(resource, priority));
    Thresholds {
        max_connections: limit(Resource::Connections),
        max_pending_requests: limit(Resource::PendingRequests),
        max_requests: limit(Resource::Requests),
        max_retries: limit(Resource::Retries),
    }
}

fn host_status(host: &Host) -> HostStatus {
    let status = host.health_status();
    let stats = &host.stats;
    HostStatus {
        address: (&host.address).into(),
        hostname: host.hostname.as_deref().unwrap_or_default().to_owned(),
        health: HostHealth {
            failed_eds_health: matches!(
                status,
                HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout
            ),
            degraded_eds_health: status == HealthStatus::Degraded,
            ..HostHealth::default()
        },
        weight: host.weight(),
        priority: host.priority(),
        region: host.locality.region.to_string(),
        zone: host.locality.zone.to_string(),
        sub_zone: host.locality.sub_zone.to_string(),
        canary: host.is_canary(),
        stats: HostStats {
            cx_active: stats.cx_active.load(Relaxed).into(),
            cx_connect_fail: stats.cx_connect_fail.load(Relaxed),
            cx_total: stats.cx_total.load(Relaxed),
            rq_active: stats.rq_active.load(Relaxed).into(),
            rq_error: stats.rq_error.load(Relaxed),
            rq_success: stats.rq_success.load(Relaxed),
            rq_timeout: stats.rq_timeout.load(Relaxed),
            rq_total: stats.rq_total.load(Relaxed),
            rq_pending_active: stats.rq_pending_active.load(Relaxed).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::LbPolicy;
    use crate::stats::Registry;

    #[test]
    fn an_unused_cluster_shows_its_hosts_and_stays_unused() {
        let hosts: &[HealthStatus] = &[HealthStatus::Healthy, HealthStatus::Draining];
        let config = crate::cluster::tests::cluster(&[hosts], LbPolicy::RoundRobin);
        let cluster = SharedCluster::new(Arc::new(config), &Registry::default());
        let status = cluster.status();
        assert_eq!(status.hosts.len(), 2);
        assert!(status.hosts[1].health.failed_eds_health);
        assert_eq!(status.default_thresholds.max_retries, 3);
        assert!(cluster.hosts_if_made().is_none());
    }
}
