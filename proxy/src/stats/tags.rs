//! Tags: the parts of a statistic's name that Prometheus shows as labels. Envoy's built-in rules as token patterns
//! and small functions, the configured ones as regular expressions; run only when somebody reads.

use std::borrow::Cow;
use std::ops::Range;

use crate::config::stats::{StatsConfig, TagValue};

/// What a rule found: the bytes to cut from the name, and the tag's value.
struct Found {
    cut: Range<usize>,
    value: Range<usize>,
}

enum Rule {
    /// Tokens between dots: `*` one of any, `$` the value (cut with its dot), `**` any number of any.
    Tokens(&'static str),
    Function(fn(&str) -> Option<Found>),
}

/// How many of the rules below are not bound to a first token; configured ones of the kind follow them.
const UNBOUND_RULES: usize = 8;

/// Envoy's well-known tags (`source/common/config/well_known_names.cc`) in the order in which it prints them: those
/// that are not bound to a first token, then regular expressions, then token patterns.
const DEFAULT_RULES: &[(&str, Rule)] = &[
    ("envoy.response_code", Rule::Function(response_code)),
    ("envoy.response_code_class", Rule::Function(response_code_class)),
    ("envoy.ssl_curve", Rule::Function(|name| tls_value(name, ".ssl.curves."))),
    ("envoy.ssl_sigalg", Rule::Function(|name| tls_value(name, ".ssl.sigalgs."))),
    ("envoy.ssl_version", Rule::Function(|name| tls_value(name, ".ssl.versions."))),
    ("envoy.tls_certificate", Rule::Function(tls_certificate)),
    ("envoy.worker_id", Rule::Function(worker_id)),
    ("envoy.local_http_ratelimit_prefix", Rule::Tokens("$.http_local_rate_limit.**")),
    ("envoy.ssl_cipher", Rule::Function(listener_cipher)),
    ("envoy.ssl_cipher_suite", Rule::Function(cluster_cipher)),
    ("envoy.health_check_name", Rule::Function(health_check_name)),
    ("envoy.http_conn_manager_prefix", Rule::Function(listener_http_prefix)),
    ("envoy.listener_address", Rule::Function(listener_address)),
    ("envoy.rds_route_config", Rule::Function(|name| route_config(name, ".rds."))),
    ("envoy.scoped_rds_config", Rule::Function(|name| route_config(name, ".scoped_rds."))),
    ("envoy.rbac_policy_name", Rule::Function(rbac_policy)),
    ("envoy.rbac_http_prefix", Rule::Function(rbac_http_prefix)),
    ("envoy.proxy_protocol_version", Rule::Function(proxy_protocol_version)),
    ("envoy.proxy_protocol_prefix", Rule::Function(proxy_protocol_prefix)),
    ("envoy.xds_resource_name", Rule::Tokens("sds.$.**")),
    ("envoy.grpc_bridge_method", Rule::Tokens("cluster.*.grpc.*.$.**")),
    ("envoy.http_user_agent", Rule::Tokens("http.*.user_agent.$.**")),
    ("envoy.virtual_cluster", Rule::Tokens("vhost.*.vcluster.$.**")),
    ("envoy.fault_downstream_cluster", Rule::Tokens("http.*.fault.$.**")),
    ("envoy.grpc_bridge_service", Rule::Tokens("cluster.*.grpc.$.**")),
    ("envoy.tcp_prefix", Rule::Tokens("tcp.$.**")),
    ("envoy.udp_prefix", Rule::Tokens("udp.$.**")),
    ("envoy.clientssl_prefix", Rule::Tokens("auth.clientssl.$.**")),
    ("envoy.ratelimit_prefix", Rule::Tokens("ratelimit.$.**")),
    ("envoy.cluster_name", Rule::Tokens("cluster.$.**")),
    ("envoy.ext_authz_prefix", Rule::Tokens("cluster.*.ext_authz.$.**")),
    ("envoy.ext_authz_prefix", Rule::Tokens("http.*.ext_authz.$.**")),
    ("envoy.http_conn_manager_prefix", Rule::Tokens("http.$.**")),
    ("envoy.virtual_host", Rule::Tokens("vhost.$.**")),
    ("envoy.route", Rule::Tokens("vhost.*.route.$.**")),
    ("envoy.thrift_prefix", Rule::Tokens("thrift.$.**")),
    ("envoy.redis_prefix", Rule::Tokens("redis.$.**")),
    ("envoy.local_network_ratelimit_prefix", Rule::Tokens("local_rate_limit.$.**")),
    ("envoy.local_listener_ratelimit_prefix", Rule::Tokens("listener_local_ratelimit.$.**")),
    ("envoy.connection_limit_prefix", Rule::Tokens("connection_limit.$.**")),
    ("envoy.dns_filter_prefix", Rule::Tokens("dns_filter.$.**")),
];

/// Names of Envoy's built-in tags: `stats_tags` entries without a value must be one of them.
pub fn is_default_tag(name: &str) -> bool {
    DEFAULT_RULES.iter().any(|(of, _)| *of == name)
}

/// A name without its tags, and the tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extracted<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) tags: Vec<(&'a str, &'a str)>,
}

