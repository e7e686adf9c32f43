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

/// The limit is one of the data, not of how often it is looked at.
#[tokio::test]
async fn early_data_for_another_server_is_passed_over() {
    let ca = ca("root");
    let named = leaf(&ca, ALICE, |params| {
        params.subject_alt_names.push(RcSan::DnsName("alice.example".try_into().unwrap()));
    });
    let mut other = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*named.key).clone())));
    other.max_early_data_size = 14 * 1024;
    other.session_storage = ServerSessionMemoryCache::new(32);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.enable_early_data = true;
    config.max_fragment_size = Some(512);
    let config = Arc::new(config);
    let name = ServerName::try_from("alice.example").unwrap();
    let mut first = ClientConnection::new(config.clone(), name.clone()).unwrap();
    let mut other = ServerConnection::new(Arc::new(other)).unwrap();
    while first.is_handshaking() || other.is_handshaking() {
        pass(&mut first, &mut other);
        pass(&mut other, &mut first);
    }

    let mut context = common(&[named], trusting(&ca));
    context.validation = Validation { fixed: Some(Arc::default()), secret: None };
    let server = server_of(context, false);
    let mut client = ClientConnection::new(config, name).unwrap();
    assert_eq!(client.early_data().unwrap().write(&[7; 13 * 1024]).unwrap(), 13 * 1024);
    let (io, mut peer) = Io::pair(64 * 1024);
    let down = async {
        let mut down = Io::from(accept(io, BytesMut::new(), &server, None).await.unwrap().0);
        assert_eq!(&receive(&mut down, 4).await.unwrap()[..], b"ping");
    };
    let up = async {
        let mut flight = Vec::new();
        while client.is_handshaking() {
            while client.write_tls(&mut flight).unwrap() > 0 {}
            send(&mut peer, std::mem::take(&mut flight).into()).await;
            if client.is_handshaking() {
                let bytes = receive(&mut peer, 1).await.unwrap();
                assert!(!bytes.is_empty(), "refused");
                client.read_tls(&mut &bytes[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        assert!(!client.is_early_data_accepted());
        client.writer().write_all(b"ping").unwrap();
        while client.write_tls(&mut flight).unwrap() > 0 {}
        send(&mut peer, flight.into()).await;
    };
    tokio::join!(down, up);
}
