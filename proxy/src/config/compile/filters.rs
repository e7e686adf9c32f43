//! Network and HTTP filters by their typed_config type URL: the registry of what is built.
//!
//! A network filter that is not known rejects its resource. An HTTP filter that is not known compiles to one
//! that answers 500 `unsupported_filter`, so that the listener exists, the reason is seen, and nothing passes
//! unchecked; `is_optional` leaves it out, as in Envoy.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::CompileContext;
use super::core::{any_type, resolve_any, unpack_any};
use super::diagnostic::FieldPath;
use super::extension::compile_discovered;
use crate::config::filter_chain::{NetworkFilter, Terminal};
use crate::config::hcm::HttpFilter;
use crate::config::name::intern;
use crate::config::pb::envoy::config::listener::v3 as pb_listener;
use crate::config::pb::envoy::extensions::filters::http::router::v3::Router;
use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb_hcm;
use crate::config::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use crate::config::pb::google::protobuf::Any;
use crate::filter_chain::network_rbac;
use crate::http_filters::chain::FilterConfig;

/// Type of the terminal HTTP filter.
pub const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// The network filter that lets the server name choose the cluster of a TCP proxy behind it.
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

/// A network filter that only looks on (unless it injects delays).
const MONGO_PROXY: &str = "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy";

/// Compiles a chain's network filters: those before the last, and the last, which must be terminal.
pub fn compile_network_filters(
    pb: &[pb_listener::Filter],
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<(Vec<NetworkFilter>, Terminal)> {
    let Some((last, before)) = pb.split_last() else { return Some((Vec::new(), Terminal::Close)) };
    let mut filters = Vec::new();
    let mut cluster_by_sni = false;
    for (i, filter) in before.iter().enumerate() {
        let at = path.index("filters", i);
        let Some(any) = typed_config(filter, &at) else { continue };
        let at = at.field("typed_config");
        let any = resolve_any(any, &at);
        match any_type(&any) {
            network_rbac::TYPE => {
                filters.extend(network_rbac::compile(&any, &at).map(NetworkFilter::Rbac));
            }
            SNI_CLUSTER => cluster_by_sni = true,
            MONGO_PROXY => at.ignored("bytes pass, but what they say is not counted"),
            other if is_terminal(other) => {
                at.error(format_args!(
                    "terminal filter {:?} must be the last filter in a network filter chain",
                    filter.name
                ));
            }
            other => at.error(format_args!("network filter {other:?} is not supported")),
        }
    }
    let at = path.index("filters", before.len());
    let any = typed_config(last, &at)?;
    let at = at.field("typed_config");
    let any = &*resolve_any(any, &at);
    let terminal = match any_type(any) {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            let pb = unpack_any::<pb_hcm::HttpConnectionManager>(any, &at)?;
            let hcm = super::hcm::compile_hcm(&pb, cx, &at)?;
            Terminal::Http(Arc::new(ArcSwap::from_pointee(hcm)))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let pb = unpack_any::<TcpProxy>(any, &at)?;
            let proxy = super::tcp_proxy::compile_tcp_proxy(&pb, cluster_by_sni, &at)?;
            Terminal::TcpProxy(Arc::new(proxy))
        }
        network_rbac::TYPE | SNI_CLUSTER | MONGO_PROXY => {
            at.error(format_args!(
                "non-terminal filter {:?} is the last filter in a network filter chain",
                last.name
            ));
            return None;
        }
        other => {
            at.error(format_args!("network filter {other:?} is not supported"));
            return None;
        }
    };
    Some((filters, terminal))
}

fn is_terminal(type_name: &str) -> bool {
    matches!(
        type_name,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    )
}

fn typed_config<'a>(filter: &'a pb_listener::Filter, path: &FieldPath<'_>) -> Option<&'a Any> {
    match &filter.config_type {
        Some(pb_listener::filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(pb_listener::filter::ConfigType::ConfigDiscovery(_)) => {
            path.field("config_discovery").error("is not supported");
            None
        }
        None => {
            path.field("typed_config")
                .error(format_args!("is required: filter {:?} has none", filter.name));
            None
        }
    }
}

/// What `http_filters` compiles to.
pub struct CompiledHttpFilters {
    pub filters: Vec<HttpFilter>,
    pub router: Option<Router>,
}

/// Compiles a connection manager's HTTP filters; the last must be the router.
pub fn compile_http_filters(
    pb: &[pb_hcm::HttpFilter],
    stat_prefix: &str,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> CompiledHttpFilters {
    let mut out = CompiledHttpFilters { filters: Vec::new(), router: None };
    let Some(last) = pb.len().checked_sub(1) else {
        path.field("http_filters").error("no http filters: the last must be the router");
        return out;
    };
    for (i, filter) in pb.iter().enumerate() {
        let at = path.index("http_filters", i);
        if filter.name.is_empty() {
            at.field("name").error("value length must be at least 1 characters");
        }
        let name = filter.name.as_str();
        let push = |filters: &mut Vec<HttpFilter>, config| {
            let (slot, disabled) = (intern(name), filter.disabled);
            filters.push(HttpFilter { name: name.into(), slot, disabled, config });
        };
        let any = match &filter.config_type {
            Some(pb_hcm::http_filter::ConfigType::TypedConfig(any)) => any,
            Some(pb_hcm::http_filter::ConfigType::ConfigDiscovery(discovery)) if i < last => {
                let at = at.field("config_discovery");
                let found = compile_discovered(name, discovery, stat_prefix, cx, &at);
                if let Some(found) = found {
                    push(&mut out.filters, FilterConfig::Discovered(found));
                }
                continue;
            }
            Some(pb_hcm::http_filter::ConfigType::ConfigDiscovery(_)) => {
                at.field("config_discovery").error("the last filter must be the router");
                continue;
            }
            None => {
                at.field("typed_config")
                    .error(format_args!("is required: filter {:?} has none", filter.name));
                continue;
            }
        };
        let at = at.field("typed_config");
        let any = &*resolve_any(any, &at);
        if any_type(any) == ROUTER {
            if i == last {
                out.router = unpack_any::<Router>(any, &at);
            } else {
                at.error("terminal filter must be the last filter in an http filter chain");
            }
            continue;
        }
        if i == last {
            at.error("non-terminal filter is the last filter in an http filter chain");
        }
        let config = compile_http_filter(filter.is_optional, any, stat_prefix, cx, &at);
        let Some(config) = config else { continue };
        push(&mut out.filters, config);
    }
    out
}

/// `None` where it does not compile, or may be left out.
pub(super) fn compile_http_filter(
    is_optional: bool,
    any: &Any,
    stat_prefix: &str,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<FilterConfig> {
    if let Some(known) = FilterConfig::compile(any, stat_prefix, path) {
        return known;
    }
    let type_name = any_type(any);
    if let Some((_, compile)) = cx.extra_filters.0.iter().find(|(t, _)| *t == type_name) {
        return compile(any, path).map(FilterConfig::Extra);
    }
    if is_optional {
        path.ignored(format_args!("optional http filter {type_name:?} is not supported: left out"));
        return None;
    }
    path.ignored(format_args!(
        "http filter {type_name:?} is not supported: requests that reach it are answered with 500"
    ));
    Some(FilterConfig::Unsupported(type_name.into()))
}
