//! The table of endpoints: path, help, parameters, whether it changes anything, and who answers.

mod certs;
mod clusters;
mod config_dump;
mod config_dump_bootstrap;
mod config_dump_entry;
mod help;
mod ignored;
mod listeners;
mod logging;
mod memory;
mod profiling;
mod rejected;
mod runtime;
mod server;
mod stats;

use http::StatusCode;

use super::Admin;
use super::answer::Answer;
use super::query::Query;

pub(super) use memory::Memory;

/// One path of the admin interface.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    pub(super) parameters: &'static [Parameter],
    /// Needs POST.
    pub(super) mutates: bool,
    handler: fn(&Admin, &Query) -> Answer,
}

/// A query parameter.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: ParameterKind,
}

pub(super) enum ParameterKind {
    /// Counts by being there.
    Flag,
    Text,
    One(&'static [&'static str]),
}

const NONE: &[Parameter] = &[];

const fn flag(name: &'static str, help: &'static str) -> Parameter {
    Parameter { name, help, kind: ParameterKind::Flag }
}

const fn text(name: &'static str, help: &'static str) -> Parameter {
    Parameter { name, help, kind: ParameterKind::Text }
}

const fn one(
    name: &'static str,
    help: &'static str,
    choices: &'static [&'static str],
) -> Parameter {
    Parameter { name, help, kind: ParameterKind::One(choices) }
}

const fn read(
    path: &'static str,
    help: &'static str,
    parameters: &'static [Parameter],
    handler: fn(&Admin, &Query) -> Answer,
) -> Endpoint {
    Endpoint { path, help, parameters, mutates: false, handler }
}

const fn write(
    path: &'static str,
    help: &'static str,
    parameters: &'static [Parameter],
    handler: fn(&Admin, &Query) -> Answer,
) -> Endpoint {
    Endpoint { path, help, parameters, mutates: true, handler }
}

