//! `envoy.config.accesslog.v3.AccessLog` to `config::access_log`.

use super::core::{any_type, compile_fraction, some_str, struct_to_json, unpack_any};
use super::diagnostic::FieldPath;
use super::format::compile_substitution_format;
use super::matcher::{compile_header_matcher, compile_string_matcher};
use crate::config::access_log::{
    AccessLogConfig, AccessLogConfigs, Comparison, ComparisonOp, Filter, MetadataMatcher, Target,
    ValueMatcher,
};
use crate::config::core::{Fraction, RuntimeFraction};
use crate::config::pb::envoy::config::accesslog::v3 as pb;
use crate::config::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use crate::config::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use crate::config::pb::envoy::data::accesslog::v3::AccessLogType as PbLogType;
use crate::config::pb::envoy::extensions::access_loggers::file::v3 as file_pb;
use crate::config::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use crate::config::pb::envoy::extensions::access_loggers::stream::v3 as stream_pb;
use crate::config::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::config::pb::google::protobuf as wkt;
use crate::format::{
    AccessLogType, Body, DEFAULT_ACCESS_LOG_FORMAT, Formatter, JsonFormatter, Options,
    SubstitutionFormat,
};
use crate::stream_info::ResponseFlags;

/// Compiles a list of access logs. `field` is the proto field name under `path` (`access_log`).
pub fn compile_access_logs(
    logs: &[pb::AccessLog],
    field: &str,
    path: &FieldPath<'_>,
) -> AccessLogConfigs {
    let compiled = logs
        .iter()
        .enumerate()
        .filter_map(|(i, log)| compile_access_log(log, &path.index(field, i)));
    AccessLogConfigs(compiled.collect())
}

fn compile_access_log(log: &pb::AccessLog, path: &FieldPath<'_>) -> Option<AccessLogConfig> {
    let filter = match &log.filter {
        None => Some(None),
        Some(filter) => compile_filter(filter, &path.field("filter")).map(Some),
    };
    let typed_path = path.field("typed_config");
    let Some(ConfigType::TypedConfig(any)) = &log.config_type else {
        typed_path.error("is required");
        return None;
    };
    let (target, format) = compile_sink(any, &typed_path)?;
    Some(AccessLogConfig { filter: filter?, target, format: format? })
}

type Sink = (Target, Option<SubstitutionFormat>);

fn compile_sink(any: &wkt::Any, path: &FieldPath<'_>) -> Option<Sink> {
    match any_type(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let file: file_pb::FileAccessLog = unpack_any(any, path)?;
            if file.path.is_empty() {
                path.field("path").error("is empty");
                return None;
            }
            check_file(&file.path, &path.field("path"));
            let format = compile_file_format(file.access_log_format.as_ref(), path);
            Some((Target::File(file.path.as_str().into()), format))
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let log: stream_pb::StdoutAccessLog = unpack_any(any, path)?;
            let format = log.access_log_format.map(|format| match format {
                stream_pb::stdout_access_log::AccessLogFormat::LogFormat(format) => format,
            });
            Some((Target::Stdout, compile_log_format(format.as_ref(), path)))
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let log: stream_pb::StderrAccessLog = unpack_any(any, path)?;
            let format = log.access_log_format.map(|format| match format {
                stream_pb::stderr_access_log::AccessLogFormat::LogFormat(format) => format,
            });
            Some((Target::Stderr, compile_log_format(format.as_ref(), path)))
        }
        other => {
            path.error(format_args!("access logger {other:?} is not implemented"));
            None
        }
    }
}

/// As in Envoy, a file that cannot be opened rejects the configuration, and one that is not there is made.
/// Pipes and devices are not touched: opening one may wait.
fn check_file(name: &str, path: &FieldPath<'_>) {
    let is_special = std::fs::metadata(name).is_ok_and(|meta| !meta.is_file() && !meta.is_dir());
    if is_special {
        return;
    }
    if let Err(error) = std::fs::OpenOptions::new().append(true).create(true).open(name) {
        path.error(format_args!("unable to open file {name:?}: {error}"));
    }
}

