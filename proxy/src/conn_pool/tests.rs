//! Tests of the pools over loopback peers.
