//! A handshake that failed, and why TLS failed, in the words of Envoy and BoringSSL: `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%` and its upstream kin.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

use super::info::{CertificateChain, TlsInfo};
use super::record::RecordError;
use super::verdict::{Check, Refusal, Verdict};

/// BoringSSL's library number of the SSL routines, as it stands in packed error codes.
const SSL: u32 = 16 << 24;

/// BoringSSL's reasons (`ssl.h`) that can come about here.
const REASONS: &[(u32, &str)] = &[
    (102, "BAD_ALERT"),
    (125, "CERTIFICATE_VERIFY_FAILED"),
    (131, "CLIENTHELLO_PARSE_FAILED"),
    (136, "DATA_LENGTH_TOO_LONG"),
    (137, "DECODE_ERROR"),
    (139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
    (142, "DIGEST_CHECK_FAILED"),
    (146, "ENCRYPTED_LENGTH_TOO_LONG"),
    (150, "EXCESSIVE_MESSAGE_SIZE"),
    (155, "HTTPS_PROXY_REQUEST"),
    (156, "HTTP_REQUEST"),
    (182, "NO_RENEGOTIATION"),
    (184, "NO_SHARED_CIPHER"),
    (192, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    (219, "TOO_MANY_EMPTY_FRAGMENTS"),
    (223, "UNEXPECTED_MESSAGE"),
    (225, "UNEXPECTED_RECORD"),
    (240, "UNSUPPORTED_PROTOCOL"),
    (247, "WRONG_VERSION_NUMBER"),
    (253, "NO_COMMON_SIGNATURE_ALGORITHMS"),
    (255, "EXCESS_HANDSHAKE_DATA"),
    (266, "NO_SHARED_GROUP"),
    (302, "KEY_USAGE_BIT_INCORRECT"),
];

/// What is counted of a handshake that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A secret is missing: no handshake was tried.
    NotReady,
    /// The peer left, or the socket failed.
    Closed,
    NoCertificate,
    Refused(Check),
    Protocol,
}

/// A handshake that failed.
#[derive(Debug, Clone)]
pub struct HandshakeFailure {
    pub cause: Cause,
    /// As Envoy words it; empty where the peer just left.
    pub reason: Arc<str>,
    /// What was established by then. The peer is not validated.
    pub info: Option<Arc<TlsInfo>>,
    /// The peer's certificates that were refused.
    pub(super) peer: Option<Arc<CertificateChain>>,
}

impl HandshakeFailure {
    pub(super) fn closed() -> Self {
        Self::of(Cause::Closed, "")
    }

    pub(super) fn not_ready() -> Self {
        Self::of(Cause::NotReady, "TLS error: Secret is not supplied by SDS")
    }

    pub(super) fn of(cause: Cause, reason: impl Into<Arc<str>>) -> Self {
        Self { cause, reason: reason.into(), info: None, peer: None }
    }

    pub(super) fn new(error: &Error) -> Self {
        let refusal = Verdict::take().refusal;
        Self::with(error, refusal)
    }

    /// A session that is not resumed.
    pub(super) fn refused(refusal: Refusal, info: &TlsInfo) -> Self {
        let failure = Self::with(&refusal.error.clone(), Some(refusal));
        Self { info: Some(Arc::new(info.clone())), ..failure }
    }

    fn with(error: &Error, refusal: Option<Refusal>) -> Self {
        let detail = refusal.as_ref().map(|refusal| &*refusal.detail);
        let cause = match (&refusal, error) {
            (Some(refusal), _) => Cause::Refused(refusal.check),
            (None, Error::NoCertificatesPresented) => Cause::NoCertificate,
            (None, Error::InvalidCertificate(_)) => Cause::Refused(Check::Chain),
            (None, _) => Cause::Protocol,
        };
        let reason = match cause {
            Cause::Refused(Check::KeyUsage) => openssl("KEY_USAGE_BIT_INCORRECT"),
            _ => of_handshake(error, detail),
        };
        Self { peer: refusal.and_then(|refusal| refusal.peer), ..Self::of(cause, reason) }
    }
}

impl From<io::Error> for HandshakeFailure {
    fn from(_: io::Error) -> Self {
        Self::closed()
    }
}

/// Envoy's text of one of BoringSSL's errors.
pub(super) fn openssl(reason: &str) -> String {
    let number = REASONS.iter().find(|(_, name)| *name == reason).map_or(0, |(number, _)| *number);
    text(number, reason, "")
}

fn text(number: u32, reason: &str, detail: &str) -> String {
    let code = SSL | number;
    let colon = if detail.is_empty() { "" } else { ":" };
    format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{reason}{colon}{detail}:TLS_error_end")
}

/// A record that cannot be taken.
pub(super) fn of_record(error: RecordError) -> String {
    openssl(match error {
        RecordError::TooLong => "ENCRYPTED_LENGTH_TOO_LONG",
        RecordError::NotTls => "WRONG_VERSION_NUMBER",
        RecordError::BadMac => "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
        RecordError::NoKey | RecordError::KeyExhausted => "DATA_LENGTH_TOO_LONG",
    })
}

/// A fatal alert of the peer.
pub(super) fn of_alert(alert: AlertDescription) -> String {
    // BoringSSL's reasons for alerts: 1000 and the alert's number; the older ones are named after SSL 3.
    let name = match u8::from(alert) {
        10 => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        20 => "SSLV3_ALERT_BAD_RECORD_MAC",
        21 => "TLSV1_ALERT_DECRYPTION_FAILED",
        22 => "TLSV1_ALERT_RECORD_OVERFLOW",
        30 => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
        40 => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        41 => "SSLV3_ALERT_NO_CERTIFICATE",
        42 => "SSLV3_ALERT_BAD_CERTIFICATE",
        43 => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        44 => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        45 => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        46 => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        47 => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        48 => "TLSV1_ALERT_UNKNOWN_CA",
        49 => "TLSV1_ALERT_ACCESS_DENIED",
        50 => "TLSV1_ALERT_DECODE_ERROR",
        51 => "TLSV1_ALERT_DECRYPT_ERROR",
        60 => "TLSV1_ALERT_EXPORT_RESTRICTION",
        70 => "TLSV1_ALERT_PROTOCOL_VERSION",
        71 => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        80 => "TLSV1_ALERT_INTERNAL_ERROR",
        86 => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        90 => "TLSV1_ALERT_USER_CANCELLED",
        100 => "TLSV1_ALERT_NO_RENEGOTIATION",
        109 => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        112 => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        113 => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        115 => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        116 => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        120 => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "UNKNOWN_ALERT_TYPE",
    };
    text(1000 + u32::from(u8::from(alert)), name, "")
}

/// A certificate that was refused; `detail` says why.
fn of_certificate(detail: &str) -> String {
    text(125, "CERTIFICATE_VERIFY_FAILED", detail)
}

/// A handshake that rustls has ended. `refusal` is what the verifier of this thread said last.
pub(super) fn of_handshake(error: &Error, refusal: Option<&str>) -> String {
    if let Some(detail) = refusal {
        return of_certificate(detail);
    }
    match error {
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::NoCertificatesPresented => text(
            192,
            "PEER_DID_NOT_RETURN_A_CERTIFICATE",
            "peer did not provide required client certificate",
        ),
        Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => {
            openssl("WRONG_VERSION_NUMBER")
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => openssl("UNEXPECTED_RECORD"),
        Error::InvalidMessage(InvalidMessage::MessageTooLarge) => {
            openssl("ENCRYPTED_LENGTH_TOO_LONG")
        }
        Error::InvalidMessage(_) => openssl("DECODE_ERROR"),
        Error::InappropriateMessage { .. } => openssl("UNEXPECTED_RECORD"),
        Error::InappropriateHandshakeMessage { .. } => openssl("UNEXPECTED_MESSAGE"),
        Error::DecryptError => openssl("DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        Error::PeerIncompatible(why) => openssl(match why {
            PeerIncompatible::NoCipherSuitesInCommon => "NO_SHARED_CIPHER",
            PeerIncompatible::NoKxGroupsInCommon => "NO_SHARED_GROUP",
            PeerIncompatible::NoSignatureSchemesInCommon => "NO_COMMON_SIGNATURE_ALGORITHMS",
            _ => "UNSUPPORTED_PROTOCOL",
        }),
        Error::InvalidCertificate(_) => of_certificate(""),
        _ => openssl("DECODE_ERROR"),
    }
}

/// What BoringSSL says of first bytes that are no ClientHello, and the alert that it sends.
pub(super) fn of_no_hello(heard: &[u8]) -> Option<(String, Option<AlertDescription>)> {
    use AlertDescription as Alert;
    const SSL2_HELLO: u8 = 0x80;
    let (reason, alert) = if heard.starts_with(b"CONNE") {
        ("HTTPS_PROXY_REQUEST", None)
    } else if is_http(heard) {
        ("HTTP_REQUEST", None)
    } else {
        match *heard {
            [SSL2_HELLO, _, 1, ..] => ("CLIENTHELLO_PARSE_FAILED", Some(Alert::DecodeError)),
            [_, major, ..] if major != 3 => ("WRONG_VERSION_NUMBER", Some(Alert::ProtocolVersion)),
            [22, _, _, high, ..] if high >= 0x48 => {
                ("ENCRYPTED_LENGTH_TOO_LONG", Some(Alert::RecordOverflow))
            }
            [22, _, _, _, _, kind, ..] if kind != 1 => {
                ("UNEXPECTED_MESSAGE", Some(Alert::UnexpectedMessage))
            }
            [22, ..] => ("CLIENTHELLO_PARSE_FAILED", Some(Alert::DecodeError)),
            [21, _, _, _, _, _, alert, ..] => return Some((of_alert(alert.into()), None)),
            [_, _, ..] => ("UNEXPECTED_RECORD", Some(Alert::UnexpectedMessage)),
            _ => return None,
        }
    };
    Some((openssl(reason), alert))
}

/// A fatal alert in the clear.
pub(super) fn plain_alert(alert: AlertDescription) -> Vec<u8> {
    vec![21, 3, 1, 0, 2, 2, alert.into()]
}

/// rustls has alerts of TLS 1.3 in TLS 1.2, too.
pub(super) fn amend_alert(error: &Error, outgoing: &mut Vec<u8>) {
    match error {
        // RFC 5246 §7.4.6.
        Error::NoCertificatesPresented => {
            if let Some(alert) = outgoing.last_mut() {
                *alert = AlertDescription::HandshakeFailure.into();
            }
        }
        // A key that may not sign: BoringSSL just closes.
        Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme) => {
            outgoing.clear();
        }
        _ => {}
    }
}

/// As BoringSSL knows plain HTTP: by the beginnings of a few methods.
fn is_http(heard: &[u8]) -> bool {
    [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "].iter().any(|method| heard.starts_with(method))
}
