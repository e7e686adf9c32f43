//! The xDS API's messages, fields and enums, read in place from `descriptors/xds.schema`.
//!
//! The file is part of the binary; a page of it costs memory only while somebody looks at it, and nothing is
//! decoded or allocated. It is made by `descriptors/make` from the .proto files that envoy-types ships. Layout, all
//! little-endian: `xDS1`, the row counts of four tables, the tables (messages: name, name length u16, fields u16, first field;
//! fields: number, name, name length u8, kind u8, flags u16, type u16, oneof u16; enums: as messages; values: number, name,
//! name length u32), then the names. Messages and enums are sorted by name, fields by number. Numbers without a width are u32.

use std::cmp::Ordering;

static SCHEMA: &[u8] = include_bytes!("../../../descriptors/xds.schema");

const HEADER: usize = 20;
const MESSAGE_ROW: usize = 12;
const FIELD_ROW: usize = 16;
const ENUM_ROW: usize = 12;
const VALUE_ROW: usize = 12;

fn u16_at(at: usize) -> u16 {
    u16::from_le_bytes([SCHEMA[at], SCHEMA[at + 1]])
}

fn u32_at(at: usize) -> u32 {
    u32::from_le_bytes([SCHEMA[at], SCHEMA[at + 1], SCHEMA[at + 2], SCHEMA[at + 3]])
}

fn rows(table: usize) -> usize {
    u32_at(4 + 4 * table) as usize
}

fn fields_start() -> usize {
    HEADER + rows(0) * MESSAGE_ROW
}

fn enums_start() -> usize {
    fields_start() + rows(1) * FIELD_ROW
}

fn values_start() -> usize {
    enums_start() + rows(2) * ENUM_ROW
}

fn name_at(offset: u32, length: usize) -> &'static str {
    let start = values_start() + rows(3) * VALUE_ROW + offset as usize;
    std::str::from_utf8(&SCHEMA[start..start + length]).expect("the schema's names are UTF-8")
}

/// The row in a table sorted by name.
fn find(name: &str, count: usize, name_of: impl Fn(usize) -> &'static str) -> Option<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        match name_of(middle).cmp(name) {
            Ordering::Equal => return Some(middle),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    None
}

/// A message type of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message(u16);

impl Message {
    /// By full name, `envoy.config.cluster.v3.Cluster`.
    pub fn find(name: &str) -> Option<Self> {
        find(name, rows(0), |row| Self(row as u16).name()).map(|row| Self(row as u16))
    }

