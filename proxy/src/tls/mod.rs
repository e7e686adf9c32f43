//! TLS of both sides, on rustls: contexts, handshakes, what they established, and the secrets they use.
//!
//! `context` turns compiled settings and secrets into what rustls needs; `handshake` makes an `Io` into a `TlsStream`,
//! which is an `Io` again; `verify` decides about certificates.

mod anchors;
pub mod certificate;
mod choice;
pub mod context;
mod drive;
mod early_data;
pub mod failure;
pub mod handshake;
mod hello;
pub mod info;
pub mod inventory;
pub mod material;
mod record;
mod refusal;
pub mod secrets;
mod session_id;
mod sessions;
pub mod stats;
mod stream;
pub mod suites;
pub mod validation;
pub mod verdict;
pub mod verify;
mod write;

pub use certificate::{Certificate, SubjectAltName};
pub use context::{ClientContext, ServerContext};
pub use info::{CertificateChain, TlsInfo};
pub use secrets::{Secret, SecretKind, SecretSlot, SecretSource, SecretUse, Secrets};
pub use stream::TlsStream;

#[cfg(test)]
mod tests;
