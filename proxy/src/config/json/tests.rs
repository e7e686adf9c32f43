//! Both directions against fixtures, mistakes and what they say, and as a property: YAML, JSON, and what is written
//! again give the same bytes for any message that the schema allows.

use std::fmt::Write as _;
use std::path::PathBuf;

use proptest::prelude::*;
use prost::Message as _;

use super::schema::{Field, Kind, Message};
use super::*;
use crate::config::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::config::pb::envoy::config::cluster::v3::Cluster;
use crate::config::pb::envoy::config::core::v3::{Metadata, Node};
use crate::config::pb::envoy::config::listener::v3::{FilterChainMatch, Listener};
use crate::config::pb::envoy::extensions::bootstrap::internal_listener::v3::InternalListener;
use crate::config::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/config/json/testdata").join(name)
}

fn problems<M: prost::Message + prost::Name + Default + std::fmt::Debug>(text: &str) -> String {
    let all = from_yaml::<M>(text).unwrap_err();
    all.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn bootstraps_of_a_sidecar_and_a_gateway_load() {
    for name in ["sidecar.json", "gateway.json"] {
        let sources = Sources {
            config_path: Some(fixture(name)),
            allow_unknown_fields: true,
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.unknown_fields, Vec::<String>::new());
        let names: Vec<_> = loaded.clusters.iter().map(|raw| raw.name.as_str()).collect();
        assert_eq!(names, ["prometheus_stats", "agent", "sds-grpc", "xds-grpc"], "{name}");
        assert_eq!(loaded.listeners.len(), 2);
        assert!(loaded.listeners[0].origin.ends_with(".json: static_resources.listeners[0]"));
        assert_eq!(loaded.bootstrap.stats_config.unwrap().stats_tags.len(), 16);
        for raw in &loaded.clusters {
            assert_eq!(Cluster::decode(raw.bytes.clone()).unwrap().name, raw.name);
            assert_eq!(raw.hash, hash(&raw.bytes));
        }
        for raw in &loaded.listeners {
            Listener::decode(raw.bytes.clone()).unwrap();
        }
        // The TypedStruct has become what it stands for.
        let extension = loaded.bootstrap.bootstrap_extensions[0].typed_config.clone().unwrap();
        assert!(extension.type_url.ends_with("InternalListener"));
        let listener = InternalListener::decode(extension.value.as_slice()).unwrap();
        assert_eq!(listener.buffer_size_kb.unwrap().value, 64);
    }
}

#[test]
fn a_dump_has_the_static_resources_and_routes() {
    let sources = Sources { config_path: Some(fixture("sidecar.json")), ..Sources::default() };
    let loaded = load(&sources).unwrap();
    let routes: Vec<_> = loaded.listeners.iter().flat_map(static_routes).collect();
    assert_eq!(routes.len(), 2);
    for (name, bytes) in &routes {
        let text = to_json("envoy.config.route.v3.RouteConfiguration", bytes, Style::DUMP);
        assert!(text.contains("\"backend\"") && name.is_empty(), "{text}");
    }
    let rest = loaded.bootstrap.encode_to_vec();
    let node = Node { id: "other".to_owned(), ..Node::default() }.encode_to_vec();
    let whole = whole_bootstrap(&rest, &node, &loaded.listeners, &loaded.clusters);
    let whole = Bootstrap::decode(whole).unwrap();
    let resources = whole.static_resources.unwrap();
    assert_eq!((resources.listeners.len(), resources.clusters.len()), (2, 4));
    assert_eq!(whole.node.unwrap().id, "other");
}

#[test]
fn inline_configuration_is_merged_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    std::fs::write(
        &path,
        "node: {id: a, cluster: c}\nstatic_resources: {clusters: [{name: one}]}\nadmin: {profile_path: x}",
    )
    .unwrap();
    let sources = Sources {
        config_path: Some(path),
        config_yaml: Some("{\"node\": {\"id\": \"b\"}, \"staticResources\": {\"clusters\": [{\"name\": \"two\"}]}}".to_owned()),
        allow_unknown_fields: false,
    };
    let loaded = load(&sources).unwrap();
    let node = loaded.bootstrap.node.unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("b", "c"));
    let names: Vec<_> = loaded.clusters.iter().map(|raw| raw.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert!(loaded.bootstrap.static_resources.is_some_and(|left| left.clusters.is_empty()));
}

