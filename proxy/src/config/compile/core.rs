//! pb addresses, socket options, durations, percentages, metadata and their kin to compiled form
//! (`config::core`), for every other compile function.
//!
//! The ranges are those of the `validate.rules` in the proto files and of Envoy's own checks.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as ProstMessage;

use crate::config::compile::diagnostic::FieldPath;
use crate::config::core::{
    BindConfig, ConfigAddress, ExtraSource, Fraction, Locality, Metadata, RuntimeDouble,
    RuntimeFlag, RuntimeFraction, SocketFamily, SocketOption, SocketOptionValue, SocketState,
    TcpKeepalive,
};
use crate::config::json::schema::Message;
use crate::config::json::{resolve_typed_struct, wire};
use crate::config::pb::envoy::config::core::v3 as pb;
use crate::config::pb::envoy::r#type::v3 as pb_type;
use crate::config::pb::google::protobuf as pb_google;
use crate::config::support;

/// Envoy's upper bound of a duration's seconds: `google/protobuf/duration.proto`.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// Unpacks a `google.protobuf.Any` of a known type; errors name the type that was found or what does not decode.
pub fn unpack_any<T: ProstMessage + prost::Name + Default>(
    any: &pb_google::Any,
    path: &FieldPath<'_>,
) -> Option<T> {
    let found = any.type_url.rsplit('/').next().unwrap_or_default();
    if found != T::full_name() {
        path.error(format_args!("expected {}, got {:?}", T::full_name(), any.type_url));
        return None;
    }
    match T::decode(any.value.as_slice()) {
        Ok(message) => Some(message),
        Err(error) => {
            path.error(format_args!("does not decode as {}: {error}", T::full_name()));
            None
        }
    }
}

