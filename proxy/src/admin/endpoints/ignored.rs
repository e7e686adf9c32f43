//! `/config_ignored`, ours: what the configuration asks for and does not get, so that nothing is silently left out.

use std::fmt::Write;

use crate::admin::Admin;
use crate::admin::answer::Answer;
use crate::admin::query::Query;

pub(super) fn ignored(admin: &Admin, query: &Query) -> Answer {
    let found = admin.state.ignored_configuration();
    if query.get("format") == Some("json") {
        let fields: Vec<serde_json::Value> = found
            .iter()
            .map(
                |d| serde_json::json!({"resource": d.resource, "path": d.path, "reason": d.reason}),
            )
            .collect();
        let count = fields.len();
        return Answer::json(format!(
            "{:#}\n",
            serde_json::json!({"count": count, "fields": fields})
        ));
    }
    let mut out = format!("{} fields are applied without\n", found.len());
    for diagnostic in &found {
        let _ = writeln!(out, "{diagnostic}");
    }
    Answer::text(out)
}
