//! pb transport sockets to TLS contexts: `DownstreamTlsContext`, `UpstreamTlsContext`, and what both have in common.
//!
//! What rustls cannot do and somebody may rely on is an error; names of ciphers and curves that it does not have are
//! left out with a notice, as long as something is left.

pub mod redact;
pub mod secret;
pub mod validation;

use std::sync::Arc;

use prost::Message as _;

use super::CompileContext;
use super::core::{any_type, unpack_any};
use super::diagnostic::FieldPath;
use super::source::compile_config_source;
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use crate::config::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use crate::config::pb::google::protobuf::Any;
use crate::tls::context::{ClientSettings, CommonTls, ServerSettings, Validation};
use crate::tls::secrets::Secret;
use crate::tls::suites::{self, Named};
use crate::tls::{ClientContext, SecretKind, SecretSource, SecretUse, ServerContext};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// `UpstreamTlsContext.max_session_keys` where it is not set.
const MAX_SESSION_KEYS: u32 = 1;
/// Sessions are kept in memory: no more than this of a cluster's.
const MOST_SESSION_KEYS: u32 = 1024;

/// Which side's defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// The message of a transport socket; `None` for a plain one. An error for what is not built.
fn tls_of<'a>(
    socket: &'a pb_core::TransportSocket,
    wanted: &str,
    path: &FieldPath<'_>,
) -> Option<&'a Any> {
    match &socket.config_type {
        None if socket.name == "envoy.transport_sockets.raw_buffer" => None,
        Some(pb_core::transport_socket::ConfigType::TypedConfig(any)) => match any_type(any) {
            RAW_BUFFER => None,
            found if found == wanted => Some(any),
            found => {
                path.error(format_args!("transport socket {found:?} is not supported"));
                None
            }
        },
        None => {
            path.error(format_args!("transport socket {:?} has no typed_config", socket.name));
            None
        }
    }
}

