//! Recording of histograms: bins of two significant decimal digits, as in Envoy (libcircllhist), so that quantiles
//! and Prometheus buckets come out alike.
//!
//! A worker writes, the control thread reads, without a lock. Bins live in tiers that are allocated as the values
//! spread: a histogram with few different values costs 64 bytes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bins::Bins;

/// Bins of all `u64` values: zero, then 90 for each power of ten up to 10^19.
const BINS: usize = 1 + 90 * 20;
/// Slots of the hashed tiers; the last tier has one slot per bin.
const TIERS: [usize; 3] = [8, 32, 128];
const LAST: usize = TIERS.len();
/// Slots tried in a hashed tier before the next one.
const PROBES: usize = 4;
/// A hashed slot is `bin << COUNT_BITS | count`.
const COUNT_BITS: u32 = 48;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// A bin: two significant digits and a power of ten. Zero is bin 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bin(u16);

impl Bin {
    /// The bin that holds an integer value.
    #[inline]
    pub fn of(value: u64) -> Self {
        if value == 0 {
            return Self(0);
        }
        let power = value.ilog10();
        let digits = match power {
            0 => value * 10,
            1 => value,
            _ => value / 10u64.pow(power - 1),
        };
        Self((1 + power as u64 * 90 + (digits - 10)) as u16)
    }

    /// Least value in the bin (`hist_bucket_left`).
    pub fn left(self) -> f64 {
        if self.0 == 0 {
            return 0.0;
        }
        let n = u32::from(self.0) - 1;
        f64::from(10 + n % 90) * 10f64.powi((n / 90) as i32 - 1)
    }

    /// Width of the bin; 0 for zero.
    pub fn width(self) -> f64 {
        if self.0 == 0 { 0.0 } else { 10f64.powi((i32::from(self.0) - 1) / 90 - 1) }
    }
}

/// The bins of one histogram, written by one worker ([`record`](Self::record)) or by anyone
/// ([`record_shared`](Self::record_shared)), never by both.
#[derive(Debug, Default)]
pub struct Histogram {
    tiers: [OnceLock<Box<[AtomicU64]>>; LAST + 1],
}

fn zeroed(slots: usize) -> Box<[AtomicU64]> {
    (0..slots).map(|_| AtomicU64::new(0)).collect()
}

impl Histogram {
    /// Adds one sample; single writer.
    #[inline]
    pub fn record(&self, value: u64) {
        let slot = self.slot(Bin::of(value));
        slot.store(slot.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Adds one sample; any thread.
    pub fn record_shared(&self, value: u64) {
        self.slot(Bin::of(value)).fetch_add(1, Ordering::Relaxed);
    }

    /// The slot that counts `bin`, claimed when it is new.
    #[inline]
    fn slot(&self, bin: Bin) -> &AtomicU64 {
        let key = u64::from(bin.0) + 1;
        for (tier, slots) in TIERS.iter().enumerate() {
            let cells = self.tiers[tier].get_or_init(|| zeroed(*slots));
            let start = usize::from(bin.0).wrapping_mul(7);
            for probe in 0..PROBES {
                let cell = &cells[(start + probe) & (slots - 1)];
                let seen = cell.load(Ordering::Relaxed);
                if seen >> COUNT_BITS == key {
                    return cell;
                }
                if seen == 0 {
                    let claimed = cell.compare_exchange(
                        0,
                        key << COUNT_BITS,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                    match claimed {
                        Ok(_) => return cell,
                        Err(other) if other >> COUNT_BITS == key => return cell,
                        Err(_) => {}
                    }
                }
            }
        }
        &self.tiers[LAST].get_or_init(|| zeroed(BINS))[usize::from(bin.0)]
    }

    /// Adds this histogram's counts to `sum`.
    pub fn merge_into(&self, sum: &mut Bins) {
        for (tier, cells) in self.tiers.iter().enumerate() {
            let Some(cells) = cells.get() else { continue };
            for (index, cell) in cells.iter().enumerate() {
                let seen = cell.load(Ordering::Relaxed);
                let (bin, count) = if tier == LAST {
                    (index as u16, seen)
                } else {
                    ((seen >> COUNT_BITS).wrapping_sub(1) as u16, seen & COUNT_MASK)
                };
                if count > 0 {
                    sum.add(Bin(bin), count);
                }
            }
        }
    }
}
