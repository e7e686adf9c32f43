//! Settings to rules: pure, and the one place that knows Istio's redirection. What a packet meets, in order, is the
//! order of the code; which of Istio's rules stand for what is said at each.
//!
//! Istio puts some rules right into the kernel's own chains. Here all of them are in chains of ours, and the kernel's
//! hold one jump each, so that what is ours can be told from what is not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rule::{Chain, Cidr, Family, Hook, Match, Range, Rule, Table, Verdict};
use crate::settings::{Dns, InboundPorts, Mode, OutboundRanges, OwnerGroups, Settings};

/// The mark of what the proxy sends to an address of its own pod, in mode TPROXY.
const OUTBOUND_MARK: u32 = 1338;
/// Where pilot-agent answers DNS.
const DNS_PORT: u16 = 15053;
/// Conntrack zones that keep a request to the agent apart from the agent's request to a server.
const ZONE_OF_SERVERS: u16 = 1;
const ZONE_OF_CLIENTS: u16 = 2;

/// The rules of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub family: Family,
    /// Tables without rules are not here.
    pub tables: BTreeMap<Table, Chains>,
}

/// The rules of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    /// The kernel's chains: which packets go to which of ours.
    pub jumps: Vec<(Hook, Rule)>,
    pub rules: BTreeMap<Chain, Vec<Rule>>,
}

/// What `ip rule`, `ip route` and `ip address` have to say for the rules to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// Mark and table: packets with the mark are delivered here, whatever their address.
    pub local_route: Option<(u32, u32)>,
    /// `::6` on `lo`, the proxy's address when it connects to its application; of IPv4, `lo` has all of 127.0.0.0/8.
    pub inbound_address: bool,
    pub ipv6: bool,
}

/// All that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub families: Vec<Rules>,
    pub routing: Routing,
}

impl Plan {
    /// The plan for settings.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let families = if settings.ipv6 { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
        let captures = settings.inbound_ports != InboundPorts::Only(Vec::new());
        let local_route = match settings.mode {
            Mode::Tproxy { mark, table } if captures => Some((mark, table)),
            _ => None,
        };
        Self {
            families: families.iter().map(|family| rules(settings, *family)).collect(),
            routing: Routing { local_route, inbound_address: settings.ipv6, ipv6: settings.ipv6 },
        }
    }
}

fn rules(settings: &Settings, family: Family) -> Rules {
    let mut planner = Planner { settings, family, tables: BTreeMap::new() };
    planner.raw();
    match settings.mode {
        Mode::Redirect => planner.marks_of_redirect(),
        Mode::Tproxy { mark, .. } => planner.marks_of_tproxy(mark),
    }
    planner.inbound();
    planner.outbound();
    planner.dns();
    Rules { family, tables: planner.tables }
}

struct Planner<'a> {
    settings: &'a Settings,
    family: Family,
    tables: BTreeMap<Table, Chains>,
}

