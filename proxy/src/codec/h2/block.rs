//! The fields of an HPACK block (RFC 7541 §6) by their representation alone: no table, no Huffman decoding.
//!
//! The crate h2 refuses malformed heads without saying why, and takes trailers with pseudo-headers. What a log
//! has to say about the one, and that the other is refused, can be read off the block without decoding it: the
//! pseudo-headers stand in the static table, or are literals whose first byte tells.

/// What a block shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Survey {
    pub(super) method: bool,
    pub(super) path: bool,
    pub(super) scheme: bool,
    pub(super) authority: bool,
    pub(super) host: bool,
    /// CONNECT, as far as it is written out.
    pub(super) is_connect: bool,
    protocol: bool,
    /// A pseudo-header of whatever name.
    pub(super) pseudo: bool,
    /// A field that stands in the dynamic table, and could be any.
    pub(super) unknown: bool,
    /// A path that does not begin with a slash.
    relative_path: bool,
    has_length: bool,
    /// `content-length` twice, or not a number.
    bad_length: bool,
}

/// RFC 7541 appendix A.
const STATIC_FIELDS: u32 = 61;

/// `None`: the block is not HPACK. `dynamic_fields` bounds what the dynamic table can hold.
pub(super) fn survey(mut block: &[u8], dynamic_fields: u32) -> Option<Survey> {
    let mut all = Survey::default();
    while let Some(&first) = block.first() {
        if first & 0x80 != 0 {
            let index = integer(&mut block, 7)?;
            if index == 0 || index > STATIC_FIELDS + dynamic_fields {
                return None;
            }
            all.note_index(index);
        } else if first & 0xe0 == 0x20 {
            integer(&mut block, 5)?;
        } else {
            let bits = if first & 0x40 != 0 { 6 } else { 4 };
            let index = integer(&mut block, bits)?;
            let name = if index == 0 { Some(string(&mut block)?) } else { None };
            let value = string(&mut block)?;
            match name {
                Some(name) => all.note_literal(name, value),
                None => all.note_named(index, value),
            }
        }
    }
    Some(all)
}

/// A string as it stands: whether it is in Huffman's code, and its bytes.
type Text<'a> = (bool, &'a [u8]);

fn integer(block: &mut &[u8], bits: u32) -> Option<u32> {
    let (&first, mut rest) = block.split_first()?;
    let mask = (1u32 << bits) - 1;
    let mut value = u32::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&next, more) = rest.split_first()?;
            rest = more;
            value = value.checked_add((u32::from(next) & 0x7f).checked_shl(shift)?)?;
            if next & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return None;
            }
        }
    }
    *block = rest;
    Some(value)
}

fn string<'a>(block: &mut &'a [u8]) -> Option<Text<'a>> {
    let huffman = block.first()? & 0x80 != 0;
    let length = integer(block, 7)? as usize;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((huffman, text))
}

impl Survey {
    /// A field, or the name of one, of the static table (RFC 7541 appendix A).
    fn note_index(&mut self, index: u32) {
        match index {
            1 => self.authority = true,
            2 | 3 => self.method = true,
            4 | 5 => self.path = true,
            6 | 7 => self.scheme = true,
            38 => self.host = true,
            62.. => self.unknown = true,
            _ => {}
        }
        self.pseudo |= (1..=14).contains(&index);
    }

    fn note_named(&mut self, index: u32, value: Text<'_>) {
        self.note_index(index);
        match index {
            2 | 3 => self.is_connect = is_connect(value),
            4 | 5 => self.note_path(value),
            28 => self.note_length(value),
            _ => {}
        }
    }

    fn note_literal(&mut self, name: Text<'_>, value: Text<'_>) {
        match name {
            // ':' is 1011100 in Huffman's code.
            (true, [first, ..]) if first >> 1 == 0b101_1100 => {
                // Which one is not worth decoding: encoders name these by the static table.
                self.pseudo = true;
                self.unknown = true;
            }
            (false, name) => {
                self.pseudo |= name.first() == Some(&b':');
                match name {
                    b":method" => {
                        self.method = true;
                        self.is_connect = is_connect(value);
                    }
                    b":path" => {
                        self.path = true;
                        self.note_path(value);
                    }
                    b":scheme" => self.scheme = true,
                    b":protocol" => self.protocol = true,
                    b":authority" => self.authority = true,
                    b"host" => self.host = true,
                    b"content-length" => self.note_length(value),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn note_path(&mut self, (huffman, text): Text<'_>) {
        // '/' is 011000 in Huffman's code.
        let slash = |first: u8| if huffman { first >> 2 == 0b01_1000 } else { first == b'/' };
        self.relative_path |= text.first().is_some_and(|first| !slash(*first));
    }

    fn note_length(&mut self, (huffman, text): Text<'_>) {
        self.bad_length |= self.has_length;
        self.has_length = true;
        self.bad_length |= !huffman && (text.is_empty() || !text.iter().all(u8::is_ascii_digit));
    }

    /// Whether the message as a whole is wrong, not a single field of it: something is missing.
    pub(super) fn is_incomplete(self) -> bool {
        if self.unknown {
            return false;
        }
        if self.is_connect && !self.protocol {
            return !self.authority || self.path || self.scheme;
        }
        let length_without_body = self.has_length && !self.bad_length;
        !self.method
            || !self.path
            || !self.scheme
            || !(self.authority || self.host)
            || self.relative_path
            || length_without_body
    }
}

fn is_connect((huffman, text): Text<'_>) -> bool {
    if huffman { text == [0xbd, 0xab, 0x4e, 0x9c, 0x17, 0xb7, 0xff] } else { text == b"CONNECT" }
}
