//! `stats_config`, `stats_flush_interval` and `deferred_stat_options` of the bootstrap to `config::stats`.

use std::time::Duration;

use super::core::compile_duration;
use super::diagnostic::FieldPath;
use super::matcher::{compile_list_string_matcher, compile_string_matcher};
use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::config::pb::envoy::config::bootstrap::v3::bootstrap::StatsFlush;
use crate::config::pb::envoy::config::metrics::v3 as pb;
use crate::config::stats::{BucketRule, Pattern, StatsConfig, StatsMatcher, TagRule, TagValue};
use crate::stats::is_default_tag;

/// Bounds of `stats_flush_interval`, exclusive above.
const FLUSH_INTERVAL: std::ops::Range<Duration> =
    Duration::from_millis(1)..Duration::from_secs(300);

/// Compiles what the bootstrap says about statistics. `cli_tags` is `--stats-tag`; `path` is the bootstrap.
pub fn compile_stats(
    bootstrap: &Bootstrap,
    cli_tags: &[(String, String)],
    path: &FieldPath<'_>,
) -> StatsConfig {
    let mut config = StatsConfig::default();
    for (name, value) in cli_tags {
        config.tags.push(TagRule { name: name.clone(), value: TagValue::Fixed(value.clone()) });
    }
    if let Some(pb) = &bootstrap.stats_config {
        compile_stats_config(pb, &mut config, &path.field("stats_config"));
    }
    if let Some(pb) = &bootstrap.stats_flush_interval {
        let path = path.field("stats_flush_interval");
        match compile_duration(pb, &path) {
            Some(interval) if FLUSH_INTERVAL.contains(&interval) => {
                config.flush_interval = interval
            }
            Some(_) => path.error("value must be inside range [1ms, 5m0s)"),
            None => {}
        }
    }
    if let Some(StatsFlush::StatsFlushOnAdmin(on)) = &bootstrap.stats_flush {
        if !on {
            path.field("stats_flush_on_admin").error("value must equal true");
        }
        config.flush_interval = Duration::ZERO;
    }
    let deferred = bootstrap.deferred_stat_options.as_ref();
    config.deferred_creation = deferred.is_some_and(|d| d.enable_deferred_creation_stats);
    config
}

fn compile_stats_config(pb: &pb::StatsConfig, config: &mut StatsConfig, path: &FieldPath<'_>) {
    config.use_all_default_tags = pb.use_all_default_tags.as_ref().is_none_or(|all| all.value);
    for (index, tag) in pb.stats_tags.iter().enumerate() {
        config.tags.extend(compile_tag(tag, &path.index("stats_tags", index)));
    }
    if let Some(matcher) = &pb.stats_matcher {
        let path = path.field("stats_matcher");
        if let Some(matcher) = compile_stats_matcher(matcher, &path) {
            config.matcher = matcher;
        }
    }
    for (index, rule) in pb.histogram_bucket_settings.iter().enumerate() {
        let path = path.index("histogram_bucket_settings", index);
        config.buckets.extend(compile_buckets(rule, &path));
    }
}

fn compile_tag(pb: &pb::TagSpecifier, path: &FieldPath<'_>) -> Option<TagRule> {
    if pb.tag_name.is_empty() {
        path.field("tag_name").error("tag_name cannot be empty");
        return None;
    }
    let default = || {
        if is_default_tag(&pb.tag_name) {
            return Some(TagValue::Default);
        }
        path.error(format!(
            "no regex specified for tag specifier and no default regex for name: '{}'",
            pb.tag_name
        ));
        None
    };
    let value = match &pb.tag_value {
        Some(pb::tag_specifier::TagValue::FixedValue(value)) => TagValue::Fixed(value.clone()),
        Some(pb::tag_specifier::TagValue::Regex(regex)) if !regex.is_empty() => {
            TagValue::Regex(path.field("regex").ok_or_error(Pattern::new(regex))?)
        }
        Some(pb::tag_specifier::TagValue::Regex(_)) | None => default()?,
    };
    Some(TagRule { name: pb.tag_name.clone(), value })
}

fn compile_stats_matcher(pb: &pb::StatsMatcher, path: &FieldPath<'_>) -> Option<StatsMatcher> {
    use pb::stats_matcher::StatsMatcher as Oneof;
    let list = |list, field| compile_list_string_matcher(list, &path.field(field));
    match &pb.stats_matcher {
        Some(Oneof::RejectAll(true)) => Some(StatsMatcher::RejectAll),
        Some(Oneof::RejectAll(false)) => Some(StatsMatcher::AcceptAll),
        Some(Oneof::ExclusionList(of)) => list(of, "exclusion_list").map(StatsMatcher::Exclusion),
        Some(Oneof::InclusionList(of)) => list(of, "inclusion_list").map(StatsMatcher::Inclusion),
        None => {
            path.error("value is required");
            None
        }
    }
}

