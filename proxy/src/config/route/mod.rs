//! A compiled route configuration: what `envoy.config.route.v3.RouteConfiguration` says, ready to be
//! asked. Built by `config::compile::route`, asked by `router::route_table`, shared by all workers.

pub mod action;
pub mod domains;
pub mod path_index;
pub mod prefix_tree;
pub mod retry;
pub mod slot;
pub mod stats;

use std::any::Any;
use std::sync::Arc;

use self::action::Action;
use self::domains::DomainIndex;
use self::path_index::PathIndex;
use self::stats::RouteStats;
use crate::codec::name::HeaderName;
use crate::config::core::{Metadata, RuntimeFraction};
use crate::config::header_ops::HeaderOps;
use crate::config::matcher::StringMatcher;
use crate::config::matcher::header::HeaderMatcher;
use crate::config::matcher::query::{CookieMatcher, QueryParameterMatcher};
use crate::config::matcher::re2::Regex;
use crate::config::name::NameId;
use crate::config::rate_limit::RateLimit;
use crate::http_filters::PerRouteConfig;

/// A whole route configuration.
#[derive(Debug)]
pub struct RouteTable {
    pub name: Arc<str>,
    pub domains: DomainIndex,
    pub virtual_hosts: Box<[VirtualHost]>,
    /// The port of the host is not looked at when a virtual host is chosen.
    pub ignore_port_in_host_matching: bool,
    /// `;parameters` of the path are not looked at when a route is chosen.
    pub ignore_path_parameters_in_path_matching: bool,
    /// Header operations run from the least specific level to the most specific one, so that the
    /// most specific has the last word. Default: the other way round.
    pub most_specific_header_mutations_wins: bool,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    /// Removed from external requests.
    pub internal_only_headers: Box<[HeaderName]>,
    pub per_filter: PerFilterConfigs,
    /// The filters that any level of the table says something about: most tables have none, and each request asks
    /// for each filter.
    pub filters_named: Box<[NameId]>,
    pub metadata: Option<Metadata>,
    /// Every cluster that a route, a weight or a mirror names; sorted, each once.
    pub clusters: Box<[Arc<str>]>,
    /// The clusters above must exist when the table is loaded. Default: true for a static table,
    /// false for one from RDS.
    pub validate_clusters: Option<bool>,
}

/// `envoy.config.route.v3.VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    pub name: Arc<str>,
    /// In configuration order: the first that matches wins.
    pub routes: Box<[Route]>,
    pub index: PathIndex,
    pub require_tls: RequireTls,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    /// Requests upstream carry `x-envoy-attempt-count`.
    pub include_request_attempt_count: bool,
    /// So do responses downstream.
    pub include_attempt_count_in_response: bool,
    /// Retries after a timeout carry `x-envoy-is-timeout-retry`.
    pub include_is_timeout_retry_header: bool,
    /// The last one, `other`, takes every request; none where the configuration has none.
    pub virtual_clusters: Box<[VirtualCluster]>,
    /// As `RouteAction::cors`, for what the route's does not say.
    pub cors: Option<Arc<CorsPolicy>>,
    pub rate_limits: Box<[RateLimit]>,
    pub per_filter: PerFilterConfigs,
    pub metadata: Option<Metadata>,
}

/// Who is redirected to https.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequireTls {
    #[default]
    None,
    /// Requests that are not internal (`x-envoy-internal`).
    ExternalOnly,
    All,
}

/// `envoy.config.route.v3.VirtualCluster`: statistics under `vhost.<virtual host>.vcluster.<name>`.
/// A request that none of a virtual host's matches counts under `other`.
#[derive(Debug)]
pub struct VirtualCluster {
    pub name: Arc<str>,
    pub headers: Box<[HeaderMatcher]>,
    pub stats: Arc<RouteStats>,
}

/// `envoy.config.route.v3.Route`.
#[derive(Debug)]
pub struct Route {
    /// Empty when it has none.
    pub name: Arc<str>,
    pub matcher: RouteMatcher,
    pub action: Action,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    pub decorator: Option<Decorator>,
    /// Of a `stat_prefix`, under `vhost.<virtual host>.route.<stat_prefix>`.
    pub stats: Option<Arc<RouteStats>>,
    /// Bytes of a request's body kept for retries and mirrors; default: the connection's buffer limit.
    pub request_body_buffer_limit: Option<u64>,
    pub per_filter: PerFilterConfigs,
    pub metadata: Option<Metadata>,
}

/// `envoy.config.route.v3.Decorator`.
#[derive(Debug, Clone)]
pub struct Decorator {
    pub operation: Arc<str>,
    /// Sent upstream as `x-envoy-decorator-operation`. Default true.
    pub propagate: bool,
}

