//! The HTTP/2 client on the crate h2, prior knowledge, one connection per case.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{HeaderMap, Uri};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::DEADLINE;
use crate::area::{Case, Request};
use crate::observe::{Normaliser, show_body};
use crate::upstream::Upstreams;
use crate::upstream::h1::pieces;
use crate::upstream::h2::{insert, map_lines, send};

/// Bodies that need no wait for the window: less than it is at first.
const SMALL: usize = 8 << 10;

/// Runs a case: requests one after the other on one connection.
///
/// # Errors
/// When the proxy does not accept the connection, or the case cannot be said in HTTP/2.
pub async fn run(
    to: SocketAddr,
    case: &Case,
    upstreams: &Upstreams,
    normaliser: &Normaliser,
    linger: Duration,
) -> Result<Vec<String>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .handshake::<_, Bytes>(stream)
        .await?;
    let (ended, mut end) = oneshot::channel();
    tokio::spawn(async move {
        let result = connection.await;
        let _ = ended.send(match result {
            Ok(()) => "closed".to_owned(),
            Err(e) if e.is_go_away() => format!("goaway {:?}", e.reason()),
            Err(e) => e.reason().map_or("closed".into(), |r| format!("error {r:?}")),
        });
    });
    let mut lines = Vec::new();
    for (i, request) in std::iter::once(&case.request).chain(&case.requests).enumerate() {
        let at = format!("client[{i}]");
        let done = exchange(&mut sender, request, &at, upstreams, normaliser, &mut lines);
        match timeout(DEADLINE, done).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => lines.push(format!("{at} stream {}", reason(&e))),
            Err(_) => lines.push(format!("{at} silent")),
        }
    }
    let fate = match timeout(linger, &mut end).await {
        Ok(Ok(how)) => how,
        _ => "kept alive".into(),
    };
    lines.push(format!("client connection {fate}"));
    Ok(lines)
}

fn reason(error: &h2::Error) -> String {
    let kind = if error.is_go_away() {
        "goaway"
    } else if error.is_reset() {
        "reset"
    } else if error.is_io() {
        return "closed".into();
    } else {
        "error"
    };
    error.reason().map_or_else(|| format!("{kind} {error}"), |r| format!("{kind} {r:?}"))
}

