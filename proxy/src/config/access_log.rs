//! Compiled access logs: which streams are logged, how a line looks and where it goes.

use std::sync::Arc;

use crate::format::SubstitutionFormat;

/// The access logs of one listener, connection manager or TCP proxy, in configuration order.
#[derive(Debug, Clone, Default)]
pub struct AccessLogConfigs(pub Arc<[AccessLogConfig]>);

/// One access log.
#[derive(Debug)]
pub struct AccessLogConfig {
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
