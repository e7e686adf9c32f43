//! HTTP/2 (RFC 9113), both sides, a codec of our own.
//!
//! `connection` is the state of one connection without its socket: bytes in (`receive`, `message`), frames out
//! (`send`). `transport` moves the bytes, in the task of the connection's owner (`server`, `client`); the streams'
//! owners (`server_stream`, `client_stream`) share the state with it.

use crate::config::protocol_options::{
    CommonHttpOptions, HeadersWithUnderscoresAction, Http2Options,
};

pub use client::{ClientConn, Driver};
pub use client_stream::ClientStream;
pub use counters::{Counters, Traffic};
pub use fault::Http2Fault;
pub use server::{Accepted, ServerConn};
pub use server_stream::ServerStream;

mod budget;
mod client;
mod client_stream;
mod connection;
mod counters;
mod decode;
mod encode;
mod fault;
mod frame;
pub mod hpack;
mod keepalive;
mod message;
mod receive;
mod send;
mod server;
mod server_stream;
mod stream;
#[cfg(test)]
mod tests;
mod transport;

/// What an HTTP/2 connection is configured with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub options: Http2Options,
    /// Limit of a decoded header list, in bytes. Default 60 KiB.
    pub max_head_bytes: u32,
    /// Limit of header lines. Default 100.
    pub max_header_count: usize,
    /// What becomes of a request with a header name that has an underscore.
    pub underscores: HeadersWithUnderscoresAction,
}

impl Settings {
    /// `max_headers_kb` in KiB: `max_request_headers_kb` for a server, `max_response_headers_kb` for a client.
    pub fn new(options: &Http2Options, common: &CommonHttpOptions, max_headers_kb: u32) -> Self {
        Self {
            options: options.clone(),
            max_head_bytes: max_headers_kb * 1024,
            max_header_count: common.max_headers_count as usize,
            underscores: common.headers_with_underscores_action,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&Http2Options::default(), &CommonHttpOptions::default(), 60)
    }
}