/// All endpoints, by path.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    read("/", "Admin home page", NONE, help::index),
    read("/certs", "print certs on machine", NONE, certs::certs),
    read(
        "/clusters",
        "upstream cluster status",
        &[
            text("filter", "Regular expression for filtering clusters by name"),
            one("format", "File format to use", &["text", "json"]),
        ],
        clusters::clusters,
    ),
    read(
        "/config_dump",
        "dump current configs",
        &[
            text("resource", "The resource to dump"),
            text(
                "mask",
                "Fields to keep, as a field mask; with a resource, of each of its elements",
            ),
            text("name_regex", "Dump only the configurations whose names match"),
            flag("include_eds", "Dump endpoints too"),
        ],
        config_dump::config_dump,
    ),
    read(
        "/config_ignored",
        "list every configured field that is applied without",
        &[one("format", "File format to use", &["text", "json"])],
        ignored::ignored,
    ),
    read("/contention", "dump current mutex contention stats", NONE, profiling::contention),
    write(
        "/cpuprofiler",
        "enable/disable the CPU profiler",
        &[one("enable", "enables the CPU profiler", &["y", "n"])],
        profiling::cpu,
    ),
    write(
        "/drain_listeners",
        "drain listeners",
        &[
            flag("graceful", "Enter a graceful drain period prior to closing listeners"),
            flag("skip_exit", "Drain the connections but never stop the listeners"),
            flag("inboundonly", "Drain only listeners with traffic_direction INBOUND"),
        ],
        server::drain_listeners,
    ),
    write(
        "/healthcheck/fail",
        "cause the server to fail health checks",
        NONE,
        server::healthcheck_fail,
    ),
    write(
        "/healthcheck/ok",
        "cause the server to pass health checks",
        NONE,
        server::healthcheck_ok,
    ),
    write(
        "/heapprofiler",
        "enable/disable the heap profiler",
        &[one("enable", "enable/disable the heap profiler", &["y", "n"])],
        profiling::heap,
    ),
    read("/help", "print out list of admin commands", NONE, help::help),
    read(
        "/hot_restart_version",
        "print the hot restart compatibility version",
        NONE,
        server::hot_restart_version,
    ),
    read(
        "/listeners",
        "print listener info",
        &[one("format", "File format to use", &["text", "json"])],
        listeners::listeners,
    ),
    write(
        "/logging",
        "query/change logging levels",
        &[
            text("paths", "Change levels to <logger1>:<level1>,<logger2>:<level2>"),
            text("group", "Change a logger to <logger>:<level>"),
            one(
                "level",
                "Change all loggers",
                &["", "trace", "debug", "info", "warning", "error", "critical", "off"],
            ),
        ],
        logging::logging,
    ),
    read("/memory", "print current allocation/heap usage", NONE, memory::memory),
    write("/quitquitquit", "exit the server", NONE, server::quit),
    read(
        "/ready",
        "print server state, return 200 if LIVE, otherwise return 503",
        NONE,
        server::ready,
    ),
    read(
        "/rejected",
        "list resources whose newest version was not taken, with the reasons",
        &[one("format", "File format to use", &["text", "json"])],
        rejected::rejected,
    ),
    write("/reopen_logs", "reopen access logs", NONE, server::reopen_logs),
    write("/reset_counters", "reset all counters to zero", NONE, stats::reset_counters),
    read("/runtime", "print runtime values", NONE, runtime::runtime),
    write(
        "/runtime_modify",
        "Adds or modifies runtime values as passed in query parameters. An empty value removes an \
         override that was added here. E.g. ?key1=value1&key2=value2...",
        NONE,
        runtime::runtime_modify,
    ),
    read("/server_info", "print server version/status information", NONE, server::server_info),
    read(
        "/stats",
        "print server stats",
        &[
            flag("usedonly", "Only include stats that have been written since the start"),
            text("filter", "Regular expression for filtering stats"),
            flag("invert_filter", "Invert the filter"),
            one("format", "Format to use", &["text", "json", "prometheus"]),
            one(
                "type",
                "Stat types to include.",
                &["All", "Counters", "Histograms", "Gauges", "TextReadouts"],
            ),
            one(
                "histogram_buckets",
                "Histogram bucket display mode",
                &["cumulative", "disjoint", "detailed", "summary"],
            ),
        ],
        stats::stats,
    ),
    read(
        "/stats/prometheus",
        "print server stats in prometheus format",
        &[
            flag("usedonly", "Only include stats that have been written since the start"),
            flag("text_readouts", "Render text_readouts as gauges with value 0"),
            text("filter", "Regular expression for filtering stats"),
            flag("invert_filter", "Invert the filter"),
            one("histogram_buckets", "Histogram bucket display mode", &["cumulative", "summary"]),
        ],
        stats::prometheus,
    ),
    read("/stats/recentlookups", "Show recent stat-name lookups", NONE, profiling::recent_lookups),
    write(
        "/stats/recentlookups/clear",
        "clear list of stat-name lookups and counter",
        NONE,
        profiling::forget_lookups,
    ),
    write(
        "/stats/recentlookups/disable",
        "disable recording of reset stat-name lookup names",
        NONE,
        profiling::disable_lookups,
    ),
    write(
        "/stats/recentlookups/enable",
        "enable recording of reset stat-name lookup names",
        NONE,
        profiling::enable_lookups,
    ),
];

/// Answers one request; `query` holds a posted form's parameters too.
pub(super) fn answer(admin: &Admin, method: &http::Method, path: &str, query: &Query) -> Answer {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == path) else {
        let body = format!("invalid path. {}", help::text());
        return Answer::refuse(StatusCode::NOT_FOUND, body);
    };
    if endpoint.mutates && method != http::Method::POST {
        let body = format!("Method {method} not allowed, POST required.");
        return Answer::refuse(StatusCode::METHOD_NOT_ALLOWED, body);
    }
    (endpoint.handler)(admin, query)
}
