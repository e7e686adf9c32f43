//! The bootstrap: from a file, from `--config-yaml`, or from both, the second merged over the first.
//!
//! Static listeners, clusters and secrets are handed over one at a time as raw resources, in the order in which they
//! stand, so that each can be compiled and forgotten before the next is read.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;

use super::parse::{Parse, Problem};
use super::reader::{Position, Reader};
use super::schema::Message;
use super::{exact, hash, wire};
use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const STATIC_RESOURCES: &str = "envoy.config.bootstrap.v3.Bootstrap.StaticResources";

/// Where a bootstrap comes from; at least one of the two.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config-path`: YAML for `.yaml` and `.yml`, JSON for any other ending, as Envoy has it.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`: merged over the file, as protobuf merges: lists are joined, single values replaced.
    pub config_yaml: Option<String>,
    /// `--allow-unknown-static-fields`
    pub allow_unknown_fields: bool,
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawResource {
    pub name: String,
    /// `type.googleapis.com/envoy.config.cluster.v3.Cluster` and its kin.
    pub type_url: &'static str,
    pub bytes: Bytes,
    /// Of `bytes`.
    pub hash: u64,
    /// Where it stands: `envoy.yaml: static_resources.clusters[2]`.
    pub origin: String,
}

/// A bootstrap whose static resources stand beside it.
#[derive(Debug, Clone, Default)]
pub struct LoadedBootstrap {
    /// Without listeners, clusters and secrets.
    pub bootstrap: Bootstrap,
    pub listeners: Vec<RawResource>,
    pub clusters: Vec<RawResource>,
    pub secrets: Vec<RawResource>,
    /// Fields that were passed over: to be logged, and counted in `server.static_unknown_fields`.
    pub unknown_fields: Vec<String>,
}

/// A configuration that cannot be used. Prints one line per problem, each with its file, place and path.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("at least one of --config-path and --config-yaml has to be given")]
    NoSource,
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: the {form} form is not read, only YAML and JSON", path.display())]
    Form { path: PathBuf, form: &'static str },
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

/// Reads a bootstrap and keeps its resources.
///
/// # Errors
/// The file cannot be read, or something in it is wrong.
pub fn load(sources: &Sources) -> Result<LoadedBootstrap, LoadError> {
    let (mut listeners, mut clusters, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
    let (bootstrap, unknown_fields) = load_with(sources, |raw| {
        match raw.type_url.rsplit('.').next() {
            Some("Listener") => &mut listeners,
            Some("Cluster") => &mut clusters,
            _ => &mut secrets,
        }
        .push(raw);
    })?;
    Ok(LoadedBootstrap { bootstrap, listeners, clusters, secrets, unknown_fields })
}

/// Reads a bootstrap and hands each static resource to `each` as soon as it is read. Gives the rest of the bootstrap and
/// the unknown fields. An error can come after resources were handed over: nothing may be started before it returns.
///
/// # Errors
/// As `load`.
pub fn load_with(
    sources: &Sources,
    mut each: impl FnMut(RawResource),
) -> Result<(Bootstrap, Vec<String>), LoadError> {
    let mut merged = Merged { allow_unknown: sources.allow_unknown_fields, ..Merged::default() };
    if sources.config_path.is_none() && sources.config_yaml.is_none() {
        return Err(LoadError::NoSource);
    }
    if let Some(path) = &sources.config_path {
        let text = read(path)?;
        let yaml = has_ending(path, &["yaml", "yml"]);
        let reader = if yaml { Reader::yaml(&text) } else { Reader::json(&text) };
        merged.add(&path.display().to_string(), reader, &mut each);
    }
    if let Some(text) = &sources.config_yaml {
        merged.add("--config-yaml", Reader::yaml(text), &mut each);
    }
    if !merged.problems.is_empty() {
        return Err(LoadError::Problems(merged.problems));
    }
    // Joined wire forms decode to the merged message.
    let bootstrap = Bootstrap::decode(merged.bytes.as_slice())
        .map_err(|error| LoadError::Problems(vec![error.to_string()]))?;
    Ok((bootstrap, merged.unknown))
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| endings.iter().any(|other| ending.eq_ignore_ascii_case(other)))
}

fn read(path: &Path) -> Result<String, LoadError> {
    for form in ["pb", "pb_text"] {
        if has_ending(path, &[form]) {
            return Err(LoadError::Form { path: path.to_owned(), form });
        }
    }
    fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}

#[derive(Default)]
struct Merged {
    allow_unknown: bool,
    bytes: Vec<u8>,
    problems: Vec<String>,
    unknown: Vec<String>,
}

impl Merged {
    fn add(&mut self, file: &str, reader: Reader<'_>, each: &mut dyn FnMut(RawResource)) {
        let bootstrap = Message::find(BOOTSTRAP).expect("the schema has the bootstrap");
        let resources =
            Message::find(STATIC_RESOURCES).expect("the schema has the static resources");
        let mut sink = |message: Message, bytes: Vec<u8>, path: &str| {
            each(RawResource {
                name: wire::string_field(&bytes, 1).to_owned(),
                type_url: type_url(message),
                hash: hash(&bytes),
                bytes: exact(bytes),
                origin: format!("{file}: {path}"),
            });
        };
        let mut parse = Parse::new(reader);
        parse.divert(resources, &mut sink);
        let (problems, unknown) = parse.document(bootstrap, &mut self.bytes);
        let mut described: Vec<_> =
            problems.into_iter().map(|problem| describe(file, &problem)).collect();
        self.problems.append(&mut described);
        let target = if self.allow_unknown { &mut self.unknown } else { &mut self.problems };
        target.extend(unknown.into_iter().map(|problem| describe(file, &problem)));
    }
}

fn type_url(message: Message) -> &'static str {
    match message.name().rsplit('.').next() {
        Some("Listener") => "type.googleapis.com/envoy.config.listener.v3.Listener",
        Some("Cluster") => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        _ => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
    }
}

/// `envoy.yaml:12:7: static_resources.clusters[2].lb_policyy: unknown field`
fn describe(file: &str, problem: &Problem) -> String {
    format!("{file}{problem}")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.at;
        if line > 0 {
            write!(f, ":{line}:{column}")?;
        }
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{separator}{}: {}", self.path, self.reason)
    }
}
