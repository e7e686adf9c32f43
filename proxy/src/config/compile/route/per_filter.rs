//! `typed_per_filter_config` of any level to slots found by the filter's name.

use std::collections::HashMap;

use super::RouteContext;
use crate::config::compile::core::{any_type, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::name::intern;
use crate::config::pb::envoy::config::route::v3::FilterConfig;
use crate::config::pb::google::protobuf::Any;
use crate::config::route::{PerFilterConfigs, PerFilterSlot};
use crate::http_filters::PerRouteConfig;

/// Compiles a filter's per-route configuration of one type URL; `None` after an error was reported.
pub type CompilePerRoute = fn(&Any, &FieldPath<'_>) -> Option<PerRouteConfig>;

/// Compiles the map of `path`'s message.
pub(super) fn compile(
    configs: &HashMap<String, Any>,
    cx: RouteContext<'_>,
    path: &FieldPath<'_>,
) -> PerFilterConfigs {
    // The map has no order; findings should.
    let mut names: Vec<_> = configs.keys().collect();
    names.sort_unstable();
    let compile = |name: &String| {
        let path = path.key("typed_per_filter_config", name);
        compile_slot(name, &configs[name], cx, &path)
    };
    PerFilterConfigs(names.into_iter().filter_map(compile).collect())
}

fn compile_slot(
    name: &str,
    any: &Any,
    cx: RouteContext<'_>,
    path: &FieldPath<'_>,
) -> Option<PerFilterSlot> {
    let slot = |disabled, config| Some(PerFilterSlot { filter: intern(name), disabled, config });
    if any_type(any) != "envoy.config.route.v3.FilterConfig" {
        return slot(false, Some(compile_config(any, cx, path)?));
    }
    let wrapper: FilterConfig = unpack_any(any, path)?;
    if wrapper.disabled {
        return slot(true, None);
    }
    match &wrapper.config {
        None => {
            path.error(format_args!(
                "Empty route/virtual host per filter configuration for {name} filter"
            ));
            None
        }
        // Only says that the filter is on.
        Some(config) if config.type_url.is_empty() => slot(false, None),
        Some(config) => slot(false, Some(compile_config(config, cx, &path.field("config"))?)),
    }
}

fn compile_config(any: &Any, cx: RouteContext<'_>, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    match (cx.per_route)(any_type(any)) {
        Some(compile) => compile(any, path),
        None => {
            path.ignored(format_args!("the filter of {} is not supported", any_type(any)));
            None
        }
    }
}
