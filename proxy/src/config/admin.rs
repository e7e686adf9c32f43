//! Compiled `admin` and `application_log_config` of the bootstrap.

use super::access_log::AccessLogConfigs;
use super::core::{ConfigAddress, SocketOption};
use super::matcher::StringMatcher;

/// `config.bootstrap.v3.Admin`.
#[derive(Debug)]
pub struct AdminConfig {
    /// `address`; no admin interface without.
    pub address: Option<ConfigAddress>,
    /// `socket_options`.
    pub socket_options: Box<[SocketOption]>,
    /// `access_log`.
    pub access_log: AccessLogConfigs,
    /// `allow_paths`: path and query must match one, unless there is none.
    pub allow_paths: Box<[StringMatcher]>,
}
