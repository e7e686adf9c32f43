//! pb RouteConfiguration to its compiled form.

use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::route::v3 as route_pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::route::RouteTable;
use crate::http_filters::PerRouteConfig;

/// Compiles a filter's per-route configuration of one type URL; `None` after an error was reported.
pub type CompilePerRoute = fn(&Any, &FieldPath<'_>) -> Option<PerRouteConfig>;

/// What a route table needs to know from outside.
#[derive(Clone, Copy)]
pub struct RouteContext<'a> {
    /// The compile function of a per-route configuration's type URL; `None` for a filter that is not
    /// supported, whose per-route configuration is then applied without (the filter answers 500).
    pub per_route: &'a dyn Fn(&str) -> Option<CompilePerRoute>,
}

/// Compiles a route configuration; `None` when something in it was an error.
pub fn compile_route_table(
    _config: &route_pb::RouteConfiguration,
    _cx: RouteContext<'_>,
    _path: &FieldPath<'_>,
) -> Option<RouteTable> {
    None
}
