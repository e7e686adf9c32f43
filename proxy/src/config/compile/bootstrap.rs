//! pb Bootstrap, without its static resources, to its compiled form.

use prost::Message as _;

use super::admin::{compile_admin, compile_application_log};
use super::core::compile_bind_config;
use super::diagnostic::FieldPath;
use super::source::{compile_api_source, compile_config_source};
use super::stats::compile_stats;
use crate::config::bootstrap::{Bootstrap, DynamicResources, Node};
use crate::config::pb::envoy::config::bootstrap::v3 as pb;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::r#type::v3::SemanticVersion;
use crate::config::runtime::Runtime;
use crate::config::source::Source;
use crate::config::support;
use crate::server::args::{Options, StatsTag};
use crate::server::version;

/// Compiles what is left of a bootstrap when its static resources are taken out. Every field that is set and not built is
/// reported too.
pub fn compile_bootstrap(pb: &pb::Bootstrap, options: &Options, path: &FieldPath<'_>) -> Bootstrap {
    support::check("envoy.config.bootstrap.v3.Bootstrap", &pb.encode_to_vec(), path);
    let tag = |tag: &StatsTag| (tag.name.clone(), tag.value.clone());
    let tags: Vec<_> = options.stats_tag.iter().map(tag).collect();
    let log = pb.application_log_config.as_ref();
    let manager = pb.cluster_manager.as_ref();
    let bind = manager.and_then(|manager| manager.upstream_bind_config.as_ref());
    let node = compile_node(pb.node.clone().unwrap_or_default(), options);
    if let Some(dynamic) = &pb.dynamic_resources
        && (dynamic.ads_config.is_some()
            || dynamic.cds_config.is_some()
            || dynamic.lds_config.is_some())
        && (node.id.is_empty() || node.cluster.is_empty())
    {
        path.field("node").error(
            "node 'id' and 'cluster' are required by dynamic_resources. Set them in 'node' or by --service-node and \
             --service-cluster",
        );
    }
    Bootstrap {
        node,
        admin: pb.admin.as_ref().and_then(|admin| compile_admin(admin, &path.field("admin"))),
        stats: compile_stats(pb, &tags, path),
        log_pattern: log.and_then(|log| {
            let path = path.field("application_log_config");
            if log.log_format.is_some() && options.log_format.is_some() {
                path.field("log_format")
                    .error("only one of this field and --log-format can be given");
            }
            compile_application_log(log, &path)
        }),
        runtime: Runtime::compile(pb.layered_runtime.as_ref(), &path.field("layered_runtime")),
        upstream_bind: bind.and_then(|bind| {
            let path = path.field("cluster_manager");
            compile_bind_config(bind, &path.field("upstream_bind_config"))
        }),
        dynamic: pb.dynamic_resources.as_ref().map_or_else(DynamicResources::default, |dynamic| {
            compile_dynamic(dynamic, &path.field("dynamic_resources"))
        }),
    }
}

fn compile_dynamic(pb: &pb::bootstrap::DynamicResources, path: &FieldPath<'_>) -> DynamicResources {
    let ads = pb.ads_config.as_ref();
    let whole = |config: &Option<_>, field: &str| {
        let path = path.field(field);
        let source = compile_config_source(config.as_ref()?, &path)?;
        if source.source == Source::Ads && ads.is_none() {
            path.field("ads").error("there is no ads_config");
        }
        Some(source)
    };
    DynamicResources {
        ads: ads.and_then(|ads| compile_api_source(ads, &path.field("ads_config"))).map(Into::into),
        clusters: whole(&pb.cds_config, "cds_config"),
        listeners: whole(&pb.lds_config, "lds_config"),
    }
}

