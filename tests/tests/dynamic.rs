//! Dynamic configuration from watched files: the same files, changed the same way, through real Envoy and Outrigger; then
//! what only Outrigger promises: a change closes no connection, loses no request and costs no memory.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::load::{Tally, h1};
use tests::ports;
use tests::proxy::{Kind, Proxy};
use tests::tls::certificates;
use tests::wire::{End, Framing, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::sleep;

const TYPES: &str = "type.googleapis.com/envoy";
const HCM: &str = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "extensions.filters.http.router.v3.Router";

/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(10);

/// A proxy on a directory of its own.
struct Mesh {
    dir: TempDir,
    proxy: Proxy,
    main: u16,
    other: u16,
    /// Upstreams that answer with their letter.
    a: u16,
    b: u16,
}

impl Mesh {
    /// Cluster `c` with endpoint `a`, routes `r` to it, a listener on `main`.
    async fn start(kind: Kind) -> Self {
        Self::start_with(kind, 2).await
    }

    /// `drain`: in seconds.
    async fn start_with(kind: Kind, drain: u32) -> Self {
        Self::start_by(kind, &["--drain-time-s", &drain.to_string()]).await
    }

    async fn start_by(kind: Kind, flags: &[&str]) -> Self {
        let dir = TempDir::with_prefix("outrigger-dynamic-").unwrap();
        let admin = ports::free().unwrap();
        let (main, other) = (ports::free().unwrap(), ports::free().unwrap());
        let (a, b) = (upstream("a").await, upstream("b").await);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let bootstrap = format!(
            "node: {{id: node1, cluster: cluster1}}\n\
             admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
             dynamic_resources:\n  cds_config: {{path_config_source: {{path: {}}}, resource_api_version: V3}}\n  \
             lds_config: {{path_config_source: {{path: {}}}, resource_api_version: V3}}\n",
            path("cds.yaml"),
            path("lds.yaml")
        );
        let config = dir.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap).unwrap();
        write(dir.path(), "cds.yaml", "1", &[cluster(dir.path(), "c", "c")]);
        write(dir.path(), "eds-c.yaml", "1", &[endpoints("c", &[a])]);
        write(dir.path(), "rds-r.yaml", "1", &[routes("r", "/", "c")]);
        write(dir.path(), "lds.yaml", "1", &[listener(dir.path(), "l", main, "r", "")]);
        let proxy = Proxy::start(kind, &config, admin, flags).await.unwrap();
        Self { dir, proxy, main, other, a, b }
    }

    fn put(&self, file: &str, version: &str, resources: &[String]) {
        write(self.dir.path(), file, version, resources);
    }

    fn cluster(&self, name: &str, endpoints: &str) -> String {
        cluster(self.dir.path(), name, endpoints)
    }

    fn listener(&self, name: &str, port: u16, routes: &str) -> String {
        listener(self.dir.path(), name, port, routes, "")
    }

    /// Waits until a request is answered so.
    async fn see(&self, port: u16, path: &str, expected: &str) {
        let until = Instant::now() + SOON;
        loop {
            let seen = get(port, path).await;
            if seen == expected {
                return;
            }
            assert!(
                Instant::now() < until,
                "{}: {path} on {port}: {seen:?}, not {expected:?}\n{}",
                self.proxy.kind().name(),
                self.proxy.log_tail()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stat(&self, name: &str) -> i64 {
        let (_, text) = self.proxy.admin("GET", "/stats").await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.and_then(|value| value.parse().ok()).unwrap_or(-1)
    }

    async fn see_stat(&self, name: &str, expected: i64) {
        let until = Instant::now() + SOON;
        while self.stat(name).await != expected {
            assert!(
                Instant::now() < until,
                "{}: {name} is {}, not {expected}",
                self.proxy.kind().name(),
                self.stat(name).await
            );
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Moves a new file into its place.
fn write(dir: &Path, file: &str, version: &str, resources: &[String]) {
    let mut text = format!("version_info: '{version}'\nresources:\n");
    for resource in resources {
        text.push_str(&format!("- {resource}\n"));
    }
    let new: PathBuf = dir.join(format!(".{file}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, dir.join(file)).unwrap();
}

fn file(dir: &Path, name: &str) -> String {
    format!("{{path_config_source: {{path: {}/{name}}}, resource_api_version: V3}}", dir.display())
}

fn cluster(dir: &Path, name: &str, endpoints: &str) -> String {
    let source = file(dir, &format!("eds-{endpoints}.yaml"));
    format!(
        "{{'@type': {TYPES}.config.cluster.v3.Cluster, name: {name}, type: EDS, \
         eds_cluster_config: {{service_name: {endpoints}, eds_config: {source}}}}}"
    )
}

fn endpoints(name: &str, ports: &[u16]) -> String {
    let one = |port: &u16| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
        )
    };
    let all: Vec<_> = ports.iter().map(one).collect();
    format!(
        "{{'@type': {TYPES}.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{}]}}]}}",
        all.join(", ")
    )
}

fn routes(name: &str, prefix: &str, cluster: &str) -> String {
    format!(
        "{{'@type': {TYPES}.config.route.v3.RouteConfiguration, name: {name}, virtual_hosts: \
         [{{name: v, domains: ['*'], routes: [{{match: {{prefix: {prefix}}}, route: {{cluster: {cluster}}}}}]}}]}}"
    )
}

/// `more`: fields of the connection manager.
fn listener(dir: &Path, name: &str, port: u16, routes: &str, more: &str) -> String {
    let source = file(dir, &format!("rds-{routes}.yaml"));
    format!(
        "{{'@type': {TYPES}.config.listener.v3.Listener, name: {name}, \
         address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': {TYPES}.{HCM}, stat_prefix: {name}, {more} \
         upgrade_configs: [{{upgrade_type: websocket}}], rds: {{route_config_name: {routes}, config_source: {source}}}, \
         http_filters: [{{name: router, typed_config: {{'@type': {TYPES}.{ROUTER}}}}}]}}}}]}}]}}"
    )
}

/// Answers every request with `name`; upgrades are echoed.
async fn upstream(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(io, name));
        }
    });
    port
}

async fn serve(io: TcpStream, name: &str) {
    let mut wire = Wire::new(io, Duration::from_secs(60));
    while let Ok(head) = wire.head().await {
        let upgrade = head.get("upgrade").is_some();
        let answer = match upgrade {
            true => "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
                .to_owned(),
            false => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()),
        };
        if wire.send(answer.as_bytes()).await.is_err() {
            return;
        }
        if upgrade {
            let mut io = wire.into_inner();
            let (mut from, mut to) = io.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            return;
        }
    }
}

/// `200 a`, or why there is no answer.
async fn get(port: u16, path: &str) -> String {
    let Ok(io) = TcpStream::connect(("127.0.0.1", port)).await else { return "refused".into() };
    match ask(&mut Wire::new(io, SOON), path).await {
        Ok(answer) => answer,
        Err(end) => end.text().to_owned(),
    }
}

async fn ask(wire: &mut Wire<TcpStream>, path: &str) -> Result<String, End> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    wire.send(request.as_bytes()).await?;
    let head = wire.head().await?;
    let body = wire.body(head.framing(Framing::UntilClose)).await;
    Ok(format!("{} {}", head.status(), String::from_utf8_lossy(&body.data)).trim().to_owned())
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test());
}

