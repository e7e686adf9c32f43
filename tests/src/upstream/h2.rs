//! The HTTP/2 side of a scripted upstream, on the crate h2.

use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::h1::pieces;
use super::{Peer, Seen};
use crate::area::{Answer, header};

/// What a stream asks of its connection.
enum Order {
    GoAway,
    Close,
}

pub(super) async fn serve(stream: TcpStream, peer: Peer) {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol().initial_window_size(1 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (orders, mut inbox) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                tasks.spawn(exchange(request, respond, peer.clone(), orders.clone()));
            }
            order = inbox.recv() => match order {
                Some(Order::GoAway) => connection.graceful_shutdown(),
                Some(Order::Close) | None => return,
            },
            _ = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: Peer,
    orders: mpsc::UnboundedSender<Order>,
) {
    let (parts, body) = request.into_parts();
    let index = peer.shared.record(Seen {
        upstream: peer.name.clone(),
        connection: peer.connection,
        head: head_lines(&parts),
        end: "open".into(),
        ..Seen::default()
    });
    let answer = peer.shared.answer(&peer.name);
    let waits = !answer.early && !answer.echo;
    let mut body = Some(body);
    if waits && let Some(body) = body.take() {
        read_body(body, &peer, index).await;
    }
    let is = |what: &str| answer.instead.as_deref() == Some(what);
    if is("close") {
        let _ = orders.send(Order::Close);
        // Dropped with the connection; dropped earlier, the stream would be reset first.
        return std::future::pending().await;
    } else if is("refuse") {
        return respond.send_reset(Reason::REFUSED_STREAM);
    } else if is("reset") {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    } else if is("goaway") {
        let _ = orders.send(Order::GoAway);
        return respond.send_reset(Reason::REFUSED_STREAM);
    } else if is("hang") {
        let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        let how = reason.map_or_else(|_| "closed".into(), |r| format!("reset {r:?}"));
        return peer.shared.update(index, |s| s.end.push_str(&format!(", then {how}")));
    }
    sleep(Duration::from_millis(answer.delay_ms)).await;
    let echo = if answer.echo { body.take() } else { None };
    if let Some(stream) = write_answer(&answer, &mut respond, echo, &peer, index).await {
        finish(&answer, stream, &orders, &peer, index).await;
    }
    if let Some(body) = body.take() {
        read_body(body, &peer, index).await;
    }
}

fn head_lines(parts: &http::request::Parts) -> Vec<String> {
    let mut lines = vec![format!(":method: {}", parts.method)];
    if let Some(scheme) = parts.uri.scheme_str() {
        lines.push(format!(":scheme: {scheme}"));
    }
    if let Some(authority) = parts.uri.authority() {
        lines.push(format!(":authority: {authority}"));
    }
    if let Some(path) = parts.uri.path_and_query() {
        lines.push(format!(":path: {path}"));
    }
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        lines.push(format!(":protocol: {}", protocol.as_str()));
    }
    lines.extend(map_lines(&parts.headers));
    lines
}

/// Header lines of a map.
pub(crate) fn map_lines(map: &HeaderMap) -> Vec<String> {
    map.iter().map(|(n, v)| format!("{n}: {}", crate::wire::latin1(v.as_bytes()))).collect()
}

async fn read_body(mut body: RecvStream, peer: &Peer, index: usize) {
    loop {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                peer.shared.update(index, |s| s.body.extend_from_slice(&data));
            }
            Some(Err(e)) => {
                let how = e.reason().map_or_else(|| "closed".into(), |r| format!("reset {r:?}"));
                return peer.shared.update(index, |s| s.end = how);
            }
            None => break,
        }
    }
    let trailers = body.trailers().await;
    peer.shared.update(index, |s| match trailers {
        Ok(trailers) => {
            s.trailers = trailers.as_ref().map(map_lines).unwrap_or_default();
            s.end = "complete".into();
        }
        Err(e) => s.end = e.reason().map_or("closed".into(), |r| format!("reset {r:?}")),
    });
}