fn compile_log_format(
    format: Option<&crate::config::pb::envoy::config::core::v3::SubstitutionFormatString>,
    path: &FieldPath<'_>,
) -> Option<SubstitutionFormat> {
    match format {
        Some(format) => compile_substitution_format(format, &path.field("log_format")),
        None => text(DEFAULT_ACCESS_LOG_FORMAT, path),
    }
}

fn text(format: &str, path: &FieldPath<'_>) -> Option<SubstitutionFormat> {
    let formatter = Formatter::compile(format, Options::default(), path)?;
    Some(SubstitutionFormat { body: Body::Text(formatter), content_type: None })
}

#[expect(deprecated, reason = "the old fields are still honoured, as in Envoy")]
fn compile_file_format(
    format: Option<&AccessLogFormat>,
    path: &FieldPath<'_>,
) -> Option<SubstitutionFormat> {
    let json = |object, field| {
        let (object, path) = (struct_to_json(object), path.field(field));
        let formatter = JsonFormatter::compile(&object, Options::default(), &path)?;
        Some(SubstitutionFormat { body: Body::Json(formatter), content_type: None })
    };
    match format {
        None => compile_log_format(None, path),
        Some(AccessLogFormat::LogFormat(format)) => compile_log_format(Some(format), path),
        // An empty string is the default format, as in Envoy.
        Some(AccessLogFormat::Format(format)) if format.is_empty() => {
            compile_log_format(None, path)
        }
        Some(AccessLogFormat::Format(format)) => text(format, &path.field("format")),
        // Envoy 1.40 keeps types in both.
        Some(AccessLogFormat::JsonFormat(object)) => json(object, "json_format"),
        Some(AccessLogFormat::TypedJsonFormat(object)) => json(object, "typed_json_format"),
    }
}

/// Compiles one filter; `path` is the field itself. Also for `local_reply_config`.
pub fn compile_filter(filter: &pb::AccessLogFilter, path: &FieldPath<'_>) -> Option<Filter> {
    let Some(specifier) = &filter.filter_specifier else {
        path.field("filter_specifier").error("is required");
        return None;
    };
    match specifier {
        FilterSpecifier::StatusCodeFilter(filter) => {
            let path = path.field("status_code_filter");
            compile_comparison(filter.comparison.as_ref(), &path).map(Filter::StatusCode)
        }
        FilterSpecifier::DurationFilter(filter) => {
            let path = path.field("duration_filter");
            compile_comparison(filter.comparison.as_ref(), &path).map(Filter::Duration)
        }
        FilterSpecifier::NotHealthCheckFilter(_) => Some(Filter::NotHealthCheck),
        FilterSpecifier::TraceableFilter(_) => Some(Filter::Traceable),
        FilterSpecifier::RuntimeFilter(filter) => {
            compile_runtime_filter(filter, &path.field("runtime_filter"))
        }
        FilterSpecifier::AndFilter(filter) => {
            compile_filters(&filter.filters, &path.field("and_filter")).map(Filter::And)
        }
        FilterSpecifier::OrFilter(filter) => {
            compile_filters(&filter.filters, &path.field("or_filter")).map(Filter::Or)
        }
        FilterSpecifier::HeaderFilter(filter) => {
            let path = path.field("header_filter");
            let path = path.field("header");
            let Some(header) = &filter.header else {
                path.error("is required");
                return None;
            };
            compile_header_matcher(header, &path).map(Filter::Header)
        }
        FilterSpecifier::ResponseFlagFilter(filter) => {
            compile_response_flags(&filter.flags, &path.field("response_flag_filter"))
        }
        FilterSpecifier::GrpcStatusFilter(filter) => {
            compile_grpc_status(filter, &path.field("grpc_status_filter"))
        }
        FilterSpecifier::MetadataFilter(filter) => {
            compile_metadata_filter(filter, &path.field("metadata_filter"))
        }
        FilterSpecifier::LogTypeFilter(filter) => {
            compile_log_types(filter, &path.field("log_type_filter"))
        }
        FilterSpecifier::ExtensionFilter(filter) => {
            path.field("extension_filter")
                .error(format_args!("filter {:?} is not implemented", filter.name));
            None
        }
    }
}

