//! The protobuf wire form: length-delimited pieces written in one pass, and fields read one by one.

use prost::encoding::{WireType, decode_varint, encode_key, encode_varint, encoded_len_varint};

/// Opens a length-delimited field; what is appended until `close` is its content.
pub fn open(out: &mut Vec<u8>, number: u32) -> usize {
    encode_key(number, WireType::LengthDelimited, out);
    out.push(0);
    out.len()
}

/// Writes the length of what was appended since `open` gave `start`. One byte was left for it; a longer piece moves.
pub fn close(out: &mut Vec<u8>, start: usize) {
    let length = (out.len() - start) as u64;
    if length < 128 {
        out[start - 1] = length as u8;
        return;
    }
    let more = encoded_len_varint(length) - 1;
    out.resize(out.len() + more, 0);
    out.copy_within(start..start + length as usize, start + more);
    let mut prefix = Vec::with_capacity(10);
    encode_varint(length, &mut prefix);
    out[start - 1..start + more].copy_from_slice(&prefix);
}

pub fn write_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub fn write_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

/// The content of one field on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf")]
pub struct Malformed;

/// The fields of a message, in wire order.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn read(&mut self) -> Option<(u32, Value<'a>)> {
        let key = decode_varint(&mut self.0).ok()?;
        let number = u32::try_from(key >> 3).ok().filter(|&number| number > 0)?;
        let value = match key & 7 {
            0 => Value::Varint(decode_varint(&mut self.0).ok()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_none() {
            self.0 = &[];
        }
        Some(read.ok_or(Malformed))
    }
}

/// The last value of a string field, as of a resource's `name`; empty without one.
pub fn string_field(bytes: &[u8], wanted: u32) -> &str {
    let last = Fields(bytes).flatten().filter(|(number, _)| *number == wanted).last();
    match last {
        Some((_, Value::Bytes(text))) => std::str::from_utf8(text).unwrap_or_default(),
        _ => "",
    }
}
