//! Secrets by name and source: a slot each, which handshakes read and whoever fetches secrets fills.
//!
//! A transport socket asks for its slots when it is compiled. The newest value serves the next handshake; no
//! connection closes for it. A secret that is broken, or has expired while the old one has not, is refused and the old
//! one stays. Envoy: `SdsSecretConfig`, `Secret`.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustc_hash::FxHashMap;

use super::inventory::Inventory;
use super::material::TlsCertificate;
use super::validation::ValidationContext;
use crate::config::source::Source;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// Written in the transport socket itself: a slot of its own.
    Inline,
    /// `static_resources.secrets`.
    Static,
    /// Fetched, or read from a watched file.
    Discovered(Source),
}

/// What a transport socket wants in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecretKind {
    Certificate,
    Validation,
}

/// A compiled secret.
#[derive(Debug, Clone)]
pub enum Secret {
    Certificate(Arc<TlsCertificate>),
    Validation(Arc<ValidationContext>),
}

impl Secret {
    pub fn kind(&self) -> SecretKind {
        match self {
            Self::Certificate(_) => SecretKind::Certificate,
            Self::Validation(_) => SecretKind::Validation,
        }
    }

    /// Whether the end of its validity lies before `now`.
    fn is_expired(&self, now: SystemTime) -> bool {
        match self {
            Self::Certificate(certificate) => certificate.not_after() < now,
            Self::Validation(_) => false,
        }
    }
}

/// Why a secret was not taken. The last good one stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretRefused {
    #[error("secret {name:?}: {reason}")]
    Broken { name: Arc<str>, reason: String },
    #[error("secret {name:?}: the certificate has expired, the one in force has not")]
    Expired { name: Arc<str> },
    #[error("secret {name:?} is not of the kind that is asked for: {wanted:?}")]
    Kind { name: Arc<str>, wanted: SecretKind },
}

/// The place of one secret. Read by handshakes on all workers.
pub struct SecretSlot {
    name: Arc<str>,
    source: SecretSource,
    kind: SecretKind,
    value: ArcSwapOption<Secret>,
    /// Moves with every new value.
    version: AtomicU64,
    updated: Mutex<Option<SystemTime>>,
    users: Mutex<Vec<Weak<dyn SecretUser>>>,
}

/// A slot as one transport socket uses it.
#[derive(Debug, Clone)]
pub struct SecretUse {
    pub slot: Arc<SecretSlot>,
    /// `ConfigSource.initial_fetch_timeout`: who uses it waits so long for the secret; `None` for ever. Another may name
    /// the same secret with another time.
    pub initial_fetch_timeout: Option<Duration>,
}

/// Of a secret that is there.
impl From<Arc<SecretSlot>> for SecretUse {
    fn from(slot: Arc<SecretSlot>) -> Self {
        Self { slot, initial_fetch_timeout: None }
    }
}

impl Deref for SecretUse {
    type Target = Arc<SecretSlot>;

    fn deref(&self) -> &Arc<SecretSlot> {
        &self.slot
    }
}

/// What is made from secrets, and has to be made anew with them.
pub trait SecretUser: Send + Sync {
    /// One of its slots has a new value. Called by the thread that brought it.
    fn secret_changed(&self);
}

impl fmt::Debug for SecretSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSlot").field("name", &self.name).field("kind", &self.kind).finish()
    }
}

impl SecretSlot {
    fn new(name: &str, source: SecretSource, kind: SecretKind) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            source,
            kind,
            value: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            updated: Mutex::new(None),
            users: Mutex::default(),
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    pub fn kind(&self) -> SecretKind {
        self.kind
    }

    /// Whether a secret is there: what warming waits for.
    pub fn is_filled(&self) -> bool {
        self.version() > 0
    }

    /// 0 while empty; moves with every new value.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The newest value.
    pub fn get(&self) -> Option<Arc<Secret>> {
        self.value.load_full()
    }

    /// Whether two slots give the same now and always: they are one, or hold the same certificates for good.
    pub fn is_same(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let chain = |slot: &Self| match &*slot.get()? {
            Secret::Certificate(certificate) => Some(certificate.key.cert.clone()),
            Secret::Validation(_) => None,
        };
        let inline = |slot: &Self| slot.source == SecretSource::Inline;
        Arc::ptr_eq(self, other)
            || (inline(self) && inline(other) && self.is_filled() && chain(self) == chain(other))
    }

    /// When the newest value came.
    pub fn updated(&self) -> Option<SystemTime> {
        *lock(&self.updated)
    }

    /// Tells `user` of every new value, for as long as it lives.
    pub fn subscribe(&self, user: Weak<dyn SecretUser>) {
        let mut users = lock(&self.users);
        users.retain(|user| user.strong_count() > 0);
        users.push(user);
    }

