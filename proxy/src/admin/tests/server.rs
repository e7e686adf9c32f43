//! The server itself: whether it is ready, what it is told to do, its pages, its logs and its statistics.

use super::*;

#[tokio::test]
async fn ready_follows_the_servers_state() {
    let fixture = Fixture::new(Vec::new());
    let (head, body) = fixture.get("/ready").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for header in [
        "content-type: text/plain; charset=UTF-8",
        "cache-control: no-cache, max-age=0",
        "x-content-type-options: nosniff",
        "server: envoy",
        "transfer-encoding: chunked",
    ] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!(body, "LIVE\n");
    assert_eq!(fixture.post("/healthcheck/fail").await.1, "OK\n");
    let (head, body) = fixture.get("/ready").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "DRAINING\n");
    fixture.post("/healthcheck/ok").await;
    assert_eq!(fixture.get("/ready").await.1, "LIVE\n");
}

#[tokio::test]
async fn wrong_paths_and_methods_are_refused_in_envoys_words() {
    let fixture = Fixture::new(Vec::new());
    let (head, body) = fixture.get("/nope").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(
        body.starts_with("invalid path. admin commands are:\n  /: Admin home page\n"),
        "{body}"
    );
    for path in ["/quitquitquit", "/logging", "/drain_listeners", "/reset_counters"] {
        let (head, body) = fixture.get(path).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        assert_eq!(body, "Method GET not allowed, POST required.");
    }
    let fixture = Fixture::new(vec![StringMatcher::prefix(b"/ready")]);
    assert_eq!(fixture.get("/ready").await.1, "LIVE\n");
    let (head, body) = fixture.get("/stats?filter=zz").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(body, "request to path /stats?filter=zz not allowed");
}

#[tokio::test]
async fn actions_reach_the_server() {
    let fixture = Fixture::new(Vec::new());
    fixture.post("/drain_listeners?inboundonly&graceful").await;
    fixture.post("/reopen_logs").await;
    assert_eq!(fixture.post("/quitquitquit").await.1, "OK\n");
    let form = "POST /runtime_modify HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\na=b";
    let (head, body) = fixture.send(form).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "No admin layer specified");
    assert!(fixture.post("/runtime_modify").await.1.starts_with("usage: /runtime_modify?key1"));
    assert_eq!(
        *fixture.state.told.borrow(),
        [
            "DrainListeners { inbound_only: true, graceful: true, skip_exit: false }",
            "reopen",
            "quit",
            "runtime [(\"a\", \"b\")]"
        ]
    );
}

#[tokio::test]
async fn pages_of_the_server_itself() {
    let fixture = Fixture::new(Vec::new());
    let info: serde_json::Value =
        serde_json::from_str(&fixture.get("/server_info").await.1).unwrap();
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["uptime_current_epoch"], "640s");
    assert_eq!(info["command_line_options"]["concurrency"], 2);
    assert_eq!(info["command_line_options"]["disable_hot_restart"], false);
    assert_eq!(info["node"]["id"], "n1");
    assert_eq!(
        fixture.get("/runtime").await.1,
        "{\n \"layers\": [\n  \"base\"\n ],\n \"entries\": {\n  \"a.b\": {\n   \"final_value\": \"1\",\n   \
         \"layer_values\": [\n    \"1\"\n   ]\n  }\n }\n}\n"
    );
    assert_eq!(fixture.get("/certs").await.1, "{\n \"certificates\": []\n}\n");
    let memory: serde_json::Value = serde_json::from_str(&fixture.get("/memory").await.1).unwrap();
    assert_ne!(memory["allocated"], "0");
    let ignored = fixture.get("/config_ignored").await.1;
    assert_eq!(
        ignored,
        "1 fields are applied without\ncluster \"foo\": lrs_server: not implemented\n"
    );
    let (head, body) = fixture.get("/").await;
    assert!(head.contains("content-type: text/html; charset=UTF-8"), "{head}");
    assert!(body.contains("action='stats/prometheus'"));
}

