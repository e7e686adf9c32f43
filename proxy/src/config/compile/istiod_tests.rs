//! Every listener, cluster and route configuration that istiod sent to five pods of its sample mesh (with Istio's own
//! filters and for stock Envoy), through the compile functions: none is rejected, and what is applied without is listed.

use std::collections::BTreeSet;

use prost::{Message, Name};
use serde_json::Value;

use super::CompileContext;
use super::configuration::{compile_raw_cluster, compile_raw_listener};
use super::diagnostic::{Diagnostic, Diagnostics, Severity};
use super::route::{RouteContext, compile_route_table};
use crate::config::json::{RawResource, from_yaml};
use crate::config::pb::envoy::config::cluster::v3::Cluster;
use crate::config::pb::envoy::config::listener::v3::Listener;
use crate::config::pb::envoy::config::route::v3::RouteConfiguration;
use crate::config::support;
use crate::http_filters::ExtraFilters;
use crate::http_filters::chain::FilterConfig;
use crate::tls::secrets::Secrets;

/// Rejected until what they need is built; none but these.
const REJECTED: &[&str] = &[
    "default_filter_chain.filters[].typed_config: network filter \"envoy.tcp.metadataexchange.config.MetadataExchange\" is not supported",
    "default_filter_chain.filters[].typed_config: network filter \"stats.PluginConfig\" is not supported",
    "filter_chains[].filters[].typed_config: network filter \"envoy.tcp.metadataexchange.config.MetadataExchange\" is not supported",
    "filter_chains[].filters[].typed_config: network filter \"stats.PluginConfig\" is not supported",
    "filters: upstream network filters are not supported",
];

/// Applied without; nothing but this.
const IGNORED: &[&str] = &[
    "bypass_overload_manager: there is no overload manager",
    "cleanup_interval: belongs to original destination clusters",
    "filter_chains[].filters[].typed_config.http_filters[].typed_config: http filter \"io.istio.http.peer_metadata.Config\" is not supported: requests that reach it are answered with 500",
    "filter_chains[].filters[].typed_config.http_filters[].typed_config: http filter \"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig\" is not supported: requests that reach it are answered with 500",
    "filter_chains[].filters[].typed_config.http_filters[].typed_config: http filter \"stats.PluginConfig\" is not supported: requests that reach it are answered with 500",
    "filter_chains[].filters[].typed_config.tracing.custom_tags: no tracer is built",
    "filter_chains[].transport_socket.typed_config.common_tls_context.tls_params.cipher_suites[]: AES128-GCM-SHA256 is not supported",
    "filter_chains[].transport_socket.typed_config.common_tls_context.tls_params.cipher_suites[]: AES256-GCM-SHA384 is not supported",
    "ignore_global_conn_limit: there is no global limit",
    "outlier_detection: outlier detection is not built",
];

fn resources<M: Message + Name + Default>(text: &str) -> Vec<RawResource> {
    let all: Vec<Value> = serde_json::from_str(text).unwrap();
    let read = |entry: &Value| {
        let resource = &entry["resource"];
        let message: M = from_yaml(&resource.to_string()).unwrap_or_else(|wrong| {
            panic!("{resource}: {}", wrong.iter().map(|p| format!("{p:?}")).collect::<String>())
        });
        RawResource {
            name: resource["name"].as_str().unwrap_or_default().to_owned(),
            type_url: Box::leak(M::type_url().into_boxed_str()),
            bytes: message.encode_to_vec().into(),
            hash: 0,
            origin: entry["of"].as_str().unwrap().to_owned(),
        }
    };
    all.iter().map(read).collect()
}

/// `filter_chains[].filters[].typed_config.x: reason`, whichever element it is.
fn summary(found: &[Diagnostic], severity: Severity) -> BTreeSet<String> {
    let of_severity = found.iter().filter(|one| one.severity == severity);
    let path = |one: &Diagnostic| {
        let mut path = String::new();
        let mut inside = false;
        for c in one.path.chars() {
            inside &= c != ']';
            if !inside {
                path.push(c);
            }
            inside |= c == '[';
        }
        path
    };
    of_severity.map(|one| format!("{}: {}", path(one), one.reason)).collect()
}

#[test]
fn what_istiod_sends_compiles() {
    let extra_filters = ExtraFilters::default();
    let slots = super::slots::Slots::default();
    let cx = CompileContext {
        extra_filters: &extra_filters,
        secrets: &Secrets::default(),
        slots: &slots,
    };
    let mut found = Vec::new();
    for raw in resources::<Cluster>(include_str!("testdata/istiod_clusters.json")) {
        found.extend(compile_raw_cluster(&raw, None, &cx).1);
    }
    for raw in resources::<Listener>(include_str!("testdata/istiod_listeners.json")) {
        found.extend(compile_raw_listener(&raw, &cx).1);
    }
    for raw in resources::<RouteConfiguration>(include_str!("testdata/istiod_routes.json")) {
        let of_routes = Diagnostics::new(raw.origin);
        support::check(raw.type_url, &raw.bytes, &of_routes.root());
        let config = RouteConfiguration::decode(raw.bytes).unwrap();
        let context = RouteContext { per_route: &FilterConfig::per_route };
        compile_route_table(&config, context, &of_routes.root());
        found.extend(of_routes.into_vec());
    }
    for (severity, expected) in [(Severity::Error, REJECTED), (Severity::Ignored, IGNORED)] {
        let seen = summary(&found, severity);
        let new: Vec<&str> =
            seen.iter().map(String::as_str).filter(|one| !expected.contains(one)).collect();
        assert!(new.is_empty(), "{severity:?}:\n{}\n", new.join("\n"));
    }
}
