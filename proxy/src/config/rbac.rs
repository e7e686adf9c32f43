//! Compiled `envoy.config.rbac.v3.RBAC`, and its evaluation: pure, shared by the HTTP filter and the
//! network filter.

use std::sync::Arc;

use crate::codec::head::RequestHead;
use crate::codec::name::{HeaderName, names};
use crate::config::cidr::Cidr;
use crate::config::matcher::header::HeaderMatcher;
use crate::config::matcher::{PathMatcher, StringMatcher};
use crate::stream_info::{Address, ConnectionInfo, StreamInfo};

/// Policies and what it means that one matches.
#[derive(Debug)]
pub struct RbacEngine {
    pub effect: RbacEffect,
    /// By name: the first that matches is the one that is named.
    pub policies: Box<[RbacPolicy]>,
}

/// What an engine's policies do.
#[derive(Debug)]
pub enum RbacEffect {
    /// One action for all of them.
    Shared(RbacAction),
    /// The action of each, in a matcher: what none matches is denied. `logs`: one of them is `Log`.
    Each { actions: Box<[RbacAction]>, logs: bool },
}

/// `RBAC.Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RbacAction {
    /// Passes what a policy matches.
    Allow,
    /// Passes what no policy matches.
    Deny,
    /// Passes everything; whether a policy matches goes into the metadata `envoy.common`, `access_log_hint`.
    Log,
}

/// One policy: a permission and a principal must match.
#[derive(Debug)]
pub struct RbacPolicy {
    pub name: Arc<str>,
    pub permissions: Box<[RbacRule]>,
    pub principals: Box<[RbacRule]>,
}

/// A permission or a principal.
#[derive(Debug)]
pub enum RbacRule {
    Any,
    And(Box<[RbacRule]>),
    Or(Box<[RbacRule]>),
    Not(Box<RbacRule>),
    Header(HeaderMatcher),
    /// As the input of a matcher: all lines of a header, joined by commas.
    WholeHeader(HeaderName, StringMatcher),
    UrlPath(PathMatcher),
    /// Local address of the connection, as redirected or proxied.
    DestinationIp(Cidr),
    DestinationPort(u16),
    /// Half open.
    DestinationPortRange {
        start: u32,
        end: u32,
    },
    /// SNI; without one, the empty text.
    RequestedServerName(StringMatcher),
    /// The connection's peer, PROXY protocol believed.
    SourceIp(Cidr),
    /// The socket's peer.
    DirectRemoteIp(Cidr),
    /// The client, `x-forwarded-for` believed as the connection manager believes it.
    RemoteIp(Cidr),
    /// TLS; where there is a matcher, a peer certificate of which a URI, a DNS name or the subject matches.
    Authenticated(Option<StringMatcher>),
    /// As the input of a matcher: names of one kind in the peer's certificate, joined by commas.
    PeerName(PeerName, StringMatcher),
}

/// A kind of name in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerName {
    UriSan,
    DnsSan,
    Subject,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct RbacSubject<'a> {
    /// `None` for network filters: no header, no path.
    pub head: Option<&'a RequestHead>,
    pub connection: &'a ConnectionInfo,
    /// See `RbacRule::RemoteIp`.
    pub remote: &'a Address,
}

impl<'a> RbacSubject<'a> {
    pub fn of_request(head: &'a RequestHead, info: &'a StreamInfo) -> Self {
        Self { head: Some(head), connection: &info.connection, remote: &info.remote }
    }

    pub fn of_connection(connection: &'a ConnectionInfo) -> Self {
        Self { head: None, connection, remote: &connection.remote }
    }
}

/// What an engine says.
#[derive(Debug, Clone, Copy)]
pub struct RbacVerdict<'a> {
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'a Arc<str>>,
    /// Its place among the engine's.
    pub at: Option<usize>,
    /// For `RbacAction::Log`: whether a policy matched.
    pub log: Option<bool>,
}

