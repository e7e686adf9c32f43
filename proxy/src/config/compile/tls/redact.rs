//! A secret without what makes it one, for `/config_dump`: private keys and their like, as Envoy hides fields that the
//! API marks as sensitive.

use bytes::Bytes;
use prost::Message as _;

use crate::config::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use crate::config::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

const HIDDEN: &str = "[redacted]";

/// The encoded `Secret` with every sensitive field hidden; nothing where it cannot be read.
pub fn redacted(bytes: &[u8]) -> Bytes {
    use pb::secret::Type;
    let Ok(mut secret) = pb::Secret::decode(bytes) else { return Bytes::new() };
    match &mut secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            hide(&mut certificate.private_key);
            hide(&mut certificate.password);
            hide(&mut certificate.pkcs12);
            certificate.private_key_provider = None;
        }
        Some(Type::SessionTicketKeys(tickets)) => tickets.keys.iter_mut().for_each(hide_source),
        Some(Type::GenericSecret(generic)) => {
            hide(&mut generic.secret);
            generic.secrets.values_mut().for_each(hide_source);
        }
        Some(Type::ValidationContext(_)) | None => {}
    }
    secret.encode_to_vec().into()
}

fn hide(source: &mut Option<DataSource>) {
    source.iter_mut().for_each(hide_source);
}

fn hide_source(source: &mut DataSource) {
    match &mut source.specifier {
        Some(Specifier::InlineBytes(bytes)) => *bytes = HIDDEN.as_bytes().to_vec(),
        Some(
            Specifier::InlineString(text)
            | Specifier::Filename(text)
            | Specifier::EnvironmentVariable(text),
        ) => HIDDEN.clone_into(text),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hidden_and_certificates_are_not() {
        let inline = |text: &str| {
            let specifier = Some(Specifier::InlineBytes(text.as_bytes().to_vec()));
            Some(DataSource { specifier, ..DataSource::default() })
        };
        let certificate = pb::TlsCertificate {
            certificate_chain: inline("chain"),
            private_key: inline("key"),
            ..pb::TlsCertificate::default()
        };
        let secret = pb::Secret {
            name: "s".into(),
            r#type: Some(pb::secret::Type::TlsCertificate(certificate)),
        };
        let shown = redacted(&secret.encode_to_vec());
        let has = |text: &str| shown.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has("chain") && has(HIDDEN) && !has("key"));
        assert!(redacted(b"\xff").is_empty());
    }
}
