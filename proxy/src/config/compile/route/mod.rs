//! pb RouteConfiguration to `config::route::RouteTable`: the table and its virtual hosts; routes,
//! actions, retries and per-filter slots in the files beside.

mod action;
mod answer;
mod cluster_specifier;
mod per_filter;
mod retry;
mod route_entry;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

pub use self::per_filter::CompilePerRoute;
use super::core::compile_metadata;
use super::diagnostic::FieldPath;
use super::header_ops::compile_header_ops;
use super::matcher::compile_header_matchers;
use super::rate_limit::compile_rate_limits_of_route;
use crate::codec::name::HeaderName;
use crate::config::header_ops::HeaderOps;
use crate::config::name::NameId;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::route::action::{Action, ClusterSpecifier, MirrorPolicy};
use crate::config::route::domains::DomainIndexBuilder;
use crate::config::route::path_index::PathIndex;
use crate::config::route::retry::RetryPolicy;
use crate::config::route::stats::RouteStats;
use crate::config::route::{
    CorsPolicy, PerFilterConfigs, RequireTls, RouteTable, VirtualCluster, VirtualHost,
};

/// What a route table needs to know from outside.
#[derive(Clone, Copy)]
pub struct RouteContext<'a> {
    /// The compile function of a per-route configuration's message name; `None` for a filter that is not
    /// supported, whose per-route configuration is then applied without (the filter answers 500).
    pub per_route: &'a dyn Fn(&str) -> Option<CompilePerRoute>,
}

/// `max_direct_response_body_size_bytes` when nothing is said.
const DEFAULT_MAX_DIRECT_RESPONSE_BODY_BYTES: u32 = 4096;

/// What routes inherit from the levels above, and where they leave the clusters that they name.
struct Scope<'a> {
    cx: RouteContext<'a>,
    clusters: &'a RefCell<BTreeSet<Arc<str>>>,
    max_direct_response_body: u32,
    retry_policy: Option<Arc<RetryPolicy>>,
    mirrors: Arc<[MirrorPolicy]>,
    body_buffer_limit: Option<u64>,
}

impl Scope<'_> {
    /// A cluster's name, shared by all who name it.
    fn cluster(&self, name: &str) -> Arc<str> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(known) = clusters.get(name) {
            return known.clone();
        }
        let new: Arc<str> = Arc::from(name);
        clusters.insert(new.clone());
        new
    }
}

/// Compiles a route configuration; a best-effort value where something in it was an error (`path`'s
/// diagnostics say so).
pub fn compile_route_table(
    config: &pb::RouteConfiguration,
    cx: RouteContext<'_>,
    path: &FieldPath<'_>,
) -> RouteTable {
    report_unsupported(config, path);
    let clusters = RefCell::default();
    let max_body = config.max_direct_response_body_size_bytes.as_ref().map(|v| v.value);
    let mut scope = Scope {
        cx,
        clusters: &clusters,
        max_direct_response_body: max_body.unwrap_or(DEFAULT_MAX_DIRECT_RESPONSE_BODY_BYTES),
        retry_policy: None,
        mirrors: Arc::from([]),
        body_buffer_limit: None,
    };
    if !config.request_mirror_policies.is_empty() {
        scope.mirrors = action::compile_mirrors(&config.request_mirror_policies, &scope, path);
    }
    let mut domains = DomainIndexBuilder::default();
    let virtual_hosts: Vec<_> = config
        .virtual_hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let path = path.index("virtual_hosts", i);
            if host.domains.is_empty() {
                path.field("domains").error("value must contain at least 1 item(s)");
            }
            for (d, domain) in host.domains.iter().enumerate() {
                let inserted = domains.insert(domain, i as u32, &config.name);
                path.index("domains", d).ok_or_error(inserted);
            }
            compile_virtual_host(host, &scope, &path)
        })
        .collect();
    let per_filter = per_filter::compile(&config.typed_per_filter_config, cx, path);
    drop(scope);
    RouteTable {
        name: Arc::from(config.name.as_str()),
        domains: domains.build(),
        ignore_port_in_host_matching: config.ignore_port_in_host_matching,
        ignore_path_parameters_in_path_matching: config.ignore_path_parameters_in_path_matching,
        most_specific_header_mutations_wins: config.most_specific_header_mutations_wins,
        request_headers: request_ops(
            &config.request_headers_to_add,
            &config.request_headers_to_remove,
            path,
        ),
        response_headers: response_ops(
            &config.response_headers_to_add,
            &config.response_headers_to_remove,
            path,
        ),
        internal_only_headers: header_names(
            &config.internal_only_headers,
            "internal_only_headers",
            path,
        ),
        filters_named: filters_named(&per_filter, &virtual_hosts),
        per_filter,
        metadata: compile_metadata(config.metadata.as_ref(), &path.field("metadata")),
        clusters: clusters.into_inner().into_iter().collect(),
        validate_clusters: config.validate_clusters.as_ref().map(|v| v.value),
        virtual_hosts: virtual_hosts.into(),
    }
}

