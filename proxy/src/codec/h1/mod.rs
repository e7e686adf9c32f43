//! HTTP/1 (RFC 9112), both sides, on httparse, with checks of our own where leniency would let two
//! parsers see different messages.

use std::sync::Arc;

use crate::config::protocol_options::{
    CommonHttpOptions, HeaderKeyFormat, HeadersWithUnderscoresAction, Http1Options,
};

pub(in crate::codec) use body::is_forbidden_trailer;
pub use client::{ClientConn, IdleEnd};
pub(in crate::codec) use request::check_authority;
pub use server::ServerConn;

mod body;
mod client;
mod encode;
mod head_scan;
mod parse;
mod request;
mod response;
mod server;
#[cfg(test)]
mod tests;

/// What an HTTP/1 server connection is configured with.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Limit of a head as it stands on the wire. Default 60 KiB (`max_request_headers_kb`).
    pub max_head_bytes: usize,
    /// Limit of header lines. Default 100 (`max_headers_count`).
    pub max_header_count: usize,
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<Arc<str>>,
    pub enable_trailers: bool,
    /// Methods outside the registered ones. Default false, as in Envoy.
    pub allow_custom_methods: bool,
    /// An `https://` target on plaintext is answered 403. Set at the edge: `use_remote_address` with no
    /// trusted hops.
    pub validate_scheme: bool,
    /// What is done to trailers whose names have underscores; the connection manager looks at heads.
    pub underscores: HeadersWithUnderscoresAction,
    pub header_key_format: HeaderKeyFormat,
}

impl ServerSettings {
    /// From a connection manager's options; `max_request_headers_kb` in KiB, `None` for the default 60.
    pub fn new(
        http1: &Http1Options,
        common: &CommonHttpOptions,
        max_request_headers_kb: Option<u32>,
    ) -> Self {
        Self {
            max_head_bytes: max_request_headers_kb.unwrap_or(60) as usize * 1024,
            max_header_count: common.max_headers_count as usize,
            allow_absolute_url: http1.allow_absolute_url,
            accept_http_10: http1.accept_http_10,
            default_host_for_http_10: http1.default_host_for_http_10.clone(),
            enable_trailers: http1.enable_trailers,
            allow_custom_methods: http1.allow_custom_methods,
            validate_scheme: false,
            underscores: common.headers_with_underscores_action,
            header_key_format: http1.header_key_format,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self::new(&Http1Options::default(), &CommonHttpOptions::default(), None)
    }
}

/// What an HTTP/1 client connection is configured with.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Limit of a head as it stands on the wire. Default 80 KiB (`max_response_headers_kb`).
    pub max_head_bytes: usize,
    /// Limit of header lines. Default 100 (`max_headers_count`).
    pub max_header_count: usize,
    pub enable_trailers: bool,
    /// Requests in absolute form (`send_fully_qualified_url`).
    pub send_fully_qualified_url: bool,
    pub header_key_format: HeaderKeyFormat,
}

impl ClientSettings {
    /// From a cluster's options.
    pub fn new(http1: &Http1Options, common: &CommonHttpOptions) -> Self {
        Self {
            max_head_bytes: common.max_response_headers_kb.unwrap_or(80) as usize * 1024,
            max_header_count: common.max_headers_count as usize,
            enable_trailers: http1.enable_trailers,
            send_fully_qualified_url: http1.send_fully_qualified_url,
            header_key_format: http1.header_key_format,
        }
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self::new(&Http1Options::default(), &CommonHttpOptions::default())
    }
}
