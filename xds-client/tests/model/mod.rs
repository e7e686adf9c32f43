//! A small server by the letter of the protocol, which checks every request.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use xds_client::{Request, Response, Variant, WILDCARD};

/// A resource: its name is the first field, as in every type.
pub struct Value {
    pub name: String,
    pub value: u8,
}

impl Value {
    pub fn of(body: &[u8]) -> Self {
        let cluster = Cluster::decode(body).expect("the model's own message");
        let value = cluster.alt_stat_name.parse().expect("the model's own number");
        Self { name: cluster.name, value }
    }

    fn any(url: &str, name: &str, value: u8) -> Any {
        let name = name.to_owned();
        let cluster = Cluster { name, alt_stat_name: value.to_string(), ..Cluster::default() };
        Any { type_url: url.to_owned(), value: cluster.encode_to_vec() }
    }
}

/// What the server knows of one type on the open stream.
#[derive(Default)]
struct Watch {
    subscribed: BTreeSet<String>,
    /// Only empty lists so far: the wildcard of old.
    legacy: bool,
    /// Names and versions that the client has, as far as the server knows (delta).
    sent: BTreeMap<String, String>,
    /// Names to be sent whether they have changed or not.
    again: BTreeSet<String>,
    /// Sent and not yet answered, with the names in it.
    open: Vec<(String, Vec<String>)>,
    /// Of the last response.
    nonce: String,
    /// What the last response said (state of the world).
    last: Option<Vec<(String, u8, u64)>>,
}

pub struct Server {
    variant: Variant,
    resources: HashMap<String, BTreeMap<String, (u8, u64)>>,
    version: u64,
    nonces: u64,
    is_open: bool,
    has_node: bool,
    watches: BTreeMap<String, Watch>,
    outgoing: VecDeque<Response>,
    /// Given to the client, by type: the last one is what it may judge.
    given: HashMap<String, Vec<String>>,
}

impl Server {
    pub fn new(variant: Variant) -> Self {
        Self {
            variant,
            resources: HashMap::new(),
            version: 0,
            nonces: 0,
            is_open: false,
            has_node: false,
            watches: BTreeMap::new(),
            outgoing: VecDeque::new(),
            given: HashMap::new(),
        }
    }

    pub fn set(&mut self, url: &str, name: &str, value: Option<u8>) {
        self.version += 1;
        let resources = self.resources.entry(url.to_owned()).or_default();
        match value {
            Some(value) => resources.insert(name.to_owned(), (value, self.version)),
            None => resources.remove(name),
        };
    }

    pub fn open(&mut self) {
        assert!(!self.is_open, "a second stream");
        self.is_open = true;
    }

    /// Whether there was a stream.
    pub fn close(&mut self) -> bool {
        self.has_node = false;
        self.watches.clear();
        self.outgoing.clear();
        self.given.clear();
        std::mem::take(&mut self.is_open)
    }

    pub fn subscribed(&self, url: &str) -> BTreeSet<String> {
        self.watches.get(url).map(|watch| watch.subscribed.clone()).unwrap_or_default()
    }

    pub fn resources(&self, url: &str) -> BTreeMap<String, u8> {
        let resources = self.resources.get(url).into_iter().flatten();
        resources.map(|(name, (value, _))| (name.clone(), *value)).collect()
    }

    /// Nonces of a type that the client has been given on this stream.
    pub fn nonce_of(&self, url: &str) -> Vec<String> {
        self.given.get(url).cloned().unwrap_or_default()
    }

    pub fn next_response(&mut self) -> Option<Response> {
        let response = self.outgoing.pop_front()?;
        let (url, nonce) = match &response {
            Response::Delta(response) => (&response.type_url, &response.nonce),
            Response::StateOfTheWorld(response) => (&response.type_url, &response.nonce),
        };
        self.given.entry(url.clone()).or_default().push(nonce.clone());
        Some(response)
    }

    pub fn take(&mut self, request: Request) {
        assert!(self.is_open, "a request without a stream");
        match request {
            Request::Delta(request) => self.take_delta(*request),
            Request::StateOfTheWorld(request) => self.take_full(*request),
        }
    }

    fn check_node(&mut self, has_node: bool) {
        assert_eq!(has_node, !self.has_node, "the node goes with the first message only");
        self.has_node = true;
    }

