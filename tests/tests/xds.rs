//! The same control plane, go-control-plane, with the same changes, for real Envoy and Outrigger: over ADS and over a
//! stream for each type, incremental and state of the world. After each change both must ask, answer, show and count the
//! same.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

mod scenarios;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use regex::Regex;
use scenarios::{Scenario, Step};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tests::control_plane::ControlPlane;
use tests::ports;
use tests::proxy::{Kind, Proxy};
use tests::wire::{Framing, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::sleep;

/// How long the two may take to agree after a change.
const SOON: Duration = Duration::from_secs(40);

/// So often in a row the two must agree,
const AT_REST: u32 = 2;

/// with so much time in between: more than a control plane waits before it sends again what was refused.
const SENT_AGAIN: Duration = Duration::from_millis(300);

/// So often a scenario must show a difference before it counts, as in the differential suite.
const ATTEMPTS: u32 = 2;

/// Scenarios at a time.
const AT_ONCE: usize = 4;

/// How resources are fetched.
#[derive(Debug, Clone, Copy)]
struct Variant {
    ads: bool,
    delta: bool,
}

/// A proxy with a control plane of its own.
struct Side {
    dir: TempDir,
    ports: Vec<(&'static str, u16)>,
    variant: Variant,
    plane: ControlPlane,
    proxy: Option<Proxy>,
}

impl Side {
    async fn start(kind: Kind, variant: Variant, backends: &[u16], first: &[Value]) -> Self {
        let dir = TempDir::with_prefix("outrigger-xds-").unwrap();
        let mut ports: Vec<_> =
            ["a", "b", "c", "d"].into_iter().zip(backends.iter().copied()).collect();
        ports.extend(["main", "other", "third"].map(|name| (name, ports::free().unwrap())));
        let (admin, xds) = (ports::free().unwrap(), ports::free().unwrap());
        let empty = ControlPlane::start(dir.path(), xds, &[]).await.unwrap();
        let mut side = Self { dir, ports, variant, plane: empty, proxy: None };
        side.put(first);
        let config = side.dir.path().join("bootstrap.json");
        std::fs::write(&config, side.bootstrap(admin, xds).to_string()).unwrap();
        let proxy = Proxy::start(kind, &config, admin, &["--drain-time-s", "1"]).await;
        side.proxy = Some(proxy.unwrap());
        side
    }

    fn bootstrap(&self, admin: u16, xds: u16) -> Value {
        let address =
            |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let mut dynamic = json!({"cds_config": self.source(), "lds_config": self.source()});
        if self.variant.ads {
            dynamic["ads_config"] = self.api();
        }
        json!({
            "node": {"id": "n", "cluster": "c"},
            "admin": {"address": address(admin)},
            "dynamic_resources": dynamic,
            "static_resources": {"clusters": [{
                "name": "xds",
                "type": "STATIC",
                "typed_extension_protocol_options": {http2: {
                    "@type": format!("type.googleapis.com/{http2}"),
                    "explicit_http_config": {"http2_protocol_options": {}},
                }},
                "load_assignment": {"cluster_name": "xds", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": address(xds)}}]},
                ]},
            }]},
        })
    }

    fn api(&self) -> Value {
        json!({
            "api_type": if self.variant.delta { "DELTA_GRPC" } else { "GRPC" },
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        })
    }

    fn source(&self) -> Value {
        match self.variant.ads {
            true => json!({"resource_api_version": "V3", "ads": {}}),
            false => json!({"resource_api_version": "V3", "api_config_source": self.api()}),
        }
    }

    /// Serves these; `$source` and `$main` in them stand for what they are on this side.
    fn put(&mut self, resources: &[Value]) {
        let all: Vec<Value> = resources.iter().map(|one| self.filled(one)).collect();
        self.plane.put(&all).unwrap();
    }

    fn filled(&self, value: &Value) -> Value {
        match value {
            Value::String(text) if text == "$source" => self.source(),
            // One that is waited for, however long that takes.
            Value::String(text) if text == "$patient" => {
                let mut source = self.source();
                source["initial_fetch_timeout"] = json!("0s");
                source
            }
            Value::String(text) => match text.strip_prefix('$') {
                Some(name) => self.port(name).into(),
                None => value.clone(),
            },
            Value::Array(all) => all.iter().map(|one| self.filled(one)).collect(),
            Value::Object(map) => {
                let filled = map.iter().map(|(key, one)| (key.clone(), self.filled(one)));
                Value::Object(filled.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn port(&self, name: &str) -> u16 {
        self.ports.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// Everything that is compared.
    async fn observe(&self, step: &Step) -> (Vec<String>, BTreeSet<String>) {
        let mut asked = self.plane.asked().unwrap();
        // What streams of their own ask for hangs on which of them is the first to hear of a change.
        asked.retain(|fact| self.variant.ads || fact.ends_with(" refused"));
        let mut answers = Vec::new();
        for (port, answer) in &step.expected {
            answers.push(match *port {
                "refused" if asked.contains(&format!("{answer} refused")) => (*answer).to_owned(),
                "refused" => String::new(),
                port => get(self.port(port)).await,
            });
        }
        let mut seen: BTreeSet<String> =
            asked.into_iter().map(|fact| format!("asks {fact}")).collect();
        let (_, text) = self.proxy().admin("GET", "/stats").await.unwrap_or_default();
        seen.extend(statistics(&text));
        let (_, text) =
            self.proxy().admin("GET", "/config_dump?include_eds").await.unwrap_or_default();
        seen.extend(shown(&serde_json::from_str(&text).unwrap_or_default()));
        (answers, seen)
    }
}

/// What hangs neither on time nor on how often a control plane repeats itself.
fn statistics(text: &str) -> impl Iterator<Item = String> {
    let compared = Regex::new(concat!(
        r"^(cluster_manager\.((active|warming)_clusters|cluster_(added|modified|removed))",
        r"|listener_manager\.(listener_(added|modified|removed|in_place_updated)|total_listeners_(active|warming))",
        r"|cluster\.[^.]+\.membership_(total|healthy)",
        r"|extension_config_discovery\.http_filter\.[^.]+\.config_(reload|conflict)): (\d+)$",
    ))
    .unwrap();
    // A state of the world that is refused is sent again for as long as it is served.
    let refused =
        Regex::new(r"^(\S+\.(?:update_rejected|listener_create_failure|config_fail)): [1-9]")
            .unwrap();
    let mut all = Vec::new();
    for line in text.lines() {
        if compared.is_match(line) {
            all.push(format!("counts {line}"));
        } else if let Some(found) = refused.captures(line) {
            all.push(format!("counts {} more than 0", &found[1]));
        }
    }
    all.into_iter()
}

/// Names and states of `/config_dump`.
fn shown(dump: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let lists =
        dump["configs"].as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
    for (list, entries) in lists {
        for entry in entries.as_array().into_iter().flatten() {
            let inner = ["cluster", "route_config", "endpoint_config", "ecds_filter"];
            let name = entry["name"].as_str().map(str::to_owned).or_else(|| {
                let inner = inner.iter().find_map(|field| entry[field].as_object())?;
                Some(inner.get("name").or(inner.get("cluster_name"))?.as_str()?.to_owned())
            });
            // Envoy shows a second entry without a name for what it refuses.
            let Some(name) = name else { continue };
            let states = ["active_state", "warming_state", "error_state"];
            // Ours says it of every type, Envoy of listeners only; a drain ends when it ends.
            let has: Vec<_> =
                states.into_iter().filter(|state| entry.get(state).is_some()).collect();
            let is_listener = list == "dynamic_listeners";
            if is_listener && has.is_empty() {
                continue;
            }
            let states = if is_listener { has.join(" ") } else { String::new() };
            all.push(format!("shows {list} {name} {states}").trim_end().to_owned());
        }
    }
    all
}

/// Answers every request with `name`.
async fn backend(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::task::spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut head = vec![0; 8192];
                while matches!(io.read(&mut head).await, Ok(n) if n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}");
                    if io.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// Status and body, or why there is none.
async fn get(port: u16) -> String {
    let Ok(io) = TcpStream::connect(("127.0.0.1", port)).await else { return "refused".into() };
    let mut wire = Wire::new(io, Duration::from_secs(5));
    let ask = async {
        wire.send(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await?;
        let head = wire.head().await?;
        let body = wire.body(head.framing(Framing::UntilClose)).await;
        Ok::<_, tests::wire::End>(format!(
            "{} {}",
            head.status(),
            String::from_utf8_lossy(&body.data)
        ))
    };
    match ask.await {
        // The words of a 503 are compared elsewhere.
        Ok(answer) if !answer.starts_with("200") => answer[..3].to_owned(),
        Ok(answer) => answer,
        Err(end) => end.text().to_owned(),
    }
}

/// Takes both through the scenario; an error is what still differs when it is time to agree.
async fn follow(scenario: Scenario, variant: Variant) -> Result<(), String> {
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d"] {
        backends.push(backend(name).await);
    }
    let resources: Vec<Vec<Value>> = scenario.states();
    let (mut envoy, mut ours) = tokio::join!(
        Side::start(Kind::Envoy, variant, &backends, &resources[0]),
        Side::start(Kind::Outrigger, variant, &backends, &resources[0])
    );
    for (number, step) in scenario.steps.iter().enumerate() {
        if number > 0 {
            envoy.put(&resources[number]);
            ours.put(&resources[number]);
        }
        let expected: Vec<&str> = step.expected.iter().map(|(_, answer)| *answer).collect();
        let until = Instant::now() + SOON;
        let mut agreed = 0;
        loop {
            let (theirs, mine) = tokio::join!(envoy.observe(step), ours.observe(step));
            if theirs == mine && theirs.0 == expected {
                // Both have come to rest when they are still the same once a refused update was sent again.
                agreed += 1;
                if agreed == AT_REST {
                    break;
                }
                sleep(SENT_AGAIN).await;
                continue;
            }
            agreed = 0;
            if Instant::now() > until {
                let lines = |a: &BTreeSet<String>, b: &BTreeSet<String>, mark: &str| {
                    a.difference(b).map(|line| format!("\n  {mark} {line}")).collect::<String>()
                };
                return Err(format!(
                    "{}, {variant:?}, step {number}: expected {expected:?}, envoy {:?}, outrigger {:?}{}{}\n{}",
                    scenario.name,
                    theirs.0,
                    mine.0,
                    lines(&theirs.1, &mine.1, "-"),
                    lines(&mine.1, &theirs.1, "+"),
                    ours.proxy().log_tail(),
                ));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// All scenarios in some variants; `CASE=text` selects some.
fn run(variants: [Variant; 2]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let only = std::env::var("CASE").unwrap_or_default();
    let failed = LocalSet::new().block_on(&runtime, async {
        let room = Rc::new(Semaphore::new(AT_ONCE));
        let mut tasks = Vec::new();
        for scenario in scenarios::all().into_iter().filter(|one| one.name.contains(&only)) {
            // Only the incremental protocol can take away what is asked for by name.
            for variant in variants.into_iter().filter(|one| one.delta || !scenario.delta) {
                let (scenario, room) = (scenario.clone(), room.clone());
                tasks.push(tokio::task::spawn_local(async move {
                    let _place = room.acquire().await.unwrap();
                    let mut outcome = follow(scenario.clone(), variant).await;
                    for _ in 1..ATTEMPTS {
                        let Err(difference) = &outcome else { break };
                        eprintln!("once more: {difference}");
                        outcome = follow(scenario.clone(), variant).await;
                    }
                    outcome
                }));
            }
        }
        let mut failed = Vec::new();
        for task in tasks {
            failed.extend(task.await.unwrap().err());
        }
        failed
    });
    assert!(failed.is_empty(), "{} scenarios differ\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn over_ads_both_do_the_same() {
    run([Variant { ads: true, delta: true }, Variant { ads: true, delta: false }]);
}

#[test]
fn over_a_stream_for_each_type_both_do_the_same() {
    run([Variant { ads: false, delta: true }, Variant { ads: false, delta: false }]);
}
