//! Operators over metadata, and those of gRPC calls.

use serde_json::{Map, Value};

use super::Ctx;
use super::address::write_display;
use super::json::write_value;
use super::operator::{GrpcStatusFormat, MetadataOf, Shape, text};
use crate::stream_info::{GrpcMessages, StreamInfo};

/// A looked-up piece of metadata.
pub(super) enum Looked<'a> {
    Struct(&'a Map<String, Value>),
    Value(&'a Value),
}

impl<'a> Looked<'a> {
    pub(super) fn up(map: &'a Map<String, Value>, path: &[Box<str>]) -> Option<Self> {
        let Some((first, rest)) = path.split_first() else { return Some(Self::Struct(map)) };
        let mut value = map.get(&**first)?;
        for key in rest {
            value = value.as_object()?.get(&**key)?;
        }
        Some(Self::Value(value))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Shape {
        match self {
            Self::Struct(map) => super::json::write_object(map, out),
            Self::Value(Value::Null) => return Shape::Missing,
            Self::Value(Value::String(string)) => return text(out, Some(string.as_bytes())),
            Self::Value(Value::Number(n)) if super::json::integer(n).is_none() => {
                // Envoy's JSON writer quotes what is no integer; text formats print it bare.
                write_display(&n.as_f64().unwrap_or_default(), out);
                return Shape::Text;
            }
            Self::Value(value) => write_value(value, out),
        }
        Shape::Json
    }
}

pub(super) fn metadata<'a>(
    info: &'a StreamInfo,
    of: MetadataOf,
    namespace: &str,
) -> Option<&'a Map<String, Value>> {
    let compiled = match of {
        MetadataOf::Dynamic => {
            let found = info.metadata.iter().find(|(name, _)| **name == *namespace);
            return found.map(|(_, map)| &**map);
        }
        MetadataOf::Cluster => &info.upstream.cluster_metadata,
        MetadataOf::Host => &info.upstream.host_metadata,
        MetadataOf::Route => &info.route_metadata,
        MetadataOf::VirtualHost => &info.virtual_host_metadata,
    };
    compiled.as_ref()?.get(namespace)?.as_object()
}

pub(super) fn write_grpc_messages(info: &StreamInfo, plain: bool, out: &mut Vec<u8>) -> Shape {
    let Some(GrpcMessages { request, response }) = info.grpc_messages else {
        return Shape::Missing;
    };
    if plain {
        write_display(&format_args!("{request},{response}"), out);
        return Shape::Text;
    }
    // Protobuf's JSON: zero is left out, 64 bits are a string.
    out.push(b'{');
    for (name, count) in [("request", request), ("response", response)] {
        if count > 0 {
            let comma = if out.ends_with(b"{") { "" } else { "," };
            write_display(&format_args!(r#"{comma}"{name}MessageCount":"{count}""#), out);
        }
    }
    out.push(b'}');
    Shape::Json
}

pub(super) fn write_grpc_status(
    ctx: &Ctx<'_>,
    format: GrpcStatusFormat,
    out: &mut Vec<u8>,
) -> Shape {
    let Some(status) = super::grpc::logged_status(ctx) else { return Shape::Missing };
    let name = match format {
        GrpcStatusFormat::Camel => super::grpc::camel(status),
        GrpcStatusFormat::Snake => super::grpc::snake(status),
        GrpcStatusFormat::Number => None,
    };
    match name {
        Some(name) => text(out, Some(name.as_bytes())),
        None => {
            out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
            if matches!(format, GrpcStatusFormat::Number) { Shape::Json } else { Shape::Text }
        }
    }
}
