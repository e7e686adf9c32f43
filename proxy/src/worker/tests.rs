//! A worker on its thread: who waits in its queues when it is told to end, and how its own end is noticed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;

use super::listeners::ListenerCommand;
use super::run::{Command, TellEnd, WorkerSetup, start};
use crate::access_log::{AccessLogWriter, FlushOptions};
use crate::cluster::ClusterMap;
use crate::config::compile::CompileContext;
use crate::config::compile::configuration::{compile_raw_listener, raw_of};
use crate::config::compile::slots::Slots;
use crate::config::json::from_yaml;
use crate::config::listener::Listener;
use crate::config::pb::envoy::config::listener::v3::Listener as PbListener;
use crate::hcm::request_headers::LocalInfo;
use crate::http_filters::ExtraFilters;
use crate::listener::sockets::BoundAddress;
use crate::stats::Registry;
use crate::stream_info::Address;
use crate::tls::Secrets;
use crate::xds::resource::ResourceType;
use std::sync::Arc;

/// Answers every request by itself.
fn listener() -> Listener {
    let hcm = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let yaml = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': t/{hcm}, stat_prefix: s, \
         http_filters: [{{name: router, typed_config: {{'@type': t/{router}}}}}], \
         route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         direct_response: {{status: 200}}}}]}}]}}}}}}]}}]}}"
    );
    let bytes = from_yaml::<PbListener>(&yaml).unwrap().encode_to_vec().into();
    let cx = CompileContext {
        extra_filters: &ExtraFilters::default(),
        slots: &Slots::default(),
        secrets: &Secrets::default(),
    };
    compile_raw_listener(&raw_of(ResourceType::Listener, &bytes), &cx).0.unwrap()
}

fn setup(ended: mpsc::UnboundedSender<usize>) -> WorkerSetup {
    let registry = Registry::default();
    WorkerSetup {
        index: 0,
        clusters: Arc::new(ClusterMap::default()),
        access_log: AccessLogWriter::start(FlushOptions::default(), &registry).unwrap(),
        registry,
        local: Arc::new(LocalInfo { service_cluster: "".into(), service_node: "".into() }),
        seed: 1,
        closing: Arc::default(),
        ended,
    }
}

/// Its client has been told that it is connected.
#[test]
fn a_connection_that_waits_to_be_accepted_is_served_before_the_end() {
    let (ended, _ends) = mpsc::unbounded_channel();
    let config = Arc::new(listener());
    let bound = BoundAddress::bind(&config, &config.binds[0], 1).unwrap();
    bound.listen(16, &config.binds[0]).unwrap();
    let Address::Ip(address) = bound.address else { unreachable!("it is bound to one") };
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    let mut worker = start(setup(ended)).unwrap();
    let sockets = Some(bound.of_worker(0).into_iter().collect());
    let put = ListenerCommand::Put { config, sockets };
    worker.commands.send(Command::Listener(1, put)).unwrap();
    worker.commands.send(Command::Exit).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    // `connection: close` is in it only if the second command came before it was written.
    worker.join();
    assert!(bound.of_worker(0).unwrap().open().unwrap().is_none(), "its socket is still open");
}

#[test]
fn a_worker_that_panics_is_known_to_have_ended() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let thread = std::thread::spawn(move || {
        let _end = TellEnd { index: 3, ended };
        std::panic::resume_unwind(Box::new("gone"));
    });
    assert_eq!(ends.blocking_recv(), Some(3));
    assert!(thread.join().is_err());
}
