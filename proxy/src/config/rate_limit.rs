//! Compiled `envoy.config.route.v3.RateLimit`: what makes descriptors of a request, for rate limit filters.

use smallvec::SmallVec;

use crate::codec::head::RequestHead;
use crate::codec::name::HeaderName;
use crate::config::matcher::header::{HeaderMatcher, all_match};
use crate::config::matcher::query::parameters;
use crate::format::{Ctx, Formatter};
use crate::stream_info::{Address, StreamInfo};

/// One descriptor of a request: keys and values.
pub type Descriptor = SmallVec<[(Box<str>, Vec<u8>); 2]>;

/// A compiled `RateLimit`: each action adds an entry, or the descriptor is not made.
#[derive(Debug)]
pub struct RateLimit {
    /// Which rate limit filter it is for, 0 to 10.
    pub stage: u32,
    pub actions: Box<[Action]>,
    pub hits: Hits,
    /// `is_negative_hits`: they are given back.
    pub gives: bool,
    /// `apply_on_stream_done`: no request is held against it.
    pub late: bool,
    /// `x_ratelimit_option`: whether responses say what is left; `None`: as the filter wants it.
    pub headers: Option<bool>,
}

/// `hits_addend`: for how many requests one counts.
#[derive(Debug)]
pub enum Hits {
    Number(u64),
    /// What the request says.
    Format(Formatter),
}

/// The most that a request may count for.
pub const MAX_HITS: u64 = 1_000_000_000;

impl Hits {
    /// `None` where the request says no such number.
    pub fn of(&self, request: &RequestHead, info: &StreamInfo) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Format(format) => {
                let mut out = Vec::new();
                let mut cx = Ctx::new(info);
                cx.request = Some(request);
                format.write(&cx, &mut out);
                let number = number(std::str::from_utf8(&out).ok()?)?;
                (0.0..=MAX_HITS as f64).contains(&number).then_some(number as u64)
            }
        }
    }
}

/// What a descriptor is made of.
#[derive(Debug)]
pub enum Action {
    DestinationCluster,
    RequestHeader {
        name: HeaderName,
        key: Box<str>,
        skip_if_absent: bool,
    },
    QueryParameter {
        name: Box<[u8]>,
        key: Box<str>,
        skip_if_absent: bool,
    },
    RemoteAddress,
    GenericKey {
        key: Box<str>,
        value: Box<[u8]>,
    },
    HeaderValueMatch {
        key: Box<str>,
        value: Box<[u8]>,
        headers: Box<[HeaderMatcher]>,
        expect: bool,
    },
}

/// What a descriptor may speak of.
#[derive(Debug, Clone, Copy)]
pub struct RateLimitSubject<'a> {
    pub request: &'a RequestHead,
    pub remote: &'a Address,
    /// Where the route leads, if it leads anywhere.
    pub cluster: Option<&'a str>,
}

/// Decimal or, as in Envoy, hexadecimal.
fn number(text: &str) -> Option<f64> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok().map(f64::from),
        None => text.parse().ok(),
    }
}

impl RateLimit {
    /// The descriptor of a request; `None` where an action has nothing to add.
    pub fn descriptor(&self, subject: &RateLimitSubject<'_>) -> Option<Descriptor> {
        let mut descriptor = Descriptor::new();
        for action in &self.actions {
            action.add(subject, &mut descriptor)?;
        }
        (!descriptor.is_empty()).then_some(descriptor)
    }
}

impl Action {
    /// `None`: no descriptor. An action that may be absent adds nothing.
    fn add(&self, subject: &RateLimitSubject<'_>, descriptor: &mut Descriptor) -> Option<()> {
        let request = subject.request;
        let (key, value): (&str, Vec<u8>) = match self {
            Self::DestinationCluster => ("destination_cluster", subject.cluster?.into()),
            Self::RemoteAddress => match subject.remote {
                Address::Ip(address) => ("remote_address", address.ip().to_string().into()),
                Address::Pipe(_) | Address::Internal(_) => return None,
            },
            Self::RequestHeader { name, key, skip_if_absent } => match request.get(name) {
                Some(value) => (key, value.into()),
                None => return skip_if_absent.then_some(()),
            },
            Self::QueryParameter { name, key, skip_if_absent } => {
                let mut found = parameters(request.path().unwrap_or_default());
                match found.find(|(parameter, _)| *parameter == &**name) {
                    Some((_, value)) => (key, value.into()),
                    None => return skip_if_absent.then_some(()),
                }
            }
            Self::GenericKey { key, value } => (key, value.to_vec()),
            Self::HeaderValueMatch { key, value, headers, expect } => {
                if all_match(headers, request) != *expect {
                    return None;
                }
                (key, value.to_vec())
            }
        };
        descriptor.push((key.into(), value));
        Some(())
    }
}
