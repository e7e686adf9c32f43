//! Statistics of virtual clusters and routes, below `vhost.<virtual host>`.

use crate::metrics;

metrics! {
    /// A virtual cluster (`vhost.<virtual host>.vcluster.<name>`) or a route with a `stat_prefix`
    /// (`vhost.<virtual host>.route.<stat_prefix>`).
    pub enum RouteStat {
        UpstreamRqRetry: counter "upstream_rq_retry",
        UpstreamRqRetryLimitExceeded: counter "upstream_rq_retry_limit_exceeded",
        UpstreamRqRetryOverflow: counter "upstream_rq_retry_overflow",
        UpstreamRqRetrySuccess: counter "upstream_rq_retry_success",
        UpstreamRqTimeout: counter "upstream_rq_timeout",
        UpstreamRqTotal: counter "upstream_rq_total",
    }
}

metrics! {
    /// The same, once a response has come.
    pub enum RouteTimeStat {
        UpstreamRqTime: histogram "upstream_rq_time" ms,
    }
}
