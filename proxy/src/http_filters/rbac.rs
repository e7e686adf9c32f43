//! `envoy.filters.http.rbac`: lets requests pass by policies over who asks (principals) and for what
//! (permissions); shadow rules only say what they would have done.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use http::StatusCode;
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use super::{FilterContext, Flow, HttpFilter, PerRouteConfig};
use crate::config::compile::core::unpack_any;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::rbac::compile_rbac;
use crate::config::compile::rbac_matcher::compile_rbac_matcher;
use crate::config::pb::envoy::extensions::filters::http::rbac::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::rbac::{RbacEngine, RbacSubject};
use crate::hcm::HcmScope;
use crate::hcm::local_reply::LocalReply;
use crate::stats::{FilterStats, Scope};
use crate::stream_info::{Metadata, add_fields, fields_mut};

pub const TYPE: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
pub const PER_ROUTE_TYPE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";

type Fields = Map<String, Value>;

/// Namespace of the dynamic metadata that the filter leaves.
const METADATA: &str = "envoy.filters.http.rbac";

crate::metrics! {
    /// `http.<stat_prefix>.rbac.[<rules_stat_prefix>.]`
    pub enum RbacStat {
        Allowed: counter "allowed",
        Denied: counter "denied",
    }
}

crate::metrics! {
    /// `http.<stat_prefix>.rbac.[<shadow_rules_stat_prefix>.]`
    pub enum RbacShadowStat {
        Allowed: counter "shadow_allowed",
        Denied: counter "shadow_denied",
    }
}

crate::metrics! {
    /// One policy, where `track_per_rule_stats` is set: `….policy.<name>.`
    pub enum RbacPolicyStat {
        Allowed: counter "allowed" lazy,
        Denied: counter "denied" lazy,
        ShadowAllowed: counter "shadow_allowed" lazy,
        ShadowDenied: counter "shadow_denied" lazy,
    }
}

/// `RBAC`.
#[derive(Debug)]
pub struct Config {
    engines: Engines,
    rules: Side,
    shadow: Side,
    stats: FilterStats<RbacStat>,
    shadow_stats: FilterStats<RbacShadowStat>,
}

impl Config {
    /// See `chain::FilterConfig::declare`.
    pub fn declare(&self, hcm: &HcmScope) {
        self.stats.declare(|| self.rules.scope(&hcm.scope, ""));
        self.shadow_stats.declare(|| self.shadow.scope(&hcm.scope, ""));
    }
}

/// Names of one kind of rules: what they count under and leave in the metadata.
#[derive(Debug)]
pub(crate) struct Side {
    /// Empty, or with a dot at its end.
    stat_prefix: String,
    namespace: Arc<str>,
    /// `<prefix>enforced_effective_policy_id` or its shadow twin.
    policy_field: Arc<str>,
    result_field: String,
}

impl Side {
    pub(crate) fn new(namespace: &str, prefix: &str, kind: &str) -> Self {
        let stat_prefix = match prefix.strip_suffix('.').unwrap_or(prefix) {
            "" => String::new(),
            prefix => format!("{prefix}."),
        };
        Self {
            stat_prefix,
            namespace: namespace.into(),
            policy_field: format!("{prefix}{kind}_effective_policy_id").into(),
            result_field: format!("{prefix}{kind}_engine_result"),
        }
    }

    /// What a verdict leaves; `at` is the policy's place among the engine's.
    fn fields(&self, engine: &RbacEngine, at: Option<usize>) -> Arc<Fields> {
        let mut fields = Fields::new();
        if let Some(at) = at {
            let policy = engine.policies[at].name.to_string();
            fields.insert(self.policy_field.to_string(), Value::String(policy));
        }
        let (allowed, _) = engine.decide(at);
        let result = if allowed { "allowed" } else { "denied" };
        fields.insert(self.result_field.clone(), Value::String(result.to_owned()));
        Arc::new(fields)
    }