const NO_CLUSTER: &str = "503";

#[test]
fn resources_come_change_and_go_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            mesh.see(mesh.main, "/", "200 a").await;
            mesh.put("eds-c.yaml", "2", &[endpoints("c", &[mesh.b])]);
            mesh.see(mesh.main, "/", "200 b").await;
            mesh.put("rds-r.yaml", "2", &[routes("r", "/x", "c")]);
            mesh.see(mesh.main, "/", "404").await;
            mesh.see(mesh.main, "/x", "200 b").await;
            // A listener waits for its routes; its routes' cluster may come later.
            mesh.put("rds-q.yaml", "1", &[routes("q", "/", "d")]);
            let both = [mesh.listener("l", mesh.main, "r"), mesh.listener("k", mesh.other, "q")];
            mesh.put("lds.yaml", "2", &both);
            mesh.see(mesh.other, "/", NO_CLUSTER).await;
            mesh.put("eds-d.yaml", "1", &[endpoints("d", &[mesh.a])]);
            mesh.put("cds.yaml", "2", &[mesh.cluster("c", "c"), mesh.cluster("d", "d")]);
            mesh.see(mesh.other, "/", "200 a").await;
            mesh.put("cds.yaml", "3", &[mesh.cluster("d", "d")]);
            mesh.see(mesh.main, "/x", NO_CLUSTER).await;
            mesh.see(mesh.other, "/", "200 a").await;
            mesh.put("lds.yaml", "3", &both[1..]);
            mesh.see(mesh.main, "/x", "refused").await;
            mesh.see(mesh.other, "/", "200 a").await;
            for (name, value) in [
                ("cluster_manager.cluster_added", 2),
                ("cluster_manager.cluster_modified", 0),
                ("cluster_manager.cluster_removed", 1),
                ("cluster_manager.active_clusters", 1),
                ("cluster_manager.warming_clusters", 0),
                ("cluster_manager.cds.update_success", 3),
                ("listener_manager.listener_added", 2),
                ("listener_manager.listener_modified", 0),
                ("listener_manager.listener_removed", 1),
                ("listener_manager.lds.update_success", 3),
                ("listener_manager.total_listeners_active", 1),
                ("listener_manager.total_listeners_draining", 0),
                ("http.k.rds.q.config_reload", 1),
            ] {
                mesh.see_stat(name, value).await;
            }
        }
    });
}