impl RbacEngine {
    pub fn evaluate(&self, subject: &RbacSubject<'_>) -> RbacVerdict<'_> {
        let at = self.policies.iter().position(|policy| policy.matches(subject));
        let policy = at.map(|at| &self.policies[at].name);
        let (allowed, log) = self.decide(at);
        RbacVerdict { allowed, policy, at, log }
    }

    /// Whether it lets pass what the policy at a place matches, or none; and what `RbacAction::Log` leaves.
    pub fn decide(&self, at: Option<usize>) -> (bool, Option<bool>) {
        match &self.effect {
            RbacEffect::Shared(RbacAction::Allow) => (at.is_some(), None),
            RbacEffect::Shared(RbacAction::Deny) => (at.is_none(), None),
            RbacEffect::Shared(RbacAction::Log) => (true, Some(at.is_some())),
            RbacEffect::Each { actions, logs } => {
                let Some(action) = at.map(|at| actions[at]) else { return (false, None) };
                (action != RbacAction::Deny, logs.then_some(action == RbacAction::Log))
            }
        }
    }
}

impl RbacPolicy {
    fn matches(&self, subject: &RbacSubject<'_>) -> bool {
        self.permissions.iter().any(|rule| rule.matches(subject))
            && self.principals.iter().any(|rule| rule.matches(subject))
    }
}

impl RbacRule {
    fn matches(&self, subject: &RbacSubject<'_>) -> bool {
        let connection = subject.connection;
        match self {
            Self::Any => true,
            Self::And(rules) => rules.iter().all(|rule| rule.matches(subject)),
            Self::Or(rules) => rules.iter().any(|rule| rule.matches(subject)),
            Self::Not(rule) => !rule.matches(subject),
            Self::Header(matcher) => matcher.matches(&subject.head),
            Self::WholeHeader(name, matcher) => {
                subject.head.is_some_and(|head| is_whole_header(head, name, matcher))
            }
            Self::UrlPath(matcher) => {
                subject.head.and_then(RequestHead::path).is_some_and(|path| matcher.matches(path))
            }
            Self::DestinationIp(range) => contains(range, &connection.local),
            Self::DestinationPort(port) => {
                connection.local.ip().is_some_and(|local| local.port() == *port)
            }
            Self::DestinationPortRange { start, end } => {
                let in_range = |port: u16| (*start..*end).contains(&u32::from(port));
                connection.local.ip().is_some_and(|local| in_range(local.port()))
            }
            Self::RequestedServerName(matcher) => {
                let name = connection.requested_server_name.as_deref().unwrap_or_default();
                matcher.matches(name.as_bytes())
            }
            Self::SourceIp(range) => contains(range, &connection.remote),
            Self::DirectRemoteIp(range) => contains(range, &connection.direct_remote),
            Self::RemoteIp(range) => contains(range, subject.remote),
            Self::Authenticated(name) => is_authenticated(connection, name.as_ref()),
            Self::PeerName(kind, matcher) => is_peer(connection, *kind, matcher),
        }
    }
}

fn is_whole_header(head: &RequestHead, name: &HeaderName, matcher: &StringMatcher) -> bool {
    if name.is_pseudo() || *name == names::HOST {
        return head.get(name).is_some_and(|value| matcher.matches(value));
    }
    let mut lines = head.headers.get_all(name);
    let Some(first) = lines.next() else { return false };
    let Some(second) = lines.next() else { return matcher.matches(first) };
    let mut whole = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        whole.push(b',');
        whole.extend_from_slice(line);
    }
    matcher.matches(&whole)
}

fn is_peer(connection: &ConnectionInfo, kind: PeerName, matcher: &StringMatcher) -> bool {
    let Some(certificate) = connection.tls.get().and_then(|tls| tls.peer_certificate()) else {
        return false;
    };
    match kind {
        PeerName::UriSan => joined_match(certificate.uri_sans(), matcher),
        PeerName::DnsSan => joined_match(certificate.dns_sans(), matcher),
        PeerName::Subject => {
            let subject = &*certificate.subject;
            !subject.is_empty() && matcher.matches(subject.as_bytes())
        }
    }
}

/// Several names are one text, joined by commas; none match nothing.
fn joined_match<'a>(mut names: impl Iterator<Item = &'a str>, matcher: &StringMatcher) -> bool {
    let Some(first) = names.next() else { return false };
    let Some(second) = names.next() else { return matcher.matches(first.as_bytes()) };
    let mut all = format!("{first},{second}");
    for name in names {
        all.push(',');
        all.push_str(name);
    }
    matcher.matches(all.as_bytes())
}

fn is_authenticated(connection: &ConnectionInfo, name: Option<&StringMatcher>) -> bool {
    let Some(tls) = connection.tls.get() else { return false };
    // Without a name TLS itself is enough, as in Envoy.
    let Some(name) = name else { return true };
    let certificate = tls.peer_certificate();
    let mut sans = certificate.into_iter().flat_map(|c| c.uri_sans().chain(c.dns_sans()));
    sans.any(|san| name.matches(san.as_bytes()))
        || name.matches(certificate.map(|c| c.subject.as_bytes()).unwrap_or_default())
}

fn contains(range: &Cidr, address: &Address) -> bool {
    address.ip().is_some_and(|address| range.contains(address.ip()))
}