    fn scope(&self, hcm: &Scope, below: &str) -> Scope {
        let suffix = format!("rbac.{}{below}", self.stat_prefix);
        hcm.scope(suffix.trim_end_matches('.'))
    }
}

/// What is asked: the filter's own, or a route's in its place.
#[derive(Debug, Default)]
struct Engines {
    rules: Option<RbacEngine>,
    shadow_rules: Option<RbacEngine>,
    left: Left,
    shadow_left: Left,
    /// By policy; `None` unless `track_per_rule_stats`.
    policy_stats: Option<FxHashMap<Arc<str>, FilterStats<RbacPolicyStat>>>,
}

/// What an engine's verdicts leave in the metadata: by policy, and at the end for none. A route's engine learns on its
/// first request how its filter calls the fields.
#[derive(Debug, Default)]
pub(crate) struct Left(OnceLock<FieldsByPolicy>);

/// Under the name of a policy's field, one for each policy and the last for none.
type FieldsByPolicy = (Arc<str>, Box<[Arc<Fields>]>);

impl Left {
    pub(crate) fn leave(
        &self,
        side: &Side,
        engine: &RbacEngine,
        at: Option<usize>,
        metadata: &mut Metadata,
    ) {
        let count = engine.policies.len();
        let (of, all) = self.0.get_or_init(|| {
            let policies = (0..count).map(|at| side.fields(engine, Some(at)));
            (side.policy_field.clone(), policies.chain([side.fields(engine, None)]).collect())
        });
        if *of == side.policy_field {
            add_fields(metadata, &side.namespace, &all[at.unwrap_or(count)]);
        } else {
            // Two filters with one name and different prefixes.
            add_fields(metadata, &side.namespace, &side.fields(engine, at));
        }
    }
}

/// `RBACPerRoute`: engines that take the place of the filter's; none at all let everything pass.
struct PerRoute(Engines);

pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let config: pb::Rbac = unpack_any(any, path)?;
    Some(Arc::new(Config {
        engines: compile_engines(&config, path)?,
        rules: Side::new(METADATA, &config.rules_stat_prefix, "enforced"),
        shadow: Side::new(METADATA, &config.shadow_rules_stat_prefix, "shadow"),
        stats: FilterStats::default(),
        shadow_stats: FilterStats::default(),
    }))
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let config: pb::RbacPerRoute = unpack_any(any, path)?;
    let engines = match &config.rbac {
        Some(rbac) => compile_engines(rbac, &path.field("rbac"))?,
        None => Engines::default(),
    };
    Some(Arc::new(PerRoute(engines)))
}

fn compile_engines(config: &pb::Rbac, path: &FieldPath<'_>) -> Option<Engines> {
    // A matcher takes the place of rules, as in Envoy.
    for (name, replaced) in [
        ("rules", config.matcher.is_some() && config.rules.is_some()),
        ("shadow_rules", config.shadow_matcher.is_some() && config.shadow_rules.is_some()),
    ] {
        if replaced {
            path.field(name).ignored("a matcher takes its place");
        }
    }
    let rules = match (&config.matcher, &config.rules) {
        (Some(matcher), _) => Some(compile_rbac_matcher(matcher, true, &path.field("matcher"))?),
        (None, Some(rules)) => Some(compile_rbac(rules, &path.field("rules"))?),
        (None, None) => None,
    };
    let shadow_rules = match (&config.shadow_matcher, &config.shadow_rules) {
        (Some(matcher), _) => {
            Some(compile_rbac_matcher(matcher, true, &path.field("shadow_matcher"))?)
        }
        (None, Some(rules)) => Some(compile_rbac(rules, &path.field("shadow_rules"))?),
        (None, None) => None,
    };
    let policy_stats = config.track_per_rule_stats.then(|| {
        let policies = rules.iter().chain(&shadow_rules).flat_map(|engine| &engine.policies);
        policies.map(|policy| (policy.name.clone(), FilterStats::default())).collect()
    });
    let (left, shadow_left) = Default::default();
    Some(Engines { rules, shadow_rules, left, shadow_left, policy_stats })
}

