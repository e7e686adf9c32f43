//! The sample TCP service: sends back what it receives.

use tokio::net::{TcpListener, TcpStream};

/// Accepts for ever.
pub(super) async fn serve(listener: TcpListener) {
    loop {
        // A failed accept concerns that one connection.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    // A client that goes away ends its echo, nothing else.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}
