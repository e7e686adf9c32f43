//! What the admin interface reads of the server.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::args::Options;
use super::lifecycle::Lifecycle;
use crate::access_log::AccessLogWriter;
use crate::admin::{
    AdminAddress, AdminState, ClusterStatus, ConfigKind, ConfigResource, ConfigState,
    DrainListeners, ListenerStatus, RuntimeEntry, RuntimeValues, ServerState,
};
use crate::cluster::ClusterMap;
use crate::config::compile::diagnostic::Diagnostic;
use crate::config::json::{RawResource, static_routes, whole_bootstrap};
use crate::config::listener::{Direction, Listener};
use crate::config::runtime;
use crate::stream_info::Address;
use crate::telemetry::Log;

/// The server behind the admin interface.
#[derive(Debug)]
pub struct ServerAdmin {
    pub(super) started: Instant,
    pub(super) options: Options,
    pub(super) workers: u32,
    pub(super) node: Bytes,
    pub(super) listeners: Vec<Arc<Listener>>,
    pub(super) addresses: Vec<Vec<Address>>,
    pub(super) clusters: Arc<ClusterMap>,
    pub(super) cluster_order: Vec<Arc<str>>,
    pub(super) raw_bootstrap: Bytes,
    pub(super) raw_listeners: Vec<RawResource>,
    pub(super) raw_clusters: Vec<RawResource>,
    pub(super) loaded_at: SystemTime,
    pub(super) ignored: Vec<Diagnostic>,
    pub(super) lifecycle: Lifecycle,
    pub(super) access_log: Arc<AccessLogWriter>,
    pub(super) log: Log,
}

impl ServerAdmin {
    fn resource(&self, raw: &RawResource) -> ConfigResource {
        ConfigResource {
            name: raw.name.clone(),
            state: ConfigState::Static,
            version: String::new(),
            last_updated: self.loaded_at,
            type_url: raw.type_url,
            value: raw.bytes.clone(),
            rejected: None,
        }
    }
}

impl AdminState for ServerAdmin {
    fn server_state(&self) -> ServerState {
        self.lifecycle.state()
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn command_line_options(&self) -> crate::config::pb::envoy::admin::v3::CommandLineOptions {
        self.options.to_proto(self.workers)
    }

    fn node(&self) -> Bytes {
        self.node.clone()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let address = |address: &Address| match address {
            Address::Ip(addr) => AdminAddress::Socket(*addr),
            Address::Pipe(path) => AdminAddress::Pipe(path.to_string().into()),
            Address::Internal(name) => AdminAddress::Internal(name.to_string(), String::new()),
        };
        self.listeners
            .iter()
            .zip(&self.addresses)
            .map(|(listener, addresses)| ListenerStatus {
                name: listener.name.to_string(),
                addresses: addresses.iter().map(address).collect(),
            })
            .collect()
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        self.cluster_order.clone()
    }

    fn cluster(&self, name: &str) -> Option<ClusterStatus> {
        self.clusters.get(name).map(|cluster| cluster.status())
    }

    fn config(&self, kind: ConfigKind) -> Vec<ConfigResource> {
        match kind {
            ConfigKind::Bootstrap => vec![ConfigResource {
                name: String::new(),
                state: ConfigState::Static,
                version: String::new(),
                last_updated: self.loaded_at,
                type_url: "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap",
                value: whole_bootstrap(
                    &self.raw_bootstrap,
                    &self.node,
                    &self.raw_listeners,
                    &self.raw_clusters,
                ),
                rejected: None,
            }],
            ConfigKind::Clusters => self.raw_clusters.iter().map(|r| self.resource(r)).collect(),
            ConfigKind::Listeners => self.raw_listeners.iter().map(|r| self.resource(r)).collect(),
            ConfigKind::Routes => {
                let routes = self.raw_listeners.iter().flat_map(static_routes);
                routes
                    .map(|(name, value)| ConfigResource {
                        name,
                        state: ConfigState::Static,
                        version: String::new(),
                        last_updated: self.loaded_at,
                        type_url: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                        value,
                        rejected: None,
                    })
                    .collect()
            }
            ConfigKind::Endpoints | ConfigKind::ScopedRoutes | ConfigKind::Secrets => Vec::new(),
        }
    }

    fn runtime(&self) -> RuntimeValues {
        let runtime = runtime::current();
        let entries = runtime.entries().into_iter().map(|entry| RuntimeEntry {
            key: entry.key,
            final_value: entry.final_value,
            layer_values: entry.layer_values,
        });
        RuntimeValues { layers: runtime.layer_names(), entries: entries.collect() }
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        runtime::publish(runtime::current().with_admin_values(values)?);
        Ok(())
    }

    fn ignored_configuration(&self) -> Vec<Diagnostic> {
        self.ignored.clone()
    }

    fn drain_listeners(&self, how: DrainListeners) {
        let wanted =
            |listener: &Listener| !how.inbound_only || listener.direction == Direction::Inbound;
        let numbers = self
            .listeners
            .iter()
            .enumerate()
            .filter(|(_, listener)| wanted(listener))
            .map(|(number, _)| number)
            .collect();
        self.lifecycle.drain_listeners(numbers, how);
    }

    fn fail_health_checks(&self) {
        self.lifecycle.fail_health_checks(true);
    }

    fn pass_health_checks(&self) {
        self.lifecycle.fail_health_checks(false);
    }

    fn quit(&self) {
        self.lifecycle.quit();
    }

    fn reopen_logs(&self) {
        self.access_log.reopen();
        if let Err(error) = self.log.reopen() {
            tracing::warn!(%error, "cannot reopen the log file");
        }
    }
}
