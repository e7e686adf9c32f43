//! What an application sends and what it gets: plain HTTP/1.1 or a line of TCP, from inside a pod.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;

use super::network;

/// Longer than any timeout of the sample mesh.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request of an application.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Pod it is sent from.
    pub from: String,
    /// `http://host:port/path`, or `tcp://host:port` to see what the server says first.
    pub url: String,
    #[serde(default = "get")]
    pub method: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub body: String,
    /// `tcp`: whether the body comes back before the connection is closed, whatever the server said first. A filter
    /// that denies may do so before or after a server's greeting.
    #[serde(default)]
    pub until_closed: bool,
    /// How often it is sent: more than once where chance decides.
    #[serde(default = "once")]
    pub times: u32,
    /// Whether it goes to the IPv6 addresses of what `url` names.
    #[serde(skip)]
    pub ipv6: bool,
}

fn get() -> String {
    "GET".to_owned()
}

fn once() -> u32 {
    1
}

/// What came back. A connection that was refused or closed without a byte has status 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Answer {
    pub status: u16,
    /// In order of names; those that change from run to run are made equal.
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// How the connection ended, where there was no answer.
    pub end: String,
}

impl Answer {
    /// The pod whose application answered.
    #[must_use]
    pub fn pod(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        Some(body["pod"].as_str()?.to_owned())
    }

    /// The answer with the pod's name taken out, for requests that more than one pod may answer.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        if let Some(pod) = self.pod() {
            self.body = self.body.replace(&pod, "POD");
            for (name, value) in &mut self.headers {
                if name == "content-length" {
                    "N".clone_into(value);
                }
            }
        }
        self
    }
}

impl Request {
    /// A GET from `pod`.
    #[must_use]
    pub fn get(pod: &str, url: &str) -> Self {
        Self {
            from: pod.to_owned(),
            url: url.to_owned(),
            method: get(),
            headers: BTreeMap::new(),
            body: String::new(),
            until_closed: false,
            times: 1,
            ipv6: false,
        }
    }

    /// Sends it from the current namespace.
    #[must_use]
    pub fn send(&self) -> Answer {
        self.try_send().unwrap_or_else(|error| {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            let end = match kind {
                // Whether a FIN or an RST comes is a matter of whose bytes were there first.
                Some(ErrorKind::ConnectionReset) => "closed".to_owned(),
                Some(kind) => kind.to_string(),
                None => error.to_string(),
            };
            Answer { end, ..Answer::default() }
        })
    }

    fn try_send(&self) -> Result<Answer> {
        let url = if self.ipv6 { network::ipv6(&self.url) } else { self.url.clone() };
        let (scheme, rest) = url.split_once("://").context("a URL has a scheme")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let mut stream = TcpStream::connect_timeout(&self.resolve(authority)?, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if scheme == "tcp" {
            stream.write_all(self.body.as_bytes())?;
            return if self.until_closed {
                let mut all = Vec::new();
                // A reset is an end as good as any.
                let _ = stream.read_to_end(&mut all);
                let echoed = String::from_utf8_lossy(&all).contains(&self.body);
                Ok(Answer { body: format!("echoed: {echoed}"), ..Answer::default() })
            } else {
                first_line(&mut stream)
            };
        }
        let mut head = format!("{} {path} HTTP/1.1\r\n", self.method);
        if !self.headers.contains_key("host") {
            head += &format!("host: {authority}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        head += "connection: close\r\n\r\n";
        stream.write_all((head + &self.body).as_bytes())?;
        let raw = read_message(&mut stream, self.method == "HEAD")?;
        if raw.is_empty() {
            return Ok(Answer { end: "closed".to_owned(), ..Answer::default() });
        }
        parse(&raw, self.method == "HEAD")
    }

    fn resolve(&self, authority: &str) -> Result<SocketAddr> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, "80"),
        };
        let address = network::resolve(host);
        let address = if self.ipv6 { network::ipv6(address) } else { address.to_owned() };
        let address = address.replace(['[', ']'], "");
        Ok(SocketAddr::new(address.parse().with_context(|| host.to_owned())?, port.parse()?))
    }
}

