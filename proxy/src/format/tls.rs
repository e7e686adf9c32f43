//! Operators over TLS: what a handshake established and what the certificates say.
//!
//! A value that is empty counts as none, as in Envoy. Names out of certificates are escaped where they would break a
//! line or a header.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::operator::{Kind, Shape};
use super::parse::{FormatError, Syntax};
use super::table::Build;
use super::time::TimeFormat;
use crate::listener::tls_inspector::NotTls;
use crate::stream_info::{StreamInfo, TlsInspection};
use crate::tls::certificate::{
    fingerprint_1, fingerprint_256, serial, write_hex, write_url_encoded_pem,
};
use crate::tls::{Certificate, CertificateChain, SubjectAltName, TlsInfo};

/// Which of a stream's two connections.
pub(super) type Side = fn(&StreamInfo) -> Option<&TlsInfo>;

/// Appends a value, or nothing.
pub(super) type Write = fn(&TlsInfo, &mut Vec<u8>);

/// A moment of a certificate.
pub(super) type Moment = fn(&Certificate) -> i64;

fn downstream(info: &StreamInfo) -> Option<&TlsInfo> {
    info.connection.tls.get().map(|tls| &**tls)
}

fn upstream(info: &StreamInfo) -> Option<&TlsInfo> {
    info.upstream.tls.as_deref()
}

/// The operator of a name.
pub(super) fn lookup(command: &str) -> Option<(Syntax, Build)> {
    macro_rules! tls {
        ($side:expr, $write:expr) => {
            (Syntax::Bare, |_| Ok(Kind::Tls { side: $side, write: $write }))
        };
    }
    macro_rules! both {
        ($write:expr) => {
            if command.starts_with("DOWNSTREAM_") {
                tls!(downstream, $write)
            } else {
                tls!(upstream, $write)
            }
        };
    }
    let of = command.strip_prefix("DOWNSTREAM_").or_else(|| command.strip_prefix("UPSTREAM_"))?;
    Some(match of {
        "TLS_VERSION" => both!(|tls, out| out.extend_from_slice(tls.version.as_bytes())),
        "TLS_CIPHER" => both!(|tls, out| out.extend_from_slice(tls.cipher.as_bytes())),
        "TLS_SESSION_ID" => both!(|tls, out| {
            out.extend_from_slice(tls.session_id.as_deref().unwrap_or_default().as_bytes());
        }),
        "PEER_SUBJECT" => both!(|tls, out| peer(tls, out, |c| &c.subject)),
        "PEER_ISSUER" => both!(|tls, out| peer(tls, out, |c| &c.issuer)),
        "PEER_CERT" => both!(|tls, out| {
            if let Some(chain) = &tls.peer {
                write_url_encoded_pem(chain.leaf(), out);
            }
        }),
        "PEER_URI_SAN" => both!(|tls, out| write_sans(tls.peer_certificate(), uri, out)),
        "PEER_DNS_SAN" => both!(|tls, out| write_sans(tls.peer_certificate(), dns, out)),
        "PEER_IP_SAN" => both!(|tls, out| write_ips(tls.peer_certificate(), out)),
        "LOCAL_URI_SAN" => both!(|tls, out| write_sans(tls.local_certificate(), uri, out)),
        "LOCAL_DNS_SAN" => both!(|tls, out| write_sans(tls.local_certificate(), dns, out)),
        "LOCAL_IP_SAN" => both!(|tls, out| write_ips(tls.local_certificate(), out)),
        "PEER_CERT_V_START" if command.starts_with('D') => {
            (Syntax::Optional, |p| moment(downstream, |c| c.not_before, p))
        }
        "PEER_CERT_V_END" if command.starts_with('D') => {
            (Syntax::Optional, |p| moment(downstream, |c| c.not_after, p))
        }
        "PEER_CERT_V_START" => (Syntax::Optional, |p| moment(upstream, |c| c.not_before, p)),
        "PEER_CERT_V_END" => (Syntax::Optional, |p| moment(upstream, |c| c.not_after, p)),
        _ if command.starts_with('D') => return of_client(of),
        _ => return None,
    })
}

/// What there is only of the client's connection.
fn of_client(of: &str) -> Option<(Syntax, Build)> {
    macro_rules! tls {
        ($write:expr) => {
            (Syntax::Bare, |_| Ok(Kind::Tls { side: downstream, write: $write }))
        };
    }
    Some(match of {
        "LOCAL_SUBJECT" => tls!(|tls, out| {
            if let Some(certificate) = tls.local_certificate() {
                out.extend_from_slice(certificate.subject.as_bytes());
            }
        }),
        "PEER_EMAIL_SAN" => tls!(|tls, out| write_sans(tls.peer_certificate(), email, out)),
        "PEER_OTHERNAME_SAN" => tls!(|tls, out| write_sans(tls.peer_certificate(), other, out)),
        "LOCAL_EMAIL_SAN" => tls!(|tls, out| write_sans(tls.local_certificate(), email, out)),
        "LOCAL_OTHERNAME_SAN" => tls!(|tls, out| write_sans(tls.local_certificate(), other, out)),
        "PEER_SERIAL" => tls!(|tls, out| peer(tls, out, |c| &c.serial)),
        "PEER_FINGERPRINT_256" => tls!(|tls, out| {
            if let Some(chain) = &tls.peer {
                write_hex(&fingerprint_256(chain.leaf()), out);
            }
        }),
        "PEER_FINGERPRINT_1" => tls!(|tls, out| {
            if let Some(chain) = &tls.peer {
                write_hex(&fingerprint_1(chain.leaf()), out);
            }
        }),
        "PEER_CHAIN_FINGERPRINTS_256" => tls!(|tls, out| {
            write_chain(tls.peer.as_deref(), out, |der, out| write_hex(&fingerprint_256(der), out));
        }),
        "PEER_CHAIN_FINGERPRINTS_1" => tls!(|tls, out| {
            write_chain(tls.peer.as_deref(), out, |der, out| write_hex(&fingerprint_1(der), out));
        }),
        "PEER_CHAIN_SERIALS" => tls!(|tls, out| {
            write_chain(tls.peer.as_deref(), out, |der, out| {
                out.extend_from_slice(serial(der).unwrap_or_default().as_bytes());
            });
        }),
        "TRANSPORT_FAILURE_REASON" => (Syntax::Bare, |_| Ok(Kind::ClientTransportFailure)),
        _ => return None,
    })
}

