//! Resources from files (`path_config_source`): a file has a `DiscoveryResponse` in YAML, JSON or protobuf form.
//!
//! As in Envoy a file is read when something is moved over it, or into its `watched_directory`; what is written to it in
//! place is not looked at before. One inotify descriptor for all, on the control thread. A file that cannot be read
//! leaves in force what is there; a directory that cannot be watched, or is removed, is tried again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use prost::Message as _;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::resource::{RawResource, ResourceType, TypeUpdate, Wanted};
use super::store::Store;
use crate::config::json;
use crate::config::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use crate::config::pb::google::protobuf::Any;
use crate::config::source::{PathSource, Source};
use crate::stats::SharedBlock;
use crate::stats::names::ServerStat;
use crate::sys::inotify::Watches;

/// A configuration file is not larger than this.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// When a watch that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Type of a resource in an envelope with name and version.
const RESOURCE: &str = "envoy.service.discovery.v3.Resource";

/// What is fetched from one file.
#[derive(Debug, Default)]
struct Watched {
    /// Names by type, `None` for a whole type.
    wanted: BTreeMap<ResourceType, Option<FxHashSet<String>>>,
}

/// Fetches for the store what it wants from files, for as long as the process lives.
///
/// # Errors
/// The inotify descriptor cannot be read.
pub async fn fetch(
    store: Store,
    unknown: UnknownFields,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
) -> io::Result<()> {
    // Most processes have no such source and need no descriptor.
    let Some(first) = wanted.recv().await else { return Ok(()) };
    let mut files = Files {
        store,
        unknown,
        watches: watches().await,
        unwatched: Vec::new(),
        retry_at: Instant::now(),
        directories: FxHashMap::default(),
        watched: FxHashMap::default(),
    };
    files.want(first).await;
    loop {
        tokio::select! {
            more = wanted.recv() => match more {
                Some(more) => files.want(more).await,
                None => return Ok(()),
            },
            events = files.watches.events() => files.look(&events?).await,
            () = sleep_until(files.retry_at), if !files.unwatched.is_empty() => {
                files.watch_again().await;
            }
        }
    }
}

/// A descriptor; there may be none left for a while.
async fn watches() -> Watches {
    loop {
        match Watches::new() {
            Ok(watches) => return watches,
            Err(error) => tracing::error!(%error, "files cannot be watched"),
        }
        sleep(RETRY).await;
    }
}

/// What becomes of a file with fields that the API does not have.
pub enum UnknownFields {
    /// It is passed over with a warning, and counted (`server.dynamic_unknown_fields`).
    Warn(SharedBlock<ServerStat>),
    /// `--ignore-unknown-dynamic-fields`: it is passed over.
    Ignore,
    /// `--reject-unknown-dynamic-fields`: the file is not taken.
    Reject,
}

struct Files {
    store: Store,
    unknown: UnknownFields,
    watches: Watches,
    /// Watched directories, with the files that a move in them is about.
    directories: FxHashMap<WatchDescriptor, Vec<(Moves, Arc<PathSource>)>>,
    watched: FxHashMap<Arc<PathSource>, Watched>,
    /// Those whose directory is not watched, for now.
    unwatched: Vec<Arc<PathSource>>,
    retry_at: Instant,
}

/// Which moves into a directory say that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Moves {
    Any,
    /// Of this name.
    Of(std::ffi::OsString),
}

impl Files {
    async fn want(&mut self, wanted: Wanted) {
        let Source::Path(path) = &wanted.source else { return };
        if !self.watched.contains_key(path)
            && let Err(error) = self.watch(path)
        {
            tracing::error!(path = %path.path, %error, "cannot watch");
            self.watch_later(path.clone());
        }
        let kind = wanted.resource_type;
        let watched = self.watched.entry(path.clone()).or_default();
        if wanted.add.is_empty() && wanted.remove.is_empty() {
            watched.wanted.insert(kind, None);
        } else if let Some(names) =
            watched.wanted.entry(kind).or_insert_with(|| Some(FxHashSet::default()))
        {
            wanted.remove.iter().for_each(|name| {
                names.remove(name);
            });
            names.extend(wanted.add.iter().cloned());
            if names.is_empty() {
                watched.wanted.remove(&kind);
            }
        }
        if watched.wanted.is_empty() {
            let path = path.clone();
            return self.unwatch(&path);
        }
        if wanted.remove.is_empty() || !wanted.add.is_empty() {
            let path = path.clone();
            self.read(&path, Some(kind)).await;
        }
    }

    fn watch(&mut self, path: &Arc<PathSource>) -> io::Result<()> {
        let file = Path::new(&*path.path);
        let (directory, moves) = match &path.watched_directory {
            Some(directory) => (PathBuf::from(&**directory), Moves::Any),
            None => {
                let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
                let name = file.file_name().unwrap_or_default().to_owned();
                (parent.unwrap_or(Path::new(".")).to_owned(), Moves::Of(name))
            }
        };
        let watch = self.watches.add(&directory)?;
        self.directories.entry(watch).or_default().push((moves, path.clone()));
        Ok(())
    }

