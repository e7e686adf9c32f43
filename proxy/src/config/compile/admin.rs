//! `admin` and `application_log_config` of the bootstrap.

use super::access_log::compile_access_logs;
use super::core::{compile_address, compile_socket_options, struct_to_json};
use super::diagnostic::FieldPath;
use super::matcher::compile_string_matchers;
use crate::config::admin::AdminConfig;
use crate::config::pb::envoy::config::bootstrap::v3 as pb;
use crate::config::pb::envoy::config::bootstrap::v3::bootstrap::application_log_config::log_format::LogFormat;
use crate::telemetry::Pattern;

/// Compiles `Bootstrap.admin`; `path` is the field.
pub fn compile_admin(pb: &pb::Admin, path: &FieldPath<'_>) -> Option<AdminConfig> {
    let address = match &pb.address {
        Some(address) => Some(compile_address(Some(address), &path.field("address"))?),
        None => None,
    };
    Some(AdminConfig {
        address,
        socket_options: compile_socket_options(&pb.socket_options, "socket_options", path),
        access_log: compile_access_logs(&pb.access_log, "access_log", path),
        allow_paths: compile_string_matchers(&pb.allow_paths, "allow_paths", path)?,
    })
}

/// Compiles `Bootstrap.application_log_config`: the log's form, over `--log-format`. `path` is the field.
pub fn compile_application_log(
    pb: &pb::bootstrap::ApplicationLogConfig,
    path: &FieldPath<'_>,
) -> Option<Pattern> {
    let path = path.field("log_format");
    match pb.log_format.as_ref()?.log_format.as_ref() {
        Some(LogFormat::TextFormat(text)) => Some(Pattern::new(text)),
        Some(LogFormat::JsonFormat(json)) => {
            let json = serde_json::Value::Object(struct_to_json(json)).to_string();
            path.field("json_format").ok_or_error(Pattern::json(&json))
        }
        None => {
            path.error("value is required");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::json::from_yaml;
    use crate::telemetry::{Line, LogLevel};

    fn log(yaml: &str) -> Result<String, Vec<String>> {
        let bootstrap: pb::Bootstrap = from_yaml(yaml).unwrap();
        let found = Diagnostics::new("bootstrap");
        let config = bootstrap.application_log_config.unwrap();
        let pattern =
            compile_application_log(&config, &found.root().field("application_log_config"));
        let problems = found.into_vec();
        let Some(pattern) = pattern else {
            return Err(problems.iter().map(|d| format!("{}: {}", d.path, d.reason)).collect());
        };
        let line = Line {
            level: LogLevel::Info,
            logger: "main",
            message: "a \"b\"",
            file: "",
            line: 1,
            function: "",
        };
        let mut out = String::new();
        pattern.render(&line, false, &mut out);
        Ok(out)
    }

    #[test]
    fn log_formats_are_text_or_json() {
        let text = "application_log_config: {log_format: {text_format: '%l|%v'}}";
        assert_eq!(log(text).unwrap(), "info|a \"b\"");
        let json = "application_log_config: {log_format: {json_format: {m: '%j', l: '%l', n: 3}}}";
        let line: serde_json::Value = serde_json::from_str(&log(json).unwrap()).unwrap();
        assert_eq!(line, serde_json::json!({"m": "a \"b\"", "l": "info", "n": 3}));
        let raw = "application_log_config: {log_format: {json_format: {m: '%v'}}}";
        assert!(
            log(raw).unwrap_err()[0].starts_with("application_log_config.log_format.json_format: ")
        );
        assert_eq!(
            log("application_log_config: {log_format: {}}").unwrap_err(),
            ["application_log_config.log_format: value is required"]
        );
    }

    #[test]
    fn admin_compiles() {
        let admin: pb::Admin = from_yaml(
            "{address: {socket_address: {address: 127.0.0.1, port_value: 15000}}, profile_path: /x, \
             allow_paths: [{prefix: /ready}]}",
        )
        .unwrap();
        let found = Diagnostics::new("bootstrap");
        let config = compile_admin(&admin, &found.root().field("admin")).unwrap();
        assert!(config.address.is_some() && config.allow_paths[0].matches(b"/ready"));
        assert_eq!(found.into_vec(), []);
    }
}
