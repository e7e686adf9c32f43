//! A message's wire form to its JSON form, as Envoy's admin interface prints it: fields by number under their .proto names,
//! enums by name, 64-bit numbers as strings, `Any` opened, secrets blotted out, one space of indentation.
//!
//! Nothing is built in between: text is appended as the bytes are read.

use std::borrow::Cow;
use std::fmt::Write;

use super::collected::Collected;
use super::mask::Mask;
use super::parse::has_own_form;
use super::scalar;
use super::schema::{Field, Kind, Message};
use super::wire::{Fields, Value};

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Nesting that is written; deeper messages come out empty.
const MAX_DEPTH: usize = 200;

/// How much is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// One line per value.
    pub pretty: bool,
    /// Numbers, strings, booleans, enums and lists that are unset too, as in `/server_info`.
    pub defaults: bool,
    /// Fields marked as sensitive by their value.
    pub secrets: bool,
}

impl Style {
    /// As `/config_dump` prints.
    pub const DUMP: Self = Self { pretty: true, defaults: false, secrets: false };
    /// As `/server_info` prints.
    pub const FULL: Self = Self { pretty: true, defaults: true, secrets: false };
}

/// Writes JSON: messages by their bytes, and around them whatever the caller opens.
#[derive(Debug)]
pub struct JsonWriter {
    out: String,
    style: Style,
    depth: usize,
    /// Something stands before in the innermost mapping or list.
    filled: bool,
    /// A key stands before: the value follows on its line.
    after_key: bool,
}

impl JsonWriter {
    pub fn new(style: Style) -> Self {
        Self { out: String::new(), style, depth: 0, filled: false, after_key: false }
    }

    /// What was written since the last time; to be sent on when it has grown.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// Bytes that `take` would give.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The whole text; Envoy ends it with a line end.
    pub fn finish(mut self) -> String {
        if self.style.pretty {
            self.out.push('\n');
        }
        self.out
    }