/// One stream's check; it keeps nothing.
#[derive(Debug)]
pub struct Filter(Arc<Config>);

impl Filter {
    pub fn new(config: &Arc<Config>) -> Self {
        Self(config.clone())
    }
}

impl HttpFilter for Filter {
    fn on_request_head(&mut self, cx: &mut FilterContext<'_>, _end: bool) -> Flow {
        cx.route.resolve(cx.request);
        let config = &*self.0;
        let per_route = cx.route.per_filter_config(cx.slot).cloned();
        let per_route = per_route.as_ref().and_then(|config| config.downcast_ref::<PerRoute>());
        let engines = per_route.map_or(&config.engines, |PerRoute(engines)| engines);
        if let Some(engine) = &engines.shadow_rules {
            let verdict = engine.evaluate(&RbacSubject::of_request(cx.request, cx.info));
            let scope = || config.shadow.scope(&cx.hcm_stats.scope, "");
            let stats = config.shadow_stats.block(cx.worker.index, scope);
            let (stat, policy_stat) = match verdict.allowed {
                true => (RbacShadowStat::Allowed, RbacPolicyStat::ShadowAllowed),
                false => (RbacShadowStat::Denied, RbacPolicyStat::ShadowDenied),
            };
            stats.inc(stat);
            charge_policy(engines, verdict.policy, policy_stat, &config.shadow, cx);
            engines.shadow_left.leave(&config.shadow, engine, verdict.at, &mut cx.info.metadata);
        }
        let Some(engine) = &engines.rules else { return Flow::Continue };
        let verdict = engine.evaluate(&RbacSubject::of_request(cx.request, cx.info));
        if let Some(log) = verdict.log {
            leave_hint(log, &mut cx.info.metadata);
        }
        let scope = || config.rules.scope(&cx.hcm_stats.scope, "");
        let stats = config.stats.block(cx.worker.index, scope);
        let (stat, policy_stat) = match verdict.allowed {
            true => (RbacStat::Allowed, RbacPolicyStat::Allowed),
            false => (RbacStat::Denied, RbacPolicyStat::Denied),
        };
        stats.inc(stat);
        charge_policy(engines, verdict.policy, policy_stat, &config.rules, cx);
        engines.left.leave(&config.rules, engine, verdict.at, &mut cx.info.metadata);
        if verdict.allowed {
            return Flow::Continue;
        }
        let details = denied_details(verdict.policy.map(|name| &**name));
        let reply = LocalReply::new(StatusCode::FORBIDDEN, Cow::Owned(details));
        Flow::Reply(Box::new(reply.body("RBAC: access denied")))
    }
}

/// What the action LOG leaves: whether a policy matches.
pub(crate) fn leave_hint(log: bool, metadata: &mut Metadata) {
    fields_mut(metadata, "envoy.common").insert("access_log_hint".into(), log.into());
}

fn charge_policy(
    engines: &Engines,
    policy: Option<&Arc<str>>,
    stat: RbacPolicyStat,
    side: &Side,
    cx: &FilterContext<'_>,
) {
    let (Some(all), Some(policy)) = (&engines.policy_stats, policy) else { return };
    let Some(stats) = all.get(policy) else { return };
    let scope = || side.scope(&cx.hcm_stats.scope, &format!("policy.{policy}"));
    stats.block(cx.worker.index, scope).inc(stat);
}

/// `response_code_details` of a denial: the policy's name without blanks, since log lines are split at them.
pub fn denied_details(policy: Option<&str>) -> String {
    let name: String = policy
        .unwrap_or("none")
        .chars()
        .map(|c| if c.is_ascii_whitespace() { '_' } else { c })
        .collect();
    format!("rbac_access_denied_matched_policy[{name}]")
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
