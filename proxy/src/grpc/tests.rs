use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::testing::{Peer, context, value};
use super::*;
use crate::config::protocol_options::{AutoSni, UpstreamHttpOptions, UpstreamProtocolChoice};
use crate::stats::names::ClusterStat;
use crate::tls::context::{ClientContext, ClientSettings, CommonTls, Validation};
use crate::tls::suites;

fn target() -> Target {
    Target {
        cluster: "c".into(),
        authority: None,
        initial_metadata: Box::new([("x-token".into(), "t".into())]),
        max_message: 1 << 20,
    }
}

async fn bench(target: Target) -> (Peer, Client, Arc<crate::cluster::SharedCluster>) {
    let peer = Peer::start().await;
    let (worker, cluster) = peer.context();
    (peer, Client::new(worker, target), cluster)
}

#[tokio::test]
async fn one_message_out_and_one_in() {
    let test = async {
        let (mut peer, client, cluster) = bench(target()).await;
        let asked = "question".to_owned();
        let timeout = Some(Duration::from_secs(20));
        let answer = client.unary::<String, String>("/p.S/M", &asked, timeout);
        let serve = async {
            let mut call = peer.call().await;
            assert_eq!(call.head.uri.path(), "/p.S/M");
            assert_eq!(call.head.uri.authority().unwrap().as_str(), "c");
            let fields = ["te", "content-type", "grpc-timeout", "x-token", "x-envoy-internal"]
                .map(|name| call.header(name).to_owned());
            assert_eq!(fields, ["trailers", "application/grpc", "20000m", "t", "true"]);
            assert_eq!(call.read::<String>().await.unwrap(), "question");
            assert_eq!(call.read::<String>().await, None);
            call.send(&"answer".to_owned());
            call.end("0", "");
        };
        let (answer, ()) = tokio::join!(answer, serve);
        assert_eq!(answer.unwrap(), "answer");
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqCompleted), 1);
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqActive), 0);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn streams_go_both_ways_until_the_server_ends_them() {
    let test = async {
        let (mut peer, client, cluster) = bench(target()).await;
        let mut call = client.stream("/p.S/M").await.unwrap();
        call.send(&"1".to_owned());
        let (server, first) = tokio::join!(
            async {
                let mut server = peer.call().await;
                assert_eq!(server.read::<String>().await.unwrap(), "1");
                server.send(&"a".to_owned());
                server.send(&"b".to_owned());
                server
            },
            call.next::<String>()
        );
        assert_eq!(first.unwrap().unwrap(), "a");
        assert_eq!(call.next::<String>().await.unwrap().unwrap(), "b");
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqActive), 1);
        server.end("14", "going%20away");
        let end = call.next::<String>().await.unwrap_err();
        assert_eq!(end, Status::new(Code::UNAVAILABLE, "going away"));
        assert_eq!(call.next::<String>().await, Ok(None));
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqActive), 0);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_is_no_answer_becomes_a_status() {
    let test = async {
        let (mut peer, client, _) = bench(target()).await;
        for (http, status, code) in [(200, "5", 5), (503, "", 14), (200, "", 2), (404, "7", 7)] {
            let asked = String::new();
            let answer = client.unary::<String, String>("/p.S/M", &asked, None);
            let (answer, ()) =
                tokio::join!(answer, async { peer.call().await.refuse(http, status) });
            assert_eq!(answer.unwrap_err().code, Code(code), "{http} {status}");
        }
        let nobody = Target { cluster: "gone".into(), ..target() };
        let client = Client::new(client.worker.clone(), nobody);
        let error = client.stream("/p.S/M").await.unwrap_err();
        assert_eq!(error, Status::new(Code::UNAVAILABLE, "unknown cluster 'gone'"));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_ends_in_time() {
    let test = async {
        let (_peer, client, cluster) = bench(target()).await;
        let asked = String::new();
        let timeout = Some(Duration::from_millis(50));
        let answer = client.unary::<String, String>("/p.S/M", &asked, timeout).await;
        assert_eq!(answer.unwrap_err().code, Code::DEADLINE_EXCEEDED);
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqActive), 0);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_message_that_is_too_long_resets_the_call() {
    let test = async {
        let (mut peer, client, cluster) = bench(Target { max_message: 8, ..target() }).await;
        let asked = String::new();
        let answer = client.unary::<String, String>("/p.S/M", &asked, None);
        let serve = async {
            let mut call = peer.call().await;
            call.send(&"longer than eight".to_owned());
            call
        };
        let (answer, _call) = tokio::join!(answer, serve);
        assert_eq!(answer.unwrap_err().code, Code::RESOURCE_EXHAUSTED);
        assert_eq!(value(&cluster, ClusterStat::UpstreamRqTxReset), 1);
    };
    LocalSet::new().run_until(test).await;
}

/// What a call sends first to a cluster that leaves protocol and names to the request: its client's hello.
#[tokio::test]
async fn a_call_asks_for_the_name_of_its_service() {
    let test = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let common = CommonTls {
            tls12: true,
            tls13: true,
            suites: suites::default_tls12_suites(),
            groups: suites::default_groups(),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            certificates: Vec::new(),
            validation: Validation::default(),
        };
        let settings = ClientSettings {
            common,
            sni: "".into(),
            auto_host_sni: false,
            auto_sni_san_validation: false,
            max_session_keys: 0,
        };
        let (worker, _) = context(listener.local_addr().unwrap(), |config| {
            config.transport.default = Some(ClientContext::new(settings).unwrap());
            config.http = Arc::new(UpstreamHttpOptions {
                choice: UpstreamProtocolChoice::Auto,
                auto_sni: Some(AutoSni { sni: true, validate: true, header: None }),
                ..UpstreamHttpOptions::default()
            });
        });
        let named = Target { authority: Some("planes.test:15012".into()), ..target() };
        let client = Client::new(worker, named);
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = Vec::new();
            while !hello.windows(11).any(|name| name == b"planes.test") {
                assert!(stream.read_buf(&mut hello).await.unwrap() > 0, "a hello without the name");
            }
        };
        let (call, ()) = tokio::join!(client.stream("/p.S/M"), serve);
        assert_eq!(call.unwrap_err().code, Code::UNAVAILABLE);
    };
    LocalSet::new().run_until(test).await;
}
