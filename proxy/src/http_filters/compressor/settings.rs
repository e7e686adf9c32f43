//! The compressor's configuration, compiled. pb `extensions.filters.http.compressor.v3`.

use std::sync::Arc;

use http::StatusCode;
use zstd::zstd_safe::Strategy;

use super::encoder::{BrotliMode, Library};
use super::heads::media_type;
use super::{CompressorStat, Config};
use crate::codec::head::HeaderList;
use crate::codec::name::names;
use crate::config::compile::core::{any_type, compile_runtime_flag, unpack_any};
use crate::config::compile::diagnostic::FieldPath;
use crate::config::compile::matcher::compile_string_matchers;
use crate::config::core::RuntimeFlag;
use crate::config::matcher::StringMatcher;
use crate::config::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::config::pb::envoy::extensions::compression::brotli::compressor::v3 as pb_brotli;
use crate::config::pb::envoy::extensions::compression::gzip::compressor::v3 as pb_gzip;
use crate::config::pb::envoy::extensions::compression::zstd::compressor::v3 as pb_zstd;
use crate::config::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use crate::config::pb::envoy::extensions::filters::http::compressor::v3::compressor_per_route::Override;
use crate::config::pb::google::protobuf::{Any, UInt32Value};
use crate::http_filters::PerRouteConfig;
use crate::stats::FilterStats;

pub const TYPE: &str = "envoy.extensions.filters.http.compressor.v3.Compressor";
pub const PER_ROUTE_TYPE: &str = "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute";

/// pb `min_content_length`, default; zero is the default too.
const MIN_LENGTH: u32 = 30;

/// Media types where none are configured.
const TYPES: [&str; 20] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];

/// `CommonDirectionConfig`.
#[derive(Debug)]
pub(super) struct Direction {
    /// `None` where the direction is not configured at all.
    enabled: Option<RuntimeFlag>,
    pub(super) min_length: u64,
    types: MediaTypes,
    /// Behind the filter's own prefix, with its dot: `.request`.
    pub(super) stat_suffix: &'static str,
    pub(super) stats: FilterStats<CompressorStat>,
}

#[derive(Debug)]
enum MediaTypes {
    /// Of whatever case.
    Listed(Box<[Box<[u8]>]>),
    Matched(Box<[StringMatcher]>),
}

impl Direction {
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.as_ref().is_some_and(RuntimeFlag::in_force)
    }

    /// Whether bodies of this media type are compressed.
    pub(super) fn takes(&self, media_type: &[u8]) -> bool {
        match &self.types {
            MediaTypes::Listed(all) => all.iter().any(|one| one.eq_ignore_ascii_case(media_type)),
            MediaTypes::Matched(matchers) => matchers.iter().any(|one| one.matches(media_type)),
        }
    }

    /// The same of a head; one without a type is taken.
    pub(super) fn takes_type_of(&self, headers: &HeaderList) -> bool {
        media_type(headers).is_none_or(|media_type| self.takes(media_type))
    }
}

/// `ResponseDirectionConfig`.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) direction: Direction,
    disable_on_etag: bool,
    pub(super) weaken_etag: bool,
    remove_accept_encoding: bool,
    uncompressible: Box<[u16]>,
    /// Says in `x-envoy-compression-status` what was done, or why nothing was.
    pub(super) shows_status: bool,
}

impl Response {
    pub(super) fn takes(&self, media_type: &[u8]) -> bool {
        self.direction.takes(media_type)
    }

    pub(super) fn takes_status(&self, status: StatusCode) -> bool {
        !self.uncompressible.contains(&status.as_u16())
    }

    /// Responses with a validator stay as they are.
    pub(super) fn keeps_for_etag(&self, headers: &HeaderList) -> bool {
        self.disable_on_etag && !self.weaken_etag && headers.contains(&names::ETAG)
    }

    pub(super) fn is_enabled(&self, route: Option<&PerRoute>) -> bool {
        let enabled = route.and_then(|route| route.enabled);
        enabled.unwrap_or_else(|| self.direction.is_enabled())
    }

    /// Whether upstreams do not see what the client accepts.
    pub(super) fn removes_accept_encoding(&self, route: Option<&PerRoute>) -> bool {
        let remove = route.and_then(|route| route.remove_accept_encoding);
        remove.unwrap_or(self.remove_accept_encoding)
    }
}

/// `CompressorPerRoute`.
#[derive(Debug)]
pub(super) struct PerRoute {
    enabled: Option<bool>,
    remove_accept_encoding: Option<bool>,
    /// In place of the filter's own.
    pub(super) library: Option<Library>,
}

