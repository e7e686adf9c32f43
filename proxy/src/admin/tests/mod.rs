//! Answers of the endpoints over a connection in memory, against what real Envoy 1.40 sends.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Admin, AdminAddress, AdminState, ClusterStatus, ConfigKind, ConfigResource, ConfigState,
    DrainListeners, HostHealth, HostStats, HostStatus, ListenerStatus, RejectedUpdate,
    RuntimeEntry, RuntimeValues, ServerState, Thresholds,
};
use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::config::access_log::AccessLogConfigs;
use crate::config::admin::AdminConfig;
use crate::config::compile::admin::compile_admin;
use crate::config::compile::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::config::json::from_yaml;
use crate::config::matcher::StringMatcher;
use crate::config::pb::envoy::admin::v3::CommandLineOptions;
use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::config::pb::envoy::config::cluster::v3::Cluster;
use crate::config::pb::envoy::config::core::v3::Node;
use crate::config::pb::envoy::config::listener::v3::Listener;
use crate::stats::Registry;
use crate::stream_info::Address;

mod configuration;
mod server;

/// A server that remembers what it was told to do.
#[derive(Default)]
struct Sample {
    told: RefCell<Vec<String>>,
    draining: RefCell<bool>,
}

impl Sample {
    fn tell(&self, what: impl Into<String>) {
        self.told.borrow_mut().push(what.into());
    }
}

/// 2026-11-21T09:15:25.250Z.
fn then() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_252_525_250)
}

fn resource(
    name: &str,
    state: ConfigState,
    type_url: &'static str,
    value: Vec<u8>,
) -> ConfigResource {
    let version = if state == ConfigState::Static { "" } else { "7" };
    ConfigResource {
        name: name.into(),
        state,
        version: version.into(),
        last_updated: then(),
        type_url,
        value: Bytes::from(value),
        rejected: None,
    }
}

fn cluster(name: &str, state: ConfigState) -> ConfigResource {
    let cluster = Cluster { name: name.into(), ..Cluster::default() };
    let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    resource(name, state, type_url, cluster.encode_to_vec())
}

fn listener(name: &str, state: ConfigState) -> ConfigResource {
    let listener = Listener { name: name.into(), ..Listener::default() };
    let type_url = "type.googleapis.com/envoy.config.listener.v3.Listener";
    resource(name, state, type_url, listener.encode_to_vec())
}

impl AdminState for Sample {
    fn server_state(&self) -> ServerState {
        if *self.draining.borrow() { ServerState::Draining } else { ServerState::Live }
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(640)
    }

    fn command_line_options(&self) -> CommandLineOptions {
        CommandLineOptions { concurrency: 2, ..CommandLineOptions::default() }
    }

    fn node(&self) -> Bytes {
        let node = Node { id: "n1".into(), cluster: "c1".into(), ..Node::default() };
        node.encode_to_vec().into()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let address = AdminAddress::Socket(SocketAddr::from(([127, 0, 0, 1], 39080)));
        let pipe = AdminAddress::Pipe("/run/x".into());
        vec![
            ListenerStatus { name: "l1".into(), addresses: vec![address] },
            ListenerStatus { name: "l2".into(), addresses: vec![pipe] },
        ]
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        vec!["foo".into(), "gone".into(), "foo-bar".into()]
    }

    fn cluster(&self, name: &str) -> Option<ClusterStatus> {
        let thresholds = Thresholds {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
        };
        let host = HostStatus {
            address: AdminAddress::Socket(SocketAddr::from(([127, 0, 0, 1], 39083))),
            hostname: String::new(),
            health: HostHealth::default(),
            weight: 1,
            priority: 0,
            region: String::new(),
            zone: String::new(),
            sub_zone: String::new(),
            canary: false,
            stats: HostStats {
                cx_total: 2,
                rq_total: 5,
                rq_success: 4,
                cx_active: 1,
                ..HostStats::default()
            },
        };
        (name != "gone").then(|| ClusterStatus {
            name: name.into(),
            observability_name: name.into(),
            default_thresholds: thresholds,
            high_thresholds: thresholds,
            hosts: if name == "foo" { vec![host] } else { Vec::new() },
            ..ClusterStatus::default()
        })
    }

    fn config(&self, kind: ConfigKind) -> Vec<ConfigResource> {
        match kind {
            ConfigKind::Bootstrap => {
                let bootstrap: Bootstrap =
                    from_yaml("{node: {id: n1, cluster: c1}, admin: {profile_path: /x}}").unwrap();
                let type_url = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";
                vec![resource("", ConfigState::Static, type_url, bootstrap.encode_to_vec())]
            }
            ConfigKind::Clusters => {
                let mut rejected = cluster("late", ConfigState::Active);
                rejected.rejected = Some(RejectedUpdate {
                    value: Bytes::new(),
                    version: "8".into(),
                    last_update_attempt: then(),
                    details: "name: too long".into(),
                });
                vec![
                    cluster("foo", ConfigState::Static),
                    cluster("h2c", ConfigState::Static),
                    rejected,
                ]
            }
            ConfigKind::Listeners => vec![
                listener("in", ConfigState::Active),
                listener("in", ConfigState::Warming),
                listener("out", ConfigState::Active),
            ],
            ConfigKind::Endpoints
            | ConfigKind::ScopedRoutes
            | ConfigKind::Routes
            | ConfigKind::Secrets
            | ConfigKind::Extensions => Vec::new(),
        }
    }

    fn runtime(&self) -> RuntimeValues {
        RuntimeValues {
            layers: vec!["base".into()],
            entries: vec![RuntimeEntry {
                key: "a.b".into(),
                final_value: "1".into(),
                layer_values: vec!["1".into()],
            }],
        }
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String> {
        self.tell(format!("runtime {values:?}"));
        Err("No admin layer specified".into())
    }

    fn ignored_configuration(&self) -> Vec<Diagnostic> {
        vec![Diagnostic {
            resource: "cluster \"foo\"".into(),
            path: "lrs_server".into(),
            severity: Severity::Ignored,
            reason: "not implemented".into(),
        }]
    }

    fn drain_listeners(&self, how: DrainListeners) {
        self.tell(format!("{how:?}"));
    }

    fn fail_health_checks(&self) {
        *self.draining.borrow_mut() = true;
    }

    fn pass_health_checks(&self) {
        *self.draining.borrow_mut() = false;
    }

    fn quit(&self) {
        self.tell("quit");
    }

    fn reopen_logs(&self) {
        self.tell("reopen");
    }
}

fn address() -> Address {
    Address::Ip(SocketAddr::from(([127, 0, 0, 1], 1)))
}

struct Fixture {
    state: Rc<Sample>,
    admin: Rc<Admin>,
}

impl Fixture {
    fn new(allow_paths: Vec<StringMatcher>) -> Self {
        let state = Rc::new(Sample::default());
        let config = AdminConfig {
            address: None,
            socket_options: Box::default(),
            access_log: AccessLogConfigs(Arc::default()),
            allow_paths: allow_paths.into(),
        };
        let admin = Rc::new(Admin::new(state.clone(), Registry::default(), &config, None));
        Self { state, admin }
    }

    /// Sends one request and reads the answer to its end: status line with headers, and body.
    async fn send(&self, request: &str) -> (String, String) {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let admin = self.admin.clone();
        let exchange = async move {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let ((), answer) = tokio::join!(admin.connection(server, address(), address()), exchange);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), dechunk(body))
    }

    async fn get(&self, target: &str) -> (String, String) {
        self.send(&format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await
    }

    async fn post(&self, target: &str) -> (String, String) {
        self.send(&format!("POST {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await
    }
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..size]);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    out
}
