//! Which responses are compressed, for whom, and what is left of their heads.

use std::io::Read;

use http::StatusCode;

use super::choice::Decision;
use super::*;
use crate::config::pb::envoy::config::core::v3::TypedExtensionConfig;
use crate::config::pb::envoy::extensions::compression::brotli::compressor::v3::Brotli;
use crate::config::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use crate::config::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use crate::config::pb::google::protobuf::Any;
use crate::http_filters::testing::{TestStream, any, compiled, print};

fn config(library: &Any, choose_first: bool) -> Arc<Config> {
    let typed_config = Some(library.clone());
    let config = pb::Compressor {
        compressor_library: Some(TypedExtensionConfig { name: "l".into(), typed_config }),
        choose_first,
        ..Default::default()
    };
    compiled(|path| compile(&any(&config), "", path)).unwrap()
}

fn gzip() -> Arc<Config> {
    config(&any(&Gzip::default()), false)
}

fn head(stream: &TestStream, length: &[u8]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK, stream.request.protocol);
    head.headers.set(&names::CONTENT_TYPE, b"text/plain; charset=utf-8");
    head.headers.set(&names::CONTENT_LENGTH, length);
    head
}

/// A response's head behind the filter, for a client with this `accept-encoding`.
fn answer(accept: &[u8], change: impl FnOnce(&mut HeaderList)) -> HeaderList {
    let (mut stream, mut filter) = (TestStream::new(None), Filter::new(&gzip()));
    stream.request.headers.set(&names::ACCEPT_ENCODING, accept);
    stream.with(|cx| filter.on_request_head(cx, true));
    let mut head = head(&stream, b"100");
    change(&mut head.headers);
    stream.with(|cx| filter.on_response_head(cx, &mut head, false));
    head.headers
}

#[test]
fn heads_say_what_was_done() {
    let headers = answer(b"gzip", |headers| headers.set(&names::ETAG, b"\"strong\""));
    assert_eq!(headers.get(&names::CONTENT_ENCODING), Some(&b"gzip"[..]));
    assert_eq!(headers.get(&names::VARY), Some(&b"Accept-Encoding"[..]));
    assert!(!headers.contains(&names::CONTENT_LENGTH) && !headers.contains(&names::ETAG));
    let headers = answer(b"br", |headers| headers.set(&names::VARY, b"x"));
    assert!(!headers.contains(&names::CONTENT_ENCODING));
    assert_eq!(headers.get(&names::VARY), Some(&b"x, Accept-Encoding"[..]));
    let headers = answer(b"gzip", |headers| headers.set(&names::CACHE_CONTROL, b"a, no-transform"));
    assert!(!headers.contains(&names::CONTENT_ENCODING) && !headers.contains(&names::VARY));
    let headers = answer(b"gzip", |headers| headers.set(&names::CONTENT_LENGTH, b"29"));
    assert!(!headers.contains(&names::CONTENT_ENCODING));
    let headers = answer(b"gzip", |headers| headers.set(&names::CONTENT_TYPE, b"image/png"));
    assert!(!headers.contains(&names::CONTENT_ENCODING));
}

#[test]
fn a_long_frame_lets_others_have_their_turn_and_comes_out_whole() {
    let (mut stream, mut filter) = (TestStream::new(None), Filter::new(&gzip()));
    stream.request.headers.set(&names::ACCEPT_ENCODING, b"gzip");
    stream.with(|cx| filter.on_request_head(cx, true));
    let mut head = head(&stream, b"50000");
    stream.with(|cx| filter.on_response_head(cx, &mut head, false));
    let text: Vec<u8> = (0..50_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let mut data = Bytes::from(text.clone());
    let mut turns = 1;
    loop {
        let flow = stream.with(|cx| filter.on_response_data(cx, &mut data, false));
        match print(&flow).as_str() {
            "wait" => turns += 1,
            other => break assert_eq!(other, "continue"),
        }
    }
    assert_eq!(turns, 50_000_usize.div_ceil(PIECE));
    let tail = filter.response_tail();
    let mut decoded = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(&*data).chain(&*tail);
    reader.read_to_end(&mut decoded).ok();
    let all = [&data[..], &tail].concat();
    decoded.clear();
    flate2::read::GzDecoder::new(&all[..]).read_to_end(&mut decoded).unwrap();
    assert_eq!(decoded, text);
}

fn choose_of(chain: &[Arc<Config>], accept: &str, content_type: &[u8]) -> Decision {
    let offers =
        chain.iter().map(|one| Offer { encoding: one.library.content_encoding(), compressor: one });
    choose(offers, accept, Some(content_type))
}

#[test]
fn encodings_are_chosen_by_weight() {
    let brotli = || any(&Brotli::default());
    let chain = [gzip(), config(&brotli(), false)];
    let first = [gzip(), config(&brotli(), true)];
    for (chain, accept, encoding, reason) in [
        (&chain, "gzip", "gzip", Reason::Named),
        (&chain, "br, gzip", "br", Reason::Named),
        (&chain, "br;q=0.5, gzip;q=0.8", "gzip", Reason::Named),
        (&first, "gzip, br", "br", Reason::Named),
        (&chain, "*", "gzip", Reason::Wildcard),
        (&chain, "gzip;q=0, *", "br", Reason::Wildcard),
        (&chain, "gzip;q=0, br;q=0, *", "identity", Reason::NotValid),
        (&chain, "identity", "identity", Reason::Identity),
        (&chain, "gzip;q=0.1, identity", "identity", Reason::Identity),
        (&chain, "deflate", "identity", Reason::NotValid),
        (&chain, "gzip;q=x", "identity", Reason::NotValid),
        (&chain, "", "identity", Reason::NotValid),
    ] {
        assert_eq!(
            choose_of(chain, accept, b"text/html"),
            Decision { encoding, reason },
            "{accept}"
        );
    }
    let decision = choose_of(&chain, "gzip", b"image/png");
    assert_eq!(decision.reason, Reason::NotValid);
}

#[test]
fn wrong_settings_are_named() {
    let mut gzip = Gzip { compression_level: 12, ..Default::default() };
    let typed_config = |gzip: &Gzip| Some(any(gzip));
    let compressor = |typed_config| pb::Compressor {
        compressor_library: Some(TypedExtensionConfig { name: "l".into(), typed_config }),
        ..Default::default()
    };
    let wrong = compiled(|path| compile(&any(&compressor(typed_config(&gzip))), "", path));
    assert!(wrong.unwrap_err().contains("compression_level"));
    gzip = Gzip {
        window_bits: Some(crate::config::pb::google::protobuf::UInt32Value { value: 8 }),
        ..Default::default()
    };
    let wrong = compiled(|path| compile(&any(&compressor(typed_config(&gzip))), "", path));
    assert!(wrong.unwrap_err().contains("window_bits"));
    let other = Some(any(&pb::Compressor::default()));
    let wrong = compiled(|path| compile(&any(&compressor(other.clone())), "", path));
    assert!(wrong.unwrap_err().contains("not supported"));
}
