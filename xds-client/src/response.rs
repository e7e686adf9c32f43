//! A response, read against what is wanted and held: what it changes, what cannot be taken, what only lives on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration};
use prost::Message as _;

use crate::interest::{Held, Interest};
use crate::resource::{Rejection, Resource, Update, name_of};

const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// What is read from a response.
pub(crate) struct Intake {
    pub(crate) update: Update,
    pub(crate) nonce: String,
    /// What is held once the update is applied, resource by resource.
    pub(crate) held: Vec<(String, Held)>,
    /// Names that nobody wants, with what was said of them.
    pub(crate) passed_over: Vec<String>,
    /// Heartbeats: names and the new end of their lives.
    pub(crate) refreshed: Vec<(String, Option<Instant>)>,
}

/// One resource of either variant, its message still inside of its `Any`.
struct Entry {
    name: String,
    version: String,
    body: Option<Any>,
    ttl: Option<PbDuration>,
    has_aliases: bool,
}

impl Entry {
    fn of(resource: pb::Resource, version: Option<&str>) -> Self {
        Self {
            name: resource.name,
            version: version.map_or(resource.version, str::to_owned),
            body: resource.resource,
            ttl: resource.ttl,
            has_aliases: !resource.aliases.is_empty(),
        }
    }
}

impl Intake {
    fn new(interest: &Interest, version: String, nonce: String, plane: Option<String>) -> Self {
        let update = Update {
            resource_type: interest.resource_type.clone(),
            version,
            control_plane: plane,
            resources: Vec::new(),
            removed: Vec::new(),
            malformed: Vec::new(),
        };
        Self { update, nonce, held: Vec::new(), passed_over: Vec::new(), refreshed: Vec::new() }
    }

    pub(crate) fn delta(
        interest: &Interest,
        response: pb::DeltaDiscoveryResponse,
        now: Instant,
    ) -> Self {
        let plane = response.control_plane.map(|plane| plane.identifier);
        let mut intake = Self::new(interest, response.system_version_info, response.nonce, plane);
        let mut seen = HashSet::new();
        for resource in response.resources {
            intake.take(interest, Entry::of(resource, None), &mut seen, now);
        }
        for name in response.removed_resources {
            if !seen.insert(name.clone()) {
                let reason = "found twice among added and removed resources".to_owned();
                intake.update.malformed.push(Rejection { name, reason });
            } else if interest.wants(&name) || interest.held.contains_key(&name) {
                intake.update.removed.push(name);
            }
        }
        intake
    }

    pub(crate) fn full(interest: &Interest, response: pb::DiscoveryResponse, now: Instant) -> Self {
        let plane = response.control_plane.map(|plane| plane.identifier);
        let version = response.version_info;
        let mut intake = Self::new(interest, version.clone(), response.nonce, plane);
        let mut seen = HashSet::new();
        for any in response.resources {
            let entry = if any.type_url == WRAPPER {
                match pb::Resource::decode(&*any.value) {
                    Ok(resource) => Entry::of(resource, Some(&version)),
                    Err(error) => {
                        intake.reject(String::new(), error.to_string());
                        continue;
                    }
                }
            } else {
                let name = name_of(&any.value).unwrap_or_default();
                let version = version.clone();
                Entry { name, version, body: Some(any), ttl: None, has_aliases: false }
            };
            intake.take(interest, entry, &mut seen, now);
        }
        if interest.resource_type.is_full_state() {
            let wanted = interest.wanted.keys().filter(|name| *name != crate::resource::WILDCARD);
            let mut gone: Vec<String> = interest
                .held
                .keys()
                .chain(&interest.refused)
                .chain(wanted)
                .filter(|name| !seen.contains(*name))
                .cloned()
                .collect();
            gone.sort_unstable();
            gone.dedup();
            // What cannot be read may be any of them: the last good ones stay.
            let unread = intake.update.malformed.iter().any(|one| one.name.is_empty());
            intake.update.removed = if unread { Vec::new() } else { gone };
        }
        intake
    }

    fn reject(&mut self, name: String, reason: String) {
        self.update.malformed.push(Rejection { name, reason });
    }

    fn take(
        &mut self,
        interest: &Interest,
        entry: Entry,
        seen: &mut HashSet<String>,
        now: Instant,
    ) {
        if entry.name.is_empty() {
            return self.reject(entry.name, "a resource without a name".to_owned());
        }
        if !seen.insert(entry.name.clone()) {
            let reason = "duplicate name found among added/updated resources".to_owned();
            return self.reject(entry.name, reason);
        }
        let life = entry.ttl.map(|ttl| now + duration(&ttl));
        let Some(body) = entry.body else {
            match interest.held.get(&entry.name) {
                Some(held) if held.version == entry.version => {
                    self.refreshed.push((entry.name, life));
                }
                _ if entry.has_aliases => {}
                _ => self.reject(entry.name, "a resource without a message".to_owned()),
            }
            return;
        };
        if !interest.wants(&entry.name) {
            return self.passed_over.push(entry.name);
        }
        if body.type_url != interest.resource_type.url() {
            let expected = &interest.resource_type;
            let reason = format!(
                "type URL {} embedded in an individual Any does not match the message-wide type URL {expected}",
                body.type_url
            );
            return self.reject(entry.name, reason);
        }
        let held = Held { version: entry.version.clone(), expires: life };
        self.held.push((entry.name.clone(), held));
        let body = Bytes::from(body.value);
        self.update.resources.push(Resource { name: entry.name, version: entry.version, body });
    }
}

/// No life is shorter than nothing.
fn duration(ttl: &PbDuration) -> Duration {
    let nanos = u32::try_from(ttl.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(u64::try_from(ttl.seconds).unwrap_or(0).min(1 << 32), nanos)
}
