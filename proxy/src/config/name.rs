//! Interned names: configuration that refers to a thing by name compares numbers afterwards.

use std::sync::{Arc, OnceLock, RwLock};

use rustc_hash::FxHashMap;

/// A name's number, the same for equal texts in one process. Meant for the small set of names that filters
/// have; never given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(u32);

impl NameId {
    /// No name's number.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

static NAMES: OnceLock<RwLock<FxHashMap<Arc<str>, u32>>> = OnceLock::new();

/// The number of a name. Takes a lock: for compile functions, not for the data path.
pub fn intern(name: &str) -> NameId {
    let names = NAMES.get_or_init(RwLock::default);
    if let Some(id) = names.read().expect("no holder panics").get(name) {
        return NameId(*id);
    }
    let mut names = names.write().expect("no holder panics");
    let next = names.len() as u32;
    NameId(*names.entry(Arc::from(name)).or_insert(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_have_equal_numbers() {
        assert_eq!(intern("name-test-a"), intern("name-test-a"));
        assert_ne!(intern("name-test-a"), intern("name-test-b"));
    }
}