/// Every filter that a level of the table has a configuration for, each once.
fn filters_named(table: &PerFilterConfigs, hosts: &[VirtualHost]) -> Box<[NameId]> {
    let mut named = Vec::new();
    let mut take = |level: &PerFilterConfigs| {
        for slot in &level.0 {
            if !named.contains(&slot.filter) {
                named.push(slot.filter);
            }
        }
    };
    take(table);
    for host in hosts {
        take(&host.per_filter);
        for route in &host.routes {
            take(&route.per_filter);
            if let Action::Route(action) = &route.action
                && let ClusterSpecifier::Weighted(weighted) = &action.cluster
            {
                weighted.clusters.iter().for_each(|weight| take(&weight.per_filter));
            }
        }
    }
    named.into()
}

fn report_unsupported(config: &pb::RouteConfiguration, path: &FieldPath<'_>) {
    if config.vhds.is_some() {
        path.field("vhds").error("virtual host discovery is not supported");
    }
    if !config.vhost_header.is_empty() {
        path.field("vhost_header").error("not supported");
    }
    if !config.route_specifiers.is_empty() {
        path.field("route_specifiers").error("not supported");
    }
    for (i, plugin) in config.cluster_specifier_plugins.iter().enumerate() {
        let path = path.index("cluster_specifier_plugins", i);
        if plugin.is_optional {
            path.ignored("cluster specifier plugins are not supported");
        } else {
            path.error("cluster specifier plugins are not supported");
        }
    }
}

