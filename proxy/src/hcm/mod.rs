//! The HTTP connection manager: one downstream connection and its streams.
