//! What was seen of one case, as plain lines, with everything that may differ between two runs of
//! the same proxy (ports, ids, clocks) replaced by its shape.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;

use regex::Regex;

use crate::upstream::Seen;

/// Access log fields: a name for comparison and the operator.
pub const LOG_FIELDS: &[(&str, &str)] = &[
    ("START_TIME", "%START_TIME%"),
    ("START_TIME_CUSTOM", "%START_TIME(%Y/%m/%dT%H:%M:%S%z %s %3f)%"),
    ("METHOD", "%REQ(:METHOD)%"),
    ("PATH", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("PATH_SHORT", "%REQ(:PATH):6%"),
    ("AUTHORITY", "%REQ(:AUTHORITY)%"),
    ("SCHEME", "%REQ(:SCHEME)%"),
    ("PROTOCOL", "%PROTOCOL%"),
    ("UPSTREAM_PROTOCOL", "%UPSTREAM_PROTOCOL%"),
    ("CODE", "%RESPONSE_CODE%"),
    ("DETAILS", "%RESPONSE_CODE_DETAILS%"),
    ("TERMINATION", "%CONNECTION_TERMINATION_DETAILS%"),
    ("FLAGS", "%RESPONSE_FLAGS%"),
    ("FLAGS_LONG", "%RESPONSE_FLAGS_LONG%"),
    ("BYTES_RECEIVED", "%BYTES_RECEIVED%"),
    ("BYTES_SENT", "%BYTES_SENT%"),
    ("REQUEST_HEADERS_BYTES", "%REQUEST_HEADERS_BYTES%"),
    ("RESPONSE_HEADERS_BYTES", "%RESPONSE_HEADERS_BYTES%"),
    ("RESPONSE_TRAILERS_BYTES", "%RESPONSE_TRAILERS_BYTES%"),
    ("UPSTREAM_HEADER_BYTES_SENT", "%UPSTREAM_HEADER_BYTES_SENT%"),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", "%UPSTREAM_HEADER_BYTES_RECEIVED%"),
    ("UPSTREAM_WIRE_BYTES_SENT", "%UPSTREAM_WIRE_BYTES_SENT%"),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", "%UPSTREAM_WIRE_BYTES_RECEIVED%"),
    ("DOWNSTREAM_HEADER_BYTES_SENT", "%DOWNSTREAM_HEADER_BYTES_SENT%"),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", "%DOWNSTREAM_HEADER_BYTES_RECEIVED%"),
    ("DOWNSTREAM_WIRE_BYTES_SENT", "%DOWNSTREAM_WIRE_BYTES_SENT%"),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", "%DOWNSTREAM_WIRE_BYTES_RECEIVED%"),
    ("DURATION", "%DURATION%"),
    ("REQUEST_DURATION", "%REQUEST_DURATION%"),
    ("REQUEST_TX_DURATION", "%REQUEST_TX_DURATION%"),
    ("RESPONSE_DURATION", "%RESPONSE_DURATION%"),
    ("RESPONSE_TX_DURATION", "%RESPONSE_TX_DURATION%"),
    ("COMMON_DURATION", "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%"),
    ("UPSTREAM_HOST", "%UPSTREAM_HOST%"),
    ("UPSTREAM_CLUSTER", "%UPSTREAM_CLUSTER%"),
    ("UPSTREAM_LOCAL_ADDRESS", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("UPSTREAM_LOCAL_IP", "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
    ("UPSTREAM_REMOTE_ADDRESS", "%UPSTREAM_REMOTE_ADDRESS%"),
    ("UPSTREAM_REMOTE_PORT", "%UPSTREAM_REMOTE_PORT%"),
    ("UPSTREAM_FAILURE", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("UPSTREAM_ATTEMPTS", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("DOWNSTREAM_REMOTE", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("DOWNSTREAM_REMOTE_IP", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("DOWNSTREAM_DIRECT", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("DOWNSTREAM_LOCAL", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("DOWNSTREAM_LOCAL_PORT", "%DOWNSTREAM_LOCAL_PORT%"),
    ("CONNECTION_ID", "%CONNECTION_ID%"),
    ("STREAM_ID", "%STREAM_ID%"),
    ("ROUTE_NAME", "%ROUTE_NAME%"),
    ("VIRTUAL_CLUSTER", "%VIRTUAL_CLUSTER_NAME%"),
    ("FILTER_CHAIN", "%FILTER_CHAIN_NAME%"),
    ("SERVER_NAME", "%REQUESTED_SERVER_NAME%"),
    ("GRPC_STATUS", "%GRPC_STATUS%"),
    ("GRPC_STATUS_NUMBER", "%GRPC_STATUS_NUMBER%"),
    ("REQUEST_ID", "%REQ(X-REQUEST-ID)%"),
    ("XFF", "%REQ(X-FORWARDED-FOR)%"),
    ("USER_AGENT", "%REQ(USER-AGENT)%"),
    ("RESP_CT", "%RESP(CONTENT-TYPE)%"),
    ("RESP_SERVER", "%RESP(SERVER?X-NONE)%"),
    ("TRAILER", "%TRAILER(X-TRAILER)%"),
    ("DYNAMIC_METADATA", "%DYNAMIC_METADATA(test:key)%"),
    ("ROUTE_METADATA", "%METADATA(ROUTE:test:key)%"),
    ("CLUSTER_METADATA", "%METADATA(CLUSTER:test:key)%"),
    ("FILTER_STATE", "%FILTER_STATE(test.key)%"),
    ("TLS_VERSION", "%DOWNSTREAM_TLS_VERSION%"),
    ("PEER_SUBJECT", "%DOWNSTREAM_PEER_SUBJECT%"),
    ("HOSTNAME", "%HOSTNAME%"),
];

/// The operators over TLS.
pub const TLS_LOG_FIELDS: &[(&str, &str)] = &[
    ("DOWN_VERSION", "%DOWNSTREAM_TLS_VERSION%"),
    ("DOWN_CIPHER", "%DOWNSTREAM_TLS_CIPHER%"),
    ("DOWN_SESSION", "%DOWNSTREAM_TLS_SESSION_ID%"),
    ("DOWN_PEER_URI", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("DOWN_PEER_DNS", "%DOWNSTREAM_PEER_DNS_SAN%"),
    ("DOWN_PEER_IP", "%DOWNSTREAM_PEER_IP_SAN%"),
    ("DOWN_PEER_EMAIL", "%DOWNSTREAM_PEER_EMAIL_SAN%"),
    ("DOWN_PEER_OTHER", "%DOWNSTREAM_PEER_OTHERNAME_SAN%"),
    ("DOWN_PEER_SUBJECT", "%DOWNSTREAM_PEER_SUBJECT%"),
    ("DOWN_PEER_ISSUER", "%DOWNSTREAM_PEER_ISSUER%"),
    ("DOWN_PEER_SERIAL", "%DOWNSTREAM_PEER_SERIAL%"),
    ("DOWN_PEER_256", "%DOWNSTREAM_PEER_FINGERPRINT_256%"),
    ("DOWN_PEER_1", "%DOWNSTREAM_PEER_FINGERPRINT_1%"),
    ("DOWN_PEER_CERT", "%DOWNSTREAM_PEER_CERT%"),
    ("DOWN_PEER_START", "%DOWNSTREAM_PEER_CERT_V_START%"),
    ("DOWN_PEER_END", "%DOWNSTREAM_PEER_CERT_V_END(%Y-%m-%d %H:%M)%"),
    ("DOWN_CHAIN_256", "%DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256%"),
    ("DOWN_CHAIN_1", "%DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1%"),
    ("DOWN_CHAIN_SERIALS", "%DOWNSTREAM_PEER_CHAIN_SERIALS%"),
    ("DOWN_LOCAL_URI", "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ("DOWN_LOCAL_DNS", "%DOWNSTREAM_LOCAL_DNS_SAN%"),
    ("DOWN_LOCAL_IP", "%DOWNSTREAM_LOCAL_IP_SAN%"),
    ("DOWN_LOCAL_EMAIL", "%DOWNSTREAM_LOCAL_EMAIL_SAN%"),
    ("DOWN_LOCAL_SUBJECT", "%DOWNSTREAM_LOCAL_SUBJECT%"),
    ("DOWN_FAILURE", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("UP_VERSION", "%UPSTREAM_TLS_VERSION%"),
    ("UP_CIPHER", "%UPSTREAM_TLS_CIPHER%"),
    ("UP_SESSION", "%UPSTREAM_TLS_SESSION_ID%"),
    ("UP_PEER_SUBJECT", "%UPSTREAM_PEER_SUBJECT%"),
    ("UP_PEER_ISSUER", "%UPSTREAM_PEER_ISSUER%"),
    ("UP_PEER_CERT", "%UPSTREAM_PEER_CERT%"),
    ("UP_PEER_URI", "%UPSTREAM_PEER_URI_SAN%"),
    ("UP_PEER_DNS", "%UPSTREAM_PEER_DNS_SAN%"),
    ("UP_PEER_IP", "%UPSTREAM_PEER_IP_SAN%"),
    ("UP_PEER_START", "%UPSTREAM_PEER_CERT_V_START%"),
    ("UP_PEER_END", "%UPSTREAM_PEER_CERT_V_END(%F)%"),
    ("UP_LOCAL_URI", "%UPSTREAM_LOCAL_URI_SAN%"),
    ("UP_LOCAL_DNS", "%UPSTREAM_LOCAL_DNS_SAN%"),
    ("UP_LOCAL_IP", "%UPSTREAM_LOCAL_IP_SAN%"),
];

/// The lines of one case, in the order of the facts.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    pub lines: Vec<String>,
    /// HTTP/2 was spoken somewhere, so framed byte counts are each codec's own affair.
    pub h2: bool,
}

/// Replaces what is particular to one run.
#[derive(Debug)]
pub struct Normaliser {
    ports: BTreeMap<String, String>,
    port: Regex,
    address: Regex,
    uuid: Regex,
    dir: String,
    exact_bytes: bool,
}

impl Normaliser {
    /// For a proxy with these places.
    ///
    /// # Errors
    /// Never in practice: the patterns are constants.
    pub fn new(places: &crate::config::Places, exact_bytes: bool) -> anyhow::Result<Self> {
        let mut ports = BTreeMap::new();
        for (name, port) in &places.listeners {
            ports.insert(port.to_string(), format!("<port {name}>"));
        }
        for (name, port) in &places.upstreams {
            ports.insert(port.to_string(), format!("<up {name}>"));
        }
        ports.insert(places.admin.to_string(), "<admin>".into());
        Ok(Self {
            ports,
            port: Regex::new(r"\b[1-6][0-9]{4}\b")?,
            address: Regex::new(r"(127\.0\.0\.\d+|\[::1\])([:_])[0-9]{4,5}\b")?,
            uuid: Regex::new(
                r"\b[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b",
            )?,
            dir: places.dir.clone(),
            exact_bytes,
        })
    }

    /// Ports by name, other ports of loopback as `<ephemeral>`, ids as `<uuid KIND>`.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let text = self.port.replace_all(text, |c: &regex::Captures<'_>| {
            self.ports.get(&c[0]).cloned().unwrap_or_else(|| c[0].to_owned())
        });
        let text = self.address.replace_all(&text, "$1$2<ephemeral>");
        let text = self.uuid.replace_all(&text, "<uuid $1>");
        if self.dir.is_empty() { text.into_owned() } else { text.replace(&self.dir, "<dir>") }
    }

    /// A header line, name lower-cased.
    #[must_use]
    pub fn header(&self, name: &str, value: &str) -> String {
        let name = name.to_ascii_lowercase();
        let value = match name.as_str() {
            "date" if value.len() == 29 && value.ends_with(" GMT") => "<date>".to_owned(),
            "x-envoy-upstream-service-time" if value.parse::<u32>().is_ok() => "<ms>".to_owned(),
            // What is left of the route's timeout when a later attempt starts.
            "x-envoy-expected-rq-timeout-ms" => match value.parse::<u32>() {
                Ok(ms) if ms > 1000 => ms.next_multiple_of(100).to_string(),
                _ => value.to_owned(),
            },
            _ => self.text(&escape(value)),
        };
        format!("{name}: {value}")
    }

    /// Header lines as a sorted list, each with a prefix.
    #[must_use]
    pub fn headers<'a>(
        &self,
        prefix: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Vec<String> {
        let mut lines: Vec<_> =
            headers.into_iter().map(|(n, v)| format!("{prefix} {}", self.header(n, v))).collect();
        lines.sort();
        lines
    }

    /// One request as an upstream saw it.
    #[must_use]
    pub fn seen(&self, index: usize, seen: &Seen) -> Vec<String> {
        let at = format!("upstream[{index}]");
        let mut lines = vec![format!("{at} at {} connection {}", seen.upstream, seen.connection)];
        let pseudo = seen.head.iter().take_while(|l| l.starts_with(':')).count().max(1);
        if !seen.head.is_empty() {
            for line in &seen.head[..pseudo] {
                lines.push(format!("{at} {}", self.text(&escape(line))));
            }
            let rest =
                seen.head[pseudo..].iter().filter_map(|l| l.split_once(": ").or(Some((l, ""))));
            lines.extend(self.headers(&format!("{at} header"), rest));
        }
        lines.push(format!("{at} body {}", show_body(&seen.body)));
        let mut trailers: Vec<_> =
            seen.trailers.iter().map(|t| format!("{at} trailer {}", self.text(t))).collect();
        trailers.sort();
        lines.extend(trailers);
        lines.push(format!("{at} end {}", seen.end));
        lines
    }

    /// One access log line, a line per field.
    #[must_use]
    pub fn log_line(&self, index: usize, line: &str, h2: bool) -> Vec<String> {
        let mut out = Vec::new();
        for field in line.split('\t') {
            let Some((name, value)) = field.split_once('=') else {
                out.push(format!("log[{index}] {}", self.text(&escape(field))));
                continue;
            };
            let value = self.log_value(name, value, h2);
            out.push(format!("log[{index}] {name}={value}"));
        }
        out
    }

    fn log_value(&self, name: &str, value: &str, h2: bool) -> String {
        let digits = |text: &str| {
            let shape: String =
                text.chars().map(|c| if c.is_ascii_digit() { 'd' } else { c }).collect();
            shape
        };
        match name {
            "START_TIME" | "START_TIME_CUSTOM" => digits(value),
            // Chance; that there is one is not.
            "DOWN_SESSION" | "UP_SESSION" if value.len() > 1 => "<session>".into(),
            _ if name.ends_with("DURATION") || name.ends_with("_ID") && name != "REQUEST_ID" => {
                if value.parse::<u64>().is_ok() {
                    "<number>".into()
                } else {
                    self.text(value)
                }
            }
            _ if name.contains("_BYTES")
                && !self.exact_bytes
                && (h2 || !name.starts_with("REQUEST")) =>
            {
                if value == "0" || value == "-" {
                    value.to_owned()
                } else {
                    "<bytes>".into()
                }
            }
            _ => self.text(&escape(value)),
        }
    }
}

/// A body in full when short and printable, else by length and hash.
#[must_use]
pub fn show_body(body: &[u8]) -> String {
    match body {
        [0x1f, 0x8b, ..] => {
            let mut text = Vec::new();
            match flate2::read::GzDecoder::new(body).read_to_end(&mut text) {
                Ok(_) => format!("gzip of {}", show_plain(&text)),
                Err(e) => format!("gzip broken ({e}) behind {}", show_plain(&text)),
            }
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match zstd::decode_all(body) {
            Ok(text) => format!("zstd of {}", show_plain(&text)),
            Err(e) => format!("zstd broken ({e})"),
        },
        _ => show_plain(body),
    }
}

fn show_plain(body: &[u8]) -> String {
    if body.len() <= 400 {
        return format!("{} {:?}", body.len(), crate::wire::latin1(body));
    }
    let hash = body
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{} hash {hash:016x}", body.len())
}

/// Control and 8-bit characters made visible.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || !c.is_ascii() {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    if out.len() > 2000 {
        let hash = show_body(out.as_bytes());
        out.truncate(100);
        let _ = write!(out, "… ({hash})");
    }
    out
}

/// A document's lines; of JSON one line per leaf, `a.b[0].c: value`, whatever its layout.
#[must_use]
pub fn document(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    match serde_json::from_str(text) {
        Ok(json @ (serde_json::Value::Object(_) | serde_json::Value::Array(_))) => {
            leaves("", &json, &mut lines);
        }
        _ => lines.extend(text.lines().map(str::to_owned)),
    }
    lines
}

fn leaves(path: &str, value: &serde_json::Value, lines: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                leaves(&format!("{path}.{key}"), value, lines);
            }
        }
        serde_json::Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                leaves(&format!("{path}[{index}]"), value, lines);
            }
        }
        leaf => lines.push(format!("{path}: {leaf}")),
    }
}