impl Planner<'_> {
    fn add(
        &mut self,
        table: Table,
        chain: Chain,
        matches: impl Into<Vec<Match>>,
        verdict: Verdict,
    ) {
        let rules = &mut self.tables.entry(table).or_default().rules;
        rules.entry(chain).or_default().push(Rule::new(matches, verdict));
        // What is jumped to has to be there, empty or not.
        if let Verdict::Jump(target) = verdict {
            rules.entry(target).or_default();
        }
    }

    fn enter(&mut self, table: Table, hook: Hook, matches: impl Into<Vec<Match>>, chain: Chain) {
        let chains = self.tables.entry(table).or_default();
        chains.rules.entry(chain).or_default();
        chains.jumps.push((hook, Rule::new(matches, Verdict::Jump(chain))));
    }

    /// What reaches the application itself.
    fn loopback(&self) -> Cidr {
        match self.family {
            Family::V4 => self.settings.loopback,
            Family::V6 => Cidr::host(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// Where the proxy connects to its application from.
    fn inbound_source(&self) -> Cidr {
        Cidr::host(match self.family {
            Family::V4 => Ipv4Addr::new(127, 0, 0, 6).into(),
            Family::V6 => IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
        })
    }

    fn of_family<'b>(&self, ranges: &'b [Cidr]) -> impl Iterator<Item = Cidr> + use<'b> {
        let family = self.family;
        ranges.iter().copied().filter(move |range| range.family() == family)
    }

    /// Servers of this family; None stands for any.
    fn dns_servers(&self) -> Vec<Option<Cidr>> {
        match &self.settings.dns {
            Dns::No => Vec::new(),
            Dns::All => vec![None],
            Dns::Servers(servers) => {
                let servers = servers.iter().map(|server| Cidr::host(*server));
                servers.filter(|server| server.family() == self.family).map(Some).collect()
            }
        }
    }

    /// Requests to the agent and the agent's own requests have the same addresses and ports: without zones of their
    /// own, conntrack confuses them.
    fn raw(&mut self) {
        if self.settings.dns == Dns::No {
            return;
        }
        let (to, from) = (Table::Raw, Chain::OutputDns);
        self.enter(to, Hook::Output, [], from);
        let users = self.settings.users.iter().copied().map(Match::User);
        let groups = self.settings.groups.iter().copied().map(Match::Group);
        for owner in users.chain(groups) {
            let request = [Match::Udp, Match::Port(Range::one(53)), owner.clone()];
            self.add(to, from, request, Verdict::Zone(ZONE_OF_SERVERS));
            let response = [Match::Udp, Match::FromPort(DNS_PORT), owner];
            self.add(to, from, response, Verdict::Zone(ZONE_OF_CLIENTS));
        }
        let servers = self.dns_servers();
        if !servers.is_empty() {
            self.enter(to, Hook::Prerouting, [], Chain::Inbound);
        }
        for server in servers {
            let mut request = vec![Match::Udp, Match::Port(Range::one(53))];
            request.extend(server.map(Match::To));
            self.add(to, from, request, Verdict::Zone(ZONE_OF_CLIENTS));
            let mut response = vec![Match::Udp, Match::FromPort(53)];
            response.extend(server.map(Match::From));
            self.add(to, Chain::Inbound, response, Verdict::Zone(ZONE_OF_SERVERS));
        }
    }

    fn marks_of_redirect(&mut self) {
        if self.settings.drop_invalid {
            self.enter(Table::Mangle, Hook::Prerouting, [], Chain::Prerouting);
            self.drop_invalid();
        }
    }

    fn drop_invalid(&mut self) {
        if self.settings.drop_invalid {
            let jump = Verdict::Jump(Chain::Drop);
            self.add(Table::Mangle, Chain::Prerouting, [Match::Invalid], jump);
            self.add(Table::Mangle, Chain::Drop, [], Verdict::Drop);
        }
    }

    fn marks_of_tproxy(&mut self, mark: u32) {
        let lo = || "lo".to_owned();
        let table = Table::Mangle;
        self.enter(table, Hook::Prerouting, [], Chain::Prerouting);
        for interface in self.settings.exclude_interfaces.clone() {
            self.add(table, Chain::Prerouting, [Match::In(interface)], Verdict::Return);
        }
        self.drop_invalid();
        if self.settings.inbound_ports != InboundPorts::Only(Vec::new()) {
            self.add(table, Chain::Prerouting, [Match::Tcp], Verdict::Jump(Chain::Inbound));
            self.tproxy_inbound(mark);
        }
        // What the proxy sends to its application is marked; its connection keeps the mark.
        self.add(table, Chain::Prerouting, [Match::Tcp, Match::Mark(mark)], Verdict::SaveMark);

        self.enter(table, Hook::Output, [], Chain::Output);
        for interface in self.settings.exclude_interfaces.clone() {
            self.add(table, Chain::Output, [Match::Out(interface)], Verdict::Return);
        }
        let marked = [Match::Out(lo()), Match::Tcp, Match::Mark(mark)];
        self.add(table, Chain::Output, marked, Verdict::Return);
        // From the proxy as a client to the proxy as a server, by an address of the pod.
        let users = self.settings.users.iter().copied().map(Match::User);
        let groups = self.settings.groups.iter().copied().map(Match::Group);
        for owner in users.chain(groups) {
            let own = [Match::NotTo(self.loopback()), Match::Out(lo()), Match::Tcp, owner];
            self.add(table, Chain::Output, own, Verdict::SetMark(OUTBOUND_MARK));
        }
        // The application's answers go back to the proxy, which connected from its client's address.
        let answers = [Match::Tcp, Match::ConnectionMark(mark)];
        self.add(table, Chain::Output, answers, Verdict::RestoreMark);
    }

    fn tproxy_inbound(&mut self, mark: u32) {
        let (table, chain, lo) = (Table::Mangle, Chain::Inbound, "lo".to_owned());
        // The proxy's own, on its way to the application.
        self.add(table, chain, [Match::Tcp, Match::Mark(mark)], Verdict::Return);
        let own = [Match::From(self.inbound_source()), Match::In(lo.clone()), Match::Tcp];
        self.add(table, chain, own, Verdict::Return);
        // From the application to itself.
        let itself = [Match::In(lo), Match::Tcp, Match::NotMark(OUTBOUND_MARK)];
        self.add(table, chain, itself, Verdict::Return);
        let ports = match self.settings.inbound_ports.clone() {
            InboundPorts::AllBut(excluded) => {
                for port in excluded {
                    self.add(table, chain, [Match::Tcp, Match::Port(port)], Verdict::Return);
                }
                vec![vec![Match::Tcp]]
            }
            InboundPorts::Only(ports) => {
                ports.into_iter().map(|port| vec![Match::Tcp, Match::Port(port)]).collect()
            }
        };
        for captured in ports {
            let known = [captured.as_slice(), &[Match::Established]].concat();
            self.add(table, chain, known, Verdict::Jump(Chain::Divert));
            self.add(table, chain, captured, Verdict::Jump(Chain::Tproxy));
        }
        self.add(table, Chain::Divert, [], Verdict::SetMark(mark));
        self.add(table, Chain::Divert, [], Verdict::Accept);
        let others = [Match::NotTo(self.loopback()), Match::Tcp];
        let tproxy = Verdict::Tproxy { port: self.settings.inbound_port, mark };
        self.add(table, Chain::Tproxy, others, tproxy);
    }

    /// Incoming connections, of the table `nat`.
    fn inbound(&mut self) {
        let (table, chain) = (Table::Nat, Chain::Inbound);
        let redirect = [Match::Tcp];
        let port = self.settings.outbound_port;
        self.add(table, Chain::Redirect, redirect.clone(), Verdict::Redirect(port));
        let port = self.settings.inbound_port;
        self.add(table, Chain::InRedirect, redirect, Verdict::Redirect(port));

        let ports = match (self.settings.mode, self.settings.inbound_ports.clone()) {
            (Mode::Tproxy { .. }, _) => InboundPorts::Only(Vec::new()),
            (Mode::Redirect, ports) => ports,
        };
        let captures = ports != InboundPorts::Only(Vec::new());
        if !captures && self.settings.virtual_interfaces.is_empty() {
            return;
        }
        self.enter(table, Hook::Prerouting, [Match::Tcp], chain);
        self.virtual_machines();
        for interface in self.settings.exclude_interfaces.clone() {
            self.add(table, chain, [Match::In(interface)], Verdict::Return);
        }
        let tunnel = Range::one(self.settings.tunnel_port);
        self.add(table, chain, [Match::Tcp, Match::Port(tunnel)], Verdict::Return);
        let jump = Verdict::Jump(Chain::InRedirect);
        match ports {
            InboundPorts::AllBut(excluded) => {
                for port in excluded {
                    self.add(table, chain, [Match::Tcp, Match::Port(port)], Verdict::Return);
                }
                self.add(table, chain, [Match::Tcp], jump);
            }
            InboundPorts::Only(ports) => {
                for port in ports {
                    self.add(table, chain, [Match::Tcp, Match::Port(port)], jump);
                }
            }
        }
    }

    /// What a virtual machine in the pod sends comes in by an interface, and is outbound all the same.
    fn virtual_machines(&mut self) {
        let (table, chain) = (Table::Nat, Chain::Inbound);
        for interface in self.settings.virtual_interfaces.clone() {
            let ranges = match &self.settings.outbound_ranges {
                OutboundRanges::All => vec![Vec::new()],
                OutboundRanges::Only(ranges) => {
                    self.of_family(ranges).map(|range| vec![Match::To(range)]).collect()
                }
            };
            for range in ranges {
                let matches = [&[Match::In(interface.clone())][..], &range].concat();
                self.add(table, chain, matches, Verdict::Jump(Chain::Redirect));
            }
            self.add(table, chain, [Match::In(interface)], Verdict::Return);
        }
    }

    /// Outgoing connections.
    fn outbound(&mut self) {
        let (table, chain) = (Table::Nat, Chain::Output);
        self.enter(table, Hook::Output, [], chain);
        for interface in self.settings.exclude_interfaces.clone() {
            self.add(table, chain, [Match::Out(interface)], Verdict::Return);
        }
        for port in self.settings.exclude_outbound_ports.clone() {
            self.add(table, chain, [Match::Tcp, Match::Port(port)], Verdict::Return);
            self.add(table, chain, [Match::Udp, Match::Port(port)], Verdict::Return);
        }
        let own = [Match::From(self.inbound_source()), Match::Out("lo".into())];
        self.add(table, chain, own, Verdict::Return);
        // A request for DNS of the agent's user goes to its server, not to the inbound port; of its group, it does as
        // any other.
        for user in self.settings.users.clone() {
            let dns = self.settings.dns != Dns::No;
            self.proxys_own(dns, Match::User(user), Match::NotUser(user));
        }
        for group in self.settings.groups.clone() {
            self.proxys_own(false, Match::Group(group), Match::NotGroup(group));
        }
        match self.settings.owner_groups.clone() {
            OwnerGroups::AllBut(groups) => {
                for group in groups {
                    self.add(table, chain, [Match::Group(group)], Verdict::Return);
                }
            }
            OwnerGroups::Only(groups) => {
                let none = (!groups.is_empty()).then_some(Match::NoneOfGroups(groups));
                self.add(table, chain, Vec::from_iter(none), Verdict::Return);
            }
        }
        if !self.dns_servers().is_empty() {
            self.add(table, chain, [], Verdict::Jump(Chain::OutputDns));
        }
        self.add(table, chain, [Match::To(self.loopback())], Verdict::Return);
        for range in self.of_family(&self.settings.exclude_ranges) {
            self.add(table, chain, [Match::To(range)], Verdict::Return);
        }
        let redirect = Verdict::Jump(Chain::Redirect);
        for port in self.settings.outbound_ports.clone() {
            self.add(table, chain, [Match::Tcp, Match::Port(port)], redirect);
        }
        match &self.settings.outbound_ranges {
            OutboundRanges::All => self.add(table, chain, [], redirect),
            OutboundRanges::Only(ranges) => {
                for range in self.of_family(ranges) {
                    self.add(table, chain, [Match::To(range)], redirect);
                }
            }
        }
    }

    /// What the proxy sends, and what others send over `lo`.
    fn proxys_own(&mut self, not_dns: bool, is: Match, is_not: Match) {
        let (table, chain, lo) = (Table::Nat, Chain::Output, || Match::Out("lo".into()));
        // The proxy as a client has chosen this very pod: the connection goes to the proxy as a server.
        let mut ports = vec![self.settings.tunnel_port];
        if not_dns {
            ports.insert(0, 53);
        }
        let itself =
            [lo(), Match::NotTo(self.loopback()), Match::Tcp, Match::NotPorts(ports), is.clone()];
        self.add(table, chain, itself, Verdict::Jump(Chain::InRedirect));
        // From the application to itself, unless it is asked for.
        let asked = match &self.settings.outbound_ranges {
            OutboundRanges::All => false,
            OutboundRanges::Only(ranges) => ranges.iter().any(|r| r.address.is_loopback()),
        };
        if !asked {
            // Its requests for DNS may go to a server on lo, and have to be redirected.
            let mut others = vec![lo(), is_not];
            if self.settings.dns != Dns::No {
                others.insert(1, Match::Tcp);
                others.insert(2, Match::NotPorts(vec![53]));
            }
            self.add(table, chain, others, Verdict::Return);
        }
        self.add(table, chain, [is], Verdict::Return);
    }

    /// DNS to the agent.
    fn dns(&mut self) {
        for protocol in [Match::Tcp, Match::Udp] {
            for server in self.dns_servers() {
                let mut request = vec![protocol.clone(), Match::Port(Range::one(53))];
                request.extend(server.map(Match::To));
                let redirect = Verdict::Redirect(DNS_PORT);
                self.add(Table::Nat, Chain::OutputDns, request, redirect);
            }
        }
    }
}
