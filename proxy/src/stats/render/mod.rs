//! Statistics for readers: text, JSON, Prometheus; in pieces, so that a scrape of any size neither blocks the
//! control thread nor is held whole.

mod json;
mod prometheus;
mod text;
mod walk;

use regex::Regex;

use super::Registry;
use super::definition::Kind;
use json::JsonRender;
use prometheus::PrometheusRender;
use text::TextRender;

/// A piece ends after the statistic that makes it this long.
const CHUNK: usize = 15 * 1024;

/// `type=` of `/stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatsType {
    #[default]
    All,
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

/// `histogram_buckets=` of `/stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HistogramBuckets {
    /// Nothing asked for: a summary in text and JSON, cumulative buckets in Prometheus.
    #[default]
    Unset,
    Cumulative,
    Disjoint,
    Detailed,
    Summary,
}

/// Which statistics, and how.
#[derive(Debug, Default)]
pub struct StatsParams {
    /// Only those ever written.
    pub used_only: bool,
    /// Matches anywhere in the full name.
    pub filter: Option<Regex>,
    pub invert_filter: bool,
    pub kinds: StatsType,
    pub buckets: HistogramBuckets,
    /// Prometheus: text readouts as gauges of value 0 with the text as a label.
    pub text_readouts: bool,
}

/// Form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsFormat {
    Text,
    Json,
    Prometheus,
}

/// A render under way.
#[derive(Debug)]
pub struct StatsRender(Form);

#[derive(Debug)]
enum Form {
    Text(TextRender),
    Json(JsonRender),
    Prometheus(PrometheusRender),
}

impl StatsRender {
    pub fn new(registry: &Registry, params: StatsParams, format: StatsFormat) -> Self {
        registry.refresh();
        Self(match format {
            StatsFormat::Text => Form::Text(TextRender::new(registry, params)),
            StatsFormat::Json => Form::Json(JsonRender::new(registry, params)),
            StatsFormat::Prometheus => Form::Prometheus(PrometheusRender::new(registry, params)),
        })
    }

    /// The whole answer: for tests and small answers.
    pub fn into_string(self) -> String {
        self.collect()
    }
}

/// The next piece, at most some 16 KB; the caller yields between pieces.
impl Iterator for StatsRender {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        match &mut self.0 {
            Form::Text(render) => render.next_chunk(),
            Form::Json(render) => render.next_chunk(),
            Form::Prometheus(render) => render.next_chunk(),
        }
    }
}

/// Statistics come in these groups, each sorted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    TextReadouts,
    CountersAndGauges,
    Counters,
    Gauges,
    Histograms,
}

impl Phase {
    fn takes(self, kind: Kind) -> bool {
        match kind {
            Kind::TextReadout => self == Self::TextReadouts,
            Kind::Histogram(_) => self == Self::Histograms,
            Kind::Counter => matches!(self, Self::CountersAndGauges | Self::Counters),
            Kind::Gauge => matches!(self, Self::CountersAndGauges | Self::Gauges),
        }
    }
}

impl StatsParams {
    /// Phases of text and JSON.
    fn phases(&self) -> &'static [Phase] {
        match self.kinds {
            StatsType::All => &[Phase::TextReadouts, Phase::CountersAndGauges, Phase::Histograms],
            StatsType::Counters => &[Phase::Counters],
            StatsType::Gauges => &[Phase::Gauges],
            StatsType::Histograms => &[Phase::Histograms],
            StatsType::TextReadouts => &[Phase::TextReadouts],
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert_filter)
    }
}

#[cfg(test)]
mod tests;
