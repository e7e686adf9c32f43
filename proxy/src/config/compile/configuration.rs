//! A whole static configuration: read, every resource decoded, checked against the support table, and compiled.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use rustc_hash::FxHashSet;

use super::CompileContext;
use super::bootstrap::compile_bootstrap;
use super::cluster::compile_cluster;
use super::diagnostic::{Diagnostic, Diagnostics, FieldPath, Severity};
use super::endpoint::compile_discovered_assignment;
use super::extension::compile_extension;
use super::listener::compile_listener;
use super::route::{RouteContext, compile_route_table};
use crate::config::bootstrap::Bootstrap;
use crate::config::cluster::Cluster;
use crate::config::core::BindConfig;
use crate::config::endpoint::LoadAssignment;
use crate::config::extension::DiscoveredFilter;
use crate::config::filter_chain::Terminal;
use crate::config::json::{LoadError, LoadedBootstrap, RawResource, Sources, load};
use crate::config::listener::Listener;
use crate::config::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::config::pb::google::protobuf::Any;
use crate::config::route::RouteTable;
use crate::config::route::slot::Routes;
use crate::config::support;
use crate::http_filters::chain::FilterConfig;
use crate::server::args::Options;
use crate::tls::{Secret, SecretSource};
use crate::xds::resource::ResourceType;

/// What a process starts with.
#[derive(Debug)]
pub struct Configuration {
    pub bootstrap: Bootstrap,
    /// As read, and as compiled; in order.
    pub listeners: Vec<(RawResource, Listener)>,
    pub clusters: Vec<(RawResource, Cluster)>,
    pub secrets: Vec<RawResource>,
    /// The bootstrap without static resources, encoded.
    pub raw: Bytes,
    /// Fields that are applied without.
    pub ignored: Vec<Diagnostic>,
    /// Fields that the API does not have, passed over as `--allow-unknown-static-fields` asks.
    pub unknown_fields: Vec<String>,
}

/// Why there is no configuration. Prints a line for each problem.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{}", .0.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n"))]
    Compile(Vec<Diagnostic>),
}

/// Reads and compiles what the command line names.
///
/// # Errors
/// All that is wrong with it: with the text if it cannot be read as the API's messages, else with their content.
pub fn load_configuration(
    options: &Options,
    cx: &CompileContext<'_>,
) -> Result<Configuration, ConfigurationError> {
    let loaded = load(&Sources {
        config_path: options.config_path.clone(),
        config_yaml: options.config_yaml.clone(),
        allow_unknown_fields: options.allow_unknown_static_fields,
    })?;
    compile_configuration(loaded, options, cx)
}

fn compile_configuration(
    loaded: LoadedBootstrap,
    options: &Options,
    cx: &CompileContext<'_>,
) -> Result<Configuration, ConfigurationError> {
    let found = Diagnostics::new("bootstrap");
    let bootstrap = compile_bootstrap(&loaded.bootstrap, options, &found.root());
    let mut found = found.into_vec();
    let bind = bootstrap.upstream_bind.as_ref();
    let names: FxHashSet<String> = loaded.clusters.iter().map(|raw| raw.name.clone()).collect();
    let secrets = compile_each(loaded.secrets, &mut found, compile_raw_secret);
    let secrets = publish_secrets(secrets, cx, &mut found);
    let clusters =
        compile_each(loaded.clusters, &mut found, |raw| compile_raw_cluster(raw, bind, cx));
    let listeners = compile_each(loaded.listeners, &mut found, |raw| compile_raw_listener(raw, cx));
    for (raw, listener) in &listeners {
        check_clusters(raw, listener, &names, &mut found);
    }
    check_addresses(&listeners, &mut found);
    let (errors, ignored): (Vec<_>, _) =
        found.into_iter().partition(|one| one.severity == Severity::Error);
    if !errors.is_empty() {
        return Err(ConfigurationError::Compile(errors));
    }
    Ok(Configuration {
        bootstrap,
        listeners,
        clusters,
        secrets,
        raw: loaded.bootstrap.encode_to_vec().into(),
        ignored,
        unknown_fields: loaded.unknown_fields,
    })
}

/// Puts static secrets where transport sockets look for them.
fn publish_secrets(
    secrets: Vec<(RawResource, Secret)>,
    cx: &CompileContext<'_>,
    found: &mut Vec<Diagnostic>,
) -> Vec<RawResource> {
    let mut raws = Vec::with_capacity(secrets.len());
    for (raw, secret) in secrets {
        let refused = Diagnostics::new(resource(&raw));
        let published = cx.secrets.publish(&raw.name, &SecretSource::Static, Ok(secret));
        refused.root().ok_or_error(published);
        found.append(&mut refused.into_vec());
        raws.push(raw);
    }
    raws
}

