//! Free TCP ports below the ephemeral range, so that no outgoing connection takes one between the
//! moment it is chosen and the moment a proxy binds it. All have five digits: byte counters then
//! agree between two instances.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

const FIRST: u16 = 12_000;
const SPAN: u16 = 20_000;

/// A port on 127.0.0.1 that nothing listens on; no two calls in one process give the same.
///
/// # Errors
/// When no port of the range is free.
pub fn free() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static START: std::sync::OnceLock<u16> = std::sync::OnceLock::new();
    let start = *START.get_or_init(|| rand::random_range(0..SPAN));
    for _ in 0..SPAN {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed) % SPAN) % SPAN;
        let port = FIRST + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port in {FIRST}..{}", FIRST + SPAN)
}