    /// By the URL in an `Any`: what stands after the last slash counts.
    pub fn by_type_url(type_url: &str) -> Option<Self> {
        Self::find(type_url.rsplit('/').next().unwrap_or(type_url))
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..rows(0)).map(|row| Self(row as u16))
    }

    fn row(self) -> usize {
        HEADER + usize::from(self.0) * MESSAGE_ROW
    }

    pub fn name(self) -> &'static str {
        name_at(u32_at(self.row()), usize::from(u16_at(self.row() + 4)))
    }

    /// In order of their numbers.
    pub fn fields(self) -> impl ExactSizeIterator<Item = Field> + Clone {
        let first = u32_at(self.row() + 8);
        let count = u32::from(u16_at(self.row() + 6));
        (0..count).map(move |index| Field(first + index))
    }

    /// By its name in the .proto file or, as JSON writes it, in camel case.
    pub fn field(self, name: &str) -> Option<Field> {
        let snake = self.fields().find(|field| field.name() == name);
        snake.or_else(|| self.fields().find(|field| is_camel_of(field.name(), name)))
    }

    pub fn field_by_number(self, number: u32) -> Option<Field> {
        let first = u32_at(self.row() + 8);
        let (mut low, mut high) = (first, first + u32::from(u16_at(self.row() + 6)));
        while low < high {
            let middle = u32::midpoint(low, high);
            match Field(middle).number().cmp(&number) {
                Ordering::Equal => return Some(Field(middle)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// Whether `camel` is what JSON makes of `snake`.
fn is_camel_of(snake: &str, camel: &str) -> bool {
    let mut written = camel.bytes();
    let mut upper = false;
    for byte in snake.bytes() {
        if byte == b'_' {
            upper = true;
            continue;
        }
        let expected = if upper { byte.to_ascii_uppercase() } else { byte };
        upper = false;
        if written.next() != Some(expected) {
            return false;
        }
    }
    written.next().is_none()
}

/// How a value of the field is written, as `FieldDescriptorProto.Type` has it; groups do not occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message(Message),
    Bytes,
    Uint32,
    Enum(Enum),
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
}

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(u32);

impl Field {
    fn row(self) -> usize {
        fields_start() + self.0 as usize * FIELD_ROW
    }

    /// The field's place among all fields of the schema: an index for tables beside it.
    pub fn ordinal(self) -> usize {
        self.0 as usize
    }

    /// How many ordinals there are.
    pub fn count() -> usize {
        rows(1)
    }

    pub fn number(self) -> u32 {
        u32_at(self.row())
    }

    /// As the .proto file writes it.
    pub fn name(self) -> &'static str {
        name_at(u32_at(self.row() + 4), usize::from(SCHEMA[self.row() + 8]))
    }

    pub fn kind(self) -> Kind {
        let named = u16_at(self.row() + 12);
        match SCHEMA[self.row() + 9] {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::Uint64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => Kind::Message(Message(named)),
            12 => Kind::Bytes,
            13 => Kind::Uint32,
            14 => Kind::Enum(Enum(named)),
            15 => Kind::Sfixed32,
            16 => Kind::Sfixed64,
            17 => Kind::Sint32,
            _ => Kind::Sint64,
        }
    }

    fn flag(self, bit: u16) -> bool {
        u16_at(self.row() + 10) & (1 << bit) != 0
    }

    /// `repeated`, and not a map.
    pub fn is_list(self) -> bool {
        self.flag(0)
    }

    /// A map; its kind is the entry's message, with key 1 and value 2.
    pub fn is_map(self) -> bool {
        self.flag(1)
    }

    /// Whether unset differs from the default: messages, `optional`, members of a oneof.
    pub fn has_presence(self) -> bool {
        self.flag(2)
    }

    pub fn is_deprecated(self) -> bool {
        self.flag(3)
    }

    /// Not to be shown (`udpa.annotations.sensitive`): private keys, passwords.
    pub fn is_sensitive(self) -> bool {
        self.flag(4)
    }

    /// Which oneof of its message the field belongs to.
    pub fn oneof(self) -> Option<u16> {
        Some(u16_at(self.row() + 14)).filter(|&oneof| oneof != u16::MAX)
    }
}

/// An enum of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enum(u16);

impl Enum {
    fn row(self) -> usize {
        enums_start() + usize::from(self.0) * ENUM_ROW
    }

    pub fn name(self) -> &'static str {
        name_at(u32_at(self.row()), usize::from(u16_at(self.row() + 4)))
    }

    fn values(self) -> impl Iterator<Item = (i32, &'static str)> {
        let first = u32_at(self.row() + 8) as usize;
        let count = usize::from(u16_at(self.row() + 6));
        (first..first + count).map(|row| {
            let row = values_start() + row * VALUE_ROW;
            let length = u32_at(row + 8) as usize;
            (u32_at(row).cast_signed(), name_at(u32_at(row + 4), length))
        })
    }

    /// The value of a name, in any case: Envoy reads them so.
    pub fn number(self, name: &str) -> Option<i32> {
        let same = |(_, other): &(i32, &str)| other.eq_ignore_ascii_case(name);
        self.values().find(same).map(|(number, _)| number)
    }

    /// The first name with that number.
    pub fn value_name(self, number: i32) -> Option<&'static str> {
        self.values().find(|(other, _)| *other == number).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_fields_are_found() {
        let cluster =
            Message::by_type_url("type.googleapis.com/envoy.config.cluster.v3.Cluster").unwrap();
        let field = cluster.field("http2ProtocolOptions").unwrap();
        assert_eq!(field, cluster.field("http2_protocol_options").unwrap());
        let Kind::Message(options) = field.kind() else { panic!("a message") };
        assert_eq!(options.name(), "envoy.config.core.v3.Http2ProtocolOptions");
        assert!(cluster.field("nothing").is_none());
        assert!(Message::find("envoy.Nothing").is_none());
        assert!(cluster.field("typed_extension_protocol_options").unwrap().is_map());
        let Kind::Enum(policy) = cluster.field("lb_policy").unwrap().kind() else {
            panic!("an enum")
        };
        assert_eq!(policy.number("RANDOM"), Some(3));
        assert_eq!(policy.value_name(3), Some("RANDOM"));
    }

    #[test]
    fn private_keys_are_marked() {
        let name = "envoy.extensions.transport_sockets.tls.v3.TlsCertificate";
        let key = Message::find(name).unwrap().field("private_key").unwrap();
        assert!(key.is_sensitive());
    }

    #[test]
    fn the_tables_are_sorted_and_whole() {
        let names: Vec<_> = Message::all().map(Message::name).collect();
        assert!(names.is_sorted());
        let fields: usize = Message::all().map(|message| message.fields().len()).sum();
        assert_eq!(fields, Field::count());
        assert!(Message::all().all(|m| m.fields().map(Field::number).is_sorted()));
    }
}
