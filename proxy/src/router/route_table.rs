//! Request to virtual host to route: pure, without allocation, a function of the head and one random
//! number. Traffic, benches and the admin interface ask the same functions.
//!
//! A `RouteMatch` is a few numbers into its table; the stream keeps the table alive beside it.

use std::any::Any;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::codec::head::RequestHead;
use crate::codec::name::{HeaderName, names};
use crate::config::header_ops::HeaderOps;
use crate::config::matcher::header::all_match;
use crate::config::matcher::without_query;
use crate::config::name::NameId;
use crate::config::route::action::{
    Action, ClusterName, ClusterSpecifier, ClusterWeight, RouteAction, WeightedClusters,
};
use crate::config::route::{
    Conditions, PathSpecifier, PerFilterSlot, RequireTls, Route, RouteMatcher, RouteTable,
    VirtualCluster, VirtualHost,
};
use crate::format::grpc::is_grpc_request;
use crate::http_filters::PerRouteConfig;
use crate::stream_info::ConnectionInfo;

/// What a request matched: numbers that mean something only to the table that gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteMatch {
    virtual_host: u32,
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The virtual host wants https.
    TlsRedirect,
    /// `weight` is the chosen share of a weighted cluster, else 0.
    Route { route: u32, weight: u32 },
}

/// What else than a request's head decides its route.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteFacts {
    /// Decides fractions and weights: one number for a stream's whole life, so that matching again changes nothing
    /// by chance.
    pub random: u64,
    /// The client shows a certificate.
    pub peer_presented: bool,
    /// And it was verified.
    pub peer_validated: bool,
}

impl RouteFacts {
    pub fn new(connection: &ConnectionInfo, random: u64) -> Self {
        let tls = connection.tls.get();
        let peer_presented = tls.is_some_and(|tls| tls.peer.is_some());
        let peer_validated = tls.is_some_and(|tls| tls.peer_validated);
        Self { random, peer_presented, peer_validated }
    }
}

/// A request of a client without a certificate.
impl From<u64> for RouteFacts {
    fn from(random: u64) -> Self {
        Self { random, ..Self::default() }
    }
}

impl RouteMatch {
    /// The request is to be redirected to https, whatever its route.
    pub fn is_tls_redirect(self) -> bool {
        self.target == Target::TlsRedirect
    }
}

impl RouteTable {
    /// The route of a request.
    pub fn route(&self, head: &RequestHead, facts: impl Into<RouteFacts>) -> Option<RouteMatch> {
        let facts = facts.into();
        let number = self.find_virtual_host(head)?;
        let host = &self.virtual_hosts[number as usize];
        if wants_tls(host.require_tls, head) {
            return Some(RouteMatch { virtual_host: number, target: Target::TlsRedirect });
        }
        let route = self.find_route(host, head, facts)?;
        let weight = match &host.routes[route as usize].action {
            Action::Route(action) => match &action.cluster {
                ClusterSpecifier::Weighted(weighted) => pick_weight(weighted, head, facts.random),
                _ => 0,
            },
            _ => 0,
        };
        Some(RouteMatch { virtual_host: number, target: Target::Route { route, weight } })
    }

    fn find_virtual_host(&self, head: &RequestHead) -> Option<u32> {
        let host = head
            .authority()
            .map(|host| if self.ignore_port_in_host_matching { without_port(host) } else { host });
        self.domains.find(host)
    }

    fn find_route(&self, host: &VirtualHost, head: &RequestHead, facts: RouteFacts) -> Option<u32> {
        let full = head.path();
        let mut path = without_query(full.unwrap_or_default());
        let mut bare = SmallVec::<[u8; 256]>::new();
        if self.ignore_path_parameters_in_path_matching && path.contains(&b';') {
            push_without_parameters(path, &mut bare);
            path = &bare;
        }
        host.index.first(path, host.routes.len(), |i| {
            let matcher = &host.routes[i as usize].matcher;
            let path_matches = match matcher.path {
                PathSpecifier::Connect => is_connect(head),
                _ => full.is_some() && matcher.matches_path(path),
            };
            path_matches && matcher.conditions_hold(head, facts)
        })
    }

    pub fn virtual_host(&self, matched: RouteMatch) -> &VirtualHost {
        &self.virtual_hosts[matched.virtual_host as usize]
    }