/// Static routes name clusters that exist, unless `validate_clusters` says otherwise.
fn check_clusters(
    raw: &RawResource,
    listener: &Listener,
    names: &FxHashSet<String>,
    found: &mut Vec<Diagnostic>,
) {
    let unknown = Diagnostics::new(resource(raw));
    for name in unknown_clusters(listener, |name| names.contains(name)) {
        let path = unknown.root();
        path.field("route_config").error(format_args!("route: unknown cluster '{name}'"));
    }
    found.append(&mut unknown.into_vec());
}

/// No two listeners have an address in common.
fn check_addresses(listeners: &[(RawResource, Listener)], found: &mut Vec<Diagnostic>) {
    let mut taken = FxHashSet::default();
    for (raw, listener) in listeners {
        if listener.binds.iter().any(|bind| taken.contains(&bind.address.place())) {
            let twice = Diagnostics::new(resource(raw));
            twice.root().field("address").error(listener.duplicate_address());
            found.append(&mut twice.into_vec());
        }
        taken.extend(listener.places());
    }
}

/// The clusters that a listener's own route configurations name and that have to exist and do not.
pub fn unknown_clusters(listener: &Listener, knows: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
    let mut unknown = Vec::new();
    for chain in listener.filter_chains.iter() {
        let Terminal::Http(hcm) = &chain.terminal else { continue };
        let hcm = hcm.load();
        let Routes::Inline(routes) = &hcm.routes else { continue };
        if routes.validate_clusters.unwrap_or(true) {
            unknown.extend(routes.clusters.iter().filter(|name| !knows(name)).cloned());
        }
    }
    unknown
}

fn compile_each<T>(
    all: Vec<RawResource>,
    found: &mut Vec<Diagnostic>,
    compile: impl Fn(&RawResource) -> (Option<T>, Vec<Diagnostic>),
) -> Vec<(RawResource, T)> {
    let mut names = FxHashSet::default();
    let mut compiled = Vec::with_capacity(all.len());
    for raw in all {
        if !raw.name.is_empty() && !names.insert(raw.name.clone()) {
            let twice = Diagnostics::new(resource(&raw));
            twice.root().field("name").error("another has the same name");
            found.append(&mut twice.into_vec());
        }
        let (value, mut more) = compile(&raw);
        found.append(&mut more);
        compiled.extend(value.map(|value| (raw, value)));
    }
    compiled
}

/// `envoy.yaml: static_resources.clusters[2] "name"`
fn resource(raw: &RawResource) -> String {
    format!("{} {:?}", raw.origin, raw.name)
}

/// Compiles a cluster from its bytes; `bind` is the bootstrap's. `None` if anything in it is an error.
pub fn compile_raw_cluster(
    raw: &RawResource,
    bind: Option<&BindConfig>,
    cx: &CompileContext<'_>,
) -> (Option<Cluster>, Vec<Diagnostic>) {
    compile_raw(raw, |pb, path| compile_cluster(pb, bind, cx, path))
}

/// Compiles a secret from its bytes. `None` if anything in it is an error, or it is of a kind that nothing uses.
pub fn compile_raw_secret(raw: &RawResource) -> (Option<Secret>, Vec<Diagnostic>) {
    compile_raw(raw, super::tls::secret::compile)
}

/// Compiles a listener from its bytes. `None` if anything in it is an error.
pub fn compile_raw_listener(
    raw: &RawResource,
    cx: &CompileContext<'_>,
) -> (Option<Listener>, Vec<Diagnostic>) {
    compile_raw(raw, |pb, path| compile_listener(pb, cx, path))
}

/// Compiles a load assignment of addresses (EDS) from its bytes. `None` if anything in it is an error.
pub fn compile_raw_assignment(bytes: &Bytes) -> (Option<LoadAssignment>, Vec<Diagnostic>) {
    let raw = raw_of(ResourceType::Endpoints, bytes);
    compile_raw(&raw, |pb, path| Some(compile_discovered_assignment(pb, path)))
}

/// Compiles a route configuration from its bytes. `None` if anything in it is an error.
pub fn compile_raw_routes(bytes: &Bytes) -> (Option<RouteTable>, Vec<Diagnostic>) {
    let raw = raw_of(ResourceType::Routes, bytes);
    let context = RouteContext { per_route: &FilterConfig::per_route };
    compile_raw(&raw, |pb, path| Some(compile_route_table(pb, context, path)))
}