fn compile_filters(filters: &[pb::AccessLogFilter], path: &FieldPath<'_>) -> Option<Box<[Filter]>> {
    if filters.len() < 2 {
        path.field("filters").error("needs at least two");
        return None;
    }
    let compiled: Vec<Option<Filter>> = filters
        .iter()
        .enumerate()
        .map(|(i, filter)| compile_filter(filter, &path.index("filters", i)))
        .collect();
    compiled.into_iter().collect()
}

fn compile_comparison(
    comparison: Option<&pb::ComparisonFilter>,
    path: &FieldPath<'_>,
) -> Option<Comparison> {
    let path = path.field("comparison");
    let Some(comparison) = comparison else {
        path.error("is required");
        return None;
    };
    let op = match pb::comparison_filter::Op::try_from(comparison.op) {
        Ok(pb::comparison_filter::Op::Eq) => ComparisonOp::Eq,
        Ok(pb::comparison_filter::Op::Ge) => ComparisonOp::Ge,
        Ok(pb::comparison_filter::Op::Le) => ComparisonOp::Le,
        Ok(pb::comparison_filter::Op::Ne) => ComparisonOp::Ne,
        Err(_) => {
            path.field("op").error("is no value of the enum");
            return None;
        }
    };
    let path = path.field("value");
    let Some(value) = &comparison.value else {
        path.error("is required");
        return None;
    };
    let runtime_key = some_str(&value.runtime_key);
    Some(Comparison { op, value: value.default_value, runtime_key })
}

fn compile_runtime_filter(filter: &pb::RuntimeFilter, path: &FieldPath<'_>) -> Option<Filter> {
    if filter.runtime_key.is_empty() {
        path.field("runtime_key").error("is empty");
        return None;
    }
    let default = match &filter.percent_sampled {
        Some(percent) => compile_fraction(percent, &path.field("percent_sampled"))?,
        None => Fraction::NEVER,
    };
    let runtime_key = Some(filter.runtime_key.as_str().into());
    Some(Filter::Runtime {
        percent: RuntimeFraction { runtime_key, default },
        independent: filter.use_independent_randomness,
    })
}

fn compile_response_flags(names: &[String], path: &FieldPath<'_>) -> Option<Filter> {
    if names.is_empty() {
        return Some(Filter::ResponseFlag(None));
    }
    let mut flags = ResponseFlags::default();
    let mut complete = true;
    for (i, name) in names.iter().enumerate() {
        match ResponseFlags::from_short(name) {
            Some(flag) => flags.insert(flag),
            None => {
                path.index("flags", i).error(format_args!("{name:?} is no response flag"));
                complete = false;
            }
        }
    }
    complete.then_some(Filter::ResponseFlag(Some(flags)))
}

fn compile_grpc_status(filter: &pb::GrpcStatusFilter, path: &FieldPath<'_>) -> Option<Filter> {
    let mut statuses = Vec::new();
    for (i, status) in filter.statuses.iter().enumerate() {
        if !(0..=16).contains(status) {
            path.index("statuses", i).error("is no value of the enum");
            return None;
        }
        statuses.push(i64::from(*status));
    }
    Some(Filter::GrpcStatus { statuses: statuses.into(), exclude: filter.exclude })
}

fn compile_log_types(filter: &pb::LogTypeFilter, path: &FieldPath<'_>) -> Option<Filter> {
    let mut types = Vec::new();
    for (i, value) in filter.types.iter().enumerate() {
        match PbLogType::try_from(*value) {
            Ok(value) => types.push(log_type(value)),
            Err(_) => {
                path.index("types", i).error("is no value of the enum");
                return None;
            }
        }
    }
    Some(Filter::LogType { types: types.into(), exclude: filter.exclude })
}

