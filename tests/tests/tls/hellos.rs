//! Peers that never finish their ClientHello: 2 000 of them hold up nobody and next to no memory, before a TLS
//! inspector or before the handshake itself, and are sent away when their time is over.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tests::tls::{Front, Offer};
use tests::wire::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{answering, area, run, server_tls, until_stats};

const PEERS: usize = 2_000;
const LIMIT_KIB: u64 = 64 << 10;
/// Good connections made while the others hang.
const GOOD: usize = 100;
/// Longer than any run of a test.
const NEVER: &str = "600s";

/// What a bad peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    /// Half of a ClientHello.
    Stalled,
    /// The header of a long ClientHello, and noise.
    Garbage,
    /// A ClientHello, a byte now and then.
    Trickled,
}

/// The same in records of `size` bytes.
fn in_pieces(hello: &[u8], size: usize) -> Vec<u8> {
    const HEADER: usize = 5;
    let record = |piece: &[u8]| {
        let [high, low] = (piece.len() as u16).to_be_bytes();
        [&[22, 3, 1, high, low], piece].concat()
    };
    hello[HEADER..].chunks(size).flat_map(record).collect()
}

/// Where the message's own header is cut, too.
#[test]
fn a_hello_in_small_records_is_answered_as_by_envoy() {
    run(async {
        let listeners = json!({"bare": listener(false, NEVER), "inspected": listener(true, NEVER)});
        let area = area(listeners, json!([]));
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let proxy = Sandbox::start(kind, &area, &[]).await.unwrap();
            for (name, size) in [("bare", 1), ("bare", 3), ("bare", 64), ("inspected", 3)] {
                let address = ("127.0.0.1", proxy.port(name).unwrap());
                let mut peer = TcpStream::connect(address).await.unwrap();
                let mut begin = [0];
                peer.write_all(&in_pieces(&hello(), size)).await.unwrap();
                let answer = peer.read_exact(&mut begin);
                tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap().unwrap();
                assert_eq!(begin, [22], "{kind:?}, {name} by {size} bytes");
            }
        }
    });
}

/// A listener whose handshakes, or whose inspector's wait, end after `timeout`.
fn listener(inspects: bool, timeout: &str) -> Value {
    let mut listener = answering(server_tls("server", false, json!({})));
    let inspector = json!({
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {
            "@type": "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        },
    });
    listener["listener_filters_timeout"] = json!(timeout);
    listener["filter_chains"][0]["transport_socket_connect_timeout"] = json!(timeout);
    if inspects {
        listener["listener_filters"] = json!([inspector]);
    }
    listener
}

async fn proxy() -> Sandbox {
    let listeners = json!({
        "bare": listener(false, NEVER),
        "inspected": listener(true, NEVER),
        "bare_soon": listener(false, "0.5s"),
        "inspected_soon": listener(true, "0.5s"),
    });
    Sandbox::start(Kind::Outrigger, &area(listeners, json!([])), &[]).await.unwrap()
}

/// Room for both ends' files; a child inherits it.
fn raise_files() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8 * PEERS as u64)), hard).unwrap();
}

/// A ClientHello as rustls makes it, of the size that they have with a post-quantum key share.
fn hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "a.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn noise() -> Vec<u8> {
    let mut bytes = vec![22, 3, 1, 0x3f, 0, 1, 0, 0x3e, 0];
    let mut state = 7_u32;
    bytes.extend((0..8 << 10).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    bytes
}

/// Connects all the peers, and has them send what they send at once.
async fn hang(port: u16, bad: Bad) -> Vec<TcpStream> {
    let (hello, noise) = (hello(), noise());
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        io.set_nodelay(true).unwrap();
        let first = match bad {
            Bad::Stalled => &hello[..hello.len() / 2],
            Bad::Garbage => &noise[..],
            Bad::Trickled => &hello[..1],
        };
        // Who was closed at once cannot write; statistics tell.
        let _ = io.write_all(first).await;
        peers.push(io);
    }
    peers
}

/// One good request.
async fn ask(front: &Front) {
    let mut io = TcpStream::connect(front.address).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut wire = Wire::new(io, Duration::from_secs(60));
    assert_eq!(wire.head().await.unwrap().status(), 200);
}

/// Good requests between the bytes of those that trickle.
async fn ask_among(front: &Front, peers: &mut [TcpStream], bad: Bad) {
    let hello = hello();
    for round in 0..GOOD {
        if bad == Bad::Trickled {
            let byte = &hello[round + 1..round + 2];
            for io in &mut *peers {
                io.write_all(byte).await.unwrap();
            }
        }
        ask(front).await;
    }
}

async fn hold(listener: &str, gauge: &str) {
    raise_files();
    for bad in [Bad::Stalled, Bad::Garbage, Bad::Trickled] {
        // A new process each time: what one kind leaves is not counted for the next.
        let proxy = proxy().await;
        let port = proxy.port(listener).unwrap();
        let front = Front::start(&Offer::default(), ([127, 0, 0, 1], port).into()).await.unwrap();
        ask(&front).await;
        let mut peers = hang(port, bad).await;
        let gauge = format!("listener.{listener}.{gauge}");
        until_stats(&proxy, |stats| stats.get(&gauge) >= Some(&(PEERS as i64))).await;
        ask_among(&front, &mut peers, bad).await;
        let rss = proxy.proxy.rss_kib();
        eprintln!("{listener}, {bad:?}: {rss} KiB resident with {PEERS} peers");
        assert!(rss <= LIMIT_KIB, "{bad:?}: {rss} KiB");
        // Nobody was sent away meanwhile.
        until_stats(&proxy, |stats| stats.get(&gauge) >= Some(&(PEERS as i64))).await;
        drop(peers);
        until_stats(&proxy, |stats| stats.get(&gauge) == Some(&0)).await;
    }
}

#[test]
fn unfinished_hellos_before_the_handshake_hold_up_nobody() {
    run(hold("bare", "downstream_cx_active"));
}

#[test]
fn unfinished_hellos_before_the_inspector_hold_up_nobody() {
    run(hold("inspected", "downstream_pre_cx_active"));
}

#[test]
fn unfinished_hellos_are_sent_away_in_time() {
    run(async {
        let proxy = proxy().await;
        for (listener, stat) in [
            ("bare_soon", "downstream_cx_transport_socket_connect_timeout"),
            ("inspected_soon", "downstream_pre_cx_timeout"),
        ] {
            let port = proxy.port(listener).unwrap();
            for first in [&hello()[..100], &noise()] {
                let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                // It may be over before it is written.
                let _ = io.write_all(first).await;
                let mut rest = Vec::new();
                // The end of the stream, or a reset: bytes were left unread.
                let end = tokio::time::timeout(Duration::from_secs(60), io.read_to_end(&mut rest));
                let _ = end.await.unwrap();
                assert!(rest.is_empty(), "{rest:?}");
            }
            let stat = format!("listener.{listener}.{stat}");
            until_stats(&proxy, |stats| stats.get(&stat) == Some(&2)).await;
        }
    });
}
