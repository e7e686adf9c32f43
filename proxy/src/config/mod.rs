//! Compiled configuration: plain, immutable, `Send + Sync`; protobuf stops in `compile`.

pub mod compile;
pub mod name;
pub mod pb;