/// The message name of an Any: its type URL after the last slash.
pub fn any_type(any: &pb_google::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// What an `Any` is about: a `TypedStruct` of a type of the API becomes that type. One of another type keeps that type's
/// name, so that who asks for it is told of what is not built.
pub fn resolve_any<'a>(any: &'a pb_google::Any, path: &FieldPath<'_>) -> Cow<'a, pb_google::Any> {
    match resolve_typed_struct(any) {
        None => Cow::Borrowed(any),
        Some(Ok(resolved)) => {
            support::check(&resolved.type_url, &resolved.value, path);
            Cow::Owned(resolved)
        }
        Some(Err(problems)) => {
            let type_url = wire::string_field(&any.value, 1);
            if Message::by_type_url(type_url).is_some() {
                for problem in problems {
                    path.error(format_args!("{}: {}", problem.path, problem.reason));
                }
            }
            Cow::Owned(pb_google::Any { type_url: type_url.to_owned(), value: Vec::new() })
        }
    }
}

/// A duration of zero or more.
pub fn compile_duration(pb: &pb_google::Duration, path: &FieldPath<'_>) -> Option<Duration> {
    let valid =
        (0..=MAX_DURATION_SECONDS).contains(&pb.seconds) && (0..1_000_000_000).contains(&pb.nanos);
    if !valid {
        path.error(format_args!("invalid duration: {}s {}ns", pb.seconds, pb.nanos));
        return None;
    }
    Some(Duration::new(pb.seconds as u64, pb.nanos as u32))
}

/// A duration that must be longer than zero (`validate.rules: gt {}`).
pub fn compile_positive_duration(
    pb: &pb_google::Duration,
    path: &FieldPath<'_>,
) -> Option<Duration> {
    let duration = compile_duration(pb, path)?;
    if duration.is_zero() {
        path.error("value must be greater than 0s");
        return None;
    }
    Some(duration)
}

/// A duration of at least `least`.
pub fn compile_duration_at_least(
    pb: &pb_google::Duration,
    least: Duration,
    path: &FieldPath<'_>,
) -> Option<Duration> {
    let duration = compile_duration(pb, path)?;
    if duration < least {
        path.error(format_args!("value must be greater than or equal to {least:?}"));
        return None;
    }
    Some(duration)
}

/// `None` where unset or invalid (then reported).
pub fn compile_optional_duration(
    pb: Option<&pb_google::Duration>,
    path: &FieldPath<'_>,
) -> Option<Duration> {
    compile_duration(pb?, path)
}

/// A `UInt32Value`'s value, with a lower bound where the proto has one.
pub fn compile_u32_at_least(
    pb: Option<&pb_google::UInt32Value>,
    least: u32,
    path: &FieldPath<'_>,
) -> Option<u32> {
    let value = pb?.value;
    if value < least {
        path.error(format_args!("value must be greater than or equal to {least}"));
        return None;
    }
    Some(value)
}

/// A `type.v3.Percent`: 0 to 100.
pub fn compile_percent(pb: Option<&pb_type::Percent>, path: &FieldPath<'_>) -> Option<f64> {
    let value = pb?.value;
    if !(0.0..=100.0).contains(&value) {
        path.error("value must be inside range [0, 100]");
        return None;
    }
    Some(value)
}

/// A `type.v3.FractionalPercent`. A numerator above the denominator counts as 100 %.
pub fn compile_fraction(pb: &pb_type::FractionalPercent, path: &FieldPath<'_>) -> Option<Fraction> {
    use pb_type::fractional_percent::DenominatorType;
    let denominator = match DenominatorType::try_from(pb.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => {
            path.field("denominator").error("unknown enum value");
            return None;
        }
    };
    Some(Fraction { numerator: pb.numerator.min(denominator), denominator })
}

/// A `core.v3.RuntimeFractionalPercent`; `default_value` is required.
pub fn compile_runtime_fraction(
    pb: &pb::RuntimeFractionalPercent,
    path: &FieldPath<'_>,
) -> Option<RuntimeFraction> {
    let Some(default) = &pb.default_value else {
        path.field("default_value").error("value is required");
        return None;
    };
    Some(RuntimeFraction {
        runtime_key: some_str(&pb.runtime_key),
        default: compile_fraction(default, &path.field("default_value"))?,
    })
}

/// A `core.v3.RuntimeFeatureFlag`; `default_value` is required.
pub fn compile_runtime_flag(
    pb: &pb::RuntimeFeatureFlag,
    path: &FieldPath<'_>,
) -> Option<RuntimeFlag> {
    let Some(default) = &pb.default_value else {
        path.field("default_value").error("value is required");
        return None;
    };
    Some(RuntimeFlag { runtime_key: some_str(&pb.runtime_key), default: default.value })
}

/// A `core.v3.RuntimeDouble`.
pub fn compile_runtime_double(pb: &pb::RuntimeDouble) -> RuntimeDouble {
    RuntimeDouble { runtime_key: some_str(&pb.runtime_key), default: pb.default_value }
}

/// `None` for the empty string: proto3's way to leave a string out.
pub fn some_str(value: &str) -> Option<Arc<str>> {
    (!value.is_empty()).then(|| Arc::from(value))
}

/// A `core.v3.Address`: IP and port, name and port, or a pipe.
pub fn compile_address(pb: Option<&pb::Address>, path: &FieldPath<'_>) -> Option<ConfigAddress> {
    use pb::address::Address;
    match pb.and_then(|a| a.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => {
            compile_socket_address(socket, &path.field("socket_address"))
        }
        Some(Address::Pipe(pipe)) => compile_pipe(pipe, &path.field("pipe")),
        Some(Address::EnvoyInternalAddress(_)) => {
            path.field("envoy_internal_address").error("not supported");
            None
        }
        None => {
            path.error("value is required");
            None
        }
    }
}

/// A `core.v3.SocketAddress`. `address` may be a name; see `compile_ip_address` where it must be an IP.
pub fn compile_socket_address(
    pb: &pb::SocketAddress,
    path: &FieldPath<'_>,
) -> Option<ConfigAddress> {
    use pb::socket_address::{PortSpecifier, Protocol};
    if pb.protocol != Protocol::Tcp as i32 {
        path.field("protocol").error("only TCP is supported");
        return None;
    }
    if !pb.resolver_name.is_empty() {
        path.field("resolver_name").error("custom resolvers are not supported");
        return None;
    }
    if !pb.network_namespace_filepath.is_empty() {
        path.field("network_namespace_filepath").error("not supported");
        return None;
    }
    let port = match &pb.port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            let Ok(port) = u16::try_from(*port) else {
                path.field("port_value").error("value must be less than or equal to 65535");
                return None;
            };
            port
        }
        Some(PortSpecifier::NamedPort(_)) => {
            path.field("named_port").error("not supported");
            return None;
        }
        None => {
            path.field("port_specifier").error("value is required");
            return None;
        }
    };
    if pb.address.is_empty() {
        path.field("address").error("value length must be at least 1 characters");
        return None;
    }
    Some(match pb.address.parse::<IpAddr>() {
        Ok(ip) => {
            ConfigAddress::Ip { addr: SocketAddr::new(ip, port), ipv4_compat: pb.ipv4_compat }
        }
        Err(_) => ConfigAddress::Dns { host: Arc::from(pb.address.as_str()), port },
    })
}

