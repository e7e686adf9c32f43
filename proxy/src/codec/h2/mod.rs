//! HTTP/2 (RFC 9113), both sides, on the crate h2.

use crate::config::protocol_options::{
    CommonHttpOptions, HeadersWithUnderscoresAction, Http2Options,
};

pub use client::{ClientConn, ClientStream, Driver};
pub use fault::Http2Fault;
pub use server::{Accepted, ServerConn};
pub use server_stream::ServerStream;
pub use shared::{Counters, Traffic};

mod block;
mod client;
mod convert;
mod fault;
mod frame;
pub mod hpack;
mod inbound;
mod keepalive;
mod outbound;
mod server;
mod server_stream;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

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
    /// What a stream buffers of what the peer's window admits but the socket does not take.
    pub max_send_buffer_bytes: usize,
}

impl Settings {
    /// `max_headers_kb` in KiB: `max_request_headers_kb` for a server, `max_response_headers_kb` for a client.
    pub fn new(options: &Http2Options, common: &CommonHttpOptions, max_headers_kb: u32) -> Self {
        Self {
            options: options.clone(),
            max_head_bytes: max_headers_kb * 1024,
            max_header_count: common.max_headers_count as usize,
            underscores: common.headers_with_underscores_action,
            max_send_buffer_bytes: 256 * 1024,
        }
    }

    /// The crate h2 answers what is longer than its own limit by itself, with a 431 that no log shows: its limit
    /// is beyond ours, so that it is only met by what nobody sends by mistake.
    fn decoder_head_bytes(&self) -> u32 {
        self.max_head_bytes.saturating_mul(2).saturating_add(32 * 1024)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&Http2Options::default(), &CommonHttpOptions::default(), 60)
    }
}
