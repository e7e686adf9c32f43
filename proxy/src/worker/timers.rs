//! Timers of one worker: a hierarchical wheel of 1 ms ticks without locks.
//!
//! Nearly every timer of a proxy is armed, never fires and is disarmed. Here both are a few stores in a
//! slab; only the earliest deadline is known to the runtime, and a worker without timers does not wake.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 64^6 ms are two years.
const LEVELS: usize = 6;
const NONE: u32 = u32::MAX;
const MAX_TICKS: u64 = (1 << (SLOT_BITS as u64 * LEVELS as u64)) - 1;

struct Entry {
    /// Absolute tick.
    when: u64,
    waker: Option<Waker>,
    prev: u32,
    next: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Idle,
    /// In the list of a level and slot.
    Armed(u8, u8),
    Fired,
}

struct Wheel {
    origin: Instant,
    /// Ticks up to and including this one have fired.
    elapsed: u64,
    occupied: [u64; LEVELS],
    heads: [[u32; SLOTS]; LEVELS],
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// The tick the driver sleeps until.
    driver_until: u64,
    driver: Option<Waker>,
}

/// A worker's timers; clones share one wheel. `Timers::drive` must run on the worker.
#[derive(Clone)]
pub struct Timers(Rc<RefCell<Wheel>>);

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timers")
    }
}

impl Timers {
    /// `origin` is the clock's start: deadlines before it fire at once.
    pub fn new(origin: Instant) -> Self {
        Self(Rc::new(RefCell::new(Wheel {
            origin,
            elapsed: 0,
            occupied: [0; LEVELS],
            heads: [[NONE; SLOTS]; LEVELS],
            entries: Vec::new(),
            free: Vec::new(),
            driver_until: u64::MAX,
            driver: None,
        })))
    }

    /// A timer that is not armed.
    pub fn timer(&self) -> Timer {
        Timer { wheel: self.0.clone(), key: None }
    }

    /// Waits; for places where a stream's own timer is not at hand.
    pub async fn sleep_until(&self, deadline: Instant) {
        let mut timer = self.timer();
        timer.arm(deadline);
        poll_fn(|cx| timer.poll(cx)).await;
    }

