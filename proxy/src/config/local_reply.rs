//! Compiled `local_reply_config` of a connection manager.

use bytes::Bytes;
use http::StatusCode;

use super::access_log::Filter;
use super::header_ops::HeaderOps;
use crate::format::SubstitutionFormat;

/// How local replies are rewritten. The default rewrites nothing.
#[derive(Debug, Default)]
pub struct LocalReplyConfig {
    /// The first whose filter matches applies.
    pub mappers: Vec<ResponseMapper>,
    /// The body of every local reply that no mapper formats; `None`: the body as it is, `text/plain`.
    pub body_format: Option<SubstitutionFormat>,
}

/// One rewriting rule.
#[derive(Debug)]
pub struct ResponseMapper {
    pub filter: Filter,
    pub status_code: Option<StatusCode>,
    pub body: Option<Bytes>,
    pub body_format_override: Option<SubstitutionFormat>,
    pub headers_to_add: HeaderOps,
}
