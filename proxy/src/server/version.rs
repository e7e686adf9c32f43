//! What this build is, in the shape in which Envoy says it: `revision/version/state/build/TLS library`.

/// The commit, where the build was told of it by `OUTRIGGER_REVISION`.
pub fn revision() -> &'static str {
    option_env!("OUTRIGGER_REVISION").unwrap_or("unknown")
}

/// `0.1.0`.
pub fn number() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// `RELEASE` or `DEBUG`.
pub fn build_type() -> &'static str {
    if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" }
}

/// As `/server_info` and `--version` print it.
pub fn full() -> String {
    format!("{}/{}/Clean/{}/AWS-LC", revision(), number(), build_type())
}