/// A filter chain's transport socket; `None` for a plain one, or with an error.
pub fn compile_downstream(
    socket: &pb_core::TransportSocket,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Arc<ServerContext>> {
    use pb::downstream_tls_context::SessionTicketKeysType as Tickets;
    let any = tls_of(socket, DOWNSTREAM, path)?;
    let path = path.field("typed_config");
    let pb = unpack_any::<pb::DownstreamTlsContext>(any, &path)?;
    let common = pb.common_tls_context.clone().unwrap_or_default();
    let at = path.field("common_tls_context");
    let common = compile_common(&common, Side::Server, cx, &at)?;
    if common.certificates.is_empty() {
        at.error("no TLS certificates found for server context");
        return None;
    }
    if pb.ocsp_staple_policy != 0 {
        path.field("ocsp_staple_policy").error("OCSP stapling is not supported");
    }
    let mut tickets = true;
    match &pb.session_ticket_keys_type {
        Some(Tickets::DisableStatelessSessionResumption(disable)) => tickets = !disable,
        Some(Tickets::SessionTicketKeys(_)) => {
            path.field("session_ticket_keys").ignored("tickets have keys of our own");
        }
        Some(Tickets::SessionTicketKeysSdsSecretConfig(_)) => {
            path.field("session_ticket_keys_sds_secret_config")
                .ignored("tickets have keys of our own");
        }
        None => {}
    }
    let settings = ServerSettings {
        common,
        require_client_certificate: pb.require_client_certificate.is_some_and(|v| v.value),
        tickets,
        stateful: !pb.disable_stateful_session_resumption,
        prefer_client_ciphers: pb.prefer_client_ciphers,
        full_scan_certs_on_sni_mismatch: pb
            .full_scan_certs_on_sni_mismatch
            .is_some_and(|v| v.value),
    };
    let context = path.ok_or_error(ServerContext::new(settings))?;
    cx.secrets.inventory.add(&context);
    Some(context)
}

/// A cluster's transport socket; `None` for a plain one, or with an error.
pub fn compile_upstream(
    socket: &pb_core::TransportSocket,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Arc<ClientContext>> {
    let any = tls_of(socket, UPSTREAM, path)?;
    let path = path.field("typed_config");
    let pb = unpack_any::<pb::UpstreamTlsContext>(any, &path)?;
    let common = pb.common_tls_context.clone().unwrap_or_default();
    let at = path.field("common_tls_context");
    let common = compile_common(&common, Side::Client, cx, &at)?;
    if common.certificates.len() > 1 {
        at.field("tls_certificates")
            .error("multiple TLS certificates are not supported for client contexts");
    }
    if pb.sni.len() > 255 {
        path.field("sni").error("value length must be at most 255 bytes");
    }
    if pb.allow_renegotiation {
        path.field("allow_renegotiation").ignored("TLS is never renegotiated");
    }
    if pb.auto_sni_san_validation && !has_ca(&common.validation) {
        path.field("auto_sni_san_validation")
            .error("'auto_sni_san_validation' was configured without a validation context");
    }
    let keys = pb.max_session_keys.as_ref().map_or(MAX_SESSION_KEYS, |v| v.value);
    let settings = ClientSettings {
        common,
        sni: pb.sni.as_str().into(),
        auto_host_sni: pb.auto_host_sni,
        auto_sni_san_validation: pb.auto_sni_san_validation,
        max_session_keys: keys.min(MOST_SESSION_KEYS) as usize,
    };
    let context = path.ok_or_error(ClientContext::new(settings))?;
    cx.secrets.inventory.add(&context);
    Some(context)
}

fn has_ca(validation: &Validation) -> bool {
    validation.secret.is_some()
        || validation.fixed.as_ref().is_some_and(|fixed| fixed.trusted_ca.is_some())
}

fn compile_common(
    pb: &pb::CommonTlsContext,
    side: Side,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<CommonTls> {
    reject_unsupported(pb, path);
    let mut common = CommonTls {
        tls12: true,
        // As in Envoy, whose clients stay with TLS 1.2 until they are told otherwise.
        tls13: side == Side::Server,
        suites: suites::default_tls12_suites(),
        groups: suites::default_groups(),
        alpn: pb.alpn_protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        certificates: Vec::new(),
        validation: Validation::default(),
    };
    for (i, name) in pb.alpn_protocols.iter().enumerate() {
        if name.is_empty() || name.len() > 255 {
            path.index("alpn_protocols", i).error("invalid ALPN protocol string");
        }
    }
    if let Some(params) = &pb.tls_params {
        compile_params(params, &mut common, &path.field("tls_params"));
    }
    common.certificates = compile_certificates(pb, cx, path)?;
    common.validation = match &pb.validation_context_type {
        None => Validation::default(),
        Some(kind) => compile_validation(kind, cx, path)?,
    };
    Some(common)
}

fn reject_unsupported(pb: &pb::CommonTlsContext, path: &FieldPath<'_>) {
    let reject = |set: bool, name: &str| {
        if set {
            path.field(name).error("is not supported");
        }
    };
    reject(pb.custom_tls_certificate_selector.is_some(), "custom_tls_certificate_selector");
    reject(pb.tls_certificate_provider_instance.is_some(), "tls_certificate_provider_instance");
    reject(pb.custom_handshaker.is_some(), "custom_handshaker");
    if pb.key_log.is_some() {
        path.field("key_log").ignored("keys are never written");
    }
}

fn compile_params(pb: &pb::TlsParameters, common: &mut CommonTls, path: &FieldPath<'_>) {
    use pb::tls_parameters::TlsProtocol as Protocol;
    let version = |value: i32, name: &str| match Protocol::try_from(value) {
        Ok(version) => version,
        Err(_) => {
            path.field(name).error("unknown enum value");
            Protocol::TlsAuto
        }
    };
    let least = version(pb.tls_minimum_protocol_version, "tls_minimum_protocol_version");
    let most = version(pb.tls_maximum_protocol_version, "tls_maximum_protocol_version");
    if matches!(least, Protocol::TlSv10 | Protocol::TlSv11) {
        path.field("tls_minimum_protocol_version").ignored("TLS 1.2 is the oldest version");
    }
    common.tls12 = least != Protocol::TlSv13;
    match most {
        Protocol::TlsAuto => {}
        Protocol::TlSv12 => common.tls13 = false,
        Protocol::TlSv13 => common.tls13 = true,
        Protocol::TlSv10 | Protocol::TlSv11 => {
            path.field("tls_maximum_protocol_version").error("TLS 1.2 is the oldest version");
        }
    }
    if !common.tls12 && !common.tls13 {
        path.field("tls_minimum_protocol_version").error("is above the maximum protocol version");
    }
    if !pb.cipher_suites.is_empty() {
        common.suites = compile_suites(&pb.cipher_suites, path);
        if common.suites.is_empty() && common.tls12 {
            path.field("cipher_suites").error("failed to initialize cipher suites: none is known");
        }
    }
    if !pb.ecdh_curves.is_empty() {
        common.groups.clear();
        for (i, name) in pb.ecdh_curves.iter().enumerate() {
            let at = path.index("ecdh_curves", i);
            for name in name.split(':') {
                match suites::group(name) {
                    Named::Built(group) => common.groups.push(group),
                    Named::NotBuilt => at.ignored(format_args!("{name} is not supported")),
                    Named::Unknown => {
                        at.error(format_args!("failed to initialize ECDH curves {name}"));
                    }
                }
            }
        }
        if common.groups.is_empty() {
            path.field("ecdh_curves").error("failed to initialize ECDH curves: none is supported");
        }
    }
    if !pb.signature_algorithms.is_empty() {
        path.field("signature_algorithms").error("is not supported");
    }
    if !pb.compliance_policies.is_empty() {
        path.field("compliance_policies").error("is not supported");
    }
}

/// BoringSSL's list: names, `[a|b]` for equal ones; `-` in front takes a suite out, `!` for good, and `ALL` is all of them.
fn compile_suites(list: &[String], path: &FieldPath<'_>) -> Vec<Vec<rustls::SupportedCipherSuite>> {
    let mut out: Vec<Vec<rustls::SupportedCipherSuite>> = Vec::new();
    let mut killed = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        let at = path.index("cipher_suites", i);
        // Brackets do not nest, and no name has one: what follows the opening one up to the other is a group.
        for (part, text) in entry.split(['[', ']']).enumerate() {
            let is_group = part % 2 == 1;
            let mut group = Vec::new();
            for name in text.split([':', '|']).filter(|name| !name.is_empty()) {
                if let Some(unwanted) = name.strip_prefix(['-', '!']) {
                    if is_group {
                        at.error(format_args!("failed to initialize cipher suites {name}"));
                        continue;
                    }
                    let gone = named_suites(unwanted, &at);
                    out.iter_mut().for_each(|group| group.retain(|suite| !gone.contains(suite)));
                    if name.starts_with('!') {
                        killed.extend(gone);
                    }
                    continue;
                }
                match suites::tls12_suite(name) {
                    Named::Built(suite)
                        if killed.contains(&suite)
                            || out.iter().flatten().any(|known| *known == suite) => {}
                    Named::Built(suite) if is_group => group.push(suite),
                    Named::Built(suite) => out.push(vec![suite]),
                    Named::NotBuilt => at.ignored(format_args!("{name} is not supported")),
                    Named::Unknown => {
                        at.error(format_args!("failed to initialize cipher suites {name}"));
                    }
                }
            }
            out.push(group);
        }
    }
    out.retain(|group| !group.is_empty());
    out
}

/// BoringSSL's classes of suites that are never offered.
const NEVER_OFFERED: &[&str] = &["3DES", "SHA", "SHA1", "kRSA", "PSK", "kPSK", "aPSK"];

/// What is taken out of a list: of those that are not built there is nothing to take. Of BoringSSL's other classes only
/// `ALL` is known; with another one more would be offered than is wanted.
fn named_suites(name: &str, at: &FieldPath<'_>) -> Vec<rustls::SupportedCipherSuite> {
    match suites::tls12_suite(name) {
        _ if name == "ALL" => suites::default_tls12_suites().into_iter().flatten().collect(),
        Named::Built(suite) => vec![suite],
        Named::NotBuilt => Vec::new(),
        Named::Unknown if NEVER_OFFERED.contains(&name) => Vec::new(),
        Named::Unknown => {
            at.error(format_args!("failed to initialize cipher suites {name}"));
            Vec::new()
        }
    }
}

fn compile_certificates(
    pb: &pb::CommonTlsContext,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Vec<SecretUse>> {
    let mut slots = Vec::new();
    let mut complete = true;
    for (i, certificate) in pb.tls_certificates.iter().enumerate() {
        let at = path.index("tls_certificates", i);
        let compiled = secret::compile_certificate(certificate, &at);
        let filled = compiled.and_then(|certificate| {
            let slot = cx.secrets.slot("", &SecretSource::Inline, SecretKind::Certificate);
            at.ok_or_error(slot.fill(Secret::Certificate(certificate)))?;
            Some(slot)
        });
        complete &= filled.is_some();
        slots.extend(filled.map(SecretUse::from));
    }
    if !slots.is_empty() && !pb.tls_certificate_sds_secret_configs.is_empty() {
        // As in Envoy, those written out count.
        return complete.then_some(slots);
    }
    for (i, config) in pb.tls_certificate_sds_secret_configs.iter().enumerate() {
        let at = path.index("tls_certificate_sds_secret_configs", i);
        let slot = compile_slot(config, SecretKind::Certificate, cx, &at);
        complete &= slot.is_some();
        slots.extend(slot);
    }
    complete.then_some(slots)
}

/// The slot of an `SdsSecretConfig`; a static one is there already.
fn compile_slot(
    pb: &pb::SdsSecretConfig,
    kind: SecretKind,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<SecretUse> {
    if pb.name.is_empty() {
        path.field("name").error("value length must be at least 1 characters");
        return None;
    }
    let Some(config) = &pb.sds_config else {
        let slot = cx.secrets.slot(&pb.name, &SecretSource::Static, kind);
        if slot.is_filled() {
            return Some(slot.into());
        }
        let what = match kind {
            SecretKind::Certificate => "static secret",
            SecretKind::Validation => "static certificate validation context",
        };
        path.error(format_args!("Unknown {what}: {}", pb.name));
        return None;
    };
    let source = compile_config_source(config, &path.field("sds_config"))?;
    let slot = cx.secrets.slot(&pb.name, &SecretSource::Discovered(source.source), kind);
    Some(SecretUse { slot, initial_fetch_timeout: source.initial_fetch_timeout })
}

fn compile_validation(
    pb: &ValidationContextType,
    cx: &CompileContext<'_>,
    path: &FieldPath<'_>,
) -> Option<Validation> {
    let fixed = |pb, path: &FieldPath<'_>| validation::compile(pb, path).map(Arc::new);
    match pb {
        ValidationContextType::ValidationContext(context) => Some(Validation {
            fixed: Some(fixed(context, &path.field("validation_context"))?),
            secret: None,
        }),
        ValidationContextType::ValidationContextSdsSecretConfig(config) => {
            let at = path.field("validation_context_sds_secret_config");
            let slot = compile_slot(config, SecretKind::Validation, cx, &at)?;
            Some(Validation { fixed: None, secret: Some(slot) })
        }
        ValidationContextType::CombinedValidationContext(combined) => {
            let path = path.field("combined_validation_context");
            let context = combined.default_validation_context.clone().unwrap_or_default();
            let context = fixed(&context, &path.field("default_validation_context"))?;
            let Some(config) = &combined.validation_context_sds_secret_config else {
                path.field("validation_context_sds_secret_config").error("value is required");
                return None;
            };
            let at = path.field("validation_context_sds_secret_config");
            let slot = compile_slot(config, SecretKind::Validation, cx, &at)?;
            Some(Validation { fixed: Some(context), secret: Some(slot) })
        }
        // Certificate providers, deprecated.
        _ => {
            path.field("validation_context_type").error("certificate providers are not supported");
            None
        }
    }
}

/// Compiles an encoded `Secret` to its name and value; for those that come one by one.
///
/// # Errors
/// Every problem with its field path.
pub fn compile_secret_bytes(bytes: &[u8]) -> Result<(String, Secret), String> {
    let found = super::diagnostic::Diagnostics::new("");
    let compiled = match pb::Secret::decode(bytes) {
        Ok(pb) => secret::compile(&pb, &found.root()).map(|secret| (pb.name, secret)),
        Err(error) => return Err(error.to_string()),
    };
    match compiled {
        Some(compiled) if !found.has_errors() => Ok(compiled),
        _ => {
            let lines = found.into_vec().into_iter();
            Err(lines.map(|d| format!("{}: {}", d.path, d.reason)).collect::<Vec<_>>().join("; "))
        }
    }
}
