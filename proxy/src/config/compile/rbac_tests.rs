use std::sync::Arc;
use std::time::Instant;

use http::Method;

use super::*;
use crate::codec::head::{Protocol, RequestHead};
use crate::config::compile::diagnostic::Diagnostics;
use crate::config::compile::rbac_matcher::compile_rbac_matcher;
use crate::config::pb::envoy::config::route::v3::HeaderMatcher;
use crate::config::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use crate::config::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::config::pb::google::protobuf::UInt32Value;
use crate::config::pb::xds::r#type::matcher::v3 as pb_xds;
use crate::config::rbac::RbacSubject;
use crate::stream_info::{Address, ConnectionInfo, FilterState};
use crate::tls::{CertificateChain, TlsInfo};
use matcher_pb::string_matcher::MatchPattern;
use pb::permission::{Rule, Set};
use pb::principal::Identifier;

fn address(text: &str) -> Address {
    Address::Ip(text.parse().unwrap())
}

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 1,
        remote: address("10.0.0.1:1000"),
        direct_remote: address("10.0.0.2:1000"),
        local: address("192.168.0.1:8080"),
        direct_local: address("192.168.0.1:8080"),
        requested_server_name: Some("a.example".into()),
        is_tls: false,
        started: Instant::now(),
        filter_chain_name: "".into(),
        listener_name: "".into(),
        state: FilterState::default(),
        found: Default::default(),
        ..ConnectionInfo::default()
    }
}

/// Of a peer with such names in its certificate.
fn named(names: &[&str], uris: &[&str]) -> ConnectionInfo {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let uris = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()));
    params.subject_alt_names.extend(uris);
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let peer = CertificateChain::new(vec![certificate.der().clone()]).map(Arc::new);
    let connection = connection();
    let _ = connection.tls.set(Arc::new(TlsInfo { peer, ..TlsInfo::default() }));
    connection
}

fn permission(rule: Rule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(identifier) }
}

fn cidr(text: &str, len: u32) -> PbCidr {
    PbCidr { address_prefix: text.into(), prefix_len: Some(UInt32Value { value: len }) }
}

fn text(pattern: MatchPattern) -> matcher_pb::StringMatcher {
    matcher_pb::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

fn engine(action: pb::rbac::Action, policies: Vec<(&str, Rule, Identifier)>) -> RbacEngine {
    let policies = policies.into_iter().map(|(name, rule, identifier)| {
        let policy = pb::Policy {
            permissions: vec![permission(rule)],
            principals: vec![principal(identifier)],
            ..Default::default()
        };
        (name.to_owned(), policy)
    });
    let rbac =
        pb::Rbac { action: action as i32, policies: policies.collect(), ..Default::default() };
    let found = Diagnostics::new("t");
    let engine = compile_rbac(&rbac, &found.root());
    assert_eq!(found.into_vec(), []);
    engine.unwrap()
}

fn permits(rule: Rule) -> bool {
    let any = Identifier::Any(true);
    let engine = engine(pb::rbac::Action::Allow, vec![("p", rule, any)]);
    let mut head = RequestHead::new(Method::GET, Protocol::Http11);
    head.set_path(b"/a?b");
    head.headers.push_raw(b"x-a", b"1");
    let connection = connection();
    let remote = address("1.2.3.4:0");
    let subject = RbacSubject { head: Some(&head), connection: &connection, remote: &remote };
    engine.evaluate(&subject).allowed
}

fn is(identifier: Identifier) -> bool {
    let engine = engine(pb::rbac::Action::Allow, vec![("p", Rule::Any(true), identifier)]);
    let connection = connection();
    let remote = address("1.2.3.4:0");
    let subject = RbacSubject { head: None, connection: &connection, remote: &remote };
    engine.evaluate(&subject).allowed
}

#[test]
fn permissions() {
    let path = |pattern| {
        let rule = matcher_pb::path_matcher::Rule::Path(text(pattern));
        Rule::UrlPath(matcher_pb::PathMatcher { rule: Some(rule) })
    };
    let header =
        |name: &str| Rule::Header(HeaderMatcher { name: name.into(), ..Default::default() });
    let set = |rules: Vec<Rule>| Set { rules: rules.into_iter().map(permission).collect() };
    assert!(permits(path(MatchPattern::Exact("/a".into()))));
    assert!(!permits(path(MatchPattern::Contains("b".into()))));
    assert!(permits(header("x-a")) && !permits(header("x-b")));
    assert!(permits(Rule::OrRules(set(vec![header("x-b"), header("x-a")]))));
    assert!(!permits(Rule::AndRules(set(vec![header("x-b"), header("x-a")]))));
    assert!(permits(Rule::NotRule(Box::new(permission(header("x-b"))))));
    assert!(permits(Rule::DestinationIp(cidr("192.168.0.0", 16))));
    assert!(permits(Rule::DestinationPort(8080)) && !permits(Rule::DestinationPort(80)));
    let range = |start, end| Rule::DestinationPortRange(Int32Range { start, end });
    assert!(permits(range(8080, 8081)) && !permits(range(8000, 8080)));
    assert!(permits(Rule::RequestedServerName(text(MatchPattern::Suffix(".example".into())))));
}

#[test]
#[expect(deprecated, reason = "source_ip is under test")]
fn principals() {
    assert!(is(Identifier::SourceIp(cidr("10.0.0.1", 32))));
    assert!(is(Identifier::DirectRemoteIp(cidr("10.0.0.2", 32))));
    assert!(is(Identifier::RemoteIp(cidr("1.2.3.0", 24))));
    assert!(!is(Identifier::RemoteIp(cidr("10.0.0.0", 8))));
    assert!(!is(Identifier::Authenticated(pb::principal::Authenticated::default())));
    let missing = HeaderMatcher {
        name: "x".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(false)),
        ..Default::default()
    };
    assert!(is(Identifier::Header(missing)), "a connection has no headers");
    let nobody = principal(Identifier::NotId(Box::new(principal(Identifier::Any(true)))));
    assert!(!is(Identifier::OrIds(pb::principal::Set { ids: vec![nobody] })));
}

