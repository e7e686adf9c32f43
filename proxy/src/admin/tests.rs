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

#[tokio::test]
async fn ready_follows_the_servers_state() {
    let fixture = Fixture::new(Vec::new());
    let (head, body) = fixture.get("/ready").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for header in [
        "content-type: text/plain; charset=UTF-8",
        "cache-control: no-cache, max-age=0",
        "x-content-type-options: nosniff",
        "server: envoy",
        "transfer-encoding: chunked",
    ] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!(body, "LIVE\n");
    assert_eq!(fixture.post("/healthcheck/fail").await.1, "OK\n");
    let (head, body) = fixture.get("/ready").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "DRAINING\n");
    fixture.post("/healthcheck/ok").await;
    assert_eq!(fixture.get("/ready").await.1, "LIVE\n");
}

#[tokio::test]
async fn wrong_paths_and_methods_are_refused_in_envoys_words() {
    let fixture = Fixture::new(Vec::new());
    let (head, body) = fixture.get("/nope").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(
        body.starts_with("invalid path. admin commands are:\n  /: Admin home page\n"),
        "{body}"
    );
    for path in ["/quitquitquit", "/logging", "/drain_listeners", "/reset_counters"] {
        let (head, body) = fixture.get(path).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        assert_eq!(body, "Method GET not allowed, POST required.");
    }
    let fixture = Fixture::new(vec![StringMatcher::prefix(b"/ready")]);
    assert_eq!(fixture.get("/ready").await.1, "LIVE\n");
    let (head, body) = fixture.get("/stats?filter=zz").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(body, "request to path /stats?filter=zz not allowed");
}

#[tokio::test]
async fn actions_reach_the_server() {
    let fixture = Fixture::new(Vec::new());
    fixture.post("/drain_listeners?inboundonly&graceful").await;
    fixture.post("/reopen_logs").await;
    assert_eq!(fixture.post("/quitquitquit").await.1, "OK\n");
    let form = "POST /runtime_modify HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\na=b";
    let (head, body) = fixture.send(form).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "No admin layer specified");
    assert!(fixture.post("/runtime_modify").await.1.starts_with("usage: /runtime_modify?key1"));
    assert_eq!(
        *fixture.state.told.borrow(),
        [
            "DrainListeners { inbound_only: true, graceful: true, skip_exit: false }",
            "reopen",
            "quit",
            "runtime [(\"a\", \"b\")]"
        ]
    );
}

#[tokio::test]
async fn listeners_and_clusters_are_envoys() {
    let fixture = Fixture::new(Vec::new());
    assert_eq!(fixture.get("/listeners").await.1, "l1::127.0.0.1:39080\nl2::/run/x\n");
    let (head, body) = fixture.get("/listeners?format=json").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let expected = "{\n \"listener_statuses\": [\n  {\n   \"name\": \"l1\",\n   \"local_address\": {\n    \
                    \"socket_address\": {\n     \"address\": \"127.0.0.1\",\n     \"port_value\": 39080\n";
    assert!(body.starts_with(expected), "{body}");

    let (_, body) = fixture.get("/clusters?filter=^foo$").await;
    assert_eq!(body, include_str!("testdata/clusters.txt"));
    let (_, body) = fixture.get("/clusters?format=json&filter=^foo$").await;
    assert_eq!(body, include_str!("testdata/clusters.json"));
    assert_eq!(fixture.get("/clusters?format=json&filter=x").await.1, "{}\n");
    assert_eq!(fixture.get("/clusters?filter=(").await.1, "Invalid re2 regex");
    assert!(fixture.get("/clusters").await.1.contains("foo-bar::added_via_api::false\n"));
}

