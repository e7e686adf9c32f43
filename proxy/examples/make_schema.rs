//! Makes `descriptors/xds.schema` from a descriptor set: `make_schema SET OUT` (see `descriptors/make`).
//!
//! The schema holds what the JSON form of a message needs (names, numbers, kinds, oneofs) in tables that are read
//! in place, so that nothing is decoded at start and nothing is kept in memory. Its reader, and the description
//! of the layout, is `config/json/schema.rs`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, Value};

/// Packages whose messages never stand in a configuration.
const LEFT_OUT: [&str; 6] = [
    "google.api.Http",
    "google.api.CustomHttp",
    "udpa.annotations",
    "xds.annotations",
    "envoy.annotations",
    "validate",
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let set = arguments.next().context("usage: make_schema SET OUT")?;
    let out = arguments.next().context("usage: make_schema SET OUT")?;
    let pool = DescriptorPool::decode(std::fs::read(set)?.as_slice())?;
    std::fs::write(out, Writer::new(&pool)?.write()?)?;
    Ok(())
}

struct Writer {
    messages: BTreeMap<String, MessageDescriptor>,
    enums: BTreeMap<String, prost_reflect::EnumDescriptor>,
    strings: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Writer {
    fn new(pool: &DescriptorPool) -> Result<Self> {
        let kept = |name: &str| {
            !LEFT_OUT.iter().any(|package| name.starts_with(package))
                && !(name.starts_with("google.protobuf.")
                    && (name.contains("Descriptor")
                        || name.contains("Options")
                        || name.contains("Uninterpreted")
                        || name.contains("SourceCodeInfo")
                        || name.contains("GeneratedCodeInfo")))
        };
        let messages = pool
            .all_messages()
            .filter(|message| kept(message.full_name()))
            .map(|message| (message.full_name().to_owned(), message))
            .collect();
        let enums = pool
            .all_enums()
            .filter(|r#enum| kept(r#enum.full_name()))
            .map(|r#enum| (r#enum.full_name().to_owned(), r#enum))
            .collect();
        Ok(Self { messages, enums, strings: Vec::new(), known: BTreeMap::new() })
    }

    fn intern(&mut self, text: &str) -> u32 {
        if let Some(&at) = self.known.get(text) {
            return at;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.known.insert(text.to_owned(), at);
        at
    }

    fn write(mut self) -> Result<Vec<u8>> {
        let (mut messages, mut fields) = (Vec::new(), Vec::new());
        let (mut enums, mut values) = (Vec::new(), Vec::new());
        for message in self.messages.clone().values() {
            let mut of_message: Vec<FieldDescriptor> = message.fields().collect();
            of_message.sort_by_key(FieldDescriptor::number);
            messages.extend(self.intern(message.full_name()).to_le_bytes());
            messages.extend(u16::try_from(message.full_name().len())?.to_le_bytes());
            messages.extend(u16::try_from(of_message.len())?.to_le_bytes());
            messages.extend(((fields.len() / 16) as u32).to_le_bytes());
            for field in of_message {
                self.write_field(&mut fields, message, &field)?;
            }
        }
        for r#enum in self.enums.clone().values() {
            enums.extend(self.intern(r#enum.full_name()).to_le_bytes());
            enums.extend(u16::try_from(r#enum.full_name().len())?.to_le_bytes());
            enums.extend(u16::try_from(r#enum.values().len())?.to_le_bytes());
            enums.extend(((values.len() / 12) as u32).to_le_bytes());
            for value in r#enum.values() {
                values.extend(value.number().to_le_bytes());
                values.extend(self.intern(value.name()).to_le_bytes());
                values.extend((value.name().len() as u32).to_le_bytes());
            }
        }
        let mut out = b"xDS1".to_vec();
        for (table, row) in [(&messages, 12), (&fields, 16), (&enums, 12), (&values, 12)] {
            out.extend(((table.len() / row) as u32).to_le_bytes());
        }
        for table in [messages, fields, enums, values, self.strings] {
            out.extend(table);
        }
        Ok(out)
    }

    fn write_field(
        &mut self,
        out: &mut Vec<u8>,
        message: &MessageDescriptor,
        field: &FieldDescriptor,
    ) -> Result<()> {
        let (kind, r#type) = self.kind(field)?;
        let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
        let oneof = oneof
            .and_then(|oneof| message.oneofs().position(|other| other.name() == oneof.name()))
            .unwrap_or(0xffff);
        let flags = u16::from(field.is_list())
            | u16::from(field.is_map()) << 1
            | u16::from(field.supports_presence()) << 2
            | u16::from(option(field, "deprecated")) << 3
            | u16::from(annotation(field, "udpa.annotations.sensitive")) << 4;
        out.extend(field.number().to_le_bytes());
        out.extend(self.intern(field.name()).to_le_bytes());
        out.push(u8::try_from(field.name().len())?);
        out.push(kind);
        out.extend(flags.to_le_bytes());
        out.extend(u16::try_from(r#type)?.to_le_bytes());
        out.extend(u16::try_from(oneof)?.to_le_bytes());
        Ok(())
    }

    /// The kind's number in `FieldDescriptorProto.Type`, and the row of the message or enum.
    fn kind(&self, field: &FieldDescriptor) -> Result<(u8, usize)> {
        let row = |found: Option<usize>, name: &str| {
            found.with_context(|| format!("{name} was left out"))
        };
        Ok(match field.kind() {
            Kind::Double => (1, 0),
            Kind::Float => (2, 0),
            Kind::Int64 => (3, 0),
            Kind::Uint64 => (4, 0),
            Kind::Int32 => (5, 0),
            Kind::Fixed64 => (6, 0),
            Kind::Fixed32 => (7, 0),
            Kind::Bool => (8, 0),
            Kind::String => (9, 0),
            Kind::Message(m) => {
                (11, row(self.messages.keys().position(|k| k == m.full_name()), m.full_name())?)
            }
            Kind::Bytes => (12, 0),
            Kind::Uint32 => (13, 0),
            Kind::Enum(e) => {
                (14, row(self.enums.keys().position(|k| k == e.full_name()), e.full_name())?)
            }
            Kind::Sfixed32 => (15, 0),
            Kind::Sfixed64 => (16, 0),
            Kind::Sint32 => (17, 0),
            Kind::Sint64 => (18, 0),
        })
    }
}

fn option(field: &FieldDescriptor, name: &str) -> bool {
    let options = field.options();
    options.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true))
}

fn annotation(field: &FieldDescriptor, name: &str) -> bool {
    let pool = field.parent_pool();
    let extension = pool.get_extension_by_name(name);
    extension.is_some_and(|extension| {
        let options = field.options();
        options.has_extension(&extension) && *options.get_extension(&extension) == Value::Bool(true)
    })
}
