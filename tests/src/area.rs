//! One feature area: what its YAML file in `tests/configs/areas` may hold.
//!
//! Strings that stand for bytes are Latin-1: `"\xff"` in YAML is the byte 0xff. `${repeat:TEXT:N}`
//! in them is TEXT repeated N times.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::tls::Offer;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// What the area covers.
    pub about: String,
    /// YAML anchors live here; not read.
    #[serde(default)]
    pub anchors: Value,
    /// Fields merged into every HTTP connection manager.
    #[serde(default)]
    pub hcm: Value,
    /// Listeners by name, in the short form of [`crate::config`].
    #[serde(default)]
    pub listeners: BTreeMap<String, Value>,
    /// Clusters in the short form of [`crate::config`].
    #[serde(default)]
    pub clusters: Vec<Value>,
    /// Merged into the bootstrap at top level.
    #[serde(default)]
    pub bootstrap: Value,
    /// Compare byte counters exactly (only sound where no timing header varies in length).
    #[serde(default)]
    pub exact_bytes: bool,
    /// The requests, run in this order.
    pub cases: Vec<Case>,
}

/// One client connection and what it does.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub name: String,
    /// Listener to connect to.
    #[serde(default = "main")]
    pub to: String,
    /// Connect to this address instead of 127.0.0.1, or to the Unix socket of this path.
    pub via: Option<String>,
    #[serde(default)]
    pub protocol: Protocol,
    /// The client speaks TLS.
    pub tls: Option<Offer>,
    #[serde(flatten)]
    pub request: Request,
    /// Further requests on the same connection, after the first was answered.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// Bytes to send instead of a request (h1 and tcp).
    pub raw: Option<String>,
    /// Responses to wait for after `raw`.
    pub responses: Option<usize>,
    /// Full control instead of `raw`.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Raw HTTP/2 frames after the preface, in the form of [`crate::client::h2_raw`].
    #[serde(default)]
    pub frames: Vec<String>,
    /// What upstreams answer: a list used in order (the last repeats), or one per upstream name.
    #[serde(default)]
    pub upstream: Value,
    /// Admin requests to make after the case, `METHOD path`; bodies are compared.
    #[serde(default)]
    pub admin: Vec<String>,
    /// How long a connection without `connection: close` must stay open to count as kept.
    #[serde(default = "linger")]
    pub linger_ms: u64,
    /// Access log lines to wait for; by default one per request counted.
    pub log_lines: Option<usize>,
    /// Lines that are not compared, as regular expressions, each with its reason.
    #[serde(default)]
    pub ignore: Vec<Ignore>,
    /// A difference on purpose.
    pub differs: Option<Differs>,
}

/// Where Outrigger differs from Envoy on purpose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    pub why: String,
    /// Lines that Outrigger's observation must hold; at least one of them Envoy's must not.
    pub ours: Vec<String>,
}

/// Lines left out of the comparison of one case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignore {
    pub why: String,
    pub lines: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    H1,
    H2,
    H2Raw,
    Tcp,
}

/// A well-formed request; `raw` is for the others.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    pub method: Option<String>,
    pub path: Option<String>,
    /// `Host` or `:authority`; `test.local` unless given, none when empty.
    pub host: Option<String>,
    /// `name: value` lines.
    pub headers: Vec<String>,
    pub body: Option<String>,
    pub body_size: Option<usize>,
    /// Body pieces: chunks in h1, DATA frames in h2.
    pub chunks: Vec<String>,
    /// gRPC messages, framed.
    pub grpc: Vec<String>,
    pub trailers: Vec<String>,
    /// `HTTP/1.1` unless given.
    pub version: Option<String>,
    /// Extended CONNECT (h2).
    pub connect_protocol: Option<String>,
    /// Send the body only after this event: `response_head`, `continue` (h1), `upstream_head` (h2).
    pub body_after: Option<String>,
    /// End of an h2 request after its response head: `reset`, or `open` to leave it without END_STREAM.
    pub finish: Option<String>,
    /// Names that are none of the above (serde cannot refuse them in a flattened struct).
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// One step of a scripted client connection; exactly one field is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// Send these bytes.
    pub send: Option<String>,
    /// Read so many final responses.
    pub responses: Option<usize>,
    /// Read one informational response.
    pub informational: bool,
    /// Read until these bytes were seen.
    pub expect: Option<String>,
    /// Wait until the upstreams saw so many requests (tcp: connections) in this case.
    pub upstream_saw: Option<usize>,
    /// Wait until the upstreams saw these bytes of a body.
    pub upstream_got: Option<String>,
    /// Send FIN.
    pub shutdown: bool,
    /// Read until the peer closes.
    pub eof: bool,
    /// Close with RST.
    pub reset: bool,
    /// Let so much time pass.
    pub pause_ms: Option<u64>,
    /// Close and connect again.
    pub reconnect: bool,
}

