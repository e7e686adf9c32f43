//! A stream for tests of single filters: everything that a hook sees, without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::cluster::{ClusterMap, WorkerClusters};
use crate::codec::head::RequestHead;
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::route::{RouteContext, compile_route_table};
use crate::config::name::intern;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::stats::StatsConfig;
use crate::format::fixture;
use crate::hcm::HcmScope;
use crate::http_filters::chain::FilterConfig;
use crate::http_filters::{FilterContext, Flow};
use crate::router::RouteState;
use crate::stats::Registry;
use crate::stream_info::StreamInfo;
use crate::worker::WorkerContext;
use crate::worker::timers::Timers;

/// The name under which routes configure the filter.
pub(crate) const SLOT: &str = "the-filter";

/// A request to cluster `c` with a path that the one route matches.
pub(crate) struct TestStream {
    worker: WorkerContext,
    pub(crate) registry: Registry,
    hcm: HcmScope,
    pub(crate) request: RequestHead,
    pub(crate) info: StreamInfo,
    route: RouteState,
    pub(crate) now: Instant,
}

impl TestStream {
    /// `per_route` configures the filter on the route.
    pub(crate) fn new(per_route: Option<Any>) -> Self {
        let registry = Registry::new(StatsConfig::default());
        let now = Instant::now();
        let timers = Timers::new(now);
        let writer = AccessLogWriter::start(FlushOptions::default(), &registry).expect("a thread");
        let clusters = WorkerClusters::new(Arc::new(ClusterMap::new([])), 0, timers.clone(), 1);
        let logs = WorkerAccessLogs::new(writer, 0);
        let worker =
            WorkerContext::new(0, timers, clusters, registry.clone(), logs, Arc::default(), 1);
        let hcm = HcmScope { scope: registry.scope("http.in"), registry: registry.clone() };
        Self {
            worker,
            registry,
            hcm,
            request: fixture::request(),
            info: fixture::stream(),
            route: RouteState::new(Arc::new(route_table(per_route)), 0),
            now,
        }
    }

    /// Runs a hook.
    pub(crate) fn with<T>(&mut self, hook: impl FnOnce(&mut FilterContext<'_>) -> T) -> T {
        hook(&mut FilterContext {
            request: &mut self.request,
            info: &mut self.info,
            cluster: None,
            route: &mut self.route,
            worker: &self.worker,
            now: self.now,
            hcm_stats: &self.hcm,
            slot: intern(SLOT),
        })
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now += by;
    }
}

fn route_table(per_route: Option<Any>) -> crate::config::route::RouteTable {
    let path = pb::route_match::PathSpecifier::Prefix("/".into());
    let cluster = pb::route_action::ClusterSpecifier::Cluster("c".into());
    let route = pb::Route {
        r#match: Some(pb::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(cluster),
            ..Default::default()
        })),
        typed_per_filter_config: per_route.map(|any| (SLOT.to_owned(), any)).into_iter().collect(),
        ..Default::default()
    };
    let host = pb::VirtualHost {
        name: "vh".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    };
    let config = pb::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
    let found = Diagnostics::new("test");
    let context = RouteContext { per_route: &FilterConfig::per_route };
    let table = compile_route_table(&config, context, &found.root());
    assert_eq!(found.into_vec(), []);
    table
}

/// A flow by name, with what matters of a reply.
pub(crate) fn print(flow: &Flow) -> String {
    match flow {
        Flow::Continue => "continue".into(),
        Flow::BufferBody { limit } => format!("buffer {limit}"),
        Flow::Reply(reply) => format!(
            "{} {:?} {} {}",
            reply.status.as_str(),
            reply.grpc_status,
            reply.details,
            String::from_utf8_lossy(&reply.body)
        ),
        Flow::Reset => "reset".into(),
        Flow::Wait(_) => "wait".into(),
    }
}

/// Packs a message.
pub(crate) fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Compiles with errors as the result.
pub(crate) fn compiled<T>(
    compile: impl FnOnce(&crate::config::compile::diagnostic::FieldPath<'_>) -> Option<T>,
) -> Result<T, String> {
    let found = Diagnostics::new("test");
    let config = compile(&found.root());
    let has_errors = found.has_errors();
    match config {
        Some(config) if !has_errors => Ok(config),
        _ => Err(found.into_vec().first().map(ToString::to_string).unwrap_or_default()),
    }
}
