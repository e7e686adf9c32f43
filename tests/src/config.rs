//! From the short form of an area file to a complete bootstrap.
//!
//! A listener is `{hcm: {...}}`, `{tcp_proxy: {...}}` or anything with `filter_chains`; the first
//! two become one filter chain with an access log of every operator. Inside a connection manager
//! `routes: [...]` stands for one virtual host, an HTTP filter may be `{fault: {...}}`, and the
//! router is appended. A cluster is `{name, up: NAME or [NAMES], h2: true, ...Cluster}`; each `up`
//! is a scripted upstream, `refused…` a port nobody listens on, `pipe…` a Unix socket.
//! In all strings `${port:LISTENER}`, `${up:NAME}`, `${dir}`, `${certs}` are filled in per proxy.
//! `tls_log: true` in a connection manager or TCP proxy adds the operators over TLS to its access log.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::area::Area;
use crate::observe::{LOG_FIELDS, TLS_LOG_FIELDS};

/// Where one proxy's ports and files are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub admin: u16,
    pub listeners: BTreeMap<String, u16>,
    pub upstreams: BTreeMap<String, u16>,
    pub dir: String,
    /// See [`crate::tls::certificates`].
    pub certs: String,
}

const HTTP_FILTERS: &[(&str, &str, &str)] = &[
    ("router", "envoy.filters.http.router", "router.v3.Router"),
    ("fault", "envoy.filters.http.fault", "fault.v3.HTTPFault"),
    ("grpc_stats", "envoy.filters.http.grpc_stats", "grpc_stats.v3.FilterConfig"),
    ("cors", "envoy.filters.http.cors", "cors.v3.Cors"),
    ("rbac", "envoy.filters.http.rbac", "rbac.v3.RBAC"),
    ("compressor", "envoy.filters.http.compressor", "compressor.v3.Compressor"),
    ("buffer", "envoy.filters.http.buffer", "buffer.v3.Buffer"),
    ("header_mutation", "envoy.filters.http.header_mutation", "header_mutation.v3.HeaderMutation"),
    ("local_ratelimit", "envoy.filters.http.local_ratelimit", "local_ratelimit.v3.LocalRateLimit"),
    ("lua", "envoy.filters.http.lua", "lua.v3.Lua"),
    ("wasm", "envoy.filters.http.wasm", "wasm.v3.Wasm"),
];

