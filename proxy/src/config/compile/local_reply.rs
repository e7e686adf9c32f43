//! `HttpConnectionManager.local_reply_config` to `config::local_reply`.

use super::diagnostic::FieldPath;
use crate::config::local_reply::LocalReplyConfig;
use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;

/// Compiles the message; `path` is the field itself.
pub fn compile_local_reply_config(
    _config: &hcm_pb::LocalReplyConfig,
    _path: &FieldPath<'_>,
) -> LocalReplyConfig {
    LocalReplyConfig::default()
}
