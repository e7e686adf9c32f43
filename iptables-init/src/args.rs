//! The command line: istio-iptables' flags by their names, short names, environment variables and defaults. A flag goes
//! before its variable, a variable before the default. One table holds them all; each value is text until
//! [`crate::settings`] reads it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use crate::settings::{duration, parse_port, parse_switch};

/// A flag that takes text, or one that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Switch,
}

/// A row of the table.
struct Flag {
    name: &'static str,
    short: Option<char>,
    /// Environment variables; the last that is set counts.
    variables: &'static [&'static str],
    default: &'static str,
    kind: Kind,
    help: &'static str,
}

/// Text, with the variable that has the flag's name.
const fn text(
    name: &'static str,
    short: Option<char>,
    variables: &'static [&'static str],
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, short, variables, default, kind: Kind::Text, help }
}

const fn switch(
    name: &'static str,
    variables: &'static [&'static str],
    help: &'static str,
) -> Flag {
    Flag { name, short: None, variables, default: "false", kind: Kind::Switch, help }
}

const FLAGS: &[Flag] = &[
    text(
        "envoy-port",
        Some('p'),
        &[],
        "15001",
        "Port that outgoing TCP connections are redirected to",
    ),
    text(
        "inbound-capture-port",
        Some('z'),
        &["INBOUND_CAPTURE_PORT"],
        "15006",
        "Port that incoming TCP connections are redirected to",
    ),
    text(
        "inbound-tunnel-port",
        Some('e'),
        &["INBOUND_TUNNEL_PORT"],
        "15008",
        "Port of the tunnel (HBONE); never redirected",
    ),
    text(
        "proxy-uid",
        Some('u'),
        &["PROXY_UID"],
        "",
        "Users whose traffic is left alone: the proxy's; a list of numbers, names or first-last [default: that of the user $ENVOY_USER (istio-proxy), else 1337]",
    ),
    text(
        "proxy-gid",
        Some('g'),
        &["PROXY_GID"],
        "",
        "Groups whose traffic is left alone [default: as --proxy-uid]",
    ),
    text(
        "istio-inbound-interception-mode",
        Some('m'),
        &["ISTIO_INBOUND_INTERCEPTION_MODE"],
        "",
        "How incoming connections are redirected: REDIRECT, or TPROXY, which keeps both addresses and needs a proxy with NET_ADMIN [default: REDIRECT]",
    ),
    text(
        "istio-inbound-ports",
        Some('b'),
        &["ISTIO_INBOUND_PORTS"],
        "",
        "Ports whose incoming connections are redirected, first:last for a range; * for all, nothing for none",
    ),
    text(
        "istio-local-exclude-ports",
        Some('d'),
        &["ISTIO_LOCAL_EXCLUDE_PORTS"],
        "",
        "Ports whose incoming connections are not redirected, with --istio-inbound-ports '*'",
    ),
    text(
        "istio-exclude-interfaces",
        Some('c'),
        &["ISTIO_EXCLUDE_INTERFACES"],
        "",
        "Interfaces whose traffic is left alone, both ways; eth+ for all that begin with eth, + for all",
    ),
    text(
        "istio-service-cidr",
        Some('i'),
        &["ISTIO_SERVICE_CIDR"],
        "",
        "IP ranges whose outgoing connections are redirected (address/bits); * for all, nothing for none",
    ),
    text(
        "istio-service-exclude-cidr",
        Some('x'),
        &["ISTIO_SERVICE_EXCLUDE_CIDR"],
        "",
        "IP ranges whose outgoing connections are not redirected",
    ),
    text(
        "istio-outbound-ports",
        Some('q'),
        &["ISTIO_OUTBOUND_PORTS"],
        "",
        "Ports whose outgoing connections are redirected whatever --istio-service-cidr says",
    ),
    text(
        "istio-local-outbound-ports-exclude",
        Some('o'),
        &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"],
        "",
        "Ports whose outgoing connections are not redirected",
    ),
    text(
        "kube-virt-interfaces",
        Some('k'),
        &["KUBE_VIRT_INTERFACES"],
        "",
        "Interfaces of virtual machines: what comes in by them is redirected as outgoing",
    ),
    text(
        "istio-inbound-tproxy-mark",
        Some('t'),
        &["ISTIO_INBOUND_TPROXY_MARK"],
        "1337",
        "Mark of packets in mode TPROXY",
    ),
    text(
        "istio-inbound-tproxy-route-table",
        Some('r'),
        &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"],
        "133",
        "Routing table of mode TPROXY",
    ),
    switch(
        "redirect-dns",
        &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"],
        "Redirect DNS requests to the servers of /etc/resolv.conf to the agent, port 15053",
    ),
    switch("capture-all-dns", &["CAPTURE_ALL_DNS"], "With --redirect-dns: requests to any server"),
    switch(
        "drop-invalid",
        &["DROP_INVALID", "INVALID_DROP"],
        "Drop packets that belong to no connection, in place of a reset",
    ),
    switch(
        "dual-stack",
        &["DUAL_STACK", "ISTIO_DUAL_STACK"],
        "Rules for IPv6 too where there are addresses of both families (without: of the family of the first)",
    ),
    switch(
        "run-validation",
        &["RUN_VALIDATION"],
        "Open connections and see that they are redirected; exit code 126 if not",
    ),
    text(
        "iptables-probe-port",
        None,
        &["IPTABLES_PROBE_PORT"],
        "15002",
        "Port that --run-validation connects to",
    ),
    text("probe-timeout", None, &["PROBE_TIMEOUT"], "5s", "How long --run-validation tries"),
    switch("skip-rule-apply", &["SKIP_RULE_APPLY"], "Install nothing"),
    switch(
        "cleanup-only",
        &["CLEANUP_ONLY"],
        "Remove the rules, of every backend, and the routes, and install nothing",
    ),
    switch(
        "native-nftables",
        &["NATIVE_NFTABLES"],
        "nftables (the program nft) in place of iptables",
    ),
    text(
        "force-iptables-binary",
        None,
        &["FORCE_IPTABLES_BINARY"],
        "",
        "legacy or nft: that iptables, whatever rules there are [default: legacy if it has rules, else nft]",
    ),
    text(
        "network-namespace",
        None,
        &["NETWORK_NAMESPACE"],
        "",
        "Path of the network namespace to install the rules in [default: our own]; the variable counts with --cni-mode only",
    ),
    switch(
        "cni-mode",
        &["CNI_MODE"],
        "Run on a node's file system: without the node's lock of iptables and its name services",
    ),
    switch(
        "reconcile",
        &["RECONCILE"],
        "No effect: rules of an earlier run are always replaced, at once for each table",
    ),
    switch("force-apply", &["FORCE_APPLY"], "No effect: rules are always installed anew"),
    Flag {
        name: "dry-run",
        short: Some('n'),
        variables: &["DRY_RUN"],
        default: "false",
        kind: Kind::Switch,
        help: "Print what would be done, and do nothing; --run-validation is done all the same",
    },
    text("log_output_level", None, &[], "", "No effect: there is one level"),
    text("log_target", None, &[], "", "No effect: rules go to stdout, all else to stderr"),
    text("log_caller", None, &[], "", "No effect"),
    text("log_stacktrace_level", None, &[], "", "No effect"),
    text("vklog", None, &[], "", "No effect"),
    switch("log_as_json", &[], "No effect"),
];

