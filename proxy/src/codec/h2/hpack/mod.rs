//! HPACK (RFC 7541): field sections of HTTP/2 to fields, and back.
//!
//! Both sides speak of names by the numbers of `codec::name`, so that nothing is looked up twice, and neither
//! allocates for a field: strings are decoded into one buffer of the thread, tables grow only as they are used.
//! The size of a block is for the caller to limit; everything else that a peer could blow up is limited here.

use crate::codec::name::{id_of, text_of};

pub use decoder::Decoder;
pub use encoder::Encoder;

mod decoder;
mod encoder;
mod fifo;
mod huffman;
mod integer;
mod search;
mod static_table;
#[cfg(test)]
mod tests;

/// SETTINGS_HEADER_TABLE_SIZE before anybody says otherwise (RFC 9113 §6.5.2).
const DEFAULT_TABLE_BYTES: usize = 4096;
/// What an entry counts beyond its name and value (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The name of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    Pseudo(Pseudo),
    /// By its number in `codec::name`, never 0. A decoder has seen exactly its lower-case text.
    Known(u8),
    /// Any other. From a decoder: as the peer sent it, possibly empty, not a token, or an unknown pseudo-header.
    /// To an encoder: in any case; it goes out in lower case.
    Other(&'a [u8]),
}

/// The pseudo-headers (RFC 9113 §8.3, RFC 8441 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Pseudo {
    Authority = FIRST_PSEUDO,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
}

/// Codes below are numbers of known names.
const FIRST_PSEUDO: u8 = 128;
/// By code, from `FIRST_PSEUDO` on.
const PSEUDO: [(Pseudo, &str); 6] = [
    (Pseudo::Authority, ":authority"),
    (Pseudo::Method, ":method"),
    (Pseudo::Path, ":path"),
    (Pseudo::Protocol, ":protocol"),
    (Pseudo::Scheme, ":scheme"),
    (Pseudo::Status, ":status"),
];

impl<'a> Name<'a> {
    /// A name of a head's entry: its number, 0 for none, and its text.
    pub fn new(id: u8, text: &'a [u8]) -> Self {
        if id == 0 { Self::Other(text) } else { Self::Known(id) }
    }

    /// As it stands on the wire.
    pub fn text(self) -> &'a [u8] {
        match self {
            Self::Other(text) => text,
            Self::Known(_) | Self::Pseudo(_) => text_of_code(self.code()).as_bytes(),
        }
    }

    /// One byte for a name: 0 for those that need their text.
    fn code(self) -> u8 {
        match self {
            Self::Pseudo(pseudo) => pseudo as u8,
            Self::Known(id) => id,
            Self::Other(_) => 0,
        }
    }

    fn from_code(code: u8, text: &'a [u8]) -> Self {
        match code.checked_sub(FIRST_PSEUDO) {
            None => Self::new(code, text),
            Some(i) => PSEUDO.get(usize::from(i)).map_or(Self::Other(text), |p| Self::Pseudo(p.0)),
        }
    }

    /// Of a text from the wire.
    fn parse(text: &'a [u8]) -> Self {
        if text.first() == Some(&b':') {
            let known = PSEUDO.iter().find(|p| p.1.as_bytes() == text);
            return known.map_or(Self::Other(text), |p| Self::Pseudo(p.0));
        }
        // `id_of` takes any case, HTTP/2 only the lower one (RFC 9113 §8.2.1).
        match id_of(text) {
            id if id != 0 && text_of(id).as_bytes() == text => Self::Known(id),
            _ => Self::Other(text),
        }
    }
}

/// Empty for code 0.
fn text_of_code(code: u8) -> &'static str {
    match code.checked_sub(FIRST_PSEUDO) {
        None => text_of(code),
        Some(i) => PSEUDO.get(usize::from(i)).map_or("", |p| p.1),
    }
}

/// Takes the fields of a block in their order.
pub trait Sink {
    /// What is not wanted is just dropped: decoding goes on, so that the table stays as the peer has it.
    ///
    /// `sensitive`: written so that nobody may ever index it (RFC 7541 §6.2.3), which holds for whoever passes it on.
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool);
}

impl<F: FnMut(Name<'_>, &[u8], bool)> Sink for F {
    fn field(&mut self, name: Name<'_>, value: &[u8], sensitive: bool) {
        self(name, value, sensitive);
    }
}

/// Why a block cannot be decoded. The tables of both sides differ from here on: the connection is lost
/// (COMPRESSION_ERROR, RFC 9113 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("the block ends within a field")]
    Truncated,
    #[error("an integer is longer than 32 bits")]
    IntegerOverflow,
    #[error("no entry has the index {0}")]
    Index(u32),
    #[error("a string is not in Huffman's code")]
    Huffman,
    #[error("a table size update of {0} is beyond the setting")]
    SizeUpdateTooLarge(u32),
    #[error("a table size update not at the start of the block, or the third one there")]
    SizeUpdateMisplaced,
    #[error("the table is larger than the acknowledged setting, and no update says otherwise")]
    SizeUpdateMissing,
}