/// Names of the scripted upstreams that the area's clusters use.
#[must_use]
pub fn upstream_names(area: &Area) -> Vec<String> {
    let mut names = Vec::new();
    for cluster in &area.clusters {
        for name in cluster_upstreams(cluster) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

fn cluster_upstreams(cluster: &Value) -> Vec<String> {
    if cluster.get("load_assignment").is_some() {
        return extra_upstreams(cluster);
    }
    match cluster.get("up") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => {
            many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        }
        _ => cluster.get("name").and_then(Value::as_str).map(str::to_owned).into_iter().collect(),
    }
}

/// Upstreams named by placeholders in a spelled-out load assignment.
fn extra_upstreams(cluster: &Value) -> Vec<String> {
    let text = cluster.to_string();
    text.match_indices("${up:")
        .filter_map(|(at, m)| text[at + m.len()..].split('}').next().map(str::to_owned))
        .collect()
}

/// The complete bootstrap of one proxy.
///
/// # Errors
/// When the short form does not have the expected shape.
pub fn bootstrap(area: &Area, places: &Places) -> Result<Value> {
    let mut listeners = Vec::new();
    for (name, short) in &area.listeners {
        listeners.push(listener(name, short, &area.hcm).with_context(|| name.clone())?);
    }
    let clusters: Vec<_> = area.clusters.iter().map(cluster).collect::<Result<_>>()?;
    let mut config = json!({
        "admin": {"address": address(json!("${admin}"))},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    merge(&mut config, &area.bootstrap);
    fill(&mut config, places)?;
    Ok(config)
}

fn listener(name: &str, short: &Value, hcm_defaults: &Value) -> Result<Value> {
    let mut out = short.as_object().context("not a mapping")?.clone();
    let filter = if let Some(hcm) = out.remove("hcm") {
        Some(self::hcm(name, hcm, hcm_defaults)?)
    } else {
        out.remove("tcp_proxy").map(|short| tcp_proxy(name, short))
    };
    if let Some(filter) = filter {
        let before = out.remove("network_filters").unwrap_or_else(|| json!([]));
        let mut filters = before.as_array().cloned().unwrap_or_default();
        filters.push(filter);
        out.insert("filter_chains".into(), json!([{"filters": filters}]));
    }
    for key in ["filter_chains", "default_filter_chain"] {
        if let Some(chains) = out.get_mut(key) {
            expand_chains(name, chains, hcm_defaults)?;
        }
    }
    let entry = |out: &mut Map<String, Value>, key: &str, value: Value| {
        out.entry(key.to_owned()).or_insert(value);
    };
    entry(&mut out, "name", json!(name));
    entry(&mut out, "stat_prefix", json!(name));
    entry(&mut out, "address", address(json!(format!("${{port:{name}}}"))));
    Ok(Value::Object(out))
}

/// `hcm` and `tcp_proxy` as entries of a spelled-out filter list.
fn expand_chains(name: &str, chains: &mut Value, defaults: &Value) -> Result<()> {
    let list: Vec<&mut Value> = match chains {
        Value::Array(list) => list.iter_mut().collect(),
        one => vec![one],
    };
    for chain in list {
        let Some(filters) = chain.get_mut("filters").and_then(Value::as_array_mut) else {
            continue;
        };
        for filter in filters {
            let Some(map) = filter.as_object_mut() else { continue };
            if let Some(short) = map.remove("hcm") {
                *filter = hcm(name, short, defaults)?;
            } else if let Some(short) = map.remove("tcp_proxy") {
                *filter = tcp_proxy(name, short);
            }
        }
    }
    Ok(())
}

fn hcm(name: &str, short: Value, defaults: &Value) -> Result<Value> {
    let mut hcm = defaults.clone();
    if hcm.is_null() {
        hcm = json!({});
    }
    merge(&mut hcm, &short);
    let map = hcm.as_object_mut().context("hcm is not a mapping")?;
    if let Some(routes) = map.remove("routes") {
        let hosts = json!([{"name": "all", "domains": ["*"], "routes": routes}]);
        map.insert("route_config".into(), json!({"name": "routes", "virtual_hosts": hosts}));
    }
    if let Some(hosts) = map.remove("virtual_hosts") {
        map.insert("route_config".into(), json!({"name": "routes", "virtual_hosts": hosts}));
    }
    let mut filters = match map.remove("http_filters") {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    if !filters.iter().any(|f| f.get("router").is_some()) {
        filters.push(json!({"router": {}}));
    }
    let filters: Vec<_> = filters.into_iter().map(http_filter).collect();
    map.insert("http_filters".into(), Value::Array(filters));
    map.entry("stat_prefix").or_insert_with(|| json!(name));
    let log = log(map.remove("tls_log"));
    map.entry("access_log").or_insert(log);
    map.entry("delayed_close_timeout").or_insert_with(|| json!("0.05s"));
    map.insert(
        "@type".into(),
        json!("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
    );
    Ok(json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}))
}

fn http_filter(short: Value) -> Value {
    let found = HTTP_FILTERS.iter().find(|(key, ..)| short.get(key).is_some());
    let Some((key, name, ty)) = found else { return short };
    let mut out = short;
    let Some(map) = out.as_object_mut() else { return out };
    let mut config = map.remove(*key).filter(|c| !c.is_null()).unwrap_or_else(|| json!({}));
    config["@type"] = json!(format!("envoy.extensions.filters.http.{ty}"));
    map.entry("name").or_insert_with(|| json!(name));
    map.insert("typed_config".into(), config);
    out
}

fn tcp_proxy(name: &str, mut short: Value) -> Value {
    if let Some(map) = short.as_object_mut() {
        map.entry("stat_prefix").or_insert_with(|| json!(name));
        let log = log(map.remove("tls_log"));
        map.entry("access_log").or_insert(log);
        map.insert("@type".into(), json!("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"));
    }
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": short})
}

fn log(tls: Option<Value>) -> Value {
    match tls {
        Some(Value::Bool(true)) => access_log(&[LOG_FIELDS, TLS_LOG_FIELDS].concat()),
        _ => access_log(LOG_FIELDS),
    }
}

/// An access log of one line per request with these operators.
#[must_use]
pub fn access_log(fields: &[(&str, &str)]) -> Value {
    let format: Vec<_> = fields.iter().map(|(name, op)| format!("{name}={op}")).collect();
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "${dir}/access.log",
            "log_format": {"text_format_source": {"inline_string": format!("{}\n", format.join("\t"))}},
        },
    }])
}

