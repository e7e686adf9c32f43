//! The HTTP connection manager: one downstream connection and its streams.

pub mod local_reply;

/// Statistics of one connection manager on one worker.
#[derive(Debug, Clone)]
pub struct HcmScope {
    /// `http.<stat_prefix>`, without a dot at the end.
    pub prefix: std::sync::Arc<str>,
}
