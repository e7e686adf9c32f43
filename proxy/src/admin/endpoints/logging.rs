//! `/logging`: levels of Envoy's loggers, shown and changed.

use std::fmt::Write;

use http::StatusCode;

use crate::admin::Admin;
use crate::admin::answer::Answer;
use crate::admin::query::Query;
use crate::telemetry::{self, LOGGERS, LogLevel};

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
usage: /logging?group=<group_name>:<level> (change group of loggers)
levels: trace debug info warning error critical off 
";

pub(super) fn logging(_: &Admin, query: &Query) -> Answer {
    match change(query) {
        Ok(()) => Answer::text(format!("{}\n", active())),
        Err(error) => {
            let body = format!("error: {error}\n\n{USAGE}{}\n", active());
            Answer::refuse(StatusCode::BAD_REQUEST, body)
        }
    }
}

fn active() -> String {
    let mut out = String::from("active loggers:\n");
    for logger in LOGGERS {
        let level = telemetry::level_of(logger).unwrap_or(LogLevel::Off);
        let _ = writeln!(out, "  {logger}: {level}");
    }
    out
}

/// All named loggers are checked before the first is changed.
fn change(query: &Query) -> Result<(), &'static str> {
    let pairs = query.pairs();
    if pairs.len() > 1 {
        return Err("invalid number of parameters");
    }
    let Some((name, value)) = pairs.first().filter(|(_, value)| !value.is_empty()) else {
        return Ok(());
    };
    if name == "level" {
        telemetry::set_all_levels(level(value)?);
        return Ok(());
    }
    let changes: Vec<(&str, LogLevel)> = if name == "paths" || name == "group" {
        let parts = value.split(',').filter(|part| !part.is_empty());
        parts.map(|part| named(part)).collect::<Result<_, _>>()?
    } else {
        vec![(name, level(value)?)]
    };
    if changes.iter().any(|(logger, _)| telemetry::level_of(logger).is_none()) {
        return Err("unknown logger name");
    }
    for (logger, level) in changes {
        telemetry::set_level(logger, level).map_err(|_| "unknown logger name")?;
    }
    Ok(())
}

fn named(part: &str) -> Result<(&str, LogLevel), &'static str> {
    let (logger, wanted) = part.split_once(':').ok_or("empty logger name or empty logger level")?;
    if logger.is_empty() || wanted.is_empty() {
        return Err("empty logger name or empty logger level");
    }
    Ok((logger, level(wanted)?))
}

fn level(text: &str) -> Result<LogLevel, &'static str> {
    text.parse().map_err(|_| "unknown logger level")
}