    fn watch_later(&mut self, path: Arc<PathSource>) {
        if self.unwatched.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.unwatched.push(path);
    }

    /// Watches what could not be watched. It may have changed meanwhile.
    async fn watch_again(&mut self) {
        for path in std::mem::take(&mut self.unwatched) {
            match self.watch(&path) {
                Ok(()) => self.read(&path, None).await,
                Err(_) => self.watch_later(path),
            }
        }
    }

    fn unwatch(&mut self, path: &Arc<PathSource>) {
        self.watched.remove(path);
        self.unwatched.retain(|one| one != path);
        let watches = &self.watches;
        self.directories.retain(|watch, files| {
            files.retain(|(_, file)| file != path);
            if files.is_empty() {
                watches.remove(*watch);
            }
            !files.is_empty()
        });
    }

    /// Reads the files that something was moved over.
    async fn look(&mut self, events: &[InotifyEvent]) {
        for gone in events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) {
            // The directory was removed; another may come in its place.
            let files = self.directories.remove(&gone.wd).unwrap_or_default();
            files.into_iter().for_each(|(_, path)| self.watch_later(path));
        }
        let mut changed: Vec<&Arc<PathSource>> = Vec::new();
        for event in events {
            let Some(files) = self.directories.get(&event.wd) else { continue };
            for (moves, path) in files {
                let is_it = match moves {
                    Moves::Any => true,
                    Moves::Of(name) => event.name.as_ref() == Some(name),
                };
                if is_it && !changed.contains(&path) {
                    changed.push(path);
                }
            }
        }
        for path in changed {
            self.read(path, None).await;
        }
    }

    /// Reads a file, and hands over what is in it for the types that are wanted of it, or for one.
    async fn read(&self, path: &Arc<PathSource>, only: Option<ResourceType>) {
        let Some(watched) = self.watched.get(path) else { return };
        let source = Source::Path(path.clone());
        let response = load(Path::new(&*path.path), &self.unknown);
        for kind in watched.wanted.keys().filter(|kind| only.is_none_or(|only| only == **kind)) {
            let update = match &response {
                Ok(response) => update(&source, *kind, response),
                Err(reason) => Err(reason.clone()),
            };
            match update {
                Ok(update) => {
                    let rejected = self.store.apply(&update).await;
                    if !rejected.is_empty() {
                        let reason = kind.nack(&rejected);
                        tracing::warn!(path = %path.path, reason, "update rejected");
                    }
                }
                Err(reason) => {
                    tracing::warn!(path = %path.path, reason, "cannot be read");
                    self.store.failed(&source, *kind, None);
                }
            }
        }
    }
}

fn load(path: &Path, unknown_fields: &UnknownFields) -> Result<DiscoveryResponse, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes are too many"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if path.extension().is_some_and(|ending| ending == "pb") {
        return DiscoveryResponse::decode(bytes.as_slice()).map_err(|e| e.to_string());
    }
    let text = String::from_utf8(bytes).map_err(|e| e.to_string())?;
    let problems = |problems: Vec<json::Problem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    // JSON is YAML.
    let (response, unknown) = json::from_yaml_leniently(&text).map_err(problems)?;
    match unknown_fields {
        UnknownFields::Reject if !unknown.is_empty() => {
            let fields: Vec<_> = unknown.iter().map(ToString::to_string).collect();
            return Err(format!("unknown fields: {}", fields.join("; ")));
        }
        UnknownFields::Warn(server) if !unknown.is_empty() => {
            server.inc(ServerStat::DynamicUnknownFields);
            for field in unknown {
                tracing::warn!("{}: unknown field passed over{field}", path.display());
            }
        }
        _ => {}
    }
    Ok(response)
}

/// The resources of one type in a response.
fn update(
    source: &Source,
    kind: ResourceType,
    response: &DiscoveryResponse,
) -> Result<TypeUpdate, String> {
    let mut resources = Vec::with_capacity(response.resources.len());
    for any in &response.resources {
        resources.extend(resource(any, kind, &response.version_info)?);
    }
    Ok(TypeUpdate {
        source: source.clone(),
        resource_type: kind,
        version: response.version_info.clone(),
        resources,
        removed: Vec::new(),
        full_state: true,
    })
}

fn resource(any: &Any, kind: ResourceType, version: &str) -> Result<Option<RawResource>, String> {
    if any.type_url.rsplit('/').next() == Some(RESOURCE) {
        let inner = Resource::decode(any.value.as_slice()).map_err(|e| e.to_string())?;
        let Some(body) = &inner.resource else { return Ok(None) };
        let mut resource = resource(body, kind, version)?;
        if let Some(resource) = resource.as_mut().filter(|_| !inner.version.is_empty()) {
            resource.version = inner.version;
        }
        return Ok(resource);
    }
    match ResourceType::of_url(&any.type_url) {
        Some(found) if found == kind => Ok(Some(RawResource {
            name: kind.name_of(&any.value).to_owned(),
            version: version.to_owned(),
            bytes: any.value.clone().into(),
        })),
        // One file may serve several types.
        Some(_) => Ok(None),
        None => Err(format!("{:?} is no type of resource", any.type_url)),
    }
}
