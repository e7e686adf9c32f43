//! Format strings to pieces. `%%` is a percent sign; `%COMMAND(PARAMETERS):LENGTH%` is an operator.
//!
//! Errors say what Envoy's say for the same string.

use serde_json::Value;

use super::operator::{
    Attempted, GrpcStatusFormat, Kind, MetadataOf, Operator, Part, Precision, Source, TimePoint,
};
use super::table;
use super::time::TimeFormat;
use crate::codec::name::HeaderName;
use crate::config::compile::diagnostic::FieldPath;

/// Part of a text format.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Literal(Box<[u8]>),
    Operator(Operator),
}

/// Why a format is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error(
        "incorrect configuration: {format}. Couldn't find valid command at position {position}"
    )]
    NoCommand { format: String, position: usize },
    #[error("not supported field in StreamInfo: {0}")]
    UnknownCommand(String),
    #[error("{0} is not implemented")]
    NotImplemented(&'static str),
    #[error("{0} does not take any parameters or length")]
    CommandOnly(String),
    #[error("{0} requires parameters")]
    ParametersRequired(String),
    #[error("{0} does not allow length to be specified")]
    NoLength(String),
    #[error("more than 1 alternative header specified in token: {0}")]
    Alternatives(String),
    #[error("invalid header configuration. Format string contains invalid characters")]
    HeaderName,
    #[error("invalid header configuration. Format string contains newline")]
    Newline,
    #[error("{command}: invalid option {option:?}, only {allowed} are allowed")]
    Option { command: &'static str, option: String, allowed: &'static str },
    #[error("invalid common duration configuration: {0}")]
    CommonDuration(String),
    #[error("invalid common duration precision: {0}")]
    Precision(String),
    #[error("invalid filter state configuration, key cannot be empty")]
    FilterStateKey,
    #[error("invalid filter state serialize type, only support PLAIN/TYPED/FIELD")]
    FilterStateType,
    #[error("invalid filter state serialize type, FIELD should be used with the field name")]
    FilterStateField,
    #[error("{0} is not supported type of metadata")]
    MetadataType(String),
    #[error("COALESCE: {0}")]
    Coalesce(String),
}

/// Parses a whole format.
pub(super) fn parse(format: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("%%") {
            literal.push(b'%');
            rest = after;
            continue;
        }
        let command = split_command(rest).ok_or_else(|| FormatError::NoCommand {
            format: format.to_owned(),
            position: format.len() - rest.len(),
        })?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
        }
        pieces.push(Piece::Operator(operator(command.name, command.parameters, command.length)?));
        rest = &rest[command.len..];
    }
    literal.extend_from_slice(rest.as_bytes());
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Ok(pieces)
}

struct Command<'a> {
    name: &'a str,
    parameters: &'a str,
    length: Option<usize>,
    len: usize,
}

/// The operator that `text` starts with. Parameters end at the first `)` that a length or `%` follows, and
/// have no line break.
fn split_command(text: &str) -> Option<Command<'_>> {
    let body = text.strip_prefix('%')?;
    let name_len =
        body.bytes().take_while(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_')).count();
    if name_len == 0 {
        return None;
    }
    let (name, rest) = body.split_at(name_len);
    let done = |parameters, length, tail: &str| Command {
        name,
        parameters,
        length,
        len: text.len() - tail.len(),
    };
    let Some(parameters) = rest.strip_prefix('(') else {
        let (length, tail) = split_end(rest)?;
        return Some(done("", length, tail));
    };
    for (at, _) in parameters.match_indices(')') {
        if parameters[..at].contains('\n') {
            return None;
        }
        if let Some((length, tail)) = split_end(&parameters[at + 1..]) {
            return Some(done(&parameters[..at], length, tail));
        }
    }
    None
}