fn compile_virtual_host(
    host: &pb::VirtualHost,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> VirtualHost {
    if host.name.is_empty() {
        path.field("name").error("value length must be at least 1 characters");
    }
    report_unsupported_host(host, path);
    let own_mirrors = !host.request_mirror_policies.is_empty();
    let scope = Scope {
        cx: scope.cx,
        clusters: scope.clusters,
        max_direct_response_body: scope.max_direct_response_body,
        retry_policy: host.retry_policy.as_ref().and_then(|policy| {
            retry::compile_retry_policy(policy, &path.field("retry_policy")).map(Arc::new)
        }),
        mirrors: if own_mirrors {
            action::compile_mirrors(&host.request_mirror_policies, scope, path)
        } else {
            scope.mirrors.clone()
        },
        body_buffer_limit: body_buffer_limit(
            host.request_body_buffer_limit.as_ref().map(|v| v.value),
            per_request_limit_of_host(host),
        ),
    };
    let routes: Box<[_]> = host
        .routes
        .iter()
        .enumerate()
        .filter_map(|(i, route)| {
            route_entry::compile_route(route, &host.name, &scope, &path.index("routes", i))
        })
        .collect();
    VirtualHost {
        name: Arc::from(host.name.as_str()),
        index: PathIndex::new(routes.iter().map(|route| &route.matcher)),
        routes,
        require_tls: match pb::virtual_host::TlsRequirementType::try_from(host.require_tls) {
            Ok(pb::virtual_host::TlsRequirementType::None) => RequireTls::None,
            Ok(pb::virtual_host::TlsRequirementType::ExternalOnly) => RequireTls::ExternalOnly,
            Ok(pb::virtual_host::TlsRequirementType::All) => RequireTls::All,
            Err(_) => {
                path.field("require_tls").error("unknown enum value");
                RequireTls::All
            }
        },
        request_headers: request_ops(
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
            path,
        ),
        response_headers: response_ops(
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
            path,
        ),
        include_request_attempt_count: host.include_request_attempt_count,
        include_attempt_count_in_response: host.include_attempt_count_in_response,
        include_is_timeout_retry_header: host.include_is_timeout_retry_header,
        virtual_clusters: compile_virtual_clusters(host, path),
        cors: deprecated_cors(host, path),
        rate_limits: compile_rate_limits_of_route(&host.rate_limits, path),
        per_filter: per_filter::compile(&host.typed_per_filter_config, scope.cx, path),
        metadata: compile_metadata(host.metadata.as_ref(), &path.field("metadata")),
    }
}

fn report_unsupported_host(host: &pb::VirtualHost, path: &FieldPath<'_>) {
    if host.matcher.is_some() {
        path.field("matcher").error("matcher trees are not supported");
    }
    if host.retry_policy_typed_config.is_some() {
        path.field("retry_policy_typed_config").error("not supported");
    }
    if !host.route_specifiers.is_empty() {
        path.field("route_specifiers").error("not supported");
    }
    if host.hedge_policy.is_some() {
        path.field("hedge_policy").ignored("hedging is not supported");
    }
}

#[expect(deprecated, reason = "configurations still have it")]
fn deprecated_cors(host: &pb::VirtualHost, path: &FieldPath<'_>) -> Option<Arc<CorsPolicy>> {
    let policy = host.cors.as_ref()?;
    super::cors::compile_deprecated_cors(policy, &path.field("cors")).map(Arc::new)
}

#[expect(deprecated, reason = "configurations still have it")]
fn per_request_limit_of_host(host: &pb::VirtualHost) -> Option<u32> {
    host.per_request_buffer_limit_bytes.as_ref().map(|v| v.value)
}

/// `request_body_buffer_limit`, or the older 32-bit field.
fn body_buffer_limit(limit: Option<u64>, older: Option<u32>) -> Option<u64> {
    limit.or(older.map(u64::from))
}

fn compile_virtual_clusters(host: &pb::VirtualHost, path: &FieldPath<'_>) -> Box<[VirtualCluster]> {
    let virtual_cluster = |name: &str, headers| {
        let stats = RouteStats::new(format!("vhost.{}.vcluster.{name}", host.name));
        VirtualCluster { name: Arc::from(name), headers, stats: Arc::new(stats) }
    };
    let compile = |(i, cluster): (usize, &pb::VirtualCluster)| {
        let path = path.index("virtual_clusters", i);
        if cluster.name.is_empty() {
            path.field("name").error("value length must be at least 1 characters");
        }
        if cluster.headers.is_empty() {
            path.field("headers").error("virtual clusters must define 'headers'");
            return None;
        }
        let headers = compile_header_matchers(&cluster.headers, "headers", &path)?;
        Some(virtual_cluster(&cluster.name, headers))
    };
    let named = host.virtual_clusters.iter().enumerate().filter_map(compile);
    let rest =
        (!host.virtual_clusters.is_empty()).then(|| virtual_cluster("other", Box::default()));
    named.chain(rest).collect()
}

fn request_ops(
    add: &[core_pb::HeaderValueOption],
    remove: &[String],
    path: &FieldPath<'_>,
) -> HeaderOps {
    compile_header_ops(add, "request_headers_to_add", remove, "request_headers_to_remove", path)
}

fn response_ops(
    add: &[core_pb::HeaderValueOption],
    remove: &[String],
    path: &FieldPath<'_>,
) -> HeaderOps {
    compile_header_ops(add, "response_headers_to_add", remove, "response_headers_to_remove", path)
}

fn header_names(names: &[String], field: &str, path: &FieldPath<'_>) -> Box<[HeaderName]> {
    names
        .iter()
        .enumerate()
        .filter_map(|(i, name)| path.index(field, i).ok_or_error(HeaderName::parse(name)))
        .collect()
}

#[cfg(test)]
mod tests;
