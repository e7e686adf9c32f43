//! inotify on a tokio runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// An inotify descriptor.
#[derive(Debug)]
pub struct Watches(AsyncFd<Owned>);

#[derive(Debug)]
struct Owned(Inotify);

impl AsRawFd for Owned {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watches {
    /// On the current runtime.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: `Owned` owns its descriptor, gives always the same one, and closes it only when it is dropped.
        #[expect(unsafe_code, reason = "AsyncFd wants to be told that the descriptor stays open")]
        let registered = unsafe { AsyncFd::register(Owned(inotify)) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Watches for what is moved into a directory. Again for one that is watched: gives the same descriptor.
    ///
    /// # Errors
    /// It cannot be read, or the user has no watch left.
    pub fn add(&self, directory: &Path) -> io::Result<WatchDescriptor> {
        Ok(self.0.get_ref().0.add_watch(directory, AddWatchFlags::IN_MOVED_TO)?)
    }

    /// No longer; the directory may be gone.
    pub fn remove(&self, watch: WatchDescriptor) {
        let _ = self.0.get_ref().0.rm_watch(watch);
    }

    /// Waits for events and takes them. Cancel-safe.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub async fn events(&self) -> io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.read_events() {
                Ok(events) => return Ok(events),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