    fn take_delta(&mut self, request: DeltaDiscoveryRequest) {
        self.check_node(request.node.is_some());
        let is_first = !self.watches.contains_key(&request.type_url);
        let watch = self.watches.entry(request.type_url).or_default();
        if request.response_nonce.is_empty() {
            assert!(request.error_detail.is_none());
        } else {
            let known = watch.open.iter().position(|(nonce, _)| *nonce == request.response_nonce);
            watch.open.remove(known.expect("each response is answered once, on its own stream"));
        }
        if is_first {
            watch.sent = request.initial_resource_versions.into_iter().collect();
            if request.resource_names_subscribe.is_empty() {
                watch.subscribed.insert(WILDCARD.to_owned());
            }
        } else {
            assert!(request.initial_resource_versions.is_empty());
        }
        for name in request.resource_names_subscribe {
            // What is asked for anew is said anew.
            if name == WILDCARD {
                watch.again.extend(watch.sent.keys().cloned());
                // What is on its way will be taken as the wildcard's, though it was given up as a name: no client can
                // tell, so that its end has to be said too.
                watch.again.extend(watch.open.iter().flat_map(|(_, names)| names.iter().cloned()));
            }
            watch.again.insert(name.clone());
            watch.subscribed.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            assert!(watch.subscribed.remove(&name), "{name} was not subscribed");
            if name == WILDCARD {
                watch.sent.retain(|name, _| watch.subscribed.contains(name));
            } else if !watch.subscribed.contains(WILDCARD) {
                watch.sent.remove(&name);
            } else {
                // Whether it belongs to the wildcard has to be said.
                watch.again.insert(name);
            }
        }
    }

    fn take_full(&mut self, request: DiscoveryRequest) {
        self.check_node(request.node.is_some());
        let is_first = !self.watches.contains_key(&request.type_url);
        let watch = self.watches.entry(request.type_url.clone()).or_default();
        let given = self.given.get(&request.type_url).and_then(|given| given.last());
        let newest = given.map_or("", String::as_str);
        assert_eq!(request.response_nonce, newest, "older than what the client has been given");
        if request.response_nonce != watch.nonce {
            // A newer response is on its way: its acknowledgement will say all of this again.
            return;
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        watch.legacy = (is_first || watch.legacy) && names.is_empty();
        let names = if watch.legacy { BTreeSet::from([WILDCARD.to_owned()]) } else { names };
        if names.difference(&watch.subscribed).next().is_some() {
            watch.last = None;
        }
        watch.subscribed = names;
    }

    /// Answers every type that has something to say and whose last nonce, in the state of the world, may be replaced.
    pub fn serve(&mut self) {
        let urls: Vec<_> = self.watches.keys().cloned().collect();
        for url in urls {
            match self.variant {
                Variant::Delta => self.serve_delta(&url),
                Variant::StateOfTheWorld => self.serve_full(&url),
            }
        }
    }

    fn serve_delta(&mut self, url: &str) {
        let none = BTreeMap::new();
        let has = self.resources.get(url).unwrap_or(&none);
        let Some(watch) = self.watches.get_mut(url) else { return };
        let wants_all = watch.subscribed.contains(WILDCARD);
        let mut resources = Vec::new();
        for (name, (value, version)) in has {
            if !wants_all && !watch.subscribed.contains(name) {
                continue;
            }
            let version = version.to_string();
            if watch.sent.get(name) == Some(&version) && !watch.again.contains(name) {
                continue;
            }
            watch.sent.insert(name.clone(), version.clone());
            resources.push(Resource {
                name: name.clone(),
                version,
                resource: Some(Value::any(url, name, *value)),
                ..Resource::default()
            });
        }
        let again = std::mem::take(&mut watch.again);
        let mut removed: BTreeSet<_> =
            again.into_iter().filter(|name| name != WILDCARD && !has.contains_key(name)).collect();
        removed.extend(watch.sent.keys().filter(|name| !has.contains_key(*name)).cloned());
        for name in &removed {
            watch.sent.remove(name);
        }
        if resources.is_empty() && removed.is_empty() {
            return;
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let names = resources.iter().map(|resource| resource.name.clone()).collect();
        watch.open.push((nonce.clone(), names));
        self.outgoing.push_back(Response::Delta(DeltaDiscoveryResponse {
            type_url: url.to_owned(),
            resources,
            removed_resources: removed.into_iter().collect(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }));
    }

    fn serve_full(&mut self, url: &str) {
        let none = BTreeMap::new();
        let has = self.resources.get(url).unwrap_or(&none);
        let Some(watch) = self.watches.get_mut(url) else { return };
        let wants_all = watch.subscribed.contains(WILDCARD);
        let state: Vec<_> = has
            .iter()
            .filter(|(name, _)| wants_all || watch.subscribed.contains(*name))
            .map(|(name, (value, version))| (name.clone(), *value, *version))
            .collect();
        if watch.last.as_ref() == Some(&state) {
            return;
        }
        self.nonces += 1;
        watch.nonce = self.nonces.to_string();
        let resources = state.iter().map(|(name, value, _)| Value::any(url, name, *value));
        self.outgoing.push_back(Response::StateOfTheWorld(DiscoveryResponse {
            type_url: url.to_owned(),
            version_info: self.version.to_string(),
            resources: resources.collect(),
            nonce: watch.nonce.clone(),
            ..DiscoveryResponse::default()
        }));
        watch.last = Some(state);
    }
}
