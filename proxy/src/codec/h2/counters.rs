//! Where the statistics of a codec go.

use crate::stats::Block;
use crate::stats::names::{ClusterStat, Http2Stat, HttpStat};

/// Where the bytes of a connection are counted.
#[derive(Debug, Clone)]
pub enum Traffic {
    Downstream(Block<HttpStat>),
    Upstream(Block<ClusterStat>),
}

/// The statistics of a codec: `http2.*` and the byte counters beside it.
#[derive(Debug, Clone)]
pub struct Counters {
    pub codec: Block<Http2Stat>,
    pub traffic: Traffic,
}

impl Counters {
    /// For tests.
    pub fn detached() -> Self {
        Self { codec: Block::detached(), traffic: Traffic::Downstream(Block::detached()) }
    }

    pub(super) fn received(&self, bytes: usize) {
        match &self.traffic {
            Traffic::Downstream(stats) => {
                stats.add(HttpStat::DownstreamCxRxBytesTotal, bytes as u64);
            }
            Traffic::Upstream(stats) => {
                stats.add(ClusterStat::UpstreamCxRxBytesTotal, bytes as u64);
            }
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        match &self.traffic {
            Traffic::Downstream(stats) => {
                stats.add(HttpStat::DownstreamCxTxBytesTotal, bytes as u64);
            }
            Traffic::Upstream(stats) => {
                stats.add(ClusterStat::UpstreamCxTxBytesTotal, bytes as u64);
            }
        }
    }
}
