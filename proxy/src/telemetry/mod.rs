//! The proxy's own log.