#[test]
fn a_bad_resource_among_good_ones_is_named_and_the_good_ones_serve() {
    run(async || {
        let mesh = Mesh::start(Kind::Outrigger).await;
        let bad = "{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: bad, lb_policy: MAGLEV}";
        mesh.put("eds-d.yaml", "1", &[endpoints("d", &[mesh.b])]);
        mesh.put(
            "cds.yaml",
            "2",
            &[mesh.cluster("c", "c"), bad.to_owned(), mesh.cluster("d", "d")],
        );
        mesh.put("rds-r.yaml", "2", &[routes("r", "/", "d")]);
        mesh.see(mesh.main, "/", "200 b").await;
        let (_, text) = mesh.proxy.admin("GET", "/rejected?format=json").await.unwrap();
        let rejected: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(rejected["count"], 1, "{text}");
        assert_eq!(rejected["resources"][0]["name"], "bad", "{text}");
        assert_eq!(rejected["resources"][0]["problems"][0]["path"], "lb_policy", "{text}");
        // The last good version of `r` outlives a bad one.
        let broken = routes("r", "/", "''");
        mesh.put("rds-r.yaml", "3", &[broken]);
        mesh.see_stat("http.l.rds.r.update_rejected", 1).await;
        mesh.see(mesh.main, "/", "200 b").await;
        mesh.put("cds.yaml", "3", &[mesh.cluster("c", "c"), mesh.cluster("d", "d")]);
        mesh.put("rds-r.yaml", "4", &[routes("r", "/", "c")]);
        mesh.see(mesh.main, "/", "200 a").await;
        let (_, text) = mesh.proxy.admin("GET", "/rejected").await.unwrap();
        assert!(text.starts_with("0 resources"), "{text}");
    });
}

/// Envoy refuses what names a directory that is not there; here it is waited for.
#[test]
fn a_directory_that_comes_later_is_watched_then() {
    run(async || {
        let mesh = Mesh::start(Kind::Outrigger).await;
        let later = mesh.dir.path().join("later");
        mesh.put("rds-r.yaml", "2", &[routes("r", "/", "d")]);
        mesh.put("cds.yaml", "2", &[mesh.cluster("c", "c"), cluster(&later, "d", "d")]);
        mesh.see(mesh.main, "/", NO_CLUSTER).await;
        std::fs::create_dir(&later).unwrap();
        write(&later, "eds-d.yaml", "1", &[endpoints("d", &[mesh.b])]);
        mesh.see(mesh.main, "/", "200 b").await;
        write(&later, "eds-d.yaml", "2", &[endpoints("d", &[mesh.a])]);
        mesh.see(mesh.main, "/", "200 a").await;
        std::fs::remove_dir_all(&later).unwrap();
        std::fs::create_dir(&later).unwrap();
        write(&later, "eds-d.yaml", "3", &[endpoints("d", &[mesh.b])]);
        mesh.see(mesh.main, "/", "200 b").await;
    });
}

#[test]
fn changes_close_no_connection() {
    run(async || {
        let mesh = Mesh::start(Kind::Outrigger).await;
        let connect = async || TcpStream::connect(("127.0.0.1", mesh.main)).await.unwrap();
        let mut kept = Wire::new(connect().await, SOON);
        assert_eq!(ask(&mut kept, "/").await.unwrap(), "200 a");
        let mut socket = Wire::new(connect().await, SOON);
        let upgrade =
            b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        socket.send(upgrade).await.unwrap();
        assert_eq!(socket.head().await.unwrap().status(), 101);
        let mut socket = socket.into_inner();
        for i in 0..20 {
            let version = (i + 2).to_string();
            mesh.put("rds-r.yaml", &version, &[routes("r", &format!("/{i}"), "c")]);
            let server = format!("server_name: s{i},");
            let changed = listener(mesh.dir.path(), "l", mesh.main, "r", &server);
            mesh.put("lds.yaml", &version, &[changed]);
            mesh.see(mesh.main, &format!("/{i}"), "200 a").await;
            mesh.see_stat("listener_manager.listener_modified", i + 1).await;
            assert_eq!(ask(&mut kept, &format!("/{i}")).await.unwrap(), "200 a");
            socket.write_all(b"ping").await.unwrap();
            let mut echo = [0; 4];
            socket.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"ping");
        }
        assert_eq!(mesh.stat("listener_manager.total_filter_chains_draining").await, 0);
        // A listener that goes takes its connections with it, in its time.
        mesh.put("lds.yaml", "99", &[]);
        mesh.see(mesh.main, "/", "refused").await;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        mesh.see_stat("listener_manager.total_listeners_draining", 0).await;
    });
}

