//! `x-forwarded-client-cert`: who the client is by its certificate, for the application behind us.
//!
//! pb `HttpConnectionManager.forward_client_cert_details` and `set_current_client_cert_details`. An element is made
//! once per connection and set of details, not per request.

use std::rc::Rc;

use super::request_headers::append_list;
use crate::codec::head::RequestHead;
use crate::codec::name::names;
use crate::config::hcm::{ClientCertDetails, ForwardClientCert, HttpConnectionManager};
use crate::stream_info::ConnectionInfo;
use crate::tls::TlsInfo;
use crate::tls::certificate::{write_hex, write_url_encoded_pem};

/// Keys of the elements in a connection's state, by the set of details.
static KEYS: [u8; 32] = [0; 32];

/// Removes, keeps, sets or extends the header.
pub fn forward(head: &mut RequestHead, connection: &ConnectionInfo, hcm: &HttpConnectionManager) {
    let name = &names::X_FORWARDED_CLIENT_CERT;
    if hcm.forward_client_cert == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    let tls = connection.tls.get().filter(|tls| tls.peer.is_some());
    let Some(tls) = tls.filter(|_| hcm.forward_client_cert != ForwardClientCert::Sanitize) else {
        head.headers.remove(name);
        return;
    };
    if hcm.forward_client_cert == ForwardClientCert::ForwardOnly {
        return;
    }
    let details = hcm.client_cert_details;
    let key = std::ptr::from_ref(&KEYS[details.number()]).addr();
    let element: Rc<Vec<u8>> = connection.state.keyed(key, || element(tls, details));
    if hcm.forward_client_cert == ForwardClientCert::AppendForward {
        append_list(head, name, &element, b",");
    } else {
        head.headers.set(name, &element);
    }
}

fn element(tls: &TlsInfo, details: ClientCertDetails) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(ours) = tls.local_certificate() {
        for uri in ours.uri_sans() {
            field(&mut out, "By=", |out| write_name(uri, out));
        }
    }
    let Some(chain) = &tls.peer else { return out };
    let certificate = chain.certificate();
    if let Some(certificate) = certificate {
        field(&mut out, "Hash=", |out| write_hex(&certificate.sha256, out));
    }
    if details.cert {
        field(&mut out, "Cert=\"", |out| {
            write_url_encoded_pem(chain.leaf(), out);
            out.push(b'"');
        });
    }
    if details.chain {
        field(&mut out, "Chain=\"", |out| {
            for der in chain.certificates() {
                write_url_encoded_pem(der, out);
            }
            out.push(b'"');
        });
    }
    if details.subject {
        // There even where it is empty.
        let subject = certificate.map(|c| c.subject.as_bytes()).unwrap_or_default();
        field(&mut out, "Subject=\"", |out| {
            out.extend_from_slice(subject);
            out.push(b'"');
        });
    }
    if details.uri {
        let mut uris = certificate.into_iter().flat_map(|c| c.uri_sans()).peekable();
        if uris.peek().is_none() {
            field(&mut out, "URI=", |_| {});
        }
        for uri in uris {
            field(&mut out, "URI=", |out| write_name(uri, out));
        }
    }
    if details.dns {
        for dns in certificate.into_iter().flat_map(|c| c.dns_sans()) {
            field(&mut out, "DNS=", |out| write_name(dns, out));
        }
    }
    out
}

fn field(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    if !out.is_empty() {
        out.push(b';');
    }
    out.extend_from_slice(name.as_bytes());
    value(out);
}

/// A name out of a certificate may not end its element nor its line: whoever signed it did not vouch for another one
/// (FAULTS C7).
fn write_name(name: &str, out: &mut Vec<u8>) {
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'"') {
            out.push(byte);
        } else {
            out.push(b'%');
            let start = out.len();
            write_hex(&[byte], out);
            out[start..].make_ascii_uppercase();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::tls::CertificateChain;

    fn chain(sans: &[&str]) -> Option<Arc<CertificateChain>> {
        let mut params = CertificateParams::new(["d.example".to_owned()]).unwrap();
        let uris = sans.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        CertificateChain::new(vec![certificate.der().clone()]).map(Arc::new)
    }

    #[test]
    fn an_element_has_its_parts_in_order() {
        let tls = TlsInfo {
            local: chain(&["spiffe://td/us"]),
            peer: chain(&["spiffe://td/a", "spiffe://td/b,By=x;\n"]),
            ..TlsInfo::default()
        };
        let all =
            ClientCertDetails { subject: true, cert: true, chain: true, dns: true, uri: true };
        let text = String::from_utf8(element(&tls, all)).unwrap();
        let parts: Vec<&str> = text.split(';').collect();
        let starts = ["By=spiffe://td/us", "Hash=", "Cert=\"-----BEGIN", "Chain=\"-----BEGIN"];
        for (part, start) in parts.iter().zip(starts) {
            assert!(part.starts_with(start), "{part}");
        }
        assert_eq!(
            parts[4..],
            [
                "Subject=\"CN=rcgen self signed cert\"",
                "URI=spiffe://td/a",
                "URI=spiffe://td/b%2CBy=x%3B%0A",
                "DNS=d.example",
            ]
        );
        let none = element(&tls, ClientCertDetails::default());
        assert_eq!(none, [parts[0], parts[1]].join(";").into_bytes());
        let nameless = TlsInfo { peer: chain(&[]), ..TlsInfo::default() };
        let uri = ClientCertDetails { uri: true, ..ClientCertDetails::default() };
        assert!(element(&nameless, uri).ends_with(b";URI="));
    }
}
