//! Compiled access logs: which streams are logged, how a line looks and where it goes.

use std::sync::Arc;

use super::core::RuntimeFraction;
use super::matcher::StringMatcher;
use super::matcher::header::HeaderMatcher;
use super::runtime;
use crate::format::{AccessLogType, SubstitutionFormat};
use crate::stream_info::ResponseFlags;

/// The access logs of one listener, connection manager or TCP proxy, in configuration order.
#[derive(Debug, Clone, Default)]
pub struct AccessLogConfigs(pub Arc<[AccessLogConfig]>);

/// One access log.
#[derive(Debug)]
pub struct AccessLogConfig {
    /// `None`: every stream.
    pub filter: Option<Filter>,
    pub target: Target,
    pub format: SubstitutionFormat,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// `envoy.access_loggers.file`.
    File(Arc<str>),
    Stdout,
    Stderr,
}

/// `AccessLogFilter`; evaluated in `access_log::filter`.
#[derive(Debug)]
pub enum Filter {
    StatusCode(Comparison),
    /// Milliseconds.
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    Runtime {
        percent: RuntimeFraction,
        /// A new random number for each line, rather than one taken from the request id.
        independent: bool,
    },
    And(Box<[Filter]>),
    Or(Box<[Filter]>),
    Header(HeaderMatcher),
    /// `None`: any flag.
    ResponseFlag(Option<ResponseFlags>),
    GrpcStatus {
        statuses: Box<[i64]>,
        exclude: bool,
    },
    Metadata {
        matcher: Option<MetadataMatcher>,
        match_if_not_found: bool,
    },
    LogType {
        types: Box<[AccessLogType]>,
        exclude: bool,
    },
}

/// `ComparisonFilter`.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub op: ComparisonOp,
    pub value: u32,
    /// Overrides `value` where the runtime has it.
    pub runtime_key: Option<Arc<str>>,
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonOp {
    Eq,
    Ge,
    Le,
    Ne,
}

impl Comparison {
    pub fn holds(&self, found: u64) -> bool {
        let of_runtime = self
            .runtime_key
            .as_deref()
            .and_then(|key| runtime::current().get(key).and_then(runtime::RuntimeValue::integer));
        let value = of_runtime.unwrap_or_else(|| self.value.into());
        match self.op {
            ComparisonOp::Eq => found == value,
            ComparisonOp::Ge => found >= value,
            ComparisonOp::Le => found <= value,
            ComparisonOp::Ne => found != value,
        }
    }
}

/// `envoy.type.matcher.v3.MetadataMatcher`.
#[derive(Debug)]
pub struct MetadataMatcher {
    pub namespace: Box<str>,
    pub path: Box<[Box<str>]>,
    pub value: ValueMatcher,
    pub invert: bool,
}

/// `envoy.type.matcher.v3.ValueMatcher`.
#[derive(Debug)]
pub enum ValueMatcher {
    Null,
    /// Matches one number, or a half-open range.
    Number {
        from: f64,
        to: f64,
        exact: bool,
    },
    String(StringMatcher),
    Bool(bool),
    Present(bool),
    /// A list one of whose values matches.
    List(Box<ValueMatcher>),
    Or(Box<[ValueMatcher]>),
}

impl MetadataMatcher {
    /// Where the matcher looks; `None` where there is nothing.
    pub fn lookup<'a>(
        &self,
        struct_of: impl Fn(&str) -> Option<&'a serde_json::Map<String, serde_json::Value>>,
    ) -> Option<&'a serde_json::Value> {
        let (first, rest) = self.path.split_first()?;
        let mut value = struct_of(&self.namespace)?.get(&**first)?;
        for key in rest {
            value = value.as_object()?.get(&**key)?;
        }
        Some(value)
    }
}

impl ValueMatcher {
    pub fn matches(&self, value: &serde_json::Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Number { from, to, exact } => value.as_f64().is_some_and(|number| {
                if *exact { number == *from } else { *from <= number && number < *to }
            }),
            Self::String(matcher) => value.as_str().is_some_and(|s| matcher.matches(s.as_bytes())),
            Self::Bool(expected) => value.as_bool() == Some(*expected),
            Self::Present(expected) => !value.is_null() && *expected,
            Self::List(one) => {
                value.as_array().is_some_and(|list| list.iter().any(|v| one.matches(v)))
            }
            Self::Or(any) => any.iter().any(|matcher| matcher.matches(value)),
        }
    }
}
