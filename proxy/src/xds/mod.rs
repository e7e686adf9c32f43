//! Dynamic configuration: resources by type and name, where they come from, and the store that compiles each alone and
//! puts it in force.

pub mod files;
pub mod resource;
pub mod store;
pub mod subscription;
pub mod xxhash;
