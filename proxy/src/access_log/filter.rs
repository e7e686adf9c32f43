//! Which streams an access log takes: evaluated before anything is formatted.

use crate::codec::head::{HeaderList, RequestHead};
use crate::codec::name::names;
use crate::config::access_log::Filter;
use crate::format::{Ctx, grpc};
use crate::stream_info::TraceReason;

/// Whether the filter lets the stream through.
pub fn matches(filter: &Filter, ctx: &Ctx<'_>) -> bool {
    let info = ctx.info;
    match filter {
        Filter::StatusCode(comparison) => {
            comparison.holds(info.response_code.map_or(0, |code| code.as_u16().into()))
        }
        Filter::Duration(comparison) => {
            let end = info.timing.end.unwrap_or_else(std::time::Instant::now);
            let elapsed = end.saturating_duration_since(info.start);
            comparison.holds(elapsed.as_millis() as u64)
        }
        Filter::NotHealthCheck => !info.is_health_check,
        // Only what a service forces: other reasons are sampled.
        Filter::Traceable => {
            !info.is_health_check && info.trace_reason == Some(TraceReason::ServiceForced)
        }
        Filter::Runtime { percent, independent } => {
            let of_request = ctx.request.filter(|_| !independent).and_then(request_random);
            percent.is_hit(of_request.unwrap_or_else(rand::random))
        }
        Filter::And(filters) => filters.iter().all(|filter| matches(filter, ctx)),
        Filter::Or(filters) => filters.iter().any(|filter| matches(filter, ctx)),
        Filter::Header(matcher) => match ctx.request {
            Some(request) => matcher.matches(request),
            None => matcher.matches(&HeaderList::default()),
        },
        Filter::ResponseFlag(None) => !info.flags.is_empty(),
        Filter::ResponseFlag(Some(flags)) => info.flags.intersects(*flags),
        Filter::GrpcStatus { statuses, exclude } => {
            const UNKNOWN: i64 = 2;
            let status = grpc::response_status(ctx).unwrap_or(UNKNOWN);
            statuses.contains(&status) != *exclude
        }
        Filter::Metadata { matcher, match_if_not_found } => {
            let struct_of = |namespace: &str| {
                let found = info.metadata.iter().find(|(name, _)| **name == *namespace);
                found.map(|(_, map)| &**map)
            };
            let found = matcher.as_ref().and_then(|m| Some((m, m.lookup(struct_of)?)));
            found.map_or(*match_if_not_found, |(matcher, value)| {
                matcher.value.matches(value) != matcher.invert
            })
        }
        Filter::LogType { types, exclude } => types.contains(&ctx.access_log_type) != *exclude,
    }
}

/// A number that every log and every hop takes from the same request: the first 32 bits of its id.
pub fn request_random(request: &RequestHead) -> Option<u64> {
    let id = request.headers.get_str(&names::X_REQUEST_ID)?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}