#[test]
fn errors_name_file_place_path_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = directory.path().join("a.yaml");
    let json = directory.path().join("a.json");
    std::fs::write(&yaml, "static_resources:\n  clusters:\n  - name: a\n    load_assignmentt: {}\n    connect_timeout: 5\n").unwrap();
    std::fs::write(&json, "{\"static_resources\":\n {\"clusters\": [{\"name\": 5}]}}").unwrap();
    let load_path = |path: &PathBuf, allow_unknown_fields| {
        let config_path = Some(path.clone());
        load(&Sources { config_path, config_yaml: None, allow_unknown_fields })
    };
    let text = load_path(&yaml, false).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "{0}:5:22: static_resources.clusters[0].connect_timeout: a duration like 1.5s is expected, not 5\n\
             {0}:4:5: static_resources.clusters[0].load_assignmentt: unknown field",
            yaml.display()
        )
    );
    let text = load_path(&json, false).unwrap_err().to_string();
    let place = format!("{}:2:25: static_resources.clusters[0].name: ", json.display());
    assert_eq!(text, format!("{place}a string is expected, not 5"));
    std::fs::write(&yaml, "static_resources:\n  clusterss: 3\n").unwrap();
    let loaded = load_path(&yaml, true).unwrap();
    assert_eq!(loaded.unknown_fields.len(), 1);
    assert!(load_path(&directory.path().join("none.yaml"), true).is_err());
    assert!(matches!(load(&Sources::default()), Err(LoadError::NoSource)));
    std::fs::write(directory.path().join("a.pb"), "").unwrap();
    assert!(matches!(load_path(&directory.path().join("a.pb"), true), Err(LoadError::Form { .. })));
}

#[test]
fn mistakes_are_described() {
    for (text, expected) in [
        ("name: 8080", ":1:7: name: a string is expected, not 8080"),
        ("name: on", ":1:7: name: a string is expected, not on"),
        ("name: a\nname: b", ":2:1: name: set twice"),
        (
            "lb_policy: RANDOMM",
            ":1:12: lb_policy: unknown value \"RANDOMM\" of envoy.config.cluster.v3.Cluster.LbPolicy",
        ),
        (
            "respect_dns_ttl: \"maybe\"",
            ":1:18: respect_dns_ttl: true or false is expected, not \"maybe\"",
        ),
        ("respect_dns_ttl: 1", ":1:18: respect_dns_ttl: true or false is expected, not 1"),
        (
            "per_connection_buffer_limit_bytes: -1",
            ":1:36: per_connection_buffer_limit_bytes: -1 is out of range for uint32",
        ),
        (
            "per_connection_buffer_limit_bytes: [1]",
            ":1:36: per_connection_buffer_limit_bytes: a single value is expected, not a list",
        ),
        ("filters: a", ":1:10: filters[0]: a mapping is expected, not a"),
        ("filters: {x: 1}", ":1:11: filters[0].x: unknown field"),
        ("- a", ":1:1: a mapping is expected, not a list"),
        (
            "cluster_type: {name: a}\ntype: STATIC",
            ":2:1: type: only one of cluster_type and type can be set",
        ),
        (
            "transport_socket: {typed_config: {a: b}}",
            ":1:34: transport_socket.typed_config: @type is missing",
        ),
        (
            "transport_socket: {typed_config: {'@type': a/b.C}}",
            ":1:44: transport_socket.typed_config: unknown @type \"a/b.C\"",
        ),
        ("<<: {name: a}", ":1:1: <<: unknown field"),
        (
            "load_assignment: {endpoints: [{}, {lb_endpoints: [{x: 1}]}]}",
            ":1:52: load_assignment.endpoints[1].lb_endpoints[0].x: unknown field",
        ),
        (
            "typed_extension_protocol_options: {a: {'@type': t/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, x: 1}}",
            ":1:107: typed_extension_protocol_options[\"a\"].x: unknown field",
        ),
    ] {
        assert_eq!(problems::<Cluster>(text), expected);
    }
    assert!(problems::<Cluster>("name: [").contains(":2:1: name: while parsing"));
    assert!(problems::<Cluster>("a: b\n c: d").contains(":2:"));
}

#[test]
fn a_lone_value_is_a_list_of_one() {
    let alone: FilterChainMatch =
        from_yaml("{server_names: a, source_ports: 7, prefix_ranges: {address_prefix: 10.0.0.0}}")
            .unwrap();
    let listed: FilterChainMatch = from_yaml(
        "{server_names: [a], source_ports: [7], prefix_ranges: [{address_prefix: 10.0.0.0}]}",
    )
    .unwrap();
    assert_eq!(alone, listed);
}

