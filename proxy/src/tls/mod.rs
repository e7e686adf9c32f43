//! TLS of both sides, on rustls: contexts, handshakes, what they established, and the secrets they use.

pub mod certificate;
pub mod info;
pub mod material;
pub mod secrets;
pub mod validation;

pub use certificate::{Certificate, SubjectAltName};
pub use info::{CertificateChain, TlsInfo};
pub use secrets::{Secret, SecretKind, SecretSlot, SecretSource, Secrets};
