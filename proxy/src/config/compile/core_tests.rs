use super::*;
use crate::config::compile::diagnostic::Diagnostics;

fn socket(address: &str, port: u32) -> pb::SocketAddress {
    pb::SocketAddress {
        address: address.into(),
        port_specifier: Some(pb::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

#[test]
fn addresses_are_ip_name_or_pipe() {
    let found = Diagnostics::new("x");
    let root = found.root();
    let v6 = compile_socket_address(&socket("::1", 80), &root);
    assert!(matches!(v6, Some(ConfigAddress::Ip { addr, .. }) if addr.is_ipv6()));
    let name = compile_socket_address(&socket("a.example", 80), &root);
    assert_eq!(name, Some(ConfigAddress::Dns { host: "a.example".into(), port: 80 }));
    assert!(!found.has_errors());
    assert_eq!(compile_ip_address(&socket("a.example", 80), &root.field("a")), None);
    assert_eq!(compile_socket_address(&socket("::1", 65536), &root), None);
    let paths: Vec<_> = found.into_vec().into_iter().map(|d| d.path).collect();
    assert_eq!(paths, ["a.address", "port_value"]);
}

#[test]
fn durations_are_checked() {
    let found = Diagnostics::new("x");
    let root = found.root();
    let pb = |seconds, nanos| pb_google::Duration { seconds, nanos };
    assert_eq!(compile_duration(&pb(1, 5), &root), Some(Duration::new(1, 5)));
    assert_eq!(compile_duration(&pb(-1, 0), &root), None);
    assert_eq!(compile_duration(&pb(0, 1_000_000_000), &root), None);
    assert_eq!(compile_positive_duration(&pb(0, 0), &root), None);
    assert_eq!(found.into_vec().len(), 3);
}

#[test]
fn fractions_hit_in_proportion() {
    let half = Fraction { numerator: 50, denominator: 100 };
    assert_eq!((0..1000).filter(|r| half.hits(*r)).count(), 500);
    assert!(Fraction::ALWAYS.hits(99) && !Fraction::NEVER.hits(0));
}

#[test]
fn structs_become_json() {
    use pb_google::value::Kind;
    let value = |kind| pb_google::Value { kind: Some(kind) };
    let fields = [
        ("n".to_owned(), value(Kind::NumberValue(3.0))),
        ("f".to_owned(), value(Kind::NumberValue(0.5))),
        ("s".to_owned(), value(Kind::StringValue("x".into()))),
    ];
    let json = struct_to_json(&pb_google::Struct { fields: fields.into_iter().collect() });
    assert_eq!(serde_json::Value::Object(json), serde_json::json!({"n": 3, "f": 0.5, "s": "x"}));
}

#[test]
fn bind_config_takes_the_peers_family() {
    let bind = BindConfig {
        source: Some("127.0.0.1:0".parse().unwrap()),
        extra_sources: Box::new([ExtraSource {
            address: "[::1]:0".parse().unwrap(),
            socket_options: None,
        }]),
        ..BindConfig::default()
    };
    let v6 = bind.source_for("[::1]:80".parse().unwrap()).0;
    assert_eq!(v6, Some("[::1]:0".parse().unwrap()));
    let v4 = bind.source_for("10.0.0.1:80".parse().unwrap()).0;
    assert_eq!(v4, Some("127.0.0.1:0".parse().unwrap()));
}
