//! Resources as they come: types, raw bytes, updates and what is wrong with them.

use std::fmt;

use bytes::Bytes;

use crate::config::json::wire;
use crate::config::source::Source;

/// The types of resources that are subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS
    Cluster,
    /// EDS
    Endpoints,
    /// LDS
    Listener,
    /// RDS
    Routes,
    /// SDS
    Secret,
    /// ECDS
    Extension,
}

impl ResourceType {
    /// In the order in which a control plane is asked for them.
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Secret,
        Self::Listener,
        Self::Routes,
        Self::Extension,
    ];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    /// The type of a URL; what stands before its last slash does not matter.
    pub fn of_url(url: &str) -> Option<Self> {
        let name = |url: &str| url.rsplit('/').next().map(str::to_owned);
        Self::ALL.into_iter().find(|one| name(one.type_url()) == name(url))
    }

    /// Envoy's word for it in statistics and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Routes => "routes",
            Self::Secret => "secret",
            Self::Extension => "extension",
        }
    }

    /// The name inside of a resource: the first field of every type.
    pub fn name_of(self, bytes: &[u8]) -> &str {
        wire::string_field(bytes, 1)
    }

    /// Whether a response without a name says that the name is gone, where it tells the state of the world.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// What a control plane is told of a response with bad resources, in Envoy's words.
    pub fn nack(self, rejected: &[Rejection]) -> String {
        let one = |rejection: &Rejection| format!("{}: {}", rejection.name, rejection.error);
        let all: Vec<String> = rejected.iter().map(one).collect();
        match self {
            Self::Cluster => format!("Error adding/updating cluster(s) {}", all.join(", ")),
            Self::Listener => format!("Error adding/updating listener(s) {}\n", all.join("\n")),
            _ => all.join("\n"),
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A resource as a source sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawResource {
    /// By which it was asked for; of the state of the world the name inside.
    pub name: String,
    /// Its own, or the response's.
    pub version: String,
    /// The message of its type.
    pub bytes: Bytes,
}

/// One response of a source.
#[derive(Debug, Clone)]
pub struct TypeUpdate {
    pub source: Source,
    pub resource_type: ResourceType,
    /// `version_info` or `system_version_info`.
    pub version: String,
    pub resources: Vec<RawResource>,
    pub removed: Vec<String>,
    /// Whole types (CDS, LDS): what is not in `resources` is gone.
    pub full_state: bool,
}

/// A resource that was not taken; its last good version stays in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub name: String,
    /// Field path and reason of every problem.
    pub error: String,
}

/// What whoever owns the streams is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Wanted(Wanted),
    /// Whether requests for clusters over ADS wait, acknowledgements too. A control plane learns from them that the
    /// clusters that it sent are warm.
    HoldClusters(bool),
}

/// A change of the names that are subscribed to at a source. Of whole types every name is wanted from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub source: Source,
    pub resource_type: ResourceType,
    pub add: Vec<String>,
    pub remove: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_their_url() {
        for one in ResourceType::ALL {
            assert_eq!(ResourceType::of_url(one.type_url()), Some(one));
        }
        assert_eq!(ResourceType::of_url("x/envoy.config.cluster.v3.Clusters"), None);
    }

    #[test]
    fn a_nack_names_each() {
        let rejection = |name: &str| Rejection { name: name.into(), error: "bad".into() };
        let both = [rejection("a"), rejection("b")];
        let nack = ResourceType::Cluster.nack(&both);
        assert_eq!(nack, "Error adding/updating cluster(s) a: bad, b: bad");
        let nack = ResourceType::Listener.nack(&both);
        assert_eq!(nack, "Error adding/updating listener(s) a: bad\nb: bad\n");
    }
}
