//! What the protocol carries: types of resources, resources as bytes, and what came of them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

const PREFIX: &str = "type.googleapis.com/";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// The name that stands for every resource of a type.
pub const WILDCARD: &str = "*";

/// A type of resources, by its type URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType(Arc<str>);

impl ResourceType {
    /// `message` is the full name of the resource's message, with or without `type.googleapis.com/`.
    pub fn new(message: &str) -> Self {
        if message.contains('/') {
            Self(message.into())
        } else {
            Self(format!("{PREFIX}{message}").into())
        }
    }

    /// `envoy.config.cluster.v3.Cluster`
    pub fn cluster() -> Self {
        Self(CLUSTER.into())
    }

    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    pub fn endpoints() -> Self {
        Self::new("envoy.config.endpoint.v3.ClusterLoadAssignment")
    }

    /// `envoy.config.listener.v3.Listener`
    pub fn listener() -> Self {
        Self(LISTENER.into())
    }

    /// `envoy.config.route.v3.RouteConfiguration`
    pub fn routes() -> Self {
        Self::new("envoy.config.route.v3.RouteConfiguration")
    }

    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    pub fn secret() -> Self {
        Self::new("envoy.extensions.transport_sockets.tls.v3.Secret")
    }

    /// `envoy.config.core.v3.TypedExtensionConfig`
    pub fn extension() -> Self {
        Self::new("envoy.config.core.v3.TypedExtensionConfig")
    }

    /// With `type.googleapis.com/`.
    pub fn url(&self) -> &str {
        &self.0
    }

    /// Whether a state-of-the-world response names every resource that exists, so that one that is absent is
    /// gone: listeners and clusters only.
    pub fn is_full_state(&self) -> bool {
        matches!(&*self.0, LISTENER | CLUSTER)
    }
}

impl fmt::Debug for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix(PREFIX).unwrap_or(&self.0))
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A resource as it came: its message is not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// May be empty: not every server numbers its resources. State-of-the-world: the response's.
    pub version: String,
    /// The encoded message, of the type of the update.
    pub body: Bytes,
}

/// What a response changes. Its receiver applies it, subscribes to what it refers to, and then says what came of it
/// by `Client::judge`; nothing is requested in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Of everything in it.
    pub resource_type: ResourceType,
    /// `system_version_info`, `version_info`
    pub version: String,
    /// `control_plane.identifier`, where the server said it.
    pub control_plane: Option<String>,
    /// New or changed, or sent again: the server may do so at any time.
    pub resources: Vec<Resource>,
    /// Gone, or never there though asked for.
    pub removed: Vec<String>,
    /// What the response holds beside that and cannot be taken: rejected whatever the verdict is.
    pub malformed: Vec<Rejection>,
}

/// A resource that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The resource; empty where it has none.
    pub name: String,
    /// What is wrong with it, for people.
    pub reason: String,
}

/// What came of an update. `Default`: all of it was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The names that were rejected; the others count as applied. Empty: the update is acknowledged.
    pub rejected: Vec<String>,
    /// What the server is told: should name each resource and its reason.
    pub message: String,
}

impl Verdict {
    /// Names each rejected resource: `<prefix><name>: <reason>, <name>: <reason>`, as Envoy words it for listeners
    /// and clusters.
    pub fn of(rejections: &[Rejection], prefix: &str) -> Self {
        let reasons: Vec<_> =
            rejections.iter().map(|one| format!("{}: {}", one.name, one.reason)).collect();
        Self {
            rejected: rejections.iter().map(|one| one.name.clone()).collect(),
            message: if reasons.is_empty() {
                String::new()
            } else {
                format!("{prefix}{}", reasons.join(", "))
            },
        }
    }
}

/// The name in an encoded resource: field 1 in every type of the API. `None` where there is none, or no message.
pub fn name_of(mut body: &[u8]) -> Option<String> {
    let mut name = None;
    while !body.is_empty() {
        let (tag, wire) = decode_key(&mut body).ok()?;
        if (tag, wire) == (1, WireType::LengthDelimited) {
            let len = usize::try_from(decode_varint(&mut body).ok()?).ok()?;
            let (value, rest) = body.split_at_checked(len)?;
            name = Some(std::str::from_utf8(value).ok()?);
            body = rest;
        } else {
            skip_field(wire, tag, &mut body, DecodeContext::default()).ok()?;
        }
    }
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_name_is_read_without_its_message() {
        let cluster = Cluster { name: "a".into(), alt_stat_name: "b".into(), ..Cluster::default() };
        let bytes = cluster.encode_to_vec();
        assert_eq!(name_of(&bytes).as_deref(), Some("a"));
        assert_eq!(name_of(&bytes[..2]), None);
        assert_eq!(name_of(&Cluster::default().encode_to_vec()), None);
    }

    #[test]
    fn a_verdict_names_each_resource() {
        let one = |name: &str| Rejection { name: name.into(), reason: "bad".into() };
        let verdict = Verdict::of(&[one("a"), one("b")], "Error adding/updating listener(s) ");
        assert_eq!(verdict.message, "Error adding/updating listener(s) a: bad, b: bad");
        assert_eq!(verdict.rejected, ["a", "b"]);
        assert_eq!(Verdict::of(&[], "x"), Verdict::default());
    }
}
