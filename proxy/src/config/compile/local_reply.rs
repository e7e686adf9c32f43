//! `HttpConnectionManager.local_reply_config` to `config::local_reply`.

use http::StatusCode;

use super::access_log::compile_filter;
use super::diagnostic::FieldPath;
use super::format::{compile_substitution_format, read_data_source};
use super::header_ops::compile_header_ops;
use crate::config::local_reply::{LocalReplyConfig, ResponseMapper};
use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;

/// Compiles the message; `path` is the field itself.
pub fn compile_local_reply_config(
    config: &hcm_pb::LocalReplyConfig,
    path: &FieldPath<'_>,
) -> LocalReplyConfig {
    let mappers = config
        .mappers
        .iter()
        .enumerate()
        .filter_map(|(i, mapper)| compile_mapper(mapper, &path.index("mappers", i)));
    let body_format = config
        .body_format
        .as_ref()
        .and_then(|format| compile_substitution_format(format, &path.field("body_format")));
    LocalReplyConfig { mappers: mappers.collect(), body_format }
}

fn compile_mapper(mapper: &hcm_pb::ResponseMapper, path: &FieldPath<'_>) -> Option<ResponseMapper> {
    let filter = match &mapper.filter {
        Some(filter) => compile_filter(filter, &path.field("filter")),
        None => {
            path.field("filter").error("is required");
            None
        }
    };
    let status_code = mapper.status_code.as_ref().and_then(|code| {
        let status = u16::try_from(code.value).ok().filter(|code| (200..600).contains(code));
        if status.is_none() {
            path.field("status_code").error("is not in [200, 600)");
        }
        StatusCode::from_u16(status?).ok()
    });
    let body = mapper.body.as_ref().and_then(|body| read_data_source(body, &path.field("body")));
    let body_format_override = mapper.body_format_override.as_ref().and_then(|format| {
        compile_substitution_format(format, &path.field("body_format_override"))
    });
    let headers_to_add =
        compile_header_ops(&mapper.headers_to_add, "headers_to_add", &[], "", path);
    Some(ResponseMapper {
        filter: filter?,
        status_code,
        body: body.map(Into::into),
        body_format_override,
        headers_to_add,
    })
}
