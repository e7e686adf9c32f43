//! `envoy.config.core.v3.KeyValueMutation` on the query of a request's path, for `header_mutation`.
//!
//! As in Envoy the parameters come out sorted by name. Not as in Envoy: what is not changed keeps its escapes,
//! and new values are escaped where a query cannot have them; Envoy decodes `%0d%0a` into the path it sends.

use std::borrow::Cow;

use crate::codec::head::RequestHead;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::matcher::query::parameters;
use crate::config::pb::envoy::config::core::v3 as pb;
use crate::config::pb::google::protobuf::value::Kind;
use crate::format::{Ctx, Formatter, Options};
use crate::stream_info::StreamInfo;

/// One change of the query.
#[derive(Debug)]
pub enum QueryMutation {
    Append { name: Box<[u8]>, value: Formatter, action: QueryAppendAction },
    Remove(Box<[u8]>),
}

/// `KeyValueAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryAppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// Compiles a repeated `KeyValueMutation` field of `path`'s message; reports every bad one.
pub fn compile_query_mutations(
    mutations: &[pb::KeyValueMutation],
    field: &str,
    path: &FieldPath<'_>,
) -> Option<Box<[QueryMutation]>> {
    let compiled: Vec<_> = mutations
        .iter()
        .enumerate()
        .map(|(i, mutation)| compile_query_mutation(mutation, &path.index(field, i)))
        .collect();
    compiled.into_iter().collect()
}

fn compile_query_mutation(
    mutation: &pb::KeyValueMutation,
    path: &FieldPath<'_>,
) -> Option<QueryMutation> {
    use pb::key_value_append::KeyValueAppendAction as Action;
    let Some(append) = &mutation.append else {
        if mutation.remove.is_empty() {
            path.error("No mutation specified.");
            return None;
        }
        return Some(QueryMutation::Remove(mutation.remove.as_bytes().into()));
    };
    let path = path.field("append");
    let Some(record) = &append.record else {
        path.field("record").error("No record specified for parameter mutation.");
        return None;
    };
    let Some(Kind::StringValue(value)) = record.value.as_ref().and_then(|v| v.kind.as_ref()) else {
        path.field("record").error("Only string value is allowed for parameter.");
        return None;
    };
    let action = match Action::try_from(append.action) {
        Ok(Action::AppendIfExistsOrAdd) => QueryAppendAction::AppendIfExistsOrAdd,
        Ok(Action::AddIfAbsent) => QueryAppendAction::AddIfAbsent,
        Ok(Action::OverwriteIfExistsOrAdd) => QueryAppendAction::OverwriteIfExistsOrAdd,
        Ok(Action::OverwriteIfExists) => QueryAppendAction::OverwriteIfExists,
        Err(_) => {
            path.field("action").error("unknown enum value");
            return None;
        }
    };
    let options = Options { omit_empty_values: true };
    let value = Formatter::compile(value, options, &path.field("record").field("value"))?;
    Some(QueryMutation::Append { name: record.key.as_bytes().into(), value, action })
}

/// A parameter as it stands in the path.
type Parameter<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Applies the changes in order.
pub fn mutate_query(mutations: &[QueryMutation], head: &mut RequestHead, info: &StreamInfo) {
    if mutations.is_empty() {
        return;
    }
    let Some(path) = head.path() else { return };
    let ctx = Ctx { request: Some(head), ..Ctx::new(info) };
    let mut found: Vec<Parameter<'_>> =
        parameters(path).map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value))).collect();
    for mutation in mutations {
        match mutation {
            QueryMutation::Remove(name) => found.retain(|(n, _)| *decoded(n) != **name),
            QueryMutation::Append { name, value, action } => {
                let exists = found.iter().any(|(n, _)| *decoded(n) == **name);
                match (action, exists) {
                    (QueryAppendAction::AddIfAbsent, true)
                    | (QueryAppendAction::OverwriteIfExists, false) => continue,
                    (
                        QueryAppendAction::OverwriteIfExists
                        | QueryAppendAction::OverwriteIfExistsOrAdd,
                        true,
                    ) => found.retain(|(n, _)| *decoded(n) != **name),
                    _ => {}
                }
                let mut text = Vec::new();
                value.write(&ctx, &mut text);
                found.push((Cow::Owned(escaped(name)), Cow::Owned(escaped(&text))));
            }
        }
    }
    // Stable: values of one name keep their order.
    found.sort_by(|(a, _), (b, _)| decoded(a).cmp(&decoded(b)));
    let plain = path.split(|b| *b == b'?').next().unwrap_or_default();
    let mut new = plain.to_vec();
    for (i, (name, value)) in found.iter().enumerate() {
        new.push(if i == 0 { b'?' } else { b'&' });
        new.extend_from_slice(name);
        new.push(b'=');
        new.extend_from_slice(value);
    }
    head.set_path(&new);
}

