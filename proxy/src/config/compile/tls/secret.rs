//! pb `Secret` and `TlsCertificate` to what handshakes present, and pb `DataSource` to its bytes.

use std::sync::Arc;

use super::validation;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use crate::tls::material::TlsCertificate;
use crate::tls::secrets::Secret;

/// Compiles a secret. Of session ticket keys and generic secrets nobody makes use.
pub fn compile(pb: &pb::Secret, path: &FieldPath<'_>) -> Option<Secret> {
    use pb::secret::Type;
    match &pb.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            compile_certificate(certificate, &path.field("tls_certificate"))
                .map(Secret::Certificate)
        }
        Some(Type::ValidationContext(context)) => {
            let context = validation::compile(context, &path.field("validation_context"))?;
            Some(Secret::Validation(Arc::new(context)))
        }
        Some(Type::SessionTicketKeys(_)) => {
            path.field("session_ticket_keys").ignored("tickets have keys of our own");
            None
        }
        Some(Type::GenericSecret(_)) => {
            path.field("generic_secret").ignored("nothing uses generic secrets");
            None
        }
        None => {
            path.field("type").error("a secret of a known type is required");
            None
        }
    }
}

/// Compiles a certificate with its key.
pub fn compile_certificate(
    pb: &pb::TlsCertificate,
    path: &FieldPath<'_>,
) -> Option<Arc<TlsCertificate>> {
    let reject = |set: bool, name: &str, reason: &str| {
        if set {
            path.field(name).error(reason);
        }
        set
    };
    let provider = pb.private_key_provider.as_ref();
    let name = provider.map_or("", |provider| &*provider.provider_name);
    let reason = format!("private key provider {name:?} is not supported");
    if reject(provider.is_some(), "private_key_provider", &reason)
        | reject(pb.pkcs12.is_some(), "pkcs12", "PKCS #12 is not supported")
        | reject(pb.password.is_some(), "password", "encrypted keys are not supported")
        | reject(pb.tls_params.is_some(), "tls_params", "is not supported")
    {
        return None;
    }
    if pb.ocsp_staple.is_some() {
        path.field("ocsp_staple").ignored("OCSP stapling is not supported");
    }
    let chain = required(pb.certificate_chain.as_ref(), &path.field("certificate_chain"));
    let key = required(pb.private_key.as_ref(), &path.field("private_key"));
    let compiled =
        TlsCertificate::from_pem(&chain?, &key?, where_from(pb.certificate_chain.as_ref()));
    path.ok_or_error(compiled).map(Arc::new)
}

/// The file that a `DataSource` names, as Envoy's admin interface shows it.
pub fn where_from(source: Option<&pb_core::DataSource>) -> &str {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(pb_core::data_source::Specifier::Filename(name)) => name,
        _ => "<inline>",
    }
}

fn required(source: Option<&pb_core::DataSource>, path: &FieldPath<'_>) -> Option<Vec<u8>> {
    let Some(source) = source else {
        path.error("value is required");
        return None;
    };
    read(source, path)
}

/// The bytes of a `DataSource`; nothing is no value.
pub fn read(source: &pb_core::DataSource, path: &FieldPath<'_>) -> Option<Vec<u8>> {
    use pb_core::data_source::Specifier;
    let bytes = match &source.specifier {
        Some(Specifier::Filename(name)) => {
            let at = path.field("filename");
            let read = std::fs::read(name);
            at.ok_or_error(read.map_err(|error| format!("{name:?} cannot be read: {error}")))?
        }
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        Some(Specifier::EnvironmentVariable(name)) => {
            let at = path.field("environment_variable");
            let value = std::env::var(name);
            let missing = |_| format!("Environment variable doesn't exist: {name}");
            at.ok_or_error(value.map_err(missing))?.into_bytes()
        }
        None => {
            path.field("specifier").error("value is required");
            return None;
        }
    };
    if bytes.is_empty() {
        path.error("DataSource cannot be empty");
        return None;
    }
    Some(bytes)
}