/// What is counted of connections that a change has closed.
const CLOSED: [&str; 12] = [
    "http.h.downstream_cx_active",
    "http.h.downstream_cx_http1_active",
    "http.h.downstream_cx_http2_active",
    "http.h.downstream_cx_destroy_local",
    "http.h.downstream_cx_destroy_active_rq",
    "http.h.downstream_cx_destroy_local_active_rq",
    "http.h.downstream_cx_destroy_remote_active_rq",
    "http.h.downstream_rq_active",
    "http.h.downstream_rq_rx_reset",
    "http.h.fault.active_faults",
    "cluster.c.upstream_cx_active",
    "cluster.c.upstream_rq_active",
];

/// A listener whose filter chain is another one for each `version`, and whose log says how connections end.
fn versioned(name: &str, port: u16, version: u8, log: &Path, filters: &str) -> String {
    let line = "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %RESPONSE_CODE% %BYTES_RECEIVED% %BYTES_SENT% \
                %ACCESS_LOG_TYPE% %REQ(:PATH)% %UPSTREAM_CLUSTER%";
    let log = |of: &str| {
        format!(
            "access_log: [{{name: f, typed_config: {{'@type': {TYPES}.extensions.access_loggers.file.v3.FileAccessLog, \
             path: {}, log_format: {{text_format_source: {{inline_string: \"{of} {line}\\n\"}}}}}}}}]",
            log.display()
        )
    };
    let filters = filters.replace("LOG", &log(name));
    format!(
        "{{'@type': {TYPES}.config.listener.v3.Listener, name: {name}, {}, \
         address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, listener_filters_timeout: 0s, \
         listener_filters: [{{name: i, typed_config: {{'@type': {TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}], \
         filter_chains: [{{filter_chain_match: {{source_prefix_ranges: [{{address_prefix: 127.0.0.0, prefix_len: {}}}]}}, \
         filters: [{filters}]}}]}}",
        log(&format!("listener {name}")),
        8 + version
    )
}

fn http(version: u8) -> String {
    format!(
        "{{name: hcm, typed_config: {{'@type': {TYPES}.{HCM}, stat_prefix: h, LOG, upgrade_configs: [{{upgrade_type: websocket}}], \
         route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [\
         {{match: {{path: /c}}, route: {{cluster: c}}}}, {{match: {{path: /silent}}, route: {{cluster: silent}}}}, \
         {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: v{version}}}}}}}]}}]}}, \
         http_filters: [{{name: fault, typed_config: {{'@type': {TYPES}.extensions.filters.http.fault.v3.HTTPFault, \
         response_rate_limit: {{fixed_limit: {{limit_kbps: 1000}}, percentage: {{numerator: 100}}}}}}}}, \
         {{name: router, typed_config: {{'@type': {TYPES}.{ROUTER}}}}}]}}}}"
    )
}

