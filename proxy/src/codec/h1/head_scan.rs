//! When to parse a head that comes in pieces.

/// The first bytes are parsed at once; after that, only when the head's end has come or the bytes have
/// doubled. A peer that sends a byte at a time so costs linear work, not quadratic.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes seen at the last look.
    seen: usize,
    /// Parse when there are as many.
    parse_at: usize,
}

impl HeadScan {
    /// Whether parsing may give something new.
    pub(super) fn should_parse(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() <= self.seen {
            return false;
        }
        // An end that began in the bytes of the last look: up to three of its four.
        let fresh = bytes.get(self.seen.saturating_sub(3)..).unwrap_or(bytes);
        let parse = bytes.len() >= self.parse_at
            || memchr::memmem::find(fresh, b"\n\r\n").is_some()
            || memchr::memmem::find(fresh, b"\n\n").is_some();
        self.seen = bytes.len();
        if parse {
            self.parse_at = bytes.len() * 2;
        }
        parse
    }
}
