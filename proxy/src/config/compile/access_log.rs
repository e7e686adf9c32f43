//! `envoy.config.accesslog.v3.AccessLog` to `config::access_log`.

use super::diagnostic::FieldPath;
use crate::config::access_log::AccessLogConfigs;
use crate::config::pb::envoy::config::accesslog::v3 as pb;

/// Compiles a list of access logs. `field` is the proto field name under `path` (`access_log`).
pub fn compile_access_logs(
    _logs: &[pb::AccessLog],
    _field: &str,
    _path: &FieldPath<'_>,
) -> AccessLogConfigs {
    AccessLogConfigs::default()
}
