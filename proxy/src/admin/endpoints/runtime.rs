//! `/runtime` and `/runtime_modify`.

use http::StatusCode;

use crate::admin::Admin;
use crate::admin::answer::Answer;
use crate::admin::query::Query;
use crate::config::json::{JsonWriter, Style};

pub(super) fn runtime(admin: &Admin, _: &Query) -> Answer {
    let values = admin.state.runtime();
    let mut json = JsonWriter::new(Style::DUMP);
    json.open_map();
    json.key("layers");
    json.open_list();
    values.layers.iter().for_each(|layer| json.string(layer));
    json.close_list();
    json.key("entries");
    json.open_map();
    for entry in &values.entries {
        json.key(&entry.key);
        json.open_map();
        json.key("final_value");
        json.string(&entry.final_value);
        json.key("layer_values");
        json.open_list();
        entry.layer_values.iter().for_each(|value| json.string(value));
        json.close_list();
        json.close_map();
    }
    json.close_map();
    json.close_map();
    Answer::json(json.finish())
}

const USAGE: &str = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN
       or send the parameters as form values
use an empty value to remove a previously added override";

pub(super) fn runtime_modify(admin: &Admin, query: &Query) -> Answer {
    if query.pairs().is_empty() {
        return Answer::refuse(StatusCode::BAD_REQUEST, USAGE);
    }
    match admin.state.modify_runtime(query.pairs()) {
        Ok(()) => Answer::text("OK\n"),
        Err(reason) => Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}
