//! Sessions that are resumed, or not any more; and 0-RTT data, which nobody takes.

use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::tls::verify::AHEAD;

#[tokio::test]
async fn sessions_are_resumed_until_a_secret_changes() {
    let ca = ca("root");
    let certificate = leaf(&ca, ALICE, |_| {});
    let settings = common(std::slice::from_ref(&certificate), trusting(&ca));
    let slot = settings.certificates[0].clone();
    let server = server(settings);
    let client = client(common(std::slice::from_ref(&certificate), trusting(&ca)), |_| {});
    let mut resumed = Vec::new();
    for round in 0..4 {
        if round == 2 {
            slot.fill(Secret::Certificate(leaf(&ca, ALICE, |_| {}))).unwrap();
        }
        let (down, up) = shake(&server, &client).await;
        let (mut down, mut up) = (io(down), io(up));
        // Tickets come with the first bytes.
        send(&mut down, Bytes::from_static(b"x")).await;
        receive(&mut up, 1).await.unwrap();
        let info = down.tls().unwrap();
        assert!(info.peer_validated && info.peer.is_some());
        resumed.push(info.resumed);
    }
    assert_eq!(resumed, [false, true, false, true]);
}

/// Makes a handshake, with tickets; whether it resumed a session, as both ends see it.
async fn resumes(server: &ServerContext, client: &ClientContext) -> bool {
    let (down, up) = shake(server, client).await;
    let (mut down, mut up) = (io(down), io(up));
    // Tickets come with the first bytes.
    send(&mut down, Bytes::from_static(b"x")).await;
    receive(&mut up, 1).await.unwrap();
    let (down, up) = (down.tls().unwrap(), up.tls().unwrap());
    assert!(down.peer_validated && down.peer.is_some() && up.peer_validated);
    assert_eq!(down.resumed, up.resumed);
    up.resumed
}

/// A CA that ends in 2035.
fn ending() -> Ca {
    ca_with("ending", |params| params.not_after = date_time_ymd(2035, 1, 1))
}

/// What makes a certificate good besides its own end may end while a session lives: the whole chain is judged.
#[tokio::test]
async fn a_session_whose_client_is_not_good_any_more_is_a_full_handshake() {
    let (lasting, ending) = (ca("lasting"), ending());
    let (ours, theirs) = (leaf(&lasting, ALICE, |_| {}), leaf(&ending, ALICE, |_| {}));
    for (tls13, tickets) in [(true, true), (false, true), (false, false)] {
        let server = ServerContext::new(ServerSettings {
            common: common(std::slice::from_ref(&ours), trusting(&ending)),
            require_client_certificate: true,
            tickets,
            stateful: true,
            prefer_client_ciphers: false,
            full_scan_certs_on_sni_mismatch: false,
        })
        .unwrap();
        let theirs = common(std::slice::from_ref(&theirs), trusting(&lasting));
        let client = client(CommonTls { tls13, ..theirs }, |_| {});
        let mut resumed = Vec::new();
        for years in [0, 0, 20, 20, 0] {
            AHEAD.set(Duration::from_secs(years * 31_557_600));
            resumed.push(resumes(&server, &client).await);
        }
        assert_eq!(resumed, [false, true, false, false, true], "{tls13} {tickets}");
    }
}

/// A session whose server is refused is not offered again.
#[tokio::test]
async fn a_client_forgets_a_session_whose_server_is_not_good_any_more() {
    let (lasting, ending) = (ca("lasting"), ending());
    let (ours, theirs) = (leaf(&ending, ALICE, |_| {}), leaf(&lasting, ALICE, |_| {}));
    for tls13 in [true, false] {
        let server = server(common(std::slice::from_ref(&ours), trusting(&lasting)));
        let theirs = common(std::slice::from_ref(&theirs), trusting(&ending));
        let client = client(CommonTls { tls13, ..theirs }, |_| {});
        assert!(!resumes(&server, &client).await);
        assert!(resumes(&server, &client).await);
        AHEAD.set(Duration::from_secs(20 * 31_557_600));
        let failure = shake(&server, &client).await.1.err().unwrap();
        assert_eq!(failure.cause, Cause::Refused(Check::Chain));
        assert!(failure.info.unwrap().resumed);
        assert!(!resumes(&server, &client).await, "TLS 1.3: {tls13}");
        AHEAD.set(Duration::ZERO);
    }
}

/// Bytes from one end of rustls' to the other.
fn pass(
    from: &mut rustls::ConnectionCommon<impl rustls::SideData>,
    to: &mut rustls::ConnectionCommon<impl rustls::SideData>,
) {
    let mut flight = Vec::new();
    while from.write_tls(&mut flight).unwrap() > 0 {}
    let mut rest = &flight[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
}

/// A certificate for the name that `client_of` asks for.
fn named(ca: &Ca) -> Arc<TlsCertificate> {
    leaf(ca, ALICE, |params| {
        params.subject_alt_names.push(RcSan::DnsName("alice.example".try_into().unwrap()));
    })
}

/// One that asks nobody for a certificate.
fn open_server(certificate: Arc<TlsCertificate>, ca: &Ca) -> Arc<ServerContext> {
    let mut context = common(&[certificate], trusting(ca));
    context.validation = Validation { fixed: Some(Arc::default()), secret: None };
    server_of(context, false)
}

/// A client of rustls' own.
fn config(ca: &Ca, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
    let builder = ClientConfig::builder_with_protocol_versions(versions);
    builder.with_root_certificates(roots).with_no_client_auth()
}

fn client_of(config: Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config, ServerName::try_from("alice.example").unwrap()).unwrap()
}

