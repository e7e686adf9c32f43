//! pb RedirectAction and DirectResponseAction.

use std::sync::Arc;

use http::StatusCode;

use super::action::check_line;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::format::compile_substitution_format;
use crate::config::compile::matcher::compile_regex_replace;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::route::v3 as pb;
use crate::config::route::action::{
    DirectResponseAction, PathRedirect, PathRewrite, RedirectAction, SchemeRedirect,
};

pub(super) fn compile_redirect(
    redirect: &pb::RedirectAction,
    path: &FieldPath<'_>,
) -> Option<RedirectAction> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let bytes = |text: &str| Box::from(text.as_bytes());
    let response_code = match RedirectResponseCode::try_from(redirect.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => {
            path.field("response_code").error("unknown enum value");
            return None;
        }
    };
    let scheme = match &redirect.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => SchemeRedirect::Keep,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => SchemeRedirect::Https,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if scheme.is_empty() => {
            SchemeRedirect::Keep
        }
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => SchemeRedirect::To(bytes(scheme)),
    };
    let port = match u16::try_from(redirect.port_redirect) {
        Ok(port) => (port != 0).then_some(port),
        Err(_) => {
            path.field("port_redirect").error("value must be less than or equal to 65535");
            return None;
        }
    };
    check_line(&redirect.host_redirect, "host_redirect", path);
    match &redirect.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(text)) => check_line(text, "path_redirect", path),
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => check_line(text, "prefix_rewrite", path),
        _ => {}
    }
    let rewrite = match &redirect.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(text)) if text.is_empty() => None,
        Some(PathRewriteSpecifier::PathRedirect(text)) => Some(PathRedirect::Path(bytes(text))),
        Some(PathRewriteSpecifier::PrefixRewrite(text)) if text.is_empty() => None,
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => {
            Some(PathRedirect::Rewrite(PathRewrite::Prefix(bytes(text))))
        }
        Some(PathRewriteSpecifier::RegexRewrite(replace)) => {
            let replace = compile_regex_replace(replace, &path.field("regex_rewrite"))?;
            Some(PathRedirect::Rewrite(PathRewrite::Regex(replace)))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            path.field("path_rewrite").error("not supported");
            return None;
        }
    };
    Some(RedirectAction {
        response_code,
        scheme,
        host: (!redirect.host_redirect.is_empty()).then(|| bytes(&redirect.host_redirect)),
        port,
        path: rewrite,
        strip_query: redirect.strip_query,
    })
}

pub(super) fn compile_direct_response(
    response: &pb::DirectResponseAction,
    max_body: u32,
    path: &FieldPath<'_>,
) -> Option<DirectResponseAction> {
    let status = match u16::try_from(response.status) {
        Ok(status @ 200..600) => StatusCode::from_u16(status).ok()?,
        _ => {
            path.field("status").error("value must be inside range [200, 600)");
            return None;
        }
    };
    let body = match &response.body {
        None => None,
        Some(source) => {
            let path = path.field("body");
            let body = read_data_source(source, &path)?;
            if body.len() as u64 > u64::from(max_body) {
                path.error(format_args!(
                    "response body size is {} bytes; maximum is {max_body}",
                    body.len()
                ));
                return None;
            }
            (!body.is_empty()).then(|| Arc::from(body))
        }
    };
    let body_format = match &response.body_format {
        None => None,
        Some(format) => Some(compile_substitution_format(format, &path.field("body_format"))?),
    };
    Some(DirectResponseAction { status, body, body_format })
}

/// Reads a `DataSource` now; what changes in a file later is seen when the resource is compiled again.
fn read_data_source(source: &core_pb::DataSource, path: &FieldPath<'_>) -> Option<Vec<u8>> {
    use core_pb::data_source::Specifier;
    if source.watched_directory.is_some() {
        path.field("watched_directory").ignored("files are read once");
    }
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Some(text.clone().into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.clone()),
        Some(Specifier::Filename(name)) => {
            let text = std::fs::read(name).map_err(|error| format!("cannot read {name}: {error}"));
            path.field("filename").ok_or_error(text)
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            let path = path.field("environment_variable");
            let value = std::env::var_os(name)
                .ok_or_else(|| format!("Environment variable doesn't exist: {name}"));
            path.ok_or_error(value).map(|v| v.to_string_lossy().into_owned().into_bytes())
        }
        None => {
            path.field("specifier").error("value is required");
            None
        }
    }
}
