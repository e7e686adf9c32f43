//! What may happen to a mesh in service, with Outrigger in all of its pods: certificates renewed, istiod killed, a
//! thousand pushes. Each test prints what it measured.
//!
//! Needs what `mesh.rs` needs.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tests::mesh::load::{Client, Load, Speaks};
use tests::mesh::streams::{Held, Plan};
use tests::mesh::{Mesh, PROXIED, Setup, handshakes, streams};

const DETAILS: &str = "10.78.0.3:9080";
const REVIEWS: &str = "10.78.0.1:9080";
const RATINGS: &str = "10.78.0.2:9080";
const MONGODB: &str = "10.78.0.4:27017";
const GATEWAY: &str = "10.77.0.20:80";

/// Without it, istiod's bootstrap has proxies keep few counters.
const ALL_STATS: &str = r#"{"proxyStatsMatcher": {"inclusionRegexps": [".*"]}}"#;

/// A client of HTTP with `each` milliseconds between two requests.
fn http(to: &str, host: &str, path: &str, keeps: bool, each: u64) -> Client {
    let speaks = Speaks::Http { host: host.to_owned(), path: path.to_owned() };
    Client { to: to.parse().unwrap(), speaks, keeps, every: Duration::from_millis(each) }
}

fn echo(keeps: bool, each: u64) -> Client {
    let every = Duration::from_millis(each);
    Client { to: MONGODB.parse().unwrap(), speaks: Speaks::Echo, keeps, every }
}

/// What the certificate of a handshake has to be, while it is nobody's turn to be renewed.
#[derive(Debug, Default)]
struct Expected {
    /// Odd while certificates are renewed.
    epoch: u64,
    leaf: Option<CertificateDer<'static>>,
    /// Handshakes outside of renewals, in all.
    checked: u64,
}

/// A handshake, checked unless a renewal was under way at its start or its end.
fn check(
    expected: &Mutex<Expected>,
    handshake: impl FnOnce() -> Result<CertificateDer<'static>>,
) -> Result<()> {
    let epoch = expected.lock().unwrap().epoch;
    let leaf = handshake()?;
    let mut expected = expected.lock().unwrap();
    if epoch == expected.epoch && epoch.is_multiple_of(2) {
        ensure!(Some(&leaf) == expected.leaf.as_ref(), "an old certificate in epoch {epoch}");
        expected.checked += 1;
    }
    Ok(())
}

/// Istio's resources that lead to [`handshakes::witness`].
const WITNESS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: witness, namespace: default}
spec:
  hosts: [witness.mesh]
  addresses: [10.77.0.2]
  ports: [{number: 9443, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.77.0.30}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: witness, namespace: default}
spec:
  host: witness.mesh
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
";

#[test]
fn certificates_renewed_under_load_are_shown_at_once_and_close_nothing() {
    let seconds = std::env::var("ROTATE_SECONDS").map_or(180, |s| s.parse().unwrap());
    let setup = Setup { proxy_config: Some(ALL_STATS), ..Setup::default() };
    let mut mesh = Mesh::of_outriggers("mesh-fr", &setup).unwrap();
    mesh.push(WITNESS).unwrap();
    let witness: SocketAddr = "10.77.0.2:9443".parse().unwrap();
    let address = "10.77.0.30:9443".parse().unwrap();
    handshakes::witness(&mesh, "legacy-v1", "ratings-v1", address).unwrap();

    let inbound = Arc::new(Mutex::new(Expected::default()));
    let outbound = Arc::new(Mutex::new(Expected::default()));
    let settle = |mesh: &Mesh| {
        for (pod, expected) in [("details-v1", &inbound), ("client-v1", &outbound)] {
            let mut expected = expected.lock().unwrap();
            expected.leaf = Some(mesh.certificate(pod).unwrap());
            expected.epoch += expected.epoch % 2;
        }
    };
    settle(&mesh);

    let mut load = Load::new();
    let mut clients = vec![echo(true, 100); 4];
    clients.push(echo(false, 100));
    for _ in 0..4 {
        clients.push(http(DETAILS, "details:9080", "/details/1", true, 50));
        clients.push(http(REVIEWS, "reviews:9080", "/reviews/1", true, 50));
    }
    clients.push(http(RATINGS, "ratings:9080", "/ratings/1", false, 100));
    load.start(&mesh, "client-v1", clients);
    let config = handshakes::client(&mesh, "client-v1").unwrap();
    let details: SocketAddr = "10.77.0.15:9080".parse().unwrap();
    let (to_details, to_witness) = (inbound.clone(), outbound.clone());
    let every = Duration::from_millis(100);
    load.repeat(&mesh, "legacy-v1", every, move || {
        check(&to_details, || handshakes::shown(&config, details))
    });
    load.repeat(&mesh, "client-v1", every, move || {
        check(&to_witness, || handshakes::seen(witness))
    });

    // Connections between the proxies that requests share; those of `echo(false)` come and go.
    let shared = "^cluster.outbound.9080.*(details|reviews|ratings).*upstream_cx_destroy$";
    let mut renewals = 0;
    let mut slowest = Duration::ZERO;
    let mut checked = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        let renewal = Instant::now();
        for expected in [&inbound, &outbound] {
            expected.lock().unwrap().epoch += 1;
        }
        mesh.rotate(&PROXIED).unwrap();
        let written = Instant::now();
        for pod in PROXIED {
            let serial = mesh.serial(pod).unwrap();
            mesh.eventually(&format!("the certificate {serial} of {pod}"), || {
                let page = mesh.admin(pod, "/certs")?.to_ascii_lowercase();
                Ok(if page.contains(&serial) { Ok(()) } else { Err(page) })
            })
            .unwrap();
        }
        slowest = slowest.max(written.elapsed());
        settle(&mesh);
        renewals += 1;
        let handshakes = |expected: &Mutex<Expected>| expected.lock().unwrap().checked;
        checked = mesh
            .eventually(&format!("handshakes after renewal {renewals}"), || {
                let now = (handshakes(&inbound), handshakes(&outbound));
                let more = now.0 > checked.0 && now.1 > checked.1;
                Ok(if more { Ok(now) } else { Err(format!("{now:?}")) })
            })
            .unwrap();
        // Five seconds from one renewal to the next.
        std::thread::sleep(Duration::from_secs(5).saturating_sub(renewal.elapsed()));
    }
    let closed = mesh.stat("client-v1", shared).unwrap();
    let open = mesh.stat("client-v1", &shared.replace("destroy", "active")).unwrap();
    let exchanges = load.stop().unwrap().judge().unwrap();
    assert_eq!(closed, 0, "connections between proxies were closed");
    assert!(open >= 2, "{open} connections between proxies");
    eprintln!(
        "rotation: {renewals} renewals of 8 pods in {:?}, in force within {slowest:?}; {exchanges} exchanges, 0 failed; \
         {} inbound and {} outbound handshakes outside of renewals, each with the newest certificate; {open} shared \
         connections, 0 closed",
        began.elapsed(),
        inbound.lock().unwrap().checked,
        outbound.lock().unwrap().checked
    );
}

