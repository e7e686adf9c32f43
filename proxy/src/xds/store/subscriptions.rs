//! Which names are wanted of which source: counted by who needs them, told to who fetches them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::config::source::Source;
use crate::xds::resource::{ResourceType, Wanted};

type Key = (ResourceType, Source, Arc<str>);

/// See the module.
#[derive(Debug, Default)]
pub struct Subscriptions {
    users: FxHashMap<Key, u32>,
    /// What has changed since the last `take`: how many more or fewer of a name are subscribed to.
    changed: FxHashMap<Key, i32>,
}

impl Subscriptions {
    /// Somebody needs a name. Gives whether nobody did before.
    pub fn add(&mut self, kind: ResourceType, source: &Source, name: &Arc<str>) -> bool {
        let key = (kind, source.clone(), name.clone());
        let users = self.users.entry(key.clone()).or_default();
        *users += 1;
        let first = *users == 1;
        if first {
            *self.changed.entry(key).or_default() += 1;
        }
        first
    }

    /// Somebody no longer needs a name. Gives whether nobody does now.
    pub fn remove(&mut self, kind: ResourceType, source: &Source, name: &Arc<str>) -> bool {
        let key = (kind, source.clone(), name.clone());
        let Some(users) = self.users.get_mut(&key) else { return false };
        *users -= 1;
        if *users > 0 {
            return false;
        }
        self.users.remove(&key);
        *self.changed.entry(key).or_default() -= 1;
        true
    }

    /// The changes since the last time of the types of which `now` is true, by source and type, types in the order in which
    /// they are asked for.
    pub fn take(&mut self, now: impl Fn(ResourceType) -> bool) -> Vec<Wanted> {
        let mut found: BTreeMap<(usize, usize), Wanted> = BTreeMap::new();
        let mut sources: Vec<Source> = Vec::new();
        let mut changed: Vec<(Key, i32)> = self.changed.extract_if(|key, _| now(key.0)).collect();
        changed.sort_by(|a, b| a.0.2.cmp(&b.0.2));
        for ((resource_type, source, name), change) in changed {
            if change == 0 {
                continue;
            }
            let number = sources.iter().position(|known| *known == source).unwrap_or_else(|| {
                sources.push(source.clone());
                sources.len() - 1
            });
            let rank = ResourceType::ALL.iter().position(|one| *one == resource_type);
            let wanted = found.entry((rank.unwrap_or(0), number)).or_insert_with(|| Wanted {
                source,
                resource_type,
                add: Vec::new(),
                remove: Vec::new(),
            });
            let list = if change > 0 { &mut wanted.add } else { &mut wanted.remove };
            list.push(name.to_string());
        }
        found.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_and_the_last_user_count() {
        let mut subscriptions = Subscriptions::default();
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        assert!(subscriptions.add(ResourceType::Endpoints, &Source::Ads, &a));
        assert!(!subscriptions.add(ResourceType::Endpoints, &Source::Ads, &a));
        subscriptions.add(ResourceType::Routes, &Source::Ads, &b);
        let wanted = subscriptions.take(|_| true);
        assert_eq!(wanted.len(), 2);
        assert_eq!(
            (wanted[0].resource_type, &*wanted[0].add),
            (ResourceType::Endpoints, &["a".to_owned()][..])
        );
        assert!(!subscriptions.remove(ResourceType::Endpoints, &Source::Ads, &a));
        assert!(subscriptions.take(|_| true).is_empty());
        assert!(subscriptions.remove(ResourceType::Endpoints, &Source::Ads, &a));
        subscriptions.add(ResourceType::Endpoints, &Source::Ads, &a);
        // Gone and back in one turn: the source need not know.
        assert!(subscriptions.take(|_| true).is_empty());
    }
}
