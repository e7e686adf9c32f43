//! What users do to a mesh every day: pods that come and go, under load. Envoy's figures are printed beside Outrigger's.
//!
//! Needs what `mesh.rs` needs.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fmt::Write as _;

use tests::mesh::open_loop::{OpenLoop, Report, Target};
use tests::mesh::request::Request;
use tests::mesh::{Mesh, Setup};
use tests::proxy::Kind;

/// Requests a second, from one pod, over the whole of a rolling restart.
const RATE: u32 = 500;

/// Counters of the proxies' clusters, which istiod's bootstrap leaves out.
const ALL_STATS: &str = r#"{"proxyStatsMatcher": {"inclusionRegexps": [".*"]}}"#;

/// The service, and once more with HTTP/2 between the proxies.
const SERVICES: [(&str, &str); 2] = [("reviews", "10.78.0.1"), ("reviews-h2", "10.78.0.7")];

/// Istio's own retries, and no policy but this.
const POLICY: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews-h2, namespace: default}
spec:
  host: reviews-h2.default.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
";

/// A pod of the service.
#[derive(Clone)]
struct Instance {
    name: String,
    address: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Terminating,
}

/// What Kubernetes' interface has of the pods: themselves, and the endpoints of the services.
fn objects(pods: &[Instance]) -> String {
    let mut text = String::new();
    for Instance { name, address, state } in pods {
        let (app, version) = name.rsplit_once('-').unwrap();
        let ready = if *state == State::Ready { "True" } else { "False" };
        let deletion = match state {
            State::Terminating => "  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n",
            _ => "",
        };
        write!(
            text,
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n{deletion}  \
             labels: {{app: {app}, version: {version}, security.istio.io/tlsMode: istio}}\n\
             spec:\n  serviceAccountName: {app}\n  nodeName: node-1\n  \
             containers: [{{name: app, image: app, ports: [{{containerPort: 9080}}]}}]\n\
             status:\n  phase: Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]\n  \
             conditions: [{{type: Ready, status: \"{ready}\"}}]\n---\n"
        )
        .unwrap();
    }
    for (service, address) in SERVICES {
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: default}}\n\
             spec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  selector: {{app: reviews}}\n  \
             ports: [{{name: http, port: 9080, targetPort: 9080, protocol: TCP}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {service}-1, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 9080, protocol: TCP}}]\nendpoints:\n"
        )
        .unwrap();
        for Instance { name, address, state } in pods {
            let (ready, terminating) = (*state == State::Ready, *state == State::Terminating);
            let serving = ready || terminating;
            writeln!(
                text,
                "- addresses: [{address}]\n  \
                 conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}\n  \
                 targetRef: {{kind: Pod, name: {name}, namespace: default}}"
            )
            .unwrap();
        }
        text += "---\n";
    }
    text
}

/// The sample mesh without its own pods of the service, since these are to be removed.
fn take_over(mesh: &Mesh, pods: &[Instance]) {
    let sample = include_str!("../mesh/kube/bookinfo.yaml");
    let of_others = |one: &&str| {
        let pod = one.contains("kind: Pod") && one.contains("\n  name: reviews-");
        !pod && !one.contains("{name: reviews")
    };
    let others: Vec<_> = sample.split("\n---\n").filter(of_others).collect();
    mesh.kube("reviews.yaml", &objects(pods)).unwrap();
    mesh.kube("bookinfo.yaml", &others.join("\n---\n")).unwrap();
    mesh.configure("reviews.yaml", POLICY).unwrap();
}

