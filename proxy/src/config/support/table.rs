//! `fields.txt`, read once.
//!
//! A line at the margin names a message, and optionally the status of all its fields that have no line of their own; an
//! indented line names a field, its status and why. `#` begins a comment.

use std::sync::OnceLock;

use crate::config::json::schema::{Field, Message};

const TEXT: &str = include_str!("fields.txt");

/// Why a field without a line is ignored.
const UNLISTED: &str = "not built yet";

/// What becomes of a field that is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    Supported,
    /// The resource is used without the field; that is logged, counted and listed.
    #[default]
    Ignored,
    /// The resource is refused.
    Rejected,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Ignored => "ignored",
            Self::Rejected => "rejected",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Supported, Self::Ignored, Self::Rejected]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// Statuses by field.
#[derive(Debug)]
pub struct Table {
    /// By `Field::ordinal`: the status, and the reason or note.
    fields: Vec<(Status, &'static str)>,
    messages: Vec<Message>,
}

impl Table {
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Table> = OnceLock::new();
        SHARED.get_or_init(|| match Self::parse(TEXT) {
            Ok(table) => table,
            // A test reads the same text.
            Err(error) => unreachable!("fields.txt: {error}"),
        })
    }

    pub fn parse(text: &'static str) -> Result<Self, String> {
        let mut table = Self {
            fields: vec![(Status::Ignored, UNLISTED); Field::count()],
            messages: Vec::new(),
        };
        let mut current = None;
        for (number, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("line {}: {what}: {line}", number + 1);
            let is_field = line.starts_with(' ');
            let line_trimmed = line.trim();
            if line_trimmed.is_empty() || line_trimmed.starts_with('#') {
                continue;
            }
            let (name, rest) = line_trimmed.split_once(' ').unwrap_or((line_trimmed, ""));
            let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let status = match status {
                "" if !is_field => None,
                status => Some(Status::parse(status).ok_or_else(|| wrong("unknown status"))?),
            };
            let reason = reason.trim_matches('"');
            let reason = if reason.is_empty() && status != Some(Status::Supported) {
                UNLISTED
            } else {
                reason
            };
            if is_field {
                let message: Message =
                    current.ok_or_else(|| wrong("a field before any message"))?;
                let field = message.field(name).ok_or_else(|| wrong("unknown field"))?;
                table.fields[field.ordinal()] = (status.unwrap_or_default(), reason);
            } else {
                let message = Message::find(name).ok_or_else(|| wrong("unknown message"))?;
                if table.messages.contains(&message) {
                    return Err(wrong("named twice"));
                }
                for field in message.fields() {
                    table.fields[field.ordinal()] = (status.unwrap_or_default(), reason);
                }
                table.messages.push(message);
                current = Some(message);
            }
        }
        table.messages.sort_unstable();
        Ok(table)
    }

    /// Whether the table has the message.
    pub fn knows(&self, message: Message) -> bool {
        self.messages.binary_search(&message).is_ok()
    }

    /// The messages of the table, by name.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn status(&self, field: Field) -> (Status, &'static str) {
        self.fields[field.ordinal()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads() {
        Table::parse(TEXT).unwrap();
    }

    #[test]
    fn mistakes_are_found() {
        for (text, expected) in [
            ("envoy.Nothing", "unknown message"),
            ("  name supported", "before any message"),
            ("envoy.config.cluster.v3.Cluster\n  nam supported", "unknown field"),
            ("envoy.config.cluster.v3.Cluster\n  name working", "unknown status"),
            ("google.protobuf.Any\ngoogle.protobuf.Any", "twice"),
        ] {
            assert!(Table::parse(text).unwrap_err().contains(expected), "{text}");
        }
    }

    #[test]
    fn a_message_may_say_it_for_all_its_fields() {
        let text = "envoy.type.v3.FractionalPercent rejected \"why not\"\n  numerator supported\n";
        let table = Table::parse(text).unwrap();
        let message = Message::find("envoy.type.v3.FractionalPercent").unwrap();
        assert_eq!(table.status(message.field("numerator").unwrap()), (Status::Supported, ""));
        assert_eq!(
            table.status(message.field("denominator").unwrap()),
            (Status::Rejected, "why not")
        );
        assert!(table.knows(message));
    }
}