#[test]
fn peers_by_their_certificates() {
    let admits = |connection: &ConnectionInfo, pattern: Option<MatchPattern>| {
        let principal_name = pattern.map(text);
        let who = Identifier::Authenticated(pb::principal::Authenticated { principal_name });
        let engine = engine(pb::rbac::Action::Allow, vec![("p", Rule::Any(true), who)]);
        engine.evaluate(&RbacSubject::of_connection(connection)).allowed
    };
    let exact = |name: &str| Some(MatchPattern::Exact(name.into()));
    let both = named(&["d.example"], &["spiffe://td/a", "spiffe://td/b"]);
    assert!(admits(&both, None));
    assert!(admits(&both, exact("spiffe://td/b")) && admits(&both, exact("d.example")));
    assert!(admits(&both, exact("CN=rcgen self signed cert")));
    assert!(!admits(&both, exact("spiffe://td/")));
    let nobody = connection();
    let _ = nobody.tls.set(Arc::new(TlsInfo::default()));
    assert!(admits(&nobody, None), "as in Envoy");
    assert!(!admits(&nobody, exact("CN=a")));
}

#[test]
fn actions_and_the_policy_that_is_named() {
    let connection = connection();
    let subject = RbacSubject::of_connection(&connection);
    let ports = |ports: &[u32]| -> Vec<(&'static str, Rule, Identifier)> {
        let names = ["b", "a", "c"];
        let rule = |(name, port): (&&'static str, &u32)| {
            (*name, Rule::DestinationPort(*port), Identifier::Any(true))
        };
        names.iter().zip(ports).map(rule).collect()
    };
    let verdict = |action, of: &[u32]| {
        let engine = engine(action, ports(of));
        let verdict = engine.evaluate(&subject);
        (verdict.allowed, verdict.policy.map(ToString::to_string), verdict.log)
    };
    use pb::rbac::Action;
    assert_eq!(verdict(Action::Allow, &[8080, 8080]), (true, Some("a".into()), None));
    assert_eq!(verdict(Action::Allow, &[1]), (false, None, None));
    assert_eq!(verdict(Action::Allow, &[]), (false, None, None));
    assert_eq!(verdict(Action::Deny, &[8080, 1]), (false, Some("b".into()), None));
    assert_eq!(verdict(Action::Deny, &[1]), (true, None, None));
    assert_eq!(verdict(Action::Log, &[8080]), (true, Some("b".into()), Some(true)));
    assert_eq!(verdict(Action::Log, &[1]), (true, None, Some(false)));
}

