//! What is to be installed, checked: the command line's text and the host's facts become values here and nowhere else,
//! so that whatever gets past this is a rule that a kernel takes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::args::{Arguments, LOOPBACK, OWNER_GROUPS, OWNER_GROUPS_EXCLUDE, USER};
use crate::host::Host;
use crate::rule::{Cidr, Range};

/// A setting that makes no sense, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{name} {value:?}: {reason}")]
pub struct SettingsError {
    /// The flag or variable.
    pub name: String,
    pub value: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// How incoming connections reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Redirect,
    /// The mark of packets that a policy route keeps here, and the table that has it.
    Tproxy {
        mark: u32,
        table: u32,
    },
}

/// Which ports are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPorts {
    /// All but these.
    AllBut(Vec<Range<u16>>),
    Only(Vec<Range<u16>>),
}

/// Which addresses' connections are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboundRanges {
    All,
    Only(Vec<Cidr>),
}

/// Whose connections are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    AllBut(Vec<Range<u32>>),
    Only(Vec<Range<u32>>),
}

/// Whose DNS requests are redirected to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    No,
    /// Those to any server.
    All,
    /// Those to these servers.
    Servers(Vec<IpAddr>),
}

/// Which program installs the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The iptables that has rules.
    Iptables,
    IptablesLegacy,
    IptablesNft,
    Nftables,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Apply,
    Cleanup,
    /// `--skip-rule-apply`.
    Nothing,
}

/// The rules that are wanted.
#[derive(Debug)]
pub struct Settings {
    pub outbound_port: u16,
    pub inbound_port: u16,
    pub tunnel_port: u16,
    pub users: Vec<Range<u32>>,
    pub groups: Vec<Range<u32>>,
    pub mode: Mode,
    pub inbound_ports: InboundPorts,
    pub exclude_interfaces: Vec<String>,
    pub virtual_interfaces: Vec<String>,
    pub outbound_ranges: OutboundRanges,
    pub exclude_ranges: Vec<Cidr>,
    pub outbound_ports: Vec<Range<u16>>,
    pub exclude_outbound_ports: Vec<Range<u16>>,
    pub owner_groups: OwnerGroups,
    /// What reaches the application itself, of IPv4.
    pub loopback: Cidr,
    pub dns: Dns,
    pub drop_invalid: bool,
    /// Rules for IPv6 too.
    pub ipv6: bool,
}

/// Everything that the command line says.
#[derive(Debug)]
pub struct Job {
    pub settings: Settings,
    pub backend: Backend,
    pub action: Action,
    pub dry_run: bool,
    /// What to probe, and for how long.
    pub validation: Option<Validation>,
    /// Whether iptables leaves the node's lock alone.
    pub own_lock: bool,
    /// What to tell the user that is no fault.
    pub notices: Vec<String>,
}

/// What `--run-validation` does, in each family that has rules.
#[derive(Debug, Clone, Copy)]
pub struct Validation {
    pub port: u16,
    pub timeout: Duration,
}

impl Job {
    /// Checks everything.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn new(arguments: &Arguments, host: &Host) -> Result<Self, SettingsError> {
        let reader = Reader { arguments, host };
        let mut notices = arguments.notices().to_vec();
        let action = match (reader.switch("skip-rule-apply")?, reader.switch("cleanup-only")?) {
            (true, _) => Action::Nothing,
            (false, true) => Action::Cleanup,
            (false, false) => Action::Apply,
        };
        let ipv6 = match reader.ipv6() {
            Err(error) if action != Action::Cleanup => return Err(error),
            ipv6 => ipv6.unwrap_or(true),
        };
        let settings = reader.settings(ipv6, action, &mut notices)?;
        let backend =
            match (reader.switch("native-nftables")?, reader.flag("force-iptables-binary")) {
                (true, "" | "legacy" | "nft") => Backend::Nftables,
                (false, "") => Backend::Iptables,
                (false, "legacy") => Backend::IptablesLegacy,
                (false, "nft") => Backend::IptablesNft,
                _ => return Err(reader.wrong("force-iptables-binary", "say legacy or nft")),
            };
        let port = reader.port("iptables-probe-port")?;
        let timeout = duration(reader.flag("probe-timeout")).filter(|t| !t.is_zero());
        let timeout = timeout
            .ok_or_else(|| reader.wrong("probe-timeout", "say a time above 0, such as 5s"))?;
        // No effect, but a value that is neither true nor false is a mistake.
        for name in ["reconcile", "force-apply", "log_as_json"] {
            reader.switch(name)?;
        }
        let validation = reader.switch("run-validation")?;
        Ok(Self {
            settings,
            backend,
            action,
            dry_run: reader.switch("dry-run")?,
            validation: validation.then_some(Validation { port, timeout }),
            own_lock: reader.switch("cni-mode")?,
            notices,
        })
    }
}

/// Reads flags; knows their names when they are wrong.
struct Reader<'a> {
    arguments: &'a Arguments,
    host: &'a Host,
}

