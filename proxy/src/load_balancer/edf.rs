//! Earliest deadline first: weighted picks without bursts, as Envoy's scheduler makes them.
//!
//! Each entry's next turn is `1 / weight` after its last; the earliest turn wins, ties go to the earlier entry.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Turn {
    deadline: f64,
    order: u64,
    host: u32,
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Turn {
    /// Reversed: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

/// The scheduler of one list of hosts.
#[derive(Debug, Default)]
pub struct Edf {
    turns: BinaryHeap<Turn>,
    now: f64,
    order: u64,
}

impl Edf {
    /// A scheduler over hosts with their weights (above 0).
    pub fn new(hosts: impl Iterator<Item = (u32, f64)>) -> Self {
        let mut edf = Self::default();
        for (host, weight) in hosts {
            edf.add(host, weight);
        }
        edf
    }

    fn add(&mut self, host: u32, weight: f64) {
        self.order += 1;
        self.turns.push(Turn { deadline: self.now + 1.0 / weight, order: self.order, host });
    }

    /// The next host; `weight` says its weight for the turn after.
    pub fn pick(&mut self, weight: impl FnOnce(u32) -> f64) -> Option<u32> {
        let turn = self.turns.pop()?;
        self.now = turn.deadline;
        self.add(turn.host, weight(turn.host));
        Some(turn.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_in_proportion_without_bursts() {
        let weights = [5.0, 1.0, 2.0];
        let mut edf = Edf::new((0..3).map(|i| (i, weights[i as usize])));
        let picks: Vec<u32> =
            (0..80).filter_map(|_| edf.pick(|host| weights[host as usize])).collect();
        let count = |host| picks.iter().filter(|p| **p == host).count();
        assert_eq!([count(0), count(1), count(2)], [50, 10, 20]);
        // A host of weight 1 of 8 never waits much longer than 8 picks.
        assert!(picks.windows(10).all(|w| w.contains(&1)));
    }
}
