//! `envoy.config.core.v3.SubstitutionFormatString` to `format::SubstitutionFormat`.

use super::core::struct_to_json;
use super::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as core_pb;
use crate::config::pb::envoy::config::core::v3::data_source::Specifier;
use crate::config::pb::envoy::config::core::v3::substitution_format_string::Format;
use crate::format::{Body, Formatter, JsonFormatter, Options, SubstitutionFormat};

/// Compiles the message; `path` is the field itself.
pub fn compile_substitution_format(
    format: &core_pb::SubstitutionFormatString,
    path: &FieldPath<'_>,
) -> Option<SubstitutionFormat> {
    let options = Options { omit_empty_values: format.omit_empty_values };
    let extensions_known = compile_extensions(&format.formatters, path);
    let body = match format.format.as_ref() {
        None => {
            path.field("format").error("is required");
            None
        }
        #[expect(deprecated, reason = "still honoured, as in Envoy")]
        Some(Format::TextFormat(text)) => {
            Formatter::compile(text, options, &path.field("text_format")).map(Body::Text)
        }
        Some(Format::TextFormatSource(source)) => {
            let path = path.field("text_format_source");
            read_text(source, &path)
                .and_then(|text| Formatter::compile(&text, options, &path))
                .map(Body::Text)
        }
        Some(Format::JsonFormat(object)) => {
            JsonFormatter::compile(&struct_to_json(object), options, &path.field("json_format"))
                .map(Body::Json)
        }
    };
    if format.content_type.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        path.field("content_type").error("contains a line break or NUL");
        return None;
    }
    let content_type =
        (!format.content_type.is_empty()).then(|| format.content_type.clone().into());
    extensions_known.then_some(SubstitutionFormat { body: body?, content_type })
}

/// `formatters`: what they add is built in here, or not implemented.
fn compile_extensions(formatters: &[core_pb::TypedExtensionConfig], path: &FieldPath<'_>) -> bool {
    let mut known = true;
    for (i, formatter) in formatters.iter().enumerate() {
        let url = formatter.typed_config.as_ref().map_or("", |any| any.type_url.as_str());
        let built_in = matches!(
            url.rsplit('/').next().unwrap_or(""),
            "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"
                | "envoy.extensions.formatter.metadata.v3.Metadata"
        );
        if !built_in {
            path.index("formatters", i)
                .field("typed_config")
                .error(format_args!("{url:?} is not implemented"));
            known = false;
        }
    }
    known
}

/// A `DataSource` that holds text.
fn read_text(source: &core_pb::DataSource, path: &FieldPath<'_>) -> Option<String> {
    let bytes = read_data_source(source, path)?;
    path.ok_or_error(String::from_utf8(bytes))
}

/// The bytes of a `DataSource`; files are read once, now.
pub fn read_data_source(source: &core_pb::DataSource, path: &FieldPath<'_>) -> Option<Vec<u8>> {
    if source.watched_directory.is_some() {
        path.field("watched_directory").ignored("files are read once");
    }
    match source.specifier.as_ref() {
        None => {
            path.error("is empty");
            None
        }
        Some(Specifier::InlineString(text)) => Some(text.clone().into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.to_vec()),
        Some(Specifier::Filename(name)) => {
            let read = std::fs::read(name);
            path.field("filename").ok_or_error(read.map_err(|error| format!("{name}: {error}")))
        }
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(value) => Some(value.into_bytes()),
            Err(error) => {
                path.field("environment_variable").error(format_args!("{name}: {error}"));
                None
            }
        },
    }
}
