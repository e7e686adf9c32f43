//! `/help`, and `/`: the same list to click on.

use std::fmt::Write;

use super::{ENDPOINTS, Parameter, ParameterKind};
use crate::admin::Admin;
use crate::admin::answer::{Answer, HTML};
use crate::admin::query::Query;

/// The list of commands in Envoy's form.
pub(super) fn text() -> String {
    let mut out = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let method = if endpoint.mutates { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{method}: {}", endpoint.path, endpoint.help);
        for Parameter { name, help, kind } in endpoint.parameters {
            let _ = write!(out, "      {name}: {help}");
            if let ParameterKind::One(choices) = kind {
                let _ = write!(out, "; One of ({})", choices.join(", "));
            }
            out.push('\n');
        }
    }
    out
}

pub(super) fn help(_: &Admin, _: &Query) -> Answer {
    Answer::text(text())
}

const HEAD: &str = "<!DOCTYPE html>
<html lang='en'>
<head>
<meta charset='utf-8'>
<title>Outrigger Admin</title>
<style>
body { font: medium sans-serif; margin: 2em; max-width: 60em; }
td, th { text-align: left; padding: 4px 12px 4px 4px; vertical-align: top; }
tr:nth-child(even) { background: #eee; }
form { margin: 0; }
label { display: block; padding: 2px 0 2px 20px; }
button { font: inherit; }
</style>
</head>
<body>
";

/// The home page: state in one line, then a form for each command.
pub(super) fn index(admin: &Admin, _: &Query) -> Answer {
    let mut out = String::from(HEAD);
    let state = admin.state.server_state().name();
    let uptime = admin.state.uptime().as_secs();
    let ignored = admin.state.ignored_configuration().len();
    let _ = writeln!(
        out,
        "<h1>Outrigger</h1>\n<p>{state}, up {uptime} s. \
         <a href='config_ignored'>{ignored} configured fields</a> are applied without.</p>\n\
         <table>\n<tr><th>Command</th><th>Description</th></tr>"
    );
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        let name = &endpoint.path[1..];
        let method = if endpoint.mutates { "post" } else { "get" };
        let _ =
            write!(out, "<tr><td><form action='{name}' method='{method}'><button>{name}</button>");
        for Parameter { name, help, kind } in endpoint.parameters {
            let _ = write!(out, "<label title='{help}'>{name} ");
            match kind {
                ParameterKind::Flag => {
                    let _ = write!(out, "<input type='checkbox' name='{name}'>");
                }
                ParameterKind::Text => {
                    let _ = write!(out, "<input name='{name}'>");
                }
                ParameterKind::One(choices) => {
                    let _ = write!(out, "<select name='{name}'>");
                    for choice in *choices {
                        let _ = write!(out, "<option>{choice}</option>");
                    }
                    out.push_str("</select>");
                }
            }
            out.push_str("</label>");
        }
        let _ = writeln!(out, "</form></td><td>{}</td></tr>", endpoint.help);
    }
    out.push_str("</table>\n</body>\n</html>\n");
    Answer::new(http::StatusCode::OK, HTML, out)
}