#[test]
#[expect(deprecated, reason = "old fields are read too")]
fn all_forms_of_a_value_are_read() {
    let cluster: Cluster = from_yaml(
        "{name: \"a\\/b\", connectTimeout: 0.25s, lb_policy: 3, per_connection_buffer_limit_bytes: 0x10,\n\
          maxRequestsPerConnection: \"7\", dns_refresh_rate: ~, respect_dns_ttl: yes,\n\
          upstream_connection_options: {tcp_keepalive: {keepalive_time: 1e2}}}",
    )
    .unwrap();
    assert_eq!(cluster.name, "a/b");
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
    assert_eq!(cluster.lb_policy, 3);
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 16);
    assert!(cluster.respect_dns_ttl && cluster.dns_refresh_rate.is_none());
    let keepalive = cluster.upstream_connection_options.unwrap().tcp_keepalive.unwrap();
    assert_eq!(keepalive.keepalive_time.unwrap().value, 100);
    assert_eq!(from_yaml::<Cluster>("").unwrap(), Cluster::default());
}

#[test]
fn what_protobufs_own_reader_takes_besides_is_read() {
    for (loose, strict) in [
        ("filters: {name: a}", "filters: [{name: a}]"),
        ("filters: [[{name: a}], [[{name: b}]]]", "filters: [{name: a}, {name: b}]"),
        ("filters: [~, {name: b}]", "filters: [{}, {name: b}]"),
        ("connect_timeout: {seconds: 1, nanos: 5000000}", "connect_timeout: 1.005s"),
        ("per_connection_buffer_limit_bytes: {value: 5}", "per_connection_buffer_limit_bytes: 5"),
        ("lb_policy: random", "lb_policy: RANDOM"),
        ("respect_dns_ttl: \"Yes\"", "respect_dns_ttl: true"),
        ("respect_dns_ttl: \"0\"", "respect_dns_ttl: false"),
        ("transport_socket: {typed_config: {}}", "transport_socket: {typed_config: {}}"),
    ] {
        let read = |text| from_yaml::<Cluster>(text).unwrap();
        assert_eq!(read(loose), read(strict), "{loose}");
    }
}

#[test]
fn an_any_may_have_its_type_last_and_inside_of_another() {
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let typed = "type.googleapis.com/udpa.type.v1.TypedStruct";
    let expected: Cluster = from_yaml(&format!(
        "typed_extension_protocol_options: {{a: {{'@type': {options}, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}"
    ))
    .unwrap();
    for other in [
        format!("{{explicit_http_config: {{http2_protocol_options: {{}}}}, '@type': {options}}}"),
        format!(
            "{{value: {{explicit_http_config: {{http2_protocol_options: {{}}}}}}, '@type': {typed}, type_url: {options}}}"
        ),
        format!(
            "{{'@type': {typed}, typeUrl: {options}, value: {{explicitHttpConfig: {{http2_protocol_options: {{}}}}}}}}"
        ),
    ] {
        let other: Cluster =
            from_yaml(&format!("typed_extension_protocol_options: {{a: {other}}}")).unwrap();
        assert_eq!(other, expected);
    }
    let any = &expected.typed_extension_protocol_options["a"];
    assert_eq!(any.type_url, options);
    let inner = HttpProtocolOptions::decode(any.value.as_slice()).unwrap();
    assert!(inner.upstream_protocol_options.is_some());
}

#[test]
fn a_typed_struct_of_the_wire_is_resolved() {
    let url =
        "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    let mut bytes = Vec::new();
    wire::write_bytes(&mut bytes, 1, url.as_bytes());
    let (mut problems, structure) = (Vec::new(), Message::find("google.protobuf.Struct").unwrap());
    let mut value = Vec::new();
    problems
        .extend(Parse::new(Reader::yaml("{buffer_size_kb: 64}")).document(structure, &mut value).0);
    assert!(problems.is_empty());
    wire::write_bytes(&mut bytes, 2, &value);
    let any = Any { type_url: "t/xds.type.v3.TypedStruct".to_owned(), value: bytes };
    let resolved = resolve_typed_struct(&any).unwrap().unwrap();
    let listener = InternalListener::decode(resolved.value.as_slice()).unwrap();
    assert_eq!(listener.buffer_size_kb.unwrap().value, 64);
    assert!(resolve_typed_struct(&resolved).is_none());
}

#[test]
fn aliases_are_expanded_and_bounded() {
    let cluster: Cluster = from_yaml(
        "load_assignment: {endpoints: [{lb_endpoints: [&e {endpoint: {address: {pipe: &p {path: x}}}}, *e,\n\
         {endpoint: {address: {pipe: *p}}}]}]}",
    )
    .unwrap();
    let endpoints = &cluster.load_assignment.unwrap().endpoints[0].lb_endpoints;
    assert!(endpoints.len() == 3 && endpoints.iter().all(|endpoint| *endpoint == endpoints[0]));
    let mut bomb = "filter_metadata:\n  a0: &a0 {x: y}\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        let list = [below.as_str(); 9].join(", ");
        let _ = writeln!(bomb, "  a{level}: &a{level} {{l: [{list}]}}");
    }
    assert!(problems::<Metadata>(&bomb).contains("too large"));
    assert!(problems::<Metadata>("filter_metadata: {a: &a {b: *a}}").contains("alias"));
}

