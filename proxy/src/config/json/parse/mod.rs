//! The JSON form of a message, straight to its wire form: no tree is built between the two.
//!
//! A value that does not fit is noted with its path and reading goes on, so that one run reports every mistake; only a
//! text that is no YAML or JSON ends it. `Any` is written with its type at any depth; a `TypedStruct` becomes
//! the message whose URL it names. Static listeners, clusters and secrets go to a sink one by one.

mod well_known;

use std::borrow::Cow;
use std::fmt::Write;

use prost::encoding::{WireType, encode_key, encode_varint};
use smallvec::SmallVec;

use super::reader::{Event, Position, Reader, SyntaxError, unexpected_end};
use super::scalar::{self, Number, Plain, classify};
use super::schema::{Enum, Field, Kind, Message};
use super::wire;

pub use self::well_known::has_own_form;

/// After so many problems the rest is not looked for.
const MAX_PROBLEMS: usize = 100;

/// Something wrong, or unknown, in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub at: Position,
    /// Of the field, from the text's root.
    pub path: String,
    pub reason: String,
}

/// Takes a static resource: its message, bytes and path.
pub type Sink<'s> = &'s mut dyn FnMut(Message, Vec<u8>, &str);

type Result<T> = std::result::Result<T, SyntaxError>;

pub struct Parse<'t, 's> {
    reader: Reader<'t>,
    path: String,
    problems: Vec<Problem>,
    unknown: Vec<Problem>,
    sink: Option<(Message, Sink<'s>)>,
}

impl<'t, 's> Parse<'t, 's> {
    pub fn new(reader: Reader<'t>) -> Self {
        Self { reader, path: String::new(), problems: Vec::new(), unknown: Vec::new(), sink: None }
    }

    /// Gives the elements of the lists in `owner` to `sink`, and leaves them out of the message.
    pub fn divert(&mut self, owner: Message, sink: Sink<'s>) {
        self.sink = Some((owner, sink));
    }

    /// Reads the whole text as one message, appended to `out`. Gives the mistakes and the unknown fields.
    pub fn document(mut self, message: Message, out: &mut Vec<u8>) -> (Vec<Problem>, Vec<Problem>) {
        if let Err(error) = self.read_document(message, out) {
            let at = self.reader.locate(error.at);
            self.problems.push(Problem { at, path: self.path, reason: error.reason });
        }
        (self.problems, self.unknown)
    }

    fn read_document(&mut self, message: Message, out: &mut Vec<u8>) -> Result<()> {
        if self.peek_null()? {
            self.reader.next()?;
        } else if self.reader.peek()?.0 != Event::End {
            self.message(message, out)?;
        }
        let (event, at) = self.reader.next()?;
        if event != Event::End {
            return Err(SyntaxError { at, reason: "something follows the document".to_owned() });
        }
        Ok(())
    }

    fn problem(&mut self, at: Position, reason: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            let at = self.reader.locate(at);
            self.problems.push(Problem { at, path: self.path.clone(), reason: reason.into() });
        }
    }

    fn unknown(&mut self, at: Position, reason: impl Into<String>) {
        if self.unknown.len() < MAX_PROBLEMS {
            let at = self.reader.locate(at);
            self.unknown.push(Problem { at, path: self.path.clone(), reason: reason.into() });
        }
    }

    /// Notes that `event` is not what is expected, and reads over the rest of it.
    fn wrong(&mut self, event: &Event<'_>, at: Position, expected: &str) -> Result<()> {
        let found = match event {
            Event::MapStart => "a mapping".into(),
            Event::ListStart => "a list".into(),
            Event::Text(text) => format!("{text:?}"),
            Event::Plain(text) if text.is_empty() => "nothing".into(),
            Event::Plain(text) => text.to_string(),
            Event::MapEnd | Event::ListEnd | Event::End => return Err(unexpected_end(at)),
        };
        self.problem(at, format!("{expected} is expected, not {found}"));
        self.skip_rest(event)
    }

    fn skip_rest(&mut self, started: &Event<'_>) -> Result<()> {
        if *started == Event::MapStart || *started == Event::ListStart {
            while !matches!(self.reader.peek()?.0, Event::MapEnd | Event::ListEnd) {
                self.reader.skip()?;
            }
            self.reader.next()?;
        }
        Ok(())
    }