async fn write_answer(
    answer: &Answer,
    respond: &mut SendResponse<Bytes>,
    echo: Option<RecvStream>,
    peer: &Peer,
    index: usize,
) -> Option<SendStream<Bytes>> {
    for line in &answer.informational {
        let (status, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut info = Response::builder().status(status.parse().unwrap_or(103)).body(()).ok()?;
        if !rest.is_empty() {
            insert(info.headers_mut(), rest);
        }
        respond.send_informational(info).ok()?;
        sleep(Duration::from_millis(answer.chunk_delay_ms)).await;
    }
    let mut response = Response::builder().status(answer.status.unwrap_or(200)).body(()).ok()?;
    for line in &answer.headers {
        insert(response.headers_mut(), line);
    }
    let parts = pieces(answer.body.as_deref(), answer.body_size, &answer.chunks, &answer.grpc);
    let unfinished = echo.is_some() || answer.then.is_some() || answer.truncate.is_some();
    let end = parts.is_empty() && answer.trailers.is_empty() && !unfinished;
    let mut stream = respond.send_response(response, end).ok()?;
    if end {
        return None;
    }
    let mut left = answer.truncate.unwrap_or(usize::MAX);
    let count = parts.len();
    for (i, mut part) in parts.into_iter().enumerate() {
        sleep(Duration::from_millis(answer.chunk_delay_ms)).await;
        part.truncate(left);
        left -= part.len();
        let last = i + 1 == count && answer.trailers.is_empty() && !unfinished;
        send(&mut stream, part.into(), last).await.ok()?;
    }
    if let Some(body) = echo {
        tunnel(body, &mut stream, answer.trailers.is_empty(), peer, index).await;
    }
    if !answer.trailers.is_empty() && answer.then.is_none() {
        let mut map = HeaderMap::new();
        for line in &answer.trailers {
            insert(&mut map, line);
        }
        stream.send_trailers(map).ok()?;
        return None;
    }
    (unfinished && !answer.echo).then_some(stream)
}

async fn finish(
    answer: &Answer,
    mut stream: SendStream<Bytes>,
    orders: &mpsc::UnboundedSender<Order>,
    peer: &Peer,
    index: usize,
) {
    match answer.then.as_deref() {
        Some("close") => {
            // What was sent must leave first.
            sleep(Duration::from_millis(20)).await;
            let _ = orders.send(Order::Close);
            // Dropped with the connection; dropped earlier, the stream would be reset first.
            std::future::pending::<()>().await;
        }
        Some("goaway") => {
            let _ = orders.send(Order::GoAway);
            let _ = stream.send_data(Bytes::new(), true);
        }
        Some("hang") => {
            let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            let how = reason.map_or_else(|_| "closed".into(), |r| format!("reset {r:?}"));
            peer.shared.update(index, |s| s.end.push_str(&format!(", then {how}")));
        }
        _ => {
            sleep(Duration::from_millis(20)).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

async fn tunnel(
    mut body: RecvStream,
    stream: &mut SendStream<Bytes>,
    ends: bool,
    peer: &Peer,
    index: usize,
) {
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        peer.shared.update(index, |s| s.body.extend_from_slice(&data));
        if send(stream, data, false).await.is_err() {
            return;
        }
    }
    peer.shared.update(index, |s| s.end = "tunnel closed".into());
    if ends {
        let _ = stream.send_data(Bytes::new(), true);
    }
}

/// Sends as the window allows.
pub(crate) async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    if data.is_empty() {
        return stream.send_data(data, end);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(granted) = granted.transpose()? else { return Err(Reason::CANCEL.into()) };
        let part = data.split_to(granted.min(data.len()));
        let last = end && data.is_empty();
        stream.send_data(part, last)?;
    }
    Ok(())
}

/// Adds a `name: value` line to a map.
pub(crate) fn insert(map: &mut HeaderMap, line: &str) {
    let (name, value) = header(line);
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&name), HeaderValue::from_bytes(&value))
    {
        map.append(name, value);
    }
}
