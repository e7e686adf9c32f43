//! pb `xds.type.matcher.v3.Matcher` of an RBAC filter to `config::rbac`: a list of matchers is a list of policies, of
//! which each has an action of its own. Inputs and matchers that are not known reject, for a rule left out would let
//! pass what it was to stop.

use std::sync::Arc;

use prost::Message as _;

use super::core::{any_type, unpack_any};
use super::diagnostic::FieldPath;
use super::matcher::{compile_cidr, compile_string_matcher};
use crate::codec::name::HeaderName;
use crate::config::cidr::Cidr;
use crate::config::matcher::{StringMatcher, StringPattern};
use crate::config::pb::envoy::config::rbac::v3 as pb_rbac;
use crate::config::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use crate::config::pb::envoy::r#type::matcher::v3 as pb_envoy;
use crate::config::pb::google::protobuf::Any;
use crate::config::pb::xds::core::v3::TypedExtensionConfig;
use crate::config::pb::xds::r#type::matcher::v3 as pb;
use crate::config::pb::xds::r#type::matcher::v3::matcher::matcher_list::{
    Predicate, predicate::MatchType, predicate::PredicateList, predicate::SinglePredicate,
    predicate::single_predicate::Matcher as ValueMatcher,
};
use crate::config::pb::xds::r#type::matcher::v3::matcher::{MatcherType, OnMatch, on_match};
use crate::config::rbac::{PeerName, RbacAction, RbacEffect, RbacEngine, RbacPolicy, RbacRule};

const ACTION: &str = "envoy.config.rbac.v3.Action";
const IP: &str = "envoy.extensions.matching.input_matchers.ip.v3.Ip";
const HEADER: &str = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput";

/// `None` after an error. `is_http`: whether there are requests to look at.
pub fn compile_rbac_matcher(
    matcher: &pb::Matcher,
    is_http: bool,
    path: &FieldPath<'_>,
) -> Option<RbacEngine> {
    let mut policies = Vec::new();
    let mut actions = Vec::new();
    let mut add = |rule: RbacRule, (name, action): (Arc<str>, RbacAction)| {
        actions.push(action);
        let (permissions, principals) = (Box::new([rule]), Box::new([RbacRule::Any]));
        policies.push(RbacPolicy { name, permissions, principals });
    };
    match &matcher.matcher_type {
        None => {}
        Some(MatcherType::MatcherList(list)) => {
            let path = path.field("matcher_list");
            if list.matchers.is_empty() {
                path.field("matchers").error("value must contain at least 1 item(s)");
                return None;
            }
            for (i, entry) in list.matchers.iter().enumerate() {
                let path = path.index("matchers", i);
                let rule =
                    compile_predicate(entry.predicate.as_ref(), is_http, &path.field("predicate"));
                let action = compile_action(entry.on_match.as_ref(), &path.field("on_match"));
                add(rule?, action?);
            }
        }
        Some(MatcherType::MatcherTree(_)) => {
            path.field("matcher_tree").error("is not supported");
            return None;
        }
    }
    if let Some(otherwise) = &matcher.on_no_match {
        add(RbacRule::Any, compile_action(Some(otherwise), &path.field("on_no_match"))?);
    }
    let logs = actions.contains(&RbacAction::Log);
    let effect = RbacEffect::Each { actions: actions.into(), logs };
    Some(RbacEngine { effect, policies: policies.into() })
}

/// The policy's name and what it does.
fn compile_action(pb: Option<&OnMatch>, path: &FieldPath<'_>) -> Option<(Arc<str>, RbacAction)> {
    let Some(pb) = pb else {
        path.error("value is required");
        return None;
    };
    if pb.keep_matching {
        path.field("keep_matching").error("is not supported");
        return None;
    }
    let action = match &pb.on_match {
        Some(on_match::OnMatch::Action(action)) => action,
        Some(on_match::OnMatch::Matcher(_)) => {
            path.field("matcher").error("nested matchers are not supported");
            return None;
        }
        None => {
            path.error("an action is required");
            return None;
        }
    };
    let path = path.field("action");
    let any = typed_config(Some(action), &path)?;
    let path = path.field("typed_config");
    if any_type(any) != ACTION {
        path.error(format_args!("action {:?} is not supported", any_type(any)));
        return None;
    }
    let action = unpack_any::<pb_rbac::Action>(any, &path)?;
    if action.name.is_empty() {
        path.field("name").error("value length must be at least 1 characters");
    }
    let effect = match pb_rbac::rbac::Action::try_from(action.action) {
        Ok(pb_rbac::rbac::Action::Allow) => RbacAction::Allow,
        Ok(pb_rbac::rbac::Action::Deny) => RbacAction::Deny,
        Ok(pb_rbac::rbac::Action::Log) => RbacAction::Log,
        Err(_) => {
            path.field("action").error("unknown enum value");
            return None;
        }
    };
    Some((action.name.into(), effect))
}

fn typed_config<'a>(pb: Option<&'a TypedExtensionConfig>, path: &FieldPath<'_>) -> Option<&'a Any> {
    let any = pb.and_then(|pb| pb.typed_config.as_ref());
    if any.is_none() {
        path.field("typed_config").error("value is required");
    }
    any
}

