//! Signals that a proxy answers without ending, and what an operator reads of it before he sends one. The same for
//! Envoy and Outrigger.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::area::Area;
use tests::proxy::Kind;
use tests::sandbox::Sandbox;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

#[test]
fn usr1_opens_the_logs_anew_and_hup_is_passed_over() {
    let outcome = with_both(async |sandbox| {
        let log = PathBuf::from(&sandbox.places.dir).join("access.log");
        let mut client = connect(sandbox).await?;
        request_until_logged(&mut client, &log).await?;
        let rotated = log.with_extension("1");
        std::fs::rename(&log, &rotated)?;
        let pid = Pid::from_raw(i32::try_from(sandbox.proxy.pid())?);
        kill(pid, Signal::SIGHUP)?;
        kill(pid, Signal::SIGUSR1)?;
        // On the same connection: nothing was restarted.
        request_until_logged(&mut client, &log).await?;
        ensure!(sandbox.proxy.alive());
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn the_servers_connections_are_counted() {
    let outcome = with_both(async |sandbox| {
        let mut clients = [connect(sandbox).await?, connect(sandbox).await?];
        for client in &mut clients {
            exchange(client).await?;
        }
        until_connections(sandbox, 2).await?;
        drop(clients);
        until_connections(sandbox, 0).await
    });
    outcome.unwrap();
}

fn with_both(test: impl AsyncFn(&mut Sandbox) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let run = async {
            let mut sandbox = Sandbox::start(kind, &Area::load("../signals")?, &[]).await?;
            test(&mut sandbox).await
        };
        LocalSet::new()
            .block_on(&runtime, async { timeout(Duration::from_secs(120), run).await? })
            .with_context(|| kind.name().to_owned())?;
    }
    Ok(())
}

async fn connect(sandbox: &Sandbox) -> Result<TcpStream> {
    Ok(TcpStream::connect(("127.0.0.1", sandbox.port("main")?)).await?)
}

async fn exchange(client: &mut TcpStream) -> Result<()> {
    client.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        ensure!(client.read_buf(&mut answer).await? != 0, "the connection was closed");
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Logs are written a moment later, and signals are heard of a moment later.
async fn request_until_logged(client: &mut TcpStream, log: &PathBuf) -> Result<()> {
    while std::fs::metadata(log).map_or(0, |log| log.len()) == 0 {
        exchange(client).await?;
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Envoy brings the gauge up to date every five seconds.
async fn until_connections(sandbox: &Sandbox, wanted: u32) -> Result<()> {
    let line = format!("server.total_connections: {wanted}");
    loop {
        let (_, stats) =
            sandbox.proxy.admin("GET", "/stats?filter=server.total_connections").await?;
        if stats.trim() == line {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
