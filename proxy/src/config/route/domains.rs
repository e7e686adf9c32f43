//! Virtual hosts by domain, in Envoy's order: the whole name, the longest `*suffix`, the longest
//! `prefix*`, then `*`. Finding one takes the same time for ten as for ten thousand.

use std::collections::hash_map::Entry;
use std::hash::Hash;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::prefix_tree::PrefixTree;

/// An immutable map from host to virtual host number.
#[derive(Debug)]
pub struct DomainIndex {
    exact: FxHashMap<Box<[u8]>, u32>,
    /// Keys reversed.
    suffixes: Option<PrefixTree<u32>>,
    prefixes: Option<PrefixTree<u32>>,
    default: Option<u32>,
}

/// Why a domain is refused; the text is Envoy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DuplicateDomain {
    #[error("Only a single wildcard domain is permitted in route {table}")]
    Wildcard { table: String },
    #[error(
        "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {table}"
    )]
    Domain { domain: String, table: String },
}

/// Collects domains; reports each duplicate.
#[derive(Debug, Default)]
pub struct DomainIndexBuilder {
    exact: FxHashMap<Box<[u8]>, u32>,
    suffixes: FxHashMap<Vec<u8>, u32>,
    prefixes: FxHashMap<Vec<u8>, u32>,
    default: Option<u32>,
}

impl DomainIndexBuilder {
    /// # Errors
    /// The domain is there already (case does not count); the first one stays.
    pub fn insert(&mut self, domain: &str, host: u32, table: &str) -> Result<(), DuplicateDomain> {
        let lower = domain.to_ascii_lowercase();
        if lower == "*" {
            if self.default.is_some() {
                return Err(DuplicateDomain::Wildcard { table: table.to_owned() });
            }
            self.default = Some(host);
            return Ok(());
        }
        let new = if let Some(suffix) = lower.strip_prefix('*') {
            insert_new(&mut self.suffixes, suffix.bytes().rev().collect(), host)
        } else if let Some(prefix) = lower.strip_suffix('*') {
            insert_new(&mut self.prefixes, prefix.as_bytes().to_vec(), host)
        } else {
            insert_new(&mut self.exact, lower.as_bytes().into(), host)
        };
        if new {
            Ok(())
        } else {
            Err(DuplicateDomain::Domain { domain: lower, table: table.to_owned() })
        }
    }

    pub fn build(mut self) -> DomainIndex {
        let tree = |map: FxHashMap<Vec<u8>, u32>| {
            (!map.is_empty()).then(|| PrefixTree::new(map.into_iter().collect()))
        };
        self.exact.shrink_to_fit();
        DomainIndex {
            exact: self.exact,
            suffixes: tree(self.suffixes),
            prefixes: tree(self.prefixes),
            default: self.default,
        }
    }
}

/// False when the key is there already.
fn insert_new<K: Hash + Eq>(map: &mut FxHashMap<K, u32>, key: K, value: u32) -> bool {
    match map.entry(key) {
        Entry::Occupied(_) => false,
        Entry::Vacant(place) => {
            place.insert(value);
            true
        }
    }
}

impl DomainIndex {
    /// The number of the virtual host for `host` (any case; its port is part of it). A request without
    /// a host finds a virtual host only where `*` is the sole domain.
    pub fn find(&self, host: Option<&[u8]>) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_none() && self.prefixes.is_none() {
            return self.default;
        }
        let host = host?;
        let mut lower = SmallVec::<[u8; 128]>::new();
        let host = if host.iter().any(u8::is_ascii_uppercase) {
            lower.extend(host.iter().map(u8::to_ascii_lowercase));
            &lower[..]
        } else {
            host
        };
        if let Some(found) = self.exact.get(host) {
            return Some(*found);
        }
        // A wildcard stands for at least one byte.
        let mut longest = None;
        let mut keep = |len: usize, found: &u32| {
            if len < host.len() {
                longest = Some(*found);
            }
        };
        if let Some(suffixes) = &self.suffixes {
            suffixes.walk_backwards(host, &mut keep);
        }
        if longest.is_none()
            && let Some(prefixes) = &self.prefixes
        {
            prefixes.walk(host, |len, found| {
                if len < host.len() {
                    longest = Some(*found);
                }
            });
        }
        longest.or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(domains: &[&str]) -> DomainIndex {
        let mut builder = DomainIndexBuilder::default();
        for (i, domain) in domains.iter().enumerate() {
            builder.insert(domain, i as u32, "t").unwrap();
        }
        builder.build()
    }

    #[test]
    fn envoys_order() {
        let index = index(&["a.com", "*.a.com", "*-b.a.com", "a.*", "a.c*", "*"]);
        let find = |host: &str| index.find(Some(host.as_bytes()));
        assert_eq!(find("A.com"), Some(0));
        assert_eq!(find("x.a.com"), Some(1));
        assert_eq!(find("x-b.a.com"), Some(2));
        assert_eq!(find("a.net"), Some(3));
        assert_eq!(find("a.cn"), Some(4));
        assert_eq!(find(".a.com"), Some(5), "a wildcard stands for something");
        assert_eq!(find("a."), Some(5));
        assert_eq!(find("other"), Some(5));
        assert_eq!(index.find(None), None);
    }

    #[test]
    fn a_sole_wildcard_needs_no_host() {
        assert_eq!(index(&["*"]).find(None), Some(0));
        assert_eq!(index(&["a"]).find(Some(b"b")), None);
    }

    #[test]
    fn duplicates_are_refused_whatever_their_case() {
        let mut builder = DomainIndexBuilder::default();
        for domain in ["a", "*.a", "a.*", "*"] {
            builder.insert(domain, 0, "t").unwrap();
        }
        for domain in ["A", "*.A", "A.*", "*"] {
            assert!(builder.insert(domain, 1, "t").is_err(), "{domain}");
        }
    }
}
