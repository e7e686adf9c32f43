//! One run at a time in a network namespace. The lock is on the namespace itself (its file under /proc), so that it
//! needs no writable file system; the programs that a run starts hold it too, so that one that outlives a killed run is
//! waited for by the next.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

/// As long as iptables is given to wait for its own lock.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock of the calling thread's network namespace; it is given back with the file.
///
/// # Errors
/// Without /proc, or when another run does not end.
pub fn take() -> io::Result<File> {
    let file = File::open("/proc/thread-self/ns/net")?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if began.elapsed() > PATIENCE => {
                let text = "another outrigger-init is at work here, and does not end";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}
