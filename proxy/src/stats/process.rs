//! Statistics that every process has, whatever its configuration.

use std::sync::atomic::Ordering;

use super::names::{
    ClusterManagerStat, DnsStat, FilesystemStat, Http1Stat, Http2Stat, ListenerManagerStat,
    OverloadStat, RouterStat, RuntimeStat, ServerStat, ThreadClusterStat, WatchdogStat,
};
use super::registry::Registry;
use super::scope::Scope;

/// Makes them exist at zero, as Envoy does. They are there while the scopes are held.
pub fn declare_process(registry: &Registry, workers: usize) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let mut declare = |prefix: &str, declare: fn(&Scope)| {
        let scope = registry.scope(prefix);
        declare(&scope);
        scopes.push(scope);
    };
    declare("server", Scope::declare::<ServerStat>);
    declare("listener_manager", Scope::declare::<ListenerManagerStat>);
    declare("cluster_manager", Scope::declare::<ClusterManagerStat>);
    declare("runtime", Scope::declare::<RuntimeStat>);
    declare("filesystem", Scope::declare::<FilesystemStat>);
    declare("dns.cares", Scope::declare::<DnsStat>);
    declare("overload", Scope::declare::<OverloadStat>);
    declare("http.async-client", Scope::declare::<RouterStat>);
    declare("envoy.overload_actions.reset_high_memory_stream", |scope| {
        scope.shared_counter("count");
    });
    // The admin listener speaks it.
    declare("http1", Scope::declare::<Http1Stat>);
    for watched in ["main_thread", "workers", "server.main_thread"] {
        declare(watched, Scope::declare::<WatchdogStat>);
    }
    declare("thread_local_cluster_manager.main_thread", Scope::declare::<ThreadClusterStat>);
    for worker in 0..workers {
        declare(&format!("server.worker_{worker}"), Scope::declare::<WatchdogStat>);
        let clusters = format!("thread_local_cluster_manager.worker_{worker}");
        declare(&clusters, Scope::declare::<ThreadClusterStat>);
    }
    scopes
}

/// Makes `http2.*` exist; called for each downstream connection that speaks it, and cheap after the first.
pub fn declare_http2(registry: &Registry) {
    if !registry.0.http2.load(Ordering::Relaxed) {
        registry.scope("http2").declare::<Http2Stat>();
        registry.0.http2.store(true, Ordering::Relaxed);
    }
}
