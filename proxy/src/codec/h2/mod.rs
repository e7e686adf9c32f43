//! HTTP/2 (RFC 9113), both sides, on the crate h2.

use crate::config::protocol_options::{CommonHttpOptions, Http2Options};

pub use client::{ClientConn, ClientStream, Driver};
pub use server::{Accepted, ServerConn, ServerStream};

mod client;
mod convert;
mod keepalive;
mod server;
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
            max_send_buffer_bytes: 256 * 1024,
        }
    }

    fn budgets(&self) -> wire::Budgets {
        wire::Budgets {
            priority_per_stream: self.options.max_inbound_priority_frames_per_stream,
            window_updates_per_data: self
                .options
                .max_inbound_window_update_frames_per_data_frame_sent,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&Http2Options::default(), &CommonHttpOptions::default(), 60)
    }
}
