//! One entry of `/config_dump` as the message of `envoy.admin.v3` that it is.

use std::time::SystemTime;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::admin::{ConfigKind, ConfigResource, ConfigState};
use crate::config::pb::envoy::admin::v3 as pb;
use crate::config::pb::google::protobuf::{Any, Timestamp};

/// `BootstrapConfigDump`, around the bootstrap's bytes as they are.
pub(super) fn bootstrap(resource: &ConfigResource) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(resource.value.len() + 32);
    let mut field = |number: u32, value: &[u8]| {
        encode_key(number, WireType::LengthDelimited, &mut bytes);
        encode_varint(value.len() as u64, &mut bytes);
        bytes.extend_from_slice(value);
    };
    field(1, &resource.value);
    if let Some(updated) = timestamp(resource.last_updated) {
        field(2, &updated.encode_to_vec());
    }
    bytes
}

/// The entry of these resources: the states of one listener, or a single resource. Empty for kinds without entries.
pub(super) fn entry(kind: ConfigKind, resources: &[ConfigResource]) -> Vec<u8> {
    let Some(resource) = resources.first() else { return Vec::new() };
    let is_static = resource.state == ConfigState::Static;
    match kind {
        ConfigKind::Bootstrap | ConfigKind::ScopedRoutes => Vec::new(),
        ConfigKind::Clusters => cluster(resource, is_static),
        ConfigKind::Endpoints => endpoints(resource, is_static),
        ConfigKind::Listeners if is_static => pb::listeners_config_dump::StaticListener {
            listener: any(resource),
            last_updated: timestamp(resource.last_updated),
        }
        .encode_to_vec(),
        ConfigKind::Listeners => dynamic_listener(resource, resources),
        ConfigKind::Routes => route(resource, is_static),
        ConfigKind::Secrets => secret(resource, is_static),
        ConfigKind::Extensions => pb::ecds_config_dump::EcdsFilterConfig {
            version_info: resource.version.clone(),
            ecds_filter: any(resource),
            last_updated: timestamp(resource.last_updated),
            ..Default::default()
        }
        .encode_to_vec(),
    }
}

fn cluster(resource: &ConfigResource, is_static: bool) -> Vec<u8> {
    if is_static {
        return pb::clusters_config_dump::StaticCluster {
            cluster: any(resource),
            last_updated: timestamp(resource.last_updated),
        }
        .encode_to_vec();
    }
    pb::clusters_config_dump::DynamicCluster {
        version_info: resource.version.clone(),
        cluster: any(resource),
        last_updated: timestamp(resource.last_updated),
        error_state: rejected(resource),
        ..Default::default()
    }
    .encode_to_vec()
}

/// Envoy gives no time for endpoints.
fn endpoints(resource: &ConfigResource, is_static: bool) -> Vec<u8> {
    if is_static {
        return pb::endpoints_config_dump::StaticEndpointConfig {
            endpoint_config: any(resource),
            last_updated: None,
        }
        .encode_to_vec();
    }
    pb::endpoints_config_dump::DynamicEndpointConfig {
        version_info: resource.version.clone(),
        endpoint_config: any(resource),
        error_state: rejected(resource),
        ..Default::default()
    }
    .encode_to_vec()
}

fn dynamic_listener(first: &ConfigResource, states: &[ConfigResource]) -> Vec<u8> {
    let mut listener = pb::listeners_config_dump::DynamicListener {
        name: first.name.clone(),
        error_state: states.iter().find_map(rejected),
        ..Default::default()
    };
    for resource in states {
        let state = Some(pb::listeners_config_dump::DynamicListenerState {
            version_info: resource.version.clone(),
            listener: any(resource),
            last_updated: timestamp(resource.last_updated),
        });
        match resource.state {
            ConfigState::Static | ConfigState::Active => listener.active_state = state,
            ConfigState::Warming => listener.warming_state = state,
            ConfigState::Draining => listener.draining_state = state,
            // Only its error is to be told.
            ConfigState::Rejected => {}
        }
    }
    listener.encode_to_vec()
}

fn route(resource: &ConfigResource, is_static: bool) -> Vec<u8> {
    if is_static {
        return pb::routes_config_dump::StaticRouteConfig {
            route_config: any(resource),
            last_updated: timestamp(resource.last_updated),
        }
        .encode_to_vec();
    }
    pb::routes_config_dump::DynamicRouteConfig {
        version_info: resource.version.clone(),
        route_config: any(resource),
        last_updated: timestamp(resource.last_updated),
        error_state: rejected(resource),
        ..Default::default()
    }
    .encode_to_vec()
}

fn secret(resource: &ConfigResource, is_static: bool) -> Vec<u8> {
    if is_static {
        return pb::secrets_config_dump::StaticSecret {
            name: resource.name.clone(),
            last_updated: timestamp(resource.last_updated),
            secret: any(resource),
        }
        .encode_to_vec();
    }
    pb::secrets_config_dump::DynamicSecret {
        name: resource.name.clone(),
        version_info: resource.version.clone(),
        last_updated: timestamp(resource.last_updated),
        secret: any(resource),
        error_state: rejected(resource),
        ..Default::default()
    }
    .encode_to_vec()
}

fn any(resource: &ConfigResource) -> Option<Any> {
    Some(Any { type_url: resource.type_url.to_owned(), value: resource.value.to_vec() })
}

fn rejected(resource: &ConfigResource) -> Option<pb::UpdateFailureState> {
    resource.rejected.as_ref().map(|rejected| pb::UpdateFailureState {
        last_update_attempt: timestamp(rejected.last_update_attempt),
        details: rejected.details.clone(),
        version_info: rejected.version.clone(),
        failed_configuration: Some(&rejected.value)
            .filter(|value| !value.is_empty())
            .map(|value| Any { type_url: resource.type_url.to_owned(), value: value.to_vec() }),
    })
}

/// In milliseconds, as Envoy prints them.
pub(super) fn timestamp(time: SystemTime) -> Option<Timestamp> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        nanos: since.subsec_millis().cast_signed() * 1_000_000,
    })
}
