//! Upstream connections: connect with a deadline.