/// `:LENGTH%` or `%`; what follows.
fn split_end(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(tail) = text.strip_prefix('%') {
        return Some((None, tail));
    }
    let (digits, tail) = text.strip_prefix(':')?.split_once('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((Some(digits.parse().ok()?), tail))
}

/// What an operator may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// No parameters, no length.
    Bare,
    Required,
    RequiredLength,
    Optional,
    OptionalLength,
}

impl Syntax {
    pub(super) fn check(
        self,
        command: &str,
        parameters: &str,
        length: Option<usize>,
    ) -> Result<(), FormatError> {
        if self == Self::Bare && (!parameters.is_empty() || length.is_some()) {
            return Err(FormatError::CommandOnly(command.to_owned()));
        }
        if matches!(self, Self::Required | Self::RequiredLength) && parameters.is_empty() {
            return Err(FormatError::ParametersRequired(command.to_owned()));
        }
        if matches!(self, Self::Required | Self::Optional) && length.is_some() {
            return Err(FormatError::NoLength(command.to_owned()));
        }
        Ok(())
    }
}

/// The pieces of a format; problems, and operators that never have a value, go to `path`.
pub(super) fn compile(format: &str, path: &FieldPath<'_>) -> Option<Vec<Piece>> {
    let pieces = path.ok_or_error(parse(format))?;
    for piece in &pieces {
        if let Piece::Operator(Operator { kind: Kind::Never(name), .. }) = piece {
            path.ignored(format_args!("%{name}% never has a value here"));
        }
    }
    Some(pieces)
}

/// One operator from its parts.
fn operator(
    command: &str,
    parameters: &str,
    max_length: Option<usize>,
) -> Result<Operator, FormatError> {
    let (syntax, kind) = table::lookup(command)?;
    syntax.check(command, parameters, max_length)?;
    let mut kind = kind(parameters)?;
    if let Kind::Never(name) = &mut kind {
        *name = command.into();
    }
    Ok(Operator { kind, max_length })
}

pub(super) fn header(part: Part, parameters: &str, query: bool) -> Result<Kind, FormatError> {
    let mut names = parameters.split('?');
    let mut next = || -> Result<Option<HeaderName>, FormatError> {
        match names.next().unwrap_or("") {
            "" => Ok(None),
            name => HeaderName::parse(name).map(Some).map_err(|_| FormatError::HeaderName),
        }
    };
    let (name, alternative) = (next()?, next()?);
    if names.next().is_some() {
        return Err(FormatError::Alternatives(parameters.to_owned()));
    }
    Ok(Kind::Header { part, name, alternative, query })
}

pub(super) fn time(parameters: &str, emit: bool, local: bool) -> Result<Kind, FormatError> {
    let format = TimeFormat::compile(parameters, local).map_err(|_| FormatError::Newline)?;
    Ok(Kind::Time { emit, format })
}

pub(super) fn common_duration(parameters: &str) -> Result<Kind, FormatError> {
    let parts: Vec<&str> = parameters.split(':').collect();
    let (from, to, precision) = match *parts {
        [from, to] => (from, to, "ms"),
        [from, to, precision] => (from, to, precision),
        _ => return Err(FormatError::CommonDuration(parameters.to_owned())),
    };
    let precision = match precision {
        "ms" => Precision::Milliseconds,
        "us" => Precision::Microseconds,
        "ns" => Precision::Nanoseconds,
        other => return Err(FormatError::Precision(other.to_owned())),
    };
    Ok(Kind::CommonDuration { from: time_point(from), to: time_point(to), precision })
}

