//! Compiled configuration: plain, immutable, `Send + Sync`; protobuf stops in `compile`.

pub mod access_log;
pub mod compile;
pub mod header_ops;
pub mod local_reply;
pub mod name;
pub mod pb;
pub mod stats;