/// A service that only one push has.
fn of_round(round: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: round-{round}, namespace: default}}\n\
         spec:\n  hosts: [round-{round}.mesh]\n  addresses: [10.77.1.{round}]\n  \
         ports: [{{number: 9100, name: tcp, protocol: TCP}}]\n  resolution: STATIC\n  endpoints: [{{address: 10.77.0.30}}]\n"
    )
}

/// The numbers of all rounds of which a proxy has something in force. Listeners that drain are not.
fn rounds(mesh: &Mesh, pod: &str) -> Result<BTreeSet<u32>> {
    let dump: Value = serde_json::from_str(&mesh.admin(pod, "/config_dump?include_eds")?)?;
    let mut names = Vec::new();
    for section in dump["configs"].as_array().into_iter().flatten() {
        let entries = section.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_array());
        for entry in entries.flatten().filter(|one| one["draining_state"].is_null()) {
            names.push(entry.to_string());
        }
    }
    let parts = names.iter().flat_map(|text| text.split("round-").skip(1));
    let digits = parts.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    Ok(digits.filter_map(|number| number.parse().ok()).collect())
}

#[test]
fn istiod_killed_and_restarted_fails_no_request_and_leaves_the_newest_state() {
    let restarts = std::env::var("RESTARTS").map_or(20, |s| s.parse().unwrap());
    let mut mesh = Mesh::of_outriggers("mesh-fk", &Setup::default()).unwrap();
    mesh.push(&of_round(0)).unwrap();
    let mut load = Load::new();
    let mut clients = vec![echo(true, 100), echo(true, 100), echo(false, 100)];
    for _ in 0..4 {
        clients.push(http(DETAILS, "details:9080", "/details/1", true, 50));
        clients.push(http(REVIEWS, "reviews:9080", "/reviews/1", true, 50));
    }
    clients.push(http(DETAILS, "details:9080", "/details/1", false, 100));
    clients.push(http(RATINGS, "ratings:9080", "/ratings/1", false, 100));
    load.start(&mesh, "client-v1", clients);
    let gateway = |keeps| http(GATEWAY, "bookinfo.example.com", "/reviews/1", keeps, 100);
    load.start(&mesh, "legacy-v1", vec![gateway(true), gateway(false)]);

    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 1..=restarts {
        mesh.kill_istiod().unwrap();
        // The change comes while istiod is down, or with the proxies already on their way back to it.
        let name = if round % 2 == 0 {
            let name = mesh.write(&of_round(round)).unwrap();
            mesh.start_istiod().unwrap();
            name
        } else {
            mesh.start_istiod().unwrap();
            mesh.write(&of_round(round)).unwrap()
        };
        let serves = Instant::now();
        mesh.arrived(&name).unwrap();
        slowest = slowest.max(serves.elapsed());
        for pod in PROXIED.iter().filter(|pod| **pod != "gateway-v1") {
            mesh.eventually(&format!("the state of {pod} after restart {round}"), || {
                let found = rounds(&mesh, pod)?;
                Ok(if found == BTreeSet::from([round]) {
                    Ok(())
                } else {
                    Err(format!("{found:?}"))
                })
            })
            .unwrap();
        }
    }
    let elapsed = began.elapsed();
    let exchanges = load.stop().unwrap().judge().unwrap();
    eprintln!(
        "istiod killed {restarts} times in {elapsed:?}: {exchanges} exchanges, 0 failed; the newest state in all 8 \
         proxies and acknowledged at most {slowest:?} after istiod served again"
    );
}

