//! `envoy.config.core.v3.SubstitutionFormatString` to `format::SubstitutionFormat`.

use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::format::SubstitutionFormat;

/// Compiles the message; `path` is the field itself.
pub fn compile_substitution_format(
    _format: &core_pb::SubstitutionFormatString,
    _path: &FieldPath<'_>,
) -> Option<SubstitutionFormat> {
    None
}