/// Compiles a filter's configuration from its bytes for each filter that follows it, in their order. `None` if anything in
/// it is an error.
pub fn compile_raw_extension(
    bytes: &Bytes,
    filters: &[Arc<DiscoveredFilter>],
    cx: &CompileContext<'_>,
) -> (Option<(Any, Vec<FilterConfig>)>, Vec<Diagnostic>) {
    let raw = raw_of(ResourceType::Extension, bytes);
    compile_raw(&raw, |pb: &TypedExtensionConfig, path| {
        let path = path.field("typed_config");
        let Some(any) = &pb.typed_config else {
            path.error("value is required");
            return None;
        };
        let compile = |filter: &Arc<DiscoveredFilter>| compile_extension(any, filter, cx, &path);
        let configs: Option<Vec<_>> = filters.iter().map(compile).collect();
        Some((any.clone(), configs?))
    })
}

/// A resource that came from a source.
pub fn raw_of(kind: ResourceType, bytes: &Bytes) -> RawResource {
    RawResource {
        name: kind.name_of(bytes).to_owned(),
        type_url: kind.type_url(),
        bytes: bytes.clone(),
        hash: 0,
        origin: kind.word().to_owned(),
    }
}

fn compile_raw<M: prost::Message + Default, T>(
    raw: &RawResource,
    compile: impl FnOnce(&M, &FieldPath<'_>) -> Option<T>,
) -> (Option<T>, Vec<Diagnostic>) {
    let found = Diagnostics::new(resource(raw));
    let decoded = M::decode(raw.bytes.clone());
    let compiled = found.root().ok_or_error(decoded).and_then(|pb| {
        support::check(raw.type_url, &raw.bytes, &found.root());
        compile(&pb, &found.root())
    });
    (compiled.filter(|_| !found.has_errors()), found.into_vec())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use super::*;
    use crate::config::compile::slots::Slots;
    use crate::http_filters::ExtraFilters;
    use crate::server::args::Command;
    use crate::tls::Secrets;

    fn load_with(arguments: &[&str]) -> Result<Configuration, String> {
        let line = ["outrigger"].iter().chain(arguments).map(OsString::from);
        let Ok(Command::Run(options)) = Command::parse(line) else {
            unreachable!("the line is right")
        };
        let extra_filters = ExtraFilters::default();
        load_configuration(
            &options,
            &CompileContext {
                extra_filters: &extra_filters,
                secrets: &Secrets::default(),
                slots: &Slots::default(),
            },
        )
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_sidecar_and_a_gateway_start() {
        for name in ["sidecar.json", "gateway.json"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("src/config/json/testdata")
                .join(name);
            let path = path.to_str().unwrap();
            let configuration = load_with(&["-c", path, "--allow-unknown-static-fields"]).unwrap();
            assert_eq!((configuration.clusters.len(), configuration.listeners.len()), (4, 2));
            assert!(configuration.unknown_fields.is_empty());
            assert!(configuration.bootstrap.dynamic.clusters.is_some());
        }
    }

    #[test]
    fn a_route_to_an_unknown_cluster_is_named() {
        let hcm =
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let router = "envoy.extensions.filters.http.router.v3.Router";
        let yaml = |validate: bool| {
            format!(
                "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}},\n \
             filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': t/{hcm}, stat_prefix: s,\n \
             http_filters: [{{name: router, typed_config: {{'@type': t/{router}}}}}],\n \
             route_config: {{name: r, validate_clusters: {validate}, virtual_hosts: [{{name: v, domains: ['*'],\n \
             routes: [{{match: {{prefix: /}}, route: {{cluster: gone}}}}]}}]}}}}}}]}}]}}]}}"
            )
        };
        let problems = load_with(&["--config-yaml", &yaml(true)]).unwrap_err();
        let place = "--config-yaml: static_resources.listeners[0] \"l\": route_config: ";
        assert_eq!(problems, format!("{place}route: unknown cluster 'gone'"));
        load_with(&["--config-yaml", &yaml(false)]).unwrap();
    }

    #[test]
    fn every_problem_of_every_resource_is_named() {
        let problems = load_with(&[
            "--config-yaml",
            "static_resources: {clusters: [{name: a}, {name: a, lb_policy: MAGLEV}, {connect_timeout: 0s}]}",
        ])
        .unwrap_err();
        assert_eq!(
            problems.lines().collect::<Vec<_>>(),
            [
                "--config-yaml: static_resources.clusters[1] \"a\": name: another has the same name",
                "--config-yaml: static_resources.clusters[1] \"a\": lb_policy: MAGLEV is not supported",
                "--config-yaml: static_resources.clusters[2] \"\": name: value length must be at least 1 characters",
                "--config-yaml: static_resources.clusters[2] \"\": connect_timeout: value must be greater than 0s",
            ]
        );
    }
}
