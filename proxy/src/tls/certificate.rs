//! One X.509 certificate (RFC 5280) as logs, headers, RBAC and the admin interface speak of it.
//!
//! Parsed once, from DER that somebody else sent: what cannot be read is not there, nothing panics. Names of RFC 2253
//! and serial numbers are written as BoringSSL writes them, which is what policies and log readers were made for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// A subject alternative name (RFC 5280 §4.2.1.6); kinds that nobody asks for are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectAltName {
    Uri(Box<str>),
    Dns(Box<str>),
    Email(Box<str>),
    Ip(IpAddr),
    /// `otherName` whose value is a string.
    Other(Box<str>),
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// RFC 2253, the most specific part first: `CN=a,O=b`.
    pub subject: Box<str>,
    pub issuer: Box<str>,
    /// Lower-case hex, without leading zero bytes.
    pub serial: Box<str>,
    /// In the order of the certificate.
    pub subject_alt_names: Box<[SubjectAltName]>,
    /// Seconds since the epoch.
    pub not_before: i64,
    pub not_after: i64,
    /// Of the DER.
    pub sha256: [u8; 32],
    pub sha1: [u8; 20],
}

impl Certificate {
    /// `None` for what is no certificate.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|ext| ext.value.general_names.as_slice()).unwrap_or_default();
        Some(Self {
            subject: rfc2253(parsed.subject()),
            issuer: rfc2253(parsed.issuer()),
            serial: serial_number(parsed.raw_serial()),
            subject_alt_names: names.iter().filter_map(subject_alt_name).collect(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            sha256: fingerprint_256(der),
            sha1: fingerprint_1(der),
        })
    }

    pub fn uri_sans(&self) -> impl Iterator<Item = &str> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Uri(uri) => Some(&**uri),
            _ => None,
        })
    }

    pub fn dns_sans(&self) -> impl Iterator<Item = &str> {
        self.subject_alt_names.iter().filter_map(|name| match name {
            SubjectAltName::Dns(dns) => Some(&**dns),
            _ => None,
        })
    }
}

/// SHA-256 of a certificate's DER.
pub fn fingerprint_256(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, der).as_ref());
    out
}

/// SHA-1 of a certificate's DER.
pub fn fingerprint_1(der: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref());
    out
}

/// The serial number of a certificate's DER, as in [`Certificate`].
pub fn serial(der: &[u8]) -> Option<Box<str>> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(serial_number(parsed.raw_serial()))
}

/// Appends a certificate's PEM with everything but unreserved characters (RFC 3986 §2.3) percent-encoded.
pub fn write_url_encoded_pem(der: &[u8], out: &mut Vec<u8>) {
    const LINE: usize = 64;
    out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
    let text = STANDARD.encode(der);
    for line in text.as_bytes().chunks(LINE) {
        for byte in line {
            match byte {
                b'+' => out.extend_from_slice(b"%2B"),
                b'/' => out.extend_from_slice(b"%2F"),
                b'=' => out.extend_from_slice(b"%3D"),
                plain => out.push(*plain),
            }
        }
        out.extend_from_slice(b"%0A");
    }
    out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
}

/// Appends bytes in lower-case hex.
pub fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]),
    );
}

fn serial_number(raw: &[u8]) -> Box<str> {
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len());
    if start == raw.len() {
        return "0".into();
    }
    let mut out = Vec::with_capacity(raw.len() * 2);
    write_hex(&raw[start..], &mut out);
    into_text(out)
}

fn subject_alt_name(name: &GeneralName<'_>) -> Option<SubjectAltName> {
    Some(match name {
        GeneralName::URI(uri) => SubjectAltName::Uri((*uri).into()),
        GeneralName::DNSName(dns) => SubjectAltName::Dns((*dns).into()),
        GeneralName::RFC822Name(email) => SubjectAltName::Email((*email).into()),
        GeneralName::IPAddress(bytes) => SubjectAltName::Ip(match bytes.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(*bytes).ok()?).into(),
            16 => Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).into(),
            _ => return None,
        }),
        GeneralName::OtherName(_, value) => {
            // `value` is explicitly tagged [0].
            let (_, tagged) = Any::from_der(value).ok()?;
            let inner =
                if tagged.tag() == Tag(0) { Any::from_der(tagged.data).ok()?.1 } else { tagged };
            SubjectAltName::Other(string_of(&inner)?.into())
        }
        _ => return None,
    })
}

/// A name as RFC 2253 has it: the last part first, its attributes' short names, everything that is not ASCII escaped.
fn rfc2253(name: &X509Name<'_>) -> Box<str> {
    let mut out = Vec::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.iter().rev() {
        let attributes: Vec<_> = part.iter().collect();
        for (i, attribute) in attributes.iter().rev().enumerate() {
            if !out.is_empty() {
                out.push(if i == 0 { b',' } else { b'+' });
            }
            write_attribute(attribute, &mut out);
        }
    }
    into_text(out)
}

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, out: &mut Vec<u8>) {
    let oid = attribute.attr_type().to_id_string();
    let known = SHORT_NAMES.iter().find(|(id, _)| *id == oid).map(|(_, name)| *name);
    out.extend_from_slice(known.unwrap_or(&oid).as_bytes());
    out.push(b'=');
    let value = attribute.attr_value();
    match string_of(value).filter(|_| known.is_some()) {
        Some(text) => write_escaped(&text, out),
        None => write_dump(value, out),
    }
}

/// Short names of the attributes that names are made of.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
];

/// The text of a string type.
fn string_of(value: &Any<'_>) -> Option<String> {
    let data = value.data;
    match value.tag() {
        Tag::Utf8String => Some(str::from_utf8(data).ok()?.to_owned()),
        Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::T61String => Some(data.iter().map(|b| char::from(*b)).collect()),
        Tag::BmpString => {
            let units = data.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::UniversalString => data
            .chunks_exact(4)
            .map(|c| char::from_u32(u32::from_be_bytes([c[0], c[1], c[2], c[3]])))
            .collect(),
        _ => None,
    }
}

/// RFC 2253 §2.4, and `\XX` for each byte that is a control character or not ASCII.
fn write_escaped(text: &str, out: &mut Vec<u8>) {
    let last = text.len().saturating_sub(1);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend([b'\\', byte]),
            b' ' | b'#' if i == 0 => out.extend([b'\\', byte]),
            b' ' if i == last => out.extend(b"\\ "),
            0..0x20 | 0x7f.. => {
                out.push(b'\\');
                write_upper_hex(&[byte], out);
            }
            _ => out.push(byte),
        }
    }
}

/// `#` and the DER in hex, for what is no text or has no name.
fn write_dump(value: &Any<'_>, out: &mut Vec<u8>) {
    let length = value.data.len();
    let constructed = u8::from(value.header.is_constructed()) << 5;
    let mut der = vec![value.tag().0 as u8 | constructed];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1);
            der.push(0x80 | (bytes.len() - start) as u8);
            der.extend_from_slice(&bytes[start..]);
        }
    }
    der.extend_from_slice(value.data);
    out.push(b'#');
    write_upper_hex(&der, out);
}

fn write_upper_hex(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    write_hex(bytes, out);
    out[start..].make_ascii_uppercase();
}

fn into_text(bytes: Vec<u8>) -> Box<str> {
    String::from_utf8(bytes).unwrap_or_default().into()
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
