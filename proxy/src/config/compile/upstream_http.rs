//! pb `extensions.upstreams.http.v3.HttpProtocolOptions` of a Cluster to its compiled form.

use crate::codec::name::HeaderName;
use crate::config::compile::core::{any_type, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::protocol_options::{
    compile_common_http_options, compile_http1_options, compile_http2_options,
};
use crate::config::pb::envoy::config::core::v3 as pb_core;
use crate::config::pb::envoy::extensions::upstreams::http::v3 as pb_upstream;
use crate::config::pb::google::protobuf::Any;
use crate::config::protocol_options::{AutoSni, UpstreamHttpOptions, UpstreamProtocolChoice};

/// The key of `typed_extension_protocol_options` that holds a cluster's HTTP options.
pub const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster's `extensions.upstreams.http.v3.HttpProtocolOptions`, packed.
pub fn compile_upstream_http_options(any: &Any, path: &FieldPath<'_>) -> UpstreamHttpOptions {
    use pb_upstream::http_protocol_options::UpstreamProtocolOptions as Pb;
    use pb_upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    let Some(pb) = unpack_any::<pb_upstream::HttpProtocolOptions>(any, path) else {
        return UpstreamHttpOptions::default();
    };
    let common = pb.common_http_protocol_options.as_ref();
    let mut options = UpstreamHttpOptions {
        common: compile_common_http_options(common, &path.field("common_http_protocol_options")),
        ..UpstreamHttpOptions::default()
    };
    options.auto_sni = compile_auto_sni(
        pb.upstream_http_protocol_options.as_ref(),
        &path.field("upstream_http_protocol_options"),
    );
    refuse_unsupported(&pb, path);
    match &pb.upstream_protocol_options {
        None => path.field("upstream_protocol_options").error("value is required"),
        Some(Pb::ExplicitHttpConfig(explicit)) => {
            let path = path.field("explicit_http_config");
            match &explicit.protocol_config {
                None => path.field("protocol_config").error("value is required"),
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    let path = path.field("http_protocol_options");
                    options.http1 = compile_http1_options(Some(http1), &path);
                }
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    let path = path.field("http2_protocol_options");
                    options.choice = UpstreamProtocolChoice::Http2;
                    options.http2 = compile_http2_options(Some(http2), &path);
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    path.field("http3_protocol_options").error("HTTP/3 is not supported");
                }
            }
        }
        Some(Pb::UseDownstreamProtocolConfig(pb)) => {
            let path = path.field("use_downstream_protocol_config");
            options.choice = UpstreamProtocolChoice::Downstream;
            let (http1, http2) = (&pb.http_protocol_options, &pb.http2_protocol_options);
            options.http1 =
                compile_http1_options(http1.as_ref(), &path.field("http_protocol_options"));
            options.http2 =
                compile_http2_options(http2.as_ref(), &path.field("http2_protocol_options"));
            if pb.http3_protocol_options.is_some() {
                path.field("http3_protocol_options").error("HTTP/3 is not supported");
            }
        }
        Some(Pb::AutoConfig(pb)) => {
            let path = path.field("auto_config");
            options.choice = UpstreamProtocolChoice::Auto;
            let (http1, http2) = (&pb.http_protocol_options, &pb.http2_protocol_options);
            options.http1 =
                compile_http1_options(http1.as_ref(), &path.field("http_protocol_options"));
            options.http2 =
                compile_http2_options(http2.as_ref(), &path.field("http2_protocol_options"));
            if pb.http3_protocol_options.is_some() {
                path.field("http3_protocol_options").error("HTTP/3 is not supported");
            }
        }
    }
    options
}

/// Compiles `UpstreamHttpProtocolOptions`; `None` where it asks for nothing.
pub fn compile_auto_sni(
    pb: Option<&pb_core::UpstreamHttpProtocolOptions>,
    path: &FieldPath<'_>,
) -> Option<AutoSni> {
    let pb = pb.filter(|pb| pb.auto_sni || pb.auto_san_validation)?;
    let header = (!pb.override_auto_sni_header.is_empty()).then(|| {
        let at = path.field("override_auto_sni_header");
        at.ok_or_error(HeaderName::parse(&pb.override_auto_sni_header))
    });
    Some(AutoSni { sni: pb.auto_sni, validate: pb.auto_san_validation, header: header.flatten() })
}

fn refuse_unsupported(pb: &pb_upstream::HttpProtocolOptions, path: &FieldPath<'_>) {
    const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
    use crate::config::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    for (i, filter) in pb.http_filters.iter().enumerate() {
        let is_codec = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => any_type(any) == CODEC,
            Some(ConfigType::ConfigDiscovery(_)) => false,
            None => filter.name == "envoy.filters.http.upstream_codec",
        };
        if !is_codec {
            path.index("http_filters", i)
                .error(format_args!("upstream HTTP filter {:?} is not supported", filter.name));
        }
    }
    if pb.header_validation_config.is_some() {
        path.field("header_validation_config").error("not supported");
    }
}
