//! One whole proxied request over in-memory Io: in at a listener, through filters and router, out of a pool to an
//! upstream that answers at once, and back. A keep-alive connection on either side, as in a warm proxy.

use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use outrigger::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use outrigger::cluster::host::{HostSet, HostSpec};
use outrigger::cluster::{ClusterMap, SharedCluster, WorkerClusters};
use outrigger::config::compile::CompileContext;
use outrigger::config::compile::configuration::{Configuration, load_configuration};
use outrigger::config::compile::slots::Slots;
use outrigger::config::core::Locality;
use outrigger::config::endpoint::HealthStatus;
use outrigger::hcm::request_headers::LocalInfo;
use outrigger::http_filters::ExtraFilters;
use outrigger::io::Io;
use outrigger::io::memory::MemoryListener;
use outrigger::listener::ListenerSlot;
use outrigger::server::args::Command;
use outrigger::stats::Registry;
use outrigger::stream_info::Address;
use outrigger::tls::Secrets;
use outrigger::worker::WorkerContext;
use outrigger::worker::timers::Timers;
use tokio::runtime::Runtime;
use tokio::task::{LocalSet, spawn_local};

const UPSTREAM: &str = "upstream";

const REQUEST: &[u8] = b"GET /api/v1/orders/1234?expand=lines HTTP/1.1\r\n\
    host: orders.shop.svc.cluster.local:8080\r\n\
    user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n\
    accept: application/json, text/plain, */*\r\n\
    accept-encoding: gzip, deflate, br\r\n\
    cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    server: nginx/1.22.1\r\n\
    content-type: application/json\r\n\
    content-length: 26\r\n\r\n\
    {\"order\":1234,\"lines\":[7]}";

/// How the answer to the client begins.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n";

const BARE: &str = "[{name: router, typed_config: \
    {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";

/// Five filters that have something to look at, as a sidecar has.
const SIDECAR: &str = "[\
    {name: cors, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}, \
    {name: fault, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
      abort: {http_status: 503, percentage: {numerator: 0}}}}, \
    {name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, \
      rules: {action: DENY, policies: {none: {permissions: [{url_path: {path: {prefix: /admin}}}], \
      principals: [{any: true}]}}}}}, \
    {name: mutation, typed_config: \
      {\"@type\": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, \
      mutations: {request_mutations: [{append: {header: {key: x-mesh, value: sidecar}}}], \
      response_mutations: [{append: {header: {key: x-mesh, value: sidecar}}}]}}}, \
    {name: router, typed_config: \
      {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";

fn configuration(filters: &str) -> Configuration {
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3\
        .HttpConnectionManager";
    let yaml = format!(
        "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {{\"@type\": {manager}, stat_prefix: in, \
         http_filters: {filters}, route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], \
         routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}}}}}]}}]}}], \
         clusters: [{{name: c, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: \
         {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}}}]}}"
    );
    let line: [OsString; 3] = ["outrigger".into(), "--config-yaml".into(), yaml.into()];
    let Ok(Command::Run(options)) = Command::parse(line) else { panic!("a command line") };
    let extra_filters = &ExtraFilters::default();
    let (secrets, slots) = (&Secrets::default(), &Slots::default());
    load_configuration(&options, &CompileContext { extra_filters, secrets, slots })
        .expect("a configuration")
}

/// A worker without sockets, its upstream, and a client's connection to it.
fn start(filters: &str) -> Io {
    let configuration = configuration(filters);
    let registry = Registry::default();
    let clusters = configuration.clusters.into_iter().map(|(_, cluster)| {
        let shared = SharedCluster::new(Arc::new(cluster), &registry);
        let assignment = &shared.config.load_assignment;
        let (hosts, change) =
            HostSet::build(&shared.config, assignment, None, vec![upstream_host()]);
        shared.publish(hosts, change);
        Arc::new(shared)
    });
    let map = Arc::new(ClusterMap::new(clusters));
    let timers = Timers::new(Instant::now());
    let options = FlushOptions { interval: Duration::from_secs(10), min_size: 64 * 1024 };
    let writer = AccessLogWriter::start(options, &registry).expect("a writer");
    let worker = Rc::new(WorkerContext::new(
        0,
        timers.clone(),
        WorkerClusters::new(map, 0, timers.clone(), 1),
        registry,
        WorkerAccessLogs::new(writer, 0),
        Arc::new(LocalInfo { service_cluster: String::new(), service_node: String::new() }),
        1,
    ));
    spawn_local(async move { timers.drive().await });
    spawn_local(serve_upstream(MemoryListener::bind(UPSTREAM)));
    let listener = configuration.listeners.into_iter().next().expect("one").1;
    let listener = ListenerSlot::new(Arc::new(listener), 0, worker).current();
    let (client, server) = Io::pair(64 * 1024);
    listener.admit(server, Address::Ip(([10, 0, 0, 1], 40_000).into()), None);
    client
}

fn upstream_host() -> HostSpec {
    HostSpec {
        address: Address::Internal(UPSTREAM.into()),
        hostname: None,
        locality: Arc::new(Locality::default()),
        metadata: None,
        priority: 0,
        weight: 1,
        health: HealthStatus::Healthy,
    }
}

async fn serve_upstream(listener: MemoryListener) {
    loop {
        let mut io = listener.accept().await;
        spawn_local(async move {
            while read_message(&mut io, b"GET /api/", 0).await {
                write(&mut io, RESPONSE).await;
            }
        });
    }
}

/// Reads a head that begins so, and `body` bytes; false for another one and at the end of the connection.
async fn read_message(io: &mut Io, begin: &[u8], body: usize) -> bool {
    let mut got = BytesMut::with_capacity(4096);
    loop {
        let read = std::future::poll_fn(|cx| io.poll_read(cx, &mut got)).await;
        if !matches!(read, Ok(1..)) {
            return false;
        }
        let end = got.windows(4).rposition(|four| four == b"\r\n\r\n");
        if end.is_some_and(|end| got.len() >= end + 4 + body) {
            return got.starts_with(begin);
        }
    }
}

async fn write(io: &mut Io, bytes: &[u8]) {
    let written = std::future::poll_fn(|cx| io.poll_write(cx, bytes)).await;
    assert_eq!(written.ok(), Some(bytes.len()), "the pipe has room");
}

fn whole_request(c: &mut Criterion) {
    for (name, filters) in [("bare", BARE), ("sidecar", SIDECAR)] {
        let runtime: Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        let mut client = runtime.block_on(local.run_until(async { start(filters) }));
        c.bench_function(&format!("whole_request/{name}"), |b| {
            b.iter_custom(|rounds| {
                runtime.block_on(local.run_until(async {
                    let begin = Instant::now();
                    for _ in 0..rounds {
                        write(&mut client, REQUEST).await;
                        assert!(read_message(&mut client, ANSWER, 26).await, "the answer");
                    }
                    begin.elapsed()
                }))
            });
        });
    }
}

criterion_group!(benches, whole_request);
criterion_main!(benches);
