//! Handshakes of our two ends over memory, with certificates of every kind.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType as RcSan, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

use super::context::{ClientSettings, CommonTls, ServerSettings, Validation};
use super::failure::{Cause, HandshakeFailure};
use super::handshake::{ClientRequest, accept, connect};
use super::material::TlsCertificate;
use super::secrets::{Secret, SecretKind, SecretSource, SecretUse, Secrets};
use super::stats::Established;
use super::suites;
use super::validation::{SanMatcher, SanType, ValidationContext};
use super::verdict::Check;
use super::{ClientContext, ServerContext, TlsStream};
use crate::config::matcher::{StringMatcher, StringPattern};
use crate::io::Io;

mod resumption;

type Ca = CertifiedIssuer<'static, KeyPair>;
type Shaken = Result<(TlsStream, Established), HandshakeFailure>;

const ALICE: &str = "spiffe://cluster.local/ns/default/sa/alice";

fn ca(name: &str) -> Ca {
    ca_with(name, |_| {})
}

fn ca_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(ca: &Ca, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<TlsCertificate> {
    let mut params = CertificateParams::default();
    if !uri.is_empty() {
        params.subject_alt_names.push(RcSan::URI(uri.try_into().unwrap()));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, ca).unwrap().pem();
    let key = key.serialize_pem();
    Arc::new(TlsCertificate::from_pem(pem.as_bytes(), key.as_bytes(), "<inline>").unwrap())
}

fn trusting(ca: &Ca) -> ValidationContext {
    let prefix = StringPattern::Prefix(Box::from(&b"spiffe://cluster.local/"[..]));
    ValidationContext {
        trusted_ca: Some(vec![CertificateDer::from(ca.der().to_vec())].into()),
        sans: vec![SanMatcher {
            kind: SanType::Uri,
            matcher: StringMatcher::new(prefix, false),
            exact_dns: None,
        }],
        ..ValidationContext::default()
    }
}

fn filled(secret: Secret) -> SecretUse {
    let slot = Secrets::default().slot("", &SecretSource::Inline, secret.kind());
    slot.fill(secret).unwrap();
    slot.into()
}

fn common(certificates: &[Arc<TlsCertificate>], validation: ValidationContext) -> CommonTls {
    CommonTls {
        tls12: true,
        tls13: true,
        suites: suites::default_tls12_suites(),
        groups: suites::default_groups(),
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        certificates: certificates.iter().cloned().map(Secret::Certificate).map(filled).collect(),
        validation: Validation { fixed: Some(Arc::new(validation)), secret: None },
    }
}

fn server(common: CommonTls) -> Arc<ServerContext> {
    server_of(common, true)
}

fn server_of(common: CommonTls, require_client_certificate: bool) -> Arc<ServerContext> {
    ServerContext::new(ServerSettings {
        common,
        require_client_certificate,
        tickets: true,
        stateful: true,
        prefer_client_ciphers: false,
        full_scan_certs_on_sni_mismatch: false,
    })
    .unwrap()
}

fn client(common: CommonTls, change: impl FnOnce(&mut ClientSettings)) -> Arc<ClientContext> {
    let mut settings = ClientSettings {
        common,
        sni: "outbound_.80_._.x.default.svc.cluster.local".into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
    };
    change(&mut settings);
    ClientContext::new(settings).unwrap()
}

async fn shake(server: &ServerContext, client: &ClientContext) -> (Shaken, Shaken) {
    let (a, b) = Io::pair(64 * 1024);
    let request = ClientRequest::default();
    tokio::join!(accept(a, BytesMut::new(), server, None), connect(b, client, &request))
}

fn io(shaken: Shaken) -> Io {
    Io::from(shaken.unwrap().0)
}

async fn send(io: &mut Io, mut bytes: Bytes) {
    poll_fn(|cx| {
        while !bytes.is_empty() {
            match io.poll_write(cx, &bytes) {
                Poll::Ready(n) => drop(bytes.split_to(n.unwrap())),
                Poll::Pending => return Poll::Pending,
            }
        }
        io.poll_flush(cx).map(|flushed| flushed.unwrap())
    })
    .await;
}

async fn receive(io: &mut Io, length: usize) -> std::io::Result<BytesMut> {
    let mut got = BytesMut::new();
    while got.len() < length {
        got.reserve(16 * 1024);
        if poll_fn(|cx| io.poll_read(cx, &mut got)).await? == 0 {
            break;
        }
    }
    Ok(got)
}

#[tokio::test]
async fn both_ends_know_each_other_and_bytes_pass() {
    let ca = ca("root");
    let (alice, bob) = (leaf(&ca, ALICE, |_| {}), leaf(&ca, "spiffe://cluster.local/bob", |_| {}));
    for (tls12, tls13) in [(true, false), (false, true)] {
        let versions = |mut common: CommonTls| {
            (common.tls12, common.tls13) = (tls12, tls13);
            common
        };
        let server = server(versions(common(std::slice::from_ref(&bob), trusting(&ca))));
        let client = client(versions(common(std::slice::from_ref(&alice), trusting(&ca))), |_| {});
        let (down, up) = shake(&server, &client).await;
        let (mut down, mut up) = (io(down), io(up));
        let info = down.tls().unwrap().clone();
        assert_eq!(info.version, if tls13 { "TLSv1.3" } else { "TLSv1.2" });
        assert_eq!(info.alpn.as_deref(), Some("h2"));
        assert_eq!(info.sni.as_deref(), Some("outbound_.80_._.x.default.svc.cluster.local"));
        assert!(info.peer_validated && !info.resumed);
        assert_eq!(info.peer.as_ref().unwrap().leaf(), alice.chain.leaf());
        assert_eq!(info.local.as_ref().unwrap().leaf(), bob.chain.leaf());
        assert_eq!(up.tls().unwrap().peer.as_ref().unwrap().leaf(), bob.chain.leaf());
        let bulk: Bytes = (0..1_000_000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
        let (_, got) = tokio::join!(send(&mut up, bulk.clone()), receive(&mut down, bulk.len()));
        assert!(got.unwrap() == bulk);
        send(&mut down, Bytes::from_static(b"answer")).await;
        assert_eq!(&receive(&mut up, 6).await.unwrap()[..], b"answer");
        // An end passes as an end, and the other direction goes on.
        poll_fn(|cx| up.poll_shutdown(cx)).await.unwrap();
        assert!(receive(&mut down, 1).await.unwrap().is_empty());
        send(&mut down, Bytes::from_static(b"more")).await;
        assert_eq!(&receive(&mut up, 4).await.unwrap()[..], b"more");
        drop(down);
        assert!(receive(&mut up, 1).await.unwrap().is_empty());
    }
}

/// A client of rustls that sends at once whatever it has after its Finished.
#[tokio::test]
async fn what_comes_in_one_read_with_the_end_of_the_handshake_is_not_lost() {
    let ca = ca("root");
    let named = leaf(&ca, ALICE, |params| {
        params.subject_alt_names.push(RcSan::DnsName("alice.example".try_into().unwrap()));
    });
    let mut context = common(&[named], trusting(&ca));
    context.validation = Validation { fixed: Some(Arc::default()), secret: None };
    let server = server_of(context, false);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
    let config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = "alice.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let (io, mut peer) = Io::pair(64 * 1024);
    let down = async {
        let mut down = Io::from(accept(io, BytesMut::new(), &server, None).await.unwrap().0);
        assert_eq!(&receive(&mut down, 4).await.unwrap()[..], b"ping");
        send(&mut down, Bytes::from_static(b"pong")).await;
        assert!(receive(&mut down, 1).await.unwrap().is_empty());
    };
    let up = async {
        let mut flight = Vec::new();
        while client.is_handshaking() {
            client.write_tls(&mut flight).unwrap();
            if client.wants_read() && client.is_handshaking() {
                send(&mut peer, std::mem::take(&mut flight).into()).await;
                let bytes = receive(&mut peer, 1).await.unwrap();
                client.read_tls(&mut &bytes[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"ping").unwrap();
        while client.write_tls(&mut flight).unwrap() > 0 {}
        send(&mut peer, flight.into()).await;
        let mut got = Vec::new();
        while got.len() < 4 {
            let bytes = receive(&mut peer, 1).await.unwrap();
            assert!(!bytes.is_empty());
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
            let _ = client.reader().read_to_end(&mut got);
        }
        assert_eq!(got, b"pong");
        client.send_close_notify();
        let mut end = Vec::new();
        client.write_tls(&mut end).unwrap();
        send(&mut peer, end.into()).await;
    };
    tokio::join!(down, up);
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_refused_with_the_reason() {
    let (ca, other) = (ca("root"), ca("other"));
    let bob = leaf(&ca, "spiffe://cluster.local/bob", |_| {});
    let server = server(common(&[bob], trusting(&ca)));
    let expired = |p: &mut CertificateParams| {
        (p.not_before, p.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    };
    let wrong_use = |p: &mut CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let is_ca = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cases = [
        (leaf(&other, ALICE, |_| {}), Check::Chain, "unable to get local issuer certificate"),
        (leaf(&ca, ALICE, expired), Check::Chain, "certificate has expired"),
        (leaf(&ca, ALICE, wrong_use), Check::Chain, "unsupported certificate purpose"),
        (leaf(&ca, ALICE, is_ca), Check::Chain, "invalid CA certificate"),
        (leaf(&ca, "spiffe://other/a", |_| {}), Check::San, "SANs are [spiffe://other/a]"),
        (leaf(&ca, "", |_| {}), Check::San, "SANs are []"),
    ];
    for (certificate, check, reason) in cases {
        let client = client(common(&[certificate], trusting(&ca)), |_| {});
        let (down, up) = shake(&server, &client).await;
        let failure = down.err().unwrap();
        assert_eq!(failure.cause, Cause::Refused(check), "{reason}");
        assert!(failure.reason.contains(reason), "{}", failure.reason);
        // In TLS 1.3 the client has finished before it is refused.
        let mut up = io(up);
        assert!(receive(&mut up, 1).await.is_err());
        assert!(up.transport_failure().unwrap().contains("ALERT"));
    }
    let nobody = client(common(&[], trusting(&ca)), |_| {});
    let (down, _) = shake(&server, &nobody).await;
    assert_eq!(down.err().unwrap().cause, Cause::NoCertificate);
}

#[tokio::test]
async fn a_trusted_certificate_signs_only_as_it_says() {
    let pinned = |p: &mut CertificateParams| p.is_ca = IsCa::NoCa;
    let expired = |p: &mut CertificateParams| {
        (p.not_before, p.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    };
    let cases = [
        (ca("issuer"), None),
        (ca_with("issuer", pinned), Some("unable to get local issuer certificate")),
        (ca_with("issuer", expired), Some("certificate has expired")),
    ];
    let root = ca("root");
    let server_leaf = leaf(&root, "spiffe://cluster.local/bob", |_| {});
    for (issuer, reason) in cases {
        let server = server(common(std::slice::from_ref(&server_leaf), trusting(&issuer)));
        let alice = leaf(&issuer, ALICE, |_| {});
        let (down, _) = shake(&server, &client(common(&[alice], trusting(&root)), |_| {})).await;
        match reason {
            None => assert!(down.is_ok()),
            Some(reason) => {
                let failure = down.err().unwrap();
                assert!(failure.reason.contains(reason), "{}", failure.reason);
            }
        }
    }
}

#[test]
fn a_key_that_may_not_sign_is_no_key_of_ours() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    for may in [false, true] {
        if may {
            params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        }
        let pem = params.self_signed(&key).unwrap().pem();
        let pair =
            TlsCertificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes(), "<inline>");
        assert_eq!(pair.is_ok(), may);
    }
}

#[tokio::test]
async fn no_protocol_in_common_is_no_protocol() {
    let ca = ca("root");
    let certificate = leaf(&ca, ALICE, |_| {});
    let server = server(common(std::slice::from_ref(&certificate), trusting(&ca)));
    let mut theirs = common(&[certificate], trusting(&ca));
    theirs.alpn = vec![b"istio".to_vec()];
    let (down, up) = shake(&server, &client(theirs, |_| {})).await;
    assert_eq!(
        (io(down).tls().unwrap().alpn.clone(), io(up).tls().unwrap().alpn.clone()),
        (None, None)
    );
}

#[tokio::test]
async fn a_secret_is_waited_for_replaced_and_kept() {
    let ca = ca("root");
    let secrets = Secrets::default();
    let source = SecretSource::Discovered(crate::config::source::Source::Ads);
    let slot = secrets.slot("default", &source, SecretKind::Certificate);
    assert!(Arc::ptr_eq(&slot, &secrets.slot("default", &source, SecretKind::Certificate)));
    assert_eq!(secrets.wanted().len(), 1);
    let first = leaf(&ca, ALICE, |_| {});
    let mut settings = common(&[], trusting(&ca));
    settings.certificates = vec![slot.clone().into()];
    let server = server(settings);
    let client = client(common(std::slice::from_ref(&first), trusting(&ca)), |_| {});
    let (down, _) = shake(&server, &client).await;
    assert_eq!(down.err().unwrap().cause, Cause::NotReady);
    assert!(!server.is_ready() && !slot.is_filled());
    let publish = |certificate: &Arc<TlsCertificate>| {
        secrets.publish("default", &source, Ok(Secret::Certificate(certificate.clone())))
    };
    publish(&first).unwrap();
    let (mut down, mut up) = {
        let (down, up) = shake(&server, &client).await;
        (io(down), io(up))
    };
    assert_eq!(down.tls().unwrap().local.as_ref().unwrap().leaf(), first.chain.leaf());
    let expired = leaf(&ca, ALICE, |p| {
        (p.not_before, p.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    });
    assert!(publish(&expired).unwrap_err().to_string().contains("has expired"));
    assert!(secrets.publish("default", &source, Err("no key".into())).is_err());
    let second = leaf(&ca, ALICE, |_| {});
    publish(&second).unwrap();
    let (later, _) = shake(&server, &client).await;
    assert_eq!(io(later).tls().unwrap().local.as_ref().unwrap().leaf(), second.chain.leaf());
    // The old connection goes on.
    send(&mut up, Bytes::from_static(b"still")).await;
    assert_eq!(&receive(&mut down, 5).await.unwrap()[..], b"still");
    drop((server, slot));
    assert!(secrets.wanted().is_empty());
}

#[tokio::test]
async fn what_is_no_hello_is_answered_and_closed() {
    let ca = ca("root");
    let server = server(common(&[leaf(&ca, ALICE, |_| {})], trusting(&ca)));
    let cases: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP_REQUEST"),
        (&[0; 64], "WRONG_VERSION_NUMBER"),
        (&[22, 3, 1, 0xff, 0xff, 1], "ENCRYPTED_LENGTH_TOO_LONG"),
        (&[22, 3, 1, 0, 4, 2, 0, 0, 0], "UNEXPECTED_MESSAGE"),
    ];
    for (bytes, reason) in cases {
        let (io, mut peer) = Io::pair(1024);
        send(&mut peer, Bytes::copy_from_slice(bytes)).await;
        let failure = accept(io, BytesMut::new(), &server, None).await.err().unwrap();
        assert_eq!(failure.cause, Cause::Protocol);
        assert!(failure.reason.contains(reason), "{}", failure.reason);
    }
    // Who leaves in the middle is not counted.
    let (io, mut peer) = Io::pair(1024);
    send(&mut peer, Bytes::from_static(&[22, 3, 1])).await;
    drop(peer);
    let failure = accept(io, BytesMut::new(), &server, None).await.err().unwrap();
    assert_eq!((failure.cause, &*failure.reason), (Cause::Closed, ""));
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let ca = ca("root");
    let named = |name: &str| {
        leaf(&ca, "", |p| p.subject_alt_names.push(RcSan::DnsName(name.try_into().unwrap())))
    };
    let all = [named("first.example"), named("exact.example"), named("*.wild.example")];
    let mut settings = common(&all, ValidationContext::default());
    settings.validation.fixed = None;
    let server = ServerContext::new(ServerSettings {
        common: settings,
        require_client_certificate: false,
        tickets: false,
        stateful: false,
        prefer_client_ciphers: false,
        full_scan_certs_on_sni_mismatch: false,
    })
    .unwrap();
    let cases = [
        ("exact.example", 1),
        ("EXACT.example", 1),
        ("a.wild.example", 2),
        ("a.b.wild.example", 0),
        ("other.example", 0),
        ("", 0),
    ];
    for (name, expected) in cases {
        let mut theirs = common(&[], ValidationContext::default());
        theirs.validation.fixed = None;
        let client = client(theirs, |settings| settings.sni = name.into());
        let (_, up) = shake(&server, &client).await;
        let info = io(up).tls().unwrap().clone();
        assert_eq!(info.peer.as_ref().unwrap().leaf(), all[expected].chain.leaf(), "{name}");
        assert!(!info.peer_validated);
    }
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<TlsStream>() <= 2048, "{}", size_of::<TlsStream>());
}

/// Anybody can write any name into a certificate of their own.
#[test]
fn names_are_checked_only_under_a_trusted_ca() {
    let authority = ca("root");
    let certificate = leaf(&authority, "spiffe://cluster.local/ns/default/sa/bob", |_| {});
    let validation = ValidationContext { trusted_ca: None, ..trusting(&authority) };
    let settings = ServerSettings {
        common: common(std::slice::from_ref(&certificate), validation),
        require_client_certificate: true,
        tickets: true,
        stateful: true,
        prefer_client_ciphers: false,
        full_scan_certs_on_sni_mismatch: false,
    };
    let error = ServerContext::new(settings).unwrap_err();
    assert!(error.to_string().contains("without trusted CA"), "{error}");
}