fn compile_predicate(
    pb: Option<&Predicate>,
    is_http: bool,
    path: &FieldPath<'_>,
) -> Option<RbacRule> {
    let list = |list: &PredicateList, field: &str| -> Option<Box<[RbacRule]>> {
        let path = path.field(field);
        if list.predicate.len() < 2 {
            path.field("predicate").error("value must contain at least 2 item(s)");
        }
        let each = list.predicate.iter().enumerate();
        each.map(|(i, one)| compile_predicate(Some(one), is_http, &path.index("predicate", i)))
            .collect()
    };
    match pb.and_then(|pb| pb.match_type.as_ref()) {
        None => {
            path.error("value is required");
            None
        }
        Some(MatchType::OrMatcher(any)) => list(any, "or_matcher").map(RbacRule::Or),
        Some(MatchType::AndMatcher(all)) => list(all, "and_matcher").map(RbacRule::And),
        Some(MatchType::NotMatcher(not)) => {
            let rule = compile_predicate(Some(not), is_http, &path.field("not_matcher"))?;
            Some(RbacRule::Not(Box::new(rule)))
        }
        Some(MatchType::SinglePredicate(single)) => {
            compile_single(single, is_http, &path.field("single_predicate"))
        }
    }
}

/// An input and what it has to be. An input that is not there matches nothing.
fn compile_single(pb: &SinglePredicate, is_http: bool, path: &FieldPath<'_>) -> Option<RbacRule> {
    const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
    const SSL: &str = "envoy.extensions.matching.common_inputs.ssl.v3.";
    let input_path = path.field("input");
    let input = typed_config(pb.input.as_ref(), &input_path)?;
    let kind = any_type(input);
    if kind == HEADER && is_http {
        let path = input_path.field("typed_config");
        let header = unpack_any::<pb_envoy::HttpRequestHeaderMatchInput>(input, &path)?;
        let name = path.field("header_name").ok_or_error(HeaderName::parse(&header.header_name));
        return Some(RbacRule::WholeHeader(name?, compile_value(pb, &input_path)?));
    }
    let of_peer = |name| Some(RbacRule::PeerName(name, compile_value(pb, path)?));
    match (kind.strip_prefix(NETWORK), kind.strip_prefix(SSL)) {
        (Some("SourceIPInput"), _) => compile_ip(pb, RbacRule::RemoteIp, path),
        (Some("DirectSourceIPInput"), _) => compile_ip(pb, RbacRule::DirectRemoteIp, path),
        (Some("DestinationIPInput"), _) => compile_ip(pb, RbacRule::DestinationIp, path),
        (Some("ServerNameInput"), _) => {
            let empty = StringMatcher::new(StringPattern::Exact(Box::default()), false);
            let is_none = Box::new(RbacRule::RequestedServerName(empty));
            let is_it = RbacRule::RequestedServerName(compile_value(pb, path)?);
            Some(RbacRule::And(Box::new([RbacRule::Not(is_none), is_it])))
        }
        (_, Some("UriSanInput")) => of_peer(PeerName::UriSan),
        (_, Some("DnsSanInput")) => of_peer(PeerName::DnsSan),
        (_, Some("SubjectInput")) => of_peer(PeerName::Subject),
        _ => {
            input_path.error(format_args!("input {kind:?} is not supported"));
            None
        }
    }
}

/// `value_match`
fn compile_value(pb: &SinglePredicate, path: &FieldPath<'_>) -> Option<StringMatcher> {
    match &pb.matcher {
        Some(ValueMatcher::ValueMatch(value)) => {
            // Envoy's own message has the same fields under the same numbers.
            let bytes = value.encode_to_vec();
            let value = pb_envoy::StringMatcher::decode(&*bytes).unwrap_or_default();
            compile_string_matcher(&value, &path.field("value_match"))
        }
        Some(ValueMatcher::CustomMatch(custom)) => {
            path.field("custom_match")
                .error(format_args!("matcher {:?} is not supported here", custom.name));
            None
        }
        None => {
            path.error("a matcher is required");
            None
        }
    }
}

/// An address: in the ranges of the matcher `ip`, or written out.
fn compile_ip(
    pb: &SinglePredicate,
    rule: impl Fn(Cidr) -> RbacRule,
    path: &FieldPath<'_>,
) -> Option<RbacRule> {
    match &pb.matcher {
        Some(ValueMatcher::ValueMatch(value)) => {
            use pb::string_matcher::MatchPattern;
            let exact = match &value.match_pattern {
                Some(MatchPattern::Exact(exact)) => exact.parse().ok(),
                _ => None,
            };
            if exact.is_none() {
                path.field("value_match").error("of an address, only an exact one is supported");
            }
            Some(rule(Cidr::new(exact?, u8::MAX)))
        }
        Some(ValueMatcher::CustomMatch(custom)) => {
            let path = path.field("custom_match");
            let any = typed_config(Some(custom), &path)?;
            let path = path.field("typed_config");
            if any_type(any) != IP {
                path.error(format_args!("matcher {:?} is not supported", any_type(any)));
                return None;
            }
            let ip = unpack_any::<Ip>(any, &path)?;
            if ip.cidr_ranges.is_empty() {
                path.field("cidr_ranges").error("value must contain at least 1 item(s)");
                return None;
            }
            if ip.stat_prefix.is_empty() {
                path.field("stat_prefix").error("value length must be at least 1 characters");
            }
            let ranges = ip.cidr_ranges.iter().enumerate();
            let rules = ranges
                .map(|(i, range)| compile_cidr(range, &path.index("cidr_ranges", i)).map(&rule));
            Some(RbacRule::Or(rules.collect::<Option<_>>()?))
        }
        None => {
            path.error("a matcher is required");
            None
        }
    }
}