/// `%XX` decoded; what is no escape stays.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while let Some(&byte) = text.get(i) {
        let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
        match (byte, digit(i + 1), digit(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
            }
            _ => {
                out.push(byte);
                i += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Bytes that would end the parameter, the query or the request line become `%XX`.
fn escaped(text: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_graphic() && !matches!(byte, b'&' | b'#' | b'%') {
            out.push(*byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::codec::head::Protocol;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::pb::google::protobuf::Value;
    use crate::stream_info::test_info;

    fn append(name: &str, value: &str, action: QueryAppendAction) -> pb::KeyValueMutation {
        let value = Value { kind: Some(Kind::StringValue(value.into())) };
        let record = pb::KeyValuePair { key: name.into(), value: Some(value) };
        pb::KeyValueMutation {
            append: Some(pb::KeyValueAppend {
                record: Some(record),
                action: action as i32,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn mutated(path: &str, mutations: &[pb::KeyValueMutation]) -> String {
        let found = Diagnostics::new("t");
        let compiled = compile_query_mutations(mutations, "m", &found.root()).unwrap();
        let mut head = RequestHead::new(Method::GET, Protocol::Http11);
        head.set_path(path.as_bytes());
        head.headers.push_raw(b"x-q", b"q v\r");
        mutate_query(&compiled, &mut head, &test_info());
        head.path_str().to_owned()
    }

    #[test]
    fn every_action() {
        use QueryAppendAction::*;
        let one = |path, name, action| mutated(path, &[append(name, "new", action)]);
        assert_eq!(one("/", "a", AppendIfExistsOrAdd), "/?a=new");
        assert_eq!(one("/?a=1&b", "a", AppendIfExistsOrAdd), "/?a=1&a=new&b=");
        assert_eq!(one("/?a=1", "a", AddIfAbsent), "/?a=1");
        assert_eq!(one("/?b=1", "a", AddIfAbsent), "/?a=new&b=1");
        assert_eq!(one("/?a=1&a=2", "a", OverwriteIfExists), "/?a=new");
        assert_eq!(one("/?b=1", "a", OverwriteIfExists), "/?b=1");
        assert_eq!(one("/?%61=1", "a", OverwriteIfExistsOrAdd), "/?a=new");
        let remove = pb::KeyValueMutation { remove: "gone".into(), ..Default::default() };
        assert_eq!(mutated("/x?gone=1&gone", &[remove]), "/x");
    }

    #[test]
    fn nothing_gets_out_of_its_parameter() {
        let add = append("z", "%REQ(x-q)%&a=#", QueryAppendAction::AppendIfExistsOrAdd);
        assert_eq!(mutated("/?p=%0d%0a%41", &[add]), "/?p=%0d%0a%41&z=q%20v%0D%26a=%23");
    }

    #[test]
    fn problems_are_reported() {
        let found = Diagnostics::new("t");
        let empty = [pb::KeyValueMutation::default()];
        assert!(compile_query_mutations(&empty, "m", &found.root()).is_none());
        assert_eq!(found.into_vec()[0].path, "m[0]");
    }
}
