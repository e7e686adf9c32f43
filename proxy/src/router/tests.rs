//! What waits on either side of an exchange: as much as the configuration says, whoever is slow.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::io::Io;
use crate::worker::testing::Bench;

/// What a client gets rid of, of `whole` bytes, until nothing moves any more: time stands still as long as something
/// does.
async fn taken(client: &mut Io, whole: usize) -> usize {
    let mut taken = 0;
    while taken < whole
        && let Ok(written) = timeout(Duration::from_secs(1), client.write_all(&PIECE)).await
    {
        written.unwrap();
        taken += PIECE.len();
    }
    taken
}

static PIECE: [u8; 16 * 1024] = [0; 16 * 1024];

const WHOLE: usize = 16 << 20;

/// The listener has no limit of its own.
async fn upload(bench: &Bench, client: &mut Io) -> Io {
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {WHOLE}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    bench.upstream.accept().await
}

#[tokio::test(start_paused = true)]
async fn an_upload_waits_for_an_upstream_that_does_not_read() {
    let test = async {
        let limit = "per_connection_buffer_limit_bytes: 32768";
        let bench = Bench::start("per_connection_buffer_limit_bytes: 0", limit);
        let mut client = bench.connect();
        let _upstream = upload(&bench, &mut client).await;
        let taken = taken(&mut client, WHOLE).await;
        // Two pipes of 64 KiB and the pieces in between are not the proxy's.
        assert!(taken < 512 * 1024, "{taken} bytes");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_read_passes_whole() {
    let test = async {
        let limit = "per_connection_buffer_limit_bytes: 1024";
        let bench = Bench::start("per_connection_buffer_limit_bytes: 0", limit);
        let mut client = bench.connect();
        let mut upstream = upload(&bench, &mut client).await;
        let read = async {
            let (mut read, mut piece) = (0, vec![0; 16 * 1024]);
            while read < WHOLE {
                read += upstream.read(&mut piece).await.unwrap();
            }
        };
        let (taken, ()) = tokio::join!(taken(&mut client, WHOLE), read);
        assert_eq!(taken, WHOLE);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_all_of_an_upload_is_taken() {
    let test = async {
        let none = "per_connection_buffer_limit_bytes: 0";
        let bench = Bench::start(none, none);
        let mut client = bench.connect();
        let _upstream = upload(&bench, &mut client).await;
        assert_eq!(taken(&mut client, WHOLE).await, WHOLE);
    };
    LocalSet::new().run_until(test).await;
}