    fn peek_null(&mut self) -> Result<bool> {
        let yaml = self.reader.is_yaml();
        Ok(
            matches!(&self.reader.peek()?.0, Event::Plain(text) if classify(text, yaml) == Plain::Null),
        )
    }

    /// The next key of a mapping, or `None` at its end.
    fn key(&mut self) -> Result<Option<(Cow<'t, str>, Position)>> {
        let (event, at) = self.reader.next()?;
        match event {
            Event::MapEnd => Ok(None),
            Event::Text(text) | Event::Plain(text) => Ok(Some((text, at))),
            Event::End => Err(unexpected_end(at)),
            Event::MapStart | Event::ListStart | Event::ListEnd => {
                Err(SyntaxError { at, reason: "a key has to be a string".to_owned() })
            }
        }
    }

    /// Runs `inside` with `.name` on the path.
    fn at<T>(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = inside(self);
        if result.is_ok() {
            self.path.truncate(before);
        }
        result
    }

    /// Reads a list with `[index]` on the path of each element.
    fn list(&mut self, each: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let (event, at) = self.reader.next()?;
        if event != Event::ListStart {
            return self.wrong(&event, at, "a list");
        }
        let before = self.path.len();
        for index in 0.. {
            if self.reader.peek()?.0 == Event::ListEnd {
                break;
            }
            let _ = write!(self.path, "[{index}]");
            each(self)?;
            self.path.truncate(before);
        }
        self.reader.next()?;
        Ok(())
    }

    /// Reads the elements of a repeated field. As in protobuf's own reader, one element needs no list around it, and
    /// lists in lists are one list.
    fn repeated(&mut self, each: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.reader.peek()?.0 != Event::ListStart {
            let before = self.path.len();
            self.path.push_str("[0]");
            each(self)?;
            self.path.truncate(before);
            return Ok(());
        }
        self.list(&mut |this| match this.reader.peek()?.0 {
            Event::ListStart => this.repeated(each),
            _ => each(this),
        })
    }

    /// Takes a null in the place of a list's element, which then is the default.
    fn take_null(&mut self) -> Result<bool> {
        let is_null = self.peek_null()?;
        if is_null {
            self.reader.next()?;
        }
        Ok(is_null)
    }

    /// A value of message type, of any of the forms that JSON has for it.
    fn message(&mut self, message: Message, out: &mut Vec<u8>) -> Result<()> {
        let own_form = message.name().strip_prefix("google.protobuf.");
        if own_form.is_some_and(|name| !matches!(name, "Any" | "Struct" | "Value"))
            && self.reader.peek()?.0 == Event::MapStart
        {
            // `{seconds: 1}` for `1s`, `{value: true}` for `true`: protobuf's own reader takes both.
            self.reader.next()?;
            return self.fields(message, out);
        }
        match own_form {
            Some("Any") => self.any(out),
            Some("Struct") => self.structure(out),
            Some("Value") => self.value(out),
            Some("ListValue") => self.list(&mut |this| {
                let start = wire::open(out, 1);
                this.value(out)?;
                wire::close(out, start);
                Ok(())
            }),
            Some("Duration") => self.time(out, "a duration like 1.5s", scalar::parse_duration),
            Some("Timestamp") => self.time(out, "a time", scalar::parse_timestamp),
            Some("FieldMask") => self.field_mask(out),
            Some(wrapper) if wrapper.ends_with("Value") => match message.field_by_number(1) {
                Some(field) => self.single(field, false, out),
                None => self.reader.skip(),
            },
            _ => {
                let (event, at) = self.reader.next()?;
                match event {
                    Event::MapStart => self.fields(message, out),
                    event => self.wrong(&event, at, "a mapping"),
                }
            }
        }
    }

