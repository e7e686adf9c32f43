//! Clusters as a worker sees them: hosts, load assignment, circuit breakers, DNS.
