//! A worker without sockets, for tests of whole exchanges: one listener, one cluster `c` whose one host is in memory.

use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::WorkerContext;
use super::timers::Timers;
use crate::access_log::{AccessLogWriter, FlushOptions, WorkerAccessLogs};
use crate::cluster::host::{HostSet, HostSpec};
use crate::cluster::{ClusterMap, SharedCluster, WorkerClusters};
use crate::config::compile::CompileContext;
use crate::config::compile::configuration::load_configuration;
use crate::config::compile::slots::Slots;
use crate::config::core::Locality;
use crate::config::endpoint::HealthStatus;
use crate::http_filters::ExtraFilters;
use crate::io::Io;
use crate::io::memory::MemoryListener;
use crate::listener::{ListenerSlot, WorkerListener};
use crate::server::args::Command;
use crate::stats::Registry;
use crate::stream_info::Address;
use crate::tls::Secrets;

pub(crate) struct Bench {
    listener: Rc<WorkerListener>,
    pub(crate) upstream: MemoryListener,
}

impl Bench {
    /// `listener` and `cluster` are further fields of each, in YAML's flow form. Timers do not run.
    pub(crate) fn start(listener: &str, cluster: &str) -> Self {
        let hcm =
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let router = "envoy.extensions.filters.http.router.v3.Router";
        let yaml = format!(
            "{{static_resources: {{listeners: [{{name: l, {listener}, \
             address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
             filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': t/{hcm}, stat_prefix: in, \
             http_filters: [{{name: router, typed_config: {{'@type': t/{router}}}}}], \
             route_config: {{virtual_hosts: [{{name: all, domains: ['*'], \
             routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}}}}}]}}]}}], \
             clusters: [{{name: c, {cluster}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: \
             [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}}}]}}}}"
        );
        let line: [OsString; 3] = ["outrigger".into(), "--config-yaml".into(), yaml.into()];
        let Ok(Command::Run(options)) = Command::parse(line) else { panic!("a command line") };
        let extra_filters = &ExtraFilters::default();
        let (secrets, slots) = (&Secrets::default(), &Slots::default());
        let cx = CompileContext { extra_filters, secrets, slots };
        let configuration = load_configuration(&options, &cx).unwrap();
        let registry = Registry::default();
        let name = "upstream";
        let clusters = configuration.clusters.into_iter().map(|(_, cluster)| {
            let shared = SharedCluster::new(Arc::new(cluster), &registry);
            let assignment = &shared.config.load_assignment;
            let hosts = vec![host(name)];
            let (hosts, change) = HostSet::build(&shared.config, assignment, None, hosts);
            shared.publish(hosts, change);
            Arc::new(shared)
        });
        let map = Arc::new(ClusterMap::new(clusters));
        let timers = Timers::new(Instant::now());
        let writer = AccessLogWriter::start(FlushOptions::default(), &registry).unwrap();
        let worker = Rc::new(WorkerContext::new(
            0,
            timers.clone(),
            WorkerClusters::new(map, 0, timers, 1),
            registry,
            WorkerAccessLogs::new(writer, 0),
            Arc::default(),
            1,
        ));
        let listener = configuration.listeners.into_iter().next().unwrap().1;
        let listener = ListenerSlot::new(Arc::new(listener), 0, worker).current();
        Self { listener, upstream: MemoryListener::bind(name) }
    }

    /// A client's end of a new connection.
    pub(crate) fn connect(&self) -> Io {
        let (client, server) = Io::pair(64 * 1024);
        self.listener.admit(server, Address::Ip(([10, 0, 0, 1], 40_000).into()), None);
        client
    }
}

fn host(name: &str) -> HostSpec {
    HostSpec {
        address: Address::Internal(name.into()),
        hostname: None,
        locality: Arc::new(Locality::default()),
        metadata: None,
        priority: 0,
        weight: 1,
        health: HealthStatus::Healthy,
    }
}
