use super::*;
use crate::config::pb::envoy::config::rbac::v3 as rbac_pb;
use crate::config::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::config::pb::xds::r#type::matcher::v3 as pb_xds;
use crate::http_filters::testing::{TestStream, any, compiled, print};
use matcher_pb::string_matcher::MatchPattern;

/// Policies by name and path prefix.
fn rules(action: Action, policies: &[(&str, &str)]) -> Option<rbac_pb::Rbac> {
    let policy = |(name, prefix): &(&str, &str)| {
        let matcher = matcher_pb::StringMatcher {
            match_pattern: Some(MatchPattern::Prefix((*prefix).to_owned())),
            ignore_case: false,
        };
        let path =
            matcher_pb::PathMatcher { rule: Some(matcher_pb::path_matcher::Rule::Path(matcher)) };
        let rule = rbac_pb::permission::Rule::UrlPath(path);
        let any = rbac_pb::principal::Identifier::Any(true);
        let policy = rbac_pb::Policy {
            permissions: vec![rbac_pb::Permission { rule: Some(rule) }],
            principals: vec![rbac_pb::Principal { identifier: Some(any) }],
            ..Default::default()
        };
        ((*name).to_owned(), policy)
    };
    Some(rbac_pb::Rbac {
        action: action as i32,
        policies: policies.iter().map(policy).collect(),
        ..Default::default()
    })
}

use rbac_pb::rbac::Action;

fn config() -> pb::Rbac {
    pb::Rbac {
        rules: rules(Action::Allow, &[("p one", "/a"), ("aa", "/aa")]),
        shadow_rules: rules(Action::Deny, &[("sh", "/ax")]),
        rules_stat_prefix: "rp_".into(),
        shadow_rules_stat_prefix: "sp_".into(),
        track_per_rule_stats: true,
        ..Default::default()
    }
}

fn run(stream: &mut TestStream, config: &pb::Rbac, path: &str) -> (String, String) {
    let config = compiled(|path| compile(&any(config), "", path)).unwrap();
    let mut filter = Filter::new(&config);
    stream.request.set_path(path.as_bytes());
    stream.info.metadata.clear();
    let flow = stream.with(|cx| filter.on_request_head(cx, true));
    let metadata: Vec<_> = stream.info.metadata.iter().map(|(_, fields)| &**fields).collect();
    (print(&flow), serde_json::to_string(&metadata).unwrap())
}

/// As seen in Envoy 1.40 with the same configuration.
#[test]
fn verdicts_metadata_and_statistics() {
    let mut stream = TestStream::new(None);
    let denied = "403 None rbac_access_denied_matched_policy[none] RBAC: access denied";
    let cases = [
        (
            "/a",
            "continue",
            r#"[{"rp_enforced_effective_policy_id":"p one","rp_enforced_engine_result":"allowed","sp_shadow_engine_result":"allowed"}]"#,
        ),
        (
            "/aa",
            "continue",
            r#"[{"rp_enforced_effective_policy_id":"aa","rp_enforced_engine_result":"allowed","sp_shadow_engine_result":"allowed"}]"#,
        ),
        (
            "/ax",
            "continue",
            r#"[{"rp_enforced_effective_policy_id":"p one","rp_enforced_engine_result":"allowed","sp_shadow_effective_policy_id":"sh","sp_shadow_engine_result":"denied"}]"#,
        ),
        (
            "/b",
            denied,
            r#"[{"rp_enforced_engine_result":"denied","sp_shadow_engine_result":"allowed"}]"#,
        ),
    ];
    // Statistics live as long as their configuration.
    let rules = stream.registry.scope("http.in.rbac.rp_");
    let shadow = stream.registry.scope("http.in.rbac.sp_");
    let one = stream.registry.scope("http.in.rbac.rp_.policy.p one");
    let sh = stream.registry.scope("http.in.rbac.sp_.policy.sh");
    for (path, flow, metadata) in cases {
        let seen = run(&mut stream, &config(), path);
        assert_eq!(seen, (flow.to_owned(), metadata.to_owned()), "{path}");
    }
    assert_eq!((rules.value(RbacStat::Allowed), rules.value(RbacStat::Denied)), (3, 1));
    let shadow = (shadow.value(RbacShadowStat::Allowed), shadow.value(RbacShadowStat::Denied));
    assert_eq!(shadow, (3, 1));
    assert_eq!(one.value(RbacPolicyStat::Allowed), 2);
    assert_eq!(sh.value(RbacPolicyStat::ShadowDenied), 1);
}

#[test]
fn routes_take_the_filters_place() {
    let own = pb::Rbac { rules: rules(Action::Deny, &[("o v", "/")]), ..Default::default() };
    let per_route = any(&pb::RbacPerRoute { rbac: Some(own) });
    let (flow, metadata) = run(&mut TestStream::new(Some(per_route)), &config(), "/a");
    assert_eq!(flow, "403 None rbac_access_denied_matched_policy[o_v] RBAC: access denied");
    assert!(!metadata.contains("shadow"));
    let off = any(&pb::RbacPerRoute::default());
    let seen = run(&mut TestStream::new(Some(off)), &config(), "/b");
    assert_eq!(seen, ("continue".to_owned(), "[]".to_owned()));
}

#[test]
fn what_is_left_is_made_once() {
    let config = pb::Rbac { rules: rules(Action::Deny, &[("l", "/l")]), ..Default::default() };
    let config = compiled(|path| compile(&any(&config), "", path)).unwrap();
    let mut left = [false; 2].map(|_| {
        let mut stream = TestStream::new(None);
        stream.info.metadata.clear();
        stream.with(|cx| Filter::new(&config).on_request_head(cx, true));
        stream.info.metadata
    });
    assert!(!left[0].spilled());
    let [first, second] = left.each_mut().map(|metadata| metadata.pop().unwrap());
    assert!(Arc::ptr_eq(&first.0, &second.0));
    assert!(Arc::ptr_eq(&first.1, &second.1));
}

#[test]
fn log_only_leaves_a_hint() {
    let log = pb::Rbac { rules: rules(Action::Log, &[("l", "/l")]), ..Default::default() };
    for (path, hint) in [("/l", "true"), ("/x", "false")] {
        let (flow, metadata) = run(&mut TestStream::new(None), &log, path);
        assert_eq!(flow, "continue");
        assert!(metadata.contains(&format!(r#"{{"access_log_hint":{hint}}}"#)), "{metadata}");
    }
}

#[test]
fn names_of_statistics() {
    let registry = crate::stats::Registry::new(Default::default());
    let hcm = registry.scope("http.t");
    assert_eq!(Side::new(METADATA, "", "enforced").scope(&hcm, "").prefix(), "http.t.rbac");
    let named = Side::new(METADATA, "rp.", "shadow");
    assert_eq!(named.scope(&hcm, "").prefix(), "http.t.rbac.rp");
    assert_eq!(named.scope(&hcm, "policy.p one").prefix(), "http.t.rbac.rp.policy.p one");
}

#[test]
fn matcher_trees_are_refused() {
    let tree = pb_xds::matcher::MatcherType::MatcherTree(Default::default());
    let matcher = pb_xds::Matcher { matcher_type: Some(tree), on_no_match: None };
    let config = pb::Rbac { matcher: Some(matcher), ..Default::default() };
    assert!(compiled(|path| compile(&any(&config), "", path)).unwrap_err().contains("matcher"));
}
