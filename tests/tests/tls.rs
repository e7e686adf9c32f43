//! TLS against real peers: Envoy on either side of Outrigger, OpenSSL's client, testssl.sh, and peers that never finish
//! their ClientHello.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

#[path = "tls/hellos.rs"]
mod hellos;
#[path = "tls/pairs.rs"]
mod pairs;
#[path = "tls/scanner.rs"]
mod scanner;

use serde_json::{Value, json};
use tests::area::Area;
use tests::sandbox::Sandbox;

/// Runs a test on a runtime of its own.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// Listeners and clusters in the short form.
fn area(listeners: Value, clusters: Value) -> Area {
    let whole = json!({"about": "", "listeners": listeners, "clusters": clusters, "cases": []});
    serde_json::from_value(whole).unwrap()
}

/// The transport socket of a listener with this certificate; `more` goes into its `CommonTlsContext`.
fn server_tls(certificate: &str, requires: bool, more: Value) -> Value {
    let mut common = json!({"tls_certificates": [files(certificate)]});
    tests::config::merge(&mut common, &more);
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": requires,
        "common_tls_context": common,
    }})
}

fn files(certificate: &str) -> Value {
    json!({
        "certificate_chain": {"filename": format!("${{certs}}/{certificate}.pem")},
        "private_key": {"filename": format!("${{certs}}/{certificate}.key")},
    })
}

/// A listener that answers every request with 200.
fn answering(transport_socket: Value) -> Value {
    let routes = json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]);
    json!({"filter_chains": [{
        "transport_socket": transport_socket,
        "filters": [{"hcm": {"access_log": [], "routes": routes}}],
    }]})
}

/// Waits until the proxy's statistics are as wanted; they are the second half of a failure's message.
async fn until_stats(proxy: &Sandbox, wanted: impl Fn(&tests::stats::Snapshot) -> bool) {
    let begin = std::time::Instant::now();
    loop {
        let stats = proxy.stats().await.unwrap();
        if wanted(&stats) {
            return;
        }
        assert!(begin.elapsed().as_secs() < 120, "{stats:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
