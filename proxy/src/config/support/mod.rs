//! What becomes of every field: "Nothing is silently ignored" as a table.
//!
//! `fields.txt` names, message by message, the fields that are supported, ignored or rejected. `check` walks the bytes of a
//! resource along it, before the resource is compiled, and reports what is set and not built: so the compile functions
//! only speak about values. A field that the table does not name is ignored with a notice; the types of extensions are the
//! compile functions' to refuse. `docs/xds-support.md` is made from the same table.

mod document;
mod table;

pub use document::{document, skeleton};
pub use table::Status;

use smallvec::SmallVec;

use self::table::Table;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::json::schema::{Field, Kind, Message};
use crate::config::json::wire::{Fields, Value, string_field};

/// Nesting that is looked into; protobuf's own decoder stops at 100.
const MAX_DEPTH: usize = 100;

/// Reports every field that is set in a message and not built, at its path. `type_url` is the message's full name or what
/// an `Any` has; of a type that the table does not have nothing is said.
pub fn check(type_url: &str, bytes: &[u8], path: &FieldPath<'_>) {
    let table = Table::shared();
    if let Some(message) = Message::by_type_url(type_url)
        && table.knows(message)
    {
        Check { table }.message(message, bytes, path, 0);
        path.table_done();
    }
}

struct Check {
    table: &'static Table,
}

impl Check {
    fn message(&self, message: Message, bytes: &[u8], path: &FieldPath<'_>, depth: usize) {
        // How many elements of each list came before.
        let mut counts = SmallVec::<[(u32, usize); 4]>::new();
        for (number, value) in Fields(bytes).flatten() {
            let Some(field) = message.field_by_number(number) else {
                continue;
            };
            let index = if field.is_list() { count(&mut counts, number) } else { 0 };
            let is_first = index == 0;
            match self.table.status(field) {
                (Status::Rejected, reason) if is_first => path.field(field.name()).error(reason),
                (Status::Ignored, reason) if is_first => path.field(field.name()).ignored(reason),
                (Status::Rejected | Status::Ignored, _) => (),
                (Status::Supported, _) => {
                    if let (Kind::Message(inner), Value::Bytes(bytes), true) =
                        (field.kind(), value, depth < MAX_DEPTH)
                    {
                        self.inside(field, index, inner, bytes, path, depth + 1);
                    }
                }
            }
        }
    }

    /// The message in a field of another.
    fn inside(
        &self,
        field: Field,
        index: usize,
        inner: Message,
        bytes: &[u8],
        path: &FieldPath<'_>,
        depth: usize,
    ) {
        if field.is_map() {
            let key = string_field(bytes, 1);
            let value = Fields(bytes).flatten().find_map(|entry| match entry {
                (2, Value::Bytes(value)) => Some(value),
                _ => None,
            });
            if let (Some(Kind::Message(inner)), Some(value)) =
                (inner.field_by_number(2).map(Field::kind), value)
            {
                self.typed(inner, value, &path.key(field.name(), key), depth);
            }
        } else if field.is_list() {
            self.typed(inner, bytes, &path.index(field.name(), index), depth);
        } else {
            self.typed(inner, bytes, &path.field(field.name()), depth);
        }
    }

    /// A message, or what is in it if it is an `Any`.
    fn typed(&self, message: Message, bytes: &[u8], path: &FieldPath<'_>, depth: usize) {
        if message.name() != "google.protobuf.Any" {
            if self.table.knows(message) {
                self.message(message, bytes, path, depth);
            }
            return;
        }
        let content = Fields(bytes).flatten().find_map(|field| match field {
            (2, Value::Bytes(content)) => Some(content),
            _ => None,
        });
        if let (Some(inner), Some(content)) =
            (Message::by_type_url(string_field(bytes, 1)), content)
            && self.table.knows(inner)
        {
            self.message(inner, content, path, depth);
        }
    }
}

fn count(counts: &mut SmallVec<[(u32, usize); 4]>, number: u32) -> usize {
    if let Some((_, count)) = counts.iter_mut().find(|(other, _)| *other == number) {
        *count += 1;
        return *count;
    }
    counts.push((number, 0));
    0
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::config::compile::diagnostic::{Diagnostics, Severity};
    use crate::config::json::from_yaml;
    use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;
    use crate::config::pb::envoy::config::cluster::v3::Cluster;
    use crate::config::pb::envoy::config::route::v3::RateLimit;

    fn found(text: &str) -> Vec<(String, Severity)> {
        let cluster: Cluster = from_yaml(text).unwrap();
        let found = Diagnostics::new("cluster");
        check("envoy.config.cluster.v3.Cluster", &cluster.encode_to_vec(), &found.root());
        found.into_vec().into_iter().map(|one| (one.path, one.severity)).collect()
    }

    #[test]
    fn what_is_set_and_not_built_is_reported_at_its_path() {
        assert_eq!(found("{name: a, connect_timeout: 1s, type: STATIC}"), []);
        assert_eq!(
            found("{name: a, wait_for_warm_on_init: true}"),
            [("wait_for_warm_on_init".to_owned(), Severity::Ignored)]
        );
        assert_eq!(found("{name: a, filters: [{}]}"), [("filters".to_owned(), Severity::Error)]);
        let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        assert_eq!(
            found(&format!(
                "typed_extension_protocol_options: {{o: {{'@type': {options}, auto_config: {{http3_protocol_options: {{}}}}}}}}"
            )),
            [(
                "typed_extension_protocol_options[\"o\"].auto_config.http3_protocol_options"
                    .to_owned(),
                Severity::Error
            )]
        );
    }

    /// All of what can be told from outside: none of it is said to be ignored.
    #[test]
    fn what_is_in_force_is_not_reported() {
        let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        assert_eq!(
            found(&format!(
                "typed_extension_protocol_options: {{o: {{'@type': {options}, upstream_http_protocol_options: \
                 {{auto_sni: true, auto_san_validation: true, override_auto_sni_header: x}}}}}}"
            )),
            []
        );
        let of_bootstrap: Bootstrap = from_yaml(
            "{static_resources: {secrets: [{name: s, tls_certificate: {certificate_chain: {inline_string: c}}}]}, \
             application_log_config: {log_format: {json_format: {m: '%v'}}}}",
        )
        .unwrap();
        let of_routes: RateLimit =
            from_yaml("{stage: 1, actions: [{remote_address: {}}]}").unwrap();
        for (message, bytes) in [
            ("envoy.config.bootstrap.v3.Bootstrap", of_bootstrap.encode_to_vec()),
            ("envoy.config.route.v3.RateLimit", of_routes.encode_to_vec()),
        ] {
            let found = Diagnostics::new(message);
            check(message, &bytes, &found.root());
            assert_eq!(found.into_vec(), [], "{message}");
        }
    }

    #[test]
    fn bytes_that_are_no_message_do_no_harm() {
        let found = Diagnostics::new("cluster");
        check("envoy.config.cluster.v3.Cluster", &[0xff; 40], &found.root());
        assert!(found.into_vec().is_empty());
    }
}
