//! Upstream connection pools, per worker, no locks.