/// Names that are not known may be set by filters in Envoy; ours set none, so they never have a value.
fn time_point(name: &str) -> TimePoint {
    match name {
        "DS_RX_BEG" => |info| info.protocol.is_some().then_some(info.start),
        "DS_RX_END" => |info| info.timing.last_downstream_rx,
        "US_CX_BEG" => |info| info.upstream.connect_start,
        "US_CX_END" => |info| info.upstream.connect_end,
        "US_TX_BEG" => |info| info.timing.first_upstream_tx,
        "US_TX_END" => |info| info.timing.last_upstream_tx,
        "US_RX_BEG" => |info| info.timing.first_upstream_rx,
        "US_RX_END" => |info| info.timing.last_upstream_rx,
        "DS_TX_BEG" => |info| info.timing.first_downstream_tx,
        "DS_TX_END" => |info| info.timing.last_downstream_tx,
        "DS_CX_BEG" => |info| info.protocol.is_none().then_some(info.start),
        "DS_CX_END" => |info| info.timing.end.filter(|_| info.protocol.is_none()),
        _ => |_| None,
    }
}

pub(super) fn metadata(of: MetadataOf, parameters: &str) -> Result<Kind, FormatError> {
    let mut parts = parameters.split(':');
    let namespace = parts.next().unwrap_or("").into();
    Ok(Kind::Metadata { of, namespace, path: parts.map(Into::into).collect() })
}

/// `%METADATA(TYPE:NAMESPACE:KEY*)%`.
pub(super) fn typed_metadata(parameters: &str) -> Result<Kind, FormatError> {
    let (kind, rest) = parameters.split_once(':').unwrap_or((parameters, ""));
    let of = match kind {
        "DYNAMIC" => MetadataOf::Dynamic,
        "CLUSTER" => MetadataOf::Cluster,
        "UPSTREAM_HOST" => MetadataOf::Host,
        "ROUTE" => MetadataOf::Route,
        "VIRTUAL_HOST" => MetadataOf::VirtualHost,
        "LISTENER" | "LISTENER_FILTER_CHAIN" => {
            return Err(FormatError::NotImplemented("METADATA of listeners"));
        }
        other => return Err(FormatError::MetadataType(other.to_owned())),
    };
    metadata(of, rest)
}

/// The object that `grpc_stats` leaves.
const GRPC_MESSAGES: &str = "envoy.filters.http.grpc_stats";

pub(super) fn filter_state(parameters: &str) -> Result<Kind, FormatError> {
    let mut parts = parameters.splitn(3, ':');
    let key = parts.next().filter(|key| !key.is_empty()).ok_or(FormatError::FilterStateKey)?;
    let serialize = parts.next().filter(|s| !s.is_empty()).unwrap_or("TYPED");
    let field = parts.next().filter(|f| !f.is_empty());
    if !matches!(serialize, "PLAIN" | "TYPED" | "FIELD") {
        return Err(FormatError::FilterStateType);
    }
    if (serialize == "FIELD") != field.is_some() {
        return Err(FormatError::FilterStateField);
    }
    let plain = serialize == "PLAIN";
    Ok(match (key, field) {
        (GRPC_MESSAGES, None) => Kind::GrpcMessages { plain },
        // No object that there is has fields.
        (_, Some(_)) => Kind::Never(Box::default()),
        (_, None) => Kind::FilterState { key: key.into(), plain },
    })
}

pub(super) fn grpc_status(parameters: &str) -> Result<Kind, FormatError> {
    Ok(Kind::GrpcStatus(match parameters {
        "" | "CAMEL_STRING" => GrpcStatusFormat::Camel,
        "SNAKE_STRING" => GrpcStatusFormat::Snake,
        "NUMBER" => GrpcStatusFormat::Number,
        option => {
            return Err(FormatError::Option {
                command: "GRPC_STATUS",
                option: option.to_owned(),
                allowed: "CAMEL_STRING, SNAKE_STRING and NUMBER",
            });
        }
    }))
}

