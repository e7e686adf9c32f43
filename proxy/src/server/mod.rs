//! The process: flags, bootstrap, life cycle.

pub mod args;
pub mod cpu;
pub mod quickstart;
pub mod version;
