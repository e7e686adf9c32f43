//! The time as one worker sees it: a turn of a task asks the system once, and who comes after it in the same turn
//! takes what it got.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

/// How long the wall clock is derived from the monotonic one: steps of the system's clock show after that.
const ANCHOR_AGE: Duration = Duration::from_millis(500);

/// `!Sync`; one per worker.
#[derive(Debug)]
pub struct Clock {
    recent: Cell<Instant>,
    anchor: Cell<(Instant, SystemTime)>,
}

impl Default for Clock {
    fn default() -> Self {
        let now = Instant::now();
        Self { recent: Cell::new(now), anchor: Cell::new((now, SystemTime::now())) }
    }
}

impl Clock {
    /// Asks the system.
    pub fn now(&self) -> Instant {
        let now = Instant::now();
        self.recent.set(now);
        now
    }

    /// What `now` gave last: for who knows that it was asked in this turn.
    pub fn recent(&self) -> Instant {
        self.recent.get()
    }

    /// The wall clock at `now`.
    pub fn wall(&self, now: Instant) -> SystemTime {
        let (instant, time) = self.anchor.get();
        match now.checked_duration_since(instant) {
            Some(since) if since < ANCHOR_AGE => time + since,
            // Somebody's turn began before the anchor was renewed.
            None => time - (instant - now),
            Some(_) => {
                let time = SystemTime::now();
                self.anchor.set((now, time));
                time
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_goes_with_the_monotonic_one_and_is_asked_again() {
        let clock = Clock::default();
        let (instant, time) = clock.anchor.get();
        let later = instant + Duration::from_millis(20);
        assert_eq!(clock.wall(later), time + Duration::from_millis(20));
        let much_later = instant + ANCHOR_AGE;
        let renewed = clock.wall(much_later);
        assert_eq!(clock.anchor.get(), (much_later, renewed));
        assert_eq!(clock.wall(later), renewed - (much_later - later));
        let now = clock.now();
        assert_eq!(clock.recent(), now);
    }
}