/// A `core.v3.SocketAddress` that must hold an IP.
pub fn compile_ip_address(pb: &pb::SocketAddress, path: &FieldPath<'_>) -> Option<SocketAddr> {
    match compile_socket_address(pb, path)? {
        ConfigAddress::Ip { addr, .. } => Some(addr),
        ConfigAddress::Dns { host, .. } => {
            path.field("address").error(format_args!("malformed IP address: {host}"));
            None
        }
        ConfigAddress::Pipe { .. } => None,
    }
}

fn compile_pipe(pb: &pb::Pipe, path: &FieldPath<'_>) -> Option<ConfigAddress> {
    // sockaddr_un's path holds 108 bytes with its terminator; '@' first means the abstract namespace.
    if pb.path.is_empty() || pb.path.len() > 107 {
        path.field("path").error("value length must be between 1 and 107 bytes");
        return None;
    }
    if pb.mode > 0o777 {
        path.field("mode").error("value must be less than or equal to 511");
        return None;
    }
    Some(ConfigAddress::Pipe { path: Arc::from(pb.path.as_str()), mode: pb.mode })
}

/// `core.v3.SocketOption`s of stream sockets; those for datagram sockets only are left out.
pub fn compile_socket_options(
    pb: &[pb::SocketOption],
    field: &str,
    path: &FieldPath<'_>,
) -> Box<[SocketOption]> {
    pb.iter()
        .enumerate()
        .filter(|(_, option)| {
            !option.r#type.as_ref().is_some_and(|t| t.datagram.is_some() && t.stream.is_none())
        })
        .filter_map(|(i, option)| compile_socket_option(option, &path.index(field, i)))
        .collect()
}

fn compile_socket_option(pb: &pb::SocketOption, path: &FieldPath<'_>) -> Option<SocketOption> {
    use pb::socket_option::{SocketIpVersion, SocketState as PbState, Value};
    let narrow = |value: i64, field: &str| -> Option<i32> {
        let narrowed = i32::try_from(value);
        path.field(field).ok_or_error(narrowed.map_err(|_| "value does not fit in 32 bits"))
    };
    let value = match &pb.value {
        Some(Value::IntValue(value)) => SocketOptionValue::Int(narrow(*value, "int_value")?),
        Some(Value::BufValue(bytes)) => SocketOptionValue::Bytes(Arc::from(bytes.as_slice())),
        None => {
            path.field("value").error("value is required");
            return None;
        }
    };
    let state = match PbState::try_from(pb.state) {
        Ok(PbState::StatePrebind) => SocketState::Prebind,
        Ok(PbState::StateBound) => SocketState::Bound,
        Ok(PbState::StateListening) => SocketState::Listening,
        Err(_) => {
            path.field("state").error("unknown enum value");
            return None;
        }
    };
    let family = match SocketIpVersion::try_from(pb.ip_version) {
        Ok(SocketIpVersion::Ipv4) => SocketFamily::Ipv4,
        Ok(SocketIpVersion::Ipv6) => SocketFamily::Ipv6,
        Ok(SocketIpVersion::Unspecified) => SocketFamily::Any,
        Err(_) => {
            path.field("ip_version").error("unknown enum value");
            return None;
        }
    };
    Some(SocketOption {
        level: narrow(pb.level, "level")?,
        name: narrow(pb.name, "name")?,
        value,
        state,
        family,
    })
}

/// A `core.v3.TcpKeepalive`; its times are whole seconds. A value of 0 leaves the kernel's.
pub fn compile_keepalive(pb: &pb::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value: &Option<pb_google::UInt32Value>| {
        value.as_ref().filter(|v| v.value > 0).map(|v| Duration::from_secs(v.value.into()))
    };
    TcpKeepalive {
        probes: pb.keepalive_probes.as_ref().map(|v| v.value).filter(|v| *v > 0),
        time: seconds(&pb.keepalive_time),
        interval: seconds(&pb.keepalive_interval),
    }
}

