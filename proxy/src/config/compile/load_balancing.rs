//! pb load balancing policy of a Cluster, in both of its forms, and `common_lb_config`.

use crate::config::cluster::{LbPolicy, LeastRequestOptions};
use crate::config::compile::core::{
    any_type, compile_percent, compile_runtime_double, compile_u32_at_least, unpack_any,
};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::core::RuntimeDouble;
use crate::config::pb::envoy::config::cluster::v3 as pb;
use crate::config::pb::envoy::config::cluster::v3::cluster as pb_cluster;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::load_balancing_policies as pb_lb;
use crate::config::pb::google::protobuf::UInt32Value;

/// The policy of `load_balancing_policy`, else of `lb_policy`; and whether it weighs localities.
pub fn compile_lb_policy(pb: &pb::Cluster, path: &FieldPath<'_>) -> Option<(LbPolicy, bool)> {
    if let Some(policy) = &pb.load_balancing_policy {
        let field = path.field("load_balancing_policy");
        return compile_load_balancing_policy(policy, is_original_dst(pb), &field);
    }
    let weighted = pb.common_lb_config.as_ref().is_some_and(|common| {
        use pb_cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
        matches!(common.locality_config_specifier, Some(Specifier::LocalityWeightedLbConfig(_)))
    });
    Some((compile_plain_lb_policy(pb, path)?, weighted))
}

/// `lb_policy`
fn compile_plain_lb_policy(pb: &pb::Cluster, path: &FieldPath<'_>) -> Option<LbPolicy> {
    use pb_cluster::{LbConfig, LbPolicy as Pb};
    let Ok(policy) = Pb::try_from(pb.lb_policy) else {
        path.field("lb_policy").error("unknown enum value");
        return None;
    };
    match policy {
        Pb::RoundRobin => Some(LbPolicy::RoundRobin),
        Pb::Random => Some(LbPolicy::Random),
        Pb::LeastRequest => {
            let mut options = LeastRequestOptions::default();
            if let Some(LbConfig::LeastRequestLbConfig(pb)) = &pb.lb_config {
                let path = path.field("least_request_lb_config");
                options.choice_count =
                    compile_choice_count(pb.choice_count.as_ref(), &path.field("choice_count"));
                options.active_request_bias = compile_bias(pb.active_request_bias.as_ref(), &path);
            }
            Some(LbPolicy::LeastRequest(options))
        }
        Pb::LoadBalancingPolicyConfig => {
            path.field("load_balancing_policy").error("value is required by lb_policy");
            None
        }
        Pb::ClusterProvided if is_original_dst(pb) => Some(LbPolicy::ClusterProvided),
        Pb::RingHash | Pb::Maglev | Pb::ClusterProvided => {
            path.field("lb_policy")
                .error(format_args!("{} is not supported", policy.as_str_name()));
            None
        }
    }
}

/// The one type of cluster that picks its hosts itself.
fn is_original_dst(pb: &pb::Cluster) -> bool {
    use pb_cluster::{ClusterDiscoveryType, DiscoveryType};
    let original = DiscoveryType::OriginalDst as i32;
    pb.cluster_discovery_type == Some(ClusterDiscoveryType::Type(original))
}

fn compile_choice_count(pb: Option<&UInt32Value>, path: &FieldPath<'_>) -> u32 {
    compile_u32_at_least(pb, 2, path).unwrap_or(2)
}

fn compile_bias(
    pb: Option<&pb_core::RuntimeDouble>,
    path: &FieldPath<'_>,
) -> Option<Box<RuntimeDouble>> {
    let bias = compile_runtime_double(pb?);
    if bias.default < 0.0 {
        path.field("active_request_bias").error("value must be greater than or equal to 0");
    }
    Some(Box::new(bias))
}

/// The first policy of the list that is known, as Envoy chooses.
#[expect(deprecated, reason = "enable_full_scan is still read, as Envoy does")]
fn compile_load_balancing_policy(
    pb: &pb::LoadBalancingPolicy,
    is_original_dst: bool,
    path: &FieldPath<'_>,
) -> Option<(LbPolicy, bool)> {
    use pb_lb::least_request::v3::{LeastRequest, least_request::SelectionMethod};
    const PREFIX: &str = "envoy.extensions.load_balancing_policies.";
    for (i, policy) in pb.policies.iter().enumerate() {
        let path = path.index("policies", i);
        let path = path.field("typed_extension_config");
        let Some(any) =
            policy.typed_extension_config.as_ref().and_then(|c| c.typed_config.as_ref())
        else {
            path.field("typed_config").error("value is required");
            return None;
        };
        let path = path.field("typed_config");
        match any_type(any).strip_prefix(PREFIX) {
            Some("round_robin.v3.RoundRobin") => {
                let pb = unpack_any::<pb_lb::round_robin::v3::RoundRobin>(any, &path)?;
                return Some((LbPolicy::RoundRobin, weighs(pb.locality_lb_config.as_ref())));
            }
            Some("random.v3.Random") => {
                let pb = unpack_any::<pb_lb::random::v3::Random>(any, &path)?;
                return Some((LbPolicy::Random, weighs(pb.locality_lb_config.as_ref())));
            }
            Some("least_request.v3.LeastRequest") => {
                let pb = unpack_any::<LeastRequest>(any, &path)?;
                let full_scan = pb.selection_method == SelectionMethod::FullScan as i32
                    || pb.enable_full_scan.as_ref().is_some_and(|v| v.value);
                let policy = LbPolicy::LeastRequest(LeastRequestOptions {
                    choice_count: compile_choice_count(
                        pb.choice_count.as_ref(),
                        &path.field("choice_count"),
                    ),
                    active_request_bias: compile_bias(pb.active_request_bias.as_ref(), &path),
                    full_scan,
                });
                return Some((policy, weighs(pb.locality_lb_config.as_ref())));
            }
            Some("cluster_provided.v3.ClusterProvided") if is_original_dst => {
                return Some((LbPolicy::ClusterProvided, false));
            }
            _ => {}
        }
    }
    path.error("none of the policies is supported");
    None
}

/// Whether localities share the traffic by weight.
fn weighs(pb: Option<&pb_lb::common::v3::LocalityLbConfig>) -> bool {
    use pb_lb::common::v3::locality_lb_config::LocalityConfigSpecifier as Specifier;
    let specifier = pb.and_then(|pb| pb.locality_config_specifier.as_ref());
    matches!(specifier, Some(Specifier::LocalityWeightedLbConfig(_)))
}

/// Panic threshold in percent, and whether panic fails traffic.
pub fn compile_panic(pb: Option<&pb_cluster::CommonLbConfig>, path: &FieldPath<'_>) -> (u8, bool) {
    use pb_cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
    const DEFAULT: u8 = 50;
    let Some(pb) = pb else { return (DEFAULT, false) };
    let threshold = pb.healthy_panic_threshold.as_ref();
    let threshold = compile_percent(threshold, &path.field("healthy_panic_threshold"));
    let fail = match &pb.locality_config_specifier {
        Some(Specifier::ZoneAwareLbConfig(zone)) => zone.fail_traffic_on_panic,
        Some(Specifier::LocalityWeightedLbConfig(_)) | None => false,
    };
    // Envoy rounds to a whole percent, too.
    (threshold.map_or(DEFAULT, |percent| percent.round() as u8), fail)
}
