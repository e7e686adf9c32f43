#![expect(deprecated, reason = "tests older fields that are still read, as Envoy does")]

use super::*;
use crate::config::cluster::{DnsLookupFamily, LbPolicy, LeastRequestOptions};
use crate::config::compile::diagnostic::{Diagnostics, Severity};
use crate::config::compile::slots::Slots;
use crate::config::endpoint::{Endpoint, HealthStatus};
use crate::config::pb::envoy::config::endpoint::v3 as pb_endpoint;
use crate::config::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use crate::config::pb::envoy::extensions::load_balancing_policies as pb_lb;
use crate::config::pb::envoy::extensions::upstreams::http::v3 as pb_http;
use crate::config::pb::google::protobuf::{Any, Duration as PbDuration, UInt32Value};
use crate::http_filters::ExtraFilters;
use crate::tls::Secrets;
use prost::{Message, Name};

fn pack<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

fn lb_endpoint(address: &str, port: u32) -> pb_endpoint::LbEndpoint {
    let socket = pb_core::SocketAddress {
        address: address.into(),
        port_specifier: Some(pb_core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let address =
        pb_core::Address { address: Some(pb_core::address::Address::SocketAddress(socket)) };
    pb_endpoint::LbEndpoint {
        host_identifier: Some(pb_endpoint::lb_endpoint::HostIdentifier::Endpoint(
            pb_endpoint::Endpoint { address: Some(address), ..Default::default() },
        )),
        ..Default::default()
    }
}

fn cluster(endpoints: Vec<pb_endpoint::LbEndpoint>) -> pb::Cluster {
    pb::Cluster {
        name: "c".into(),
        load_assignment: Some(pb_endpoint::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![pb_endpoint::LocalityLbEndpoints {
                lb_endpoints: endpoints,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn of_type(kind: pb_cluster::DiscoveryType) -> Option<pb_cluster::ClusterDiscoveryType> {
    Some(pb_cluster::ClusterDiscoveryType::Type(kind as i32))
}

/// The compiled cluster and the paths of errors.
fn compile(pb: &pb::Cluster) -> (Option<Cluster>, Vec<String>) {
    let found = Diagnostics::new("cluster");
    let extra_filters = &ExtraFilters::default();
    let cx =
        CompileContext { extra_filters, secrets: &Secrets::default(), slots: &Slots::default() };
    let cluster = compile_cluster(pb, None, &cx, &found.root());
    let errors = found.into_vec().into_iter().filter(|d| d.severity == Severity::Error);
    (cluster, errors.map(|d| d.path).collect())
}

#[test]
fn defaults_are_envoys() {
    let (cluster, errors) = compile(&cluster(vec![lb_endpoint("10.0.0.1", 80)]));
    let cluster = cluster.unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.per_connection_buffer_limit, 1 << 20);
    assert_eq!(cluster.healthy_panic_threshold, 50);
    assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
    assert_eq!(cluster.circuit_breakers.default.max_retries, 3);
    assert_eq!(cluster.http.common.idle_timeout, Some(Duration::from_secs(3600)));
    assert!(Arc::ptr_eq(&cluster.http, &DEFAULT_HTTP));
    assert!(Arc::ptr_eq(&cluster.circuit_breakers, &DEFAULT_BREAKERS));
    assert_eq!(cluster.load_assignment.endpoints().count(), 1);
}

#[test]
fn every_problem_is_reported_at_its_path() {
    let mut pb = cluster(vec![lb_endpoint("name.example", 80), lb_endpoint("10.0.0.1", 70_000)]);
    pb.connect_timeout = Some(PbDuration { seconds: 0, nanos: 0 });
    pb.lb_policy = pb_cluster::LbPolicy::RingHash as i32;
    pb.filters = vec![pb::Filter::default()];
    let (_, errors) = compile(&pb);
    let at = |i: usize| format!("load_assignment.endpoints[0].lb_endpoints[{i}].endpoint.address");
    let expected = [
        "filters".to_owned(),
        format!("{}.socket_address.address", at(0)),
        format!("{}.socket_address.port_value", at(1)),
        "lb_policy".to_owned(),
        "connect_timeout".to_owned(),
    ];
    assert_eq!(errors, expected);
}

#[test]
fn what_a_type_needs_has_to_be_there() {
    use pb_cluster::DiscoveryType;
    let of = |kind| pb::Cluster { cluster_discovery_type: of_type(kind), ..cluster(vec![]) };
    assert_eq!(compile(&of(DiscoveryType::LogicalDns)).1, ["load_assignment"]);
    assert_eq!(compile(&of(DiscoveryType::Eds)).1, ["eds_cluster_config"]);
}

#[test]
fn strict_dns_takes_names_and_its_rates() {
    let pb = pb::Cluster {
        cluster_discovery_type: of_type(pb_cluster::DiscoveryType::StrictDns),
        dns_failure_refresh_rate: Some(pb_cluster::RefreshRate {
            base_interval: Some(PbDuration { seconds: 1, nanos: 0 }),
            max_interval: None,
        }),
        ..cluster(vec![lb_endpoint("name.example", 80)])
    };
    let (cluster, errors) = compile(&pb);
    assert!(errors.is_empty(), "{errors:?}");
    let Discovery::Dns(dns) = cluster.unwrap().discovery else { panic!("not a DNS cluster") };
    assert_eq!(dns.refresh_rate, Duration::from_secs(5));
    assert_eq!(dns.failure_refresh_rate, (Duration::from_secs(1), Duration::from_secs(10)));
}

#[test]
fn dns_clusters_of_one_endpoint_in_both_forms() {
    let logical = pb::Cluster {
        cluster_discovery_type: of_type(pb_cluster::DiscoveryType::LogicalDns),
        ..cluster(vec![lb_endpoint("name.example", 80)])
    };
    let typed = DnsCluster {
        dns_refresh_rate: Some(PbDuration { seconds: 9, nanos: 0 }),
        dns_lookup_family: 2,
        all_addresses_in_single_endpoint: true,
        ..Default::default()
    };
    let of_type = |config: Any| {
        Some(pb_cluster::ClusterDiscoveryType::ClusterType(pb_cluster::CustomClusterType {
            name: "envoy.clusters.dns".to_owned(),
            typed_config: Some(config),
        }))
    };
    let of_extension =
        pb::Cluster { cluster_discovery_type: of_type(pack(&typed)), ..logical.clone() };
    let cases = [
        (logical, DnsLookupFamily::Auto, Duration::from_secs(5)),
        (of_extension.clone(), DnsLookupFamily::V4Only, Duration::from_secs(9)),
    ];
    for (mut pb, family, rate) in cases {
        pb.load_assignment.as_mut().unwrap().endpoints[0].priority = 3;
        let (cluster, errors) = compile(&pb);
        assert!(errors.is_empty(), "{errors:?}");
        let cluster = cluster.unwrap();
        let Discovery::Dns(dns) = cluster.discovery else { panic!("not a DNS cluster") };
        assert!(dns.single_endpoint);
        assert_eq!((dns.lookup_family, dns.refresh_rate), (family, rate));
        assert_eq!(cluster.load_assignment.localities[0].priority, 0);
    }
    let other = pb::Cluster { cluster_discovery_type: of_type(Any::default()), ..of_extension };
    assert_eq!(compile(&other).1[0], "cluster_type");
}

#[test]
fn http_options_in_all_forms() {
    use pb_http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let with = |options: pb_http::HttpProtocolOptions| {
        let options = [(HTTP_PROTOCOL_OPTIONS.to_owned(), pack(&options))];
        let pb = pb::Cluster {
            typed_extension_protocol_options: options.into_iter().collect(),
            max_requests_per_connection: Some(UInt32Value { value: 7 }),
            ..cluster(vec![])
        };
        let (cluster, errors) = compile(&pb);
        assert!(errors.is_empty(), "{errors:?}");
        cluster.unwrap().http
    };
    let http2 = pb_core::Http2ProtocolOptions {
        max_concurrent_streams: Some(UInt32Value { value: 5 }),
        ..Default::default()
    };
    let explicit = with(pb_http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
            },
        )),
        ..Default::default()
    });
    assert_eq!(explicit.choice, UpstreamProtocolChoice::Http2);
    assert_eq!(explicit.http2.max_concurrent_streams, 5);
    assert_eq!(explicit.common.max_requests_per_connection, Some(7));
    let downstream = with(pb_http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            UseDownstreamHttpConfig::default(),
        )),
        ..Default::default()
    });
    use crate::codec::head::Protocol;
    assert_eq!(downstream.protocol(Protocol::Http2, None), Protocol::Http2);
    assert_eq!(downstream.protocol(Protocol::Http10, None), Protocol::Http11);
}

