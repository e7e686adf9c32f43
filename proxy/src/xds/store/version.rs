//! One version of a resource: its bytes, and what became of them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::config::compile::diagnostic::{Diagnostic, Severity};
use crate::config::json::{hash, wire};
use crate::xds::resource::RawResource;

/// The bytes of a version.
#[derive(Debug, Clone)]
pub struct Raw {
    pub bytes: Bytes,
    /// Of `bytes`.
    pub hash: u64,
    /// As its source has it; empty for a static resource.
    pub version: Arc<str>,
    /// When it came.
    pub updated: SystemTime,
}

impl Raw {
    pub fn new(resource: &RawResource) -> Self {
        Self {
            bytes: resource.bytes.clone(),
            hash: hash(&resource.bytes),
            version: resource.version.as_str().into(),
            updated: SystemTime::now(),
        }
    }
}

impl Raw {
    /// In place of a secret that has not come.
    pub fn missing_secret(name: &str, since: SystemTime) -> Self {
        // The name is the first field of every type.
        let mut bytes = Vec::new();
        wire::write_bytes(&mut bytes, 1, name.as_bytes());
        Self {
            hash: hash(&bytes),
            bytes: bytes.into(),
            version: "uninitialized".into(),
            updated: since,
        }
    }
}

/// A version that is not in force because something in it is wrong.
#[derive(Debug, Clone)]
pub struct Refused {
    pub raw: Raw,
    /// The first of the refusals that no good version has come after.
    pub since: SystemTime,
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Field path; empty where it is the whole resource.
    pub path: String,
    pub reason: String,
}

impl Problem {
    /// The errors among what compiling has found.
    pub fn of(found: Vec<Diagnostic>) -> Vec<Self> {
        let errors = found.into_iter().filter(|one| one.severity == Severity::Error);
        errors.map(|one| Self { path: one.path, reason: one.reason }).collect()
    }

    /// One that has no path.
    pub fn whole(reason: impl Into<String>) -> Vec<Self> {
        vec![Self { path: String::new(), reason: reason.into() }]
    }
}

impl Refused {
    pub fn new(raw: Raw, before: Option<&Self>, problems: Vec<Problem>) -> Self {
        let since = before.map_or(raw.updated, |before| before.since);
        Self { raw, since, problems }
    }

    /// All problems in one line.
    pub fn details(&self) -> String {
        let one = |problem: &Problem| match problem.path.as_str() {
            "" => problem.reason.clone(),
            path => format!("{path}: {}", problem.reason),
        };
        self.problems.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

thread_local! {
    static LAST_SERIAL: Cell<u64> = const { Cell::new(0) };
}

/// A number that tells one version from every other.
pub fn next_serial() -> u64 {
    LAST_SERIAL.with(|last| {
        last.set(last.get() + 1);
        last.get()
    })
}