    /// Fires due timers, for ever. Cancel-safe: armed timers stay armed.
    pub async fn drive(&self) {
        let mut sleep: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| -> Poll<()> {
            loop {
                let next = {
                    let mut wheel = self.0.borrow_mut();
                    let now = wheel.tick_floor(Instant::now());
                    for waker in wheel.advance(now) {
                        waker.wake();
                    }
                    let next = wheel.next_expiration();
                    wheel.driver_until = next.map_or(u64::MAX, |(tick, ..)| tick);
                    wheel.driver = Some(cx.waker().clone());
                    next.map(|(tick, ..)| wheel.origin + Duration::from_millis(tick))
                };
                let Some(until) = next else {
                    sleep = None;
                    return Poll::Pending;
                };
                let until = tokio::time::Instant::from_std(until);
                let sleep = match &mut sleep {
                    Some(sleep) => {
                        if sleep.deadline() != until {
                            sleep.as_mut().reset(until);
                        }
                        sleep
                    }
                    None => sleep.insert(Box::pin(tokio::time::sleep_until(until))),
                };
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }
}

/// Whole ticks; a deadline that a client put beyond all time is at the wheel's end.
fn ticks(since: Duration) -> u64 {
    u64::try_from(since.as_millis()).map_or(MAX_TICKS, |ticks| ticks.min(MAX_TICKS))
}

impl Wheel {
    fn tick_floor(&self, at: Instant) -> u64 {
        ticks(at.saturating_duration_since(self.origin))
    }

    fn tick_ceil(&self, at: Instant) -> u64 {
        let d = at.saturating_duration_since(self.origin);
        ticks(d) + u64::from(!d.subsec_nanos().is_multiple_of(1_000_000))
    }

    fn level_for(&self, when: u64) -> usize {
        let masked = (self.elapsed ^ when) | (SLOTS as u64 - 1);
        let masked = masked.min(MAX_TICKS);
        ((63 - masked.leading_zeros()) / SLOT_BITS) as usize
    }

    fn insert(&mut self, key: u32) {
        let when =
            self.entries[key as usize].when.clamp(self.elapsed + 1, self.elapsed + MAX_TICKS / 2);
        let level = self.level_for(when).min(LEVELS - 1);
        let slot = ((when >> (level as u32 * SLOT_BITS)) as usize) % SLOTS;
        let head = self.heads[level][slot];
        let entry = &mut self.entries[key as usize];
        entry.state = State::Armed(level as u8, slot as u8);
        entry.prev = NONE;
        entry.next = head;
        if head != NONE {
            self.entries[head as usize].prev = key;
        }
        self.heads[level][slot] = key;
        self.occupied[level] |= 1 << slot;
        if when < self.driver_until {
            self.driver_until = when;
            if let Some(driver) = self.driver.take() {
                driver.wake();
            }
        }
    }

    fn unlink(&mut self, key: u32) {
        let State::Armed(level, slot) = self.entries[key as usize].state else { return };
        let (prev, next) = (self.entries[key as usize].prev, self.entries[key as usize].next);
        if prev == NONE {
            self.heads[level as usize][slot as usize] = next;
            if next == NONE {
                self.occupied[level as usize] &= !(1 << slot);
            }
        } else {
            self.entries[prev as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].prev = prev;
        }
        self.entries[key as usize].state = State::Idle;
    }

    /// `(tick at which the slot is due, level, slot)` of the earliest occupied slot.
    fn next_expiration(&self) -> Option<(u64, usize, usize)> {
        for level in 0..LEVELS {
            let occupied = self.occupied[level];
            if occupied == 0 {
                continue;
            }
            let shift = level as u32 * SLOT_BITS;
            let now_slot = ((self.elapsed >> shift) as usize) % SLOTS;
            let ahead = occupied.rotate_right(now_slot as u32).trailing_zeros() as usize;
            let slot = (now_slot + ahead) % SLOTS;
            let level_range = (SLOTS as u64) << shift;
            let slot_start = (self.elapsed & !(level_range - 1)) + ((slot as u64) << shift);
            let due = if slot_start <= self.elapsed && (slot != now_slot || level != 0) {
                slot_start + level_range
            } else {
                slot_start
            };
            // A slot of the current position at a higher level has been cascaded already: it is the next lap's.
            return Some((due.max(self.elapsed), level, slot));
        }
        None
    }

    /// Moves time on; wakers of the fired.
    fn advance(&mut self, now: u64) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((due, level, slot)) = self.next_expiration() {
            if due > now {
                break;
            }
            self.elapsed = self.elapsed.max(due);
            let mut key = std::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while key != NONE {
                let entry = &mut self.entries[key as usize];
                let next = entry.next;
                if entry.when <= self.elapsed {
                    entry.state = State::Fired;
                    wakers.extend(entry.waker.take());
                } else {
                    entry.state = State::Idle;
                    self.insert(key);
                }
                key = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
        wakers
    }
}

/// One timer: armed, re-armed and disarmed in place. Dropping disarms.
pub struct Timer {
    wheel: Rc<RefCell<Wheel>>,
    key: Option<u32>,
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timer({:?})", self.key)
    }
}

impl Timer {
    /// Fires at `deadline`, rounded up to a millisecond; replaces an earlier deadline. The task that polls next is woken.
    pub fn arm(&mut self, deadline: Instant) {
        let mut wheel = self.wheel.borrow_mut();
        let when = wheel.tick_ceil(deadline);
        let key = match self.key {
            Some(key) => {
                wheel.unlink(key);
                key
            }
            None => {
                let key = match wheel.free.pop() {
                    Some(key) => key,
                    None => {
                        wheel.entries.push(Entry {
                            when,
                            waker: None,
                            prev: NONE,
                            next: NONE,
                            state: State::Free,
                        });
                        wheel.entries.len() as u32 - 1
                    }
                };
                self.key = Some(key);
                key
            }
        };
        wheel.entries[key as usize].when = when;
        wheel.insert(key);
    }

    /// Never fires until armed again.
    pub fn disarm(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut wheel = self.wheel.borrow_mut();
        wheel.unlink(key);
        let entry = &mut wheel.entries[key as usize];
        entry.state = State::Free;
        entry.waker = None;
        wheel.free.push(key);
    }

    pub fn is_armed(&self) -> bool {
        self.key.is_some()
    }

    /// Ready once the deadline has passed; the timer is then disarmed. Pending for ever while not armed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(key) = self.key else { return Poll::Pending };
        {
            let mut wheel = self.wheel.borrow_mut();
            let entry = &mut wheel.entries[key as usize];
            if entry.state != State::Fired {
                match &entry.waker {
                    Some(waker) if waker.will_wake(cx.waker()) => {}
                    _ => entry.waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
        }
        self.disarm();
        Poll::Ready(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    fn fire_order(delays: &[u64]) -> Vec<u64> {
        let origin = Instant::now();
        let timers = Timers::new(origin);
        let mut armed: Vec<_> = delays
            .iter()
            .map(|ms| {
                let mut timer = timers.timer();
                timer.arm(origin + Duration::from_millis(*ms));
                (*ms, timer)
            })
            .collect();
        let mut cx = Context::from_waker(Waker::noop());
        let mut fired = Vec::new();
        let mut now = 0;
        while !armed.is_empty() {
            let (due, ..) = timers.0.borrow().next_expiration().expect("timers are armed");
            assert!(due >= now, "time goes on: {due} after {now}");
            now = due;
            timers.0.borrow_mut().advance(now);
            armed.retain_mut(|(ms, timer)| {
                let ready = timer.poll(&mut cx).is_ready();
                if ready {
                    assert_eq!(now, *ms, "fires at its own tick");
                    fired.push(*ms);
                }
                !ready
            });
        }
        fired
    }

    #[test]
    fn timers_fire_at_their_tick_in_order_on_every_level() {
        let mut delays = vec![
            1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 15_000, 300_000, 3_600_000, 90_000_000,
        ];
        assert_eq!(fire_order(&delays), delays.clone());
        delays.reverse();
        let mut sorted = delays.clone();
        sorted.sort_unstable();
        assert_eq!(fire_order(&delays), sorted);
    }

    proptest::proptest! {
        #[test]
        fn any_set_of_timers_fires_sorted(delays in proptest::collection::vec(1u64..2_000_000, 1..40)) {
            let mut sorted = delays.clone();
            sorted.sort_unstable();
            proptest::prop_assert_eq!(fire_order(&delays), sorted);
        }
    }

    #[test]
    fn a_deadline_beyond_the_wheel_does_not_wrap() {
        let origin = Instant::now();
        let timers = Timers::new(origin);
        let mut timer = timers.timer();
        timer.arm(origin + Duration::from_millis(u64::MAX));
        let (due, ..) = timers.0.borrow().next_expiration().expect("the timer is armed");
        assert!(due > 1000);
    }

    #[test]
    fn a_disarmed_timer_gives_its_place_back() {
        let timers = Timers::new(Instant::now());
        let mut timer = timers.timer();
        for _ in 0..10 {
            timer.arm(Instant::now() + Duration::from_secs(15));
            timer.disarm();
        }
        assert_eq!(timers.0.borrow().entries.len(), 1);
        assert!(timers.0.borrow().next_expiration().is_none());
    }

    #[tokio::test]
    async fn the_driver_wakes_for_a_timer_armed_after_it_slept() {
        let timers = Timers::new(Instant::now());
        let wait = async {
            tokio::task::yield_now().await;
            timers.sleep_until(Instant::now() + Duration::from_millis(3)).await;
        };
        let mut wait = Box::pin(wait);
        let mut drive = Box::pin(timers.drive());
        poll_fn(|cx| {
            let _ = drive.as_mut().poll(cx);
            wait.as_mut().poll(cx)
        })
        .await;
    }
}
