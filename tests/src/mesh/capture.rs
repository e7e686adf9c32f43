//! What redirect rules let through: no connection of an application past its proxy but those that Istio documents, the
//! proxy's own all, and every datagram.
//!
//! An application tells who connected to it and with which headers: the proxy of the caller adds
//! `x-envoy-attempt-count`, mutual TLS between two proxies `x-forwarded-client-cert`.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::request::Request;
use super::{Mesh, PATIENCE, netns, network};

/// Users that are nobody's proxy.
const APPLICATIONS: [(u32, u32); 2] = [(0, 0), (1000, 1000)];

/// Connections that a listener of redirected traffic has had; see [`PROXY_CONFIG`].
const CAPTURED: &str = "listener.*_(9080|15001|15006).downstream_cx_total";

/// Lets proxies count what [`leaks`] looks at.
pub const PROXY_CONFIG: &str =
    r#"{"proxyStatsMatcher": {"inclusionRegexps": ["listener.*downstream_cx_total"]}}"#;

/// After this a datagram is sent again: what is lost on a busy machine is not what rules have taken.
const AGAIN: Duration = Duration::from_secs(1);

/// One connection and what the application at its end has to see.
struct Case<'a> {
    what: &'a str,
    from: &'a str,
    url: String,
    host: Option<&'a str>,
    pod: &'a str,
    peer: String,
    /// Whether the caller's proxy had it.
    proxied: bool,
    /// Whose certificate the called proxy saw.
    principal: Option<&'a str>,
}

/// What does not go where it should, in IPv4 or `over_ipv6`; empty when all is right.
///
/// # Errors
/// A namespace or an admin page cannot be had.
pub fn leaks(mesh: &Mesh, over_ipv6: bool) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for user in APPLICATIONS {
        for case in applications(mesh, over_ipv6)? {
            let before = mesh.stat(case.from, CAPTURED)?;
            wrong.extend(case.judge(mesh, user, over_ipv6)?);
            let moved = mesh.stat(case.from, CAPTURED)? > before;
            if moved != case.proxied {
                wrong.push(format!("{} as {user:?}: the proxy has counted: {moved}", case.what));
            }
        }
    }
    wrong.extend(excluded_port(mesh, over_ipv6)?);
    let case = Case {
        what: "the proxy's own traffic",
        from: "client-v1",
        url: "http://10.77.0.30:9080/details/1".to_owned(),
        host: Some("details:9080"),
        pod: "legacy-v1",
        peer: address("client-v1", over_ipv6)?.to_string(),
        proxied: false,
        principal: None,
    };
    let before = mesh.stat("client-v1", CAPTURED)?;
    wrong.extend(case.judge(mesh, mesh.network.proxy_user(), over_ipv6)?);
    if mesh.stat("client-v1", CAPTURED)? != before {
        wrong.push("the proxy's own traffic came back to it".to_owned());
    }
    for (to, port) in
        [("legacy-v1", 9080), ("legacy-v1", 53), ("details-v1", 9080), ("details-v1", 53)]
    {
        if let Err(error) = datagram(mesh, "client-v1", to, port, over_ipv6) {
            wrong.push(format!("UDP to {to}, port {port}: {error:#}"));
        }
    }
    Ok(wrong)
}

/// What an application can try.
fn applications(mesh: &Mesh, over_ipv6: bool) -> Result<Vec<Case<'static>>> {
    let network = mesh.network;
    // Endpoints of services are of the mesh's first family, whichever the application has dialled.
    let by_name = |from| network.peer(from, network.ipv6_only());
    let (six, itself, its) =
        if over_ipv6 { ("[::6]", "[::1]", "::6") } else { ("127.0.0.6", "127.0.0.1", "127.0.0.1") };
    let direct = |what, url: String, peer: String| Case {
        what,
        from: "ratings-v1",
        url,
        host: None,
        pod: "ratings-v1",
        peer,
        proxied: false,
        principal: None,
    };
    let from_client = |what, url: &str, host, pod, peer, principal| Case {
        what,
        from: "client-v1",
        url: url.to_owned(),
        host,
        pod,
        peer,
        proxied: true,
        principal,
    };
    let to_details = Some("client");
    Ok(vec![
        from_client(
            "a service",
            "http://details:9080/details/1",
            None,
            "details-v1",
            by_name("client-v1")?,
            to_details,
        ),
        // Its proxy goes by the host, whatever address was dialled.
        from_client(
            "the address of a pod without a proxy, for another host",
            "http://10.77.0.30:9080/details/1",
            Some("details:9080"),
            "details-v1",
            by_name("client-v1")?,
            to_details,
        ),
        // What no service is called is passed through as it is.
        from_client(
            "the address of a pod",
            "http://10.77.0.11:9080/direct",
            None,
            "reviews-v1",
            network.peer("client-v1", over_ipv6)?,
            None,
        ),
        Case {
            what: "its own service",
            from: "ratings-v1",
            url: "http://ratings:9080/self".to_owned(),
            host: None,
            pod: "ratings-v1",
            peer: by_name("ratings-v1")?,
            proxied: true,
            principal: Some("ratings"),
        },
        // Within the pod Istio leaves applications alone.
        direct(
            "its own address",
            "http://10.77.0.14:9080/own".to_owned(),
            address("ratings-v1", over_ipv6)?.to_string(),
        ),
        direct("the proxy's source address", format!("http://{six}:9080/six"), its.to_owned()),
        direct(
            "the loopback address",
            format!("http://{itself}:9080/loopback"),
            itself.replace(['[', ']'], ""),
        ),
    ])
}

