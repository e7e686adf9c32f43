//! The way out of an established stream: plaintext into records, and records to the kernel.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use rustls::ContentType;

use super::record::{Key, MAX_PLAIN, RecordError};
use crate::io::Io;

/// Plaintext encrypted for one system call.
const WRITE_BYTES: usize = 4 * MAX_PLAIN;

thread_local! {
    static GATHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encrypts what one call takes: small pieces share a record.
pub(super) fn seal_slices(
    key: &mut Key,
    slices: &[IoSlice<'_>],
    out: &mut Vec<u8>,
) -> Result<usize, RecordError> {
    let mut taken = 0;
    let mut gathered = GATHER.take();
    let mut rest =
        slices.iter().map(|slice| &slice[..]).filter(|slice| !slice.is_empty()).peekable();
    let mut result = Ok(());
    while let Some(slice) = rest.next() {
        let slice = &slice[..slice.len().min(WRITE_BYTES - taken)];
        taken += slice.len();
        let is_last = rest.peek().is_none() || taken == WRITE_BYTES;
        let mut slice = slice;
        while result.is_ok() && !slice.is_empty() {
            if gathered.is_empty() && (slice.len() >= MAX_PLAIN || is_last) {
                let (record, after) = slice.split_at(slice.len().min(MAX_PLAIN));
                result = key.seal(ContentType::ApplicationData, record, out);
                slice = after;
                continue;
            }
            let (more, after) = slice.split_at(slice.len().min(MAX_PLAIN - gathered.len()));
            gathered.extend_from_slice(more);
            slice = after;
            if gathered.len() == MAX_PLAIN || (is_last && slice.is_empty()) {
                result = key.seal(ContentType::ApplicationData, &gathered, out);
                gathered.clear();
            }
        }
        if taken == WRITE_BYTES || result.is_err() {
            break;
        }
    }
    gathered.clear();
    GATHER.set(gathered);
    result.map(|()| taken)
}

/// Writes until the kernel takes no more; how many bytes it took.
pub(super) fn write_some(
    io: &mut Io,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let mut written = 0;
    while written < bytes.len() {
        match io.poll_write(cx, &bytes[written..]) {
            Poll::Pending => break,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => written += n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(written))
}
