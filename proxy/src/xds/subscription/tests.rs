use std::cell::Cell;

use tokio::task::LocalSet;

use super::*;
use crate::config::pb::envoy::config::cluster::v3::Cluster;
use crate::config::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use crate::config::pb::google::protobuf::Any;
use crate::grpc::testing::{Peer, PeerCall};

/// Applies everything but what is called `bad`; each cluster wants endpoints of its name, and the first clusters all
/// listeners.
struct Double {
    told: mpsc::UnboundedSender<Told>,
    applied: RefCell<Vec<String>>,
    failed: Cell<usize>,
    source: Source,
}

impl Double {
    fn want(&self, resource_type: ResourceType, add: Vec<String>) {
        let source = self.source.clone();
        let wanted = Wanted { source, resource_type, add, remove: Vec::new() };
        self.told.send(Told::Wanted(wanted)).unwrap();
    }
}

impl Consumer for Double {
    fn apply(&self, update: TypeUpdate) -> LocalBoxFuture<'_, Vec<Rejection>> {
        let (bad, good): (Vec<_>, Vec<_>) =
            update.resources.iter().map(|one| one.name.clone()).partition(|name| name == "bad");
        if update.resource_type == ResourceType::Cluster {
            self.want(ResourceType::Endpoints, good.clone());
        }
        if update.resource_type == ResourceType::Endpoints {
            self.want(ResourceType::Listener, Vec::new());
        }
        self.applied.borrow_mut().extend(good);
        let gone = update.removed.iter().map(|name| format!("-{name}"));
        self.applied.borrow_mut().extend(gone);
        let refused = bad.into_iter().map(|name| Rejection { name, error: "no".into() });
        Box::pin(std::future::ready(refused.collect()))
    }

    fn failed(&self, _: &Source, _: ResourceType, _: Option<&str>) {
        self.failed.set(self.failed.get() + 1);
    }
}

fn api(delta: bool) -> Arc<ApiSource> {
    Arc::new(ApiSource {
        delta,
        cluster: "c".into(),
        authority: None,
        initial_metadata: Box::default(),
        set_node_on_first_message_only: true,
        back_off: (std::time::Duration::from_millis(1), std::time::Duration::from_millis(2)),
        rate_limit: None,
    })
}

struct Bench {
    peer: Peer,
    double: Rc<Double>,
    registry: crate::stats::Registry,
    _subscriptions: Rc<Subscriptions>,
}

async fn bench(ads: Option<Arc<ApiSource>>, source: Source) -> Bench {
    let peer = Peer::start().await;
    let (worker, _) = peer.context();
    let (told, of_told) = mpsc::unbounded_channel();
    let applied = RefCell::default();
    let double = Rc::new(Double { told, applied, failed: Cell::new(0), source });
    let node = Node { id: "n".into(), ..Node::default() }.encode_to_vec();
    let registry = worker.registry.clone();
    let subscriptions = Subscriptions::start(worker, &node, ads, double.clone(), of_told);
    Bench { peer, double, registry, _subscriptions: subscriptions }
}

fn any(resource_type: ResourceType, name: &str) -> Any {
    // The name is the first field of every type.
    let value = Cluster { name: name.into(), ..Cluster::default() }.encode_to_vec();
    Any { type_url: resource_type.type_url().into(), value }
}

