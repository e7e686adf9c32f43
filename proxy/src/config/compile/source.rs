//! pb ConfigSource to its compiled form (`config::source`).

use std::sync::Arc;
use std::time::Duration;

use super::core::{compile_duration, compile_positive_duration, some_str};
use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as pb;
use crate::config::source::{ApiSource, ConfigSource, PathSource, Source};

/// `ConfigSource.initial_fetch_timeout` where it is not set.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Back-off of a stream where the service has no retry policy.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// `RateLimitSettings` where its fields are not set: tokens, and tokens a second.
const RATE_LIMIT: (u32, f64) = (100, 10.0);

/// Compiles a source. `None` where it cannot be used, with the reason reported.
#[expect(deprecated, reason = "path is still read, as Envoy does")]
pub fn compile_config_source(pb: &pb::ConfigSource, path: &FieldPath<'_>) -> Option<ConfigSource> {
    use pb::config_source::ConfigSourceSpecifier as Pb;
    let timeout = match &pb.initial_fetch_timeout {
        None => INITIAL_FETCH_TIMEOUT,
        Some(timeout) => compile_duration(timeout, &path.field("initial_fetch_timeout"))?,
    };
    let file = |file: &str, watched: Option<&pb::WatchedDirectory>, path: &FieldPath<'_>| {
        if file.is_empty() {
            path.field("path").error("value length must be at least 1 characters");
            return None;
        }
        let watched_directory = watched.and_then(|directory| some_str(&directory.path));
        Some(Source::Path(Arc::new(PathSource { path: file.into(), watched_directory })))
    };
    let source = match &pb.config_source_specifier {
        Some(Pb::Ads(_) | Pb::Self_(_)) => Source::Ads,
        Some(Pb::Path(name)) => file(name, None, path)?,
        Some(Pb::PathConfigSource(config)) => file(
            &config.path,
            config.watched_directory.as_ref(),
            &path.field("path_config_source"),
        )?,
        Some(Pb::ApiConfigSource(api)) => {
            Source::Api(Arc::new(compile_api_source(api, &path.field("api_config_source"))?))
        }
        None => {
            path.error("a source of configuration is required");
            return None;
        }
    };
    Some(ConfigSource { source, initial_fetch_timeout: Some(timeout).filter(|t| !t.is_zero()) })
}

/// Compiles the stream of an `api_config_source` or of `ads_config`; whether it carries one type or all is its place's to
/// say.
pub fn compile_api_source(pb: &pb::ApiConfigSource, path: &FieldPath<'_>) -> Option<ApiSource> {
    use pb::api_config_source::ApiType;
    use pb::grpc_service::TargetSpecifier;
    if pb.transport_api_version != pb::ApiVersion::V3 as i32 {
        path.field("transport_api_version").error("only V3 is supported");
    }
    let delta = match ApiType::try_from(pb.api_type) {
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => false,
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => true,
        _ => {
            path.field("api_type").error("only GRPC and DELTA_GRPC are supported");
            return None;
        }
    };
    if !pb.cluster_names.is_empty() {
        path.field("cluster_names").error("a gRPC source is named by grpc_services");
    }
    let [service] = pb.grpc_services.as_slice() else {
        path.field("grpc_services").error("exactly one service is required");
        return None;
    };
    let at = path.index("grpc_services", 0);
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else {
        at.error("only envoy_grpc is supported");
        return None;
    };
    let at_target = at.field("envoy_grpc");
    if target.cluster_name.is_empty() {
        at_target.field("cluster_name").error("value length must be at least 1 characters");
    }
    let metadata = service.initial_metadata.iter();
    Some(ApiSource {
        delta,
        cluster: target.cluster_name.as_str().into(),
        authority: some_str(&target.authority),
        initial_metadata: metadata
            .map(|header| (header.key.to_ascii_lowercase().into(), header.value.as_str().into()))
            .collect(),
        set_node_on_first_message_only: pb.set_node_on_first_message_only,
        back_off: compile_back_off(target, &at_target),
        rate_limit: pb.rate_limit_settings.as_ref().map(|limit| {
            let fill = limit.fill_rate.as_ref().map_or(RATE_LIMIT.1, |rate| rate.value);
            let tokens = limit.max_tokens.as_ref().map_or(RATE_LIMIT.0, |tokens| tokens.value);
            (tokens.max(1), (fill.max(0.0) * 60.0).ceil().max(1.0) as u32)
        }),
    })
}

fn compile_back_off(
    target: &pb::grpc_service::EnvoyGrpc,
    path: &FieldPath<'_>,
) -> (Duration, Duration) {
    let policy = target.retry_policy.as_ref();
    let Some(back_off) = policy.and_then(|policy| policy.retry_back_off.as_ref()) else {
        return BACK_OFF;
    };
    let path = path.field("retry_policy");
    let path = path.field("retry_back_off");
    let of = |value: &Option<_>, name| {
        value.as_ref().and_then(|value| compile_positive_duration(value, &path.field(name)))
    };
    let base = of(&back_off.base_interval, "base_interval").unwrap_or(BACK_OFF.0);
    (base, of(&back_off.max_interval, "max_interval").unwrap_or(base * 10).max(base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::json::from_yaml;

    fn compile(yaml: &str) -> Result<ConfigSource, String> {
        let found = Diagnostics::new("source");
        let compiled = compile_config_source(&from_yaml(yaml).unwrap(), &found.root());
        let problems: Vec<_> = found.into_vec().iter().map(ToString::to_string).collect();
        compiled.filter(|_| problems.is_empty()).ok_or_else(|| problems.join("\n"))
    }

    #[test]
    fn sources_of_equal_text_are_equal() {
        let grpc = "api_config_source: {api_type: GRPC, transport_api_version: V3, \
                    set_node_on_first_message_only: true, \
                    grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}";
        let one = compile(&format!("{{{grpc}, initial_fetch_timeout: 0s}}")).unwrap();
        assert_eq!(one.initial_fetch_timeout, None);
        assert_eq!(one.source, compile(&format!("{{{grpc}}}")).unwrap().source);
        let ads = compile("{ads: {}, resource_api_version: V3}").unwrap();
        assert_eq!(ads.initial_fetch_timeout, Some(INITIAL_FETCH_TIMEOUT));
        assert_eq!(ads.source, Source::Ads);
        let file = compile("{path_config_source: {path: /a/b, watched_directory: {path: /a}}}");
        let Source::Path(file) = file.unwrap().source else { unreachable!("it is a path") };
        assert_eq!((&*file.path, file.watched_directory.as_deref()), ("/a/b", Some("/a")));
    }

    #[test]
    fn what_is_not_spoken_is_named() {
        let problem = compile("{api_config_source: {api_type: REST, cluster_names: [a]}}");
        let problem = problem.unwrap_err();
        assert!(problem.contains("transport_api_version: only V3 is supported"), "{problem}");
        assert!(problem.contains("api_type: only GRPC and DELTA_GRPC"), "{problem}");
        assert!(compile("{}").unwrap_err().contains("is required"));
    }
}
