//! The store as the admin interface shows it: configuration from its bytes, listeners, clusters, and what was refused.

use std::sync::Arc;

use prost::Message as _;

use super::by_name::{Entry, Key};
use super::secrets::{SecretEntry, SecretKey};
use super::version::{Raw, Refused};
use super::{State, Store};
use crate::admin::{
    ClusterStatus, ConfigKind, ConfigResource, ConfigState, ListenerStatus, RejectedResource,
    RejectedUpdate,
};
use crate::config::compile::configuration::raw_of;
use crate::config::compile::diagnostic::Diagnostic;
use crate::config::compile::tls::redact::redacted;
use crate::config::extension::ExtensionSlot;
use crate::config::json::static_routes;
use crate::config::listener::Direction;
use crate::xds::resource::ResourceType;

impl Store {
    /// Names of all clusters, in the order in which they came.
    pub fn cluster_names(&self) -> Vec<Arc<str>> {
        self.0.state.borrow().clusters.order.values().cloned().collect()
    }

    /// A cluster in force, for `/clusters`.
    pub fn cluster_status(&self, name: &str) -> Option<ClusterStatus> {
        let state = self.0.state.borrow();
        let entry = state.clusters.entries.get(name)?;
        let mut status = entry.active.as_ref()?.shared.status();
        status.added_via_api = !entry.is_static;
        Some(status)
    }

    /// Listeners in force, for `/listeners`.
    pub fn listener_status(&self) -> Vec<ListenerStatus> {
        let state = self.0.state.borrow();
        let active = |name: &Arc<str>| state.listeners.entries.get(name)?.active.as_ref();
        let status = |name: &Arc<str>| {
            Some(ListenerStatus {
                name: name.to_string(),
                addresses: active(name)?.addresses().map(Into::into).collect(),
            })
        };
        state.listeners.order.values().filter_map(status).collect()
    }

    /// Numbers of the listeners in force, for `/drain_listeners`.
    pub fn listener_numbers(&self, inbound_only: bool) -> Vec<usize> {
        let state = self.0.state.borrow();
        let active = state.listeners.entries.values().filter_map(|entry| entry.active.as_ref());
        active
            .filter(|one| !inbound_only || one.config.direction == Direction::Inbound)
            .map(|one| one.number)
            .collect()
    }

    /// Fields of dynamic resources that are applied without.
    pub fn ignored(&self) -> Vec<Diagnostic> {
        self.0.state.borrow().ignored.values().cloned().collect()
    }

    /// The versions of whole types, for `/config_dump`: of clusters or of listeners.
    pub fn whole_version(&self, kind: ConfigKind) -> String {
        let state = self.0.state.borrow();
        let whole = match kind {
            ConfigKind::Clusters => state.whole_clusters.as_ref(),
            ConfigKind::Listeners => state.whole_listeners.as_ref(),
            _ => None,
        };
        whole.map(|whole| whole.version.clone()).unwrap_or_default()
    }

    /// Configuration of one kind.
    pub fn config(&self, kind: ConfigKind) -> Vec<ConfigResource> {
        let state = self.0.state.borrow();
        match kind {
            ConfigKind::Clusters => clusters(&state),
            ConfigKind::Listeners => listeners(&state),
            ConfigKind::Routes => routes(&state),
            ConfigKind::Endpoints => endpoints(&state),
            ConfigKind::Secrets => secrets(&state),
            ConfigKind::Extensions => extensions(&state),
            ConfigKind::Bootstrap | ConfigKind::ScopedRoutes => Vec::new(),
        }
    }

    /// Everything that was refused and that no good version has come after, for `/rejected`.
    pub fn rejected(&self) -> Vec<RejectedResource> {
        let state = self.0.state.borrow();
        let mut all = Vec::new();
        let mut add =
            |kind: ResourceType, name: &Arc<str>, refused: &Option<Refused>, old: bool| {
                all.extend(refused.as_ref().map(|refused| of_refused(kind, name, refused, old)));
            };
        for (name, entry) in &state.clusters.entries {
            add(ResourceType::Cluster, name, &entry.refused, entry.active.is_some());
        }
        for ((_, name), entry) in &state.endpoints {
            add(ResourceType::Endpoints, name, &entry.refused, entry.current.is_some());
        }
        for (name, entry) in &state.listeners.entries {
            add(ResourceType::Listener, name, &entry.refused, entry.active.is_some());
        }
        for ((_, name), entry) in &state.routes.0 {
            add(ResourceType::Routes, name, &entry.refused, entry.current.is_some());
        }
        for ((_, name), entry) in &state.extensions.0 {
            add(ResourceType::Extension, name, &entry.refused, entry.current.is_some());
        }
        for ((_, name), entry) in &state.secrets.0 {
            add(ResourceType::Secret, name, &entry.refused, entry.current.is_some());
        }
        all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        all
    }
}

fn of_refused(
    kind: ResourceType,
    name: &Arc<str>,
    refused: &Refused,
    has_good: bool,
) -> RejectedResource {
    RejectedResource {
        kind: kind.word(),
        name: name.to_string(),
        version: refused.raw.version.to_string(),
        since: refused.since,
        last_attempt: refused.raw.updated,
        last_good_in_force: has_good,
        problems: refused.problems.iter().map(|p| (p.path.clone(), p.reason.clone())).collect(),
    }
}

fn resource(
    kind: ResourceType,
    name: &str,
    raw: &Raw,
    state: ConfigState,
    refused: Option<&Refused>,
) -> ConfigResource {
    ConfigResource {
        name: name.to_owned(),
        state,
        version: raw.version.to_string(),
        last_updated: raw.updated,
        type_url: kind.type_url(),
        value: raw.bytes.clone(),
        rejected: refused.map(|refused| RejectedUpdate {
            version: refused.raw.version.to_string(),
            last_update_attempt: refused.raw.updated,
            details: refused.details(),
            value: refused.raw.bytes.clone(),
        }),
    }
}

