//! Compiled `stats_config` of the bootstrap (`envoy.config.metrics.v3.StatsConfig`): which statistics exist, which
//! parts of their names become tags, which buckets their histograms have.

use std::time::Duration;

use super::matcher::{ListStringMatcher, StringMatcher};

/// `config.bootstrap.v3.Bootstrap.stats_config` and `stats_flush_interval`.
#[derive(Debug)]
pub struct StatsConfig {
    /// `use_all_default_tags`; default true.
    pub use_all_default_tags: bool,
    /// `stats_tags`, in order.
    pub tags: Vec<TagRule>,
    /// `stats_matcher`; default accepts all.
    pub matcher: StatsMatcher,
    /// `histogram_bucket_settings`: the first whose matcher takes the name without tags wins.
    pub buckets: Vec<BucketRule>,
    /// `stats_flush_interval`: least length of the interval in the text form of histograms; default 5 s. Zero with
    /// `stats_flush_on_admin`: every read ends one.
    pub flush_interval: Duration,
    /// `deferred_stat_options.enable_deferred_creation_stats`: traffic statistics of a cluster exist once a worker
    /// uses it.
    pub deferred_creation: bool,
}

impl Default for StatsConfig {
    fn default() -> Self {
        Self {
            use_all_default_tags: true,
            tags: Vec::new(),
            matcher: StatsMatcher::AcceptAll,
            buckets: Vec::new(),
            flush_interval: Duration::from_secs(5),
            deferred_creation: false,
        }
    }
}

/// One of `stats_tags`.
#[derive(Debug)]
pub struct TagRule {
    /// `tag_name`.
    pub name: String,
    pub value: TagValue,
}

/// Where a tag's value comes from.
#[derive(Debug)]
pub enum TagValue {
    /// `fixed_value`: the tag is on every statistic.
    Fixed(String),
    /// No value: the built-in rule of this name, when it is one of Envoy's.
    Default,
    /// `regex`: group 1 is cut from the name, group 2 (or 1) is the value.
    Regex(Pattern),
}

/// A regular expression; look-around needs the slower engine.
#[derive(Debug)]
pub enum Pattern {
    Plain(regex::Regex),
    LookAround(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Compiles with the fast engine, or with the backtracking one when the pattern looks around.
    ///
    /// # Errors
    /// Neither engine takes the pattern.
    pub fn new(pattern: &str) -> Result<Self, Box<fancy_regex::Error>> {
        match regex::Regex::new(pattern) {
            Ok(regex) => Ok(Self::Plain(regex)),
            Err(_) => fancy_regex::Regex::new(pattern)
                .map(|r| Self::LookAround(Box::new(r)))
                .map_err(Box::new),
        }
    }

    /// Whether only names with a certain first token can match, as far as Envoy sees it: `^word\.…`.
    pub fn is_bound_to_token(&self) -> bool {
        let text = match self {
            Self::Plain(regex) => regex.as_str(),
            Self::LookAround(regex) => regex.as_str(),
        };
        let Some(rest) = text.strip_prefix('^') else { return false };
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        word > 0 && (rest[word..].starts_with("\\.") || &rest[word..] == "$")
    }

    /// Byte ranges of groups 1 and 2 of the first match.
    pub fn groups(&self, text: &str) -> Option<[Option<std::ops::Range<usize>>; 2]> {
        match self {
            Self::Plain(regex) => {
                let found = regex.captures(text)?;
                Some([1, 2].map(|group| found.get(group).map(|group| group.range())))
            }
            Self::LookAround(regex) => {
                let found = regex.captures(text).ok()??;
                Some([1, 2].map(|group| found.get(group).map(|group| group.range())))
            }
        }
    }
}

/// `StatsMatcher`.
#[derive(Debug)]
pub enum StatsMatcher {
    AcceptAll,
    RejectAll,
    Inclusion(ListStringMatcher),
    Exclusion(ListStringMatcher),
}

impl StatsMatcher {
    pub fn is_accept_all(&self) -> bool {
        matches!(self, Self::AcceptAll)
    }

    /// Whether a statistic with this full name exists.
    pub fn accepts(&self, name: &str) -> bool {
        match self {
            Self::AcceptAll => true,
            Self::RejectAll => false,
            Self::Inclusion(list) => list.matches(name.as_bytes()),
            Self::Exclusion(list) => !list.matches(name.as_bytes()),
        }
    }
}

/// One of `histogram_bucket_settings`.
#[derive(Debug)]
pub struct BucketRule {
    pub matcher: StringMatcher,
    /// Upper bounds, ascending; may be empty when only `bins` is set.
    pub bounds: Vec<f64>,
}