/// A request for `/silent` without body, as a client of HTTP/2 begins a connection with it.
fn http2_request() -> Vec<u8> {
    let block = b"\x82\x86\x04\x07/silent\x41\x01h";
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

/// Upgraded, and one echo further.
async fn echoing(port: u16) -> TcpStream {
    let io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut wire = Wire::new(io, SOON);
    let upgrade =
        b"GET /c HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    wire.send(upgrade).await.unwrap();
    assert_eq!(wire.head().await.unwrap().status(), 101);
    let mut io = wire.into_inner();
    io.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    io.read_exact(&mut echo).await.unwrap();
    io
}

/// Connections of filter chains that go: what is left of them at the end of the drain time is closed, counted and logged;
/// and one that a listener filter still holds meets the new chain.
#[test]
fn what_a_change_closes_is_counted_and_logged_as_in_envoy() {
    run(async || {
        let mut all = Vec::new();
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            let log = mesh.dir.path().join("connections.log");
            let tcp = format!(
                "{{name: t, typed_config: {{'@type': {TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
                 stat_prefix: t, cluster: c, LOG}}}}"
            );
            let put = |version: u8| {
                let listeners = [
                    versioned("h", mesh.main, version, &log, &http(version)),
                    versioned("t", mesh.other, version, &log, &tcp),
                ];
                mesh.put("lds.yaml", &(version + 2).to_string(), &listeners);
            };
            // Takes connections, and never looks at them.
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = silent.local_addr().unwrap().port();
            mesh.put("eds-silent.yaml", "1", &[endpoints("silent", &[port])]);
            let clusters = [mesh.cluster("c", "c"), mesh.cluster("silent", "silent")];
            mesh.put("cds.yaml", "2", &clusters);
            mesh.see_stat("cluster_manager.active_clusters", 2).await;
            // The address has another listener's connections no more.
            mesh.put("lds.yaml", "2", &[]);
            mesh.see(mesh.main, "/", "refused").await;
            put(1);
            mesh.see(mesh.main, "/", "200 v1").await;
            let send = async |bytes: &[u8]| {
                let mut io = TcpStream::connect(("127.0.0.1", mesh.main)).await.unwrap();
                io.write_all(bytes).await.unwrap();
                io
            };
            let mut held = vec![
                echoing(mesh.main).await,
                echoing(mesh.other).await,
                send(b"GET /silent HTTP/1.1\r\nhost: h\r\n\r\n").await,
                send(b"GET /c HTTP/1.1\r\nhost:").await,
                send(&http2_request()).await,
            ];
            let quiet = send(b"").await;
            let pre = format!("listener.127.0.0.1_{}.downstream_pre_cx_active", mesh.main);
            mesh.see_stat(&pre, 1).await;
            mesh.see_stat("cluster.silent.upstream_rq_active", 2).await;
            mesh.see_stat("http.h.downstream_cx_active", 4).await;
            put(2);
            mesh.see(mesh.main, "/", "200 v2").await;
            let mut quiet = Wire::new(quiet, SOON);
            assert_eq!(ask(&mut quiet, "/").await.unwrap(), "200 v2", "{}", kind.name());
            drop(quiet);
            for io in &mut held {
                // A reset is as good an end as any.
                let _ = io.read_to_end(&mut Vec::new()).await;
            }
            mesh.see_stat("listener_manager.total_filter_chains_draining", 0).await;
            mesh.see_stat("http.h.downstream_cx_active", 0).await;
            mesh.see_stat("cluster.silent.upstream_rq_active", 0).await;
            let mut counted = Vec::new();
            for name in CLOSED {
                counted.push((name, mesh.stat(name).await));
            }
            // Four requests; the connection of TCP, once by its proxy and once by its listener.
            let until = Instant::now() + SOON;
            let lines = loop {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let own = |line: &&str| {
                    line.contains("removed")
                        || line.contains("Tcp")
                        || line.starts_with("listener t")
                };
                let mut lines: Vec<_> = text.lines().filter(own).map(str::to_owned).collect();
                if lines.len() == 6 || Instant::now() > until {
                    lines.sort();
                    break lines;
                }
                sleep(Duration::from_millis(10)).await;
            };
            all.push((counted, lines));
        }
        assert_eq!(all[0].1.len(), 6, "{:?}", all[0]);
        assert_eq!(all[0], all[1]);
    });
}

/// A listener with a chain for plain connections and one for the TLS of `name`, whose secret is one of its own.
fn with_tls(mesh: &Mesh, name: &str) -> String {
    let secret = file(mesh.dir.path(), &format!("sds-{name}.yaml"));
    let chain = |criteria: &str, more: &str| {
        format!(
            "{{filter_chain_match: {{{criteria}}}, filters: [{{name: hcm, typed_config: {{'@type': {TYPES}.{HCM}, stat_prefix: h, \
             route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [\
             {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: plain}}}}}}]}}]}}, \
             http_filters: [{{name: router, typed_config: {{'@type': {TYPES}.{ROUTER}}}}}]}}}}]{more}}}"
        )
    };
    let tls = format!(
        ", transport_socket: {{name: tls, typed_config: {{'@type': {TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: {name}, sds_config: {secret}}}]}}}}}}"
    );
    format!(
        "{{'@type': {TYPES}.config.listener.v3.Listener, name: l, \
         address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}, \
         listener_filters: [{{name: i, typed_config: {{'@type': {TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}], \
         filter_chains: [{}, {}]}}",
        mesh.main,
        chain("transport_protocol: raw_buffer", ""),
        chain(&format!("transport_protocol: tls, server_names: [{name}.example.com]"), &tls)
    )
}

/// What is in a secret's file. `own`: a certificate as the admin interface tells it from others.
fn secret(name: &str, own: &Path) -> String {
    let (chain, key) = (own.with_extension("pem"), own.with_extension("key"));
    format!(
        "{{'@type': {TYPES}.extensions.transport_sockets.tls.v3.Secret, name: {name}, tls_certificate: \
         {{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}}}",
        chain.display(),
        key.display()
    )
}

