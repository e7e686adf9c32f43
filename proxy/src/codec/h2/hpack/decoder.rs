//! Blocks to fields (RFC 7541 §3, §6).

use std::cell::Cell;
use std::collections::VecDeque;

use super::fifo::Fifo;
use super::{
    DEFAULT_TABLE_BYTES, ENTRY_OVERHEAD, HpackError, Name, Sink, huffman, integer, static_table,
    text_of_code,
};

/// Decoded strings of a block wait here for the sink; more than this is not kept.
const SPARE_SCRATCH_BYTES: usize = 16 * 1024;
/// RFC 7541 §4.2: the smallest size since the last block, and the one in force now.
const MAX_SIZE_UPDATES: usize = 2;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The side of a connection that receives.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What a size update may set.
    limit: usize,
    /// The SETTINGS_HEADER_TABLE_SIZE that we have announced.
    announced: usize,
}

impl Decoder {
    /// `max_table` is the SETTINGS_HEADER_TABLE_SIZE that goes out in our first SETTINGS, in bytes. Until the peer
    /// has acknowledged it, the default of 4096 is as good.
    pub fn new(max_table: u32) -> Self {
        let announced = max_table as usize;
        Self {
            table: Table { max: DEFAULT_TABLE_BYTES, ..Table::default() },
            limit: announced.max(DEFAULT_TABLE_BYTES),
            announced,
        }
    }

    /// The peer has acknowledged our SETTINGS: no table is larger than they say from its next block on.
    pub fn acknowledged(&mut self) {
        self.limit = self.announced;
    }

    /// Gives the fields of a whole block to `sink`.
    ///
    /// # Errors
    /// The block is not HPACK, or refers to what the table does not have. Fields before that have been given out.
    /// The connection cannot go on.
    pub fn decode(&mut self, block: &[u8], sink: &mut impl Sink) -> Result<(), HpackError> {
        // Where a thread ends its thread-locals may be gone: then the buffer is a new one.
        let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
        let result = self.decode_all(block, &mut scratch, sink);
        if scratch.capacity() <= SPARE_SCRATCH_BYTES {
            let _ = SCRATCH.try_with(|spare| spare.set(scratch));
        }
        result
    }

    fn decode_all(
        &mut self,
        mut block: &[u8],
        scratch: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) -> Result<(), HpackError> {
        self.take_size_updates(&mut block)?;
        while let Some(&first) = block.first() {
            match first {
                0x80.. => {
                    let index = integer::take(&mut block, 7)?;
                    let (name, value) = self.entry(index)?;
                    sink.field(name, value, false);
                }
                0x40..0x80 => {
                    let index = integer::take(&mut block, 6)?;
                    self.take_literal(index, Keeping::Insert, &mut block, scratch, sink)?;
                }
                0x20..0x40 => return Err(HpackError::SizeUpdateMisplaced),
                0..0x20 => {
                    let keeping = if first < 0x10 { Keeping::NotHere } else { Keeping::Never };
                    let index = integer::take(&mut block, 4)?;
                    self.take_literal(index, keeping, &mut block, scratch, sink)?;
                }
            }
        }
        Ok(())
    }

    fn take_size_updates(&mut self, block: &mut &[u8]) -> Result<(), HpackError> {
        let mut updates = 0;
        while let Some(0x20..0x40) = block.first() {
            updates += 1;
            if updates > MAX_SIZE_UPDATES {
                return Err(HpackError::SizeUpdateMisplaced);
            }
            let size = integer::take(block, 5)?;
            if size as usize > self.limit {
                return Err(HpackError::SizeUpdateTooLarge(size));
            }
            self.table.resize(size as usize);
        }
        if self.table.max > self.limit {
            return Err(HpackError::SizeUpdateMissing);
        }
        Ok(())
    }

    fn entry(&self, index: u32) -> Result<(Name<'_>, &[u8]), HpackError> {
        let at = index as usize;
        let entry = match at.checked_sub(static_table::LEN + 1) {
            None => static_table::entry(at),
            Some(age) => self.table.entry(age),
        };
        entry.ok_or(HpackError::Index(index))
    }

