//! Connection authorisation. pb `extensions.filters.network.rbac.v3.RBAC`.
//!
//! Decided once, before the terminal filter sees the connection, so that what is denied never reaches an upstream
//! (Envoy decides at the first byte, with the upstream connection already open).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::compile::core::{compile_optional_duration, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::rbac::compile_rbac;
use crate::config::pb::envoy::extensions::filters::network::rbac::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::config::rbac::{RbacEngine, RbacSubject};
use crate::http_filters::rbac::{RbacShadowStat, RbacStat};
use crate::stream_info::ConnectionInfo;
use crate::worker::WorkerContext;

/// Full name of the filter's message.
pub const TYPE: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// A compiled filter.
#[derive(Debug)]
pub struct NetworkRbac {
    rules: Option<RbacEngine>,
    shadow_rules: Option<RbacEngine>,
    stat_prefix: String,
    shadow_stat_prefix: String,
    delay_deny: Option<Duration>,
}

/// Compiles the filter.
pub fn compile(any: &Any, path: &FieldPath<'_>) -> Option<Arc<NetworkRbac>> {
    let pb = unpack_any::<pb::Rbac>(any, path)?;
    if pb.stat_prefix.is_empty() {
        path.field("stat_prefix").error("value length must be at least 1 characters");
    }
    for (set, field) in
        [(pb.matcher.is_some(), "matcher"), (pb.shadow_matcher.is_some(), "shadow_matcher")]
    {
        if set {
            path.field(field).error("matcher trees are not supported");
        }
    }
    let engine = |rules: &Option<crate::config::pb::envoy::config::rbac::v3::Rbac>, field| {
        rules.as_ref().map(|rules| compile_rbac(rules, &path.field(field)))
    };
    let rules = engine(&pb.rules, "rules");
    let shadow_rules = engine(&pb.shadow_rules, "shadow_rules");
    let dotted = |prefix: &str| format!("{}.", prefix.trim_end_matches('.'));
    Some(Arc::new(NetworkRbac {
        rules: rules.map_or(Some(None), |e| e.map(Some))?,
        shadow_rules: shadow_rules.map_or(Some(None), |e| e.map(Some))?,
        stat_prefix: dotted(&pb.stat_prefix),
        shadow_stat_prefix: match pb.shadow_rules_stat_prefix.as_str() {
            "" => String::new(),
            prefix => dotted(prefix),
        },
        delay_deny: compile_optional_duration(pb.delay_deny.as_ref(), &path.field("delay_deny")),
    }))
}

impl NetworkRbac {
    /// Whether the connection may go on; a denied one has waited for `delay_deny` when this returns.
    pub async fn admit(&self, info: &ConnectionInfo, worker: &WorkerContext) -> bool {
        let subject = RbacSubject::of_connection(info);
        // Once a connection: looking a counter up is cheap beside accepting.
        let scope = |below: &str| {
            let name = format!("{}rbac.{below}", self.stat_prefix);
            worker.registry.scope(name.trim_end_matches('.'))
        };
        if let Some(engine) = &self.shadow_rules {
            let scope = scope(&self.shadow_stat_prefix);
            let stats = scope.block::<RbacShadowStat>(worker.index);
            stats.inc(match engine.evaluate(&subject).allowed {
                true => RbacShadowStat::Allowed,
                false => RbacShadowStat::Denied,
            });
        }
        let Some(engine) = &self.rules else { return true };
        let stats = scope("").block::<RbacStat>(worker.index);
        if engine.evaluate(&subject).allowed {
            stats.inc(RbacStat::Allowed);
            return true;
        }
        stats.inc(RbacStat::Denied);
        if let Some(delay) = self.delay_deny {
            worker.timers.sleep_until(Instant::now() + delay).await;
        }
        false
    }
}