/// An old connection holds its own chain, not the version of its listener that it came to: the other chains of that
/// version go, with their certificates and what they subscribe to.
#[test]
fn old_connections_hold_no_old_certificates_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            let certificate = certificates::directory().unwrap().join("server");
            let mut held = Vec::new();
            for (i, name) in ["one", "two", "three", "four"].into_iter().enumerate() {
                mesh.put(&format!("sds-{name}.yaml"), "1", &[secret(name, &certificate)]);
                mesh.put("lds.yaml", name, &[with_tls(&mesh, name)]);
                mesh.see_stat("listener_manager.listener_modified", i as i64 + 1).await;
                mesh.see_stat("listener_manager.total_listeners_warming", 0).await;
                mesh.see(mesh.main, "/", "200 plain").await;
                let io = TcpStream::connect(("127.0.0.1", mesh.main)).await.unwrap();
                let mut client = Wire::new(io, SOON);
                assert_eq!(ask(&mut client, "/").await.unwrap(), "200 plain");
                held.push(client);
            }
            mesh.see_stat("listener_manager.total_filter_chains_draining", 0).await;
            let until = Instant::now() + SOON;
            let holds = async || {
                let (_, dump) = mesh.proxy.admin("GET", "/config_dump").await.unwrap();
                let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
                let all = dump["configs"].as_array().unwrap().iter();
                let secrets = all.filter_map(|one| one["dynamic_active_secrets"].as_array());
                let mut names: Vec<_> =
                    secrets.flatten().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
                names.sort();
                let (_, certs) = mesh.proxy.admin("GET", "/certs").await.unwrap();
                let certs: serde_json::Value = serde_json::from_str(&certs).unwrap();
                (names, certs["certificates"].as_array().map_or(0, Vec::len))
            };
            while holds().await != (vec!["four".to_owned()], 1) {
                assert!(Instant::now() < until, "{}: {:?}", kind.name(), holds().await);
                sleep(Duration::from_millis(10)).await;
            }
            // Nobody was closed for it.
            for client in &mut held {
                assert_eq!(ask(client, "/").await.unwrap(), "200 plain");
            }
        }
    });
}

/// An assignment of one locality's endpoints: port, and further fields.
fn endpoints_with(name: &str, all: &[(u32, u16, &str)]) -> String {
    let one = |(priority, port, more): &(u32, u16, &str)| {
        format!(
            "{{priority: {priority}, lb_endpoints: [{{{more} endpoint: {{address: {{socket_address: \
             {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}"
        )
    };
    let all: Vec<_> = all.iter().map(one).collect();
    format!(
        "{{'@type': {TYPES}.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}, endpoints: [{}]}}",
        all.join(", ")
    )
}

/// What is said anew of an endpoint changes it in place: its connections stay.
#[test]
fn endpoints_change_in_place_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            let io = TcpStream::connect(("127.0.0.1", mesh.main)).await.unwrap();
            let mut client = Wire::new(io, SOON);
            assert_eq!(ask(&mut client, "/").await.unwrap(), "200 a");
            let canary = "metadata: {filter_metadata: {envoy.lb: {canary: true}}},";
            let (a, b) = (mesh.a, mesh.b);
            let updates: [&[(u32, u16, &str)]; 8] = [
                &[(0, a, "load_balancing_weight: 3,")],
                &[(0, a, canary)],
                &[(0, a, canary), (0, a, "")],
                &[(0, a, "health_status: DEGRADED,")],
                &[(0, a, "health_status: HEALTHY,")],
                &[(1, a, ""), (0, b, "health_status: UNHEALTHY,")],
                &[(1, a, "load_balancing_weight: 2,"), (0, b, "health_status: DRAINING,")],
                &[(0, a, "")],
            ];
            let mut seen = Vec::new();
            for (i, update) in updates.iter().enumerate() {
                mesh.put("eds-c.yaml", &(i + 2).to_string(), &[endpoints_with("c", update)]);
                mesh.see_stat("cluster.c.update_success", i as i64 + 2).await;
                assert_eq!(ask(&mut client, "/").await.unwrap(), "200 a");
                let mut now = Vec::new();
                for name in [
                    "membership_change",
                    "membership_total",
                    "membership_healthy",
                    "membership_degraded",
                    "max_host_weight",
                    "update_no_rebuild",
                    "upstream_cx_total",
                ] {
                    now.push(mesh.stat(&format!("cluster.c.{name}")).await);
                }
                seen.push(now);
            }
            assert_eq!(
                seen,
                [
                    [1, 1, 1, 0, 3, 0, 1],
                    [1, 1, 1, 0, 1, 0, 1],
                    [1, 1, 1, 0, 1, 1, 1],
                    [1, 1, 0, 1, 1, 1, 1],
                    [1, 1, 1, 0, 1, 1, 1],
                    [3, 2, 1, 0, 1, 1, 1],
                    [3, 2, 1, 0, 2, 1, 1],
                    [5, 1, 1, 0, 1, 1, 1],
                ],
                "{}",
                kind.name()
            );
        }
    });
}

