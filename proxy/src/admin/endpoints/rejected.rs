//! `/rejected`, ours: resources whose newest version was not taken, so that nobody has to search the logs of a control
//! plane for what a proxy refused.

use std::fmt::Write;
use std::time::SystemTime;

use crate::admin::answer::Answer;
use crate::admin::query::Query;
use crate::admin::{Admin, RejectedResource};

pub(super) fn rejected(admin: &Admin, query: &Query) -> Answer {
    let found = admin.state.rejected();
    if query.get("format") == Some("json") {
        let resources: Vec<_> = found.iter().map(json).collect();
        let count = resources.len();
        return Answer::json(format!(
            "{:#}\n",
            serde_json::json!({"count": count, "resources": resources})
        ));
    }
    let mut out = format!("{} resources are rejected\n", found.len());
    for one in &found {
        let force = if one.last_good_in_force { "an earlier version" } else { "nothing" };
        let _ = writeln!(
            out,
            "{} {:?} version {:?} since {}: {force} is in force",
            one.kind,
            one.name,
            one.version,
            time(one.since)
        );
        for (path, reason) in &one.problems {
            let separator = if path.is_empty() { "" } else { ": " };
            let _ = writeln!(out, "  {path}{separator}{reason}");
        }
    }
    Answer::text(out)
}

fn json(one: &RejectedResource) -> serde_json::Value {
    let problem =
        |(path, reason): &(String, String)| serde_json::json!({"path": path, "reason": reason});
    serde_json::json!({
        "type": one.kind,
        "name": one.name,
        "version": one.version,
        "since": time(one.since),
        "last_attempt": time(one.last_attempt),
        "last_good_in_force": one.last_good_in_force,
        "problems": one.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}

/// As RFC 3339 has it, in UTC.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| format!("{at:.3}")).unwrap_or_default()
}
