//! What Envoy offers for looking into itself and this build has not: `/contention`, `/cpuprofiler`, `/heapprofiler` say
//! so in Envoy's words. `/stats/recentlookups` counts look-ups, and records no names.

use http::StatusCode;

use crate::admin::Admin;
use crate::admin::answer::Answer;
use crate::admin::query::Query;

const OK: &str = "OK\n";

pub(super) fn contention(_: &Admin, _: &Query) -> Answer {
    Answer::text(
        "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.",
    )
}

pub(super) fn cpu(_: &Admin, query: &Query) -> Answer {
    match query.get("enable") {
        Some("y") => {
            Answer::refuse(StatusCode::INTERNAL_SERVER_ERROR, "failure to start the profiler")
        }
        Some("n") => Answer::text(OK),
        _ => Answer::refuse(StatusCode::BAD_REQUEST, "?enable=<y|n>\n"),
    }
}

pub(super) fn heap(_: &Admin, _: &Query) -> Answer {
    let body = "The current build does not support heap profiler";
    Answer::refuse(StatusCode::NOT_IMPLEMENTED, body)
}

pub(super) fn recent_lookups(admin: &Admin, _: &Query) -> Answer {
    let hint = "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n";
    Answer::text(format!("{hint}\ntotal: {}\n", admin.registry.lookups()))
}

pub(super) fn enable_lookups(_: &Admin, _: &Query) -> Answer {
    Answer::refuse(StatusCode::NOT_IMPLEMENTED, "The current build does not record lookups\n")
}

pub(super) fn disable_lookups(_: &Admin, _: &Query) -> Answer {
    Answer::text(OK)
}

pub(super) fn forget_lookups(admin: &Admin, _: &Query) -> Answer {
    admin.registry.forget_lookups();
    Answer::text(OK)
}
