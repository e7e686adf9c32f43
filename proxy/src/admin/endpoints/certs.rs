//! `/certs`.

use std::time::SystemTime;

use prost::Message;

use super::config_dump_entry::timestamp;

use crate::admin::answer::Answer;
use crate::admin::query::Query;
use crate::admin::{Admin, CertificateDetails};
use crate::config::json::{Style, to_json};
use crate::config::pb::envoy::admin::v3 as pb;
use crate::tls::SubjectAltName;

pub(super) fn certs(admin: &Admin, _: &Query) -> Answer {
    let certificates = admin.state.certificates().into_iter().map(|certificate| pb::Certificate {
        ca_cert: certificate.ca.into_iter().map(details).collect(),
        cert_chain: certificate.chain.into_iter().map(details).collect(),
    });
    let message = pb::Certificates { certificates: certificates.collect() };
    Answer::json(to_json("envoy.admin.v3.Certificates", &message.encode_to_vec(), Style::FULL))
}

fn details(of: CertificateDetails) -> pb::CertificateDetails {
    use pb::subject_alternate_name::Name;
    // Kind by kind, as Envoy lists them.
    let dns = of.subject_alt_names.iter().filter_map(|name| match name {
        SubjectAltName::Dns(dns) => Some(Name::Dns(dns.to_string())),
        _ => None,
    });
    let uri = of.subject_alt_names.iter().filter_map(|name| match name {
        SubjectAltName::Uri(uri) => Some(Name::Uri(uri.to_string())),
        _ => None,
    });
    let ip = of.subject_alt_names.iter().filter_map(|name| match name {
        SubjectAltName::Ip(ip) => Some(Name::IpAddress(ip.to_string())),
        _ => None,
    });
    let names = dns.chain(uri).chain(ip);
    let left = of.expiration_time.duration_since(SystemTime::now()).unwrap_or_default();
    pb::CertificateDetails {
        path: of.path,
        serial_number: of.serial_number,
        subject_alt_names: names
            .map(|name| pb::SubjectAlternateName { name: Some(name) })
            .collect(),
        days_until_expiration: left.as_secs() / 86_400,
        valid_from: timestamp(of.valid_from),
        expiration_time: timestamp(of.expiration_time),
        ocsp_details: None,
    }
}