/// Takes the tags out of a full name.
pub(super) fn extract<'a>(config: &'a StatsConfig, full: &'a str) -> Extracted<'a> {
    let mut tags = Vec::new();
    let mut cuts: Vec<Range<usize>> = Vec::new();
    let mut take = |name, value: &'a str, cut: Option<Range<usize>>| {
        tags.push((name, value));
        cuts.extend(cut);
    };
    let (unbound, bound) = DEFAULT_RULES.split_at(UNBOUND_RULES);
    for (defaults, are_bound) in [(unbound, false), (bound, true)] {
        for (name, rule) in defaults {
            if (config.use_all_default_tags || config.tags.iter().any(|tag| is_default(tag, name)))
                && let Some(found) = rule.find(full)
            {
                take(*name, &full[found.value], Some(found.cut));
            }
        }
        for rule in &config.tags {
            match &rule.value {
                TagValue::Fixed(value) if !are_bound => take(&rule.name, value, None),
                TagValue::Regex(pattern) if pattern.is_bound_to_token() == are_bound => {
                    if let Some([Some(cut), value]) = pattern.groups(full) {
                        let value = value.unwrap_or_else(|| cut.clone());
                        take(&rule.name, &full[value], Some(cut));
                    }
                }
                TagValue::Fixed(_) | TagValue::Regex(_) | TagValue::Default => {}
            }
        }
    }
    Extracted { name: without(full, cuts), tags }
}

fn is_default(tag: &crate::config::stats::TagRule, name: &str) -> bool {
    matches!(tag.value, TagValue::Default) && tag.name == name
}

/// The name without the cut ranges, which may overlap.
fn without(full: &str, mut cuts: Vec<Range<usize>>) -> Cow<'_, str> {
    if cuts.is_empty() {
        return Cow::Borrowed(full);
    }
    cuts.sort_by_key(|cut| cut.start);
    let mut name = String::with_capacity(full.len());
    let mut at = 0;
    for cut in cuts {
        if cut.start > at {
            name.push_str(&full[at..cut.start]);
        }
        at = at.max(cut.end);
    }
    name.push_str(&full[at..]);
    Cow::Owned(name)
}

impl Rule {
    fn find(&self, name: &str) -> Option<Found> {
        match self {
            Self::Tokens(pattern) => tokens(pattern, name),
            Self::Function(find) => find(name),
        }
    }
}

