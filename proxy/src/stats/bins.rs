//! Merged histograms and what is read from them: quantiles, sums and bucket counts as libcircllhist computes them,
//! to the last digit that Envoy prints.

use std::collections::BTreeMap;

use super::definition::Unit;
use super::histogram::Bin;

/// Percentiles that Envoy reports.
pub(super) const PERCENTILES: [f64; 10] =
    [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// Envoy's bucket bounds where `histogram_bucket_settings` says nothing.
pub(super) const DEFAULT_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// `Histogram::PercentScale`: a percentage of 100 % is recorded as this.
const PERCENT_SCALE: f64 = 0x0100_0000 as f64;

/// Merged counts of a histogram, ordered by value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bins(BTreeMap<Bin, u64>);

impl Bins {
    pub(super) fn add(&mut self, bin: Bin, count: u64) {
        *self.0.entry(bin).or_default() += count;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of samples.
    pub(super) fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Samples here that are not in `base`: what came since.
    pub(super) fn since(&self, base: &Self) -> Self {
        let fresh = self.0.iter().filter_map(|(bin, count)| {
            let more = count.saturating_sub(base.0.get(bin).copied().unwrap_or(0));
            (more > 0).then_some((*bin, more))
        });
        Self(fresh.collect())
    }

    /// Lower bound, width and count of each bin that has samples.
    pub(super) fn details(&self, unit: Unit) -> impl Iterator<Item = (f64, f64, u64)> {
        let scale = scale(unit);
        self.0.iter().map(move |(bin, count)| (bin.left() / scale, bin.width() / scale, *count))
    }

    /// Sum of samples, each taken as its bin's midpoint (`hist_approx_sum`).
    pub(super) fn sum(&self, unit: Unit) -> f64 {
        let sum: f64 = self.0.iter().map(|(bin, count)| bin.midpoint() * *count as f64).sum();
        sum / scale(unit)
    }

    /// The values at [`PERCENTILES`]; `None` without samples. The k-th of n samples of a bin stands at
    /// k/(n+1) of its width.
    pub(super) fn percentiles(&self, unit: Unit) -> Option<[f64; 10]> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let scale = scale(unit);
        Some(PERCENTILES.map(|percentile| {
            let rank = ((percentile / 100.0) * total as f64).ceil().max(1.0) as u64;
            self.at_rank(rank) / scale
        }))
    }

    fn at_rank(&self, rank: u64) -> f64 {
        let mut below = 0;
        let mut last = 0.0;
        for (bin, &count) in &self.0 {
            if below + count >= rank {
                let share = (rank - below) as f64 / (count + 1) as f64;
                return bin.left() + bin.width() * share;
            }
            below += count;
            last = bin.left() + bin.width();
        }
        last
    }

    /// For each bound, the number of samples at most that large; a sample in the bound's own bin counts.
    pub(super) fn cumulative(&self, bounds: &[f64], unit: Unit) -> Vec<u64> {
        let scale = scale(unit);
        let mut bins = self.0.iter().peekable();
        let mut sum = 0;
        bounds
            .iter()
            .map(|bound| {
                while let Some((_, count)) = bins.next_if(|(bin, _)| bin.left() <= bound * scale) {
                    sum += count;
                }
                sum
            })
            .collect()
    }
}

fn scale(unit: Unit) -> f64 {
    match unit {
        Unit::Percent => PERCENT_SCALE,
        Unit::Unspecified | Unit::Bytes | Unit::Milliseconds | Unit::Microseconds => 1.0,
    }
}

impl Bin {
    /// `hist_bucket_midpoint`: weighted towards the lower end.
    fn midpoint(self) -> f64 {
        let (left, width) = (self.left(), self.width());
        if width == 0.0 {
            return left;
        }
        left + width * (left / (left + left + width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::histogram::Histogram;

    fn bins(values: &[u64]) -> Bins {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        let mut bins = Bins::default();
        histogram.merge_into(&mut bins);
        bins
    }

    #[test]
    fn percentiles_are_envoys() {
        let read = bins(&[1, 1, 2]).percentiles(Unit::Milliseconds).unwrap();
        assert_eq!(read[0], 1.033_333_333_333_333_4);
        assert_eq!(read[2], 1.066_666_666_666_666_7);
        assert_eq!(read[9], 2.05);
        let read = bins(&[0, 1, 1, 2, 2, 5, 6]).percentiles(Unit::Milliseconds).unwrap();
        assert_eq!(read[0], 0.0);
        assert_eq!(read[2], 2.033_333_333_333_333);
        let read = bins(&[1; 7]).percentiles(Unit::Unspecified).unwrap();
        assert_eq!(read[..5], [1.0125, 1.025, 1.05, 1.075, 1.0875]);
        assert_eq!(bins(&[]).percentiles(Unit::Bytes), None);
    }

    #[test]
    fn sums_are_envoys() {
        assert_eq!(bins(&[1, 1, 2]).sum(Unit::Milliseconds), 4.144_018_583_042_973);
        assert_eq!(bins(&[34]).sum(Unit::Milliseconds), 34.492_753_623_188_406);
        assert_eq!(bins(&[1; 7]).sum(Unit::Unspecified), 7.333_333_333_333_334);
    }

    #[test]
    fn buckets_count_the_bin_of_their_bound() {
        let read = bins(&[0, 1, 1, 25, 250, 259, 260]);
        let counts = read.cumulative(&[0.5, 1.0, 10.0, 25.0, 250.0, 1000.0], Unit::Milliseconds);
        assert_eq!(counts, [1, 3, 3, 4, 6, 7]);
    }

    #[test]
    fn every_value_falls_into_its_bin() {
        for value in [0, 1, 9, 10, 99, 100, 101, 999, 1000, 123_456_789, u64::MAX] {
            let bin = Bin::of(value);
            let (left, right) = (bin.left(), bin.left() + bin.width());
            assert!(left <= value as f64 && (value as f64) < right || value == 0, "{value}");
        }
    }

    #[test]
    fn many_values_go_through_all_tiers() {
        let values: Vec<u64> = (0..100_000).map(|n| n * 7).collect();
        assert_eq!(bins(&values).count(), 100_000);
        let mut earlier = bins(&values[..50_000]);
        assert_eq!(bins(&values).since(&earlier).count(), 50_000);
        earlier.add(Bin::of(1), 1);
        assert!(earlier.since(&bins(&values)).count() <= 1);
    }
}
