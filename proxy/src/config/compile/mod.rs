//! Protobuf to compiled values; pure. A function per resource and message, each reporting every problem it
//! finds at its field path (`diagnostic`).

pub mod diagnostic;

pub mod admin;
pub mod stats;

pub mod access_log;
pub mod bootstrap;
pub mod chain_identity;
pub mod cluster;
pub mod configuration;
pub mod core;
pub mod cors;
pub mod dns;
pub mod endpoint;
pub mod extension;
pub mod filters;
pub mod format;
pub mod hcm;
pub mod header_ops;
pub mod listener;
pub mod load_balancing;
pub mod local_reply;
pub mod matcher;
pub mod original_dst;
pub mod protocol_options;
pub mod rate_limit;
pub mod rbac;
pub mod rbac_matcher;
pub mod route;
pub mod slots;
pub mod source;
pub mod tcp_proxy;
pub mod tls;
pub mod upstream_http;

#[cfg(test)]
mod istiod_tests;

use self::slots::Slots;
use crate::http_filters::ExtraFilters;
use crate::tls::Secrets;

/// What compile functions may need besides the message.
#[derive(Clone, Copy)]
pub struct CompileContext<'a> {
    /// HTTP filters that are not built in.
    pub extra_filters: &'a ExtraFilters,
    /// Where transport sockets find their secrets.
    pub secrets: &'a Secrets,
    /// What other resources fill.
    pub slots: &'a Slots,
}