fn clusters(state: &State) -> Vec<ConfigResource> {
    let mut all = Vec::new();
    for (name, entry) in &state.clusters.entries {
        let in_force = if entry.is_static { ConfigState::Static } else { ConfigState::Active };
        let versions = [(&entry.active, in_force), (&entry.warming, ConfigState::Warming)];
        for (version, state) in versions {
            let refused = entry.refused.as_ref();
            let one = version
                .as_ref()
                .map(|version| resource(ResourceType::Cluster, name, &version.raw, state, refused));
            all.extend(one);
        }
    }
    all
}

fn listeners(state: &State) -> Vec<ConfigResource> {
    const KIND: ResourceType = ResourceType::Listener;
    let mut all = Vec::new();
    let warming = state.listeners.entries.iter().filter(|(_, entry)| entry.active.is_none());
    let names = state.listeners.order.values().chain(warming.map(|(name, _)| name));
    for name in names {
        let Some(entry) = state.listeners.entries.get(name) else { continue };
        let refused = entry.refused.as_ref();
        let in_force = if entry.is_static { ConfigState::Static } else { ConfigState::Active };
        let active = entry.active.as_ref();
        all.extend(active.map(|active| resource(KIND, name, &active.raw, in_force, refused)));
        let warming = entry.warming.as_ref();
        all.extend(
            warming.map(|one| resource(KIND, name, &one.raw, ConfigState::Warming, refused)),
        );
        all.extend(draining(state, name));
        if let (None, None, Some(refused)) = (active, warming, refused) {
            let mut one = resource(KIND, name, &refused.raw, ConfigState::Rejected, Some(refused));
            one.value = bytes::Bytes::new();
            all.push(one);
        }
    }
    let gone = state
        .listeners
        .draining
        .iter()
        .filter(|one| !state.listeners.entries.contains_key(&one.name));
    all.extend(gone.map(|one| resource(KIND, &one.name, &one.raw, ConfigState::Draining, None)));
    all
}

/// A listener of this name that drains beside its successor.
fn draining(state: &State, name: &str) -> Option<ConfigResource> {
    let one = state.listeners.draining.iter().rev().find(|one| *one.name == *name)?;
    Some(resource(ResourceType::Listener, name, &one.raw, ConfigState::Draining, None))
}

/// Those that listeners have themselves, then those that came by name.
fn routes(state: &State) -> Vec<ConfigResource> {
    let active = |name: &Arc<str>| state.listeners.entries.get(name)?.active.as_ref();
    let mut all = Vec::new();
    for listener in state.listeners.order.values().filter_map(active) {
        let raw = raw_of(ResourceType::Listener, &listener.raw.bytes);
        for (name, value) in static_routes(&raw) {
            all.push(ConfigResource {
                name,
                state: ConfigState::Static,
                version: String::new(),
                last_updated: listener.raw.updated,
                type_url: ResourceType::Routes.type_url(),
                value,
                rejected: None,
            });
        }
    }
    let mut named: Vec<_> = state.routes.0.iter().collect();
    named.sort_by(|a, b| a.0.1.cmp(&b.0.1));
    for ((_, name), entry) in named {
        let refused = entry.refused.as_ref();
        all.extend(
            entry
                .current
                .as_ref()
                .map(|raw| resource(ResourceType::Routes, name, raw, ConfigState::Active, refused)),
        );
    }
    all
}

/// Configurations of filters that came by name.
fn extensions(state: &State) -> Vec<ConfigResource> {
    let mut named: Vec<_> = state.extensions.0.iter().collect();
    named.sort_by(|a, b| a.0.1.cmp(&b.0.1));
    let show = |raw: &Raw, name: &str| {
        resource(ResourceType::Extension, name, raw, ConfigState::Active, None)
    };
    let current = |((_, name), entry): (&Key, &Entry<ExtensionSlot>)| {
        entry.current.as_ref().map(|raw| show(raw, name))
    };
    named.into_iter().filter_map(current).collect()
}

/// Secrets that are fetched, without their keys; those that have not come are shown as Envoy shows them.
fn secrets(state: &State) -> Vec<ConfigResource> {
    let mut named: Vec<_> = state.secrets.0.iter().collect();
    named.sort_by(|a, b| a.0.1.cmp(&b.0.1));
    let show = |((_, name), entry): (&SecretKey, &SecretEntry)| {
        let (state, raw) = match &entry.current {
            Some(raw) => (ConfigState::Active, raw.clone()),
            None => (ConfigState::Warming, Raw::missing_secret(name, entry.since)),
        };
        let refused = entry.refused.as_ref();
        let mut one = resource(ResourceType::Secret, name, &raw, state, refused);
        one.value = redacted(&one.value);
        if let Some(rejected) = &mut one.rejected {
            rejected.value = redacted(&rejected.value);
        }
        one
    };
    named.into_iter().map(show).collect()
}

/// The hosts of every cluster as they are now, as Envoy shows them.
fn endpoints(state: &State) -> Vec<ConfigResource> {
    let mut all = Vec::new();
    for (name, entry) in &state.clusters.entries {
        let Some(active) = &entry.active else { continue };
        all.push(ConfigResource {
            name: name.to_string(),
            state: if entry.is_static { ConfigState::Static } else { ConfigState::Active },
            version: String::new(),
            last_updated: active.raw.updated,
            type_url: ResourceType::Endpoints.type_url(),
            value: active.shared.assignment_dump().encode_to_vec().into(),
            rejected: None,
        });
    }
    all
}
