use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType, SerialNumber,
    date_time_ymd,
};

use super::*;

fn der(params: &CertificateParams) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn named(name: &[(DnType, DnValue)]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in name {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    params
}

fn utf8(text: &str) -> DnValue {
    DnValue::Utf8String(text.to_owned())
}

#[test]
fn all_parts_are_read() {
    let mut params = named(&[
        (DnType::CountryName, DnValue::PrintableString("US".try_into().unwrap())),
        (DnType::OrganizationName, utf8("a, \"b\" <c>;d\\")),
        (DnType::CommonName, utf8(" näme#\n")),
    ]);
    params.serial_number = Some(SerialNumber::from_slice(&[0, 0x0a, 0xff]));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2050, 1, 2);
    params.subject_alt_names = vec![
        SanType::DnsName("a.example".try_into().unwrap()),
        SanType::URI("spiffe://td/ns/a".try_into().unwrap()),
        SanType::IpAddress("10.0.0.1".parse().unwrap()),
        SanType::IpAddress("::1".parse().unwrap()),
        SanType::Rfc822Name("m@a.example".try_into().unwrap()),
        SanType::OtherName((vec![1, 2, 3], "other".to_owned().into())),
    ];
    let der = der(&params);
    let certificate = Certificate::parse(&der).unwrap();
    let subject = r#"CN=\ n\C3\A4me#\0A,O=a\, \"b\" \<c\>\;d\\,C=US"#;
    assert_eq!(&*certificate.subject, subject);
    assert_eq!(&*certificate.issuer, subject);
    assert_eq!(&*certificate.serial, "0aff");
    assert_eq!(serial(&der), Some(certificate.serial.clone()));
    assert_eq!((certificate.not_before, certificate.not_after), (1_577_836_800, 2_524_694_400));
    assert_eq!(certificate.uri_sans().collect::<Vec<_>>(), ["spiffe://td/ns/a"]);
    assert_eq!(certificate.dns_sans().collect::<Vec<_>>(), ["a.example"]);
    let others = &certificate.subject_alt_names[2..];
    assert_eq!(
        others,
        [
            SubjectAltName::Ip("10.0.0.1".parse().unwrap()),
            SubjectAltName::Ip("::1".parse().unwrap()),
            SubjectAltName::Email("m@a.example".into()),
            SubjectAltName::Other("other".into()),
        ]
    );
}

#[test]
fn unknown_attributes_are_dumped() {
    let unknown = DnType::CustomDnType(vec![1, 2, 3, 4]);
    let params = named(&[(unknown, utf8("ab")), (DnType::CommonName, utf8("c "))]);
    let certificate = Certificate::parse(&der(&params)).unwrap();
    assert_eq!(&*certificate.subject, "CN=c\\ ,1.2.3.4=#0C026162");
    assert!(certificate.subject_alt_names.is_empty());
}

#[test]
fn bad_der_is_no_certificate() {
    let good = der(&CertificateParams::default());
    for n in 0..good.len() {
        assert!(Certificate::parse(&good[..n]).is_none(), "{n}");
        let mut bad = good.clone();
        for value in [0, 0xff, bad[n] ^ 0x80] {
            bad[n] = value;
            let _ = Certificate::parse(&bad);
        }
    }
}

#[test]
fn pem_is_url_encoded() {
    let mut out = Vec::new();
    write_url_encoded_pem(&[0xfb, 0xff, 0xfe, 0], &mut out);
    assert_eq!(
        out,
        b"-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A"
    );
}