    /// The fields of a message whose mapping has begun.
    fn fields(&mut self, message: Message, out: &mut Vec<u8>) -> Result<()> {
        let mut seen = SmallVec::<[Field; 12]>::new();
        while let Some((key, at)) = self.key()? {
            let Some(field) = message.field(&key) else {
                self.at(&key, |this| {
                    this.unknown(at, "unknown field");
                    this.reader.skip()
                })?;
                continue;
            };
            self.at(field.name(), |this| {
                let is_null_value = match field.kind() {
                    Kind::Message(m) => m.name() == "google.protobuf.Value",
                    Kind::Enum(e) => e.name() == "google.protobuf.NullValue",
                    _ => false,
                };
                if !is_null_value && this.peek_null()? {
                    return this.reader.skip();
                }
                if seen.contains(&field) {
                    this.problem(at, "set twice");
                } else if let Some(other) =
                    seen.iter().copied().find(|f| f.oneof().is_some() && f.oneof() == field.oneof())
                {
                    this.problem(
                        at,
                        format!("only one of {} and {} can be set", other.name(), field.name()),
                    );
                }
                seen.push(field);
                this.field(message, field, out)
            })?;
        }
        Ok(())
    }

    fn field(&mut self, owner: Message, field: Field, out: &mut Vec<u8>) -> Result<()> {
        if field.is_map() {
            return self.map(field, out);
        }
        if !field.is_list() {
            return self.single(field, field.has_presence(), out);
        }
        match field.kind() {
            Kind::Message(message) if self.sink.as_ref().is_some_and(|(of, _)| *of == owner) => {
                self.repeated(&mut |this| {
                    let (before, mut bytes) = (this.problems.len(), Vec::new());
                    if !this.take_null()? {
                        this.message(message, &mut bytes)?;
                    }
                    if let (Some((_, sink)), true) = (&mut this.sink, before == this.problems.len())
                    {
                        sink(message, bytes, &this.path);
                    }
                    Ok(())
                })
            }
            // Lists and nulls are values of these.
            Kind::Message(message) if message.name() == "google.protobuf.Value" => {
                self.list(&mut |this| this.single(field, true, out))
            }
            Kind::Message(_) | Kind::String | Kind::Bytes => self.repeated(&mut |this| {
                if this.take_null()? {
                    wire::write_bytes(out, field.number(), b"");
                    return Ok(());
                }
                this.single(field, true, out)
            }),
            kind => {
                let start = wire::open(out, field.number());
                self.repeated(&mut |this| {
                    if this.take_null()? {
                        write_zero(kind, out);
                        return Ok(());
                    }
                    this.number(kind, out).map(|_| ())
                })?;
                if out.len() == start {
                    // An empty list is an unset one.
                    let mut key = Vec::new();
                    encode_key(field.number(), WireType::LengthDelimited, &mut key);
                    out.truncate(start - 1 - key.len());
                } else {
                    wire::close(out, start);
                }
                Ok(())
            }
        }
    }

    fn map(&mut self, field: Field, out: &mut Vec<u8>) -> Result<()> {
        let Kind::Message(entry) = field.kind() else { return self.reader.skip() };
        let (Some(key_field), Some(value_field)) =
            (entry.field_by_number(1), entry.field_by_number(2))
        else {
            return self.reader.skip();
        };
        let (event, at) = self.reader.next()?;
        if event != Event::MapStart {
            return self.wrong(&event, at, "a mapping");
        }
        while let Some((key, at)) = self.key()? {
            let before = self.path.len();
            let _ = write!(self.path, "[{key:?}]");
            let start = wire::open(out, field.number());
            match key_field.kind() {
                Kind::String => wire::write_bytes(out, 1, key.as_bytes()),
                Kind::Bool if key == "true" || key == "false" => {
                    wire::write_varint(out, 1, (key == "true").into())
                }
                kind => {
                    encode_key(1, wire_type(kind), out);
                    let written = Number::from_text(&key)
                        .ok_or_else(|| format!("a number is expected as key, not {key:?}"))
                        .and_then(|number| number.write(kind, out));
                    if let Err(reason) = written {
                        self.problem(at, reason);
                    }
                }
            }
            self.single(value_field, true, out)?;
            wire::close(out, start);
            self.path.truncate(before);
        }
        Ok(())
    }

