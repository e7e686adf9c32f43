//! `docs/xds-support.md`, and what `fields.txt` still lacks, both from the table.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::table::{Status, Table};
use crate::config::json::schema::{Field, Kind, Message};

/// Messages that stand for values and need no line.
fn is_builtin(message: Message) -> bool {
    message.name().starts_with("google.protobuf.")
}

/// The page as it has to be.
pub fn document() -> String {
    let table = Table::shared();
    let mut out = String::from(
        "<!-- Made from proxy/src/config/support/fields.txt by `cargo run --example xds_support`. -->\n\
         # The xDS API, field by field\n\n\
         *Supported*: as in Envoy. *Ignored*: the resource is used without the field; that is logged once, counted, and \
         listed by the admin interface. *Rejected*: the resource is refused, with the field's path and the reason. \
         A message that is not listed here is reached by no supported field; an extension whose type is not listed is \
         refused by name, except an HTTP filter, which answers 500.\n\n",
    );
    let mut totals = [0_usize; 3];
    for message in table.messages() {
        for field in message.fields() {
            totals[table.status(field).0 as usize] += 1;
        }
    }
    let [supported, ignored, rejected] = totals;
    let _ = writeln!(
        out,
        "{} messages: {supported} fields supported, {ignored} ignored, {rejected} rejected.",
        table.messages().len()
    );
    for message in table.messages() {
        let _ = writeln!(out, "\n## {}\n", message.name());
        if message.fields().len() == 0 {
            out.push_str("No fields.\n");
            continue;
        }
        out.push_str("| field | | |\n|---|---|---|\n");
        for field in message.fields() {
            let (status, note) = table.status(field);
            let old = if field.is_deprecated() { " (deprecated)" } else { "" };
            let _ = writeln!(out, "| `{}`{old} | {} | {note} |", field.name(), status.as_str());
        }
    }
    out
}

/// Lines to add to `fields.txt`: the messages that supported fields lead to and that have no entry.
pub fn skeleton() -> String {
    let mut out = String::new();
    for message in missing(Table::shared()) {
        let _ = writeln!(out, "\n{}", message.name());
        for field in message.fields() {
            let _ = writeln!(out, "  {} ignored", field.name());
        }
    }
    out
}

/// Messages of supported fields that the table does not have, by name.
fn missing(table: &Table) -> BTreeSet<Message> {
    let mut missing = BTreeSet::new();
    for message in table.messages() {
        for field in message.fields() {
            let inner = match field.kind() {
                Kind::Message(inner) if field.is_map() => {
                    match inner.field_by_number(2).map(Field::kind) {
                        Some(Kind::Message(value)) => value,
                        _ => continue,
                    }
                }
                Kind::Message(inner) => inner,
                _ => continue,
            };
            let is_used = table.status(field).0 == Status::Supported;
            if is_used && !is_builtin(inner) && !table.knows(inner) {
                missing.insert(inner);
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_of_a_supported_field_is_in_the_table() {
        let names: Vec<_> = missing(Table::shared()).into_iter().map(Message::name).collect();
        assert!(names.is_empty(), "cargo run --example xds_support skeleton: {names:#?}");
    }

    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/xds-support.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == document(), "run `cargo run --example xds_support`");
    }
}