async fn exchange(
    sender: &mut SendRequest<Bytes>,
    request: &Request,
    at: &str,
    upstreams: &Upstreams,
    normaliser: &Normaliser,
    lines: &mut Vec<String>,
) -> Result<(), h2::Error> {
    let parts = pieces(request.body.as_deref(), request.body_size, &request.chunks, &request.grpc);
    let open = request.finish.is_some() || request.connect_protocol.is_some();
    let end = parts.is_empty() && request.trailers.is_empty() && !open;
    std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
    if request.connect_protocol.is_some() {
        // The peer's SETTINGS must have come.
        for _ in 0..200 {
            if sender.is_extended_connect_protocol_enabled() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    let (response, stream) = sender.send_request(build(request), end)?;
    if request.body_after.as_deref() == Some("response_head") {
        return receive(response, Some((stream, parts, request)), at, normaliser, lines).await;
    }
    if end {
        return receive(response, None, at, normaliser, lines).await;
    }
    if request.body_after.as_deref() == Some("upstream_head") {
        // What never came shows in what the upstreams saw.
        let _ = upstreams.wait(|seen| !seen.is_empty()).await;
    }
    let mut stream = stream;
    // A reset while sending shows on the receiving side.
    let sent = write(&mut stream, parts, request).await;
    let keep = if sent.is_ok() && open { Some((stream, Vec::new(), request)) } else { None };
    receive(response, keep, at, normaliser, lines).await
}

async fn write(
    stream: &mut SendStream<Bytes>,
    parts: Vec<Vec<u8>>,
    request: &Request,
) -> Result<(), h2::Error> {
    let count = parts.len();
    let open = request.finish.is_some() || !request.trailers.is_empty();
    // Queued at once, a small body leaves in one segment with its head: whether a proxy that
    // answers at the head has seen the request's end is then no matter of chance.
    let small = parts.iter().map(Vec::len).sum::<usize>() <= SMALL;
    for (i, part) in parts.into_iter().enumerate() {
        let end = i + 1 == count && !open;
        if small {
            stream.send_data(part.into(), end)?;
        } else {
            send(stream, part.into(), end).await?;
        }
    }
    if !request.trailers.is_empty() {
        let mut map = HeaderMap::new();
        for line in &request.trailers {
            insert(&mut map, line);
        }
        stream.send_trailers(map)?;
    }
    Ok(())
}

/// An open stream, the body pieces still to be sent, and their request.
type Unsent<'a> = (SendStream<Bytes>, Vec<Vec<u8>>, &'a Request);

async fn receive(
    mut response: ResponseFuture,
    rest: Option<Unsent<'_>>,
    at: &str,
    normaliser: &Normaliser,
    lines: &mut Vec<String>,
) -> Result<(), h2::Error> {
    let head = loop {
        match std::future::poll_fn(|cx| poll_response(&mut response, cx)).await? {
            Head::Informational(info) => {
                lines.push(format!("{at} status {}", info.status().as_u16()));
                lines.extend(header_lines(at, "header", info.headers(), normaliser));
            }
            Head::Final(head) => break head,
        }
    };
    lines.push(format!("{at} status {}", head.status().as_u16()));
    lines.extend(header_lines(at, "header", head.headers(), normaliser));
    let mut kept = None;
    let mut body = head.into_body();
    if let Some((mut stream, parts, request)) = rest {
        let reset = request.finish.as_deref() == Some("reset");
        if !parts.is_empty() || !request.trailers.is_empty() && request.body_after.is_some() {
            let _ = write(&mut stream, parts, request).await;
        } else if !reset && request.finish.is_none() {
            let _ = stream.send_data(Bytes::new(), true);
        }
        if reset {
            // Not before something of the body came, or it would be chance how much was logged.
            let _ = body.data().await;
            stream.send_reset(Reason::CANCEL);
            lines.push(format!("{at} client resets"));
            return Ok(());
        }
        kept = Some(stream);
    }
    let mut data = Vec::new();
    let result = loop {
        match body.data().await {
            Some(Ok(part)) => {
                let _ = body.flow_control().release_capacity(part.len());
                data.extend_from_slice(&part);
            }
            Some(Err(e)) => break Err(e),
            None => break Ok(()),
        }
    };
    lines.push(format!("{at} body {}", show_body(&data)));
    result?;
    if let Some(trailers) = body.trailers().await? {
        lines.extend(header_lines(at, "trailer", &trailers, normaliser));
    }
    drop(kept);
    lines.push(format!("{at} complete"));
    Ok(())
}

enum Head {
    Informational(http::Response<()>),
    Final(http::Response<h2::RecvStream>),
}

fn poll_response(
    response: &mut ResponseFuture,
    cx: &mut Context<'_>,
) -> Poll<Result<Head, h2::Error>> {
    if let Poll::Ready(Some(info)) = response.poll_informational(cx) {
        return Poll::Ready(info.map(Head::Informational));
    }
    Pin::new(response).poll(cx).map_ok(Head::Final)
}

fn header_lines(at: &str, what: &str, map: &HeaderMap, normaliser: &Normaliser) -> Vec<String> {
    let lines = map_lines(map);
    let pairs = lines.iter().filter_map(|l| l.split_once(": "));
    normaliser.headers(&format!("{at} {what}"), pairs)
}

fn build(request: &Request) -> http::Request<()> {
    let method = request.method.as_deref().unwrap_or("GET");
    let path = request.path.as_deref().unwrap_or("/");
    let host = request.host.as_deref().unwrap_or("test.local");
    let connect = method == "CONNECT" && request.connect_protocol.is_none();
    let uri: Uri = if connect {
        Uri::builder().authority(host).build().unwrap_or_default()
    } else if host.is_empty() {
        path.parse().unwrap_or_default()
    } else {
        Uri::builder()
            .scheme("http")
            .authority(host)
            .path_and_query(path)
            .build()
            .unwrap_or_default()
    };
    let mut out = http::Request::new(());
    *out.method_mut() = method.parse().unwrap_or_default();
    *out.uri_mut() = uri;
    *out.version_mut() = http::Version::HTTP_2;
    for line in &request.headers {
        insert(out.headers_mut(), line);
    }
    if let Some(protocol) = &request.connect_protocol {
        out.extensions_mut().insert(h2::ext::Protocol::from(protocol.as_str()));
    }
    out
}
