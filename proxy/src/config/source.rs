//! Where a dynamic resource comes from. From pb `core.v3.ConfigSource`.
//!
//! Equal sources are one subscription: they are keys of the store's tables.

use std::sync::Arc;
use std::time::Duration;

/// A source of resources.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The bootstrap's one stream for everything (`ads`, and `self` inside of what came over it).
    Ads,
    /// A stream of its own.
    Api(Arc<ApiSource>),
    /// A file, read again whenever something is moved over it.
    Path(Arc<PathSource>),
}

/// pb `ApiConfigSource` with a gRPC service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiSource {
    /// `DELTA_GRPC`; else the state of the world.
    pub delta: bool,
    /// `envoy_grpc.cluster_name`
    pub cluster: Arc<str>,
    /// `envoy_grpc.authority`; the cluster's name where it has none.
    pub authority: Option<Arc<str>>,
    /// Sent with every stream: names in lower case.
    pub initial_metadata: Box<[(Box<str>, Box<str>)]>,
    pub set_node_on_first_message_only: bool,
    /// Between attempts to open a stream: first and longest; default 0.5 s and 30 s.
    pub back_off: (Duration, Duration),
    /// `rate_limit_settings`: requests at once, and how many a minute may follow.
    pub rate_limit: Option<(u32, u32)>,
}

/// pb `PathConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathSource {
    pub path: Arc<str>,
    /// Moves into it are what is watched; else moves over the file itself.
    pub watched_directory: Option<Arc<str>>,
}

/// A source, and how long whoever needs something of it waits before it goes on without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfigSource {
    pub source: Source,
    /// Default 15 s; `None` for 0: for ever.
    pub initial_fetch_timeout: Option<Duration>,
}
