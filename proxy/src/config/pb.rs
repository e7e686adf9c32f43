//! The xDS API's protobuf types, so that only `config` names them.

pub use envoy_types::pb::{envoy, google, udpa, xds};
