//! `/stats`, `/stats/prometheus`, `/reset_counters`.

use http::StatusCode;
use regex::Regex;

use crate::admin::Admin;
use crate::admin::answer::{Answer, JSON, TEXT};
use crate::admin::query::Query;
use crate::admin::re2_words;
use crate::stats::render::{HistogramBuckets, StatsFormat, StatsParams, StatsRender, StatsType};

pub(super) fn stats(admin: &Admin, query: &Query) -> Answer {
    let (format, content_type) = match query.filled("format") {
        None | Some("text") => (StatsFormat::Text, TEXT),
        Some("json") => (StatsFormat::Json, JSON),
        Some("prometheus") => return prometheus(admin, query),
        Some(_) => {
            let usage = "usage: /stats?format=(json|prometheus|text)\n\n";
            return Answer::refuse(StatusCode::BAD_REQUEST, usage);
        }
    };
    render(admin, query, format, content_type)
}

pub(super) fn prometheus(admin: &Admin, query: &Query) -> Answer {
    render(admin, query, StatsFormat::Prometheus, TEXT)
}

fn render(admin: &Admin, query: &Query, format: StatsFormat, content_type: &'static str) -> Answer {
    match params(query, format) {
        Ok(params) => {
            admin.update_server_stats();
            Answer::pieces(content_type, StatsRender::new(&admin.registry, params, format))
        }
        Err(reason) => Answer::refuse(StatusCode::BAD_REQUEST, reason),
    }
}

fn params(query: &Query, format: StatsFormat) -> Result<StatsParams, String> {
    let filter =
        match query.filled("filter") {
            Some(pattern) => Some(Regex::new(pattern).map_err(|error| {
                format!("Invalid re2 regex: {}", re2_words::of(&error, pattern))
            })?),
            None => None,
        };
    let kinds = match query.filled("type") {
        None | Some("All") => StatsType::All,
        Some("Counters") => StatsType::Counters,
        Some("Gauges") => StatsType::Gauges,
        Some("Histograms") => StatsType::Histograms,
        Some("TextReadouts") => StatsType::TextReadouts,
        Some(_) => return Err("invalid &type= param".to_owned()),
    };
    let prometheus = format == StatsFormat::Prometheus;
    let buckets = match query.filled("histogram_buckets") {
        None => HistogramBuckets::Unset,
        Some("cumulative") => HistogramBuckets::Cumulative,
        Some("none" | "summary") => HistogramBuckets::Summary,
        Some("disjoint" | "detailed") if prometheus => {
            return Err("unsupported prometheus histogram bucket mode".to_owned());
        }
        Some("disjoint") => HistogramBuckets::Disjoint,
        Some("detailed") => HistogramBuckets::Detailed,
        Some(_) => {
            let modes = "cumulative|disjoint|detailed|summary";
            return Err(format!("usage: /stats?histogram_buckets=({modes})\n"));
        }
    };
    Ok(StatsParams {
        used_only: query.has("usedonly"),
        filter,
        invert_filter: query.has("invert_filter"),
        kinds,
        buckets,
        text_readouts: query.has("text_readouts"),
    })
}

pub(super) fn reset_counters(admin: &Admin, _: &Query) -> Answer {
    admin.registry.reset_counters();
    Answer::text("OK\n")
}
