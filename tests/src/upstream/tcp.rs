//! The plain TCP side of a scripted upstream.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{Peer, Seen, reset_on_close};
use crate::area::bytes;
use crate::upstream::h1::pattern;
use crate::wire::Wire;

pub(super) async fn serve(stream: TcpStream, peer: Peer) {
    let seen = Seen {
        upstream: peer.name.clone(),
        connection: peer.connection,
        end: "open".into(),
        ..Seen::default()
    };
    let index = peer.shared.record(seen);
    let answer = peer.shared.answer(&peer.name);
    let (read, mut write) = stream.into_split();
    let mut wire = Wire::new(read, Duration::from_secs(60));
    let mut greeting = answer.raw.as_deref().map(bytes).unwrap_or_default();
    if let Some(size) = answer.body_size {
        greeting.extend(pattern(size));
    }
    let mut wrote = false;
    if !answer.after_eof && !greeting.is_empty() {
        sleep(Duration::from_millis(answer.delay_ms)).await;
        let _ = write.write_all(&greeting).await;
        wrote = true;
    } else if answer.instead.is_some() {
        sleep(Duration::from_millis(answer.delay_ms)).await;
    }
    match answer.instead.as_deref().or(answer.then.as_deref()) {
        Some("close") => return,
        Some("reset") => {
            if let Ok(whole) = wire.into_inner().reunite(write) {
                reset_on_close(&whole);
            }
            return;
        }
        Some("shutdown") => {
            let _ = write.shutdown().await;
        }
        _ => {}
    }
    loop {
        let data = wire.take();
        peer.shared.update(index, |s| s.body.extend_from_slice(&data));
        if answer.echo && write.write_all(&data).await.is_err() {
            peer.shared.update(index, |s| s.end = "gone".into());
            return;
        }
        if let Err(end) = wire.fill().await {
            peer.shared.update(index, |s| s.end = end.text().into());
            break;
        }
    }
    if answer.after_eof && !wrote {
        sleep(Duration::from_millis(answer.delay_ms)).await;
        let _ = write.write_all(&greeting).await;
    }
    let _ = write.shutdown().await;
}
