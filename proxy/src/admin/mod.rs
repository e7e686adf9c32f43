//! The admin port: Envoy's endpoints, answers and refusals, a file per endpoint.
//!
//! It reads the server through [`AdminState`] and writes in pieces of at most 16 KB.

mod state;

pub use state::{
    AdminAddress, AdminState, CertificateDetails, CertificateStatus, ClusterStatus,
    CommandLineOptions, ConfigKind, ConfigResource, ConfigState, DrainListeners, HostHealth,
    HostStats, HostStatus, ListenerStatus, RejectedUpdate, RuntimeEntry, RuntimeValues,
    ServerState, Thresholds,
};