#[test]
#[expect(deprecated, reason = "metadata is refused by name")]
fn what_cannot_be_checked_is_refused() {
    let metadata = Rule::Metadata(matcher_pb::MetadataMatcher::default());
    let bad_range = Rule::DestinationPortRange(Int32Range { start: 5, end: 5 });
    let policy = pb::Policy {
        permissions: vec![permission(metadata), permission(bad_range), pb::Permission::default()],
        ..Default::default()
    };
    let rbac = pb::Rbac { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
    let found = Diagnostics::new("t");
    assert!(compile_rbac(&rbac, &found.root()).is_none());
    let paths: Vec<_> = found.into_vec().into_iter().map(|d| d.path).collect();
    let policy = r#"policies["p"]"#;
    assert_eq!(
        paths,
        [
            format!("{policy}.principals"),
            format!("{policy}.permissions[0].metadata"),
            format!("{policy}.permissions[1].destination_port_range"),
            format!("{policy}.permissions[2].rule"),
        ]
    );
}

/// Nothing to match is nothing that could match: a rule that denies by it would let everybody pass.
#[test]
fn matchers_of_nothing_are_refused() {
    let allow =
        "action: {name: a, typed_config: {'@type': t/envoy.config.rbac.v3.Action, name: p}}";
    let ip = "'@type': t/envoy.extensions.matching.input_matchers.ip.v3.Ip";
    let address = "'@type': t/envoy.extensions.matching.common_inputs.network.v3.SourceIPInput";
    let of_nothing = format!(
        "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{{address}}}}}, \
         custom_match: {{name: ip, typed_config: {{{ip}, stat_prefix: x}}}}}}}}, on_match: {{{allow}}}}}]}}}}"
    );
    let empty = format!("{{matcher_list: {{}}, on_no_match: {{{allow}}}}}");
    for (matcher, place) in [(of_nothing, "cidr_ranges"), (empty, "matcher_list.matchers")] {
        let matcher: pb_xds::Matcher = crate::config::json::from_yaml(&matcher).unwrap();
        let found = Diagnostics::new("t");
        assert!(compile_rbac_matcher(&matcher, false, &found.root()).is_none());
        let found = found.into_vec();
        assert!(found.iter().any(|one| one.path.ends_with(place)), "{found:?}");
    }
}

/// Whether a matcher lets the connection pass that asks for this alone.
fn matches(input: &str, matcher: &str) -> bool {
    admits(&connection(), input, matcher)
}

fn admits(connection: &ConnectionInfo, input: &str, matcher: &str) -> bool {
    const INPUTS: &str = "t/envoy.extensions.matching.common_inputs";
    let matcher: pb_xds::Matcher = crate::config::json::from_yaml(&format!(
        "{{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {{name: i, typed_config: {{'@type': \
         {INPUTS}.{input}}}}}, {matcher}}}}}, on_match: {{action: {{name: a, typed_config: {{'@type': \
         t/envoy.config.rbac.v3.Action, name: p, action: ALLOW}}}}}}}}]}}}}"
    ))
    .unwrap();
    let found = Diagnostics::new("t");
    let engine = compile_rbac_matcher(&matcher, false, &found.root());
    assert_eq!(found.into_vec(), []);
    let remote = address("1.2.3.4:0");
    let subject = RbacSubject { head: None, connection, remote: &remote };
    engine.unwrap().evaluate(&subject).allowed
}

#[test]
fn matchers_of_addresses_and_names() {
    let ranges = |range: &str| {
        format!(
            "custom_match: {{name: ip, typed_config: {{'@type': \
             t/envoy.extensions.matching.input_matchers.ip.v3.Ip, stat_prefix: x, cidr_ranges: [{range}]}}}}"
        )
    };
    let inside = ranges(
        "{address_prefix: 9.9.9.9, prefix_len: 32}, {address_prefix: 1.2.0.0, prefix_len: 16}",
    );
    assert!(matches("network.v3.SourceIPInput", &inside));
    assert!(!matches(
        "network.v3.SourceIPInput",
        &ranges("{address_prefix: 9.9.9.9, prefix_len: 32}")
    ));
    let name = "network.v3.ServerNameInput";
    assert!(matches(name, "value_match: {exact: a.example}"));
    assert!(!matches(name, "value_match: {exact: b.example}"));
    let exact = |name: &str| format!("value_match: {{exact: '{name}'}}");
    assert!(!matches("ssl.v3.DnsSanInput", &exact("b.example")));
    let peer = named(&["d.example"], &["spiffe://td/a", "spiffe://td/b"]);
    for (input, name) in [
        ("ssl.v3.DnsSanInput", "d.example"),
        ("ssl.v3.UriSanInput", "spiffe://td/a,spiffe://td/b"),
        ("ssl.v3.SubjectInput", "CN=rcgen self signed cert"),
    ] {
        assert!(admits(&peer, input, &exact(name)), "{input}");
        assert!(!admits(&peer, input, &exact("spiffe://td/a")), "{input}");
    }
}
