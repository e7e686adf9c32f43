//! Recording of histograms: bins of two significant decimal digits, as in Envoy (libcircllhist), so that quantiles
//! and Prometheus buckets come out alike.
//!
//! A worker writes, the control thread reads, without a lock. Bins live in tiers that are allocated as the values
//! spread: an unused histogram costs 16 bytes, one with few different values some 130 more.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bins::Bins;

/// Bins of all `u64` values: zero, then 90 for each power of ten up to 10^19.
const BINS: usize = 1 + 90 * 20;
/// Slots of the hashed tiers behind the first eight; the last tier has one slot per bin.
const TIERS: [usize; 2] = [32, 128];
const LAST: usize = TIERS.len() + 1;
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
pub struct Histogram(OnceLock<Box<Tiers>>);

#[derive(Debug, Default)]
struct Tiers {
    first: [AtomicU64; 8],
    more: [OnceLock<Box<[AtomicU64]>>; LAST],
}

fn zeroed(slots: usize) -> Box<[AtomicU64]> {
    (0..slots).map(|_| AtomicU64::new(0)).collect()
}

/// The slot of a hashed tier that counts the bin with this key, claimed when it is new; `None` when its probes are
/// taken.
#[inline]
fn probe(cells: &[AtomicU64], key: u64) -> Option<&AtomicU64> {
    let start = (key as usize).wrapping_mul(7);
    (0..PROBES).find_map(|probe| {
        let cell = &cells[(start + probe) & (cells.len() - 1)];
        let seen = cell.load(Ordering::Relaxed);
        if seen >> COUNT_BITS == key {
            return Some(cell);
        }
        if seen != 0 {
            return None;
        }
        match cell.compare_exchange(0, key << COUNT_BITS, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Some(cell),
            Err(other) => (other >> COUNT_BITS == key).then_some(cell),
        }
    })
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

    /// The slot that counts `bin`.
    #[inline]
    fn slot(&self, bin: Bin) -> &AtomicU64 {
        let tiers = self.0.get_or_init(Box::default);
        let key = u64::from(bin.0) + 1;
        if let Some(cell) = probe(&tiers.first, key) {
            return cell;
        }
        for (tier, slots) in tiers.more.iter().zip(TIERS) {
            if let Some(cell) = probe(tier.get_or_init(|| zeroed(slots)), key) {
                return cell;
            }
        }
        &tiers.more[LAST - 1].get_or_init(|| zeroed(BINS))[usize::from(bin.0)]
    }

    /// Adds this histogram's counts to `sum`.
    pub fn merge_into(&self, sum: &mut Bins) {
        let Some(tiers) = self.0.get() else { return };
        let hashed = tiers.more[..LAST - 1].iter().filter_map(OnceLock::get).flatten();
        for cell in tiers.first.iter().chain(hashed) {
            let seen = cell.load(Ordering::Relaxed);
            if seen & COUNT_MASK > 0 {
                sum.add(Bin((seen >> COUNT_BITS) as u16 - 1), seen & COUNT_MASK);
            }
        }
        let all = tiers.more[LAST - 1].get().into_iter().flatten();
        for (bin, cell) in all.enumerate() {
            let count = cell.load(Ordering::Relaxed);
            if count > 0 {
                sum.add(Bin(bin as u16), count);
            }
        }
    }
}