/// At most one address besides `source_address`, of the other IP version.
#[expect(deprecated, reason = "additional_source_addresses is still read, as Envoy does")]
fn check_extra_sources(pb: &pb::BindConfig, source: Option<SocketAddr>, path: &FieldPath<'_>) {
    let (extra, additional) = (&pb.extra_source_addresses, &pb.additional_source_addresses);
    let addresses = || extra.iter().filter_map(|e| e.address.as_ref()).chain(additional);
    let is_ipv4 = |a: &pb::SocketAddress| a.address.parse::<IpAddr>().ok().map(|ip| ip.is_ipv4());
    let count = extra.len() + additional.len();
    if count > 0 && source.is_none() {
        path.error(
            "has extra/additional source addresses but no source_address. Extra/additional addresses cannot be specified if source_address is not set.",
        );
    } else if !extra.is_empty() && !additional.is_empty() {
        path.error("Can't specify both `extra_source_addresses` and `additional_source_addresses`");
    } else if count > 1 {
        path.error(
            "has more than one extra/additional source addresses. Only one extra/additional source can be supported in BindConfig's extra_source_addresses/additional_source_addresses field",
        );
    } else if let Some(source) = source
        && addresses().any(|address| is_ipv4(address) == Some(source.is_ipv4()))
    {
        path.error(
            "has two same IP version source addresses. Only two different IP version source addresses can be supported in BindConfig's source_address and extra_source_addresses/additional_source_addresses fields",
        );
    }
}

/// A `core.v3.BindConfig`.
#[expect(deprecated, reason = "additional_source_addresses is still read, as Envoy does")]
pub fn compile_bind_config(pb: &pb::BindConfig, path: &FieldPath<'_>) -> Option<BindConfig> {
    if pb.local_address_selector.is_some() {
        path.field("local_address_selector").error("not supported");
        return None;
    }
    let source = match &pb.source_address {
        Some(source) => Some(compile_ip_address(source, &path.field("source_address"))?),
        None => None,
    };
    check_extra_sources(pb, source, path);
    let mut extra = Vec::new();
    for (i, pb_extra) in pb.extra_source_addresses.iter().enumerate() {
        let path = path.index("extra_source_addresses", i);
        let Some(address) = &pb_extra.address else {
            path.field("address").error("value is required");
            return None;
        };
        let options = pb_extra.socket_options.as_ref().map(|o| {
            let path = path.field("socket_options");
            compile_socket_options(&o.socket_options, "socket_options", &path)
        });
        let address = compile_ip_address(address, &path.field("address"))?;
        extra.push(ExtraSource { address, socket_options: options });
    }
    for (i, address) in pb.additional_source_addresses.iter().enumerate() {
        let path = path.index("additional_source_addresses", i);
        let address = compile_ip_address(address, &path)?;
        extra.push(ExtraSource { address, socket_options: None });
    }
    Some(BindConfig {
        source,
        extra_sources: extra.into(),
        freebind: pb.freebind.as_ref().is_some_and(|v| v.value),
        socket_options: compile_socket_options(&pb.socket_options, "socket_options", path),
    })
}

/// A `core.v3.Locality`.
pub fn compile_locality(pb: Option<&pb::Locality>) -> Locality {
    pb.map_or_else(Locality::default, |l| Locality {
        region: l.region.as_str().into(),
        zone: l.zone.as_str().into(),
        sub_zone: l.sub_zone.as_str().into(),
    })
}

/// A `core.v3.Metadata`'s `filter_metadata`; `None` where it is empty. Typed metadata is not read by anything.
pub fn compile_metadata(pb: Option<&pb::Metadata>, path: &FieldPath<'_>) -> Option<Metadata> {
    let pb = pb?;
    for key in pb.typed_filter_metadata.keys() {
        path.key("typed_filter_metadata", key).ignored("typed metadata is not supported");
    }
    if pb.filter_metadata.is_empty() {
        return None;
    }
    let namespaces =
        pb.filter_metadata.iter().map(|(key, value)| (key.clone(), struct_to_json(value).into()));
    Some(Arc::new(namespaces.collect()))
}

/// A protobuf struct as JSON.
pub fn struct_to_json(pb: &pb_google::Struct) -> serde_json::Map<String, serde_json::Value> {
    pb.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect()
}

/// A protobuf value as JSON; whole numbers become integers, as JSON printers write them.
pub fn value_to_json(pb: &pb_google::Value) -> serde_json::Value {
    use pb_google::value::Kind;
    use serde_json::Value;
    match &pb.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::NumberValue(value)) => number_to_json(*value),
        Some(Kind::StructValue(value)) => Value::Object(struct_to_json(value)),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.iter().map(value_to_json).collect())
        }
    }
}

fn number_to_json(value: f64) -> serde_json::Value {
    // 2^53: whole numbers up to here are exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return serde_json::Value::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or(serde_json::Value::Null, Into::into)
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
