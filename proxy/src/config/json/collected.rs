//! A message's fields gathered by their numbers, as the writer of JSON needs them.

use smallvec::SmallVec;

use super::wire::{Fields, Value};

impl<'a> Value<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    pub(super) fn is_default(self) -> bool {
        match self {
            Value::Varint(number) | Value::Fixed64(number) => number == 0,
            Value::Fixed32(number) => number == 0,
            Value::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

/// The fields of a message by number, each with its values in the order of the wire.
pub(super) struct Collected<'a>(SmallVec<[(u32, Value<'a>); 8]>);

impl<'a> Collected<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut fields: SmallVec<[_; 8]> = Fields(bytes).flatten().collect();
        if !fields.is_sorted_by_key(|(number, _)| *number) {
            fields.sort_by_key(|(number, _)| *number);
        }
        Self(fields)
    }

    pub(super) fn all(&self, number: u32) -> &[(u32, Value<'a>)] {
        let start = self.0.partition_point(|(other, _)| *other < number);
        let end = self.0.partition_point(|(other, _)| *other <= number);
        &self.0[start..end]
    }

    pub(super) fn last(&self, number: u32) -> Option<Value<'a>> {
        self.all(number).last().map(|(_, value)| *value)
    }

    pub(super) fn bytes(&self, number: u32) -> &'a [u8] {
        self.last(number).map_or(&[], Value::bytes)
    }

    pub(super) fn text(&self, number: u32) -> &'a str {
        std::str::from_utf8(self.bytes(number)).unwrap_or_default()
    }

    pub(super) fn varint(&self, number: u32) -> u64 {
        match self.last(number) {
            Some(Value::Varint(value)) => value,
            _ => 0,
        }
    }
}