fn compile_node(mut node: pb_core::Node, options: &Options) -> Node {
    if !options.service_node.is_empty() {
        node.id.clone_from(&options.service_node);
    }
    if !options.service_cluster.is_empty() {
        node.cluster.clone_from(&options.service_cluster);
    }
    if !options.service_zone.is_empty() {
        node.locality.get_or_insert_default().zone.clone_from(&options.service_zone);
    }
    "outrigger".clone_into(&mut node.user_agent_name);
    let mut numbers = version::number().split('.').map(|number| number.parse().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    node.user_agent_version_type =
        Some(pb_core::node::UserAgentVersionType::UserAgentBuildVersion(pb_core::BuildVersion {
            version: Some(SemanticVersion {
                major_number: number(),
                minor_number: number(),
                patch: number(),
            }),
            metadata: None,
        }));
    Node {
        zone: node.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default(),
        bytes: node.encode_to_vec().into(),
        id: node.id,
        cluster: node.cluster,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use super::*;
    use crate::config::compile::diagnostic::{Diagnostics, Severity};
    use crate::config::json::{Sources, from_yaml, load};
    use crate::config::source::ConfigSource;
    use crate::config::stats::{StatsMatcher, TagValue};
    use crate::server::args::Command;

    fn options(line: &str) -> Options {
        let line = format!("outrigger {line}");
        match Command::parse(line.split_whitespace().map(OsString::from)).unwrap() {
            Command::Run(options) => *options,
            Command::Quickstart(_) => unreachable!("it was not asked for"),
        }
    }

    fn compile(text: &str, line: &str) -> (Bootstrap, Vec<String>) {
        let found = Diagnostics::new("bootstrap");
        let pb = from_yaml(text).unwrap();
        let bootstrap = compile_bootstrap(&pb, &options(line), &found.root());
        (
            bootstrap,
            found.into_vec().iter().map(|one| format!("{}: {}", one.path, one.reason)).collect(),
        )
    }

    #[test]
    fn the_bootstrap_of_a_sidecar_compiles() {
        for name in ["sidecar.json", "gateway.json"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("src/config/json/testdata")
                .join(name);
            let loaded = load(&Sources { config_path: Some(path), ..Sources::default() }).unwrap();
            let found = Diagnostics::new("bootstrap");
            let compiled = compile_bootstrap(&loaded.bootstrap, &options(""), &found.root());
            let mut ignored = Vec::new();
            for one in found.into_vec() {
                assert_eq!(one.severity, Severity::Ignored, "{one}");
                ignored.push(one.path);
            }
            assert!(!ignored.iter().any(|one| one.contains("dynamic")), "{ignored:?}");
            assert_eq!(compiled.stats.tags.len(), 16);
            assert!(!compiled.stats.use_all_default_tags);
            assert!(compiled.stats.matcher.accepts("cluster_manager.cds.update_success"));
            assert!(!compiled.stats.matcher.accepts("http.a.downstream_cx_total"));
            assert!(compiled.log_pattern.is_some());
            assert!(
                !compiled
                    .runtime
                    .boolean("envoy.reloadable_features.http_reject_path_with_fragment", true)
            );
            let admin = compiled.admin.unwrap();
            assert_eq!(admin.access_log.0.len(), 1);
            assert!(compiled.node.id.contains('~'));
            let dynamic = compiled.dynamic;
            let ads = dynamic.ads.unwrap();
            assert!(ads.delta && ads.set_node_on_first_message_only);
            assert_eq!(&*ads.cluster, "xds-grpc");
            let wanted = ConfigSource { source: Source::Ads, initial_fetch_timeout: None };
            assert_eq!(
                (dynamic.clusters.as_ref(), dynamic.listeners),
                (Some(&wanted), Some(wanted.clone()))
            );
        }
    }

    #[test]
    fn flags_go_over_the_node_and_into_the_tags() {
        let (bootstrap, found) = compile(
            "node: {id: a, cluster: b, metadata: {k: v}}",
            "--service-node n --service-zone z --stats-tag t:v",
        );
        assert!(found.is_empty(), "{found:?}");
        assert_eq!((bootstrap.node.id.as_str(), bootstrap.node.cluster.as_str()), ("n", "b"));
        let node = pb_core::Node::decode(bootstrap.node.bytes).unwrap();
        assert_eq!(node.locality.unwrap().zone, "z");
        assert!(node.metadata.is_some());
        let tag = bootstrap.stats.tags.first().unwrap();
        assert_eq!(tag.name, "t");
        assert!(matches!(&tag.value, TagValue::Fixed(value) if value == "v"));
        assert!(matches!(bootstrap.stats.matcher, StatsMatcher::AcceptAll));
        assert!(bootstrap.admin.is_none());
    }

    #[test]
    fn what_is_wrong_is_reported() {
        let (_, found) = compile(
            "stats_flush_interval: 400s\napplication_log_config: {log_format: {text_format: x}}\n\
             admin: {address: {socket_address: {address: 127.0.0.1, port_value: 70000}}}",
            "--log-format y",
        );
        let paths: Vec<_> = found.iter().map(|one| one.split(": ").next().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "admin.address.socket_address.port_value",
                "stats_flush_interval",
                "application_log_config.log_format",
            ]
        );
    }

    #[test]
    fn ads_without_a_stream_for_it_is_wrong() {
        let (bootstrap, found) = compile("dynamic_resources: {cds_config: {ads: {}}}", "");
        let problem = "dynamic_resources.cds_config.ads: there is no ads_config".to_owned();
        assert!(found.contains(&problem), "{found:?}");
        assert!(bootstrap.dynamic.ads.is_none());
    }
}
