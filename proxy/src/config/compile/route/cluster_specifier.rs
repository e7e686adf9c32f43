//! Where a pb RouteAction sends its requests: a cluster, one that a header names, or shares of several.

use super::{Scope, per_filter, request_ops, response_ops};
use crate::codec::name::HeaderName;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::route::action::{
    ClusterName, ClusterSpecifier, ClusterWeight, WeightedClusters,
};

pub(super) fn compile_cluster_specifier(
    action: &pb::RouteAction,
    route_name: &str,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<ClusterSpecifier> {
    use pb::route_action::ClusterSpecifier as Specifier;
    match &action.cluster_specifier {
        Some(Specifier::Cluster(name)) => {
            if name.is_empty() {
                path.field("cluster").error("value length must be at least 1 characters");
                return None;
            }
            Some(ClusterSpecifier::Cluster(scope.cluster(name)))
        }
        Some(Specifier::ClusterHeader(name)) => path
            .field("cluster_header")
            .ok_or_error(HeaderName::parse(name))
            .map(ClusterSpecifier::Header),
        Some(Specifier::WeightedClusters(weighted)) => {
            compile_weighted(weighted, route_name, scope, &path.field("weighted_clusters"))
                .map(ClusterSpecifier::Weighted)
        }
        Some(Specifier::ClusterSpecifierPlugin(_)) => {
            path.field("cluster_specifier_plugin").error("not supported");
            None
        }
        Some(Specifier::InlineClusterSpecifierPlugin(_)) => {
            path.field("inline_cluster_specifier_plugin").error("not supported");
            None
        }
        None => {
            path.field("cluster_specifier").error("value is required");
            None
        }
    }
}

#[expect(deprecated, reason = "total_weight is reported")]
fn compile_weighted(
    weighted: &pb::WeightedCluster,
    route_name: &str,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<WeightedClusters> {
    use pb::weighted_cluster::RandomValueSpecifier as Specifier;
    if weighted.clusters.is_empty() {
        path.field("clusters").error("value must contain at least 1 item(s)");
        return None;
    }
    if weighted.total_weight.is_some() {
        path.field("total_weight").ignored("the sum of the weights counts, as in Envoy");
    }
    if !weighted.runtime_key_prefix.is_empty() {
        path.field("runtime_key_prefix").ignored("weights do not change at run time");
    }
    let random_header = match &weighted.random_value_specifier {
        Some(Specifier::HeaderName(name)) => {
            Some(path.field("header_name").ok_or_error(HeaderName::parse(name))?)
        }
        Some(Specifier::UseHashPolicy(_)) => {
            path.field("use_hash_policy").ignored("hash policies are not supported");
            None
        }
        None => None,
    };
    let mut total = 0_u64;
    let mut clusters = Vec::with_capacity(weighted.clusters.len());
    for (i, share) in weighted.clusters.iter().enumerate() {
        let path = path.index("clusters", i);
        let Some(weight) = &share.weight else {
            path.field("weight").error("value is required");
            continue;
        };
        total += u64::from(weight.value);
        let upto = u32::try_from(total).unwrap_or(u32::MAX);
        clusters.extend(compile_weight(share, upto, scope, &path));
    }
    let total = match u32::try_from(total) {
        Ok(0) => {
            path.error("Sum of weights in the weighted_cluster must be greater than 0.");
            return None;
        }
        Ok(total) => total,
        Err(_) => {
            path.error(format_args!(
                "The sum of weights of all weighted clusters of route {route_name} exceeds {}",
                u32::MAX
            ));
            return None;
        }
    };
    Some(WeightedClusters { clusters: clusters.into(), total, random_header })
}

fn compile_weight(
    share: &pb::weighted_cluster::ClusterWeight,
    upto: u32,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<ClusterWeight> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    if share.metadata_match.is_some() {
        path.field("metadata_match").ignored("subsets are not supported");
    }
    let cluster = compile_cluster_name(
        &share.name,
        "name",
        &share.cluster_header,
        "At least one of name or cluster_header need to be specified",
        "Only one of name or cluster_header can be specified",
        scope,
        path,
    );
    let host_rewrite_literal = match &share.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => {
            Some(host.as_bytes().into())
        }
        _ => None,
    };
    Some(ClusterWeight {
        cluster: cluster?,
        upto,
        request_headers: request_ops(
            &share.request_headers_to_add,
            &share.request_headers_to_remove,
            path,
        ),
        response_headers: response_ops(
            &share.response_headers_to_add,
            &share.response_headers_to_remove,
            path,
        ),
        host_rewrite_literal,
        per_filter: per_filter::compile(&share.typed_per_filter_config, scope.cx, path),
    })
}

/// A name or a header, one of which must be there.
pub(super) fn compile_cluster_name(
    name: &str,
    name_field: &str,
    header: &str,
    none: &str,
    both: &str,
    scope: &Scope<'_>,
    path: &FieldPath<'_>,
) -> Option<ClusterName> {
    match (name.is_empty(), header.is_empty()) {
        (false, true) => Some(ClusterName::Name(scope.cluster(name))),
        (true, false) => path
            .field("cluster_header")
            .ok_or_error(HeaderName::parse(header))
            .map(ClusterName::Header),
        (true, true) => {
            path.field(name_field).error(none);
            None
        }
        (false, false) => {
            path.field(name_field).error(both);
            None
        }
    }
}
