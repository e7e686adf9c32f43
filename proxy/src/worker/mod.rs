//! One data-plane thread: a current-thread runtime with its sockets, connections, pools and counters.

pub mod timers;

/// What stations of the data path share on one worker. `!Send`.
pub struct WorkerContext {
    /// 0-based.
    pub index: usize,
    pub timers: timers::Timers,
}