    /// `None` for a redirect to https.
    pub fn matched_route(&self, matched: RouteMatch) -> Option<&Route> {
        match matched.target {
            Target::TlsRedirect => None,
            Target::Route { route, .. } => Some(&self.virtual_host(matched).routes[route as usize]),
        }
    }

    /// The route's action where it forwards.
    pub fn route_action(&self, matched: RouteMatch) -> Option<&RouteAction> {
        match &self.matched_route(matched)?.action {
            Action::Route(action) => Some(action),
            _ => None,
        }
    }

    /// The chosen share, where the route has a weighted cluster.
    pub fn cluster_weight(&self, matched: RouteMatch) -> Option<&ClusterWeight> {
        let Target::Route { weight, .. } = matched.target else { return None };
        match &self.route_action(matched)?.cluster {
            ClusterSpecifier::Weighted(weighted) => Some(&weighted.clusters[weight as usize]),
            _ => None,
        }
    }

    /// The cluster that the request goes to. `None`: the route does not forward, or the header that
    /// names the cluster is missing or no text, which is answered as an unknown cluster is.
    pub fn cluster_name<'a>(
        &'a self,
        matched: RouteMatch,
        head: &'a RequestHead,
    ) -> Option<&'a str> {
        match &self.route_action(matched)?.cluster {
            ClusterSpecifier::Cluster(name) => Some(name),
            ClusterSpecifier::Header(header) => header_text(head, header),
            ClusterSpecifier::Weighted(_) => match &self.cluster_weight(matched)?.cluster {
                ClusterName::Name(name) => Some(name),
                ClusterName::Header(header) => header_text(head, header),
            },
        }
    }

    /// The request header operations in the order in which they run; a later one has the last word.
    /// A weighted cluster's own come before them in either order, as in Envoy. A redirect to https has
    /// none.
    pub fn request_header_ops(&self, matched: RouteMatch) -> impl Iterator<Item = &HeaderOps> {
        let host = self.virtual_host(matched);
        self.in_order(
            self.matched_route(matched).map(|route| &route.request_headers),
            [&host.request_headers, &self.request_headers],
        )
    }

    /// The response header operations in the order in which they run, a weighted cluster's own first.
    pub fn response_header_ops(&self, matched: RouteMatch) -> impl Iterator<Item = &HeaderOps> {
        let host = self.virtual_host(matched);
        let weight = self.cluster_weight(matched).map(|weight| &weight.response_headers);
        weight.into_iter().chain(self.in_order(
            self.matched_route(matched).map(|route| &route.response_headers),
            [&host.response_headers, &self.response_headers],
        ))
    }

    fn in_order<'a>(
        &self,
        route: Option<&'a HeaderOps>,
        above: [&'a HeaderOps; 2],
    ) -> impl Iterator<Item = &'a HeaderOps> + use<'a> {
        let mut levels = [route, route.and(Some(above[0])), route.and(Some(above[1]))];
        if self.most_specific_header_mutations_wins {
            levels.reverse();
        }
        levels.into_iter().flatten().filter(|ops| !ops.is_empty())
    }

    /// The most specific configuration of a filter for this request.
    pub fn filter_config(
        &self,
        matched: RouteMatch,
        filter: NameId,
    ) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.per_filter_slots(matched, filter).find_map(|slot| slot.config.as_ref())
    }

    /// Every filter's configuration at every level.
    pub fn for_each_filter_config(&self, mut visit: impl FnMut(&PerRouteConfig)) {
        self.per_filter.configs().for_each(&mut visit);
        for host in &self.virtual_hosts {
            host.per_filter.configs().for_each(&mut visit);
            for route in &host.routes {
                route.per_filter.configs().for_each(&mut visit);
                if let Action::Route(action) = &route.action
                    && let ClusterSpecifier::Weighted(weighted) = &action.cluster
                {
                    let weights = weighted.clusters.iter();
                    weights.flat_map(|w| w.per_filter.configs()).for_each(&mut visit);
                }
            }
        }
    }

    /// Every configuration of a filter for this request, least specific first.
    pub fn filter_configs(
        &self,
        matched: RouteMatch,
        filter: NameId,
    ) -> impl Iterator<Item = &Arc<dyn Any + Send + Sync>> {
        let mut levels: SmallVec<[&PerFilterSlot; 4]> =
            self.per_filter_slots(matched, filter).collect();
        levels.reverse();
        levels.into_iter().filter_map(|slot| slot.config.as_ref())
    }

    /// Whether a filter is switched off (or on) for this request; `None` when no level says.
    pub fn filter_disabled(&self, matched: RouteMatch, filter: NameId) -> Option<bool> {
        self.per_filter_slots(matched, filter).next().map(|slot| slot.disabled)
    }

    /// What the levels say about a filter, most specific first.
    fn per_filter_slots(
        &self,
        matched: RouteMatch,
        filter: NameId,
    ) -> impl Iterator<Item = &PerFilterSlot> {
        let levels = self.filters_named.contains(&filter).then(|| {
            let weight = self.cluster_weight(matched).map(|weight| &weight.per_filter);
            let route = self.matched_route(matched).map(|route| &route.per_filter);
            let host = &self.virtual_host(matched).per_filter;
            weight.into_iter().chain(route).chain([host, &self.per_filter])
        });
        levels.into_iter().flatten().filter_map(move |level| level.slot(filter))
    }
}

