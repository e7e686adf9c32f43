//! Envoy and Outrigger, each as the client and as the server of the other, with good and bad certificates on either
//! side, by TLS 1.2 and 1.3: what a pair of Envoys lets through, every pair does.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tests::stats::Snapshot;
use tests::wire::{Framing, Wire};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{answering, area, files, run, server_tls, until_stats};

/// What a client shows, and whether a server that wants `spiffe://td/` lets it in.
const CLIENTS: &[(&str, bool)] = &[
    ("client", true),
    ("spiffe_only", true),
    ("two_uris", true),
    ("", false),
    ("expired", false),
    ("not_yet", false),
    ("other_domain", false),
    ("no_uri", false),
    ("nameless", false),
    ("self_signed", false),
    ("foreign", false),
    ("only_server", false),
    ("revoked", false),
];

/// The same for a server before such a client.
const SERVERS: &[(&str, bool)] = &[
    ("server", true),
    ("spiffe_only", true),
    ("expired", false),
    ("not_yet", false),
    ("other_domain", false),
    ("no_uri", false),
    ("nameless", false),
    ("self_signed", false),
    ("foreign", false),
    ("only_client", false),
    ("revoked", false),
];

/// By lists of revoked certificates, which have to be there for every CA, nothing can be said of chains.
const CHAINS: &[(&str, bool)] = &[("chained", true), ("unfit_issuer", false)];

const VERSIONS: &[&str] = &["TLSv1_2", "TLSv1_3"];

fn validation(lists: Value) -> Value {
    let mut context = json!({
        "trusted_ca": {"filename": "${certs}/ca.pem"},
        "match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"prefix": "spiffe://td/"}},
        ],
    });
    tests::config::merge(&mut context, &lists);
    context
}

fn list_apart() -> Value {
    json!({"crl": {"filename": "${certs}/ca.crl"}})
}

fn list_with_ca() -> Value {
    json!({"trusted_ca": {"filename": "${certs}/ca_with_crl.pem"}})
}

/// Wants certificates of its clients at `clients`, and shows one certificate at each other listener.
async fn serve(kind: Kind) -> Sandbox {
    let mut listeners = Map::new();
    for (listener, lists) in [("clients", list_with_ca()), ("chains", json!({}))] {
        let wants = json!({"validation_context": validation(lists)});
        listeners.insert(listener.into(), answering(server_tls("server", true, wants)));
    }
    for (certificate, _) in SERVERS.iter().chain(CHAINS) {
        let shows = server_tls(certificate, false, json!({}));
        listeners.insert((*certificate).into(), answering(shows));
    }
    Sandbox::start(kind, &area(listeners.into(), json!([])), &[]).await.unwrap()
}

/// Sends `/NAME` to the cluster of that name: to `server`, as `cluster` says.
async fn forward(kind: Kind, server: &Sandbox) -> Sandbox {
    let (mut clusters, mut routes) = (Vec::new(), Vec::new());
    let mut add = |name: &str, version: &str, port: u16, certificates: Value, checks: Value| {
        let name = format!("{name}_{version}");
        routes.push(json!({"match": {"path": format!("/{name}")}, "route": {"cluster": name}}));
        let mut common = json!({
            "tls_params": {
                "tls_minimum_protocol_version": version,
                "tls_maximum_protocol_version": version,
            },
            "tls_certificates": certificates,
            "validation_context": validation(json!({})),
        });
        tests::config::merge(&mut common["validation_context"], &checks);
        let endpoint = json!({"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": port},
        }}});
        clusters.push(json!({
            "name": name,
            "connect_timeout": "20s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": common,
            }},
        }));
    };
    for version in VERSIONS {
        for (certificate, _) in CLIENTS {
            let shown =
                if certificate.is_empty() { json!([]) } else { json!([files(certificate)]) };
            let port = server.port("clients").unwrap();
            add(&format!("client_{certificate}"), version, port, shown, json!({}));
        }
        for (certificate, _) in SERVERS {
            let port = server.port(certificate).unwrap();
            add(&format!("server_{certificate}"), version, port, json!([]), list_apart());
        }
        for (certificate, _) in CHAINS {
            let (name, port) = (format!("client_{certificate}"), server.port("chains").unwrap());
            add(&name, version, port, json!([files(certificate)]), json!({}));
            let (name, port) = (format!("server_{certificate}"), server.port(certificate).unwrap());
            add(&name, version, port, json!([]), json!({}));
        }
        let other = json!({"match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"exact": "spiffe://td/ns/s/sa/another"}},
        ]});
        add("mismatch", version, server.port("server").unwrap(), json!([]), other);
    }
    let listeners = json!({"main": {"hcm": {"access_log": [], "routes": routes}}});
    Sandbox::start(kind, &area(listeners, clusters.into()), &[]).await.unwrap()
}