    /// A value with its tag. The default is not written unless `keep_default`.
    fn single(&mut self, field: Field, keep_default: bool, out: &mut Vec<u8>) -> Result<()> {
        match field.kind() {
            Kind::Message(message) => {
                let start = wire::open(out, field.number());
                self.message(message, out)?;
                wire::close(out, start);
            }
            Kind::String => {
                let (event, at) = self.reader.next()?;
                match self.text(&event) {
                    Some(text) if keep_default || !text.is_empty() => {
                        wire::write_bytes(out, field.number(), text.as_bytes());
                    }
                    Some(_) => (),
                    None => self.wrong(&event, at, "a string")?,
                }
            }
            Kind::Bytes => {
                let (event, at) = self.reader.next()?;
                match self.text(&event).map(|text| scalar::decode_base64(&text)) {
                    Some(Ok(bytes)) if keep_default || !bytes.is_empty() => {
                        wire::write_bytes(out, field.number(), &bytes);
                    }
                    Some(Ok(_)) => (),
                    Some(Err(reason)) => self.problem(at, reason),
                    None => self.wrong(&event, at, "base64")?,
                }
            }
            kind => {
                let start = out.len();
                encode_key(field.number(), wire_type(kind), out);
                let is_default = self.number(kind, out)?;
                if is_default.is_none_or(|is_default| is_default && !keep_default) {
                    out.truncate(start);
                }
            }
        }
        Ok(())
    }

    /// What a string field takes. Integers beyond 32 bits are strings, as in Envoy's reading of YAML.
    fn text<'e>(&self, event: &'e Event<'t>) -> Option<Cow<'e, str>> {
        match event {
            Event::Text(text) => Some(Cow::Borrowed(text)),
            Event::Plain(text) => match classify(text, self.reader.is_yaml()) {
                Plain::Word => Some(Cow::Borrowed(text)),
                Plain::Integer(integer)
                    if self.reader.is_yaml() && i32::try_from(integer).is_err() =>
                {
                    Some(Cow::Owned(integer.to_string()))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// A number, boolean or enum without its tag: whether it is the default, or `None` if nothing was written.
    fn number(&mut self, kind: Kind, out: &mut Vec<u8>) -> Result<Option<bool>> {
        let (event, at) = self.reader.next()?;
        let (plain, text) = match &event {
            Event::Plain(text) => (classify(text, self.reader.is_yaml()), text),
            Event::Text(text) => (Plain::Word, text),
            _ => {
                self.wrong(&event, at, "a single value")?;
                return Ok(None);
            }
        };
        let number = match (kind, plain) {
            (Kind::Bool, Plain::Bool(value)) => {
                out.push(value.into());
                return Ok(Some(!value));
            }
            (Kind::Bool, _) => {
                let Some(value) = scalar::parse_bool(text).filter(|_| plain == Plain::Word) else {
                    self.wrong(&event, at, "true or false")?;
                    return Ok(None);
                };
                out.push(value.into());
                return Ok(Some(!value));
            }
            (Kind::Enum(names), Plain::Word | Plain::Bool(_)) => {
                return Ok(self.enum_name(names, text, at, out));
            }
            (Kind::Enum(_), Plain::Null) => Number::Integer(0),
            (_, Plain::Integer(integer)) => Number::Integer(integer),
            (_, Plain::Float(float)) => Number::Float(float),
            (_, Plain::Word) => match Number::from_text(text) {
                Some(number) => number,
                None => {
                    self.wrong(&event, at, "a number")?;
                    return Ok(None);
                }
            },
            _ => {
                self.wrong(&event, at, "a number")?;
                return Ok(None);
            }
        };
        match number.write(kind, out) {
            Ok(is_default) => Ok(Some(is_default)),
            Err(reason) => {
                self.problem(at, reason);
                Ok(None)
            }
        }
    }

    /// A name that the enum does not have counts as an unknown field, as in Envoy.
    fn enum_name(
        &mut self,
        names: Enum,
        text: &str,
        at: Position,
        out: &mut Vec<u8>,
    ) -> Option<bool> {
        if let Some(number) = names.number(text) {
            encode_varint(i64::from(number).cast_unsigned(), out);
            return Some(number == 0);
        }
        self.unknown(at, format!("unknown value {text:?} of {}", names.name()));
        None
    }
}

fn write_zero(kind: Kind, out: &mut Vec<u8>) {
    let size = match wire_type(kind) {
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        _ => 1,
    };
    out.extend_from_slice(&[0; 8][..size]);
}

fn wire_type(kind: Kind) -> WireType {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
        Kind::String | Kind::Bytes | Kind::Message(_) => WireType::LengthDelimited,
        _ => WireType::Varint,
    }
}
