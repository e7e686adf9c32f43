//! Which routes of a virtual host can match a path: candidates in configuration order, without
//! asking every route. Exact paths by hash, prefixes by radix tree; regexes, CONNECT and
//! case-insensitive routes stand in a list of their own that is always asked.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::prefix_tree::PrefixTree;
use super::{PathSpecifier, RouteMatcher};

/// Up to this many routes asking each of them is quicker than the index, and needs no memory.
const SCAN_LIMIT: usize = 8;

/// Immutable; numbers are positions in `VirtualHost::routes`.
#[derive(Debug, Default)]
pub struct PathIndex {
    index: Option<Box<Index>>,
}

#[derive(Debug)]
struct Index {
    exact: FxHashMap<Box<[u8]>, Candidates>,
    prefixes: PrefixTree<Candidates>,
    others: Box<[u32]>,
}

/// Ascending.
type Candidates = SmallVec<[u32; 2]>;

impl PathIndex {
    pub fn new<'a>(routes: impl ExactSizeIterator<Item = &'a RouteMatcher>) -> Self {
        if routes.len() <= SCAN_LIMIT {
            return Self::default();
        }
        let mut exact = FxHashMap::<Box<[u8]>, Candidates>::default();
        let mut prefixes = FxHashMap::<Vec<u8>, Candidates>::default();
        let mut others = Vec::new();
        for (i, matcher) in routes.enumerate() {
            let i = i as u32;
            match &matcher.path {
                PathSpecifier::Path(path) if matcher.case_sensitive => {
                    exact.entry(path.clone()).or_default().push(i);
                }
                PathSpecifier::Prefix(prefix) | PathSpecifier::PathSeparatedPrefix(prefix)
                    if matcher.case_sensitive =>
                {
                    prefixes.entry(prefix.to_vec()).or_default().push(i);
                }
                _ => others.push(i),
            }
        }
        let prefixes = PrefixTree::new(prefixes.into_iter().collect());
        Self { index: Some(Box::new(Index { exact, prefixes, others: others.into() })) }
    }

    /// The first route in order that `accepts`, asked of candidates only; it must check the path too.
    /// `path` is as `RouteMatcher::matches_path` wants it, `count` the number of routes.
    pub fn first(
        &self,
        path: &[u8],
        count: usize,
        mut accepts: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let Some(index) = &self.index else {
            return (0..count as u32).find(|i| accepts(*i));
        };
        let mut lists = SmallVec::<[&[u32]; 16]>::new();
        if !index.others.is_empty() {
            lists.push(&index.others);
        }
        if let Some(list) = index.exact.get(path) {
            lists.push(list);
        }
        index.prefixes.walk(path, |_, list| lists.push(list));
        // Each list ascends, so the smallest head is the next candidate.
        loop {
            let (at, i) = lists
                .iter()
                .enumerate()
                .filter_map(|(at, list)| list.first().map(|i| (at, *i)))
                .min_by_key(|(_, i)| *i)?;
            if accepts(i) {
                return Some(i);
            }
            lists[at] = &lists[at][1..];
        }
    }
}
