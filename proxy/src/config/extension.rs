//! Filters whose configuration is discovered (ECDS): `HttpFilter.config_discovery`, `ExtensionConfigSource`.
//!
//! All that name one configuration of one source share its slot. Each compiles it for itself, since what it compiles to
//! hangs on where it stands; streams find the newest.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use super::pb::google::protobuf::Any;
use super::source::ConfigSource;
use crate::http_filters::chain::FilterConfig;

/// A configuration of one name at one source.
pub struct ExtensionSlot {
    /// The filter's name.
    pub name: Arc<str>,
    pub source: ConfigSource,
    /// The control thread alone looks in here.
    state: Mutex<State>,
    answered: AtomicBool,
}

#[derive(Default)]
struct State {
    users: Vec<Weak<DiscoveredFilter>>,
    current: Option<Any>,
    conflicts: u64,
}

impl fmt::Debug for ExtensionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtensionSlot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ExtensionSlot {
    pub fn new(name: Arc<str>, source: ConfigSource) -> Self {
        Self { name, source, state: Mutex::default(), answered: AtomicBool::new(false) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One more filter follows the configuration.
    pub fn add(&self, user: &Arc<DiscoveredFilter>) {
        self.with(|state| {
            state.users.retain(|one| one.strong_count() > 0);
            state.users.push(Arc::downgrade(user));
        });
    }

    /// The filters that follow it.
    pub fn users(&self) -> Vec<Arc<DiscoveredFilter>> {
        self.with(|state| state.users.iter().filter_map(Weak::upgrade).collect())
    }

    /// What came last and was good.
    pub fn current(&self) -> Option<Any> {
        self.with(|state| state.current.clone())
    }

    /// Another configuration is good, or there is none any more.
    pub fn set(&self, current: Option<Any>) {
        self.with(|state| state.current = current);
    }

    /// A new filter cannot use what is known.
    pub fn conflict(&self) {
        self.with(|state| state.conflicts += 1);
    }

    /// The conflicts since the last call.
    pub fn take_conflicts(&self) -> u64 {
        self.with(|state| std::mem::take(&mut state.conflicts))
    }

    /// Something has come, good or bad: nobody is to wait for it.
    pub fn answer(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// Nobody asks for it any more. Its filters stay as they are; who names it again waits for a new answer.
    pub fn forget(&self) {
        self.set(None);
        self.answered.store(false, Ordering::Release);
    }

    /// Whether something has come: what warming waits for.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }
}

/// One filter of a chain whose configuration is discovered.
pub struct DiscoveredFilter {
    pub slot: Arc<ExtensionSlot>,
    /// `type_urls`: message names that are taken.
    pub types: Vec<Box<str>>,
    /// `stat_prefix` of its connection manager.
    pub stat_prefix: Box<str>,
    /// The listener waits for the configuration: not `apply_default_config_without_warming`.
    pub waits: bool,
    /// `default_config`
    pub default: Option<Arc<FilterConfig>>,
    config: ArcSwapOption<FilterConfig>,
}

impl fmt::Debug for DiscoveredFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveredFilter").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl DiscoveredFilter {
    /// Its default serves until a configuration is there.
    pub fn new(
        slot: Arc<ExtensionSlot>,
        types: Vec<Box<str>>,
        stat_prefix: &str,
        waits: bool,
        default: Option<FilterConfig>,
    ) -> Self {
        let default = default.map(Arc::new);
        let config = ArcSwapOption::new(default.clone());
        Self { slot, types, stat_prefix: stat_prefix.into(), waits, default, config }
    }

    /// The newest configuration; none: requests are answered with 500.
    pub fn load(&self) -> arc_swap::Guard<Option<Arc<FilterConfig>>> {
        self.config.load()
    }

    /// Puts a configuration in force for new streams; without one the default.
    pub fn fill(&self, config: Option<Arc<FilterConfig>>) {
        self.config.store(config.or_else(|| self.default.clone()));
    }
}
