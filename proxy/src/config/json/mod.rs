//! Envoy's JSON form of protobuf messages, read and written: configuration in, admin pages out.
//!
//! Both directions go straight between text and wire form, driven by `schema`; there is no tree in between and nothing
//! to load. So a configuration of any size needs, beside its text, the memory of one resource at a time.
//!
//! `load` reads a bootstrap, `from_yaml` any message, `to_json` and `JsonWriter` write.

mod collected;
mod dump;
mod load;
mod mask;
mod parse;
mod reader;
mod scalar;
pub mod schema;
pub mod wire;
mod write;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use dump::{static_routes, whole_bootstrap};
pub use load::{LoadError, LoadedBootstrap, RawResource, Sources, load, load_with};
pub use mask::Mask;
pub use parse::Problem;
pub use reader::Position;
pub use write::{JsonWriter, Style};

use self::parse::Parse;
use self::reader::Reader;
use self::schema::Message;
use crate::config::pb::google::protobuf::Any;

/// A YAML (or JSON) text as a message of the API; unknown fields are refused.
///
/// # Errors
/// Everything that is wrong with it.
pub fn from_yaml<M: prost::Message + prost::Name + Default>(text: &str) -> Result<M, Vec<Problem>> {
    let (message, unknown) = from_yaml_leniently(text)?;
    if unknown.is_empty() { Ok(message) } else { Err(unknown) }
}

/// As `from_yaml`; unknown fields are given back beside the message.
///
/// # Errors
/// Everything else that is wrong with it.
pub fn from_yaml_leniently<M: prost::Message + prost::Name + Default>(
    text: &str,
) -> Result<(M, Vec<Problem>), Vec<Problem>> {
    let wrong = |reason: &str| {
        vec![Problem { at: Position::default(), path: String::new(), reason: reason.to_owned() }]
    };
    let name = M::full_name();
    let message = Message::find(&name).ok_or_else(|| wrong("not a message of the API"))?;
    let mut bytes = Vec::new();
    let (problems, unknown) = Parse::new(Reader::yaml(text)).document(message, &mut bytes);
    if !problems.is_empty() {
        return Err(problems);
    }
    let message = M::decode(bytes.as_slice()).map_err(|error| wrong(&error.to_string()))?;
    Ok((message, unknown))
}

/// A message in JSON, `type_url` being its full name or what an `Any` has.
pub fn to_json(type_url: &str, bytes: &[u8], style: Style) -> String {
    let mut writer = JsonWriter::new(style);
    writer.message(type_url, bytes, None);
    writer.finish()
}

/// The message that a `TypedStruct` stands for. `None`: `any` is no `TypedStruct`, and to be used as it is.
///
/// # Errors
/// The type is unknown, or the structure is not its JSON form; the paths begin inside of `value`.
pub fn resolve_typed_struct(any: &Any) -> Option<Result<Any, Vec<Problem>>> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != "udpa.type.v1.TypedStruct" && name != "xds.type.v3.TypedStruct" {
        return None;
    }
    let type_url = wire::string_field(&any.value, 1).to_owned();
    let Some(message) = Message::by_type_url(&type_url) else {
        let reason = format!("unknown type {type_url:?} in a TypedStruct");
        return Some(Err(vec![Problem { at: Position::default(), path: String::new(), reason }]));
    };
    let mut text = JsonWriter::new(Style { pretty: false, defaults: false, secrets: true });
    let value = wire::Fields(&any.value).flatten().find_map(|field| match field {
        (2, wire::Value::Bytes(value)) => Some(value),
        _ => None,
    });
    text.message("google.protobuf.Struct", value.unwrap_or_default(), None);
    let mut bytes = Vec::new();
    let text = text.finish();
    let (mut problems, unknown) = Parse::new(Reader::json(&text)).document(message, &mut bytes);
    problems.extend(unknown);
    Some(if problems.is_empty() { Ok(Any { type_url, value: bytes }) } else { Err(problems) })
}

/// Sixty-four bits that differ between differing resources, equal in every process of this build.
pub fn hash(bytes: &[u8]) -> u64 {
    use std::hash::Hasher;
    #[expect(
        deprecated,
        reason = "std's one hasher whose keys are fixed and whose output does not depend on them"
    )]
    let mut hasher = std::hash::SipHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Bytes of a vector without its spare room.
fn exact(bytes: Vec<u8>) -> Bytes {
    Bytes::from(bytes.into_boxed_slice())
}
