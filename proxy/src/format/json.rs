//! JSON formats: a tree compiled once, written without building a value. Typed where a string is one
//! operator alone, as Envoy's `json_format`; keys sorted; ends with a line break.

use serde_json::{Map, Number, Value};

use super::operator::{Operator, Shape};
use super::parse::{self, Piece};
use super::{Ctx, Formatter, Options};
use crate::config::compile::diagnostic::FieldPath;

/// A log line that would be longer is written again with shorter values: no peer's header may fill a log.
const LINE_LIMIT: usize = 8 * 1024;

/// A compiled `json_format`.
#[derive(Debug, Clone)]
pub struct JsonFormatter {
    root: Vec<(Box<[u8]>, Node)>,
    omit_empty: bool,
}

#[derive(Debug, Clone)]
enum Node {
    /// JSON text, known beforehand.
    Raw(Box<[u8]>),
    /// One operator: typed.
    Value(Operator),
    /// Several pieces: a string.
    Text(Formatter),
    /// Entries with the key's JSON text, colon included.
    Object(Vec<(Box<[u8]>, Node)>),
    List(Vec<Node>),
}

impl JsonFormatter {
    /// Compiles the format's struct; problems go to `path`.
    pub fn compile(
        format: &Map<String, Value>,
        options: Options,
        path: &FieldPath<'_>,
    ) -> Option<Self> {
        let root = compile_object(format, options, path)?;
        Some(Self { root, omit_empty: options.omit_empty_values })
    }

    /// Appends one line of JSON, however long.
    pub fn write(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        self.write_object(&self.root, true, ctx, usize::MAX, out);
        out.push(b'\n');
    }

    /// Appends a log's line of JSON, with shorter values where it would be longer than 8 KiB.
    pub fn write_line(&self, ctx: &Ctx<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        let mut limit = usize::MAX;
        loop {
            self.write_object(&self.root, true, ctx, limit, out);
            out.push(b'\n');
            if out.len() - start <= LINE_LIMIT || limit <= 16 {
                return;
            }
            out.truncate(start);
            limit = if limit == usize::MAX { LINE_LIMIT / 4 } else { limit / 2 };
        }
    }

    /// `false` where nothing was written because everything in it is missing.
    fn write_object(
        &self,
        entries: &[(Box<[u8]>, Node)],
        is_root: bool,
        ctx: &Ctx<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let start = out.len();
        out.push(b'{');
        let mut any = false;
        for (key, node) in entries {
            let before = out.len();
            if any {
                out.push(b',');
            }
            out.extend_from_slice(key);
            if self.write_node(node, ctx, limit, out) {
                any = true;
            } else {
                out.truncate(before);
            }
        }
        if !any && !is_root && self.omit_empty {
            out.truncate(start);
            return false;
        }
        out.push(b'}');
        true
    }

    fn write_node(&self, node: &Node, ctx: &Ctx<'_>, limit: usize, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Raw(text) => {
                out.extend_from_slice(text);
                !(self.omit_empty && &**text == b"null")
            }
            Node::Value(operator) => {
                if write_operator(operator, ctx, limit, out) {
                    return true;
                }
                if !self.omit_empty {
                    out.extend_from_slice(b"null");
                }
                !self.omit_empty
            }
            Node::Text(formatter) => {
                out.push(b'"');
                let start = out.len();
                formatter.write(ctx, out);
                cut(out, start, limit);
                finish_string(out, start);
                true
            }
            Node::Object(entries) => self.write_object(entries, false, ctx, limit, out),
            Node::List(nodes) => {
                out.push(b'[');
                let mut any = false;
                for node in nodes {
                    let before = out.len();
                    if any {
                        out.push(b',');
                    }
                    if self.write_node(node, ctx, limit, out) {
                        any = true;
                    } else {
                        out.truncate(before);
                    }
                }
                out.push(b']');
                true
            }
        }
    }
}

/// `false` and nothing written for a missing value.
fn write_operator(operator: &Operator, ctx: &Ctx<'_>, limit: usize, out: &mut Vec<u8>) -> bool {
    let quote_at = out.len();
    let quoted = operator.is_likely_text();
    if quoted {
        out.push(b'"');
    }
    let start = out.len();
    match operator.write(ctx, out) {
        Shape::Missing | Shape::Empty => {
            out.truncate(quote_at);
            return false;
        }
        Shape::Json => {
            if quoted {
                out.remove(quote_at);
            }
            if out.len() - quote_at > limit {
                out.truncate(quote_at);
                out.extend_from_slice(b"null");
            }
        }
        Shape::Text => {
            if !quoted {
                out.insert(quote_at, b'"');
            }
            let start = start.max(quote_at + 1);
            cut(out, start, limit);
            finish_string(out, start);
        }
    }
    true
}

/// Cuts at a character's boundary where the text is UTF-8.
fn cut(out: &mut Vec<u8>, start: usize, limit: usize) {
    if out.len() - start > limit {
        let mut end = start + limit;
        while end > start && out[end] & 0xc0 == 0x80 && start + limit - end < 3 {
            end -= 1;
        }
        out.truncate(end);
    }
}

