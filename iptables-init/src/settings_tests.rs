//! Each kind of mistake has one line of its own; lists and times are read as istio-iptables reads them.

use std::io;
use std::net::IpAddr;

use super::*;

/// A pod with addresses of both families.
fn host() -> Host {
    let addresses = ["127.0.0.1", "10.9.0.1", "::1", "fe80::1", "fd09::1"];
    Host {
        addresses: addresses.map(|a| a.parse().expect("an address")).into(),
        nameservers: Ok(vec![IpAddr::from([10, 0, 0, 2])]),
        user: |name| [("envoy", 101), ("both", 102)].into_iter().find(|n| n.0 == name).map(|n| n.1),
        group: |name| [("mail", 8), ("both", 103)].into_iter().find(|n| n.0 == name).map(|n| n.1),
    }
}

fn job_on(host: &Host, line: &[&str], environment: &[(&str, &str)]) -> Result<Job, SettingsError> {
    let line = std::iter::once("outrigger-init").chain(line.iter().copied()).map(Into::into);
    let arguments = Arguments::parse(line, |name| {
        environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    });
    Job::new(&arguments.expect("a line"), host)
}

fn job(line: &[&str]) -> Result<Job, SettingsError> {
    job_on(&host(), line, &[])
}

#[test]
fn a_mistake_is_one_line_that_names_the_flag_and_the_value() {
    for (line, says) in [
        (&["-p", "0"][..], r#"--envoy-port "0": say a port from 1 to 65535"#),
        (&["-z", "65536"], r#"--inbound-capture-port "65536": say a port from 1 to 65535"#),
        (&["-b", "80,x"], r#"--istio-inbound-ports "80,x": "x" is no port from 1 to 65535"#),
        (&["-b", "*,80"], r#"--istio-inbound-ports "*,80": "*" is no port from 1 to 65535"#),
        (&["-q", "+80"], r#"--istio-outbound-ports "+80": "+80" is no port from 1 to 65535"#),
        (
            &["-o", "9:8"],
            r#"--istio-local-outbound-ports-exclude "9:8": "9:8" is no port from 1 to 65535"#,
        ),
        (
            &["-i", "10.0.0.1"],
            r#"--istio-service-cidr "10.0.0.1": "10.0.0.1" is no IP range, such as 10.0.0.0/8 or fd00::/8"#,
        ),
        (
            &["-x", "*"],
            r#"--istio-service-exclude-cidr "*": "*" is no IP range, such as 10.0.0.0/8 or fd00::/8"#,
        ),
        (
            &["-m", "tproxy"],
            r#"--istio-inbound-interception-mode "tproxy": say REDIRECT or TPROXY"#,
        ),
        (&["-m", "TPROXY", "-t", "0"], r#"--istio-inbound-tproxy-mark "0": say a mark above 0"#),
        (
            &["-m", "TPROXY", "-r", "254"],
            r#"--istio-inbound-tproxy-route-table "254": say a table of its own: above 0, and not 253 to 255, which are the kernel's"#,
        ),
        (
            &["-u", "nobody-here"],
            r#"--proxy-uid "nobody-here": "nobody-here" is no number and no known name"#,
        ),
        (&["-u", ","], r#"--proxy-uid ",": name one at least: the proxy's own traffic must pass"#),
        (
            &["-c", "an interface"],
            r#"--istio-exclude-interfaces "an interface": "an interface" is no name of an interface"#,
        ),
        (&["--dual-stack=x"], r#"--dual-stack "x": say true or false"#),
        (&["--probe-timeout", "5"], r#"--probe-timeout "5": say a time above 0, such as 5s"#),
        (&["--force-iptables-binary", "x"], r#"--force-iptables-binary "x": say legacy or nft"#),
    ] {
        let error = job(line).expect_err("a mistake");
        assert_eq!(error.to_string(), says);
    }
}

#[test]
fn variables_without_a_flag_are_checked_too() {
    for (name, value, says) in [
        (OWNER_GROUPS, "mail,x", r#""mail,x": "x" is no known group"#),
        (OWNER_GROUPS_EXCLUDE, "x", r#""x": "x" is no known group"#),
        (LOOPBACK, "10.0.0.0/8", r#""10.0.0.0/8": say a range of 127.0.0.0/8"#),
        (LOOPBACK, "127.0.0.0/7", r#""127.0.0.0/7": say a range of 127.0.0.0/8"#),
    ] {
        let error = job_on(&host(), &[], &[(name, value)]).expect_err("a mistake");
        assert_eq!(error.to_string(), format!("{name} {says}"));
    }
    let many = (0..65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let error = job_on(&host(), &[], &[(OWNER_GROUPS, &many)]).expect_err("too many");
    assert_eq!(error.reason, "name 64 groups at most");
}

#[test]
fn ranges_of_ports_may_be_open() {
    let settings = job(&["-o", "30000:,:1023,0:65535"]).expect("right").settings;
    let range = |first, last| Range { first, last };
    let ports = [range(30000, 65535), range(0, 1023), range(0, 65535)];
    assert_eq!(settings.exclude_outbound_ports, ports);
}

#[test]
fn owners_are_numbers_ranges_or_names() {
    let settings = job(&["-u", "envoy,5,7-9", "-g", "mail"]).expect("right").settings;
    assert_eq!(settings.users, [Range::one(101), Range::one(5), Range { first: 7, last: 9 }]);
    assert_eq!(settings.groups, [Range::one(8)]);
    let settings = job(&["-t", "x", "-r", "254"]).expect("right").settings;
    assert_eq!((settings.users[0].first, settings.groups[0].first), (1337, 1337));
    assert!(job(&["-u", "envoy"]).expect_err("no such group").to_string().contains("proxy-gid"));
    let settings = job(&["-u", "both"]).expect("right").settings;
    assert_eq!((settings.users[0].first, settings.groups[0].first), (102, 103));
    let settings = job_on(&host(), &[], &[(USER, "envoy")]).expect("right").settings;
    assert_eq!((settings.users[0].first, settings.groups[0].first), (101, 101));
}

#[test]
fn ipv6_follows_the_addresses() {
    let v6 = Host { addresses: vec!["fd09::1".parse().expect("an address")], ..host() };
    assert!(!job(&[]).expect("right").settings.ipv6);
    assert!(job(&["--dual-stack"]).expect("right").settings.ipv6);
    assert!(job_on(&v6, &[], &[]).expect("right").settings.ipv6);
    let none = Host { addresses: vec!["fe80::1".parse().expect("an address")], ..host() };
    assert!(job_on(&none, &[], &[]).is_err());
    // What is left of an earlier time can be removed all the same.
    assert!(job_on(&none, &["--cleanup-only"], &[]).expect("right").settings.ipv6);
}

#[test]
fn dns_needs_servers() {
    let settings = job(&["--redirect-dns"]).expect("right").settings;
    assert_eq!(settings.dns, Dns::Servers(vec![IpAddr::from([10, 0, 0, 2])]));
    let none = Host { nameservers: Ok(Vec::new()), ..host() };
    let job = job_on(&none, &["--redirect-dns"], &[]).expect("right");
    assert_eq!((job.settings.dns, job.notices.len()), (Dns::No, 1));
    let missing = Host { nameservers: Err(io::ErrorKind::NotFound.into()), ..host() };
    assert!(job_on(&missing, &["--redirect-dns"], &[]).is_err());
    let all = job_on(&missing, &["--redirect-dns", "--capture-all-dns"], &[]).expect("right");
    assert_eq!(all.settings.dns, Dns::All);
}

#[test]
fn times_are_gos() {
    for (text, milliseconds) in
        [("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000)]
    {
        assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["5", "s", "-5s", "5 s", "5d", "1e3s"] {
        assert_eq!(duration(text), None, "{text}");
    }
}
