//! Envoy's JSON form of protobuf messages: configuration in, admin pages out.

pub mod schema;
