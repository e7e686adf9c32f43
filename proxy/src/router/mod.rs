//! Stage 5, the router: route match, attempts, retries, mirrors.

mod attempt;
mod charge;
pub mod failure;
mod feed;
pub mod forward;
mod judge;
mod relay;
pub mod replay;
pub mod retry;
pub mod rewrite;
pub mod route_table;
mod shadow;
pub mod timeouts;
pub(crate) mod transport;

use std::sync::Arc;

use self::route_table::{RouteFacts, RouteMatch};
use crate::codec::head::RequestHead;
use crate::config::name::NameId;
use crate::config::route::action::RouteAction;
use crate::config::route::{Route, RouteTable, VirtualHost};
use crate::http_filters::PerRouteConfig;

/// The route of a stream: matched on the head as it is, once, and again when a filter clears it. Pins the table
/// that the stream started with.
#[derive(Debug, Clone)]
pub struct RouteState {
    table: Arc<RouteTable>,
    /// `None`: not matched yet. `Some(None)`: no route.
    matched: Option<Option<RouteMatch>>,
    /// The same for every match of a stream.
    facts: RouteFacts,
}

impl RouteState {
    pub fn new(table: Arc<RouteTable>, facts: impl Into<RouteFacts>) -> Self {
        Self { table, matched: None, facts: facts.into() }
    }

    /// The next reader of the route matches again, on the head as it is then.
    pub fn clear(&mut self) {
        self.matched = None;
    }

    /// Nobody has matched since the last `clear`, or at all.
    pub fn is_cleared(&self) -> bool {
        self.matched.is_none()
    }

    /// Matches where that is still to be done.
    pub fn resolve(&mut self, head: &RequestHead) -> Option<RouteMatch> {
        *self.matched.get_or_insert_with(|| self.table.route(head, self.facts))
    }

    pub fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// The last match; `None` for no route, and between `clear` and `resolve`.
    pub fn matched(&self) -> Option<RouteMatch> {
        self.matched.flatten()
    }

    pub fn route(&self) -> Option<&Route> {
        self.table.matched_route(self.matched()?)
    }

    pub fn action(&self) -> Option<&RouteAction> {
        self.table.route_action(self.matched()?)
    }

    pub fn virtual_host(&self) -> Option<&VirtualHost> {
        Some(self.table.virtual_host(self.matched()?))
    }

    /// A filter's per-route configuration, most specific level first.
    pub fn per_filter_config(&self, slot: NameId) -> Option<&PerRouteConfig> {
        self.table.filter_config(self.matched()?, slot)
    }

    /// Whether the route switches a filter off (`true`) or on (`false`).
    pub fn filter_disabled(&self, slot: NameId) -> Option<bool> {
        self.table.filter_disabled(self.matched()?, slot)
    }
}

#[cfg(test)]
mod tests;
