//! Statistics: Envoy's names, kinds and output; counted by workers without locks, summed when somebody reads.
//!
//! [`Registry`] → [`Scope`] (`cluster.foo`) → [`Block`] of a set declared with [`metrics!`](crate::metrics), one per
//! worker, made on first use. Single statistics with names known only at run time are resolved once to a handle.

mod bins;
mod block;
mod codes;
mod definition;
mod filter_stats;
mod histogram;
pub mod names;
mod number;
mod process;
mod registry;
pub mod render;
mod scope;
mod tags;

pub use block::{
    Block, Counter, Gauge, SharedBlock, SharedCounter, SharedGauge, TextReadout, WorkerHistogram,
};
pub use codes::ResponseCodes;
pub use definition::{Kind, StatDef, StatSet, StatTable, Unit, assign_slots};
pub use filter_stats::FilterStats;
pub use process::{declare_http2, declare_process};
pub use registry::{Registry, sanitize};
pub use scope::Scope;
pub use tags::is_default_tag;