/// Two listeners cannot share an address; one that takes another's place can, also where its socket is not shared.
#[test]
fn addresses_are_refused_and_handed_over_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            mesh.see(mesh.main, "/", "200 a").await;
            let one = |name: &str, port: u16| {
                let listener = mesh.listener(name, port, "r");
                listener.replace("filter_chains", "enable_reuse_port: false, filter_chains")
            };
            let both = [mesh.listener("l", mesh.main, "r"), one("k", mesh.other)];
            mesh.put("lds.yaml", "2", &both);
            mesh.see(mesh.other, "/", "200 a").await;
            // An address that is another listener's.
            mesh.put(
                "lds.yaml",
                "3",
                &[both[0].clone(), one("k", mesh.other), one("x", mesh.main)],
            );
            mesh.see_stat("listener_manager.lds.update_rejected", 1).await;
            // One that another process has.
            let taken = mesh.listener("x", mesh.a, "r");
            mesh.put("lds.yaml", "4", &[both[0].clone(), both[1].clone(), taken]);
            mesh.see_stat("listener_manager.lds.update_rejected", 2).await;
            // What an update may not change.
            mesh.put("lds.yaml", "5", &[one("l", mesh.main), both[1].clone()]);
            mesh.see_stat("listener_manager.lds.update_rejected", 3).await;
            mesh.see(mesh.main, "/", "200 a").await;
            // Other options for the same address; then another name for it.
            let changed = both[1].replace("enable_reuse", "tcp_backlog_size: 9, enable_reuse");
            mesh.put("lds.yaml", "6", &[both[0].clone(), changed]);
            mesh.see_stat("listener_manager.listener_modified", 1).await;
            mesh.see(mesh.other, "/", "200 a").await;
            mesh.put("lds.yaml", "7", &[both[0].clone(), one("m", mesh.other)]);
            mesh.see_stat("listener_manager.listener_added", 3).await;
            mesh.see(mesh.other, "/", "200 a").await;
            for (name, value) in [
                ("listener_manager.listener_create_failure", 1),
                ("listener_manager.listener_added", 3),
                ("listener_manager.listener_modified", 1),
                ("listener_manager.listener_removed", 1),
                ("listener_manager.lds.update_success", 4),
                ("listener_manager.lds.update_rejected", 3),
                ("listener_manager.total_listeners_active", 2),
            ] {
                mesh.see_stat(name, value).await;
            }
        }
    });
}

/// It is named anew with each update, which takes the one before away.
#[test]
fn a_listener_without_a_name_gets_one_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let mesh = Mesh::start(kind).await;
            mesh.see(mesh.main, "/", "200 a").await;
            let nameless = mesh.listener("l", mesh.main, "r").replacen("name: l, ", "", 1);
            let mut before = String::new();
            for version in ["2", "3"] {
                mesh.put("lds.yaml", version, std::slice::from_ref(&nameless));
                let success = version.parse().unwrap();
                mesh.see_stat("listener_manager.lds.update_success", success).await;
                mesh.see(mesh.main, "/", "200 a").await;
                mesh.see_stat("listener_manager.total_listeners_active", 1).await;
                let (_, text) = mesh.proxy.admin("GET", "/listeners").await.unwrap();
                let (name, _) = text.split_once("::").unwrap();
                let groups: Vec<usize> = name.split('-').map(str::len).collect();
                assert_eq!(groups, [8, 4, 4, 4, 12], "{kind:?}: {text}");
                assert_ne!(name, before);
                before = name.to_owned();
            }
            assert_eq!(mesh.stat("listener_manager.listener_added").await, 3);
            assert_eq!(mesh.stat("listener_manager.listener_removed").await, 2);
        }
    });
}

