//! The only unsafe code: system calls that the crates we use have no safe form of, one function each.

pub mod inotify;
pub mod program;
pub mod socket;
