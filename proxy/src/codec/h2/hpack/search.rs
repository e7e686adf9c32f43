//! The dynamic table of an encoder: a queue of entries that is found in by hash.
//!
//! Entries are numbered by their arrival, modulo 2^16. A bucket has the number of its newest entry, each entry that
//! of the one before it in the bucket; numbers of entries that have gone are told by their age, so that nothing is
//! to be done when an entry goes. A chain that ends in such a number may lead, a full turn later, to an entry of
//! another bucket: every entry is compared, and no chain is followed for long.

use std::collections::VecDeque;
use std::hash::Hasher;

use rustc_hash::FxHasher;

use super::fifo::Fifo;
use super::{ENTRY_OVERHEAD, Name, text_of_code};

/// Numbers of entries and lengths have 16 bits.
pub(super) const MAX_BYTES: usize = 65_535;
/// Of a chain no more is looked at: a peer that can make collisions costs no more than this.
const MAX_STEPS: usize = 32;
const FIRST_BUCKETS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    /// The newest entry by the hash of a whole field, and by that of a name. A power of two, at least as many as
    /// there are entries.
    buckets: Vec<[u16; 2]>,
    /// Names that have no number, and values.
    bytes: Fifo,
    size: usize,
    max: usize,
    /// The number of the newest entry.
    newest: u16,
}

#[derive(Debug)]
struct Entry {
    position: u32,
    hash: Hash,
    /// Of a name that has no number.
    name: u16,
    value: u16,
    /// The entries before this one in the buckets of its hashes.
    before: [u16; 2],
    code: u8,
    /// The whole field has been wanted again.
    is_used: bool,
    /// How often only the name has been, since this entry is there.
    misses: u8,
}

/// Of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash {
    field: u32,
    name: u32,
}

impl Hash {
    /// `name` is in lower case.
    #[inline]
    pub(super) fn of(name: Name<'_>, value: &[u8]) -> Self {
        let mut hasher = FxHasher::default();
        match name {
            Name::Other(text) => hasher.write(text),
            Name::Known(_) | Name::Pseudo(_) => hasher.write_u8(name.code()),
        }
        let name = hasher.finish();
        hasher.write(value);
        Self { field: fold(hasher.finish()), name: fold(name) }
    }
}

/// The best bits of this hasher are the upper ones, and buckets take the lower.
fn fold(hash: u64) -> u32 {
    (hash >> 32) as u32 ^ hash as u32
}

/// What the table has of a field. An age is 0 for the newest entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    Field {
        age: usize,
    },
    /// The newest entry of the name.
    Name {
        age: usize,
    },
    Nothing,
}

impl Table {
    pub(super) fn max(&self) -> usize {
        self.max
    }

    #[inline]
    pub(super) fn find(&mut self, name: Name<'_>, value: &[u8], hash: Hash) -> Match {
        let same_field = self.find_by(0, hash.field, |table, entry| {
            entry.hash.field == hash.field && table.has(entry, name, Some(value))
        });
        if let Some(age) = same_field {
            let at = self.entries.len() - 1 - age;
            self.entries[at].is_used = true;
            return Match::Field { age };
        }
        let same_name = self.find_by(1, hash.name, |table, entry| {
            entry.hash.name == hash.name && table.has(entry, name, None)
        });
        same_name.map_or(Match::Nothing, |age| Match::Name { age })
    }

    /// Whether a value that is new to a name would be worth an entry: another value of the name has been, or
    /// `patience` new ones have come since the last entry.
    pub(super) fn is_worth(&mut self, age: usize, patience: u8) -> bool {
        let at = self.entries.len() - 1 - age;
        let entry = &mut self.entries[at];
        entry.misses = entry.misses.saturating_add(1);
        entry.is_used || entry.misses >= patience
    }

    fn find_by(
        &self,
        kind: usize,
        hash: u32,
        is_it: impl Fn(&Self, &Entry) -> bool,
    ) -> Option<usize> {
        let mask = self.buckets.len().checked_sub(1)?;
        let mut number = self.buckets[hash as usize & mask][kind];
        for _ in 0..MAX_STEPS {
            let age = usize::from(self.newest.wrapping_sub(number));
            let entry = self.entries.get(self.entries.len().checked_sub(age + 1)?)?;
            if is_it(self, entry) {
                return Some(age);
            }
            number = entry.before[kind];
        }
        None
    }

    fn has(&self, entry: &Entry, name: Name<'_>, value: Option<&[u8]>) -> bool {
        if entry.code != name.code() {
            return false;
        }
        let bytes =
            self.bytes.at(entry.position, usize::from(entry.name) + usize::from(entry.value));
        let (text, its_value) = bytes.split_at(entry.name.into());
        (entry.code != 0 || text == name.text()) && value.is_none_or(|value| value == its_value)
    }

    /// What a field takes of the table.
    pub(super) fn cost(name: Name<'_>, value: &[u8]) -> usize {
        name.text().len() + value.len() + ENTRY_OVERHEAD
    }

    /// A field that fits.
    pub(super) fn insert(&mut self, name: Name<'_>, value: &[u8], hash: Hash) {
        let size = Self::cost(name, value);
        debug_assert!(size <= self.max);
        self.evict(self.max.saturating_sub(size));
        let text = if let Name::Other(text) = name { text } else { b"" };
        self.bytes.reserve(text.len() + value.len());
        let position = self.bytes.end();
        self.bytes.append(text);
        self.bytes.append(value);
        self.size += size;
        self.newest = self.newest.wrapping_add(1);
        self.entries.push_back(Entry {
            position,
            hash,
            name: text.len() as u16,
            value: value.len() as u16,
            before: [0; 2],
            code: name.code(),
            is_used: false,
            misses: 0,
        });
        if self.entries.len() > self.buckets.len() {
            self.grow();
        } else {
            self.link(self.entries.len() - 1);
        }
    }

    fn grow(&mut self) {
        let buckets = (self.buckets.len() * 2).max(FIRST_BUCKETS);
        self.buckets = vec![[0; 2]; buckets];
        for at in 0..self.entries.len() {
            self.link(at);
        }
    }

    /// Puts an entry in front of its buckets.
    fn link(&mut self, at: usize) {
        let mask = self.buckets.len() - 1;
        let number = self.newest.wrapping_sub((self.entries.len() - 1 - at) as u16);
        let entry = &mut self.entries[at];
        let hashes = [entry.hash.field, entry.hash.name];
        for (kind, hash) in hashes.into_iter().enumerate() {
            let bucket = &mut self.buckets[hash as usize & mask][kind];
            entry.before[kind] = std::mem::replace(bucket, number);
        }
    }

    pub(super) fn resize(&mut self, max: usize) {
        self.evict(max);
        if max == 0 {
            *self = Self::default();
        }
        self.max = max;
    }

    /// Drops the oldest entries until no more than `room` bytes are taken.
    fn evict(&mut self, room: usize) {
        while self.size > room
            && let Some(oldest) = self.entries.pop_front()
        {
            let (name, value) = (usize::from(oldest.name), usize::from(oldest.value));
            self.size -= text_of_code(oldest.code).len() + name + value + ENTRY_OVERHEAD;
            self.bytes.release(name + value);
        }
    }
}