impl Case<'_> {
    fn judge(&self, mesh: &Mesh, user: (u32, u32), over_ipv6: bool) -> Result<Option<String>> {
        let mut request = Request::get(self.from, &self.url);
        request.ipv6 = over_ipv6;
        if let Some(host) = self.host {
            request.headers.insert("host".to_owned(), host.to_owned());
        }
        let answer = mesh.ask_as(user, &request)?;
        let seen: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let header = |name: &str| seen["headers"][name].as_str();
        let by = header("x-forwarded-client-cert").and_then(|cert| cert.rsplit_once("/sa/"));
        let principal = by.map(|(_, account)| account);
        let right = answer.status == 200
            && seen["pod"] == self.pod
            && seen["peer"] == self.peer
            && header("x-envoy-attempt-count").is_some() == self.proxied
            && principal == self.principal;
        let what = || {
            format!(
                "{} as {user:?}: not {} from {} (proxied: {}, by {:?}) but {answer:?}",
                self.what, self.pod, self.peer, self.proxied, self.principal
            )
        };
        Ok((!right).then(what))
    }
}

/// An inbound port that the rules exclude is served by whoever listens there: the proxy's statistics.
fn excluded_port(mesh: &Mesh, over_ipv6: bool) -> Result<Option<String>> {
    let before = mesh.stat("details-v1", CAPTURED)?;
    let mut request = Request::get("legacy-v1", "http://10.77.0.15:15090/stats/prometheus");
    request.ipv6 = over_ipv6;
    let answer = mesh.ask(&request)?;
    let moved = mesh.stat("details-v1", CAPTURED)? != before;
    let right = answer.status == 200 && answer.body.contains("envoy_server_live") && !moved;
    let what = || format!("an excluded port: status {}, captured: {moved}", answer.status);
    Ok((!right).then(what))
}

/// Sends a datagram and its answer; each has to arrive from where it was sent.
fn datagram(mesh: &Mesh, from: &str, to: &str, port: u16, over_ipv6: bool) -> Result<()> {
    let socket = |pod: &str, port: u16| -> Result<(UdpSocket, SocketAddr)> {
        let at = SocketAddr::new(address(pod, over_ipv6)?, port);
        let socket = netns::within(&mesh.name, pod, move || UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(AGAIN))?;
        let at = socket.local_addr()?;
        Ok((socket, at))
    };
    let (client, client_at) = socket(from, 0)?;
    let (server, server_at) = socket(to, port)?;
    let until = Instant::now() + PATIENCE;
    loop {
        client.send_to(b"question", server_at)?;
        if let Some(peer) = receive(&server, b"question")? {
            ensure!(peer == client_at, "it arrives from {peer}, not from {client_at}");
            server.send_to(b"answer", peer)?;
            if let Some(peer) = receive(&client, b"answer")? {
                ensure!(peer == server_at, "the answer comes from {peer}, not from {server_at}");
                return Ok(());
            }
        }
        ensure!(Instant::now() < until, "no answer");
    }
}

/// Who has sent what comes next, if something does; it has to be `text`.
fn receive(socket: &UdpSocket, text: &[u8]) -> Result<Option<SocketAddr>> {
    let mut buffer = [0; 64];
    match socket.recv_from(&mut buffer) {
        Ok((length, peer)) => {
            ensure!(&buffer[..length] == text, "something else arrives");
            Ok(Some(peer))
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn address(pod: &str, over_ipv6: bool) -> Result<IpAddr> {
    let ipv4 = network::pod(pod)?;
    let text =
        if over_ipv6 { network::ipv6(ipv4).replace(['[', ']'], "") } else { ipv4.to_owned() };
    text.parse().context(text)
}