/// `envoy.config.route.v3.RouteMatch`.
#[derive(Debug)]
pub struct RouteMatcher {
    pub path: PathSpecifier,
    /// For `Prefix`, `Path` and `PathSeparatedPrefix`.
    pub case_sensitive: bool,
    /// Everything but the path; boxed, since most routes have nothing of it.
    pub conditions: Option<Box<Conditions>>,
}

/// What the path (without query and fragment) must be.
#[derive(Debug)]
pub enum PathSpecifier {
    Prefix(Box<[u8]>),
    Path(Box<[u8]>),
    /// The prefix itself, or the prefix followed by `/`. Has no `/` at its end.
    PathSeparatedPrefix(Box<[u8]>),
    Regex(Regex),
    /// CONNECT requests, with or without a path.
    Connect,
}

impl RouteMatcher {
    /// Whether the path matches; `path` has neither query nor fragment nor, where they are not
    /// looked at, parameters. `Connect` is not about paths: never.
    pub fn matches_path(&self, path: &[u8]) -> bool {
        let starts_with = |prefix: &[u8]| {
            path.get(..prefix.len()).is_some_and(|head| {
                if self.case_sensitive { head == prefix } else { head.eq_ignore_ascii_case(prefix) }
            })
        };
        match &self.path {
            PathSpecifier::Prefix(prefix) => starts_with(prefix),
            PathSpecifier::Path(text) if self.case_sensitive => path == &**text,
            PathSpecifier::Path(text) => path.eq_ignore_ascii_case(text),
            PathSpecifier::PathSeparatedPrefix(prefix) => {
                starts_with(prefix) && matches!(path.get(prefix.len()), None | Some(b'/'))
            }
            PathSpecifier::Regex(regex) => regex.matches(path),
            PathSpecifier::Connect => false,
        }
    }
}

/// Conditions beside the path; all must hold.
#[derive(Debug, Default)]
pub struct Conditions {
    pub runtime_fraction: Option<RuntimeFraction>,
    /// `content-type` is `application/grpc` or starts with `application/grpc+`.
    pub grpc: bool,
    pub headers: Box<[HeaderMatcher]>,
    pub query_parameters: Box<[QueryParameterMatcher]>,
    pub cookies: Box<[CookieMatcher]>,
    pub tls_context: TlsContextMatch,
}

/// pb `RouteMatch.TlsContextMatchOptions`; `None` takes any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsContextMatch {
    /// Whether the client shows a certificate.
    pub presented: Option<bool>,
    /// Whether that was verified.
    pub validated: Option<bool>,
}

/// `typed_per_filter_config` of one level: a handful of slots, found by the filter's name.
#[derive(Default)]
pub struct PerFilterConfigs(pub Box<[PerFilterSlot]>);

/// What a level says about one filter.
pub struct PerFilterSlot {
    pub filter: NameId,
    /// `FilterConfig.disabled`; a level that has anything else for the filter switches it on.
    pub disabled: bool,
    pub config: Option<PerRouteConfig>,
}

impl PerFilterConfigs {
    /// Every configuration of the level.
    pub fn configs(&self) -> impl Iterator<Item = &PerRouteConfig> {
        self.0.iter().filter_map(|slot| slot.config.as_ref())
    }

    pub fn slot(&self, filter: NameId) -> Option<&PerFilterSlot> {
        self.0.iter().find(|slot| slot.filter == filter)
    }

    pub fn config(&self, filter: NameId) -> Option<&(dyn Any + Send + Sync)> {
        self.slot(filter)?.config.as_deref()
    }
}

impl std::fmt::Debug for PerFilterConfigs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|slot| (slot.filter, slot.disabled))).finish()
    }
}

/// `envoy.config.route.v3.CorsPolicy` and its like in the cors filter's own package.
#[derive(Debug, Default)]
pub struct CorsPolicy {
    pub allow_origin: Box<[StringMatcher]>,
    /// Empty: the header is not sent. So for the next three.
    pub allow_methods: Box<[u8]>,
    pub allow_headers: Box<[u8]>,
    pub expose_headers: Box<[u8]>,
    pub max_age: Box<[u8]>,
    pub allow_credentials: Option<bool>,
    pub allow_private_network_access: Option<bool>,
    /// Preflights whose origin matches nothing go upstream. Default true.
    pub forward_not_matching_preflights: Option<bool>,
    /// Share of requests for which the policy holds. Default all.
    pub enabled: Option<RuntimeFraction>,
    /// Share of requests for which origins are only counted, where the policy does not hold. Default none.
    pub shadow_enabled: Option<RuntimeFraction>,
}
