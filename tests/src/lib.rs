//! Harness of the black-box tests: the same configuration and the same bytes go through real
//! Envoy and through Outrigger, and everything that can be seen from outside is compared.
//!
//! An [`area`] is a YAML file with a configuration and a list of cases. [`sandbox`] starts one
//! proxy with its own scripted [`upstream`]s; [`differential`] sends each case through both sides
//! by a [`client`] and compares the lines of their [`observe::Observation`]s.

pub mod area;
pub mod client;
pub mod config;
pub mod conformance;
pub mod control_plane;
pub mod differential;
pub mod ledger;
pub mod load;
pub mod mesh;
pub mod namespace;
pub mod observe;
pub mod pod;
pub mod ports;
pub mod proxy;
pub mod sandbox;
pub mod stats;
pub mod tls;
pub mod upstream;
pub mod wire;