fn flight(client: &mut ClientConnection) -> Vec<u8> {
    let mut flight = Vec::new();
    while client.write_tls(&mut flight).unwrap() > 0 {}
    flight
}

/// One that offers 0-RTT data by another server's ticket.
fn early_client(ca: &Ca, certificate: &TlsCertificate) -> ClientConnection {
    let certified = rustls::sign::SingleCertAndKey::from((*certificate.key).clone());
    let mut other =
        ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(certified));
    other.max_early_data_size = 14 * 1024;
    other.session_storage = ServerSessionMemoryCache::new(32);
    let mut config = config(ca, rustls::ALL_VERSIONS);
    config.enable_early_data = true;
    config.max_fragment_size = Some(512);
    let config = Arc::new(config);
    let mut first = client_of(config.clone());
    let mut other = ServerConnection::new(Arc::new(other)).unwrap();
    while first.is_handshaking() || other.is_handshaking() {
        pass(&mut first, &mut other);
        pass(&mut other, &mut first);
    }
    client_of(config)
}

/// The limit is one of the data, not of how often it is looked at.
#[tokio::test]
async fn early_data_for_another_server_is_passed_over() {
    let ca = ca("root");
    let named = named(&ca);
    let mut client = early_client(&ca, &named);
    let server = open_server(named, &ca);
    assert_eq!(client.early_data().unwrap().write(&[7; 13 * 1024]).unwrap(), 13 * 1024);
    let (io, mut peer) = Io::pair(64 * 1024);
    let down = async {
        let mut down = Io::from(accept(io, BytesMut::new(), &server, None).await.unwrap().0);
        assert_eq!(&receive(&mut down, 4).await.unwrap()[..], b"ping");
    };
    let up = async {
        while client.is_handshaking() {
            send(&mut peer, flight(&mut client).into()).await;
            if client.is_handshaking() {
                let bytes = receive(&mut peer, 1).await.unwrap();
                assert!(!bytes.is_empty(), "refused");
                client.read_tls(&mut &bytes[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        assert!(!client.is_early_data_accepted());
        client.writer().write_all(b"ping").unwrap();
        send(&mut peer, flight(&mut client).into()).await;
    };
    tokio::join!(down, up);
}

/// What rustls' limit does not count: records with nothing in them.
#[tokio::test]
async fn early_data_without_data_has_an_end() {
    let ca = ca("root");
    let named = named(&ca);
    let mut client = early_client(&ca, &named);
    let server = open_server(named, &ca);
    let (io, mut peer) = Io::pair(64 * 1024);
    let mut bytes = flight(&mut client);
    bytes.extend([0x17, 3, 3, 0, 0].repeat(20_000));
    let (accepted, ()) =
        tokio::join!(accept(io, BytesMut::new(), &server, None), send(&mut peer, bytes.into()));
    assert!(accepted.is_err());
}

/// Handshakes take turns on a thread: what one cannot read says nothing of another, whose message is cut in two.
#[tokio::test]
async fn what_one_client_sends_is_not_held_against_another() {
    let ca = ca("root");
    let named = named(&ca);
    let server = open_server(named, &ca);
    let good = Arc::new(config(&ca, &[&rustls::version::TLS12]));
    let (io, mut peer) = Io::pair(64 * 1024);
    let down = async {
        let mut down = Io::from(accept(io, BytesMut::new(), &server, None).await.unwrap().0);
        assert_eq!(&receive(&mut down, 4).await.unwrap()[..], b"ping");
    };
    let up = async {
        let mut client = client_of(good);
        send(&mut peer, flight(&mut client).into()).await;
        let mut key_exchange = Vec::new();
        while key_exchange.is_empty() {
            let bytes = receive(&mut peer, 1).await.unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
            key_exchange = flight(&mut client);
        }
        let (first, rest) = key_exchange.split_at(5 + 8);
        let length = u16::from_be_bytes([first[3], first[4]]);
        let mut cut = [&first[..3], &[0, 8], &first[5..], &first[..3]].concat();
        cut.extend((length - 8).to_be_bytes());
        let (first, second) = cut.split_at(13);
        send(&mut peer, Bytes::copy_from_slice(first)).await;

        let (io, mut bad) = Io::pair(64 * 1024);
        let mut bytes = flight(&mut client_of(Arc::new(config(&ca, rustls::ALL_VERSIONS))));
        bytes.extend([0x17, 3, 3, 0, 32]);
        bytes.extend([7; 32]);
        send(&mut bad, bytes.into()).await;
        accept(io, BytesMut::new(), &server, None).await.unwrap_err();

        // First the record's head alone: it is looked at when it is not all there.
        for part in [&second[..1], &second[1..], rest] {
            send(&mut peer, Bytes::copy_from_slice(part)).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        while client.is_handshaking() {
            let bytes = receive(&mut peer, 1).await.unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        client.writer().write_all(b"ping").unwrap();
        send(&mut peer, flight(&mut client).into()).await;
    };
    tokio::join!(down, up);
}