#[test]
fn the_deprecated_http2_form() {
    let pb = pb::Cluster {
        http2_protocol_options: Some(pb_core::Http2ProtocolOptions::default()),
        ..cluster(vec![])
    };
    assert_eq!(compile(&pb).0.unwrap().http.choice, UpstreamProtocolChoice::Http2);
}

#[test]
fn a_policy_list_takes_the_first_known() {
    let policy = |any| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(pb_core::TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(any),
        }),
    };
    let unknown = Any { type_url: "type.googleapis.com/a.B".into(), value: vec![] };
    let least = pack(&pb_lb::least_request::v3::LeastRequest {
        choice_count: Some(UInt32Value { value: 4 }),
        ..Default::default()
    });
    let list = |policies| pb::Cluster {
        load_balancing_policy: Some(pb::LoadBalancingPolicy { policies }),
        ..cluster(vec![])
    };
    let (cluster, _) = compile(&list(vec![policy(unknown.clone()), policy(least)]));
    let wanted = LeastRequestOptions { choice_count: 4, ..Default::default() };
    assert_eq!(cluster.unwrap().lb_policy, LbPolicy::LeastRequest(wanted));
    assert_eq!(compile(&list(vec![policy(unknown)])).1, ["load_balancing_policy"]);
}

#[test]
fn an_unknown_transport_socket_is_refused() {
    let mut pb = cluster(vec![]);
    pb.transport_socket = Some(pb_core::TransportSocket {
        name: "envoy.transport_sockets.alts".into(),
        config_type: None,
    });
    assert_eq!(compile(&pb).1, ["transport_socket"]);
}