/// One request over a connection of its own: the answer's status and body.
async fn ask(client: &Sandbox, path: &str) -> (u16, String) {
    let mut io = TcpStream::connect(("127.0.0.1", client.port("main").unwrap())).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut wire = Wire::new(io, Duration::from_secs(30));
    let head = wire.head().await.unwrap();
    let body = wire.body(head.framing(Framing::UntilClose)).await;
    (head.status(), String::from_utf8_lossy(&body.data).into_owned())
}

/// How many handshakes have come to which end at the server's listeners.
fn ends(stats: &Snapshot) -> BTreeMap<&str, i64> {
    let ends = [
        "handshake",
        "fail_verify_error",
        "fail_verify_san",
        "fail_verify_no_cert",
        "connection_error",
    ];
    let of = |end: &str| stats.get(&format!("listener.clients.ssl.{end}")).copied().unwrap_or(0);
    ends.iter().map(|end| (*end, of(end))).collect()
}

/// What one pair does with every certificate.
async fn observe(client: Kind, server: Kind) -> Vec<String> {
    let server = serve(server).await;
    let client = forward(client, &server).await;
    let mut seen = Vec::new();
    for version in VERSIONS {
        for (certificate, good) in CLIENTS.iter().chain(CHAINS) {
            let (status, _) = ask(&client, &format!("client_{certificate}_{version}")).await;
            assert_eq!(status == 200, *good, "client's {certificate:?} by {version}");
            seen.push(format!("client's {certificate:?} by {version}: {status}"));
        }
        let servers =
            SERVERS.iter().chain(CHAINS).map(|(name, good)| (format!("server_{name}"), *good));
        for (cluster, good) in servers.chain([("mismatch".to_owned(), false)]) {
            let (status, body) = ask(&client, &format!("{cluster}_{version}")).await;
            assert_eq!(status == 200, good, "{cluster} by {version}: {body}");
            seen.push(format!("{cluster} by {version}: {status} {body}"));
        }
    }
    let handshakes = (CLIENTS.len() * VERSIONS.len()) as i64;
    until_stats(&server, |stats| ends(stats).values().sum::<i64>() == handshakes).await;
    seen.push(format!("{:?}", ends(&server.stats().await.unwrap())));
    let stats = client.stats().await.unwrap();
    let verdicts = stats.iter().filter(|(name, value)| {
        **value > 0 && name.starts_with("cluster.") && name.contains(".ssl.fail_verify_")
    });
    seen.extend(verdicts.map(|(name, value)| format!("{name} {value}")));
    seen
}

#[test]
fn envoy_on_either_side_agrees_on_every_certificate() {
    run(async {
        let reference = observe(Kind::Envoy, Kind::Envoy).await;
        for (client, server) in [
            (Kind::Outrigger, Kind::Envoy),
            (Kind::Envoy, Kind::Outrigger),
            (Kind::Outrigger, Kind::Outrigger),
        ] {
            let seen = observe(client, server).await;
            let pair = (client, server);
            for (envoys, ours) in reference.iter().zip(&seen) {
                assert_eq!(envoys, ours, "{pair:?}");
            }
            assert_eq!(reference.len(), seen.len(), "{pair:?}: {seen:#?}");
        }
    });
}
