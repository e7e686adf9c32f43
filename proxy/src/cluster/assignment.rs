//! A cluster's hosts as a `ClusterLoadAssignment`, as `/config_dump?include_eds` shows them.

use std::sync::Arc;

use super::SharedCluster;
use super::host::{Health, Host};
use crate::config::cluster::Discovery;
use crate::config::core::Locality;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::config::endpoint::v3 as pb;
use crate::config::pb::google::protobuf as pb_google;
use crate::stream_info::Address;

impl SharedCluster {
    /// The hosts by priority and locality, in order.
    pub fn assignment_dump(&self) -> pb::ClusterLoadAssignment {
        let set = self.hosts_as_they_are();
        let mut localities: Vec<(u32, Arc<Locality>, pb::LocalityLbEndpoints)> = Vec::new();
        for host in &set.hosts {
            let place = |(priority, locality, _): &(u32, Arc<Locality>, _)| {
                *priority == host.priority() && **locality == *host.locality
            };
            let at = localities.iter().position(place).unwrap_or_else(|| {
                let one = pb::LocalityLbEndpoints {
                    locality: Some(locality(&host.locality)),
                    priority: host.priority(),
                    load_balancing_weight: Some(pb_google::UInt32Value { value: 0 }),
                    ..Default::default()
                };
                localities.push((host.priority(), host.locality.clone(), one));
                localities.len() - 1
            });
            localities[at].2.lb_endpoints.push(endpoint(host));
        }
        let name = match &self.config.discovery {
            Discovery::Eds(eds) => &eds.service_name,
            Discovery::Static | Discovery::Dns(_) | Discovery::OriginalDst(_) => &self.config.name,
        };
        let factor = self.config.load_assignment.overprovisioning_factor;
        pb::ClusterLoadAssignment {
            cluster_name: name.to_string(),
            endpoints: localities.into_iter().map(|(.., one)| one).collect(),
            policy: Some(pb::cluster_load_assignment::Policy {
                overprovisioning_factor: Some(pb_google::UInt32Value { value: factor }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn locality(locality: &Locality) -> pb_core::Locality {
    pb_core::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        sub_zone: locality.sub_zone.to_string(),
    }
}

fn endpoint(host: &Host) -> pb::LbEndpoint {
    let health = match host.health() {
        Health::Healthy => pb_core::HealthStatus::Healthy,
        Health::Degraded => pb_core::HealthStatus::Degraded,
        Health::Unhealthy => pb_core::HealthStatus::Unhealthy,
    };
    pb::LbEndpoint {
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address(&host.address)),
            health_check_config: Some(pb::endpoint::HealthCheckConfig::default()),
            hostname: host.hostname.as_deref().unwrap_or_default().to_owned(),
            ..Default::default()
        })),
        health_status: health.into(),
        load_balancing_weight: Some(pb_google::UInt32Value { value: host.weight() }),
        ..Default::default()
    }
}

fn address(address: &Address) -> pb_core::Address {
    use pb_core::address::Address as Pb;
    use pb_core::socket_address::PortSpecifier;
    let pb = match address {
        Address::Ip(address) => Pb::SocketAddress(pb_core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        }),
        Address::Pipe(path) => {
            Pb::Pipe(pb_core::Pipe { path: path.to_string(), ..Default::default() })
        }
        Address::Internal(name) => Pb::EnvoyInternalAddress(pb_core::EnvoyInternalAddress {
            address_name_specifier: Some(
                pb_core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                    name.to_string(),
                ),
            ),
            ..Default::default()
        }),
    };
    pb_core::Address { address: Some(pb) }
}