fn log_type(value: PbLogType) -> AccessLogType {
    match value {
        PbLogType::NotSet => AccessLogType::NotSet,
        PbLogType::TcpUpstreamConnected => AccessLogType::TcpUpstreamConnected,
        PbLogType::TcpPeriodic => AccessLogType::TcpPeriodic,
        PbLogType::TcpConnectionStart => AccessLogType::TcpConnectionStart,
        PbLogType::TcpConnectionEnd => AccessLogType::TcpConnectionEnd,
        PbLogType::DownstreamStart => AccessLogType::DownstreamStart,
        PbLogType::DownstreamPeriodic => AccessLogType::DownstreamPeriodic,
        PbLogType::DownstreamEnd => AccessLogType::DownstreamEnd,
        PbLogType::UpstreamPoolReady => AccessLogType::UpstreamPoolReady,
        PbLogType::UpstreamPeriodic => AccessLogType::UpstreamPeriodic,
        PbLogType::UpstreamEnd => AccessLogType::UpstreamEnd,
        PbLogType::DownstreamTunnelSuccessfullyEstablished => {
            AccessLogType::DownstreamTunnelSuccessfullyEstablished
        }
        PbLogType::UdpTunnelUpstreamConnected => AccessLogType::UdpTunnelUpstreamConnected,
        PbLogType::UdpPeriodic => AccessLogType::UdpPeriodic,
        PbLogType::UdpSessionEnd => AccessLogType::UdpSessionEnd,
    }
}

fn compile_metadata_filter(filter: &pb::MetadataFilter, path: &FieldPath<'_>) -> Option<Filter> {
    let match_if_not_found = filter.match_if_key_not_found.as_ref().is_none_or(|b| b.value);
    let path = path.field("matcher");
    let Some(matcher) = &filter.matcher else {
        return Some(Filter::Metadata { matcher: None, match_if_not_found });
    };
    let mut keys = Vec::with_capacity(matcher.path.len());
    for (i, segment) in matcher.path.iter().enumerate() {
        match &segment.segment {
            Some(matcher_pb::metadata_matcher::path_segment::Segment::Key(key)) => {
                keys.push(key.as_str().into());
            }
            None => path.index("path", i).error("is required"),
        }
    }
    if keys.is_empty() {
        path.field("path").error("needs at least one segment");
        return None;
    }
    let value_path = path.field("value");
    let Some(value) = &matcher.value else {
        value_path.error("is required");
        return None;
    };
    let matcher = MetadataMatcher {
        namespace: matcher.filter.as_str().into(),
        path: keys.into(),
        value: compile_value_matcher(value, &value_path)?,
        invert: matcher.invert,
    };
    Some(Filter::Metadata { matcher: Some(matcher), match_if_not_found })
}

fn compile_value_matcher(
    value: &matcher_pb::ValueMatcher,
    path: &FieldPath<'_>,
) -> Option<ValueMatcher> {
    use matcher_pb::double_matcher::MatchPattern as Number;
    use matcher_pb::list_matcher::MatchPattern as List;
    use matcher_pb::value_matcher::MatchPattern;
    match value.match_pattern.as_ref() {
        Some(MatchPattern::NullMatch(_)) => Some(ValueMatcher::Null),
        Some(MatchPattern::DoubleMatch(number)) => match number.match_pattern.as_ref() {
            Some(Number::Exact(value)) => {
                Some(ValueMatcher::Number { from: *value, to: *value, exact: true })
            }
            Some(Number::Range(range)) => {
                Some(ValueMatcher::Number { from: range.start, to: range.end, exact: false })
            }
            None => {
                path.field("double_match").error("is empty");
                None
            }
        },
        Some(MatchPattern::StringMatch(matcher)) => {
            compile_string_matcher(matcher, &path.field("string_match")).map(ValueMatcher::String)
        }
        Some(MatchPattern::BoolMatch(value)) => Some(ValueMatcher::Bool(*value)),
        Some(MatchPattern::PresentMatch(value)) => Some(ValueMatcher::Present(*value)),
        Some(MatchPattern::ListMatch(list)) => match list.match_pattern.as_ref() {
            Some(List::OneOf(one)) => {
                let path = path.field("list_match");
                let one = compile_value_matcher(one, &path.field("one_of"))?;
                Some(ValueMatcher::List(Box::new(one)))
            }
            None => {
                path.field("list_match").error("is empty");
                None
            }
        },
        Some(MatchPattern::OrMatch(or)) => {
            let path = path.field("or_match");
            let compiled: Vec<Option<ValueMatcher>> = or
                .value_matchers
                .iter()
                .enumerate()
                .map(|(i, value)| compile_value_matcher(value, &path.index("value_matchers", i)))
                .collect();
            compiled.into_iter().collect::<Option<_>>().map(ValueMatcher::Or)
        }
        None => {
            path.field("match_pattern").error("is required");
            None
        }
    }
}
