//! A trickle of traffic through the mesh, so that the access log shows something from the start.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ports;

/// One request a second, each kind in turn, for ever.
pub(super) async fn run() {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    let mut failing = false;
    for turn in 0_u64.. {
        interval.tick().await;
        let outcome = match turn % 4 {
            0 => get("/hello").await,
            1 => check_health().await,
            2 => get("/flaky").await,
            _ => echo().await,
        };
        match outcome {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the sample traffic does not get through");
            }
            Err(_) => {}
        }
    }
}

async fn get(path: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", ports::EDGE)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", "sample").body(Full::<Bytes>::default())?;
    sender.send_request(request).await?.into_body().collect().await?;
    drop(sender);
    connection.await??;
    Ok(())
}

async fn check_health() -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", ports::EDGE)).await?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post("http://sample/grpc.health.v1.Health/Check")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::<Bytes>::from(Bytes::from_static(&[0; 5])))?;
    sender.send_request(request).await?.into_body().collect().await?;
    drop(sender);
    connection.await??;
    Ok(())
}

async fn echo() -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", ports::EDGE_TCP)).await?;
    stream.write_all(b"hello\n").await?;
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