fn cluster(short: &Value) -> Result<Value> {
    let mut out = short.as_object().context("cluster is not a mapping")?.clone();
    let name = out.get("name").and_then(Value::as_str).context("cluster has no name")?.to_owned();
    if !out.contains_key("load_assignment") {
        let hosts: Vec<_> = cluster_upstreams(short)
            .iter()
            .map(|up| match up.starts_with("pipe") {
                true => json!({"pipe": {"path": format!("${{dir}}/{up}.sock")}}),
                false => address(json!(format!("${{up:{up}}}"))),
            })
            .map(|address| json!({"endpoint": {"address": address}}))
            .collect();
        out.insert(
            "load_assignment".into(),
            json!({"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}),
        );
    }
    out.remove("up");
    out.entry("connect_timeout").or_insert_with(|| json!("1s"));
    let h2 = out.remove("h2");
    if h2.is_some_and(|v| v != json!(false)) {
        out.insert(
            "typed_extension_protocol_options".into(),
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }}),
        );
    }
    Ok(Value::Object(out))
}

fn address(port: Value) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// Deep merge; lists and scalars of `over` replace.
pub fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

/// Fills placeholders and completes short type URLs, everywhere.
///
/// # Errors
/// When a placeholder names nothing.
pub fn fill(value: &mut Value, places: &Places) -> Result<()> {
    match value {
        Value::String(text) => {
            if let Some(port) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}'))
                && let Some(port) = port_of(port, places)
            {
                *value = json!(port);
                return Ok(());
            }
            *text = fill_text(text, places)?;
        }
        Value::Array(list) => {
            for item in list {
                fill(item, places)?;
            }
        }
        Value::Object(map) => {
            if let Some(Value::String(ty)) = map.get_mut("@type")
                && !ty.contains('/')
            {
                *ty = format!("type.googleapis.com/{ty}");
            }
            for item in map.values_mut() {
                fill(item, places)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn port_of(name: &str, places: &Places) -> Option<u16> {
    match name.split_once(':') {
        None if name == "admin" => Some(places.admin),
        Some(("port", name)) => places.listeners.get(name).copied(),
        Some(("up", name)) => places.upstreams.get(name).copied(),
        _ => None,
    }
}

/// Fills placeholders inside one string; `${repeat:…}` is left for [`crate::area::bytes`].
///
/// # Errors
/// When a placeholder names nothing.
pub fn fill_text(text: &str, places: &Places) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let end = rest[at..].find('}').context("placeholder without end")? + at;
        let name = &rest[at + 2..end];
        if name == "dir" {
            out.push_str(&places.dir);
        } else if name == "certs" {
            out.push_str(&places.certs);
        } else if name.starts_with("repeat:") {
            out.push_str(&rest[at..=end]);
        } else {
            let port = port_of(name, places).with_context(|| format!("unknown ${{{name}}}"))?;
            out.push_str(&port.to_string());
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