#[tokio::test]
async fn logging_answers_and_refuses_as_envoy_does() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.post("/logging").await;
    assert!(body.starts_with("active loggers:\n  a2a: "), "{body}");
    assert!(body.ends_with("\n\n"), "{body}");
    let (_, body) = fixture.post("/logging?paths=quic:debug,udp:error").await;
    assert!(body.contains("\n  quic: debug\n") && body.contains("\n  udp: error\n"), "{body}");
    for (query, error) in [
        ("nope=debug", "error: unknown logger name\n\nusage: /logging?<name>=<level>"),
        ("level=nope", "error: unknown logger level\n\nusage: "),
        ("a=b&c=d", "error: invalid number of parameters\n\nusage: "),
    ] {
        let (head, body) = fixture.post(&format!("/logging?{query}")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(body.starts_with(error), "{body}");
    }
}

#[tokio::test]
async fn stats_are_served_in_all_forms() {
    let fixture = Fixture::new(Vec::new());
    let (_, body) = fixture.get("/stats?filter=^server\\.(live|concurrency)$").await;
    assert_eq!(body, "server.concurrency: 2\nserver.live: 1\n");
    let (head, body) = fixture.get("/stats?format=json&filter=server.live").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, "{\"stats\":[{\"name\":\"server.live\",\"value\":1}]}");
    for target in
        ["/stats/prometheus?filter=server.live", "/stats?format=prometheus&filter=server.live"]
    {
        let (_, body) = fixture.get(target).await;
        assert_eq!(body, "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n");
    }
    for (query, answer) in [
        ("type=Foo", "invalid &type= param"),
        ("format=foo", "usage: /stats?format=(json|prometheus|text)\n\n"),
        (
            "format=prometheus&histogram_buckets=detailed",
            "unsupported prometheus histogram bucket mode",
        ),
    ] {
        let (head, body) = fixture.get(&format!("/stats?{query}")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert_eq!(body, answer);
    }
    assert!(fixture.get("/stats?filter=(").await.1.starts_with("Invalid re2 regex: "));
    let (_, body) = fixture.get("/stats?filter=http.admin.downstream_rq_(2|4)xx$").await;
    assert!(body.contains("http.admin.downstream_rq_4xx: 4\n"), "{body}");
    assert_eq!(fixture.post("/reset_counters").await.1, "OK\n");
    let (_, body) = fixture.get("/stats?filter=^http.admin.downstream_rq_4xx$").await;
    assert_eq!(body, "http.admin.downstream_rq_4xx: 0\n");
}

#[tokio::test]
async fn requests_are_logged_when_their_body_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.log");
    let yaml = format!(
        "{{access_log: [{{name: f, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: \
         {{text_format_source: {{inline_string: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_SENT%\\n\"}}}}}}}}]}}",
        path.display()
    );
    let found = Diagnostics::new("bootstrap");
    let config = compile_admin(&from_yaml(&yaml).unwrap(), &found.root()).unwrap();
    let registry = Registry::default();
    let options = FlushOptions { interval: Duration::from_secs(1), min_size: 1 };
    let writer = AccessLogWriter::start(options, &registry).unwrap();
    let logs = WorkerAccessLogs::new(writer.clone(), 0);
    let bound = logs.bind(&config.access_log);
    let state = Rc::new(Sample::default());
    let admin = Rc::new(Admin::new(state.clone(), registry, &config, Some(bound)));
    let fixture = Fixture { state, admin };
    let local = tokio::task::LocalSet::new();
    local.run_until(fixture.get("/ready")).await;
    local.run_until(fixture.get("/nope")).await;
    logs.flush();
    writer.drain();
    let log = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "GET /ready 200 5");
    assert!(lines[1].starts_with("GET /nope 404 "), "{log}");
}
