//! Dynamic configuration: resources by type and name, where they come from, and the store that compiles each alone and
//! puts it in force.

pub mod resource;

pub mod subscription;
