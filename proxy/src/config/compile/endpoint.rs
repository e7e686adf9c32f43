//! pb ClusterLoadAssignment to its compiled form (`config::endpoint`).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::config::compile::core::{
    compile_address, compile_fraction, compile_locality, compile_metadata,
    compile_positive_duration, compile_u32_at_least, some_str,
};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::core::{ConfigAddress, Locality};
use crate::config::endpoint::{Endpoint, HealthStatus, LoadAssignment, LocalityEndpoints};
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::config::endpoint::v3 as pb;

/// `LocalityLbEndpoints.priority` goes up to here.
const MAX_PRIORITY: u32 = 128;

static NO_LOCALITY: LazyLock<Arc<Locality>> = LazyLock::new(Arc::default);

/// Compiles a load assignment. `names` says whether addresses may be names to resolve (DNS clusters).
pub fn compile_load_assignment(
    pb: &pb::ClusterLoadAssignment,
    names: bool,
    path: &FieldPath<'_>,
) -> LoadAssignment {
    if pb.cluster_name.is_empty() {
        path.field("cluster_name").error("value length must be at least 1 characters");
    }
    if !pb.named_endpoints.is_empty() {
        path.field("named_endpoints").error("not supported");
    }
    let mut assignment = LoadAssignment::default();
    if let Some(policy) = &pb.policy {
        let path = path.field("policy");
        let factor = policy.overprovisioning_factor.as_ref();
        let factor = compile_u32_at_least(factor, 1, &path.field("overprovisioning_factor"));
        assignment.overprovisioning_factor = factor.unwrap_or(140);
        assignment.weighted_priority_health = policy.weighted_priority_health;
        assignment.drop_overload = compile_drop_overloads(&policy.drop_overloads, &path);
        let stale_after = policy.endpoint_stale_after.as_ref();
        assignment.stale_after = stale_after.and_then(|after| {
            compile_positive_duration(after, &path.field("endpoint_stale_after"))
        });
    }
    let mut localities = Localities::default();
    assignment.localities = pb
        .endpoints
        .iter()
        .enumerate()
        .map(|(i, pb)| {
            compile_locality_endpoints(pb, names, &mut localities, &path.index("endpoints", i))
        })
        .collect();
    assignment
}

/// Compiles the assignment of an EDS cluster, where of endpoints with the same address the first one counts.
pub fn compile_discovered_assignment(
    pb: &pb::ClusterLoadAssignment,
    path: &FieldPath<'_>,
) -> LoadAssignment {
    let mut assignment = compile_load_assignment(pb, false, path);
    assignment.remove_duplicates();
    assignment
}

/// Millionths of the requests to drop. Envoy takes one category.
fn compile_drop_overloads(
    pb: &[pb::cluster_load_assignment::policy::DropOverload],
    path: &FieldPath<'_>,
) -> u32 {
    let [one, rest @ ..] = pb else { return 0 };
    let path = path.index("drop_overloads", 0);
    if !rest.is_empty() {
        path.error(format_args!(
            "Cluster drop_overloads config has {} categories. Envoy only support one.",
            pb.len()
        ));
    }
    if one.category.is_empty() {
        path.field("category").error("value length must be at least 1 characters");
    }
    let Some(percentage) = &one.drop_percentage else { return 0 };
    let field = path.field("drop_percentage");
    let Some(drop) = compile_fraction(percentage, &field) else { return 0 };
    if percentage.numerator > drop.denominator {
        field.error(format_args!(
            "Cluster drop_overloads config is invalid. drop_ratio={}(Numerator {} / Denominator {}). The valid range \
             is 0~1.",
            f64::from(percentage.numerator) / f64::from(drop.denominator),
            percentage.numerator,
            drop.denominator
        ));
        return 0;
    }
    (u64::from(drop.numerator) * 1_000_000 / u64::from(drop.denominator)) as u32
}