pub(super) fn path(parameters: &str) -> Result<Kind, FormatError> {
    let (query, option) = parameters.split_once(':').unwrap_or((parameters, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        option => {
            return Err(FormatError::Option {
                command: "PATH",
                option: option.to_owned(),
                allowed: "WQ and NQ",
            });
        }
    };
    let (original, current) = sources("PATH", option, "ORIG", "PATH", "ORIG_OR_PATH")?;
    Ok(Kind::Path { query, original, current })
}

pub(super) fn server_name(parameters: &str) -> Result<Kind, FormatError> {
    let (first, option) = parameters.split_once(':').unwrap_or((parameters, ""));
    let (sni, host) = match first {
        "" | "SNI_ONLY" => (Source::Used, false),
        "SNI_FIRST" => (Source::Used, true),
        "HOST_FIRST" => (Source::Unused, true),
        option => {
            return Err(FormatError::Option {
                command: "REQUESTED_SERVER_NAME",
                option: option.to_owned(),
                allowed: "SNI_ONLY, SNI_FIRST and HOST_FIRST",
            });
        }
    };
    let (original, current) =
        sources("REQUESTED_SERVER_NAME", option, "ORIG", "HOST", "ORIG_OR_HOST")?;
    let only = |source| if host { source } else { Source::Unused };
    Ok(Kind::ServerName { sni, original: only(original), host: only(current) })
}

fn sources(
    command: &'static str,
    option: &str,
    original: &'static str,
    current: &'static str,
    both: &'static str,
) -> Result<(Source, Source), FormatError> {
    match option {
        "" => Ok((Source::Used, Source::Used)),
        option if option == both => Ok((Source::Used, Source::Used)),
        option if option == original => Ok((Source::Used, Source::Unused)),
        option if option == current => Ok((Source::Unused, Source::Used)),
        option => Err(FormatError::Option { command, option: option.to_owned(), allowed: both }),
    }
}

pub(super) fn query_params(parameters: &str) -> Result<Kind, FormatError> {
    match parameters {
        "" | "ORIG" => Ok(Kind::Query { decoded: false }),
        "DECODED" => Ok(Kind::Query { decoded: true }),
        option => Err(FormatError::Option {
            command: "QUERY_PARAMS",
            option: option.to_owned(),
            allowed: "ORIG and DECODED",
        }),
    }
}

pub(super) fn attempted(what: Attempted) -> Kind {
    Kind::Attempted(what)
}

/// `{"operators": ["COMMAND", {"command": …, "param": …, "max_length": …}]}`.
pub(super) fn coalesce(parameters: &str) -> Result<Kind, FormatError> {
    let refuse = |why: &str| FormatError::Coalesce(why.to_owned());
    let config: Value = serde_json::from_str(parameters)
        .map_err(|error| FormatError::Coalesce(format!("failed to parse JSON: {error}")))?;
    let operators = config
        .get("operators")
        .ok_or_else(|| refuse("JSON configuration must contain 'operators' array"))?
        .as_array()
        .ok_or_else(|| refuse("'operators' must be an array"))?;
    if operators.is_empty() {
        return Err(refuse("'operators' array must not be empty"));
    }
    let compiled = operators.iter().enumerate().map(|(i, entry)| {
        coalesce_entry(entry)
            .map_err(|error| FormatError::Coalesce(format!("operator at index {i}: {error}")))
    });
    Ok(Kind::Coalesce(compiled.collect::<Result<_, _>>()?))
}

fn coalesce_entry(entry: &Value) -> Result<Operator, FormatError> {
    let refuse = |why: &str| FormatError::Coalesce(why.to_owned());
    if let Some(command) = entry.as_str() {
        return operator(command, "", None);
    }
    let command = entry
        .get("command")
        .and_then(Value::as_str)
        .ok_or_else(|| refuse("an entry is a command name or has a 'command' field"))?;
    let parameters = match entry.get("param") {
        None => "",
        Some(value) => value.as_str().ok_or_else(|| refuse("'param' field must be a string"))?,
    };
    let max_length = match entry.get("max_length") {
        None => None,
        Some(value) => Some(
            value
                .as_u64()
                .filter(|n| *n > 0)
                .ok_or_else(|| refuse("'max_length' must be a positive integer"))?
                as usize,
        ),
    };
    operator(command, parameters, max_length)
}
