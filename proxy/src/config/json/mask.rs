//! Which fields of a message are written.

use super::schema::{Field, Kind, Message};

/// The fields to write; what is not under one of its paths is left out. An `Any` is no step of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask(Vec<(String, Mask)>);

impl Mask {
    /// Paths of field names, in snake case, separated by commas.
    pub fn parse(paths: &str) -> Self {
        let mut mask = Self::default();
        for path in paths.split(',').filter(|path| !path.is_empty()) {
            let mut node = &mut mask;
            for name in path.split('.') {
                let at = node.0.iter().position(|(other, _)| other == name).unwrap_or_else(|| {
                    node.0.push((name.to_owned(), Self::default()));
                    node.0.len() - 1
                });
                node = &mut node.0[at].1;
            }
        }
        mask
    }

    /// Whether every step names a field of `message`, looking through lists but not into `Any`.
    pub fn fits(&self, message: Message) -> bool {
        self.0.iter().all(|(name, rest)| {
            message.field(name).is_some_and(|field| match field.kind() {
                Kind::Message(inner) if inner.name() != "google.protobuf.Any" => rest.fits(inner),
                _ => true,
            })
        })
    }

    /// Without a path everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn sub(&self, field: Field) -> Option<&Self> {
        self.0.iter().find(|(name, _)| name == field.name()).map(|(_, rest)| rest)
    }
}