    fn line(&mut self) {
        if self.style.pretty {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.depth));
        }
    }

    /// Separates the value or key that follows from what stands before.
    fn separate(&mut self) {
        if self.after_key {
            self.after_key = false;
            return;
        }
        if self.filled {
            self.out.push(',');
        }
        if self.depth > 0 {
            self.line();
        }
        self.filled = true;
    }

    fn open(&mut self, bracket: char) {
        self.separate();
        self.out.push(bracket);
        self.depth += 1;
        self.filled = false;
    }

    fn close(&mut self, bracket: char) {
        self.depth -= 1;
        if self.filled {
            self.line();
        }
        self.out.push(bracket);
        self.filled = true;
    }

    pub fn open_map(&mut self) {
        self.open('{');
    }

    pub fn close_map(&mut self) {
        self.close('}');
    }

    pub fn open_list(&mut self) {
        self.open('[');
    }

    pub fn close_list(&mut self) {
        self.close(']');
    }

    pub fn key(&mut self, name: &str) {
        self.separate();
        write_string(&mut self.out, name);
        self.out.push_str(if self.style.pretty { ": " } else { ":" });
        self.after_key = true;
    }

    pub fn string(&mut self, text: &str) {
        self.separate();
        write_string(&mut self.out, text);
    }

    /// A number, boolean or `null`, as it is.
    pub fn plain(&mut self, value: impl std::fmt::Display) {
        self.separate();
        let _ = write!(self.out, "{value}");
    }

    /// A message by the name of its type; without one that the API knows, an empty mapping.
    pub fn message(&mut self, type_name: &str, bytes: &[u8], mask: Option<&Mask>) {
        match Message::by_type_url(type_name) {
            Some(message) => self.write_message(message, bytes, mask, false),
            None => {
                self.open_map();
                self.close_map();
            }
        }
    }

    /// The fields of a message, into the mapping that is open.
    pub fn fields(&mut self, type_name: &str, bytes: &[u8]) {
        if let Some(message) = Message::by_type_url(type_name) {
            self.write_fields(message, bytes, None, false);
        }
    }

    /// A message as in an `Any`: with its `@type`.
    pub fn any(&mut self, type_url: &str, bytes: &[u8], mask: Option<&Mask>) {
        self.write_any(type_url, bytes, mask, false);
    }

    /// `secret`: inside of a sensitive field, where strings are blotted out and the rest is not shown.
    fn write_message(&mut self, message: Message, bytes: &[u8], mask: Option<&Mask>, secret: bool) {
        if self.depth > MAX_DEPTH {
            self.open_map();
            self.close_map();
            return;
        }
        match message.name().strip_prefix("google.protobuf.") {
            Some("Any") => {
                let any = Collected::new(bytes);
                let type_url = any.text(1);
                if type_url.is_empty() {
                    self.open_map();
                    self.close_map();
                } else {
                    self.write_any(type_url, any.bytes(2), mask, secret);
                }
            }
            Some("Struct") => self.write_struct(bytes, secret),
            Some("Value") => self.write_value(bytes, secret),
            Some("ListValue") => {
                self.open_list();
                for (_, value) in Fields(bytes).flatten() {
                    if let Value::Bytes(value) = value {
                        self.write_value(value, secret);
                    }
                }
                self.close_list();
            }
            Some(name @ ("Duration" | "Timestamp")) => {
                let fields = Collected::new(bytes);
                let (seconds, nanos) = (fields.varint(1).cast_signed(), fields.varint(2) as i32);
                let mut text = String::new();
                match name {
                    "Duration" => scalar::write_duration(&mut text, seconds, nanos),
                    _ => scalar::write_timestamp(&mut text, seconds, nanos),
                }
                self.string(&text);
            }
            Some("FieldMask") => {
                let paths = Fields(bytes).flatten().filter_map(|(_, value)| match value {
                    Value::Bytes(path) => std::str::from_utf8(path).ok(),
                    _ => None,
                });
                let paths: Vec<_> = paths.map(camel).collect();
                self.string(&paths.join(","));
            }
            Some(wrapper) if wrapper.ends_with("Value") => {
                let fields = Collected::new(bytes);
                match (message.field_by_number(1), fields.last(1)) {
                    (Some(field), Some(value)) => self.write_single(field, value, None, secret),
                    (Some(field), None) => self.write_default(field),
                    _ => self.plain("null"),
                }
            }
            _ => {
                self.open_map();
                self.write_fields(message, bytes, mask, secret);
                self.close_map();
            }
        }
    }

    fn write_any(&mut self, type_url: &str, bytes: &[u8], mask: Option<&Mask>, secret: bool) {
        self.open_map();
        self.key("@type");
        self.string(type_url);
        match Message::by_type_url(type_url) {
            Some(message) if has_own_form(message.name()) => {
                self.key("value");
                self.write_message(message, bytes, mask, secret);
            }
            Some(message) => self.write_fields(message, bytes, mask, secret),
            None => {
                self.key("value");
                self.string(&if secret { REDACTED.into() } else { scalar::encode_base64(bytes) });
            }
        }
        self.close_map();
    }

    fn write_fields(&mut self, message: Message, bytes: &[u8], mask: Option<&Mask>, secret: bool) {
        let set = Collected::new(bytes);
        for field in message.fields() {
            let mask = match mask {
                Some(mask) if !mask.is_empty() => match mask.sub(field) {
                    Some(mask) => Some(mask),
                    None => continue,
                },
                _ => None,
            };
            let values = set.all(field.number());
            let secret = (secret || field.is_sensitive()) && !self.style.secrets;
            if values.is_empty() {
                if self.style.defaults && !field.has_presence() {
                    self.key(field.name());
                    self.write_default(field);
                }
            } else if field.is_map() {
                self.key(field.name());
                self.write_map(field, values, secret);
            } else if field.is_list() {
                self.key(field.name());
                self.open_list();
                for (_, value) in values {
                    self.write_element(field, *value, secret);
                }
                self.close_list();
            } else if let (Kind::Message(inner), [_, _, ..]) = (field.kind(), values) {
                let merged: Vec<u8> =
                    values.iter().flat_map(|(_, value)| value.bytes()).copied().collect();
                self.key(field.name());
                self.write_message(inner, &merged, mask, secret);
            } else if let Some((_, value)) = values.last() {
                let hidden = secret && !matches!(value, Value::Bytes(_));
                let is_default =
                    !field.has_presence() && !self.style.defaults && value.is_default();
                if !hidden && !is_default {
                    self.key(field.name());
                    self.write_single(field, *value, mask, secret);
                }
            }
        }
    }

    fn write_map(&mut self, field: Field, entries: &[(u32, Value<'_>)], secret: bool) {
        self.open_map();
        let Kind::Message(entry) = field.kind() else { return self.close_map() };
        for (_, bytes) in entries {
            let fields = Collected::new(bytes.bytes());
            let (Some(key), Some(value)) = (entry.field_by_number(1), entry.field_by_number(2))
            else {
                continue;
            };
            match (key.kind(), fields.last(1)) {
                (Kind::String, _) => self.key(fields.text(1)),
                (Kind::Bool, _) => self.key(if fields.varint(1) == 0 { "false" } else { "true" }),
                (Kind::Int32 | Kind::Int64, _) => {
                    self.key(&fields.varint(1).cast_signed().to_string())
                }
                (_, Some(Value::Fixed64(number))) => self.key(&number.to_string()),
                (_, Some(Value::Fixed32(number))) => self.key(&number.to_string()),
                _ => self.key(&fields.varint(1).to_string()),
            }
            match (fields.last(2), value.kind()) {
                (Some(set), _) => self.write_single(value, set, None, secret),
                (None, Kind::Message(message)) => self.write_message(message, &[], None, secret),
                (None, _) => self.write_default(value),
            }
        }
        self.close_map();
    }

    /// One element of a list, or many of them where they are packed.
    fn write_element(&mut self, field: Field, value: Value<'_>, secret: bool) {
        let Value::Bytes(mut packed) = value else {
            return self.write_single(field, value, None, secret);
        };
        match field.kind() {
            Kind::Message(_) | Kind::String | Kind::Bytes => {
                self.write_single(field, value, None, secret)
            }
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                for eight in packed.as_chunks::<8>().0 {
                    self.write_single(
                        field,
                        Value::Fixed64(u64::from_le_bytes(*eight)),
                        None,
                        secret,
                    );
                }
            }
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                for four in packed.as_chunks::<4>().0 {
                    self.write_single(
                        field,
                        Value::Fixed32(u32::from_le_bytes(*four)),
                        None,
                        secret,
                    );
                }
            }
            _ => {
                while let (false, Ok(number)) =
                    (packed.is_empty(), prost::encoding::decode_varint(&mut packed))
                {
                    self.write_single(field, Value::Varint(number), None, secret);
                }
            }
        }
    }

    fn write_single(&mut self, field: Field, value: Value<'_>, mask: Option<&Mask>, secret: bool) {
        match (field.kind(), value) {
            (Kind::Message(message), Value::Bytes(bytes)) => {
                self.write_message(message, bytes, mask, secret)
            }
            (Kind::String, Value::Bytes(bytes)) => {
                self.string(if secret {
                    REDACTED
                } else {
                    std::str::from_utf8(bytes).unwrap_or_default()
                });
            }
            (Kind::Bytes, Value::Bytes(bytes)) => {
                self.string(&scalar::encode_base64(if secret {
                    REDACTED.as_bytes()
                } else {
                    bytes
                }));
            }
            (Kind::Double, Value::Fixed64(bits)) => self.float(f64::from_bits(bits), 15, 17),
            (Kind::Float, Value::Fixed32(bits)) => {
                // Through the decimal form, so that 0.1 stays 0.1.
                let short = f32::from_bits(bits).to_string().parse().unwrap_or_default();
                self.float(short, 6, 9);
            }
            (Kind::Int64, Value::Varint(number)) => self.quoted(number.cast_signed()),
            (Kind::Uint64, Value::Varint(number)) => self.quoted(number),
            (Kind::Sint64, Value::Varint(number)) => self.quoted(unzigzag(number)),
            (Kind::Fixed64, Value::Fixed64(number)) => self.quoted(number),
            (Kind::Sfixed64, Value::Fixed64(number)) => self.quoted(number.cast_signed()),
            (Kind::Int32, Value::Varint(number)) => self.plain(number as i32),
            (Kind::Uint32, Value::Varint(number)) => self.plain(number as u32),
            (Kind::Sint32, Value::Varint(number)) => self.plain(unzigzag(number)),
            (Kind::Fixed32, Value::Fixed32(number)) => self.plain(number),
            (Kind::Sfixed32, Value::Fixed32(number)) => self.plain(number.cast_signed()),
            (Kind::Bool, Value::Varint(number)) => self.plain(number != 0),
            (Kind::Enum(names), Value::Varint(number)) => match names.value_name(number as i32) {
                _ if names.name() == "google.protobuf.NullValue" => self.plain("null"),
                Some(name) => self.string(name),
                None => self.plain(number as i32),
            },
            // The wire's type is not the field's: a later version of the API, which cannot be shown.
            _ => self.plain("null"),
        }
    }

    fn write_default(&mut self, field: Field) {
        if field.is_map() {
            self.open_map();
            return self.close_map();
        }
        if field.is_list() {
            self.open_list();
            return self.close_list();
        }
        match field.kind() {
            Kind::String | Kind::Bytes => self.string(""),
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
                self.string("0")
            }
            Kind::Bool => self.plain("false"),
            Kind::Enum(names) => self.string(names.value_name(0).unwrap_or_default()),
            Kind::Message(_) => self.plain("null"),
            _ => self.plain(0),
        }
    }

    fn quoted(&mut self, number: impl std::fmt::Display) {
        self.separate();
        let _ = write!(self.out, "\"{number}\"");
    }

    /// As C's `%g` with the digits that are needed: from `short` on, or below 0.0001, with an exponent.
    fn float(&mut self, value: f64, short: usize, long: usize) {
        if !value.is_finite() {
            return self.string(match value {
                f64::INFINITY => "Infinity",
                f64::NEG_INFINITY => "-Infinity",
                _ => "NaN",
            });
        }
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let count = digits.bytes().filter(u8::is_ascii_digit).count();
        let precision = if count <= short { short } else { long };
        if exponent < -4 || exponent >= precision as i32 {
            let sign = if exponent < 0 { '-' } else { '+' };
            self.plain(format_args!("{digits}e{sign}{:02}", exponent.abs()));
        } else {
            self.plain(value);
        }
    }

    fn write_struct(&mut self, bytes: &[u8], secret: bool) {
        self.open_map();
        for (_, entry) in Fields(bytes).flatten() {
            let entry = Collected::new(entry.bytes());
            self.key(entry.text(1));
            self.write_value(entry.bytes(2), secret);
        }
        self.close_map();
    }

    fn write_value(&mut self, bytes: &[u8], secret: bool) {
        if self.depth > MAX_DEPTH {
            return self.plain("null");
        }
        match Fields(bytes).flatten().last() {
            Some((2, Value::Fixed64(bits))) if !secret => self.float(f64::from_bits(bits), 15, 17),
            Some((3, Value::Bytes(text))) => {
                self.string(if secret {
                    REDACTED
                } else {
                    std::str::from_utf8(text).unwrap_or_default()
                });
            }
            Some((4, Value::Varint(value))) if !secret => self.plain(value != 0),
            Some((5, Value::Bytes(fields))) => self.write_struct(fields, secret),
            Some((6, Value::Bytes(list))) => {
                self.open_list();
                for (_, value) in Fields(list).flatten() {
                    self.write_value(value.bytes(), secret);
                }
                self.close_list();
            }
            _ => self.plain("null"),
        }
    }
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn camel(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for letter in path.chars() {
        match letter {
            '_' => upper = true,
            _ if upper => {
                out.push(letter.to_ascii_uppercase());
                upper = false;
            }
            _ => out.push(letter),
        }
    }
    out
}

/// Escapes what protobuf's own writer escapes: beside JSON's needs also angle brackets and invisible letters.
fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        let escaped: Cow<'_, str> = match letter {
            ' ' | '!' | '#'..=';' | '=' | '?'..='[' | ']'..='~' => {
                out.push(letter);
                continue;
            }
            '"' => "\\\"".into(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            '\r' => "\\r".into(),
            '\t' => "\\t".into(),
            '\u{8}' => "\\b".into(),
            '\u{c}' => "\\f".into(),
            '\0'..='\u{1f}'
            | '<'
            | '>'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{600}'..='\u{603}'
            | '\u{6dd}'
            | '\u{70f}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' => format!("\\u{:04x}", u32::from(letter)).into(),
            _ => {
                out.push(letter);
                continue;
            }
        };
        out.push_str(&escaped);
    }
    out.push('"');
}