fn moment(side: Side, of: Moment, pattern: &str) -> Result<Kind, FormatError> {
    let format = TimeFormat::compile(pattern, false).map_err(|_| FormatError::Newline)?;
    Ok(Kind::CertificateTime { side, of, format })
}

pub(super) fn write(info: &StreamInfo, side: Side, write: Write, out: &mut Vec<u8>) -> Shape {
    let start = out.len();
    if let Some(tls) = side(info) {
        write(tls, out);
    }
    if out.len() > start { Shape::Text } else { Shape::Missing }
}

pub(super) fn write_time(
    info: &StreamInfo,
    side: Side,
    of: Moment,
    format: &TimeFormat,
    out: &mut Vec<u8>,
) -> Shape {
    let Some(certificate) = side(info).and_then(TlsInfo::peer_certificate) else {
        return Shape::Missing;
    };
    format.write(system_time(of(certificate)), out);
    Shape::Text
}

fn system_time(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(seconds.unsigned_abs());
    let time =
        if seconds < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    time.unwrap_or(UNIX_EPOCH)
}

/// Why the client's handshake failed, or why the inspector found none.
pub(super) fn client_failure(info: &StreamInfo) -> Option<&str> {
    if let Some(reason) = info.connection.transport_failure.get() {
        return Some(reason);
    }
    // Of the connection: a stream of HTTP does not have it.
    let inspected = info.connection.tls_inspection;
    let (TlsInspection::NotFound(reason), None) = (inspected, info.protocol) else { return None };
    Some(match reason {
        NotTls::HttpRequest => {
            "TLS_error|error:1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end"
        }
        NotTls::HttpsProxyRequest => {
            "TLS_error|error:1000009b:SSL routines:OPENSSL_internal:HTTPS_PROXY_REQUEST:TLS_error_end"
        }
        NotTls::WrongVersion => {
            "TLS_error|error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"
        }
        NotTls::RecordTooLong => {
            "TLS_error|error:10000092:SSL routines:OPENSSL_internal:ENCRYPTED_LENGTH_TOO_LONG:TLS_error_end"
        }
        NotTls::TooLong => {
            "TLS_error|error:10000096:SSL routines:OPENSSL_internal:EXCESSIVE_MESSAGE_SIZE:TLS_error_end"
        }
        NotTls::Unexpected => {
            "TLS_error|error:100000df:SSL routines:OPENSSL_internal:UNEXPECTED_MESSAGE:TLS_error_end"
        }
        NotTls::Malformed => {
            "TLS_error|error:10000083:SSL routines:OPENSSL_internal:CLIENTHELLO_PARSE_FAILED:TLS_error_end"
        }
    })
}

fn peer(tls: &TlsInfo, out: &mut Vec<u8>, of: fn(&Certificate) -> &str) {
    if let Some(certificate) = tls.peer_certificate() {
        out.extend_from_slice(of(certificate).as_bytes());
    }
}

fn uri(name: &SubjectAltName) -> Option<&str> {
    if let SubjectAltName::Uri(uri) = name { Some(uri) } else { None }
}

fn dns(name: &SubjectAltName) -> Option<&str> {
    if let SubjectAltName::Dns(dns) = name { Some(dns) } else { None }
}

fn email(name: &SubjectAltName) -> Option<&str> {
    if let SubjectAltName::Email(email) = name { Some(email) } else { None }
}

fn other(name: &SubjectAltName) -> Option<&str> {
    if let SubjectAltName::Other(other) = name { Some(other) } else { None }
}

fn write_sans(
    certificate: Option<&Certificate>,
    of: fn(&SubjectAltName) -> Option<&str>,
    out: &mut Vec<u8>,
) {
    let names = certificate.map(|c| &*c.subject_alt_names).unwrap_or_default();
    for (i, name) in names.iter().filter_map(of).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_name(name, out);
    }
}

/// A name out of a certificate, control characters percent-encoded (FAULTS C7, C10).
fn write_name(name: &str, out: &mut Vec<u8>) {
    for byte in name.bytes() {
        if byte.is_ascii_control() {
            out.push(b'%');
            let start = out.len();
            write_hex(&[byte], out);
            out[start..].make_ascii_uppercase();
        } else {
            out.push(byte);
        }
    }
}

fn write_ips(certificate: Option<&Certificate>, out: &mut Vec<u8>) {
    let names = certificate.map(|c| &*c.subject_alt_names).unwrap_or_default();
    let mut text = String::new();
    for name in names {
        if let SubjectAltName::Ip(ip) = name {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{ip}");
        }
    }
    out.extend_from_slice(text.as_bytes());
}

fn write_chain(chain: Option<&CertificateChain>, out: &mut Vec<u8>, each: fn(&[u8], &mut Vec<u8>)) {
    let certificates = chain.map(CertificateChain::certificates).unwrap_or_default();
    for (i, der) in certificates.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        each(der, out);
    }
}
