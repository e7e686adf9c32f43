//! Bytes that come at one end and go at the other: the names and values of a dynamic table.
//!
//! They stand in one piece each, so that they can be lent as slices. The memory is at most twice what is live,
//! and moving it costs no more than a copy of what has come since it moved last.

/// The first allocation: a table of the usual few short fields.
const FIRST_BYTES: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Fifo {
    bytes: Vec<u8>,
    /// How many of them have gone.
    gone: usize,
    /// Position of the first byte, counted from the beginning of time modulo 2^32.
    first: u32,
}

impl Fifo {
    /// Room for `need` more bytes, to be appended right after.
    pub(super) fn reserve(&mut self, need: usize) {
        if self.bytes.capacity() - self.bytes.len() >= need {
            return;
        }
        let live = self.bytes.len() - self.gone;
        let gone = self.gone;
        self.bytes.copy_within(gone.., 0);
        self.bytes.truncate(live);
        self.first = self.first.wrapping_add(gone as u32);
        self.gone = 0;
        if gone < live || gone < need {
            let room = ((live + need) * 2).max(FIRST_BYTES);
            self.bytes.reserve_exact(room - live);
        }
    }

    /// The position of what is appended next, for `at`.
    pub(super) fn end(&self) -> u32 {
        self.first.wrapping_add(self.bytes.len() as u32)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn at(&self, position: u32, len: usize) -> &[u8] {
        let start = position.wrapping_sub(self.first) as usize;
        &self.bytes[start..start + len]
    }

    /// The first `len` live bytes go.
    pub(super) fn release(&mut self, len: usize) {
        self.gone += len;
        debug_assert!(self.gone <= self.bytes.len());
        if self.gone == self.bytes.len() {
            self.first = self.end();
            self.bytes.clear();
            self.gone = 0;
        }
    }

    /// Nothing is live: the memory goes too.
    pub(super) fn free(&mut self) {
        *self = Self::default();
    }
}