    /// Puts a secret in force for the next handshake.
    ///
    /// # Errors
    /// It is of another kind, or it has expired and the one in force has not.
    pub fn fill(&self, secret: Secret) -> Result<(), SecretRefused> {
        if secret.kind() != self.kind {
            return Err(SecretRefused::Kind { name: self.name.clone(), wanted: self.kind });
        }
        let now = SystemTime::now();
        let fresh = self.get().is_some_and(|old| !old.is_expired(now));
        if fresh && secret.is_expired(now) {
            return Err(SecretRefused::Expired { name: self.name.clone() });
        }
        self.value.store(Some(Arc::new(secret)));
        *lock(&self.updated) = Some(now);
        self.version.fetch_add(1, Ordering::AcqRel);
        let users: Vec<_> = lock(&self.users).iter().filter_map(Weak::upgrade).collect();
        users.iter().for_each(|user| user.secret_changed());
        Ok(())
    }
}

/// A secret that some transport socket uses and that has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSecret {
    pub name: Arc<str>,
    pub source: Source,
    /// Everything that uses it has it.
    pub is_filled: bool,
}

type Key = (Arc<str>, SecretSource, SecretKind);

/// All secrets of the process. A slot lives as long as something uses it; static secrets stay.
#[derive(Debug, Default)]
pub struct Secrets {
    slots: Mutex<FxHashMap<Key, Weak<SecretSlot>>>,
    statics: Mutex<Vec<Arc<SecretSlot>>>,
    /// The contexts that use them.
    pub inventory: Arc<Inventory>,
}

impl Secrets {
    /// The slot of a secret; one that is in use is shared. Those of `SecretSource::Inline` never are.
    pub fn slot(&self, name: &str, source: &SecretSource, kind: SecretKind) -> Arc<SecretSlot> {
        if *source == SecretSource::Inline {
            return SecretSlot::new(name, SecretSource::Inline, kind);
        }
        let key = (Arc::from(name), source.clone(), kind);
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = SecretSlot::new(name, source.clone(), kind);
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }

    /// Fills the slot of a name, where something uses it; the value of a static one is kept for who comes later.
    ///
    /// # Errors
    /// The secret is broken (`compiled` says why), of another kind than is asked for, or has expired while the one in
    /// force has not. What was in force stays.
    pub fn publish(
        &self,
        name: &str,
        source: &SecretSource,
        compiled: Result<Secret, String>,
    ) -> Result<(), SecretRefused> {
        let secret =
            compiled.map_err(|reason| SecretRefused::Broken { name: name.into(), reason })?;
        if *source == SecretSource::Static {
            let slot = self.slot(name, source, secret.kind());
            slot.fill(secret)?;
            lock(&self.statics).push(slot);
            return Ok(());
        }
        let find = |kind| {
            let key = (Arc::from(name), source.clone(), kind);
            lock(&self.slots).get(&key).and_then(Weak::upgrade)
        };
        let kind = secret.kind();
        if let Some(slot) = find(kind) {
            return slot.fill(secret);
        }
        let other = match kind {
            SecretKind::Certificate => SecretKind::Validation,
            SecretKind::Validation => SecretKind::Certificate,
        };
        match find(other) {
            Some(slot) => slot.fill(secret),
            None => Ok(()),
        }
    }

    /// Gives a secret that is known to a slot that was made since; whether there was one without.
    pub fn refill(&self, name: &str, source: &SecretSource, secret: Secret) -> bool {
        let key = (Arc::from(name), source.clone(), secret.kind());
        let slot = lock(&self.slots).get(&key).and_then(Weak::upgrade);
        slot.is_some_and(|slot| !slot.is_filled() && slot.fill(secret).is_ok())
    }

    /// The secrets to be fetched for what is in use now, in no order.
    pub fn wanted(&self) -> Vec<WantedSecret> {
        let mut wanted: Vec<WantedSecret> = Vec::new();
        let mut places = FxHashMap::default();
        for slot in self.slots() {
            let SecretSource::Discovered(source) = &slot.source else { continue };
            let key = (source.clone(), slot.name.clone());
            if let Some(at) = places.get(&key) {
                let known: &mut WantedSecret = &mut wanted[*at];
                known.is_filled &= slot.is_filled();
                continue;
            }
            places.insert(key, wanted.len());
            wanted.push(WantedSecret {
                name: slot.name.clone(),
                source: source.clone(),
                is_filled: slot.is_filled(),
            });
        }
        wanted
    }

    /// Slots in use that have a name, static ones included.
    pub fn slots(&self) -> Vec<Arc<SecretSlot>> {
        let mut slots = lock(&self.slots);
        slots.retain(|_, slot| slot.strong_count() > 0);
        slots.values().filter_map(Weak::upgrade).collect()
    }
}

/// A poisoned lock holds what it held: nothing here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
