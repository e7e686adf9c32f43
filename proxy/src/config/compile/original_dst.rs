//! pb Cluster of type `ORIGINAL_DST`: `original_dst_lb_config`, `cleanup_interval`.

use std::time::Duration;

use super::core::compile_positive_duration;
use super::diagnostic::FieldPath;
use crate::codec::name::HeaderName;
use crate::config::cluster::{Discovery, OriginalDst};
use crate::config::pb::envoy::config::cluster::v3 as pb;
use crate::config::pb::envoy::config::cluster::v3::cluster as pb_cluster;
use crate::config::pb::envoy::r#type::metadata::v3 as pb_metadata;

/// `use_http_header` without `http_header_name`.
const DEFAULT_HEADER: &str = "x-envoy-original-dst-host";
/// `cleanup_interval` where it is not set.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);

/// How an `ORIGINAL_DST` cluster finds its hosts.
pub fn compile_original_dst(pb: &pb::Cluster, path: &FieldPath<'_>) -> Option<Discovery> {
    let Ok(policy) = pb_cluster::LbPolicy::try_from(pb.lb_policy) else { return None };
    if policy != pb_cluster::LbPolicy::ClusterProvided {
        path.field("lb_policy").error(format_args!(
            "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
            policy.as_str_name()
        ));
    }
    if pb.load_assignment.is_some() {
        path.field("load_assignment")
            .error("ORIGINAL_DST clusters must have no load assignment configured");
    }
    let cleanup_interval = match &pb.cleanup_interval {
        Some(interval) => compile_positive_duration(interval, &path.field("cleanup_interval"))?,
        None => CLEANUP_INTERVAL,
    };
    let mut original = OriginalDst {
        http_header: None,
        metadata_key: None,
        port_override: None,
        cleanup_interval,
    };
    if let Some(pb_cluster::LbConfig::OriginalDstLbConfig(config)) = &pb.lb_config {
        let path = path.field("original_dst_lb_config");
        compile_lb_config(config, &mut original, &path);
    }
    Some(Discovery::OriginalDst(Box::new(original)))
}

fn compile_lb_config(
    pb: &pb_cluster::OriginalDstLbConfig,
    original: &mut OriginalDst,
    path: &FieldPath<'_>,
) {
    let name = pb.http_header_name.as_str();
    if pb.use_http_header {
        let name = if name.is_empty() { DEFAULT_HEADER } else { name };
        let at = path.field("http_header_name");
        original.http_header = at.ok_or_error(HeaderName::parse(name));
    } else if !name.is_empty() {
        path.field("http_header_name").error(format_args!(
            "ORIGINAL_DST cluster: invalid config http_header_name={name} and use_http_header is false. Set use_http_header to true if http_header_name is desired."
        ));
    }
    if let Some(port) = &pb.upstream_port_override {
        match u16::try_from(port.value) {
            Ok(port) => original.port_override = Some(port),
            Err(_) => path
                .field("upstream_port_override")
                .error("value must be less than or equal to 65535"),
        }
    }
    if let Some(key) = &pb.metadata_key {
        original.metadata_key = compile_metadata_key(key, &path.field("metadata_key"));
    }
}

/// Namespace and path of a pb `MetadataKey`.
fn compile_metadata_key(
    pb: &pb_metadata::MetadataKey,
    path: &FieldPath<'_>,
) -> Option<Box<[Box<str>]>> {
    use pb_metadata::metadata_key::path_segment::Segment;
    if pb.key.is_empty() {
        path.field("key").error("value length must be at least 1 characters");
    }
    if pb.path.is_empty() {
        path.field("path").error("value must contain at least 1 item(s)");
    }
    let mut out: Vec<Box<str>> = vec![pb.key.as_str().into()];
    for (i, segment) in pb.path.iter().enumerate() {
        match &segment.segment {
            Some(Segment::Key(key)) => out.push(key.as_str().into()),
            Some(Segment::Index(_)) => {
                path.index("path", i).field("index").error("not supported");
                return None;
            }
            None => {
                path.index("path", i).error("is required");
                return None;
            }
        }
    }
    Some(out.into())
}