/// Localities of one cluster, each kept once.
#[derive(Default)]
struct Localities(HashMap<Locality, Arc<Locality>>);

impl Localities {
    fn intern(&mut self, pb: Option<&pb_core::Locality>) -> Arc<Locality> {
        let locality = compile_locality(pb);
        if locality == Locality::default() {
            return NO_LOCALITY.clone();
        }
        self.0.entry(locality).or_insert_with_key(|key| Arc::new(key.clone())).clone()
    }
}

#[expect(deprecated, reason = "lb_endpoints is the form in use")]
fn compile_locality_endpoints(
    pb: &pb::LocalityLbEndpoints,
    names: bool,
    localities: &mut Localities,
    path: &FieldPath<'_>,
) -> LocalityEndpoints {
    use pb::locality_lb_endpoints::LbConfig;
    if pb.priority > MAX_PRIORITY {
        path.field("priority")
            .error(format_args!("value must be less than or equal to {MAX_PRIORITY}"));
    }
    let lb_endpoints = match &pb.lb_config {
        None => &pb.lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            path.field("leds_cluster_locality_config").error("not supported");
            &pb.lb_endpoints
        }
    };
    LocalityEndpoints {
        locality: localities.intern(pb.locality.as_ref()),
        priority: pb.priority.min(MAX_PRIORITY),
        weight: compile_u32_at_least(
            pb.load_balancing_weight.as_ref(),
            1,
            &path.field("load_balancing_weight"),
        )
        .filter(|_| pb.locality.is_some()),
        endpoints: lb_endpoints
            .iter()
            .enumerate()
            .filter_map(|(i, pb)| compile_lb_endpoint(pb, names, &path.index("lb_endpoints", i)))
            .collect(),
    }
}

fn compile_lb_endpoint(pb: &pb::LbEndpoint, names: bool, path: &FieldPath<'_>) -> Option<Endpoint> {
    use pb::lb_endpoint::HostIdentifier;
    let endpoint = match &pb.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName(_)) => {
            path.field("endpoint_name").error("not supported");
            return None;
        }
        None => {
            path.field("endpoint").error("value is required");
            return None;
        }
    };
    let endpoint_path = path.field("endpoint");
    let address_path = endpoint_path.field("address");
    let address = compile_address(endpoint.address.as_ref(), &address_path)?;
    if let (ConfigAddress::Dns { host, .. }, false) = (&address, names) {
        address_path.field("socket_address").field("address").error(format_args!(
            "malformed IP address: {host}. Consider setting the cluster type to 'STRICT_DNS'"
        ));
        return None;
    }
    if let (ConfigAddress::Pipe { .. }, true) = (&address, names) {
        address_path.field("pipe").error("a DNS cluster resolves names and IP addresses only");
        return None;
    }
    let weight = pb.load_balancing_weight.as_ref();
    let weight = compile_u32_at_least(weight, 1, &path.field("load_balancing_weight"));
    Some(Endpoint {
        address,
        hostname: some_str(&endpoint.hostname),
        metadata: compile_metadata(pb.metadata.as_ref(), &path.field("metadata")),
        weight: weight.unwrap_or(1),
        health: compile_health_status(pb.health_status, &path.field("health_status"))?,
    })
}

fn compile_health_status(value: i32, path: &FieldPath<'_>) -> Option<HealthStatus> {
    use pb_core::HealthStatus as Pb;
    Some(match Pb::try_from(value) {
        Ok(Pb::Unknown) => HealthStatus::Unknown,
        Ok(Pb::Healthy) => HealthStatus::Healthy,
        Ok(Pb::Unhealthy) => HealthStatus::Unhealthy,
        Ok(Pb::Draining) => HealthStatus::Draining,
        Ok(Pb::Timeout) => HealthStatus::Timeout,
        Ok(Pb::Degraded) => HealthStatus::Degraded,
        Err(_) => {
            path.error("unknown enum value");
            return None;
        }
    })
}
