//! `HeaderValueOption` lists, `*_to_remove` lists and `HeaderMutation` lists to `HeaderOps`.

use super::diagnostic::FieldPath;
use crate::config::header_ops::HeaderOps;
use crate::config::pb::envoy::config::common::mutation_rules::v3 as mutation_rules_pb;
use crate::config::pb::envoy::config::core::v3 as core_pb;

/// Compiles one level's pair of lists. `add_field` and `remove_field` are the proto field names
/// under `path` (`request_headers_to_add`, `request_headers_to_remove`).
pub fn compile_header_ops(
    _add: &[core_pb::HeaderValueOption],
    _add_field: &str,
    _remove: &[String],
    _remove_field: &str,
    _path: &FieldPath<'_>,
) -> HeaderOps {
    HeaderOps::default()
}

/// Compiles a list of mutations, kept in order. `field` is the proto field name under `path`.
pub fn compile_header_mutations(
    _mutations: &[mutation_rules_pb::HeaderMutation],
    _field: &str,
    _path: &FieldPath<'_>,
) -> HeaderOps {
    HeaderOps::default()
}