#[test]
fn depth_is_bounded() {
    let deep = format!("filter_metadata: {{a: {}1{}}}", "{b: ".repeat(2000), "}".repeat(2000));
    assert!(problems::<Metadata>(&deep).contains("deeper"));
    let mut text = Vec::new();
    let json = format!("{{\"node\": {}}}", "[".repeat(100_000));
    let bootstrap = Message::find("envoy.config.bootstrap.v3.Bootstrap").unwrap();
    assert!(!Parse::new(Reader::json(&json)).document(bootstrap, &mut text).0.is_empty());
}

#[test]
fn numbers_of_a_structure_follow_envoys_yaml() {
    let metadata: Metadata =
        from_yaml("filter_metadata: {a: {b: 5000000000, c: 1.5, d: ~, e: [no, \"no\"]}}").unwrap();
    let text = to_json("envoy.config.core.v3.Metadata", &metadata.encode_to_vec(), Style::DUMP);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected =
        serde_json::json!({"b": "5000000000", "c": "1.5", "d": null, "e": [false, "no"]});
    assert_eq!(value["filter_metadata"]["a"], expected);
}

#[test]
fn writing_looks_like_envoys() {
    let bootstrap: Bootstrap = from_yaml(
        "node: {id: \"a<b>\", metadata: {n: 1}}\n\
         admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n\
         cluster_manager: {enable_deferred_cluster_creation: true}\nstats_flush_interval: 5.5s",
    )
    .unwrap();
    let text =
        to_json("envoy.config.bootstrap.v3.Bootstrap", &bootstrap.encode_to_vec(), Style::DUMP);
    assert_eq!(
        text,
        "{\n \"node\": {\n  \"id\": \"a\\u003cb\\u003e\",\n  \"metadata\": {\n   \"n\": 1\n  }\n },\n \
         \"cluster_manager\": {\n  \"enable_deferred_cluster_creation\": true\n },\n \
         \"stats_flush_interval\": \"5.500s\",\n \
         \"admin\": {\n  \"address\": {\n   \"socket_address\": {\n    \"address\": \"127.0.0.1\",\n    \
         \"port_value\": 0\n   }\n  }\n }\n}\n"
    );
}

#[test]
fn secrets_are_blotted_out() {
    let text = "name: a\ntls_certificate: {private_key: {inline_string: KEY}, certificate_chain: {inline_string: CERT}}";
    let secret = Message::find("envoy.extensions.transport_sockets.tls.v3.Secret").unwrap();
    let mut bytes = Vec::new();
    let (problems, unknown) = Parse::new(Reader::yaml(text)).document(secret, &mut bytes);
    assert!(problems.is_empty() && unknown.is_empty());
    let json = to_json(secret.name(), &bytes, Style::DUMP);
    assert!(json.contains("CERT") && !json.contains("KEY") && json.contains("[redacted]"));
    assert!(to_json(secret.name(), &bytes, Style { secrets: true, ..Style::DUMP }).contains("KEY"));
}

#[test]
fn a_mask_leaves_fields_out() {
    let cluster: Cluster =
        from_yaml("{name: a, connect_timeout: 1s, load_assignment: {cluster_name: b, policy: {}}}")
            .unwrap();
    let mask = Mask::parse("name,load_assignment.cluster_name");
    assert!(mask.fits(Message::find("envoy.config.cluster.v3.Cluster").unwrap()));
    assert!(
        !Mask::parse("nothing").fits(Message::find("envoy.config.cluster.v3.Cluster").unwrap())
    );
    let mut writer = JsonWriter::new(Style { pretty: false, ..Style::DUMP });
    writer.message("envoy.config.cluster.v3.Cluster", &cluster.encode_to_vec(), Some(&mask));
    assert_eq!(writer.finish(), "{\"name\":\"a\",\"load_assignment\":{\"cluster_name\":\"b\"}}");
}

