//! Outrigger with a few filters more, for the area `probes` of the differential suite.
//!
//! They stand where Envoy has its Lua or Wasm filter: the configuration is the same for both. The first line of a
//! script, `-- probe NAME …`, or the configuration of a module says which of them does the same.

mod ask;
mod filters;

use std::process::ExitCode;
use std::sync::Arc;

use outrigger::config::compile::core::unpack_any;
use outrigger::config::compile::diagnostic::FieldPath;
use outrigger::config::pb::envoy::config::core::v3::data_source::Specifier;
use outrigger::config::pb::envoy::extensions::filters::http::lua::v3::Lua;
use outrigger::config::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use outrigger::config::pb::google::protobuf::{Any, StringValue};
use outrigger::http_filters::{ExtraFilters, FilterFactory};

const LUA: &str = "envoy.extensions.filters.http.lua.v3.Lua";
const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";

fn main() -> ExitCode {
    let filters = ExtraFilters(vec![(LUA, compile_lua), (WASM, compile_wasm)]);
    outrigger::server::main(std::env::args_os(), &filters)
}

fn compile_lua(any: &Any, path: &FieldPath<'_>) -> Option<Arc<dyn FilterFactory>> {
    let lua: Lua = unpack_any(any, path)?;
    let path = path.field("default_source_code");
    let Some(Specifier::InlineString(code)) = lua.default_source_code.and_then(|s| s.specifier)
    else {
        path.error("a script is required");
        return None;
    };
    let line = code.lines().next().unwrap_or_default();
    probe(line.strip_prefix("-- probe ").unwrap_or(line), &path)
}

fn compile_wasm(any: &Any, path: &FieldPath<'_>) -> Option<Arc<dyn FilterFactory>> {
    let wasm: Wasm = unpack_any(any, path)?;
    let path = path.field("config");
    let Some(configuration) = wasm.config.and_then(|config| config.configuration) else {
        path.field("configuration").error("is required");
        return None;
    };
    let text: StringValue = unpack_any(&configuration, &path.field("configuration"))?;
    probe(&text.value, &path)
}

fn probe(text: &str, path: &FieldPath<'_>) -> Option<Arc<dyn FilterFactory>> {
    let probe = filters::Probe::parse(text);
    if probe.is_none() {
        path.error(format_args!("no probe stands in for {text:?}"));
    }
    Some(Arc::new(probe?))
}
