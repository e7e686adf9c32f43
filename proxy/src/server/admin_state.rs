//! What the admin interface reads of the server.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::args::Options;
use super::lifecycle::Lifecycle;
use crate::access_log::AccessLogWriter;
use crate::admin::{
    AdminState, CertificateDetails, CertificateStatus, ClusterStatus, ConfigKind, ConfigResource,
    ConfigState, DrainListeners, ListenerStatus, RejectedResource, RuntimeEntry, RuntimeValues,
    ServerState,
};
use crate::config::compile::diagnostic::Diagnostic;
use crate::config::json::{RawResource, whole_bootstrap};
use crate::config::runtime;
use crate::listener::limits;
use crate::telemetry::Log;
use crate::tls::inventory::{Held, InForce, Inventory};
use crate::xds::store::Store;

/// The server behind the admin interface.
#[derive(Debug)]
pub struct ServerAdmin {
    pub(super) started: Instant,
    pub(super) options: Options,
    pub(super) workers: u32,
    pub(super) node: Bytes,
    pub(super) store: Store,
    pub(super) inventory: Arc<Inventory>,
    pub(super) raw_bootstrap: Bytes,
    pub(super) raw_listeners: Vec<RawResource>,
    pub(super) raw_clusters: Vec<RawResource>,
    /// Redacted.
    pub(super) raw_secrets: Vec<RawResource>,
    pub(super) loaded_at: SystemTime,
    pub(super) ignored: Vec<Diagnostic>,
    pub(super) lifecycle: Lifecycle,
    pub(super) access_log: Arc<AccessLogWriter>,
    pub(super) log: Log,
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

    fn total_connections(&self) -> u64 {
        limits::all()
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let of = |context: InForce| CertificateStatus {
            ca: context.ca.into_iter().map(certificate_details).collect(),
            chain: context.chains.into_iter().map(certificate_details).collect(),
        };
        self.inventory.in_force().into_iter().map(of).collect()
    }

    fn days_until_first_certificate_expires(&self) -> Option<u64> {
        self.inventory.days_until_first_expires(SystemTime::now())
    }

    fn node(&self) -> Bytes {
        self.node.clone()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        self.store.listener_status()
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        self.store.cluster_names()
    }

    fn cluster(&self, name: &str) -> Option<ClusterStatus> {
        self.store.cluster_status(name)
    }

    fn config_version(&self, kind: ConfigKind) -> String {
        self.store.whole_version(kind)
    }

    fn rejected(&self) -> Vec<RejectedResource> {
        self.store.rejected()
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
            ConfigKind::Secrets => {
                let mut all: Vec<_> = self.raw_secrets.iter().map(|raw| self.fixed(raw)).collect();
                all.extend(self.store.config(ConfigKind::Secrets));
                all
            }
            other => self.store.config(other),
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
        let mut all = self.ignored.clone();
        all.extend(self.store.ignored());
        all
    }

    fn drain_listeners(&self, how: DrainListeners) {
        let numbers = self.store.listener_numbers(how.inbound_only);
        let store = self.store.clone();
        self.lifecycle
            .drain_listeners(numbers, how, move || store.stop_listeners(how.inbound_only));
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

impl ServerAdmin {
    /// A resource of the bootstrap, as `/config_dump` lists it.
    fn fixed(&self, raw: &RawResource) -> ConfigResource {
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

fn certificate_details(held: Held) -> CertificateDetails {
    let certificate = held.certificate;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    CertificateDetails {
        path: held.path.to_string(),
        serial_number: certificate.serial.into(),
        subject_alt_names: certificate.subject_alt_names,
        valid_from: time(certificate.not_before),
        expiration_time: time(certificate.not_after),
    }
}
