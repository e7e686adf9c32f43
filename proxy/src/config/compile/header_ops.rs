//! `HeaderValueOption` lists, `*_to_remove` lists and `HeaderMutation` lists to `HeaderOps`.

use super::diagnostic::FieldPath;
use super::matcher::compile_string_matcher;
use crate::codec::name::HeaderName;
use crate::config::header_ops::{Addition, AppendAction, HeaderOps, Inline, Mutation, Value};
use crate::config::pb::envoy::config::common::mutation_rules::v3 as mutation_rules_pb;
use crate::config::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::format::{Formatter, Options};

/// The longest value that the API admits (validate rule of `HeaderValue.value`).
const MAX_VALUE_BYTES: usize = 16_384;

/// Compiles one level's pair of lists. `add_field` and `remove_field` are the proto field names
/// under `path` (`request_headers_to_add`, `request_headers_to_remove`).
pub fn compile_header_ops(
    add: &[core_pb::HeaderValueOption],
    add_field: &str,
    remove: &[String],
    remove_field: &str,
    path: &FieldPath<'_>,
) -> HeaderOps {
    let additions = add
        .iter()
        .enumerate()
        .filter_map(|(i, option)| compile_addition(option, &path.index(add_field, i)));
    let removals = remove
        .iter()
        .enumerate()
        .filter_map(|(i, name)| compile_removal(name, &path.index(remove_field, i)));
    HeaderOps {
        additions: additions.collect(),
        removals: removals.collect(),
        mutations: Box::default(),
    }
}

/// Compiles a list of mutations, kept in order. `field` is the proto field name under `path`.
pub fn compile_header_mutations(
    mutations: &[mutation_rules_pb::HeaderMutation],
    field: &str,
    path: &FieldPath<'_>,
) -> HeaderOps {
    let mutations = mutations
        .iter()
        .enumerate()
        .filter_map(|(i, mutation)| compile_mutation(mutation, &path.index(field, i)));
    HeaderOps { mutations: mutations.collect(), ..HeaderOps::default() }
}

fn compile_mutation(
    mutation: &mutation_rules_pb::HeaderMutation,
    path: &FieldPath<'_>,
) -> Option<Mutation> {
    match mutation.action.as_ref() {
        None => {
            path.field("action").error("is required");
            None
        }
        Some(Action::Append(option)) => {
            compile_addition(option, &path.field("append")).map(Mutation::Append)
        }
        Some(Action::Remove(name)) => {
            let path = path.field("remove");
            let name = path.ok_or_error(HeaderName::parse(name))?;
            if name.is_pseudo() && name.as_str() != ":authority" {
                path.error("a request without this pseudo-header cannot be forwarded");
                return None;
            }
            Some(Mutation::Remove(name))
        }
        Some(Action::RemoveOnMatch(remove)) => {
            let path = path.field("remove_on_match");
            let path = path.field("key_matcher");
            let Some(matcher) = &remove.key_matcher else {
                path.error("is required");
                return None;
            };
            compile_string_matcher(matcher, &path).map(Mutation::RemoveOnMatch)
        }
    }
}

fn compile_removal(name: &str, path: &FieldPath<'_>) -> Option<HeaderName> {
    let name = path.ok_or_error(HeaderName::parse(name))?;
    if name.is_pseudo() || name.as_str() == "host" {
        path.error(":-prefixed or host headers may not be removed");
        return None;
    }
    Some(name)
}

fn compile_addition(option: &core_pb::HeaderValueOption, path: &FieldPath<'_>) -> Option<Addition> {
    let action = compile_action(option, path);
    let header_path = path.field("header");
    let Some(header) = &option.header else {
        header_path.error("is required");
        return None;
    };
    let key_path = header_path.field("key");
    let name = key_path.ok_or_error(HeaderName::parse(&header.key));
    let name = name.filter(|name| {
        let special = name.is_pseudo() || name.as_str() == "host";
        if special {
            key_path.error(":-prefixed or host headers may not be modified");
        }
        !special
    });
    if !header.raw_value.is_empty() {
        header_path.field("raw_value").ignored("values are taken from `value` here, as in Envoy");
    }
    let value = compile_value(&header.value, &header_path.field("value"));
    let name = name?;
    Some(Addition {
        inline: Inline::of(&name),
        name,
        value: value?,
        action: action?,
        keep_empty: option.keep_empty_value,
    })
}

fn compile_action(
    option: &core_pb::HeaderValueOption,
    path: &FieldPath<'_>,
) -> Option<AppendAction> {
    #[expect(deprecated, reason = "`append` is still honoured, as in Envoy")]
    let append = option.append.as_ref().map(|append| append.value);
    let path = path.field("append_action");
    let Ok(action) = HeaderAppendAction::try_from(option.append_action) else {
        path.error("is no value of the enum");
        return None;
    };
    Some(match (append, action) {
        (Some(_), action) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
            path.error("both append and append_action are set and it's not allowed");
            return None;
        }
        (Some(false), _) => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (_, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    })
}

fn compile_value(value: &str, path: &FieldPath<'_>) -> Option<Value> {
    if value.len() > MAX_VALUE_BYTES {
        path.error(format_args!("is longer than {MAX_VALUE_BYTES} bytes"));
        return None;
    }
    if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        path.error("contains a line break or NUL");
        return None;
    }
    let value = translate_legacy(value);
    let options = Options { omit_empty_values: true };
    let formatter = Formatter::compile(&value, options, path)?;
    Some(match formatter.as_literal() {
        Some(literal) => Value::Static(literal.into()),
        None => Value::Format(formatter),
    })
}

/// Forms that only header values know: `%X_METADATA(["a", "b"])%` and `%PER_REQUEST_STATE(key)%`.
fn translate_legacy(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("%PER_REQUEST_STATE(")
            && let Some((key, after)) = after.split_once(")%")
        {
            out.push_str("%FILTER_STATE(");
            out.push_str(key);
            out.push_str(":PLAIN)%");
            rest = after;
        } else if let Some((command, keys, after)) = legacy_metadata(rest) {
            out.push_str(command);
            out.push_str(&keys.join(":"));
            out.push_str(")%");
            rest = after;
        } else {
            // An escaped percent sign counts as one, so that its second half starts nothing.
            let len = if rest.starts_with("%%") { 2 } else { 1 };
            out.push_str(&rest[..len]);
            rest = &rest[len..];
        }
    }
    out.push_str(rest);
    out
}

/// The command with its bracket, the keys of its JSON list, and what follows.
fn legacy_metadata(text: &str) -> Option<(&str, Vec<String>, &str)> {
    let open = text.find('(')?;
    let (command, after) = text.split_at(open + 1);
    if !matches!(command, "%UPSTREAM_METADATA(" | "%DYNAMIC_METADATA(" | "%CLUSTER_METADATA(") {
        return None;
    }
    let (keys, after) = after.split_once(")%")?;
    if !keys.trim_start().starts_with('[') {
        return None;
    }
    Some((command, serde_json::from_str(keys).ok()?, after))
}