#[test]
fn endpoints_are_small() {
    assert!(size_of::<Endpoint>() <= 96, "{}", size_of::<Endpoint>());
    assert!(size_of::<crate::cluster::host::Host>() <= 192);
    assert_eq!(size_of::<HealthStatus>(), 1);
}

#[test]
fn hosts_have_the_first_limit_of_each_priority() {
    use pb::circuit_breakers::Thresholds as PbThresholds;
    let limit = |priority: pb_core::RoutingPriority, value| PbThresholds {
        priority: priority.into(),
        max_connections: Some(UInt32Value { value }),
        ..PbThresholds::default()
    };
    let (default, high) = (pb_core::RoutingPriority::Default, pb_core::RoutingPriority::High);
    let mut pb = cluster(Vec::new());
    let all = vec![limit(high, 3), limit(default, 1), limit(default, 2), limit(high, 4)];
    let mut breakers = pb::CircuitBreakers { per_host_thresholds: all, ..Default::default() };
    pb.circuit_breakers = Some(breakers.clone());
    let (compiled, errors) = compile(&pb);
    assert!(errors.is_empty(), "{errors:?}");
    let compiled = compiled.unwrap();
    assert_eq!(compiled.circuit_breakers.per_host_max_connections, [Some(1), Some(3)]);
    breakers.per_host_thresholds[0].max_requests = Some(UInt32Value { value: 1 });
    pb.circuit_breakers = Some(breakers);
    assert_eq!(compile(&pb).1, ["circuit_breakers.per_host_thresholds[0].max_requests"]);
}
