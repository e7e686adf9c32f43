//! Compiled configuration: plain, immutable, `Send + Sync`; protobuf stops in `compile`.

pub mod access_log;
pub mod admin;
pub mod bootstrap;
pub mod cidr;
pub mod cluster;
pub mod compile;
pub mod core;
pub mod endpoint;
pub mod filter_chain;
pub mod hcm;
pub mod header_ops;
pub mod json;
pub mod listener;
pub mod local_reply;
pub mod matcher;
pub mod name;
pub mod pb;
pub mod protocol_options;
pub mod rate_limit;
pub mod rbac;
pub mod route;
pub mod runtime;
pub mod source;
pub mod stats;
pub mod support;
pub mod tcp_proxy;
