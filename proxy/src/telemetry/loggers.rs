//! Envoy's loggers and their levels. A `tracing` target is either a logger's name or one of our module paths, which
//! belongs to the logger that Envoy would use for that work.

use std::sync::atomic::{AtomicU8, Ordering};

use super::LogLevel;

/// Envoy 1.40's loggers in the order in which `/logging` lists them; tools read the list to check names.
pub const LOGGERS: [&str; 73] = [
    "a2a",
    "admin",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "config",
    "connection",
    "conn_handler",
    "compression",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "rocketmq",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "json_rpc",
    "kafka",
    "key_value_store",
    "lua",
    "local_rate_limit",
    "main",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "pool",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "router",
    "runtime",
    "stats",
    "secret",
    "sse",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "upstream",
    "udp",
    "wasm",
    "websocket",
    "golang",
    "stats_sinks",
    "dynamic_modules",
    "ip_tagging",
];

static LEVELS: [AtomicU8; LOGGERS.len()] =
    [const { AtomicU8::new(LogLevel::Info as u8) }; LOGGERS.len()];

/// `/logging` named a logger that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown logger name")]
pub struct UnknownLogger;

const fn index_of(name: &str) -> Option<usize> {
    let mut index = 0;
    while index < LOGGERS.len() {
        if equal(LOGGERS[index].as_bytes(), name.as_bytes()) {
            return Some(index);
        }
        index += 1;
    }
    None
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Where events go that nobody claims: other crates.
const MISC: usize = index_of("misc").expect("misc is one of Envoy's loggers");

/// Our modules and the loggers of the same work in Envoy; the longest prefix comes first.
const MODULES: [(&str, usize); 24] = [
    ("outrigger::codec::h2", logger("http2")),
    ("outrigger::codec", logger("http")),
    ("outrigger::worker", logger("main")),
    ("outrigger::listener", logger("conn_handler")),
    ("outrigger::filter_chain", logger("filter")),
    ("outrigger::hcm", logger("http")),
    ("outrigger::http_filters::rbac", logger("rbac")),
    ("outrigger::http_filters::local_ratelimit", logger("local_rate_limit")),
    ("outrigger::http_filters", logger("filter")),
    ("outrigger::router", logger("router")),
    ("outrigger::cluster::dns", logger("dns")),
    ("outrigger::cluster", logger("upstream")),
    ("outrigger::load_balancer", logger("upstream")),
    ("outrigger::conn_pool", logger("pool")),
    ("outrigger::upstream", logger("upstream")),
    ("outrigger::io", logger("io")),
    ("outrigger::config::runtime", logger("runtime")),
    ("outrigger::config", logger("config")),
    ("outrigger::access_log", logger("file")),
    ("outrigger::stats", logger("stats")),
    ("outrigger::admin", logger("admin")),
    ("outrigger", logger("main")),
    ("h2", logger("http2")),
    ("hickory_resolver", logger("dns")),
];

const fn logger(name: &str) -> usize {
    index_of(name).expect("a name from the list")
}

fn index_of_target(target: &str) -> usize {
    let module = MODULES.iter().find(|(module, _)| {
        target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    });
    module.map(|(_, logger)| *logger).or_else(|| index_of(target)).unwrap_or(MISC)
}

fn load(index: usize) -> LogLevel {
    match LEVELS[index].load(Ordering::Relaxed) {
        0 => LogLevel::Trace,
        1 => LogLevel::Debug,
        2 => LogLevel::Info,
        3 => LogLevel::Warning,
        4 => LogLevel::Error,
        5 => LogLevel::Critical,
        _ => LogLevel::Off,
    }
}

/// The logger's name for a `tracing` target.
pub(super) fn name_of_target(target: &str) -> &'static str {
    LOGGERS[index_of_target(target)]
}

pub(super) fn level_of_target(target: &str) -> LogLevel {
    load(index_of_target(target))
}

/// Level of a logger.
pub fn level_of(name: &str) -> Option<LogLevel> {
    index_of(name).map(load)
}

/// Sets the level of one logger.
///
/// # Errors
/// Envoy has no logger of that name.
pub fn set_level(name: &str, level: LogLevel) -> Result<(), UnknownLogger> {
    let index = index_of(name).ok_or(UnknownLogger)?;
    LEVELS[index].store(level as u8, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// Sets the level of all loggers.
pub fn set_all_levels(level: LogLevel) {
    for of in &LEVELS {
        of.store(level as u8, Ordering::Relaxed);
    }
    tracing::callsite::rebuild_interest_cache();
}