impl Reader<'_> {
    fn settings(
        &self,
        ipv6: bool,
        action: Action,
        notices: &mut Vec<String>,
    ) -> Result<Settings, SettingsError> {
        let user = self.proxy_user();
        let users = self.owners("proxy-uid", &user, self.host.user)?;
        // The same words, so that a name is the group's.
        let groups = match self.flag("proxy-gid") {
            "" => self.owners("proxy-gid", &user, self.host.group)?,
            list => self.owners("proxy-gid", list, self.host.group)?,
        };
        let mode = match self.flag("istio-inbound-interception-mode") {
            "" | "REDIRECT" => Mode::Redirect,
            "TPROXY" => Mode::Tproxy {
                mark: self.number("istio-inbound-tproxy-mark", "say a mark above 0")?,
                table: self.route_table()?,
            },
            _ => {
                return Err(self.wrong("istio-inbound-interception-mode", "say REDIRECT or TPROXY"));
            }
        };
        let exclude_inbound = self.ports("istio-local-exclude-ports")?;
        let inbound_ports = match self.flag("istio-inbound-ports") {
            "*" => InboundPorts::AllBut(exclude_inbound),
            _ => InboundPorts::Only(self.ports("istio-inbound-ports")?),
        };
        let outbound_ranges = match self.flag("istio-service-cidr") {
            "*" => OutboundRanges::All,
            _ => OutboundRanges::Only(self.ranges("istio-service-cidr")?),
        };
        Ok(Settings {
            outbound_port: self.port("envoy-port")?,
            inbound_port: self.port("inbound-capture-port")?,
            tunnel_port: self.port("inbound-tunnel-port")?,
            users,
            groups,
            mode,
            inbound_ports,
            exclude_interfaces: self.interfaces("istio-exclude-interfaces")?,
            virtual_interfaces: self.interfaces("kube-virt-interfaces")?,
            outbound_ranges,
            exclude_ranges: self.ranges("istio-service-exclude-cidr")?,
            outbound_ports: self.ports("istio-outbound-ports")?,
            exclude_outbound_ports: self.ports("istio-local-outbound-ports-exclude")?,
            owner_groups: self.owner_groups()?,
            loopback: self.loopback()?,
            dns: self.dns(action, notices)?,
            drop_invalid: self.switch("drop-invalid")?,
            ipv6,
        })
    }

    fn flag(&self, name: &str) -> &str {
        self.arguments.flag(name)
    }

    fn wrong(&self, name: &str, reason: &str) -> SettingsError {
        wrong(&format!("--{name}"), self.flag(name), reason)
    }

    fn switch(&self, name: &str) -> Result<bool, SettingsError> {
        parse_switch(self.flag(name)).ok_or_else(|| self.wrong(name, "say true or false"))
    }

    /// Above 0.
    fn number(&self, name: &str, reason: &str) -> Result<u32, SettingsError> {
        let text = self.flag(name);
        let number = match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        number.filter(|n| *n != 0).ok_or_else(|| self.wrong(name, reason))
    }

    fn port(&self, name: &str) -> Result<u16, SettingsError> {
        parse_port(self.flag(name)).ok_or_else(|| self.wrong(name, "say a port from 1 to 65535"))
    }

    fn ports(&self, name: &str) -> Result<Vec<Range<u16>>, SettingsError> {
        let ports = items(self.flag(name)).map(|item| {
            let range = match item.split_once(':') {
                // As iptables has it, an end that is left out is the least or the last.
                Some((first, last)) => {
                    let end = |text, none| match text {
                        "" => Some(none),
                        "0" => Some(0),
                        text => parse_port(text),
                    };
                    end(first, 0).zip(end(last, u16::MAX))
                }
                None => parse_port(item).map(|port| (port, port)),
            };
            let range = range.filter(|(first, last)| first <= last);
            let reason = format!("{item:?} is no port from 1 to 65535");
            range
                .map(|(first, last)| Range { first, last })
                .ok_or_else(|| self.wrong(name, &reason))
        });
        ports.collect()
    }

    fn ranges(&self, name: &str) -> Result<Vec<Cidr>, SettingsError> {
        let ranges = items(self.flag(name)).map(|item| {
            let reason = format!("{item:?} is no IP range, such as 10.0.0.0/8 or fd00::/8");
            Cidr::parse(item).ok_or_else(|| self.wrong(name, &reason))
        });
        ranges.collect()
    }

    fn interfaces(&self, name: &str) -> Result<Vec<String>, SettingsError> {
        let names = items(self.flag(name)).map(|item| {
            let odd = |c: char| c.is_whitespace() || c.is_control() || "/\"!*\\".contains(c);
            if item.len() > 15 || item.contains(odd) {
                return Err(self.wrong(name, &format!("{item:?} is no name of an interface")));
            }
            Ok(item.to_owned())
        });
        names.collect()
    }

    fn proxy_user(&self) -> String {
        match self.flag("proxy-uid") {
            "" => {
                let name = self.arguments.variable(USER, "istio-proxy");
                (self.host.user)(name).unwrap_or(1337).to_string()
            }
            list => list.to_owned(),
        }
    }

    fn owners(
        &self,
        name: &str,
        list: &str,
        find: fn(&str) -> Option<u32>,
    ) -> Result<Vec<Range<u32>>, SettingsError> {
        let owners = items(list).map(|item| parse_owner(item, find).ok_or(item));
        let owners: Result<Vec<_>, _> = owners.collect();
        let owners = owners.map_err(|item| {
            self.wrong(name, &format!("{item:?} is no number and no known name"))
        })?;
        if owners.is_empty() {
            return Err(self.wrong(name, "name one at least: the proxy's own traffic must pass"));
        }
        Ok(owners)
    }

    fn owner_groups(&self) -> Result<OwnerGroups, SettingsError> {
        let groups = |name: &str, list: &str| {
            let found = items(list).map(|item| {
                parse_owner(item, self.host.group)
                    .ok_or_else(|| wrong(name, list, &format!("{item:?} is no known group")))
            });
            found.collect::<Result<Vec<_>, _>>()
        };
        let include = self.arguments.variable(OWNER_GROUPS, "*");
        if include == "*" {
            let exclude = self.arguments.variable(OWNER_GROUPS_EXCLUDE, "");
            return Ok(OwnerGroups::AllBut(groups(OWNER_GROUPS_EXCLUDE, exclude)?));
        }
        let only = groups(OWNER_GROUPS, include)?;
        // They are all matches of one rule, of which kernels take so many.
        if only.len() > 64 {
            return Err(wrong(OWNER_GROUPS, include, "name 64 groups at most"));
        }
        Ok(OwnerGroups::Only(only))
    }

    fn loopback(&self) -> Result<Cidr, SettingsError> {
        let text = self.arguments.variable(LOOPBACK, "127.0.0.1/32");
        Cidr::parse(text)
            .filter(|cidr| cidr.address.is_ipv4() && cidr.address.is_loopback() && cidr.bits >= 8)
            .ok_or_else(|| wrong(LOOPBACK, text, "say a range of 127.0.0.0/8"))
    }

    /// A table that the kernel uses itself would lead all of the namespace's traffic to `lo`.
    fn route_table(&self) -> Result<u32, SettingsError> {
        let name = "istio-inbound-tproxy-route-table";
        let reason = "say a table of its own: above 0, and not 253 to 255, which are the kernel's";
        let table = self.number(name, reason)?;
        if (253..=255).contains(&table) { Err(self.wrong(name, reason)) } else { Ok(table) }
    }

    fn dns(&self, action: Action, notices: &mut Vec<String>) -> Result<Dns, SettingsError> {
        let all = self.switch("capture-all-dns")?;
        match self.switch("redirect-dns")? {
            false => Ok(Dns::No),
            true if all => Ok(Dns::All),
            true if action != Action::Apply => Ok(Dns::No),
            true => match &self.host.nameservers {
                Ok(servers) if servers.is_empty() => {
                    notices.push("/etc/resolv.conf names no server: DNS is not redirected".into());
                    Ok(Dns::No)
                }
                Ok(servers) => Ok(Dns::Servers(servers.clone())),
                Err(error) => {
                    let reason =
                        format!("cannot read /etc/resolv.conf ({error}); or say --capture-all-dns");
                    Err(self.wrong("redirect-dns", &reason))
                }
            },
        }
    }

    /// Whether there are to be rules for IPv6: for the family of the first address, or for both.
    fn ipv6(&self) -> Result<bool, SettingsError> {
        let global = |address: &&IpAddr| match address {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local() && !is_local_multicast(*a),
            IpAddr::V6(a) => {
                !a.is_loopback() && !a.is_unicast_link_local() && a.segments()[0] != 0xff02
            }
        };
        let addresses: Vec<_> = self.host.addresses.iter().filter(global).collect();
        let Some(first) = addresses.first() else {
            let reason = "this network namespace has no address but loopback and link-local ones: \
                run it after the pod's network is there";
            return Err(self.wrong("dual-stack", reason));
        };
        let both = self.switch("dual-stack")? && addresses.iter().any(|a| a.is_ipv6());
        Ok(both || first.is_ipv6())
    }
}

/// 224.0.0.0/24.
fn is_local_multicast(address: Ipv4Addr) -> bool {
    address.octets()[..3] == [224, 0, 0]
}

fn wrong(name: &str, value: &str, reason: &str) -> SettingsError {
    SettingsError { name: name.into(), value: value.into(), reason: reason.into() }
}

/// The entries of a list; empty ones are passed over.
fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// True or false, as Go writes them.
#[must_use]
pub fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// A number, `first-last`, or a name.
fn parse_owner(text: &str, find: fn(&str) -> Option<u32>) -> Option<Range<u32>> {
    if let Ok(number) = text.parse() {
        return Some(Range::one(number));
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Ok(first), Ok(last)) = (first.parse(), last.parse())
    {
        return (first <= last).then_some(Range { first, last });
    }
    find(text).map(Range::one)
}

/// A duration as Go writes it: `5s`, `1m30s`, `500ms`, `1.5h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let seconds = match &after[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = &after[unit..];
    }
    Some(sum)
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
