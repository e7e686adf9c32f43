//! `ExtensionConfigSource` of HTTP filters: what a chain has of a discovered filter, and what comes for it (ECDS).

use std::sync::Arc;

use super::CompileContext;
use super::core::{any_type, resolve_any};
use super::diagnostic::{Diagnostics, FieldPath};
use super::filters::{ROUTER, compile_http_filter};
use super::source::compile_config_source;
use crate::config::extension::DiscoveredFilter;
use crate::config::pb::envoy::config::core::v3::ExtensionConfigSource;
use crate::config::pb::google::protobuf::Any;
use crate::http_filters::chain::FilterConfig;

/// Compiles a filter whose configuration is discovered. What is known of it by now is in force at once.
pub fn compile_discovered(
    name: &str,
    pb: &ExtensionConfigSource,
    stat_prefix: &str,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Arc<DiscoveredFilter>> {
    if pb.type_urls.is_empty() {
        path.field("type_urls").error("value must contain at least 1 item(s)");
    }
    let Some(source) = &pb.config_source else {
        path.field("config_source").error("value is required");
        return None;
    };
    let source = compile_config_source(source, &path.field("config_source"))?;
    let types: Vec<Box<str>> = pb.type_urls.iter().map(|url| message_of(url).into()).collect();
    let default = match &pb.default_config {
        Some(any) => Some(compile(any, &types, stat_prefix, cx, &path.field("default_config"))?),
        None => None,
    };
    let slot = cx.slots.extension(name, &source);
    let waits = !pb.apply_default_config_without_warming;
    let filter = Arc::new(DiscoveredFilter::new(slot.clone(), types, stat_prefix, waits, default));
    if let Some(any) = slot.current() {
        // One that does not fit is on its way to be replaced: a listener may be told of another type first.
        let found = Diagnostics::new("");
        match compile_extension(&any, &filter, cx, &found.root()) {
            Some(config) => filter.fill(Some(Arc::new(config))),
            None => slot.conflict(),
        }
    }
    slot.add(&filter);
    Some(filter)
}

/// Compiles what has come for a discovered filter.
pub fn compile_extension(
    any: &Any,
    filter: &DiscoveredFilter,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<FilterConfig> {
    compile(any, &filter.types, &filter.stat_prefix, cx, path)
}

fn compile(
    any: &Any,
    types: &[Box<str>],
    stat_prefix: &str,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<FilterConfig> {
    let any = &*resolve_any(any, path);
    let found = any_type(any);
    if !types.iter().any(|known| **known == *found) {
        path.error(format_args!(
            "Error: filter config has type URL {found} but expect {}.",
            types.join(", ")
        ));
        return None;
    }
    if found == ROUTER {
        path.error("terminal filter must be the last filter in an http filter chain");
        return None;
    }
    compile_http_filter(false, any, stat_prefix, cx, path)
}

fn message_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::super::slots::Slots;
    use super::*;
    use crate::config::json::from_yaml;
    use crate::http_filters::ExtraFilters;
    use crate::tls::Secrets;

    const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";

    struct Bench {
        extra_filters: ExtraFilters,
        secrets: Secrets,
        slots: Slots,
    }

    impl Bench {
        fn new() -> Self {
            let (extra_filters, secrets) = (ExtraFilters::default(), Secrets::default());
            Self { extra_filters, secrets, slots: Slots::default() }
        }

        fn cx(&self) -> CompileContext<'_> {
            CompileContext {
                extra_filters: &self.extra_filters,
                secrets: &self.secrets,
                slots: &self.slots,
            }
        }

        /// The filter, or what is wrong.
        fn compile(&self, more: &str) -> Result<Arc<DiscoveredFilter>, String> {
            let yaml = format!("{{config_source: {{ads: {{}}}}, type_urls: [x/{FAULT}]{more}}}");
            let pb = from_yaml::<ExtensionConfigSource>(&yaml).unwrap();
            let found = Diagnostics::new("l");
            let filter = compile_discovered("f", &pb, "s", &self.cx(), &found.root());
            filter.ok_or_else(|| found.into_vec()[0].reason.clone())
        }
    }

    fn any(name: &str) -> Any {
        Any { type_url: format!("x/{name}"), value: Vec::new() }
    }

    #[test]
    fn a_default_serves_until_something_comes_and_after_it_has_gone() {
        let bench = Bench::new();
        let default = format!(", default_config: {{'@type': x/{FAULT}}}");
        let with_default = bench.compile(&default).unwrap();
        let without = bench.compile("").unwrap();
        assert!(with_default.load().is_some() && without.load().is_none());
        assert!(Arc::ptr_eq(&with_default.slot, &without.slot));
        let slot = &without.slot;
        assert_eq!(slot.users().len(), 2);

        let found = Diagnostics::new("f");
        let compile = |any: &Any| compile_extension(any, &without, &bench.cx(), &found.root());
        without.fill(Some(Arc::new(compile(&any(FAULT)).unwrap())));
        slot.set(Some(any(FAULT)));
        assert!(without.load().is_some());
        // Who comes later finds it there, unless it is of another type.
        assert!(bench.compile("").unwrap().load().is_some());
        assert_eq!(slot.take_conflicts(), 0);
        let yaml = "{config_source: {ads: {}}, type_urls: [x/y]}";
        let other = from_yaml::<ExtensionConfigSource>(yaml).unwrap();
        let found = Diagnostics::new("l");
        let other = compile_discovered("f", &other, "s", &bench.cx(), &found.root()).unwrap();
        assert!(other.load().is_none() && slot.take_conflicts() == 1 && !found.has_errors());
        without.fill(None);
        with_default.fill(None);
        assert!(without.load().is_none() && with_default.load().is_some());
    }

    #[test]
    fn other_types_than_those_named_are_refused() {
        let bench = Bench::new();
        let filter = bench.compile("").unwrap();
        let found = Diagnostics::new("f");
        assert!(compile_extension(&any(ROUTER), &filter, &bench.cx(), &found.root()).is_none());
        let reason = &found.into_vec()[0].reason;
        assert!(reason.starts_with("Error: filter config has type URL envoy"), "{reason}");
        let default = format!(", default_config: {{'@type': x/{ROUTER}}}");
        assert!(bench.compile(&default).is_err());
    }
}
