//! Compiled `envoy.config.rbac.v3.RBAC`, and its evaluation: pure, shared by the HTTP filter and the
//! network filter.

use std::sync::Arc;

use crate::codec::head::RequestHead;
use crate::config::cidr::Cidr;
use crate::config::matcher::header::HeaderMatcher;
use crate::config::matcher::{PathMatcher, StringMatcher};
use crate::stream_info::{Address, ConnectionInfo, StreamInfo};

/// Policies and what it means that one matches.
#[derive(Debug)]
pub struct RbacEngine {
    pub action: RbacAction,
    /// By name: the first that matches is the one that is named.
    pub policies: Box<[RbacPolicy]>,
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
        let (allowed, log) = self.decide(at.is_some());
        RbacVerdict { allowed, policy, at, log }
    }

    /// Whether it lets pass, by whether a policy matches; and what `RbacAction::Log` leaves.
    pub fn decide(&self, matched: bool) -> (bool, Option<bool>) {
        match self.action {
            RbacAction::Allow => (matched, None),
            RbacAction::Deny => (!matched, None),
            RbacAction::Log => (true, Some(matched)),
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
        }
    }
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