/// `bins` sizes a table that we do not have; only its bounds are checked.
fn compile_buckets(pb: &pb::HistogramBucketSettings, path: &FieldPath<'_>) -> Option<BucketRule> {
    let Some(matcher) = &pb.r#match else {
        path.field("match").error("value is required");
        return None;
    };
    let matcher = compile_string_matcher(matcher, &path.field("match"))?;
    let mut bounds = pb.buckets.clone();
    bounds.sort_by(f64::total_cmp);
    for (index, bound) in pb.buckets.iter().enumerate() {
        if bound.is_nan() || *bound <= 0.0 {
            path.index("buckets", index).error("value must be greater than 0");
        }
    }
    if bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
        path.field("buckets").error("repeated value must contain unique items");
    }
    if pb.bins.as_ref().is_some_and(|bins| bins.value == 0 || bins.value > 46_082) {
        path.field("bins").error("value must be inside range (0, 46082]");
    }
    Some(BucketRule { matcher, bounds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::json::from_yaml;
    use crate::stats::Registry;
    use crate::stats::names::ClusterStat;
    use crate::stats::render::{StatsFormat, StatsParams, StatsRender};

    fn compile(yaml: &str) -> (StatsConfig, Vec<String>) {
        let bootstrap: Bootstrap = from_yaml(yaml).unwrap();
        let found = Diagnostics::new("bootstrap");
        let config = compile_stats(&bootstrap, &[("pod".into(), "p1".into())], &found.root());
        let problems = found.into_vec();
        (config, problems.iter().map(|d| format!("{}: {}", d.path, d.reason)).collect())
    }

    #[test]
    fn a_whole_configuration_compiles() {
        let (config, problems) = compile(
            r"
            stats_flush_interval: 10s
            deferred_stat_options: {enable_deferred_creation_stats: true}
            stats_config:
              use_all_default_tags: false
              stats_tags:
              - {tag_name: envoy.cluster_name}
              - {tag_name: reporter, regex: '((?<=x)y)'}
              - {tag_name: fixed, fixed_value: v}
              stats_matcher: {inclusion_list: {patterns: [{prefix: cluster.a}, {safe_regex: {regex: '.*x'}}]}}
              histogram_bucket_settings: [{match: {suffix: _ms}, buckets: [10, 0.5], bins: 10}]
            ",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(config.flush_interval, Duration::from_secs(10));
        assert!(config.deferred_creation && !config.use_all_default_tags);
        assert_eq!(config.tags.len(), 4);
        assert!(matches!(config.tags[2].value, TagValue::Regex(Pattern::LookAround(_))));
        assert_eq!(config.buckets[0].bounds, [0.5, 10.0]);
        let registry = Registry::new(config);
        let scopes = [registry.scope("cluster.a"), registry.scope("cluster.b")];
        let block = scopes[0].block::<ClusterStat>(0);
        block.record(ClusterStat::UpstreamCxLengthMs, 3);
        scopes[1].declare::<ClusterStat>();
        let params = StatsParams { used_only: true, ..StatsParams::default() };
        let out = StatsRender::new(&registry, params, StatsFormat::Prometheus).into_string();
        let labels = "pod=\"p1\",fixed=\"v\",envoy_cluster_name=\"a\"";
        assert!(out.contains(&format!("_ms_bucket{{{labels},le=\"0.5\"}} 0\n")), "{out}");
        assert!(out.contains(&format!("_ms_bucket{{{labels},le=\"10\"}} 1\n")), "{out}");
        assert!(!out.contains("\"5\"") && !out.contains("\"b\""), "{out}");
    }

    #[test]
    fn every_problem_is_reported_at_its_path() {
        let (_, problems) = compile(
            r"
            stats_flush_interval: 300s
            stats_config:
              stats_tags: [{tag_name: foo}, {tag_name: a, regex: '('}, {fixed_value: x}]
              stats_matcher: {}
              histogram_bucket_settings: [{buckets: [1]}, {match: {prefix: a}, buckets: [0, 1, 1], bins: 0}]
            ",
        );
        let paths: Vec<&str> =
            problems.iter().map(|problem| problem.split_once(": ").unwrap().0).collect();
        assert_eq!(
            paths,
            [
                "stats_config.stats_tags[0]",
                "stats_config.stats_tags[1].regex",
                "stats_config.stats_tags[2].tag_name",
                "stats_config.stats_matcher",
                "stats_config.histogram_bucket_settings[0].match",
                "stats_config.histogram_bucket_settings[1].buckets[0]",
                "stats_config.histogram_bucket_settings[1].buckets",
                "stats_config.histogram_bucket_settings[1].bins",
                "stats_flush_interval"
            ]
        );
    }

    #[test]
    fn istios_bootstraps_compile() {
        for yaml in [
            include_str!("../json/testdata/sidecar.json"),
            include_str!("../json/testdata/gateway.json"),
        ] {
            let (config, problems) = compile(yaml);
            assert_eq!(problems, Vec::<String>::new());
            assert!(matches!(config.matcher, StatsMatcher::Inclusion(_)));
            assert!(config.matcher.accepts("cluster_manager.cds.update_success"));
            assert!(!config.matcher.accepts("cluster.outbound|80||a.b.svc.upstream_rq_total"));
        }
    }
}