/// Matches a token pattern that ends in `**`.
fn tokens(pattern: &str, name: &str) -> Option<Found> {
    let mut found = None;
    let mut at = 0;
    for expected in pattern.split('.') {
        if expected == "**" {
            return found;
        }
        let rest = name.get(at..)?;
        let length = rest.find('.').unwrap_or(rest.len());
        match expected {
            "*" => {}
            "$" => {
                found = Some(Found {
                    cut: at..(at + length + 1).min(name.len()),
                    value: at..at + length,
                })
            }
            text if text == &rest[..length] => {}
            _ => return None,
        }
        at += length + 1;
    }
    found
}

/// `_rq(_200)` at the end.
fn response_code(name: &str) -> Option<Found> {
    let start = name.len().checked_sub(7)?;
    let digits = name.get(start..)?.strip_prefix("_rq_")?;
    let value = start + 4..name.len();
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then_some(Found { cut: start + 3..name.len(), value })
}

/// `_rq_(2)xx` at the end.
fn response_code_class(name: &str) -> Option<Found> {
    let rest = name.strip_suffix("xx")?;
    let digit = rest.len().checked_sub(1)?;
    let is_class = rest.as_bytes()[digit].is_ascii_digit() && rest[..digit].ends_with("_rq_");
    is_class.then_some(Found { cut: digit..digit + 1, value: digit..digit + 1 })
}

/// Length of the first token, or of an address with its port (`127.0.0.1_80`, `[__1]_80`), before a dot.
fn address_or_token(text: &str) -> Option<usize> {
    let dots = text.match_indices('.').map(|(at, _)| at);
    dots.clone()
        .find(|end| is_address(&text[..*end]))
        .or_else(|| dots.clone().next())
        .filter(|n| *n > 0)
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once('_') else { return false };
    let is_host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_')
    } else {
        host.parse::<std::net::Ipv4Addr>().is_ok()
    };
    is_host && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `listener.(<address>.)`, but not the admin listener.
fn listener_address(name: &str) -> Option<Found> {
    let start = "listener.".len();
    let length = address_or_token(name.strip_prefix("listener.")?)?;
    let value = start..start + length;
    (&name[value.clone()] != "admin").then_some(Found { cut: start..start + length + 1, value })
}

/// `listener.[<address>.]http.(<stat_prefix>.)`.
fn listener_http_prefix(name: &str) -> Option<Found> {
    let after = name.strip_prefix("listener.").map(|_| "listener.".len())?;
    let start = after + name[after..].find(".http.")? + ".http.".len();
    token_at(name, start)
}

/// The token at `start`, which a dot must follow.
fn token_at(name: &str, start: usize) -> Option<Found> {
    let length = name.get(start..)?.find('.').filter(|length| *length > 0)?;
    Some(Found { cut: start..start + length + 1, value: start..start + length })
}