/// What an upstream does with one request (or one TCP connection).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    pub status: Option<u16>,
    pub reason: Option<String>,
    pub version: Option<String>,
    pub headers: Vec<String>,
    pub body: Option<String>,
    pub body_size: Option<usize>,
    pub chunks: Vec<String>,
    pub grpc: Vec<String>,
    pub trailers: Vec<String>,
    /// Informational responses sent first: `103 link: x` (status, then one header line).
    pub informational: Vec<String>,
    /// Answer after the head, without waiting for the body.
    pub early: bool,
    /// Exact bytes instead of a response (h1, tcp).
    pub raw: Option<String>,
    /// Send only so many bytes of the body, then do `then`.
    pub truncate: Option<usize>,
    pub delay_ms: u64,
    /// A pause between the head and the body, and between chunks.
    pub chunk_delay_ms: u64,
    /// After the answer: `close`, `reset`, `shutdown`, `hang`; h2 also `goaway`.
    pub then: Option<String>,
    /// Instead of an answer: `close`, `reset`, `hang`; h2 also `refuse` and `goaway`.
    pub instead: Option<String>,
    /// Send back what arrives until the end (after 101, 200 to CONNECT, or TCP).
    pub echo: bool,
    /// tcp: read until the peer's FIN before answering.
    pub after_eof: bool,
}

fn main() -> String {
    "main".to_owned()
}

fn linger() -> u64 {
    25
}

impl Area {
    /// Reads `tests/configs/areas/NAME.yaml`.
    ///
    /// # Errors
    /// When the file is missing or has an unknown field.
    pub fn load(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/areas/{name}.yaml"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?;
        yaml.apply_merge().with_context(|| path.display().to_string())?;
        let json = serde_json::to_value(yaml).with_context(|| path.display().to_string())?;
        let area: Self =
            serde_json::from_value(json).with_context(|| path.display().to_string())?;
        for case in &area.cases {
            for request in std::iter::once(&case.request).chain(&case.requests) {
                ensure!(
                    request.unknown.is_empty(),
                    "{name}: case {:?}: unknown fields {:?}",
                    case.name,
                    request.unknown.keys()
                );
            }
        }
        Ok(area)
    }
}

/// The bytes that a string of an area file stands for.
#[must_use]
pub fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${repeat:") {
        latin1(&rest[..at], &mut out);
        let tail = &rest[at + 9..];
        let Some(end) = tail.find('}') else { break };
        let (what, count) = tail[..end].rsplit_once(':').unwrap_or((&tail[..end], "1"));
        for _ in 0..count.parse().unwrap_or(0) {
            latin1(what, &mut out);
        }
        rest = &tail[end + 1..];
    }
    latin1(rest, &mut out);
    out
}

fn latin1(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => out.push(byte),
            Err(_) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// `name: value` split at the first colon after the first byte.
#[must_use]
pub fn header(line: &str) -> (Vec<u8>, Vec<u8>) {
    let line = bytes(line);
    let colon = line.iter().skip(1).position(|b| *b == b':').map_or(line.len(), |i| i + 1);
    let value = line.get(colon + 1..).unwrap_or_default();
    (line[..colon].to_vec(), value.trim_ascii().to_vec())
}

/// Messages in gRPC's length-prefixed framing.
#[must_use]
pub fn grpc_frame(message: &str) -> Vec<u8> {
    let message = bytes(message);
    let mut out = vec![0];
    out.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend(message);
    out
}
