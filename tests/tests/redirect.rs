//! Traffic that iptables rules redirect, in network namespaces: the same pod with Envoy and with Outrigger, the same
//! connections; answers, what the applications see, logs and statistics are compared.
//!
//! Needs root: without, it fails. Each proxy has a pod and a neighbour of its own, so that all addresses are the same.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;
use tempfile::TempDir;
use tests::namespace::{Namespace, enter, shell};
use tests::proxy::{Kind, Proxy};
use tests::stats::{Filter, Snapshot, parse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// The proxy's group: redirect rules know its connections by it.
const GROUP: u32 = 1337;
const ADMIN: u16 = 15000;
/// Of each access log line.
const FORMAT: &str = "%FILTER_CHAIN_NAME% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% \
    details=%RESPONSE_CODE_DETAILS% local=%DOWNSTREAM_LOCAL_ADDRESS% \
    direct=%DOWNSTREAM_DIRECT_LOCAL_ADDRESS% remote=%DOWNSTREAM_REMOTE_ADDRESS% \
    cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% upstream_local=%UPSTREAM_LOCAL_ADDRESS% \
    failure=%UPSTREAM_TRANSPORT_FAILURE_REASON% received=%BYTES_RECEIVED% sent=%BYTES_SENT%";

/// What Istio's own rules do, in short: what the pod sends goes to 15001, what it gets to 15006; the proxy itself is
/// left alone, and so is what comes from 127.0.0.6.
const RULES: &str = r"
for t in 'iptables 127.0.0.6/32 127.0.0.1/32' 'ip6tables ::6/128 ::1/128'; do
  set -- $t
  $1 -w 30 -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15006
  $1 -w 30 -t nat -A OUTPUT -o lo -s $2 -j RETURN
  $1 -w 30 -t nat -A OUTPUT -p tcp -o lo ! -d $3 -m owner --gid-owner 1337 -j REDIRECT --to-ports 15006
  $1 -w 30 -t nat -A OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
  $1 -w 30 -t nat -A OUTPUT -m owner --gid-owner 1337 -j RETURN
  $1 -w 30 -t nat -A OUTPUT -d $3 -j RETURN
  $1 -w 30 -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001
done
ip addr add ::6/128 dev lo
";

/// As Istio's in mode TPROXY: the proxy's socket gets what is sent to the pod, and connects from its client's address;
/// marks bring the answers back to it.
const TRANSPARENT_RULES: &str = r"
for f in all lo eth0; do echo 0 >/proc/sys/net/ipv4/conf/$f/rp_filter; done
for t in 'iptables 127.0.0.1/32' 'ip6tables ::1/128'; do
  set -- $t
  $1 -w 30 -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
  $1 -w 30 -t mangle -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark
  $1 -w 30 -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j RETURN
  $1 -w 30 -t mangle -A PREROUTING -p tcp -i lo -j RETURN
  $1 -w 30 -t mangle -A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j MARK --set-mark 1337
  $1 -w 30 -t mangle -A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  $1 -w 30 -t mangle -A PREROUTING -p tcp ! -d $2 -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
done
ip rule add fwmark 1337 lookup 133; ip route add local 0.0.0.0/0 dev lo table 133
ip -6 rule add fwmark 1337 lookup 133; ip -6 route add local ::/0 dev lo table 133
";

const TRANSPARENT_STEPS: &[Step] = &[
    ("tcp", From::Neighbour, "10.9.0.1:9999", "hello\n"),
    ("server first", From::Neighbour, "10.9.0.1:27017", ""),
    (
        "http",
        From::Neighbour,
        "10.9.0.1:9080",
        "GET /in HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    (
        "http again",
        From::Neighbour,
        "10.9.0.1:9080",
        "GET /in HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("guard", From::Neighbour, "10.9.0.1:15006", ""),
    ("IPv6", From::Neighbour, "[fd09::1]:9999", "hello\n"),
];

/// A configuration (of `tests/configs/redirect`), redirect rules and connections one after the other.
struct Scenario {
    config: &'static str,
    rules: &'static str,
    steps: &'static [Step],
}

/// A name, who opens the connection, where to, and what is sent.
type Step = (&'static str, From, &'static str, &'static str);

/// Who opens a connection.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Pod,
    Neighbour,
}

const STEPS: &[Step] = &[
    ("exact listener, port override", From::Pod, "10.9.0.2:8080", "hello\n"),
    (
        "wildcard listener, http",
        From::Pod,
        "10.9.0.3:8080",
        "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("wildcard listener, tcp", From::Pod, "10.9.0.3:8080", "hello\n"),
    (
        "by header",
        From::Pod,
        "10.9.0.3:8080",
        "GET /by-header HTTP/1.1\r\nhost: a\r\nx-to: 10.9.0.2:9999\r\nconnection: close\r\n\r\n",
    ),
    (
        "by header of IPv6",
        From::Pod,
        "10.9.0.3:8080",
        "GET /by-header HTTP/1.1\r\nhost: a\r\nx-to: [fd09::2]:9999\r\nconnection: close\r\n\r\n",
    ),
    (
        "by a bad header",
        From::Pod,
        "10.9.0.3:8080",
        "GET /by-header HTTP/1.1\r\nhost: a\r\nx-to: nowhere\r\nconnection: close\r\n\r\n",
    ),
    (
        "by no header",
        From::Pod,
        "10.9.0.3:8080",
        "GET /by-header HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("passthrough", From::Pod, "10.9.0.2:9999", "hello\n"),
    ("passthrough again", From::Pod, "10.9.0.2:9999", "hello\n"),
    ("passthrough, server first", From::Pod, "10.9.0.2:27017", ""),
    ("wildcard listener, silent client", From::Pod, "10.9.0.3:8080", ""),
    ("passthrough, refused", From::Pod, "10.9.0.2:7", ""),
    ("outbound guard", From::Pod, "10.9.0.2:15001", ""),
    ("straight to the outbound port", From::Pod, "127.0.0.1:15001", ""),
    ("straight to the inbound port", From::Pod, "127.0.0.1:15006", "hello\n"),
    (
        "no original destination",
        From::Pod,
        "127.0.0.1:7000",
        "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    (
        "header without original destination",
        From::Pod,
        "127.0.0.1:7000",
        "GET /by-header HTTP/1.1\r\nhost: a\r\nx-to: 10.9.0.2:9999\r\nconnection: close\r\n\r\n",
    ),
    ("IPv6 passthrough", From::Pod, "[fd09::2]:9999", "hello\n"),
    (
        "IPv6 wildcard listener",
        From::Pod,
        "[fd09::2]:8080",
        "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("IPv6 guard", From::Pod, "[fd09::2]:15001", ""),
    (
        "inbound http",
        From::Neighbour,
        "10.9.0.1:9080",
        "GET /in HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("inbound tcp", From::Neighbour, "10.9.0.1:9999", "hello\n"),
    ("inbound, server first", From::Neighbour, "10.9.0.1:27017", ""),
    ("inbound guard", From::Neighbour, "10.9.0.1:15006", "hello\n"),
    ("inbound to the outbound port", From::Neighbour, "[fd09::1]:15001", ""),
    ("inbound refused", From::Neighbour, "10.9.0.1:7", "hello\n"),
    (
        "IPv6 inbound http",
        From::Neighbour,
        "[fd09::1]:9080",
        "GET /in HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    ),
    ("IPv6 inbound tcp", From::Neighbour, "[fd09::1]:9999", "hello\n"),
    ("IPv6 inbound guard", From::Neighbour, "[fd09::1]:15006", ""),
];

#[test]
fn redirected_traffic_goes_where_it_goes_with_envoy() {
    compare(&Scenario { config: "sidecar.yaml", rules: RULES, steps: STEPS });
}

#[test]
fn transparent_traffic_keeps_both_addresses() {
    compare(&Scenario {
        config: "tproxy.yaml",
        rules: TRANSPARENT_RULES,
        steps: TRANSPARENT_STEPS,
    });
}

/// Runs both proxies, each in a pod of its own; what differs has to differ twice, as in the differential suite.
fn compare(scenario: &'static Scenario) {
    let mut differ = differences(scenario);
    if !differ.is_empty() {
        eprintln!("once more: {}", differ.join("\n"));
        differ = differences(scenario);
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

fn differences(scenario: &'static Scenario) -> Vec<String> {
    let [theirs, ours] = [Kind::Envoy, Kind::Outrigger]
        .map(|kind| {
            // The pod's thread: the proxy is started from it, and is in its namespace.
            std::thread::spawn(move || {
                enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, observe(kind, scenario))
            })
        })
        .map(|thread| thread.join().expect("a thread without panics").expect("both proxies run"));
    let differ = theirs.iter().zip(&ours).filter(|(a, b)| a != b);
    let text = differ.map(|((name, theirs), (_, ours))| {
        let (theirs, ours) = (theirs.join("\n    "), ours.join("\n    "));
        format!("{name}\n  Envoy:\n    {theirs}\n  Outrigger:\n    {ours}")
    });
    text.collect()
}

/// All steps, each with the lines of what was seen.
async fn observe(kind: Kind, scenario: &Scenario) -> Result<Vec<(String, Vec<String>)>> {
    let neighbour = Namespace::new()?;
    connect_to(&neighbour).await?;
    serve(&["10.9.0.1", "[fd09::1]"], "pod").await?;
    neighbour.run(|| serve(&["10.9.0.2", "10.9.0.3", "[fd09::2]"], "neighbour")).await??;
    let dir = TempDir::with_prefix("outrigger-redirect-")?;
    let dir_of_configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/redirect");
    let config = std::fs::read_to_string(dir_of_configs.join(scenario.config))?
        .replace("@DIR@", &dir.path().display().to_string())
        .replace("@FORMAT@", FORMAT);
    let path = dir.path().join("bootstrap.yaml");
    std::fs::write(&path, config)?;
    let proxy = Proxy::start_in_group(kind, &path, ADMIN, &[], Some(GROUP)).await?;
    shell(scenario.rules)?;
    let shape = Shape::new()?;
    let mut out = Vec::new();
    let mut read = 0;
    for (name, from, to, send) in scenario.steps {
        let before = settle(&proxy).await?;
        let (to, send): (SocketAddr, _) = (to.parse()?, *send);
        let answer = match from {
            From::Pod => ask(to, send).await,
            From::Neighbour => neighbour.run(move || ask(to, send)).await?,
        };
        let after = settle(&proxy).await?;
        let mut lines = vec![shape.text(&answer)];
        lines.extend(
            log_lines(&dir.path().join("access.log"), &mut read)
                .await
                .iter()
                .map(|l| shape.text(l)),
        );
        lines.extend(Filter::new()?.diff(&before, &after, false));
        out.push(((*name).to_owned(), lines));
    }
    let (_, clusters) = proxy.admin("GET", "/clusters").await?;
    let hosts = clusters.lines().filter(|l| {
        ["cx_total", "rq_total", "hostname", "cx_connect_fail"]
            .iter()
            .any(|k| l.contains(&format!("::{k}::")))
    });
    let mut hosts: Vec<_> = hosts.map(str::to_owned).collect();
    hosts.sort();
    out.push(("/clusters".into(), hosts));
    let (_, listeners) = proxy.admin("GET", "/listeners").await?;
    out.push(("/listeners".into(), listeners.lines().map(str::to_owned).collect()));
    Ok(out)
}

/// A pair of interfaces between the calling thread's namespace and the neighbour's.
async fn connect_to(neighbour: &Namespace) -> Result<()> {
    let thread = neighbour.thread;
    shell(&format!(
        "ip link add eth0 type veth peer name eth0 netns {thread}
         ip addr add 10.9.0.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad; ip link set eth0 up"
    ))?;
    neighbour
        .run(|| async {
            shell(
                "ip addr add 10.9.0.2/24 dev eth0; ip addr add 10.9.0.3/24 dev eth0
                 ip addr add fd09::2/64 dev eth0 nodad; ip link set eth0 up",
            )
        })
        .await?
}

/// Servers of the namespace: they tell who asked and where; the one on 27017 greets.
async fn serve(addresses: &[&str], who: &'static str) -> Result<()> {
    for address in addresses {
        for port in [8080, 9080, 9999, 27017] {
            let listener = TcpListener::bind(format!("{address}:{port}")).await?;
            tokio::task::spawn_local(async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    tokio::task::spawn_local(answer(stream, peer, who));
                }
            });
        }
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, peer: SocketAddr, who: &str) -> Result<()> {
    let local = stream.local_addr()?;
    let mut read = Vec::new();
    while local.port() != 27017 && !read.ends_with(b"\r\n\r\n") && read != b"hello\n" {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let asked = String::from_utf8_lossy(&read);
    let text =
        format!("{who} at {local} asked by {peer}: {}", asked.lines().next().unwrap_or_default());
    let reply = if asked.contains("HTTP/1.1") {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        )
    } else {
        text
    };
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await?;
    let _ = stream.read_buf(&mut read).await;
    Ok(())
}

/// What comes back of one connection, to its end.
async fn ask(to: SocketAddr, send: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(send.as_bytes()).await?;
        let mut read = Vec::new();
        let end = stream.read_to_end(&mut read).await.map(|_| "end");
        let end = end.unwrap_or_else(|error| {
            if error.kind() == std::io::ErrorKind::ConnectionReset { "reset" } else { "error" }
        });
        std::io::Result::Ok(format!("{} [{end}]", String::from_utf8_lossy(&read)))
    };
    match timeout(Duration::from_secs(5), exchange).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => format!("{:?}", error.kind()),
        Err(_) => "no end".into(),
    }
}

/// Statistics once nothing moves.
async fn settle(proxy: &Proxy) -> Result<Snapshot> {
    let filter = Filter::new()?;
    let mut last = Snapshot::new();
    for _ in 0..200 {
        let (_, text) = proxy.admin("GET", "/stats").await?;
        let now = parse(&text);
        let busy = now.iter().any(|(name, value)| {
            *value > 0
                && name.starts_with("listener.")
                && name.ends_with("cx_active")
                && !name.contains("admin")
                && !name.contains("worker_")
        });
        let moved =
            now.iter().any(|(name, value)| filter.compares(name) && last.get(name) != Some(value));
        if !busy && !moved {
            return Ok(now);
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(anyhow::anyhow!("connections do not end")).context(proxy.log_tail())
}

/// Lines that have come since the last call, after a flush interval without more.
async fn log_lines(path: &Path, read: &mut usize) -> Vec<String> {
    let mut seen = *read;
    loop {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.len() == seen {
            let mut lines: Vec<_> = text[*read..].lines().map(str::to_owned).collect();
            lines.sort();
            *read = seen;
            return lines;
        }
        seen = text.len();
    }
}

/// What is left of a text when ports that the kernel chose, and dates, are taken out.
struct Shape(Regex, Regex);

impl Shape {
    fn new() -> Result<Self> {
        Ok(Self(
            Regex::new(r"([0-9.]+|\[[0-9a-f:]+\]):(3[2-9]\d{3}|[4-6]\d{4})\b")?,
            Regex::new(r"(date|x-envoy-upstream-service-time): [^\r]*")?,
        ))
    }

    fn text(&self, text: &str) -> String {
        let text = self.0.replace_all(text, "$1:<ephemeral>");
        self.1.replace_all(&text, "$1: <…>").into_owned()
    }
}
