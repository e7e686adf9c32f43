//! The services of the protocol: their methods by type, and where Envoy counts a stream of its own.

use crate::xds::resource::ResourceType;

/// `AggregatedDiscoveryService`
pub fn aggregated(delta: bool) -> &'static str {
    if delta {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    } else {
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    }
}

/// The service of one type.
pub fn of_type(resource_type: ResourceType, delta: bool) -> &'static str {
    match (resource_type, delta) {
        (ResourceType::Cluster, false) => {
            "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"
        }
        (ResourceType::Cluster, true) => {
            "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"
        }
        (ResourceType::Endpoints, false) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
        }
        (ResourceType::Endpoints, true) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
        }
        (ResourceType::Listener, false) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"
        }
        (ResourceType::Listener, true) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"
        }
        (ResourceType::Routes, false) => {
            "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes"
        }
        (ResourceType::Routes, true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        (ResourceType::Secret, false) => {
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
        }
        (ResourceType::Secret, true) => {
            "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
        }
        (ResourceType::Extension, false) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
        }
        (ResourceType::Extension, true) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
        }
    }
}

/// Where the stream of one name is counted: below it stands `control_plane`.
pub fn stats_prefix(resource_type: ResourceType, name: &str) -> String {
    match resource_type {
        ResourceType::Cluster => "cluster_manager.cds".to_owned(),
        ResourceType::Listener => "listener_manager.lds".to_owned(),
        ResourceType::Endpoints => format!("cluster.{name}"),
        ResourceType::Secret => format!("sds.{name}"),
        ResourceType::Routes => format!("rds.{name}"),
        ResourceType::Extension => format!("extension_config_discovery.{name}"),
    }
}
