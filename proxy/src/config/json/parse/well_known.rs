//! The messages that have a JSON form of their own: `Any` (with the `TypedStruct` in it), `Struct`, durations, masks.

use std::borrow::Cow;

use prost::encoding::{WireType, encode_key};

use super::{Parse, Result};
use crate::config::json::reader::{Event, Position, SyntaxError, unexpected_end};
use crate::config::json::scalar::{Plain, classify};
use crate::config::json::schema::Message;
use crate::config::json::wire;

impl<'t> Parse<'t, '_> {
    pub(super) fn time(
        &mut self,
        out: &mut Vec<u8>,
        expected: &str,
        parse: fn(&str) -> std::result::Result<(i64, i32), String>,
    ) -> Result<()> {
        let (event, at) = self.reader.next()?;
        match self.text(&event).map(|text| parse(&text)) {
            Some(Ok((seconds, nanos))) => {
                if seconds != 0 {
                    wire::write_varint(out, 1, seconds.cast_unsigned());
                }
                if nanos != 0 {
                    wire::write_varint(out, 2, i64::from(nanos).cast_unsigned());
                }
                Ok(())
            }
            Some(Err(reason)) => {
                self.problem(at, reason);
                Ok(())
            }
            None => self.wrong(&event, at, expected),
        }
    }

    pub(super) fn field_mask(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let (event, at) = self.reader.next()?;
        let Some(text) = self.text(&event) else {
            return self.wrong(&event, at, "a list of paths as one string");
        };
        for path in text.split(',').filter(|path| !path.is_empty()) {
            let mut snake = String::with_capacity(path.len() + 4);
            for letter in path.chars() {
                if letter.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(letter.to_ascii_lowercase());
            }
            wire::write_bytes(out, 1, snake.as_bytes());
        }
        Ok(())
    }

    pub(super) fn structure(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let (event, at) = self.reader.next()?;
        match event {
            Event::MapStart => self.structure_fields(out),
            event => self.wrong(&event, at, "a mapping"),
        }
    }

    fn structure_fields(&mut self, out: &mut Vec<u8>) -> Result<()> {
        while let Some((key, _)) = self.key()? {
            let entry = wire::open(out, 1);
            wire::write_bytes(out, 1, key.as_bytes());
            let value = wire::open(out, 2);
            self.at(&key, |this| this.value(out))?;
            wire::close(out, value);
            wire::close(out, entry);
        }
        Ok(())
    }

    /// The content of a `google.protobuf.Value`.
    pub(super) fn value(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let (event, at) = self.reader.next()?;
        match event {
            Event::MapStart => {
                let start = wire::open(out, 5);
                self.structure_fields(out)?;
                wire::close(out, start);
            }
            Event::ListStart => {
                let list = wire::open(out, 6);
                while self.reader.peek()?.0 != Event::ListEnd {
                    let start = wire::open(out, 1);
                    self.value(out)?;
                    wire::close(out, start);
                }
                self.reader.next()?;
                wire::close(out, list);
            }
            Event::Text(text) => wire::write_bytes(out, 3, text.as_bytes()),
            Event::Plain(text) => match classify(&text, self.reader.is_yaml()) {
                Plain::Null => wire::write_varint(out, 1, 0),
                Plain::Bool(value) => wire::write_varint(out, 4, value.into()),
                Plain::Integer(integer)
                    if self.reader.is_yaml() && i32::try_from(integer).is_err() =>
                {
                    wire::write_bytes(out, 3, integer.to_string().as_bytes());
                }
                Plain::Integer(integer) => write_double(out, integer as f64),
                Plain::Float(float) => write_double(out, float),
                Plain::Word => wire::write_bytes(out, 3, text.as_bytes()),
            },
            Event::MapEnd | Event::ListEnd | Event::End => return Err(unexpected_end(at)),
        }
        Ok(())
    }

    /// Reads a mapping up to the string under `wanted`, whose other entries are then still to be read.
    fn find_key(&mut self, wanted: &[&str]) -> Result<Option<(Cow<'t, str>, Position)>> {
        let mut early = Vec::new();
        loop {
            let (event, at) = self.reader.peek()?.clone();
            match event {
                Event::MapEnd => {
                    self.reader.put_back(early);
                    return Ok(None);
                }
                Event::Text(key) | Event::Plain(key) if wanted.contains(&&*key) => {
                    self.reader.next()?;
                    let (event, at) = self.reader.next()?;
                    let (Event::Text(text) | Event::Plain(text)) = event else {
                        return Err(SyntaxError {
                            at,
                            reason: format!("{key} has to be a string"),
                        });
                    };
                    if !early.is_empty() {
                        self.reader.put_back(early);
                    }
                    return Ok(Some((text, at)));
                }
                Event::End => return Err(unexpected_end(at)),
                _ => {
                    self.reader.keep(&mut early)?;
                    self.reader.keep(&mut early)?;
                }
            }
        }
    }

    pub(super) fn any(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let (event, at) = self.reader.next()?;
        if event != Event::MapStart {
            return self.wrong(&event, at, "a mapping with @type");
        }
        let Some((type_url, url_at)) = self.find_key(&["@type"])? else {
            if self.reader.peek()?.0 != Event::MapEnd {
                self.problem(at, "@type is missing");
            }
            return self.skip_rest(&Event::MapStart);
        };
        let Some(message) = Message::by_type_url(&type_url) else {
            self.problem(url_at, format!("unknown @type {type_url:?}"));
            return self.skip_rest(&Event::MapStart);
        };
        match message.name() {
            "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => {
                self.typed_struct(&type_url, out)
            }
            name => {
                wire::write_bytes(out, 1, type_url.as_bytes());
                let start = wire::open(out, 2);
                if has_own_form(name) {
                    self.any_value(message, out)?;
                } else {
                    self.fields(message, out)?;
                }
                wire::close(out, start);
                Ok(())
            }
        }
    }

    /// A message whose JSON form is not a mapping of its fields stands under `value`.
    fn any_value(&mut self, message: Message, out: &mut Vec<u8>) -> Result<()> {
        while let Some((key, at)) = self.key()? {
            self.at(&key, |this| {
                if key == "value" {
                    return this.message(message, out);
                }
                this.unknown(at, "unknown field");
                this.reader.skip()
            })?;
        }
        Ok(())
    }

    /// The rest of an `Any` that holds a `TypedStruct`: an `Any` of the type that it names, or if nobody knows
    /// that type, the `TypedStruct` itself, so that whoever meets it can name it.
    fn typed_struct(&mut self, outer: &str, out: &mut Vec<u8>) -> Result<()> {
        let inner =
            self.find_key(&["type_url", "typeUrl"])?.map(|(url, _)| url).unwrap_or_default();
        let message = Message::by_type_url(&inner).filter(|message| !has_own_form(message.name()));
        wire::write_bytes(
            out,
            1,
            if message.is_some() { inner.as_bytes() } else { outer.as_bytes() },
        );
        let start = wire::open(out, 2);
        if message.is_none() {
            wire::write_bytes(out, 1, inner.as_bytes());
        }
        while let Some((key, at)) = self.key()? {
            self.at(&key, |this| match message {
                Some(message) if key == "value" => this.message(message, out),
                None if key == "value" => {
                    let start = wire::open(out, 2);
                    this.structure(out)?;
                    wire::close(out, start);
                    Ok(())
                }
                _ => {
                    this.unknown(at, "unknown field");
                    this.reader.skip()
                }
            })?;
        }
        wire::close(out, start);
        Ok(())
    }
}

/// Whether the JSON form of a message is its own, and so stands under `value` in an `Any`.
pub fn has_own_form(name: &str) -> bool {
    name.strip_prefix("google.protobuf.").is_some_and(|name| {
        matches!(name, "Any" | "Duration" | "FieldMask" | "Struct" | "Timestamp")
            || name.ends_with("Value")
    })
}

fn write_double(out: &mut Vec<u8>, value: f64) {
    encode_key(2, WireType::SixtyFourBit, out);
    out.extend(value.to_le_bytes());
}