#[tokio::test]
async fn config_dump_has_envoys_sections() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.get("/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    let types: Vec<&str> =
        dump["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap()).collect();
    let prefix = "type.googleapis.com/envoy.admin.v3.";
    let expected = ["Bootstrap", "Clusters", "Listeners", "ScopedRoutes", "Routes", "Secrets"]
        .map(|name| format!("{prefix}{name}ConfigDump"));
    assert_eq!(types, expected);
    let configs = &dump["configs"];
    assert_eq!(configs[0]["bootstrap"]["node"]["id"], "n1");
    let statics = &configs[0]["bootstrap"]["static_resources"];
    assert_eq!(statics["clusters"][0]["name"], "foo");
    let keys: Vec<_> = body.lines().filter(|line| line.starts_with("    \"")).take(3).collect();
    assert_eq!(keys, ["    \"node\": {", "    \"static_resources\": {", "    \"admin\": {"]);
    assert_eq!(configs[0]["last_updated"], "2026-11-21T09:15:25.250Z");
    assert_eq!(configs[1]["static_clusters"][1]["cluster"]["name"], "h2c");
    let dynamic = &configs[1]["dynamic_active_clusters"][0];
    assert_eq!(dynamic["version_info"], "7");
    assert_eq!(dynamic["error_state"]["details"], "name: too long");
    let listeners = &configs[2]["dynamic_listeners"];
    assert_eq!(listeners.as_array().unwrap().len(), 2);
    assert_eq!(listeners[0]["warming_state"]["listener"]["name"], "in");
    assert!(body.contains(
        "  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump\"\n  },\n"
    ));
    assert!(fixture.get("/config_dump?include_eds").await.1.contains("EndpointsConfigDump"));
}

#[tokio::test]
async fn config_dump_selects_as_envoy_does() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture
        .get("/config_dump?resource=static_clusters&mask=cluster.name&name_regex=^foo")
        .await;
    assert_eq!(
        body,
        "{\n \"configs\": [\n  {\n   \"@type\": \
         \"type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster\",\n   \"cluster\": {\n    \
         \"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\",\n    \"name\": \"foo\"\n   }\n  \
         }\n ]\n}\n"
    );
    let (_, body) = fixture.get("/config_dump?mask=static_clusters").await;
    assert!(body.contains("\"h2c\"") && !body.contains("bootstrap") && !body.contains("dynamic"));
    let (_, body) = fixture.get("/config_dump?mask=bootstrap.static_resources").await;
    assert!(body.contains("\"clusters\": [") && !body.contains("node"), "{body}");
    let (_, body) = fixture.get("/config_dump?resource=static_clusters&name_regex=zzz").await;
    assert_eq!(body, "{}\n");
    for (target, status, answer) in [
        ("resource=nope", "404", "nope not found in config dump"),
        (
            "resource=bootstrap",
            "400",
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        ),
        ("mask=nope", "400", "FieldMask nope could not be successfully applied to any configs."),
        (
            "resource=static_endpoint_configs",
            "404",
            "static_endpoint_configs not found in config dump",
        ),
    ] {
        let (head, body) = fixture.get(&format!("/config_dump?{target}")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body, answer);
    }
}

#[tokio::test]
async fn pages_of_the_server_itself() {
    let fixture = Fixture::new(Vec::new());
    let info: serde_json::Value =
        serde_json::from_str(&fixture.get("/server_info").await.1).unwrap();
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["uptime_current_epoch"], "640s");
    assert_eq!(info["command_line_options"]["concurrency"], 2);
    assert_eq!(info["command_line_options"]["disable_hot_restart"], false);
    assert_eq!(info["node"]["id"], "n1");
    assert_eq!(
        fixture.get("/runtime").await.1,
        "{\n \"layers\": [\n  \"base\"\n ],\n \"entries\": {\n  \"a.b\": {\n   \"final_value\": \"1\",\n   \
         \"layer_values\": [\n    \"1\"\n   ]\n  }\n }\n}\n"
    );
    assert_eq!(fixture.get("/certs").await.1, "{\n \"certificates\": []\n}\n");
    let memory: serde_json::Value = serde_json::from_str(&fixture.get("/memory").await.1).unwrap();
    assert_ne!(memory["allocated"], "0");
    let ignored = fixture.get("/config_ignored").await.1;
    assert_eq!(
        ignored,
        "1 fields are applied without\ncluster \"foo\": lrs_server: not implemented\n"
    );
    let (head, body) = fixture.get("/").await;
    assert!(head.contains("content-type: text/html; charset=UTF-8"), "{head}");
    assert!(body.contains("action='stats/prometheus'"));
}

