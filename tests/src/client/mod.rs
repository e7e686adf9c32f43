//! Scripted clients. Each turns what it saw into lines of an observation.

pub mod h1;
pub mod h2;
pub mod h2_raw;

use std::time::Duration;

/// How long a client waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(6);
