//! The router: route match, attempts, retries, mirrors.

pub mod rewrite;
pub mod route_table;

use crate::config::name::NameId;
use crate::http_filters::PerRouteConfig;

/// The route of a stream: matched once, matched again when a filter clears it.
#[derive(Default)]
pub struct RouteState {
    cleared: bool,
    per_filter: Vec<(NameId, PerRouteConfig)>,
}

impl RouteState {
    /// The next reader of the route matches again, on the head as it is then.
    pub fn clear(&mut self) {
        self.cleared = true;
    }

    pub fn per_filter_config(&self, slot: NameId) -> Option<&PerRouteConfig> {
        self.per_filter.iter().find(|(id, _)| *id == slot).map(|(_, config)| config)
    }
}