#[expect(deprecated, reason = "the older fields hold where there is no response_direction_config")]
pub fn compile(any: &Any, _stat_prefix: &str, path: &FieldPath<'_>) -> Option<Arc<Config>> {
    let config: pb::Compressor = unpack_any(any, path)?;
    let at = path.field("compressor_library");
    let Some(extension) = &config.compressor_library else {
        at.error("is required");
        return None;
    };
    let library = compile_library(extension, &at)?;
    let stat_prefix = format!("compressor.{}.{}", extension.name, library.stat_name());
    let own = config.response_direction_config.as_ref();
    let common = match own {
        Some(own) => own.common_config.clone().unwrap_or_default(),
        None => pb::compressor::CommonDirectionConfig {
            enabled: config.runtime_enabled.clone(),
            min_content_length: config.content_length,
            content_type: config.content_type.clone(),
            ..Default::default()
        },
    };
    let suffix = if own.is_some() { ".response" } else { "" };
    let at = path.field("response_direction_config");
    let codes = own.map(|own| own.uncompressible_response_codes.as_slice()).unwrap_or_default();
    let response = Response {
        direction: compile_direction(&common, suffix, true, &at.field("common_config"))?,
        disable_on_etag: own
            .map_or(config.disable_on_etag_header, |own| own.disable_on_etag_header),
        weaken_etag: own.is_some_and(|own| own.weaken_etag_on_compress),
        remove_accept_encoding: own
            .map_or(config.remove_accept_encoding_header, |own| own.remove_accept_encoding_header),
        uncompressible: compile_codes(codes, &at)?,
        shows_status: own.is_some_and(|own| own.status_header_enabled),
    };
    let request = config.request_direction_config.as_ref();
    let common = request.and_then(|own| own.common_config.clone()).unwrap_or_default();
    let at = path.field("request_direction_config");
    let at = at.field("common_config");
    let request = compile_direction(&common, ".request", request.is_some(), &at)?;
    Some(Arc::new(Config {
        library,
        stat_prefix,
        choose_first: config.choose_first,
        request,
        response,
        accept_stats: FilterStats::default(),
    }))
}

fn compile_codes(codes: &[u32], path: &FieldPath<'_>) -> Option<Box<[u16]>> {
    let mut compiled: Vec<u16> = Vec::with_capacity(codes.len());
    for (index, code) in codes.iter().enumerate() {
        let path = path.index("uncompressible_response_codes", index);
        match u16::try_from(*code) {
            Ok(code) if compiled.contains(&code) => {
                path.error("repeated value must contain unique items");
                return None;
            }
            Ok(code @ 200..600) => compiled.push(code),
            _ => {
                path.error("value must be inside range [200, 600)");
                return None;
            }
        }
    }
    Some(compiled.into())
}

#[expect(deprecated, reason = "content_type holds where there is no content_type_matcher")]
fn compile_direction(
    pb: &pb::compressor::CommonDirectionConfig,
    stat_suffix: &'static str,
    is_set: bool,
    path: &FieldPath<'_>,
) -> Option<Direction> {
    let listed = |types: &mut dyn Iterator<Item = &str>| {
        MediaTypes::Listed(types.map(|one| one.as_bytes().into()).collect())
    };
    let types = if !pb.content_type_matcher.is_empty() {
        let field = "content_type_matcher";
        MediaTypes::Matched(compile_string_matchers(&pb.content_type_matcher, field, path)?)
    } else if pb.content_type.is_empty() {
        listed(&mut TYPES.into_iter())
    } else {
        listed(&mut pb.content_type.iter().map(String::as_str))
    };
    let min_length = pb.min_content_length.map_or(0, |length| length.value);
    let enabled = match &pb.enabled {
        Some(flag) => compile_runtime_flag(flag, &path.field("enabled"))?,
        None => RuntimeFlag { runtime_key: None, default: true },
    };
    Some(Direction {
        enabled: is_set.then_some(enabled),
        min_length: if min_length == 0 { MIN_LENGTH } else { min_length }.into(),
        types,
        stat_suffix,
        stats: FilterStats::default(),
    })
}

pub fn compile_per_route(any: &Any, path: &FieldPath<'_>) -> Option<PerRouteConfig> {
    let config: pb::CompressorPerRoute = unpack_any(any, path)?;
    let per_route = match &config.r#override {
        Some(Override::Disabled(true)) => {
            PerRoute { enabled: Some(false), remove_accept_encoding: None, library: None }
        }
        Some(Override::Disabled(false)) => {
            path.field("disabled").error("can only be true");
            return None;
        }
        Some(Override::Overrides(overrides)) => {
            let response = overrides.response_direction_config.as_ref();
            let at = path.field("overrides");
            let at = at.field("compressor_library");
            let library = match &overrides.compressor_library {
                Some(extension) => Some(compile_library(extension, &at)?),
                None => None,
            };
            PerRoute {
                library,
                enabled: response.map(|_| true),
                remove_accept_encoding: response
                    .and_then(|own| own.remove_accept_encoding_header)
                    .map(|remove| remove.value),
            }
        }
        None => {
            path.field("override").error("is required");
            return None;
        }
    };
    Some(Arc::new(per_route))
}