/// A rolling restart of the service, as of a Deployment with `maxSurge: 1` and `maxUnavailable: 0`: a new pod is ready,
/// then an old one is told to end, and leaves the endpoints at the same moment.
fn roll(mesh: &Mesh) -> Report {
    let instance = |version: u32, address: u32| Instance {
        name: format!("reviews-v{version}"),
        address: format!("10.77.0.{address}"),
        state: State::Ready,
    };
    let mut pods = vec![instance(1, 11), instance(2, 12), instance(3, 13)];
    take_over(mesh, &pods);
    for (service, address) in SERVICES {
        mesh.eventually(service, || {
            let answer =
                mesh.ask(&Request::get("client-v1", &format!("http://{address}:9080/")))?;
            let page = mesh.admin("client-v1", "/clusters")?;
            let cluster = format!("outbound|9080||{service}.default.svc.cluster.local::10.77.0.1");
            let hosts = page.lines().filter(|line| line.starts_with(&cluster));
            let hosts = hosts.filter(|line| line.contains("::cx_active::")).count();
            let there = answer.status == 200 && hosts == pods.len();
            Ok(if there { Ok(()) } else { Err(format!("{hosts} hosts, {answer:?}")) })
        })
        .unwrap();
    }
    // All to one address: a port that is used for another one while the proxy's socket is in TIME_WAIT has the same two
    // ends once it is redirected, with older timestamps, and Linux takes its SYN for an old one.
    let to = format!("{}:9080", SERVICES[0].1).parse().unwrap();
    let targets = SERVICES.map(|(service, _)| Target {
        to,
        host: format!("{service}:9080"),
        path: format!("/{service}"),
    });
    let load = OpenLoop::start(mesh, "client-v1", RATE, targets.to_vec());
    let answers = |pod: &str| {
        mesh.eventually(&format!("an answer of {pod}"), || {
            let report = load.so_far();
            Ok(if report.answered.contains_key(pod) { Ok(()) } else { Err(report.text()) })
        })
        .unwrap();
    };
    for pod in &pods {
        answers(&pod.name);
    }
    for number in 1..=3 {
        let write = |pods: &[Instance]| mesh.kube("reviews.yaml", &objects(pods)).unwrap();
        let mut new = instance(3 + number, 40 + number);
        new.state = State::Starting;
        pods.push(new.clone());
        write(&pods);
        mesh.add_pod(&new.name, &new.address, &["--port", "9080"]).unwrap();
        mesh.eventually("istiod's word on the new pod's application", || {
            let page = mesh.admin(&new.name, "/clusters")?;
            Ok(if page.contains("inbound|9080||") { Ok(()) } else { Err(page) })
        })
        .unwrap();
        if let Some(new) = pods.last_mut() {
            new.state = State::Ready;
        }
        write(&pods);
        pods[0].state = State::Terminating;
        write(&pods);
        mesh.remove_pod(&pods[0].name).unwrap();
        pods.remove(0);
        write(&pods);
        answers(&new.name);
    }
    load.stop().unwrap()
}

/// What the client's proxy has seen of its upstreams.
fn seen(mesh: &Mesh) -> String {
    let counters = [
        "upstream_cx_http1_total",
        "upstream_cx_http2_total",
        "upstream_rq_retry",
        "upstream_rq_5xx",
        "upstream_cx_destroy_with_active_rq",
    ];
    let count = |name: &str| {
        let pattern = format!("^cluster.outbound.9080.*reviews.*{name}$");
        format!("{name} {}", mesh.stat("client-v1", &pattern).unwrap())
    };
    counters.map(count).join(", ")
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let setup = Setup { proxy_config: Some(ALL_STATS), ..Setup::default() };
    let mut failed = Vec::new();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let mesh = Mesh::up_with("mesh-roll", kind, &[], kind, &setup).unwrap();
        let report = roll(&mesh);
        eprintln!("rolling restart, {}: {}; {}", kind.name(), report.text(), seen(&mesh));
        if kind == Kind::Outrigger && report.failed() != 0 {
            failed.push(format!("{}\n{}", report.text(), mesh.logs()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A pod in the order of a native sidecar: rules, proxy, application; the first thing that the application does is a
/// request.
#[test]
fn an_application_that_dials_at_once_is_answered() {
    let init = std::env::var("OUTRIGGER_INIT_BIN").unwrap_or_else(|_| "outrigger-init".into());
    let redirect = format!(
        "{init} -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020"
    );
    let app = "curl -s -m 120 -o /dev/null -w %{http_code} http://10.78.0.3:9080/details/1";
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let setup = Setup { redirect: Some(&redirect), ..Setup::default() };
        let mesh = Mesh::up_with("mesh-first", kind, &[], kind, &setup).unwrap();
        mesh.add_pod("client-v2", "10.77.0.41", &["--app", app]).unwrap();
        let printed = mesh
            .eventually("an answer", || {
                let printed = std::fs::read_to_string(mesh.folder("client-v2").join("app.log"))?;
                Ok(if printed.len() == 3 { Ok(printed) } else { Err(printed) })
            })
            .unwrap();
        eprintln!("first request of an application, {}: {printed}", kind.name());
        assert!(kind == Kind::Envoy || printed == "200", "{printed}: {}", mesh.log("client-v2"));
    }
}
