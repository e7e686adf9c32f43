//! `/listeners`, `/clusters`, `/config_dump`.

use super::*;

#[tokio::test]
async fn listeners_and_clusters_are_envoys() {
    let fixture = Fixture::new(Vec::new());
    assert_eq!(fixture.get("/listeners").await.1, "l1::127.0.0.1:39080\nl2::/run/x\n");
    let (head, body) = fixture.get("/listeners?format=json").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let expected = "{\n \"listener_statuses\": [\n  {\n   \"name\": \"l1\",\n   \"local_address\": {\n    \
                    \"socket_address\": {\n     \"address\": \"127.0.0.1\",\n     \"port_value\": 39080\n";
    assert!(body.starts_with(expected), "{body}");

    let (_, body) = fixture.get("/clusters?filter=^foo$").await;
    assert_eq!(body, include_str!("../testdata/clusters.txt"));
    let (_, body) = fixture.get("/clusters?format=json&filter=^foo$").await;
    assert_eq!(body, include_str!("../testdata/clusters.json"));
    assert_eq!(fixture.get("/clusters?format=json&filter=x").await.1, "{}\n");
    assert_eq!(fixture.get("/clusters?filter=(").await.1, "Invalid re2 regex");
    assert!(fixture.get("/clusters").await.1.contains("foo-bar::added_via_api::false\n"));
}

#[tokio::test]
async fn config_dump_has_envoys_sections() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.get("/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    let types: Vec<&str> =
        dump["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap()).collect();
    let prefix = "type.googleapis.com/envoy.admin.v3.";
    let expected = ["Bootstrap", "Clusters", "Listeners", "ScopedRoutes", "Routes", "Secrets"]
        .map(|name| format!("{prefix}{name}ConfigDump"));
    assert_eq!(types, expected);
    let configs = &dump["configs"];
    assert_eq!(configs[0]["bootstrap"]["node"]["id"], "n1");
    let statics = &configs[0]["bootstrap"]["static_resources"];
    assert_eq!(statics["clusters"][0]["name"], "foo");
    let keys: Vec<_> = body.lines().filter(|line| line.starts_with("    \"")).take(3).collect();
    assert_eq!(keys, ["    \"node\": {", "    \"static_resources\": {", "    \"admin\": {"]);
    assert_eq!(configs[0]["last_updated"], "2026-11-21T09:15:25.250Z");
    assert_eq!(configs[1]["static_clusters"][1]["cluster"]["name"], "h2c");
    let dynamic = &configs[1]["dynamic_active_clusters"][0];
    assert_eq!(dynamic["version_info"], "7");
    assert_eq!(dynamic["error_state"]["details"], "name: too long");
    let listeners = &configs[2]["dynamic_listeners"];
    assert_eq!(listeners.as_array().unwrap().len(), 2);
    assert_eq!(listeners[0]["warming_state"]["listener"]["name"], "in");
    assert!(body.contains(
        "  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump\"\n  },\n"
    ));
    assert!(fixture.get("/config_dump?include_eds").await.1.contains("EndpointsConfigDump"));
}

#[tokio::test]
async fn config_dump_selects_as_envoy_does() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture
        .get("/config_dump?resource=static_clusters&mask=cluster.name&name_regex=^foo")
        .await;
    assert_eq!(
        body,
        "{\n \"configs\": [\n  {\n   \"@type\": \
         \"type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster\",\n   \"cluster\": {\n    \
         \"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\",\n    \"name\": \"foo\"\n   }\n  \
         }\n ]\n}\n"
    );
    let (_, body) = fixture.get("/config_dump?mask=static_clusters").await;
    assert!(body.contains("\"h2c\"") && !body.contains("bootstrap") && !body.contains("dynamic"));
    let (_, body) = fixture.get("/config_dump?mask=bootstrap.static_resources").await;
    assert!(body.contains("\"clusters\": [") && !body.contains("node"), "{body}");
    let (_, body) = fixture.get("/config_dump?resource=static_clusters&name_regex=zzz").await;
    assert_eq!(body, "{}\n");
    for (target, status, answer) in [
        ("resource=nope", "404", "nope not found in config dump"),
        (
            "resource=bootstrap",
            "400",
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        ),
        ("mask=nope", "400", "FieldMask nope could not be successfully applied to any configs."),
        (
            "resource=static_endpoint_configs",
            "404",
            "static_endpoint_configs not found in config dump",
        ),
    ] {
        let (head, body) = fixture.get(&format!("/config_dump?{target}")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body, answer);
    }
}
