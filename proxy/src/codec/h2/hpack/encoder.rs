//! Fields to blocks (RFC 7541 §6), and what is worth an entry of the table.
//!
//! A field that came before and may come again goes as an index. What is different in every message only pushes
//! other entries out: names whose values are known to be so are never put into the table, and any other name has
//! to show that its values return.

use smallvec::SmallVec;

use super::search::{Hash, MAX_BYTES, Match, Table};
use super::{DEFAULT_TABLE_BYTES, Name, huffman, integer, static_table};
use crate::codec::name::ids;

/// A larger part of the table is not spent on one field.
const MAX_SHARE_OF_TABLE: usize = 4;
/// So many new values of a name in a row go by before another one is tried.
const PATIENCE: u8 = 8;
/// Shorter cookies could be guessed one by one from the length of what goes out (RFC 7541 §7.1.3; nghttp2's bound).
const SAFE_COOKIE_BYTES: usize = 20;

/// The side of a connection that sends.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The largest table that we want to keep.
    limit: usize,
    /// The next block has to tell the table's size, and first the smallest since the last block, which is this.
    due: Option<usize>,
}

/// What becomes of a field whose like the tables do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Into the table, if it pays.
    Insert,
    /// Into the table for its name's sake.
    InsertName,
    /// Written out.
    Literal,
    /// Written out, and by whoever passes it on too.
    Never,
}

impl Encoder {
    /// `limit` is the most of a table that we keep, in bytes, whatever more the peer would allow.
    pub fn new(limit: u32) -> Self {
        let mut encoder =
            Self { table: Table::default(), limit: (limit as usize).min(MAX_BYTES), due: None };
        encoder.table.resize(DEFAULT_TABLE_BYTES);
        encoder.set_max_table(DEFAULT_TABLE_BYTES as u32);
        encoder
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. The next block begins with what that changes.
    pub fn set_max_table(&mut self, bytes: u32) {
        let max = (bytes as usize).min(self.limit);
        if max != self.table.max() {
            self.due = Some(self.due.map_or(max, |smallest| smallest.min(max)));
            self.table.resize(max);
        }
    }

    /// Appends a field to the block in `out`. Names may have capitals: they go out as small letters.
    ///
    /// `sensitive`: nobody may ever index it, as its sender wanted it.
    pub fn encode(&mut self, out: &mut Vec<u8>, name: Name<'_>, value: &[u8], sensitive: bool) {
        if let Some(smallest) = self.due.take() {
            self.tell_size(out, smallest);
        }
        match name {
            Name::Other(text) if text.iter().any(u8::is_ascii_uppercase) => {
                let mut lower = SmallVec::<[u8; 64]>::from_slice(text);
                lower.make_ascii_lowercase();
                self.encode_lower(out, Name::parse(&lower), value, sensitive);
            }
            name => self.encode_lower(out, name, value, sensitive),
        }
    }

    fn tell_size(&self, out: &mut Vec<u8>, smallest: usize) {
        if smallest < self.table.max() {
            integer::put(out, 0x20, 5, smallest);
        }
        integer::put(out, 0x20, 5, self.table.max());
    }

    #[inline]
    fn encode_lower(&mut self, out: &mut Vec<u8>, name: Name<'_>, value: &[u8], sensitive: bool) {
        let policy = if sensitive { Policy::Never } else { policy(name, value) };
        let found = static_table::find(name, value);
        let mut index = match found {
            static_table::Match::Field(index) if policy != Policy::Never => {
                integer::put(out, 0x80, 7, index);
                return;
            }
            static_table::Match::Field(index) | static_table::Match::Name(index) => index,
            static_table::Match::Nothing => 0,
        };
        let (first, bits) = match policy {
            Policy::Literal => (0, 4),
            Policy::Never => (0x10, 4),
            Policy::Insert | Policy::InsertName => {
                match self.find(&mut index, name, value, policy) {
                    Found::Field => {
                        integer::put(out, 0x80, 7, index);
                        return;
                    }
                    Found::Inserted => (0x40, 6),
                    Found::NotWorth => (0, 4),
                }
            }
        };
        integer::put(out, first, bits, index);
        if index == 0 {
            put_string(out, name.text());
        }
        put_string(out, value);
    }

    /// Looks into the dynamic table, and puts in what is worth it. `index` is the static one of the name, or 0, and
    /// becomes the one to write.
    fn find(&mut self, index: &mut usize, name: Name<'_>, value: &[u8], policy: Policy) -> Found {
        let hash = Hash::of(name, value);
        let is_worth = match self.table.find(name, value, hash) {
            Match::Field { age } => {
                *index = static_table::LEN + 1 + age;
                return Found::Field;
            }
            Match::Name { age } => {
                if *index == 0 {
                    *index = static_table::LEN + 1 + age;
                }
                policy == Policy::Insert && self.table.is_worth(age, PATIENCE)
            }
            Match::Nothing => true,
        };
        if is_worth && Table::cost(name, value) <= self.table.max() / MAX_SHARE_OF_TABLE {
            self.table.insert(name, value, hash);
            return Found::Inserted;
        }
        Found::NotWorth
    }
}

/// What became of a field in the dynamic table.
enum Found {
    Field,
    Inserted,
    NotWorth,
}

fn policy(name: Name<'_>, value: &[u8]) -> Policy {
    match name {
        // Secrets: whoever can have us send what he likes beside them must not learn them by the length (RFC 7541
        // §7.1), and clients share our connections.
        Name::Known(ids::AUTHORIZATION) | Name::Other(b"proxy-authorization") => Policy::Never,
        Name::Known(ids::COOKIE | ids::SET_COOKIE) if value.len() < SAFE_COOKIE_BYTES => {
            Policy::Never
        }
        // Others in every message, under names of the static table.
        Name::Known(
            ids::AGE
            | ids::CONTENT_LENGTH
            | ids::COOKIE
            | ids::ETAG
            | ids::EXPIRES
            | ids::IF_MODIFIED_SINCE
            | ids::IF_NONE_MATCH
            | ids::IF_RANGE
            | ids::LAST_MODIFIED
            | ids::LOCATION
            | ids::SET_COOKIE,
        )
        | Name::Other(b"content-range" | b"range") => Policy::Literal,
        // And under names that are worth an entry.
        Name::Known(
            ids::GRPC_MESSAGE
            | ids::GRPC_TIMEOUT
            | ids::TRACEPARENT
            | ids::X_CLIENT_TRACE_ID
            | ids::X_ENVOY_UPSTREAM_SERVICE_TIME
            | ids::X_OT_SPAN_CONTEXT
            | ids::X_REQUEST_ID,
        ) => Policy::InsertName,
        Name::Known(_) | Name::Pseudo(_) | Name::Other(_) => Policy::Insert,
    }
}

/// In Huffman's code where that is shorter.
fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let length = huffman::encoded_len(text);
    if length < text.len() {
        integer::put(out, 0x80, 7, length);
        huffman::encode(text, out);
    } else {
        integer::put(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}
