//! What OpenSSL's client and testssl.sh say of a listener with TLS: nothing that they do not say of Envoy's.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::Command;

use super::{answering, area, run, server_tls};

/// Findings of testssl.sh that are about the test's certificates.
const OF_CERTIFICATES: &[(&str, &str)] = &[
    ("cert_trust", "no name of the certificate is 127.0.0.1"),
    ("cert_chain_of_trust", "the CA is the test's own"),
    ("cert_validityPeriod", "it is good for twenty years"),
    ("cert_revocation", "no CRL or OCSP responder is named"),
];

async fn serve(kind: Kind) -> Sandbox {
    let alpn = json!({"alpn_protocols": ["h2", "http/1.1"]});
    let mutual = json!({"validation_context": {"trusted_ca": {"filename": "${certs}/ca.pem"}}});
    let listeners = json!({
        "main": answering(server_tls("server", false, alpn)),
        "mutual": answering(server_tls("server", true, mutual)),
    });
    Sandbox::start(kind, &area(listeners, json!([])), &[]).await.unwrap()
}

/// Everything of at least medium severity: finding by name, with its severity and text. An error is what a scan prints
/// that does not come to its end.
async fn findings(proxy: &Sandbox) -> Result<BTreeMap<String, (String, String)>, String> {
    let dir = TempDir::new().unwrap();
    let report = dir.path().join("report.json");
    let out = Command::new("testssl")
        // Protocols, suites, forward secrecy, preferences, server's defaults, vulnerabilities.
        .args(["--quiet", "--color", "0", "--warnings", "off", "-n", "none"])
        .args(["-p", "-s", "-f", "-P", "-S", "-U", "--jsonfile"])
        .arg(&report)
        .arg(format!("127.0.0.1:{}", proxy.port("main").unwrap()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let report = std::fs::read(&report).map_err(|e| format!("{e}: {text}"))?;
    let all: Vec<BTreeMap<String, Value>> =
        serde_json::from_slice(&report).map_err(|e| format!("{e}: {text}"))?;
    let field = |finding: &BTreeMap<String, Value>, name: &str| {
        finding[name].as_str().unwrap_or_default().to_owned()
    };
    // It came to its end, and found the protocols.
    let found = |id: &str| all.iter().any(|finding| field(finding, "id") == id);
    if !(found("TLS1_3") && found("LUCKY13") && found("scanTime")) {
        return Err(text.into_owned());
    }
    let severe = |severity: &str| ["MEDIUM", "HIGH", "CRITICAL", "FATAL"].contains(&severity);
    let all = all
        .iter()
        .map(|finding| {
            (field(finding, "id"), (field(finding, "severity"), field(finding, "finding")))
        })
        .filter(|(id, (severity, _))| {
            let id = id.split(' ').next().unwrap_or_default();
            severe(severity) && OF_CERTIFICATES.iter().all(|(known, _)| *known != id)
        })
        .collect();
    Ok(all)
}

#[test]
fn testssl_finds_nothing_wrong() {
    run(async {
        let (envoy, ours) = (serve(Kind::Envoy).await, serve(Kind::Outrigger).await);
        let high = |(severity, _): &(String, String)| severity != "MEDIUM";
        let compare = async || {
            let (theirs, mut mine) = (findings(&envoy).await?, findings(&ours).await?);
            mine.retain(|id, finding| high(finding) || !theirs.contains_key(id));
            Ok::<_, String>(mine)
        };
        let mut bad = compare().await;
        if !matches!(&bad, Ok(bad) if bad.is_empty()) {
            // Its probes wait for fixed times: what comes of a busy machine does not come twice.
            eprintln!("once more: {bad:#?}");
            let again = compare().await;
            match (&mut bad, again) {
                (Ok(bad), Ok(again)) => bad.retain(|id, _| again.contains_key(id)),
                (_, again) => bad = again,
            }
        }
        assert_eq!(bad, Ok(BTreeMap::new()));
    });
}

#[test]
fn keys_are_updated_when_openssl_asks() {
    run(async {
        let proxy = serve(Kind::Outrigger).await;
        let mut client = Command::new("openssl")
            .args(["s_client", "-tls1_3", "-msg", "-connect"])
            .arg(format!("127.0.0.1:{}", proxy.port("main").unwrap()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = client.stdin.take().unwrap();
        let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
        let mut words = BufReader::new(client.stderr.take().unwrap()).lines();
        until_line(&mut output, "New, TLSv1.3").await;
        // A line that is `K` alone, where it is read alone, asks for an update of both keys.
        input.write_all(b"K\n").await.unwrap();
        until_line(&mut words, "KEYUPDATE").await;
        input.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until_line(&mut output, "<<< TLS 1.3, Handshake [length 0005], KeyUpdate").await;
        until_line(&mut output, "HTTP/1.1 200 OK").await;
    });
}

async fn until_line(lines: &mut Lines<impl AsyncBufRead + Unpin>, awaited: &str) {
    let mut seen = String::new();
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(awaited) {
                return true;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        false
    };
    let found = tokio::time::timeout(Duration::from_secs(60), found).await;
    assert!(found == Ok(true), "no {awaited} ({found:?}) in:\n{seen}");
}

/// What `openssl s_client` says of one connection, and whether it succeeded.
async fn s_client(proxy: &Sandbox, listener: &str, arguments: &[&str]) -> (bool, String) {
    let certs = &proxy.places.certs;
    let arguments = arguments.iter().map(|argument| argument.replace("${certs}", certs));
    let out = Command::new("openssl")
        .arg("s_client")
        .arg("-connect")
        .arg(format!("127.0.0.1:{}", proxy.port(listener).unwrap()))
        .args(["-CAfile", &format!("{certs}/ca.pem"), "-verify_return_error"])
        .args(["-verify_hostname", "a.example", "-servername", "a.example"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn openssl_finds_nothing_wrong() {
    const CLIENT: &[&str] = &["-cert", "${certs}/client.pem", "-key", "${certs}/client.key"];
    run(async {
        let proxy = serve(Kind::Outrigger).await;
        for (listener, arguments, wanted) in [
            ("main", &["-tls1_3"][..], &["New, TLSv1.3", "Verify return code: 0 (ok)"][..]),
            ("main", &["-tls1_2"], &["New, TLSv1.2", "Secure Renegotiation IS supported"]),
            ("main", &["-tls1_2"], &["Extended master secret: yes", "TLS session ticket:"]),
            ("main", &["-tls1_2", "-no_ticket"], &["Session-ID: "]),
            ("main", &["-tls1_2", "-reconnect"], &["Reused, TLSv1.2"]),
            ("main", &["-tls1_2", "-no_ticket", "-reconnect"], &["Reused, TLSv1.2"]),
            ("main", &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], &["CHACHA20"]),
            ("main", &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], &["AES_256"]),
            ("main", &["-groups", "P-256"], &["Temp Key: ECDH, prime256v1"]),
            ("main", &["-alpn", "http/1.1,h2"], &["ALPN protocol: h2"]),
            ("main", &["-alpn", "spdy/3"], &["No ALPN negotiated"]),
            ("main", &["-status"], &["OCSP response: no response sent"]),
            ("mutual", CLIENT, &["Acceptable client certificate CA names"]),
        ] {
            let (good, text) = s_client(&proxy, listener, arguments).await;
            assert!(good, "{arguments:?}: {text}");
            for line in wanted {
                assert!(text.contains(line), "{arguments:?} without {line}: {text}");
            }
        }
        for (listener, arguments, wanted) in [
            ("main", &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"][..], "alert protocol version"),
            ("main", &["-tls1_2", "-cipher", "AES128-SHA"], "handshake failure"),
            ("main", &["-groups", "P-521"], "handshake failure"),
            ("mutual", &["-tls1_2"], "handshake failure"),
        ] {
            let (good, text) = s_client(&proxy, listener, arguments).await;
            assert!(!good && text.contains(wanted), "{arguments:?}: {text}");
        }
    });
}