/// A message of random content, as JSON text.
fn arbitrary(message: Message, random: &mut impl Rng, depth: usize) -> serde_json::Value {
    use serde_json::{Value, json};
    match message.name().strip_prefix("google.protobuf.") {
        Some("Any") => {
            let name = "envoy.config.core.v3.SocketOption";
            let mut value = arbitrary(Message::find(name).unwrap(), random, depth + 1);
            value["@type"] = json!(format!("type.googleapis.com/{name}"));
            return value;
        }
        Some("Struct") => {
            return json!({"a": {"b": [1, null, "x", true]}, "c": random.random::<i16>()});
        }
        Some("Value") => return json!([{"a": random.random::<u8>()}]),
        Some("ListValue") => return json!([1, "two"]),
        Some("Duration") => return json!(format!("{}.5s", random.random::<u16>())),
        Some("Timestamp") => return json!("2026-01-31T12:00:00.001Z"),
        Some("FieldMask") => return json!("a.bC,d"),
        Some(name) if name.ends_with("Value") => {
            return scalar(message.field_by_number(1).unwrap(), random, depth);
        }
        _ => (),
    }
    let mut fields = serde_json::Map::new();
    let mut oneofs = Vec::new();
    for field in message.fields() {
        if random.random_range(0..4) > 0
            || depth > 6
            || field.oneof().is_some_and(|of| oneofs.contains(&of))
        {
            continue;
        }
        oneofs.extend(field.oneof());
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!() };
            let key = match entry.field_by_number(1).unwrap().kind() {
                Kind::String => "k.1".to_owned(),
                Kind::Bool => "true".to_owned(),
                _ => random.random::<u16>().to_string(),
            };
            json!({ key: scalar(entry.field_by_number(2).unwrap(), random, depth) })
        } else if field.is_list() {
            let count = random.random_range(1..3);
            (0..count).map(|_| scalar(field, random, depth)).collect::<Vec<_>>().into()
        } else {
            scalar(field, random, depth)
        };
        fields.insert(field.name().to_owned(), value);
    }
    Value::Object(fields)
}

fn scalar(field: Field, random: &mut impl Rng, depth: usize) -> serde_json::Value {
    use serde_json::json;
    match field.kind() {
        Kind::Message(message) => arbitrary(message, random, depth + 1),
        Kind::String => {
            json!(["", "true", "8080", "a: b # \"c\"\n<é>\u{7f}"][random.random_range(0..4)])
        }
        Kind::Bytes => json!("aGk/"),
        Kind::Bool => json!(random.random::<bool>()),
        Kind::Double => json!(random.random::<f64>()),
        Kind::Float => json!(0.25),
        Kind::Enum(names) => json!(names.value_name(0)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!(random.random::<i64>().to_string()),
        Kind::Uint64 | Kind::Fixed64 => json!(random.random::<u64>().to_string()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!(random.random::<i32>()),
        Kind::Uint32 | Kind::Fixed32 => json!(random.random::<u32>()),
    }
}

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn parse(reader: Reader<'_>, message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (problems, unknown) = Parse::new(reader).document(message, &mut bytes);
    assert!(problems.is_empty() && unknown.is_empty(), "{problems:?} {unknown:?}");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_form_gives_the_same_bytes(seed in any::<u64>()) {
        let mut random = StdRng::seed_from_u64(seed);
        let all: Vec<_> = Message::all().filter(|message| !message.name().ends_with("Entry")).collect();
        let message = all[random.random_range(0..all.len())];
        let value = arbitrary(message, &mut random, 0);
        let json = serde_json::to_string(&value).unwrap();
        let from_json = parse(Reader::json(&json), message);
        let yaml = serde_yaml_ng::to_string(&value).unwrap();
        prop_assert_eq!(&parse(Reader::yaml(&yaml), message), &from_json, "{}\n{}", json, yaml);
        for style in [Style { secrets: true, ..Style::DUMP }, Style { secrets: true, defaults: true, pretty: false }] {
            let mut writer = JsonWriter::new(style);
            writer.message(message.name(), &from_json, None);
            let written = writer.finish();
            let again = parse(Reader::json(&written), message);
            let mut third = JsonWriter::new(style);
            third.message(message.name(), &again, None);
            prop_assert_eq!(third.finish(), written);
            prop_assert_eq!(again.len(), from_json.len());
        }
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}:,&*a-z\"'\n -]{0,60}") {
        let bootstrap = Message::find("envoy.config.core.v3.Metadata").unwrap();
        let _ = Parse::new(Reader::yaml(&text)).document(bootstrap, &mut Vec::new());
        let _ = Parse::new(Reader::json(&text)).document(bootstrap, &mut Vec::new());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for name in ["envoy.config.cluster.v3.Cluster", "google.protobuf.Struct", "google.protobuf.Any"] {
            to_json(name, &bytes, Style::FULL);
        }
    }
}