#[tokio::test]
async fn logging_answers_and_refuses_as_envoy_does() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.post("/logging").await;
    assert!(body.starts_with("active loggers:\n  a2a: "), "{body}");
    assert!(body.ends_with("\n\n"), "{body}");
    let (_, body) = fixture.post("/logging?paths=quic:debug,udp:error").await;
    assert!(body.contains("\n  quic: debug\n") && body.contains("\n  udp: error\n"), "{body}");
    for (query, error) in [
        ("nope=debug", "error: unknown logger name\n\nusage: /logging?<name>=<level>"),
        ("level=nope", "error: unknown logger level\n\nusage: "),
        ("a=b&c=d", "error: invalid number of parameters\n\nusage: "),
    ] {
        let (head, body) = fixture.post(&format!("/logging?{query}")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(body.starts_with(error), "{body}");
    }
}

#[tokio::test]
async fn stats_are_served_in_all_forms() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.get("/stats?filter=^server\\.(live|concurrency)$").await;
    assert_eq!(body, "server.concurrency: 2\nserver.live: 1\n");
    let (head, body) = fixture.get("/stats?format=json&filter=server.live").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, "{\"stats\":[{\"name\":\"server.live\",\"value\":1}]}");
    for target in
        ["/stats/prometheus?filter=server.live", "/stats?format=prometheus&filter=server.live"]
    {
        let (_, body) = fixture.get(target).await;
        assert_eq!(body, "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n");
    }
    for (query, answer) in [
        ("type=Foo", "invalid &type= param"),
        ("format=foo", "usage: /stats?format=(json|prometheus|text)\n\n"),
        (
            "format=prometheus&histogram_buckets=detailed",
            "unsupported prometheus histogram bucket mode",
        ),
    ] {
        let (head, body) = fixture.get(&format!("/stats?{query}")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert_eq!(body, answer);
    }
    assert!(fixture.get("/stats?filter=(").await.1.starts_with("Invalid re2 regex: "));
    let (_, body) = fixture.get("/stats?filter=http.admin.downstream_rq_(2|4)xx$").await;
    assert!(body.contains("http.admin.downstream_rq_4xx: 4\n"), "{body}");
    assert_eq!(fixture.post("/reset_counters").await.1, "OK\n");
    let (_, body) = fixture.get("/stats?filter=^http.admin.downstream_rq_4xx$").await;
    assert_eq!(body, "http.admin.downstream_rq_4xx: 0\n");
}

#[tokio::test]
async fn requests_are_logged_when_their_body_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.log");
    let yaml = format!(
        "{{access_log: [{{name: f, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: \
         {{text_format_source: {{inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_SENT%\\n\"}}}}}}}}]}}",
        path.display()
    );
    let found = Diagnostics::new("bootstrap");
    let config = compile_admin(&from_yaml(&yaml).unwrap(), &found.root()).unwrap();
    let registry = Registry::default();
    let options = FlushOptions { interval: Duration::from_secs(1), min_size: 1 };
    let writer = AccessLogWriter::start(options, &registry).unwrap();
    let logs = WorkerAccessLogs::new(writer.clone(), 0);
    let bound = logs.bind(&config.access_log);
    let state = Rc::new(Sample::default());
    let admin = Rc::new(Admin::new(state.clone(), registry, &config, Some(bound)));
    let fixture = Fixture { state, admin };
    let local = tokio::task::LocalSet::new();
    local.run_until(fixture.get("/ready")).await;
    local.run_until(fixture.get("/nope")).await;
    logs.flush();
    writer.drain();
    let log = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "GET /ready 200 5");
    assert!(lines[1].starts_with("GET /nope 404 "), "{log}");
}