fn compile_library(extension: &TypedExtensionConfig, path: &FieldPath<'_>) -> Option<Library> {
    if extension.name.is_empty() {
        path.field("name").error("value length must be at least 1 characters");
    }
    let path = &path.field("typed_config");
    let Some(any) = &extension.typed_config else {
        path.error("is required");
        return None;
    };
    match any_type(any) {
        "envoy.extensions.compression.gzip.compressor.v3.Gzip" => {
            Some(compile_gzip(&unpack_any(any, path)?, path))
        }
        "envoy.extensions.compression.brotli.compressor.v3.Brotli" => {
            Some(compile_brotli(&unpack_any(any, path)?, path))
        }
        "envoy.extensions.compression.zstd.compressor.v3.Zstd" => {
            compile_zstd(&unpack_any(any, path)?, path)
        }
        other => {
            path.error(format_args!("compressor library {other:?} is not supported"));
            None
        }
    }
}

/// A number in its range, or its default.
fn number(
    value: Option<UInt32Value>,
    default: u32,
    (least, most): (u32, u32),
    name: &str,
    path: &FieldPath<'_>,
) -> u32 {
    let value = value.map_or(default, |value| value.value);
    if !(least..=most).contains(&value) {
        path.field(name).error(format_args!("value must be inside range [{least}, {most}]"));
        return default;
    }
    value
}

/// Of every library; output is not cut into chunks here.
fn check_chunk_size(value: Option<UInt32Value>, path: &FieldPath<'_>) {
    number(value, 4096, (4096, 65536), "chunk_size", path);
}

fn compile_gzip(pb: &pb_gzip::Gzip, path: &FieldPath<'_>) -> Library {
    /// zlib's.
    const DEFAULT_LEVEL: u32 = 6;
    let level = match u32::try_from(pb.compression_level) {
        Ok(0) => DEFAULT_LEVEL,
        Ok(level @ 1..=9) => level,
        _ => {
            path.field("compression_level").error("unknown enum value");
            DEFAULT_LEVEL
        }
    };
    let window_bits = number(pb.window_bits, 12, (9, 15), "window_bits", path) as u8;
    number(pb.memory_level, 5, (1, 9), "memory_level", path);
    check_chunk_size(pb.chunk_size, path);
    if !(0..=4).contains(&pb.compression_strategy) {
        path.field("compression_strategy").error("unknown enum value");
    }
    Library::Gzip { level, window_bits }
}

fn compile_brotli(pb: &pb_brotli::Brotli, path: &FieldPath<'_>) -> Library {
    check_chunk_size(pb.chunk_size, path);
    if !(0..=3).contains(&pb.encoder_mode) {
        path.field("encoder_mode").error("unknown enum value");
    }
    Library::Brotli {
        quality: number(pb.quality, 3, (0, 11), "quality", path),
        window_bits: number(pb.window_bits, 18, (10, 24), "window_bits", path),
        block_bits: number(pb.input_block_bits, 24, (16, 24), "input_block_bits", path),
        mode: match pb.encoder_mode {
            2 => BrotliMode::Text,
            3 => BrotliMode::Font,
            _ => BrotliMode::Generic,
        },
        no_context_modeling: pb.disable_literal_context_modeling,
    }
}

fn compile_zstd(pb: &pb_zstd::Zstd, path: &FieldPath<'_>) -> Option<Library> {
    let strategy = match pb.strategy {
        0 => None,
        1 => Some(Strategy::ZSTD_fast),
        2 => Some(Strategy::ZSTD_dfast),
        3 => Some(Strategy::ZSTD_greedy),
        4 => Some(Strategy::ZSTD_lazy),
        5 => Some(Strategy::ZSTD_lazy2),
        6 => Some(Strategy::ZSTD_btlazy2),
        7 => Some(Strategy::ZSTD_btopt),
        8 => Some(Strategy::ZSTD_btultra),
        9 => Some(Strategy::ZSTD_btultra2),
        _ => {
            path.field("strategy").error("unknown enum value");
            return None;
        }
    };
    check_chunk_size(pb.chunk_size, path);
    let level = number(pb.compression_level, 3, (1, 22), "compression_level", path) as i32;
    Some(Library::Zstd { level, checksum: pb.enable_checksum, strategy })
}