    /// A field with a value that is written out. `index` is its name's, 0 for one that is written out too.
    fn take_literal(
        &mut self,
        index: u32,
        keeping: Keeping,
        block: &mut &[u8],
        scratch: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) -> Result<(), HpackError> {
        scratch.clear();
        let (code, text) = if index == 0 {
            let text = take_string(block, scratch)?;
            (Name::parse(text.of(scratch)).code(), text)
        } else {
            let (name, _) = self.entry(index)?;
            // The entry that has the name may be the one that goes for this one (RFC 7541 §4.4).
            (
                name.code(),
                if let Name::Other(text) = name {
                    Text::copy(text, scratch)
                } else {
                    Text::Plain(b"")
                },
            )
        };
        let value = take_string(block, scratch)?;
        let (name, value) = (Name::from_code(code, text.of(scratch)), value.of(scratch));
        sink.field(name, value, keeping == Keeping::Never);
        if keeping == Keeping::Insert {
            self.table.insert(name, value);
        }
        Ok(())
    }
}

/// What a literal says about being put into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Insert,
    NotHere,
    Never,
}

/// A string of a block: as it stands there, or decoded.
#[derive(Debug, Clone, Copy)]
enum Text<'b> {
    Plain(&'b [u8]),
    Scratch { start: usize, end: usize },
}

impl<'b> Text<'b> {
    fn of<'a>(self, scratch: &'a [u8]) -> &'a [u8]
    where
        'b: 'a,
    {
        match self {
            Self::Plain(text) => text,
            Self::Scratch { start, end } => &scratch[start..end],
        }
    }

    fn copy(text: &[u8], scratch: &mut Vec<u8>) -> Self {
        let start = scratch.len();
        scratch.extend_from_slice(text);
        Self::Scratch { start, end: scratch.len() }
    }
}

fn take_string<'b>(block: &mut &'b [u8], scratch: &mut Vec<u8>) -> Result<Text<'b>, HpackError> {
    let is_huffman = block.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::take(block, 7)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *block = rest;
    if !is_huffman {
        return Ok(Text::Plain(text));
    }
    let start = scratch.len();
    huffman::decode(text, scratch)?;
    Ok(Text::Scratch { start, end: scratch.len() })
}

/// The dynamic table (RFC 7541 §2.3.2), newest entry last.
#[derive(Debug, Default)]
struct Table {
    entries: VecDeque<Entry>,
    /// Names that have no number, and values.
    bytes: Fifo,
    size: usize,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    position: u32,
    /// Of a name that has no number.
    name: u32,
    value: u32,
    code: u8,
}

impl Table {
    /// The newest is 0.
    #[inline]
    fn entry(&self, age: usize) -> Option<(Name<'_>, &[u8])> {
        let entry = self.entries.get(self.entries.len().checked_sub(age + 1)?)?;
        let bytes = self.bytes.at(entry.position, (entry.name + entry.value) as usize);
        let (text, value) = bytes.split_at(entry.name as usize);
        Some((Name::from_code(entry.code, text), value))
    }

    fn insert(&mut self, name: Name<'_>, value: &[u8]) {
        let size = name.text().len() + value.len() + ENTRY_OVERHEAD;
        self.evict(self.max.saturating_sub(size));
        if size > self.max {
            return;
        }
        let text = if let Name::Other(text) = name { text } else { b"" };
        self.bytes.reserve(text.len() + value.len());
        let position = self.bytes.end();
        self.bytes.append(text);
        self.bytes.append(value);
        self.size += size;
        self.entries.push_back(Entry {
            position,
            name: text.len() as u32,
            value: value.len() as u32,
            code: name.code(),
        });
    }

    fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
        if max == 0 {
            // Peers that want no table do not come back to it.
            self.entries = VecDeque::new();
            self.bytes.free();
        }
    }

    /// Drops the oldest entries until no more than `room` bytes are taken.
    fn evict(&mut self, room: usize) {
        while self.size > room
            && let Some(oldest) = self.entries.pop_front()
        {
            let name = text_of_code(oldest.code).len() + oldest.name as usize;
            self.size -= name + oldest.value as usize + ENTRY_OVERHEAD;
            self.bytes.release((oldest.name + oldest.value) as usize);
        }
    }
}