fn compile_object(
    object: &Map<String, Value>,
    options: Options,
    path: &FieldPath<'_>,
) -> Option<Vec<(Box<[u8]>, Node)>> {
    let mut keys: Vec<&String> = object.keys().collect();
    keys.sort();
    let mut complete = true;
    let mut entries = Vec::with_capacity(keys.len());
    for key in keys {
        let mut text = Vec::new();
        write_string(key.as_bytes(), &mut text);
        text.push(b':');
        match compile_node(&object[key], options, &path.key("fields", key)) {
            Some(node) => entries.push((text.into(), node)),
            None => complete = false,
        }
    }
    complete.then_some(entries)
}

fn compile_node(value: &Value, options: Options, path: &FieldPath<'_>) -> Option<Node> {
    match value {
        Value::String(format) => {
            let mut pieces = parse::compile(format, path)?;
            if let [Piece::Operator(_)] = &*pieces
                && let Some(Piece::Operator(operator)) = pieces.pop()
            {
                return Some(Node::Value(operator));
            }
            let formatter = Formatter::from_pieces(pieces, options);
            Some(match formatter.as_literal() {
                Some(literal) => {
                    let mut text = Vec::new();
                    write_string(literal, &mut text);
                    Node::Raw(text.into())
                }
                None => Node::Text(formatter),
            })
        }
        Value::Object(object) => Some(Node::Object(compile_object(object, options, path)?)),
        Value::Array(values) => {
            let nodes: Vec<Option<Node>> = values
                .iter()
                .enumerate()
                .map(|(i, value)| compile_node(value, options, &path.index("values", i)))
                .collect();
            Some(Node::List(nodes.into_iter().collect::<Option<_>>()?))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let mut text = Vec::new();
            write_value(value, &mut text);
            Some(Node::Raw(text.into()))
        }
    }
}

/// The integer that a protobuf `number_value` stands for.
pub(super) fn integer(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let value = number.as_f64()?;
        (value.fract() == 0.0 && value.abs() < 9.0e15).then_some(value as i64)
    })
}

/// A value as Envoy's log serializer prints it: integers bare, other numbers as strings.
pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => match integer(number) {
            Some(integer) => {
                out.extend_from_slice(itoa::Buffer::new().format(integer).as_bytes());
            }
            None => {
                out.push(b'"');
                out.extend_from_slice(number.to_string().as_bytes());
                out.push(b'"');
            }
        },
        Value::String(text) => write_string(text.as_bytes(), out),
        Value::Array(values) => {
            out.push(b'[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(value, out);
            }
            out.push(b']');
        }
        Value::Object(object) => write_object(object, out),
    }
}

pub(super) fn write_object(object: &Map<String, Value>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (key, value)) in object.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(key.as_bytes(), out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

/// Appends a quoted string.
pub(super) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.extend_from_slice(text);
    finish_string(out, start);
}

/// Escapes what stands from `start` on, in place, and closes the string.
///
/// UTF-8 is escaped as JSON asks; in other bytes everything but plain ASCII becomes `\u00XX`, as in Envoy.
fn finish_string(out: &mut Vec<u8>, start: usize) {
    let text = &out[start..];
    // Every byte is looked at, so that the compiler can look at many at once.
    let is_plain = |b: u8| (0x20..=0x7e).contains(&b) & (b != b'"') & (b != b'\\');
    if !text.iter().fold(true, |plain, b| plain & is_plain(*b)) {
        let utf8 = std::str::from_utf8(text).is_ok();
        let extra: usize = text.iter().map(|b| escape_of(*b, utf8).extra()).sum();
        escape_in_place(out, start, extra, utf8);
    }
    out.push(b'"');
}

enum Escape {
    None,
    Short(u8),
    Hex,
}

impl Escape {
    fn extra(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Short(_) => 1,
            Self::Hex => 5,
        }
    }
}

fn escape_of(byte: u8, utf8: bool) -> Escape {
    match byte {
        b'"' | b'\\' if utf8 => Escape::Short(byte),
        b'\n' if utf8 => Escape::Short(b'n'),
        b'\r' if utf8 => Escape::Short(b'r'),
        b'\t' if utf8 => Escape::Short(b't'),
        0x08 if utf8 => Escape::Short(b'b'),
        0x0c if utf8 => Escape::Short(b'f'),
        0..0x20 => Escape::Hex,
        0x20..=0x7e if byte != b'"' && byte != b'\\' => Escape::None,
        0x7f.. if utf8 => Escape::None,
        _ => Escape::Hex,
    }
}

/// Grows the text by `extra` and moves it back to front, so that no second buffer is needed.
fn escape_in_place(out: &mut Vec<u8>, start: usize, extra: usize, utf8: bool) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut from = out.len();
    out.resize(from + extra, 0);
    let mut to = out.len();
    while from > start {
        from -= 1;
        let byte = out[from];
        match escape_of(byte, utf8) {
            Escape::None => {
                to -= 1;
                out[to] = byte;
            }
            Escape::Short(letter) => {
                to -= 2;
                out[to..to + 2].copy_from_slice(&[b'\\', letter]);
            }
            Escape::Hex => {
                to -= 6;
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out[to..to + 6].copy_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
}
