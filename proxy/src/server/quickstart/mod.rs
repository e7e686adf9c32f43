//! `outrigger quickstart`: a small mesh in one process.
//!
//! Two proxies in a row, configured by `examples/quickstart.yaml`, lead to sample services (HTTP, gRPC
//! and TCP) that run on a thread of their own, as does a trickle of traffic that keeps the access log
//! alive. The proxies are ordinary ones: nothing here is known to the rest of the server.

mod grpc;
mod http;
mod tcp;
mod traffic;

use std::future::Future;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

/// The bootstrap, as it lies in the repository.
pub const BOOTSTRAP: &str = include_str!("../../../../examples/quickstart.yaml");

/// Where the sample services listen and where the mesh is entered, as the bootstrap says.
mod ports {
    pub(super) const EDGE: u16 = 10_000;
    pub(super) const EDGE_TCP: u16 = 10_001;
    pub(super) const HTTP: u16 = 18_081;
    pub(super) const GRPC: u16 = 18_082;
    pub(super) const TCP: u16 = 18_083;
}

/// What to try, printed when the mesh is up.
pub const INTRODUCTION: &str = "
A small mesh is up: edge proxy -> sidecar proxy -> services, all in this process.

  curl -i http://127.0.0.1:10000/hello            through both proxies to the HTTP service
  curl    http://127.0.0.1:10000/headers          what the service saw
  curl -d hi http://127.0.0.1:10000/echo          a body there and back
  curl -i http://127.0.0.1:10000/flaky            two of three answers are 503; the edge retries
  curl -i http://127.0.0.1:10000/secret           denied by the sidecar's RBAC filter
  curl -i http://127.0.0.1:10000/teapot           answered by the edge itself
  curl -i http://127.0.0.1:10000/old/page         redirected
  curl --http2-prior-knowledge http://127.0.0.1:10000/hello
  grpcurl -plaintext -proto health.proto 127.0.0.1:10000 grpc.health.v1.Health/Check
  nc 127.0.0.1 10001                              TCP: what you type comes back

  http://127.0.0.1:9901/                          admin: /stats, /clusters, /config_dump, ...
  curl http://127.0.0.1:9901/stats?usedonly       counters by Envoy's names

The configuration is examples/quickstart.yaml; run your copy with: outrigger quickstart -c FILE
Access log of both proxies (a request comes by itself every second; ^C ends):
";

/// Starts the sample services; they listen when this returns and live as long as the process.
///
/// # Errors
/// A port is taken, or the thread cannot be made.
pub fn start_services() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (http, grpc, tcp) = runtime.block_on(async {
        anyhow::Ok((
            listen(ports::HTTP).await?,
            listen(ports::GRPC).await?,
            listen(ports::TCP).await?,
        ))
    })?;
    spawn("samples", runtime, async {
        tokio::join!(http::serve(http), grpc::serve(grpc), tcp::serve(tcp));
    })
}

/// Starts the trickle of requests to the edge.
///
/// # Errors
/// The thread cannot be made.
pub fn start_traffic() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    spawn("traffic", runtime, traffic::run())
}

fn spawn(
    name: &str,
    runtime: tokio::runtime::Runtime,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work))?;
    Ok(())
}

async fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("the quickstart's sample service cannot listen on {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bootstrap_names_the_ports_of_services_and_entrances() {
        for port in [ports::EDGE, ports::EDGE_TCP, ports::HTTP, ports::GRPC, ports::TCP] {
            assert!(BOOTSTRAP.contains(&format!("port_value: {port} ")), "{port}");
        }
    }
}
