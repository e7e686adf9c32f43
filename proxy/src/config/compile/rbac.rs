//! pb `envoy.config.rbac.v3.RBAC` to `config::rbac`. What is not supported rejects: a rule left out would
//! let pass what it was to stop.

use std::sync::Arc;

use super::diagnostic::FieldPath;
use super::matcher::{
    compile_cidr, compile_header_matcher, compile_path_matcher, compile_string_matcher,
    reject_metadata_matcher,
};
use crate::config::cidr::Cidr;
use crate::config::pb::envoy::config::core::v3::CidrRange as PbCidr;
use crate::config::pb::envoy::config::rbac::v3 as pb;
use crate::config::pb::envoy::r#type::v3::Int32Range;
use crate::config::rbac::{RbacAction, RbacEffect, RbacEngine, RbacPolicy, RbacRule};

/// `None` after an error.
pub fn compile_rbac(rbac: &pb::Rbac, path: &FieldPath<'_>) -> Option<RbacEngine> {
    let action = match pb::rbac::Action::try_from(rbac.action) {
        Ok(pb::rbac::Action::Allow) => RbacAction::Allow,
        Ok(pb::rbac::Action::Deny) => RbacAction::Deny,
        Ok(pb::rbac::Action::Log) => RbacAction::Log,
        Err(_) => {
            path.field("action").error("unknown enum value");
            return None;
        }
    };
    if rbac.audit_logging_options.is_some() {
        path.field("audit_logging_options").ignored("audit loggers are not supported");
    }
    let mut names: Vec<_> = rbac.policies.keys().collect();
    names.sort_unstable();
    let policies: Vec<_> = names
        .into_iter()
        .map(|name| compile_policy(name, &rbac.policies[name], &path.key("policies", name)))
        .collect();
    let policies: Option<Box<[_]>> = policies.into_iter().collect();
    Some(RbacEngine { effect: RbacEffect::Shared(action), policies: policies? })
}

fn compile_policy(name: &str, policy: &pb::Policy, path: &FieldPath<'_>) -> Option<RbacPolicy> {
    let mut valid = true;
    for (set, field) in [
        (policy.condition.is_some(), "condition"),
        (policy.checked_condition.is_some(), "checked_condition"),
    ] {
        if set {
            path.field(field).error("CEL conditions are not supported");
            valid = false;
        }
    }
    for (empty, field) in [
        (policy.permissions.is_empty(), "permissions"),
        (policy.principals.is_empty(), "principals"),
    ] {
        if empty {
            path.field(field).error("value must contain at least 1 item(s)");
            valid = false;
        }
    }
    let permissions = compile_permissions(&policy.permissions, "permissions", path);
    let principals = compile_principals(&policy.principals, "principals", path);
    let policy =
        RbacPolicy { name: Arc::from(name), permissions: permissions?, principals: principals? };
    valid.then_some(policy)
}