fn delta(resource_type: ResourceType, nonce: &str, names: &[&str]) -> DeltaDiscoveryResponse {
    let resource = |name: &&str| Resource {
        name: (*name).into(),
        version: "v".into(),
        resource: Some(any(resource_type, name)),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: resource_type.type_url().into(),
        nonce: nonce.into(),
        resources: names.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Type, subscribed, nonce, error, whether the node is there.
async fn next(call: &mut PeerCall) -> (ResourceType, String, String, String, bool) {
    let request: DeltaDiscoveryRequest = call.read().await.unwrap();
    let resource_type = ResourceType::of_url(&request.type_url).unwrap();
    let error = request.error_detail.map(|status| format!("{}: {}", status.code, status.message));
    let names = request.resource_names_subscribe.join(",");
    let node = request.node.is_some_and(|node| node.id == "n");
    (resource_type, names, request.response_nonce, error.unwrap_or_default(), node)
}

fn plain(
    resource_type: ResourceType,
    names: &str,
    nonce: &str,
) -> (ResourceType, String, String, String, bool) {
    (resource_type, names.into(), nonce.into(), String::new(), false)
}

#[tokio::test]
async fn requests_go_out_in_the_order_of_envoy() {
    let test = async {
        let mut bench = bench(Some(api(true)), Source::Ads).await;
        bench.double.want(ResourceType::Cluster, Vec::new());
        let mut call = bench.peer.call().await;
        assert!(call.head.uri.path().ends_with("/DeltaAggregatedResources"));
        let first = next(&mut call).await;
        assert_eq!(first, (ResourceType::Cluster, "".into(), "".into(), "".into(), true));
        call.send(&delta(ResourceType::Cluster, "1", &["a", "bad", "b"]));
        assert_eq!(next(&mut call).await, plain(ResourceType::Endpoints, "a,b", ""));
        let nack = next(&mut call).await;
        let error = "13: Error adding/updating cluster(s) bad: no";
        assert_eq!(nack, (ResourceType::Cluster, "".into(), "1".into(), error.into(), false));
        call.send(&delta(ResourceType::Endpoints, "2", &["a", "b"]));
        assert_eq!(next(&mut call).await, plain(ResourceType::Listener, "", ""));
        assert_eq!(next(&mut call).await, plain(ResourceType::Endpoints, "", "2"));
        assert_eq!(*bench.double.applied.borrow(), ["a", "b", "a", "b"]);
        let connected = || {
            let scope = bench.registry.scope("control_plane");
            scope.value(stats::ControlPlaneStat::ConnectedState)
        };
        assert_eq!(connected(), 1);

        call.end("14", "restart");
        let mut call = bench.peer.call().await;
        assert_eq!(bench.double.failed.get(), 3);
        let again: DeltaDiscoveryRequest = call.read().await.unwrap();
        assert!(again.node.is_some() && again.resource_names_subscribe.is_empty());
        let mut known: Vec<_> = again.initial_resource_versions.into_iter().collect();
        known.sort_unstable();
        let known: Vec<_> = known.iter().map(|(name, version)| (&**name, &**version)).collect();
        // What was refused has no version: it is asked after, so that its end is told.
        assert_eq!(known, [("a", "v"), ("b", "v"), ("bad", "")]);
        assert_eq!(next(&mut call).await, plain(ResourceType::Endpoints, "a,b", ""));
        assert_eq!(next(&mut call).await, plain(ResourceType::Listener, "", ""));
    };
    LocalSet::new().run_until(test).await;
}

/// What a control plane is not to be told yet goes out once it may, before what was said later.
#[tokio::test]
async fn clusters_are_acknowledged_when_they_are_let_go() {
    let test = async {
        let mut bench = bench(Some(api(true)), Source::Ads).await;
        bench.double.want(ResourceType::Cluster, Vec::new());
        let mut call = bench.peer.call().await;
        next(&mut call).await;
        bench.double.told.send(Told::HoldClusters(true)).unwrap();
        call.send(&delta(ResourceType::Cluster, "1", &["a"]));
        assert_eq!(next(&mut call).await, plain(ResourceType::Endpoints, "a", ""));
        call.send(&delta(ResourceType::Cluster, "2", &["b"]));
        assert_eq!(next(&mut call).await, plain(ResourceType::Endpoints, "b", ""));
        bench.double.told.send(Told::HoldClusters(false)).unwrap();
        for nonce in ["1", "2"] {
            assert_eq!(next(&mut call).await, plain(ResourceType::Cluster, "", nonce));
        }
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn names_with_a_source_of_their_own_have_streams_of_their_own() {
    let test = async {
        let source = Source::Api(api(false));
        let mut bench = bench(None, source.clone()).await;
        bench.double.want(ResourceType::Secret, vec!["default".into(), "ROOTCA".into()]);
        let mut names = Vec::new();
        let mut calls = Vec::new();
        for _ in 0..2 {
            let mut call = bench.peer.call().await;
            assert!(call.head.uri.path().ends_with("SecretDiscoveryService/StreamSecrets"));
            let request: DiscoveryRequest = call.read().await.unwrap();
            assert!(request.node.is_some());
            call.send(&DiscoveryResponse {
                type_url: request.type_url.clone(),
                version_info: "1".into(),
                nonce: "n".into(),
                resources: vec![any(ResourceType::Secret, &request.resource_names[0])],
                ..DiscoveryResponse::default()
            });
            let ack: DiscoveryRequest = call.read().await.unwrap();
            assert_eq!((&*ack.version_info, &*ack.response_nonce), ("1", "n"));
            assert_eq!(ack.resource_names, request.resource_names);
            names.extend(request.resource_names);
            calls.push(call);
        }
        names.sort_unstable();
        assert_eq!(names, ["ROOTCA", "default"]);
        // One that is wanted no longer ends; the other goes on.
        let remove = vec!["default".into()];
        let resource_type = ResourceType::Secret;
        let add = Vec::new();
        let wanted = Wanted { source, resource_type, add, remove };
        bench.double.told.send(Told::Wanted(wanted)).unwrap();
        let ends = calls.iter_mut().map(|call| Box::pin(call.read::<DiscoveryRequest>()));
        let (first, _, rest) = futures_util::future::select_all(ends).await;
        assert_eq!((first, rest.len()), (None, 1));
    };
    LocalSet::new().run_until(test).await;
}
