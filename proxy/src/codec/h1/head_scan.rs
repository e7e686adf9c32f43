//! When to parse a head, or the trailers of a body, that comes in pieces.

/// The first bytes are parsed at once; after that, only when the head's end has come or the bytes have
/// doubled. A peer that sends a byte at a time so costs linear work, not quadratic.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes seen at the last look.
    seen: usize,
    /// Bytes there were at the last parsing.
    parsed: usize,
    #[cfg(test)]
    pub(super) parsings: u32,
}

impl HeadScan {
    /// Whether parsing may give something new; at the `end` of the stream, whether bytes are left that were
    /// not parsed: their fault is better than none.
    pub(super) fn should_parse(&mut self, bytes: &[u8], end: bool) -> bool {
        if end && self.parsed < bytes.len() {
            self.parsed = bytes.len();
            return true;
        }
        if bytes.len() <= self.seen {
            return false;
        }
        // An end that began in the bytes of the last look: up to three of its four.
        let fresh = bytes.get(self.seen.saturating_sub(3)..).unwrap_or(bytes);
        let parse = bytes.len() >= 2 * self.parsed
            || memchr::memmem::find(fresh, b"\n\r\n").is_some()
            || memchr::memmem::find(fresh, b"\n\n").is_some();
        self.seen = bytes.len();
        if parse {
            self.parsed = bytes.len();
            #[cfg(test)]
            {
                self.parsings += 1;
            }
        }
        parse
    }
}