/// `worker_(<id>.)` of a listener, of the server, of the listener manager or of the cluster manager.
fn worker_id(name: &str) -> Option<Found> {
    let start = if let Some(rest) = name.strip_prefix("listener.") {
        "listener.".len() + address_or_token(rest)? + 1
    } else {
        let (first, _) = name.split_once('.')?;
        let known = ["server", "listener_manager", "thread_local_cluster_manager"];
        known.contains(&first).then_some(first.len() + 1)?
    };
    let start = start + name.get(start..)?.strip_prefix("worker_").map(|_| "worker_".len())?;
    let found = token_at(name, start)?;
    name[found.value.clone()].bytes().all(|b| b.is_ascii_digit()).then_some(found)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// `<marker>(<value>)` at the end of a name, the dot before the value cut with it.
fn at_end(name: &str, marker: &str) -> Option<Found> {
    let start = name.find(marker)? + marker.len();
    is_word(&name[start..])
        .then_some(Found { cut: start - 1..name.len(), value: start..name.len() })
}

fn tls_value(name: &str, marker: &str) -> Option<Found> {
    if !name.starts_with("listener.") && !name.starts_with("cluster.") {
        return None;
    }
    if marker == ".ssl.versions." {
        let start = name.find(marker)? + marker.len();
        let version = &name[start..];
        return version
            .starts_with("TLSv")
            .then_some(Found { cut: start - 1..name.len(), value: start..name.len() });
    }
    at_end(name, marker)
}

fn tls_certificate(name: &str) -> Option<Found> {
    if !name.starts_with("listener.") && !name.starts_with("cluster.") {
        return None;
    }
    let marker = ".ssl.certificate.";
    token_at(name, name.find(marker)? + marker.len())
}

fn listener_cipher(name: &str) -> Option<Found> {
    name.starts_with("listener.").then(|| at_end(name, ".ssl.ciphers."))?
}

fn cluster_cipher(name: &str) -> Option<Found> {
    let rest = name.strip_prefix("cluster.")?;
    let start = "cluster.".len() + rest.find('.')?;
    name[start..].starts_with(".ssl.ciphers.").then(|| at_end(name, ".ssl.ciphers."))?
}

/// `cluster.<name>.health_check(.name.<value>).…`.
fn health_check_name(name: &str) -> Option<Found> {
    let rest = name.strip_prefix("cluster.")?;
    let start = "cluster.".len() + rest.find('.')?;
    let marker = ".health_check.name.";
    name[start..].starts_with(marker).then_some(())?;
    let value = start + marker.len();
    let length = name[value..].find('.')?;
    Some(Found { cut: value - ".name.".len()..value + length, value: value..value + length })
}

/// `http.<stat_prefix>.rds.(<route_config>.)<stat>`; a route configuration's name may have dots.
fn route_config(name: &str, marker: &str) -> Option<Found> {
    let start = second_dot(name, "http.")?;
    name[start..].starts_with(marker).then_some(())?;
    let value = start + marker.len();
    let end = name.rfind('.').filter(|end| *end > value)?;
    Some(Found { cut: value..end + 1, value: value..end })
}

/// Where the token after `first` ends.
fn second_dot(name: &str, first: &str) -> Option<usize> {
    Some(first.len() + name.strip_prefix(first)?.find('.')?)
}

const RBAC_ENDS: [&str; 4] = [".allowed", ".shadow_allowed", ".denied", ".shadow_denied"];

/// `http.<stat_prefix>.rbac.[<prefix>.]policy.(<policy>.)allowed` and its kin.
fn rbac_policy(name: &str) -> Option<Found> {
    let start = second_dot(name, "http.")?;
    let after = name[start..].strip_prefix(".rbac.").map(|_| start + ".rbac.".len())?;
    let policy = if name[after..].starts_with("policy.") {
        after
    } else {
        let next = after + name[after..].find('.')? + 1;
        name[next..].starts_with("policy.").then_some(next)?
    };
    let found = token_at(name, policy + "policy.".len())?;
    RBAC_ENDS.contains(&&name[found.value.end..]).then_some(found)
}

/// `http.<stat_prefix>.rbac.(<prefix>.)…`.
fn rbac_http_prefix(name: &str) -> Option<Found> {
    let start = second_dot(name, "http.")?;
    let after = name[start..].strip_prefix(".rbac.").map(|_| start + ".rbac.".len())?;
    token_at(name, after).filter(|found| &name[found.value.clone()] != "policy")
}

/// `proxy_proto.([<prefix>.]versions.v(<1|2>).)<stat>`.
fn proxy_protocol_version(name: &str) -> Option<Found> {
    let marker = "versions.v";
    let start = "proxy_proto.".len();
    let rest = name.strip_prefix("proxy_proto.")?;
    let version = start + rest.find(marker)? + marker.len();
    let end = version + name[version..].find('.')?;
    Some(Found { cut: start..end + 1, value: version..end })
}

fn proxy_protocol_prefix(name: &str) -> Option<Found> {
    name.strip_prefix("proxy_proto.")?;
    token_at(name, "proxy_proto.".len()).filter(|found| &name[found.value.clone()] != "versions")
}