/// What else is set by variables alone.
const VARIABLES: &str = "Variables without a flag:
  ISTIO_OUTBOUND_OWNER_GROUPS          Groups whose outgoing connections are redirected (names or numbers) [default: *]
  ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE  With *: groups whose outgoing connections are not redirected
  ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR    Addresses that reach the application itself [default: 127.0.0.1/32]
  ENVOY_USER                           The proxy's user [default: istio-proxy]

Exit codes: 0; 1 nothing was installed (the line on stderr says why); 126 --run-validation failed; 255 wrong flags.";

/// Nothing to do: a wrong line, or a question that the line itself answers (`--help`, `--version`).
#[derive(Debug)]
pub struct Exit {
    /// To print, with its line ends; on stderr unless `code` is 0.
    pub message: String,
    pub code: u8,
}

/// The values of all flags, and of the variables without a flag.
#[derive(Debug)]
pub struct Arguments {
    values: HashMap<&'static str, String>,
    /// Those that are on the command line.
    given: HashSet<&'static str>,
    notices: Vec<String>,
    /// [`OWNER_GROUPS`] and its like, if set.
    environment: HashMap<&'static str, String>,
}

/// Groups to redirect.
pub const OWNER_GROUPS: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
/// Groups not to redirect.
pub const OWNER_GROUPS_EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
/// What reaches the application itself.
pub const LOOPBACK: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
/// The proxy's user.
pub const USER: &str = "ENVOY_USER";

