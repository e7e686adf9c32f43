//! Outrigger, the data plane.
//!
//! The modules below stand in the order in which a request meets them.

pub mod worker;

pub mod listener;

pub mod filter_chain;

pub mod hcm;

pub mod codec;

pub mod http_filters;

pub mod router;

pub mod cluster;

pub mod load_balancer;

pub mod conn_pool;

pub mod upstream;

pub mod tls;

pub mod io;

pub mod stream_info;

pub mod grpc;

pub mod config;

pub mod format;

pub mod access_log;

pub mod stats;

pub mod admin;

pub mod telemetry;

pub mod xds;

pub mod server;

pub mod sys;