/// Until a drain is over: whether a listener that came in the middle of it was seen to serve.
async fn serves_until_the_end(mesh: &Mesh) -> bool {
    let mut served = false;
    let until = Instant::now() + Duration::from_secs(300);
    loop {
        assert!(Instant::now() < until, "the drain does not end");
        served |= get(mesh.other, "/").await == "200 a";
        if get(mesh.main, "/").await == "refused" {
            return served;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// What comes after the command serves, and is stopped with the rest at the drain's end; what comes after that never
/// begins.
#[test]
fn a_drain_stops_what_comes_meanwhile_as_in_envoy() {
    run(async || {
        for kind in [Kind::Envoy, Kind::Outrigger] {
            // A drain may be over before a busy machine has looked once.
            let mut times = [2, 10, 60].into_iter();
            let (mesh, mut all) = loop {
                let time = times.next().expect("a new listener serves during a drain");
                let mesh = Mesh::start_with(kind, time).await;
                mesh.see(mesh.main, "/", "200 a").await;
                let (status, _) =
                    mesh.proxy.admin("POST", "/drain_listeners?graceful").await.unwrap();
                assert_eq!(status, 200);
                let all =
                    vec![mesh.listener("l", mesh.main, "r"), mesh.listener("k", mesh.other, "r")];
                mesh.put("lds.yaml", "2", &all);
                if serves_until_the_end(&mesh).await {
                    break (mesh, all);
                }
            };
            mesh.see_stat("listener_manager.lds.update_success", 2).await;
            mesh.see(mesh.other, "/", "refused").await;
            let added = mesh.stat("listener_manager.listener_added").await;
            let late = ports::free().unwrap();
            all.push(mesh.listener("j", late, "r"));
            mesh.put("lds.yaml", "3", &all);
            mesh.see_stat("listener_manager.lds.update_success", 3).await;
            assert_eq!(mesh.stat("listener_manager.listener_added").await, added);
            assert_eq!(get(late, "/").await, "refused");
        }
    });
}

#[test]
fn endpoints_flip_under_load_and_no_request_is_lost() {
    run(async || {
        let mesh = Mesh::start(Kind::Outrigger).await;
        let tally = Rc::new(Tally::default());
        let until = tokio::time::Instant::now() + Duration::from_secs(4);
        let client = |_| {
            let load = h1(mesh.main, Duration::from_millis(5), until, Rc::clone(&tally));
            tokio::task::spawn_local(load)
        };
        let clients: Vec<_> = (0..16).map(client).collect();
        let mut flips = 0;
        while tokio::time::Instant::now() < until {
            let ports = [[mesh.a], [mesh.b]];
            mesh.put("eds-c.yaml", &flips.to_string(), &[endpoints("c", &ports[flips % 2])]);
            // Another version of the cluster, too.
            let timeout = format!("c, connect_timeout: {}s", 1 + flips % 7);
            mesh.put("cds.yaml", &flips.to_string(), &[mesh.cluster(&timeout, "c")]);
            flips += 1;
            sleep(Duration::from_millis(20)).await;
        }
        for client in clients {
            client.await.unwrap();
        }
        eprintln!("{} answers over {flips} flips", tally.ok.get());
        assert!(tally.ok.get() > 500, "the load never came up: {}", tally.ok.get());
        assert_eq!(tally.failed.get(), 0, "{:?}", tally.first.take());
    });
}

#[test]
fn unrelated_pushes_leave_the_memory_as_it_is() {
    run(async || {
        let mesh = Mesh::start(Kind::Outrigger).await;
        let push = async |from: u32, to: u32| {
            for i in from..to {
                let version = i.to_string();
                let timeout = |name: &str| format!("{name}, connect_timeout: {}s", 1 + i % 100);
                mesh.put("eds-u.yaml", &version, &[endpoints("u", &[mesh.a, (i + 1) as u16])]);
                mesh.put(
                    "cds.yaml",
                    &version,
                    &[mesh.cluster("c", "c"), mesh.cluster(&timeout("u"), "u")],
                );
                mesh.put("rds-r.yaml", &version, &[routes("r", "/", "c"), routes("s", "/", "u")]);
                mesh.see_stat("cluster_manager.cds.update_success", i64::from(i) + 2).await;
            }
        };
        push(0, 200).await;
        let before = mesh.proxy.rss_kib();
        push(200, 1000).await;
        let after = mesh.proxy.rss_kib();
        eprintln!("{before} KiB before, {after} KiB after");
        assert!(after < before + 2048, "{before} KiB before, {after} KiB after");
        mesh.see(mesh.main, "/", "200 a").await;
    });
}

#[test]
fn unknown_fields_of_files_go_by_the_flags() {
    run(async || {
        for flags in
            [&[][..], &["--ignore-unknown-dynamic-fields"], &["--reject-unknown-dynamic-fields"]]
        {
            let mut seen = Vec::new();
            for kind in [Kind::Envoy, Kind::Outrigger] {
                let mesh = Mesh::start_by(kind, flags).await;
                mesh.see(mesh.main, "/", "200 a").await;
                mesh.put("rds-r.yaml", "2", &[routes("r", "/new", "c, no_such_field: 1")]);
                // Files are looked at in the order in which they change.
                mesh.put("cds.yaml", "2", &[mesh.cluster("c", "c"), mesh.cluster("d", "c")]);
                mesh.see_stat("cluster_manager.cds.update_success", 2).await;
                let rejects = flags.iter().any(|flag| flag.starts_with("--reject"));
                mesh.see(mesh.main, if rejects { "/" } else { "/new" }, "200 a").await;
                seen.push(mesh.stat("server.dynamic_unknown_fields").await > 0);
            }
            assert_eq!(seen[1], seen[0], "{flags:?}");
        }
    });
}