impl Arguments {
    /// Reads a command line, the program's name first, in an environment. The word `istio-iptables` may follow the
    /// name, as it follows pilot-agent's.
    ///
    /// # Errors
    /// What to print and with which code to leave.
    pub fn parse(
        line: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Exit> {
        let mut line: Vec<OsString> = line.into_iter().collect();
        if line.get(1).is_some_and(|word| word == "istio-iptables") {
            line.remove(1);
        }
        let matches = command().try_get_matches_from(line).map_err(|error| Exit {
            message: error.to_string(),
            code: if error.use_stderr() { 255 } else { 0 },
        })?;
        let mut values = HashMap::new();
        let mut given = HashSet::new();
        let mut notices = Vec::new();
        for flag in FLAGS {
            let on_line = matches.get_many::<String>(flag.name).and_then(Iterator::last).cloned();
            if on_line.is_some() {
                given.insert(flag.name);
            }
            let set = || {
                let mut set =
                    flag.variables.iter().rev().filter_map(|n| Some((n, environment(n)?)));
                set.next().and_then(|(name, value)| flag.of_variable(name, value, &mut notices))
            };
            let value = on_line.or_else(set).unwrap_or_else(|| flag.default.to_owned());
            values.insert(flag.name, value);
        }
        let environment = [OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, LOOPBACK, USER]
            .into_iter()
            .filter_map(|name| Some((name, environment(name)?)))
            .collect();
        Ok(Self { values, given, environment, notices })
    }

    /// The value of a flag of the table.
    #[must_use]
    pub fn flag(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Whether a flag is on the command line itself.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// Variables that are passed over, each in one line.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The value of a variable without a flag.
    #[must_use]
    pub fn variable<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.environment.get(name).map_or(default, String::as_str)
    }
}

impl Flag {
    /// The value that a variable gives. Istio passes over one that it cannot read, where a flag would be a mistake.
    fn of_variable(&self, name: &str, value: String, notices: &mut Vec<String>) -> Option<String> {
        let readable = match (self.kind, self.name) {
            (Kind::Switch, _) => parse_switch(&value).is_some(),
            (Kind::Text, "iptables-probe-port") => parse_port(&value).is_some(),
            (Kind::Text, "probe-timeout") => duration(&value).is_some_and(|time| !time.is_zero()),
            (Kind::Text, _) => true,
        };
        if !readable && !value.is_empty() {
            let instead = self.default;
            notices.push(format!("{name} {value:?} cannot be read: it is taken for {instead:?}"));
        }
        readable.then_some(value)
    }
}

fn command() -> Command {
    let about =
        "Installs the rules that lead a pod's traffic through its proxy, as istio-iptables does";
    let mut command = Command::new("outrigger-init")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .after_help(VARIABLES)
        .max_term_width(120)
        // `--run-validation true`: Istio passes over words that belong to no flag.
        .arg(Arg::new("words").num_args(0..).hide(true));
    for flag in FLAGS {
        let mut help = flag.help.to_owned();
        if let [_, ..] = flag.variables {
            help += &format!(" [env: {}]", flag.variables.join(", "));
        }
        let mut arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append);
        arg = match flag.short {
            Some(short) => arg.short(short),
            None => arg,
        };
        arg = match flag.kind {
            Kind::Text => arg.value_name("TEXT").num_args(1),
            Kind::Switch => arg
                .value_name("true|false")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        };
        if flag.kind == Kind::Text && !flag.default.is_empty() {
            help += &format!(" [default: {}]", flag.default);
        }
        command = command.arg(arg.help(help));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str], environment: &[(&str, &str)]) -> Result<Arguments, Exit> {
        let line = std::iter::once("outrigger-init").chain(line.iter().copied());
        Arguments::parse(line.map(Into::into), |name| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_table_makes_a_command() {
        command().debug_assert();
    }

    #[test]
    fn a_flag_goes_before_its_variable_and_that_before_the_default() {
        let environment =
            [("INBOUND_CAPTURE_PORT", "1"), ("DUAL_STACK", ""), ("INVALID_DROP", "1")];
        let none = parse(&[], &[]).expect("a line");
        assert_eq!(none.flag("inbound-capture-port"), "15006");
        let set = parse(&["istio-iptables"], &environment).expect("a line");
        assert_eq!(set.flag("inbound-capture-port"), "1");
        assert_eq!(set.flag("dual-stack"), "false");
        assert_eq!(set.flag("drop-invalid"), "1");
        let given = parse(&["-z", "2", "-z=3", "--dual-stack", "true", "-n=false"], &environment);
        let given = given.expect("a line");
        assert_eq!(given.flag("inbound-capture-port"), "3");
        assert_eq!(given.flag("dual-stack"), "true");
        assert_eq!(given.flag("dry-run"), "false");
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_the_default() {
        let environment = [
            ("REDIRECT_DNS", "true"),
            ("ISTIO_META_DNS_CAPTURE", "yes"),
            ("PROBE_TIMEOUT", "5"),
            ("IPTABLES_PROBE_PORT", "x"),
            ("DRY_RUN", ""),
            ("NETWORK_NAMESPACE", "/here"),
        ];
        let set = parse(&["--cni-mode"], &environment).expect("a line");
        assert_eq!(set.flag("redirect-dns"), "false");
        assert_eq!(set.flag("probe-timeout"), "5s");
        assert_eq!(set.flag("iptables-probe-port"), "15002");
        assert_eq!(set.flag("dry-run"), "false");
        assert_eq!(set.notices().len(), 3, "{:?}", set.notices());
        assert_eq!(set.flag("network-namespace"), "/here");
        assert!(set.is_given("cni-mode") && !set.is_given("network-namespace"));
    }

    #[test]
    fn a_wrong_line_leaves_with_istios_code() {
        assert_eq!(parse(&["--nope"], &[]).expect_err("no such flag").code, 255);
        assert_eq!(parse(&["--help"], &[]).expect_err("a question").code, 0);
    }
}
