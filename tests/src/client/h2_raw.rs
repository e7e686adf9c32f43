//! HTTP/2 frames written by hand, for requests that no library would send.
//!
//! A frame of a case is one string: `headers STREAM FLAGS name: value | name: value` (FLAGS of
//! `e` end of stream, `h` end of headers, or `-`), `data STREAM FLAGS text`, `rst STREAM CODE`,
//! `settings`, `ping`, `window STREAM N`, `raw HEX`. Header fields are literals without indexing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::area::{Case, bytes};

const HEADERS: u8 = 1;

/// Runs a case: preface, SETTINGS, the frames, then everything that comes back until it is quiet.
///
/// # Errors
/// When the proxy does not accept, or a frame of the case cannot be read.
pub async fn run(to: SocketAddr, case: &Case, quiet: Duration) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    for text in &case.frames {
        out.extend(parse(text).with_context(|| text.clone())?);
    }
    stream.write_all(&out).await?;
    let mut received = Vec::new();
    let mut lines = Vec::new();
    let fate = loop {
        match timeout(quiet.max(Duration::from_millis(150)), stream.read_buf(&mut received)).await {
            Err(_) => break "kept alive",
            Ok(Ok(0)) => break "closed",
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break "reset",
        }
    };
    decode(&received, &mut lines);
    lines.push(format!("client connection {fate}"));
    Ok(lines)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn parse(text: &str) -> Result<Vec<u8>> {
    let mut words = text.splitn(4, ' ');
    let kind = words.next().unwrap_or_default();
    if kind == "settings" {
        return Ok(frame(4, 0, 0, &[]));
    }
    if kind == "ping" {
        return Ok(frame(6, 0, 0, b"12345678"));
    }
    let second = words.next().context("a frame needs an argument")?;
    if kind == "raw" {
        let hex = crate::wire::latin1(&bytes(second));
        return (0..hex.len())
            .step_by(2)
            .map(|i| Ok(u8::from_str_radix(hex.get(i..i + 2).context("odd hex")?, 16)?))
            .collect();
    }
    let stream: u32 = second.parse()?;
    let third = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default();
    let mut flags = 0;
    if third.contains('e') {
        flags |= 1;
    }
    if third.contains('h') {
        flags |= 4;
    }
    Ok(match kind {
        "headers" => {
            let mut block = Vec::new();
            for field in rest.split(" | ") {
                let field = bytes(field);
                let colon =
                    field.iter().skip(1).position(|b| *b == b':').map_or(field.len(), |i| i + 1);
                let value = field.get(colon + 1..).unwrap_or_default();
                block.push(0);
                literal(&field[..colon], &mut block);
                // One space after the colon is notation, more belong to the value.
                literal(value.strip_prefix(b" ").unwrap_or(value), &mut block);
            }
            frame(HEADERS, flags, stream, &block)
        }
        "data" => frame(0, flags, stream, &bytes(rest)),
        "rst" => frame(3, 0, stream, &third.parse::<u32>()?.to_be_bytes()),
        "window" => frame(8, 0, stream, &third.parse::<u32>()?.to_be_bytes()),
        other => anyhow::bail!("no such frame: {other}"),
    })
}

fn literal(text: &[u8], out: &mut Vec<u8>) {
    if text.len() < 127 {
        out.push(u8::try_from(text.len()).unwrap_or(0));
    } else {
        out.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128 + 128).unwrap_or(0));
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap_or(0));
    }
    out.extend_from_slice(text);
}

/// Lines for the frames that say what became of requests: HEADERS, RST_STREAM, GOAWAY.
fn decode(mut received: &[u8], lines: &mut Vec<String>) {
    while received.len() >= 9 {
        let length = usize::from(received[0]) << 16
            | usize::from(received[1]) << 8
            | usize::from(received[2]);
        let (kind, flags) = (received[3], received[4]);
        let word = |at: usize| {
            received.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        };
        let stream = word(5);
        match kind {
            HEADERS => {
                let status = received.get(9..).and_then(status).unwrap_or_else(|| "?".into());
                let end = if flags & 1 != 0 { " end" } else { "" };
                lines.push(format!("client frame HEADERS stream {stream} status {status}{end}"));
            }
            0 if flags & 1 != 0 => lines.push(format!("client frame DATA stream {stream} end")),
            3 => lines.push(format!("client frame RST_STREAM stream {stream} code {}", word(9))),
            7 => lines.push(format!("client frame GOAWAY code {}", word(13))),
            _ => {}
        }
        received = received.get(9 + length..).unwrap_or_default();
    }
}

/// `:status`, always the first field: indexed, or a literal with an indexed name.
fn status(block: &[u8]) -> Option<String> {
    const INDEXED: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
    let block = if block.first()? & 0xe0 == 0x20 { &block[1..] } else { block };
    let first = *block.first()?;
    if first & 0x80 != 0 {
        return INDEXED.get(usize::from(first & 0x7f).checked_sub(8)?).map(|s| (*s).to_owned());
    }
    let length = *block.get(1)?;
    let text = block.get(2..2 + usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return Some(crate::wire::latin1(text));
    }
    Some(huffman_digits(text))
}

/// Digits in HPACK's Huffman code: 0–2 have five bits, 3–9 six.
fn huffman_digits(text: &[u8]) -> String {
    let bits: Vec<u8> = text.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect();
    let mut out = String::new();
    let mut rest = bits.as_slice();
    while rest.len() >= 5 {
        let value = |n: usize| rest.iter().take(n).fold(0_u8, |v, b| v << 1 | b);
        if value(5) < 3 {
            out.push(char::from(b'0' + value(5)));
            rest = &rest[5..];
        } else if rest.len() >= 6 && (0x19..=0x1f).contains(&value(6)) {
            out.push(char::from(b'3' + value(6) - 0x19));
            rest = &rest[6..];
        } else {
            break;
        }
    }
    out
}
