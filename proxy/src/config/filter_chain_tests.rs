use super::*;

fn chain(name: &str) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        id: FilterChain::next_id(),
        identity: 0,
        name: name.into(),
        filters: Vec::new(),
        terminal: Terminal::Close,
        transport: None,
        transport_socket_connect_timeout: None,
    })
}

fn cidr(text: &str) -> Cidr {
    let (ip, len) = text.split_once('/').expect("a prefix");
    Cidr::new(ip.parse().expect("an address"), len.parse().expect("a length"))
}

fn facts<'a>(
    dst: &str,
    src: &str,
    sni: &'a str,
    tp: &'a str,
    alpn: &'a [&'a str],
) -> ConnectionFacts<'a> {
    let dst: std::net::SocketAddr = dst.parse().expect("an address");
    let src: std::net::SocketAddr = src.parse().expect("an address");
    ConnectionFacts {
        destination: Some((dst.ip(), dst.port())),
        source: Some((src.ip(), src.port())),
        direct_source: Some(src.ip()),
        server_name: sni,
        transport_protocol: tp,
        application_protocols: alpn,
    }
}

fn sample() -> FilterChains {
    let mut chains = FilterChains::default();
    let mut add = |name: &str, m: ChainMatch| chains.add(&m, chain(name)).expect("no clash");
    let any = ChainMatch::default();
    add("any", any.clone());
    add(
        "port",
        ChainMatch {
            destination_port: Some(80),
            server_names: vec!["only.here".into()],
            ..any.clone()
        },
    );
    add("ten", ChainMatch { destination: vec![cidr("10.0.0.0/8")], ..any.clone() });
    add(
        "ten-one",
        ChainMatch {
            destination: vec![cidr("10.1.0.0/16")],
            transport_protocol: "tls".into(),
            ..any.clone()
        },
    );
    add("sni", ChainMatch { server_names: vec!["a.example.com".into()], ..any.clone() });
    add("wild", ChainMatch { server_names: vec!["*.example.com".into()], ..any.clone() });
    add(
        "h2c",
        ChainMatch {
            application_protocols: vec!["h2c".into()],
            transport_protocol: "raw_buffer".into(),
            ..any.clone()
        },
    );
    add(
        "local",
        ChainMatch {
            server_names: vec!["src".into()],
            source_type: SourceType::SameIpOrLoopback,
            ..any.clone()
        },
    );
    add(
        "external",
        ChainMatch {
            server_names: vec!["src".into()],
            source_type: SourceType::External,
            ..any.clone()
        },
    );
    add(
        "ports",
        ChainMatch { server_names: vec!["ports".into()], source_ports: vec![7, 8], ..any.clone() },
    );
    chains.set_default(chain("default"));
    chains
}

#[test]
fn the_levels_are_searched_in_order_without_going_back() {
    let chains = sample();
    let find =
        |f: ConnectionFacts<'_>| chains.find(&f).map(|c| c.name.to_string()).expect("a default");
    let src = "192.0.2.1:5";
    assert_eq!(find(facts("1.1.1.1:81", src, "", "", &[])), "any");
    // The port matches, the server name below it does not: no way back to "any".
    assert_eq!(find(facts("1.1.1.1:80", src, "", "", &[])), "default");
    assert_eq!(find(facts("1.1.1.1:80", src, "only.here", "", &[])), "port");
    assert_eq!(find(facts("10.2.0.1:81", src, "", "", &[])), "ten");
    assert_eq!(find(facts("10.1.0.1:81", src, "", "tls", &[])), "ten-one");
    assert_eq!(find(facts("10.1.0.1:81", src, "", "raw_buffer", &[])), "default");
    assert_eq!(find(facts("1.1.1.1:81", src, "a.example.com", "", &[])), "sni");
    assert_eq!(find(facts("1.1.1.1:81", src, "b.example.com", "", &[])), "wild");
    assert_eq!(find(facts("1.1.1.1:81", src, "c.b.example.com", "", &[])), "wild");
    assert_eq!(find(facts("1.1.1.1:81", src, "example.com", "", &[])), "any");
    assert_eq!(find(facts("1.1.1.1:81", src, "", "raw_buffer", &["h2c"])), "h2c");
    assert_eq!(find(facts("1.1.1.1:81", src, "", "raw_buffer", &["http/1.1"])), "default");
    assert_eq!(find(facts("1.1.1.1:81", src, "src", "", &[])), "external");
    assert_eq!(find(facts("1.1.1.1:81", "127.0.0.1:5", "src", "", &[])), "local");
    assert_eq!(find(facts("1.1.1.1:81", "192.0.2.1:8", "ports", "", &[])), "ports");
    assert_eq!(find(facts("1.1.1.1:81", "192.0.2.1:9", "ports", "", &[])), "default");
}

#[test]
fn equal_criteria_are_refused() {
    let mut chains = FilterChains::default();
    let m = ChainMatch { source_ports: vec![1, 2], ..ChainMatch::default() };
    chains.add(&m, chain("a")).expect("the first");
    let again = ChainMatch { source_ports: vec![2], ..ChainMatch::default() };
    let clash = chains.add(&again, chain("b")).expect_err("2 is taken");
    assert_eq!(clash.to_string(), "filter chain 'b' has the same matching rules defined as 'a'");
}