fn compile_permissions(
    permissions: &[pb::Permission],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[RbacRule]>> {
    let rules: Vec<_> = permissions
        .iter()
        .enumerate()
        .map(|(i, permission)| compile_permission(permission, &path.index(field, i)))
        .collect();
    rules.into_iter().collect()
}

#[expect(deprecated, reason = "metadata is refused by name")]
fn compile_permission(permission: &pb::Permission, path: &FieldPath<'_>) -> Option<RbacRule> {
    use pb::permission::Rule;
    let set = |set: &pb::permission::Set, field: &str| {
        let path = path.field(field);
        if set.rules.is_empty() {
            path.field("rules").error("value must contain at least 1 item(s)");
            return None;
        }
        compile_permissions(&set.rules, "rules", &path)
    };
    match &permission.rule {
        Some(Rule::AndRules(rules)) => set(rules, "and_rules").map(RbacRule::And),
        Some(Rule::OrRules(rules)) => set(rules, "or_rules").map(RbacRule::Or),
        Some(Rule::NotRule(rule)) => compile_permission(rule, &path.field("not_rule"))
            .map(|rule| RbacRule::Not(Box::new(rule))),
        Some(Rule::Any(any)) => compile_any(*any, path),
        Some(Rule::Header(matcher)) => {
            compile_header_matcher(matcher, &path.field("header")).map(RbacRule::Header)
        }
        Some(Rule::UrlPath(matcher)) => {
            compile_path_matcher(matcher, &path.field("url_path")).map(RbacRule::UrlPath)
        }
        Some(Rule::DestinationIp(range)) => {
            compile_cidr(range, &path.field("destination_ip")).map(RbacRule::DestinationIp)
        }
        Some(Rule::DestinationPort(port)) => {
            let port =
                u16::try_from(*port).map_err(|_| "value must be less than or equal to 65535");
            path.field("destination_port").ok_or_error(port).map(RbacRule::DestinationPort)
        }
        Some(Rule::DestinationPortRange(range)) => {
            let range = port_range(range);
            path.field("destination_port_range").ok_or_error(range)
        }
        Some(Rule::RequestedServerName(matcher)) => {
            compile_string_matcher(matcher, &path.field("requested_server_name"))
                .map(RbacRule::RequestedServerName)
        }
        Some(Rule::Metadata(_)) => reject_metadata_matcher(&path.field("metadata")),
        Some(Rule::SourcedMetadata(_)) => reject_metadata_matcher(&path.field("sourced_metadata")),
        Some(Rule::Matcher(_)) => not_supported("matcher", path),
        Some(Rule::UriTemplate(_)) => not_supported("uri_template", path),
        None => {
            path.field("rule").error("value is required");
            None
        }
    }
}

fn compile_principals(
    principals: &[pb::Principal],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[RbacRule]>> {
    let rules: Vec<_> = principals
        .iter()
        .enumerate()
        .map(|(i, principal)| compile_principal(principal, &path.index(field, i)))
        .collect();
    rules.into_iter().collect()
}

#[expect(deprecated, reason = "source_ip still counts, metadata is refused by name")]
fn compile_principal(principal: &pb::Principal, path: &FieldPath<'_>) -> Option<RbacRule> {
    use pb::principal::Identifier;
    let set = |set: &pb::principal::Set, field: &str| {
        let path = path.field(field);
        if set.ids.is_empty() {
            path.field("ids").error("value must contain at least 1 item(s)");
            return None;
        }
        compile_principals(&set.ids, "ids", &path)
    };
    let cidr = |range: &PbCidr, field: &str, rule: fn(Cidr) -> RbacRule| {
        compile_cidr(range, &path.field(field)).map(rule)
    };
    match &principal.identifier {
        Some(Identifier::AndIds(ids)) => set(ids, "and_ids").map(RbacRule::And),
        Some(Identifier::OrIds(ids)) => set(ids, "or_ids").map(RbacRule::Or),
        Some(Identifier::NotId(id)) => {
            compile_principal(id, &path.field("not_id")).map(|rule| RbacRule::Not(Box::new(rule)))
        }
        Some(Identifier::Any(any)) => compile_any(*any, path),
        Some(Identifier::Authenticated(authenticated)) => {
            let path = path.field("authenticated");
            let name = match &authenticated.principal_name {
                Some(name) => Some(compile_string_matcher(name, &path.field("principal_name"))?),
                None => None,
            };
            Some(RbacRule::Authenticated(name))
        }
        Some(Identifier::SourceIp(range)) => cidr(range, "source_ip", RbacRule::SourceIp),
        Some(Identifier::DirectRemoteIp(range)) => {
            cidr(range, "direct_remote_ip", RbacRule::DirectRemoteIp)
        }
        Some(Identifier::RemoteIp(range)) => cidr(range, "remote_ip", RbacRule::RemoteIp),
        Some(Identifier::Header(matcher)) => {
            compile_header_matcher(matcher, &path.field("header")).map(RbacRule::Header)
        }
        Some(Identifier::UrlPath(matcher)) => {
            compile_path_matcher(matcher, &path.field("url_path")).map(RbacRule::UrlPath)
        }
        Some(Identifier::Metadata(_)) => reject_metadata_matcher(&path.field("metadata")),
        Some(Identifier::SourcedMetadata(_)) => {
            reject_metadata_matcher(&path.field("sourced_metadata"))
        }
        Some(Identifier::FilterState(_)) => not_supported("filter_state", path),
        Some(Identifier::Custom(_)) => not_supported("custom", path),
        None => {
            path.field("identifier").error("value is required");
            None
        }
    }
}

fn compile_any(any: bool, path: &FieldPath<'_>) -> Option<RbacRule> {
    if !any {
        path.field("any").error("value must equal true");
        return None;
    }
    Some(RbacRule::Any)
}

fn not_supported(field: &str, path: &FieldPath<'_>) -> Option<RbacRule> {
    path.field(field).error("not supported");
    None
}

fn port_range(range: &Int32Range) -> Result<RbacRule, String> {
    let bound = |value: i32, which: &str| {
        u32::try_from(value)
            .ok()
            .filter(|value| *value <= 65536)
            .ok_or_else(|| format!("range {which} {value} is out of bounds"))
    };
    let (start, end) = (bound(range.start, "start")?, bound(range.end, "end")?);
    if start >= end {
        return Err(format!("range start {start} cannot be greater or equal than range end {end}"));
    }
    Ok(RbacRule::DestinationPortRange { start, end })
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
