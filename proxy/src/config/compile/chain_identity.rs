//! Which filter chains of two versions of a listener are the same.

use prost::Message as _;

use super::core::any_type;
use crate::config::json::hash;
use crate::config::pb::envoy::config::listener::v3 as pb;
use crate::config::pb::envoy::config::listener::v3::filter::ConfigType;
use crate::config::pb::google::protobuf::Any;

/// Name of the connection manager's message.
pub const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// See `config::filter_chain::FilterChain::identity`. `is_default`: the listener's default chain, whose match is not asked.
pub fn identity(chain: &pb::FilterChain, is_default: bool) -> u64 {
    let filters = chain.filters.iter().map(|filter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if any_type(any) == HCM => {
            let body = Any { type_url: any.type_url.clone(), value: Vec::new() };
            pb::Filter { name: String::new(), config_type: Some(ConfigType::TypedConfig(body)) }
        }
        other => pb::Filter { name: String::new(), config_type: other.clone() },
    });
    let what = pb::FilterChain {
        filter_chain_match: chain.filter_chain_match.clone().filter(|_| !is_default),
        filters: filters.collect(),
        transport_socket: chain.transport_socket.clone(),
        ..pb::FilterChain::default()
    };
    let mut bytes = what.encode_to_vec();
    bytes.push(u8::from(is_default));
    hash(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::json::from_yaml;

    fn identity_of(yaml: &str) -> u64 {
        identity(&from_yaml(yaml).unwrap(), false)
    }

    #[test]
    fn the_connection_managers_body_does_not_count() {
        let chain = |hcm: &str, rest: &str| {
            identity_of(&format!(
                "{{filters: [{{name: a, typed_config: {{'@type': t/{HCM}, stat_prefix: {hcm}}}}}]{rest}}}"
            ))
        };
        let one = chain("one", "");
        assert_eq!(one, chain("two", ""));
        assert_eq!(one, chain("two", ", name: b"));
        assert_ne!(one, chain("one", ", filter_chain_match: {destination_port: 80}"));
        assert_ne!(one, chain("one", ", transport_socket: {name: a}"));
    }

    #[test]
    fn any_other_filters_body_does() {
        let tcp = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
        let chain = |cluster: &str| {
            identity_of(&format!(
                "{{filters: [{{name: a, typed_config: {{'@type': t/{tcp}, stat_prefix: s, cluster: {cluster}}}}}]}}"
            ))
        };
        assert_eq!(chain("a"), chain("a"));
        assert_ne!(chain("a"), chain("b"));
    }
}