fn first_line(stream: &mut TcpStream) -> Result<Answer> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    let end = if line.is_empty() { "closed".to_owned() } else { String::new() };
    Ok(Answer { body: String::from_utf8_lossy(&line).into_owned(), end, ..Answer::default() })
}

/// Reads until a message is whole, or the connection ends. Proxies keep the connection open for a while after an
/// answer that closes it, so that its end is not to be waited for.
fn read_message(stream: &mut TcpStream, head_only: bool) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = match stream.read(&mut piece) {
            Err(error) if raw.is_empty() => return Err(error.into()),
            Err(_) | Ok(0) => return Ok(raw),
            Ok(read) => read,
        };
        raw.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&raw);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = head_only
            || head.starts_with("http/1.1 204")
            || head.starts_with("http/1.1 304")
            || length.and_then(|n| n.parse().ok()).is_some_and(|n: usize| body.len() >= n)
            || head.contains("transfer-encoding: chunked") && body.ends_with("0\r\n\r\n");
        if whole {
            return Ok(raw);
        }
    }
}

fn parse(raw: &[u8], head_only: bool) -> Result<Answer> {
    const END: &[u8] = b"\r\n\r\n";
    let end = raw.windows(END.len()).position(|four| four == END).context("no end of the head")?;
    let (head, body) = (String::from_utf8_lossy(&raw[..end]), &raw[end + END.len()..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
    let mut headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = match (head_only, chunked) {
        (true, _) => Vec::new(),
        (false, true) => dechunk(body),
        (false, false) => body.to_vec(),
    };
    let encoding = headers.iter().find(|(name, _)| name == "content-encoding");
    let body = decode(body, encoding.map(|(_, coding)| coding.as_str()))?;
    let body = String::from_utf8_lossy(&body);
    headers.sort();
    for (name, value) in &mut headers {
        if ["date", "x-envoy-upstream-service-time", "x-request-id"].contains(&name.as_str()) {
            "*".clone_into(value);
        }
        // The application's answer names what it received, request ids and hashes among them.
        if name == "content-length" && (head_only || body.contains("\"pod\"")) {
            "*".clone_into(value);
        }
    }
    Ok(Answer { status: status.parse()?, headers, body: steady(&body), end: String::new() })
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(&size), 16).unwrap_or(0);
        let more = &rest[end + 2..];
        if size == 0 || more.len() < size {
            break;
        }
        body.extend_from_slice(&more[..size]);
        rest = more.get(size + 2..).unwrap_or_default();
    }
    body
}

fn decode(body: Vec<u8>, encoding: Option<&str>) -> Result<Vec<u8>> {
    let mut decoded = Vec::new();
    match encoding {
        Some("gzip") => flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut decoded)?,
        Some("br") => brotli::Decompressor::new(&body[..], 4096).read_to_end(&mut decoded)?,
        Some("zstd") => zstd::Decoder::new(&body[..])?.read_to_end(&mut decoded)?,
        _ => return Ok(body),
    };
    Ok(decoded)
}

/// Parts of a body that differ from run to run, and what is put in their place.
static CHANGING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [(r#""x-request-id":"[^"]*""#, r#""x-request-id":"*""#), (r"Hash=[0-9a-f]{64}", "Hash=*")]
        .into_iter()
        .filter_map(|(pattern, to)| Some((Regex::new(pattern).ok()?, to)))
        .collect()
});

/// A body without what differs from run to run: request ids and the hashes of certificates made for this mesh. The
/// headers of an application's answer come in the order of their names, as that of different names means nothing.
fn steady(body: &str) -> String {
    let mut body = match serde_json::from_str::<serde_json::Value>(body) {
        Ok(value) => value.to_string(),
        Err(_) => body.to_owned(),
    };
    for (pattern, to) in CHANGING.iter() {
        body = pattern.replace_all(&body, *to).into_owned();
    }
    body
}