/// Echo servers of the pod ratings-v1.
const STREAMS: &str = "
apiVersion: v1
kind: Service
metadata: {name: streams, namespace: default, labels: {app: streams}}
spec:
  clusterIP: 10.78.0.6
  clusterIPs: [10.78.0.6]
  selector: {app: ratings}
  ports:
  - {name: http, port: 9081, targetPort: 9081, protocol: TCP}
  - {name: http2, port: 9082, targetPort: 9082, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: streams-1, namespace: default, labels: {kubernetes.io/service-name: streams}}
addressType: IPv4
ports:
- {name: http, port: 9081, protocol: TCP}
- {name: http2, port: 9082, protocol: TCP}
endpoints:
- addresses: [10.77.0.14]
  conditions: {ready: true}
  targetRef: {kind: Pod, name: ratings-v1, namespace: default}
";

/// A service that only one push has: another cluster for each of its ports, another listener of TCP, and another virtual
/// host in the route tables of the ports that the streams use.
fn churn(push: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: churn-{push}, namespace: default}}\nspec:\n  \
         clusterIP: 10.78.9.1\n  clusterIPs: [10.78.9.1]\n  ports:\n  \
         - {{name: http, port: 9081, targetPort: 9081, protocol: TCP}}\n  \
         - {{name: http2, port: 9082, targetPort: 9082, protocol: TCP}}\n  \
         - {{name: tcp, port: 9100, targetPort: 9100, protocol: TCP}}\n"
    )
}

/// Access logs on or off: a change of the connection manager in every filter chain.
fn logging(off: bool) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: logs, namespace: istio-system}}\n\
         spec: {{accessLogging: [{{disabled: {off}}}]}}\n"
    )
}

/// Allocated bytes and private pages of the proxies that carry the streams.
fn weights(mesh: &Mesh) -> Vec<(u64, u64)> {
    let of = |pod| (mesh.memory(pod, "allocated").unwrap(), mesh.anonymous_kib(pod).unwrap());
    ["client-v1", "ratings-v1"].map(of).to_vec()
}

#[test]
fn a_thousand_pushes_close_no_stream_and_leave_memory_flat() {
    let pushes: u32 = std::env::var("PUSHES").map_or(1000, |s| s.parse().unwrap());
    let environment = [("PILOT_DEBOUNCE_AFTER", "5ms"), ("PILOT_ENABLE_EDS_DEBOUNCE", "true")];
    let setup =
        Setup { environment: &environment, proxy_config: Some(ALL_STATS), ..Setup::default() };
    let mut mesh = Mesh::of_outriggers("mesh-fp", &setup).unwrap();
    mesh.kube("streams.yaml", STREAMS).unwrap();
    mesh.kube("churn.yaml", &churn(0)).unwrap();
    mesh.push(&logging(false)).unwrap();
    streams::serve(&mesh, "ratings-v1", 9081, 9082).unwrap();
    let plan = Plan {
        web_sockets: ("10.78.0.6:9081".parse().unwrap(), 1000),
        streams: ("10.78.0.6:9082".parse().unwrap(), 10, 100),
        host: "streams.default.svc.cluster.local".to_owned(),
    };
    let total = plan.total();
    let held = Held::open(&mesh, "client-v1", plan).unwrap();

    let began = Instant::now();
    let mut settled = Vec::new();
    for push in 1..=pushes {
        if push % 50 == 0 {
            mesh.push(&logging(push % 100 == 0)).unwrap();
        } else {
            let before = mesh.sync().unwrap();
            mesh.kube("churn.yaml", &churn(push)).unwrap();
            mesh.acknowledged(&before).unwrap();
        }
        if push % (pushes / 10) == 0 {
            held.round().unwrap();
            let now = weights(&mesh);
            eprintln!("{push} pushes, {:?}: {now:?}", began.elapsed());
            // Listeners that have gone drain for 45 seconds: by then as many come as go.
            if settled.is_empty() && push * 10 >= pushes * 4 {
                settled = now;
            }
        }
    }
    let elapsed = began.elapsed();
    let last = weights(&mesh);
    for ((_, before), (_, after)) in settled.iter().zip(&last) {
        let allowed = before + before / 10 + (4 << 10);
        assert!(*after <= allowed, "private KiB grew from {settled:?} to {last:?}");
    }
    held.close().unwrap();
    eprintln!(
        "{pushes} pushes in {elapsed:?} under {total} streams: 0 lost; allocated bytes and private KiB of client-v1 \
         and ratings-v1 after four tenths: {settled:?}, after all: {last:?}"
    );
}
