//! The process: flags, bootstrap, life cycle.