impl RouteMatcher {
    fn conditions_hold(&self, head: &RequestHead, facts: RouteFacts) -> bool {
        self.conditions.as_deref().is_none_or(|conditions| conditions.hold(head, facts))
    }
}

impl Conditions {
    /// Everything but the path.
    pub fn hold(&self, head: &RequestHead, facts: impl Into<RouteFacts>) -> bool {
        let facts = facts.into();
        self.runtime_fraction.as_ref().is_none_or(|fraction| fraction.is_hit(facts.random))
            && self.tls_context.presented.is_none_or(|wanted| wanted == facts.peer_presented)
            && self.tls_context.validated.is_none_or(|wanted| wanted == facts.peer_validated)
            && (!self.grpc || is_grpc_request(head))
            && all_match(&self.headers, head)
            && self.query_parameters.iter().all(|p| p.matches(head.path().unwrap_or_default()))
            && self.cookies.iter().all(|cookie| cookie.matches(head))
    }
}

impl VirtualHost {
    /// The one that a request counts for; `None` when the virtual host has no virtual clusters.
    pub fn virtual_cluster(&self, head: &RequestHead) -> Option<&VirtualCluster> {
        self.virtual_clusters.iter().find(|cluster| all_match(&cluster.headers, head))
    }
}

/// Every segment of the path up to its first `;`.
fn push_without_parameters(path: &[u8], out: &mut SmallVec<[u8; 256]>) {
    for segment in path.split_inclusive(|byte| *byte == b'/') {
        let end = memchr::memchr(b';', segment).unwrap_or(segment.len());
        out.extend_from_slice(&segment[..end]);
        if end < segment.len() && segment.ends_with(b"/") {
            out.push(b'/');
        }
    }
}

/// The share that `random`, or the number in the request's header, falls into.
fn pick_weight(weighted: &WeightedClusters, head: &RequestHead, random: u64) -> u32 {
    let from_header = weighted.random_header.as_ref().and_then(|name| {
        let mut lines = head.headers.get_all(name);
        let (value, None) = (lines.next()?, lines.next()) else { return None };
        std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok()
    });
    let point = (from_header.unwrap_or(random) % u64::from(weighted.total)) as u32;
    weighted.clusters.partition_point(|share| share.upto <= point) as u32
}

fn header_text<'a>(head: &'a RequestHead, name: &HeaderName) -> Option<&'a str> {
    std::str::from_utf8(head.get(name)?).ok().filter(|text| !text.is_empty())
}

/// `x-forwarded-proto` decides, since it says what the client used.
fn wants_tls(require: RequireTls, head: &RequestHead) -> bool {
    if require == RequireTls::None || head.headers.get(&names::X_FORWARDED_PROTO) == Some(b"https")
    {
        return false;
    }
    require == RequireTls::All || head.headers.get(&names::X_ENVOY_INTERNAL) != Some(b"true")
}

/// CONNECT, and CONNECT-UDP as HTTP/1 upgrade.
fn is_connect(head: &RequestHead) -> bool {
    head.method == http::Method::CONNECT
        || head.upgrade_str().is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(b"connect-udp"))
}

/// `host` up to its port. An IPv6 address is in brackets, so that a colon inside is not a port's.
pub fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(colon) if !host[colon..].contains(&b']') => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
#[path = "route_table_tests.rs"]
mod tests;
