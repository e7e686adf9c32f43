//! The real Istio mesh of `tests/mesh/` with Outrigger in Envoy's place: in one pod after the other, then in all.
//!
//! Needs root, network namespaces, iptables and the binaries that `tests/mesh/build.sh` builds (`MESH_BIN`).

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tests::mesh::cases::{self, table};
use tests::mesh::request::Request;
use tests::mesh::{Mesh, PROXIED};
use tests::proxy::Kind;

/// What istiod and pilot-agent have to say against the proxies.
fn complaints(mesh: &Mesh) -> Result<Vec<String>> {
    let mut wrong = Vec::from_iter(mesh.settled().err().map(|error| format!("{error:#}")));
    let log = mesh.istiod_log();
    // So it calls a NACK.
    wrong.extend(log.lines().filter(|line| line.contains("ACK ERROR")).map(str::to_owned));
    Ok(wrong)
}

#[test]
fn every_row_holds_whoever_proxies() {
    let rows = cases::rows().unwrap();
    let (reference, wrong) = {
        let mesh = Mesh::up("mesh-e", Kind::Envoy, &[], Kind::Outrigger).unwrap();
        table(&mesh, &rows).unwrap()
    };
    assert!(wrong.is_empty(), "the rows are wrong of Envoy itself:\n{}", wrong.join("\n"));
    let mut places: Vec<(&str, Vec<&str>)> =
        ["client-v1", "details-v1", "reviews-v1", "gateway-v1", "mongodb-v1"]
            .map(|pod| (pod, vec![pod]))
            .into();
    places.push(("all", PROXIED.to_vec()));
    if let Ok(one) = std::env::var("MESH_PLACE") {
        places.retain(|(name, _)| *name == one);
    }
    let mut wrong = Vec::new();
    for (place, pods) in places {
        let mut say = |what: String| wrong.push(format!("Outrigger in {place}: {what}"));
        let mesh = match Mesh::up("mesh-o", Kind::Envoy, &pods, Kind::Outrigger) {
            Ok(mesh) => mesh,
            Err(error) => {
                say(format!("{error:#}"));
                continue;
            }
        };
        let (answers, bad) = table(&mesh, &rows).unwrap();
        bad.into_iter().for_each(&mut say);
        for ((row, ours), envoys) in rows.iter().zip(&answers).zip(&reference) {
            if ours != envoys {
                say(format!("{}:\n  Envoy     {envoys:?}\n  Outrigger {ours:?}", row.name));
            }
        }
        complaints(&mesh).unwrap().into_iter().for_each(&mut say);
        eprintln!("{place}: {} rows", rows.len());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn statistics_are_scraped_compressed() {
    let mesh = Mesh::up("mesh-s", Kind::Envoy, &["client-v1"], Kind::Outrigger).unwrap();
    let mut wrong = Vec::new();
    for (accept, encoding) in [
        ("gzip", Some("gzip")),
        ("br", Some("br")),
        ("zstd", Some("zstd")),
        ("gzip;q=0.5, zstd;q=0.9, br;q=0.7", Some("zstd")),
        // What Prometheus says.
        ("gzip, *;q=0", Some("gzip")),
        ("identity", None),
    ] {
        // Envoy in the one, Outrigger in the other.
        for (pod, address) in [("details-v1", "10.77.0.15"), ("client-v1", "10.77.0.10")] {
            let mut request =
                Request::get("legacy-v1", &format!("http://{address}:15090/stats/prometheus"));
            request.headers.insert("accept-encoding".to_owned(), accept.to_owned());
            let answer = mesh.ask(&request).unwrap();
            let header = |name: &str| {
                answer.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
            };
            if answer.status != 200
                || header("content-encoding") != encoding
                || header("vary") != Some("Accept-Encoding")
                || !answer.body.contains("envoy_server_live{} 1")
            {
                let text: String = answer.body.chars().take(300).collect();
                wrong.push(format!(
                    "{pod}, {accept}: {} {:?} {} {text}",
                    answer.status, answer.headers, answer.end
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn configurations_pushed_live_mean_the_same() {
    let mut envoy = Mesh::up("mesh-ce", Kind::Envoy, &[], Kind::Outrigger).unwrap();
    let mut ours = Mesh::up("mesh-co", Kind::Envoy, &PROXIED, Kind::Outrigger).unwrap();
    let only = std::env::var("CASE").unwrap_or_default();
    let mut wrong = Vec::new();
    let configurations = cases::configurations().unwrap();
    for one in configurations.iter().filter(|one| one.name.contains(&only)) {
        let began = std::time::Instant::now();
        envoy.push(&one.resources).unwrap();
        let pushed = began.elapsed();
        if let Err(error) = ours.push(&one.resources) {
            wrong.push(format!("{}: {error:#}", one.name));
            continue;
        }
        for request in &one.requests {
            let (theirs, their_pods) = cases::answers(&envoy, request).unwrap();
            let (mine, my_pods) = cases::answers(&ours, request).unwrap();
            if theirs != mine || !alike(&their_pods, &my_pods, request.times) {
                wrong.push(format!(
                    "{}: {} {} from {}\n  Envoy     {theirs:?} {their_pods:?}\n  Outrigger {mine:?} {my_pods:?}",
                    one.name, request.method, request.url, request.from
                ));
            }
        }
        eprintln!(
            "{}: {} requests, {:?} of {:?} for the first push",
            one.name,
            one.requests.len(),
            pushed,
            began.elapsed()
        );
    }
    wrong.extend(complaints(&ours).unwrap());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether two samples of `times` requests may come from the same shares.
fn alike(a: &BTreeMap<String, u32>, b: &BTreeMap<String, u32>, times: u32) -> bool {
    a.keys().chain(b.keys()).all(|pod| {
        let count = |of: &BTreeMap<String, u32>| of.get(pod).copied().unwrap_or(0);
        // More than five standard deviations of the difference at the worst share.
        let allowed = if times > 1 { (f64::from(times).sqrt() * 3.6).ceil() } else { 0.0 };
        (f64::from(count(a)) - f64::from(count(b))).abs() <= allowed
    })
}

#[test]
fn istioctl_prints_the_same_rows() {
    let envoy = Mesh::up("mesh-ie", Kind::Envoy, &[], Kind::Outrigger).unwrap();
    let ours = Mesh::up("mesh-io", Kind::Envoy, &PROXIED, Kind::Outrigger).unwrap();
    // A proxy is ready before it has all there is.
    envoy.settled().unwrap();
    let rows = || {
        let mut wrong = Vec::new();
        for pod in PROXIED {
            for kind in ["listeners", "clusters", "routes", "endpoints", "secret"] {
                let (theirs, mine) =
                    (envoy.proxy_config(pod, kind)?, ours.proxy_config(pod, kind)?);
                ensure!(theirs.len() > 1, "{pod} {kind}: {theirs:?}");
                let only = |a: &[String], b: &[String]| {
                    a.iter().filter(|row| !b.contains(row)).cloned().collect::<Vec<_>>()
                };
                if mine != theirs {
                    wrong.push(format!(
                        "{pod} {kind}:\n  only Envoy     {:#?}\n  only Outrigger {:#?}",
                        only(&theirs, &mine),
                        only(&mine, &theirs)
                    ));
                }
            }
        }
        Ok(if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) })
    };
    ours.eventually("the same rows", rows).unwrap();
}
