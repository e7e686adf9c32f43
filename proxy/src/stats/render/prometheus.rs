//! `/stats/prometheus`: text format 0.0.4 as Envoy writes it. Series are grouped by metric name; what is held is the
//! list of names per kind of scope, never the series.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;

use super::{CHUNK, HistogramBuckets, Phase, StatsParams, StatsType};
use crate::config::stats::TagValue;
use crate::stats::Registry;
use crate::stats::bins::{Bins, PERCENTILES};
use crate::stats::definition::{StatTable, Unit};
use crate::stats::number::{exact, shortest};
use crate::stats::scope::{Reading, ScopeInner, Value, Which};
use crate::stats::tags::{Extracted, extract};

/// Scopes that are looked at between two pauses.
const SCOPES_PER_STEP: usize = 64;

/// Where the series of one metric come from.
#[derive(Debug)]
enum Source {
    /// A statistic of a set, in all scopes of one shape.
    Table { shape: usize, table: &'static StatTable, index: usize },
    /// A statistic with a run-time name.
    Named { scope: u32, name: Box<str> },
}

#[derive(Debug)]
pub(super) struct PrometheusRender {
    registry: Registry,
    params: StatsParams,
    scopes: Vec<Arc<ScopeInner>>,
    /// Scopes whose names differ only in tag values.
    shapes: Vec<Vec<u32>>,
    phases: std::slice::Iter<'static, Phase>,
    phase: Phase,
    /// Metrics of the phase that are still to come.
    metrics: BTreeMap<String, Vec<Source>>,
    /// Scopes that are sorted into `metrics`.
    indexed: usize,
    /// Shapes by their scopes' name without tags, and set.
    known: HashMap<(String, usize), usize>,
    /// A configured expression may look at any part of a name: then no two scopes are taken to be alike.
    alike: bool,
    /// Series of the current metric that are still to come.
    series: VecDeque<(u32, Which)>,
    /// The current metric's `# TYPE` line was written.
    typed: bool,
}

impl PrometheusRender {
    pub(super) fn new(registry: &Registry, params: StatsParams) -> Self {
        let phases: &'static [Phase] = match (params.kinds, params.text_readouts) {
            (StatsType::All, false) => &[Phase::Counters, Phase::Gauges, Phase::Histograms],
            (StatsType::All, true) => {
                &[Phase::Counters, Phase::Gauges, Phase::TextReadouts, Phase::Histograms]
            }
            (StatsType::Counters, _) => &[Phase::Counters],
            (StatsType::Gauges, _) => &[Phase::Gauges],
            (StatsType::Histograms, _) => &[Phase::Histograms],
            (StatsType::TextReadouts, true) => &[Phase::TextReadouts],
            (StatsType::TextReadouts, false) => &[],
        };
        let tags = &registry.config().tags;
        let alike = !tags.iter().any(|tag| matches!(tag.value, TagValue::Regex(_)));
        let mut scopes = registry.scopes();
        scopes.sort_by(|a, b| a.prefix.split('.').cmp(b.prefix.split('.')));
        Self {
            registry: registry.clone(),
            params,
            scopes,
            shapes: Vec::new(),
            phases: phases.iter(),
            phase: Phase::Counters,
            metrics: BTreeMap::new(),
            indexed: usize::MAX,
            known: HashMap::new(),
            alike,
            series: VecDeque::new(),
            typed: false,
        }
    }

    pub(super) fn next_chunk(&mut self) -> Option<String> {
        let mut out = String::new();
        while out.len() < CHUNK {
            if let Some((scope, which)) = self.series.pop_front() {
                self.series_lines(scope, &which, &mut out);
            } else if self.indexed < self.scopes.len() {
                self.index_some();
                return Some(out);
            } else if let Some((_, sources)) = self.metrics.pop_first() {
                self.series = self.series_of(sources);
                self.typed = false;
            } else if let Some(phase) = self.phases.next() {
                self.phase = *phase;
                self.indexed = 0;
                self.shapes.clear();
                self.known.clear();
            } else {
                return (!out.is_empty()).then_some(out);
            }
        }
        Some(out)
    }

    /// Sorts some scopes of the phase into metrics.
    fn index_some(&mut self) {
        let first = self.indexed;
        self.indexed = self.scopes.len().min(first + SCOPES_PER_STEP);
        for number in first..self.indexed {
            self.index_scope(number as u32);
        }
    }

    /// Metrics are kept by name without tags; the key sorts token by token, as Envoy's symbol table does.
    fn index_scope(&mut self, number: u32) {
        let config = self.registry.config();
        let scope = &self.scopes[number as usize];
        let template = format!("{}x", scope.prefix);
        let template = extract(config, &template).name.into_owned();
        let key_of = |name: &str| {
            extract(config, &format!("{}{name}", scope.prefix)).name.replace('.', "\0")
        };
        for table in scope.tables() {
            let known = (template.clone(), std::ptr::from_ref(table) as usize);
            if let Some(shape) = self.known.get(&known).filter(|_| self.alike) {
                self.shapes[*shape].push(number);
                continue;
            }
            let shape = self.shapes.len();
            self.shapes.push(vec![number]);
            self.known.insert(known, shape);
            for (index, def) in table.defs.iter().enumerate() {
                if self.phase.takes(def.kind) {
                    let source = Source::Table { shape, table, index };
                    self.metrics.entry(key_of(def.name)).or_default().push(source);
                }
            }
        }
        for (name, kind) in scope.named_list() {
            if self.phase.takes(kind) {
                let key = key_of(&name);
                self.metrics.entry(key).or_default().push(Source::Named { scope: number, name });
            }
        }
    }

    fn series_of(&self, sources: Vec<Source>) -> VecDeque<(u32, Which)> {
        let mut series = Vec::new();
        for source in sources {
            match source {
                Source::Table { shape, table, index } => {
                    series
                        .extend(self.shapes[shape].iter().map(|s| (*s, Which::Def(table, index))));
                }
                Source::Named { scope, name } => series.push((scope, Which::Named(name))),
            }
        }
        series.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.name().cmp(y.name())));
        series.into()
    }

    fn series_lines(&mut self, scope: u32, which: &Which, out: &mut String) {
        let scope = self.scopes[scope as usize].clone();
        let full = format!("{}{}", scope.prefix, which.name());
        if !self.params.wants(&full) || !scope.shows(which) {
            return;
        }
        let Some(reading) = scope.read(which) else { return };
        if self.params.used_only && !reading.used {
            return;
        }
        let extracted = extract(self.registry.config(), &full);
        let metric = metric_name(&extracted.name);
        let summary = self.params.buckets == HistogramBuckets::Summary;
        if !std::mem::replace(&mut self.typed, true) {
            let kind = match reading.value {
                Value::Counter(_) => "counter",
                Value::Gauge(_) | Value::Text(_) => "gauge",
                Value::Histogram(..) if summary => "summary",
                Value::Histogram(..) => "histogram",
            };
            let _ = writeln!(out, "# TYPE {metric} {kind}");
        }
        self.value_lines(&scope, which, &metric, &extracted, &reading, out);
    }

    fn value_lines(
        &self,
        scope: &ScopeInner,
        which: &Which,
        metric: &str,
        extracted: &Extracted<'_>,
        reading: &Reading,
        out: &mut String,
    ) {
        let labels = labels(extracted);
        match &reading.value {
            Value::Counter(n) | Value::Gauge(n) => {
                let _ = writeln!(out, "{metric}{{{labels}}} {n}");
            }
            Value::Text(text) => {
                let comma = if labels.is_empty() { "" } else { "," };
                let text = escape_label(text);
                let _ = writeln!(out, "{metric}{{{labels}{comma}text_value=\"{text}\"}} 0");
            }
            Value::Histogram(unit, bins) if self.params.buckets == HistogramBuckets::Summary => {
                let interval = self.registry.interval(&scope.prefix, which.name(), bins);
                summary_lines(metric, &labels, &interval, *unit, out);
            }
            Value::Histogram(unit, bins) => {
                let name = format!("{}{}", scope.prefix, which.name());
                let bounds = self.registry.bounds(&name);
                bucket_lines(metric, &labels, bins, *unit, bounds, out);
            }
        }
    }
}

fn bucket_lines(
    metric: &str,
    labels: &str,
    bins: &Bins,
    unit: Unit,
    bounds: &[f64],
    out: &mut String,
) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, count) in bounds.iter().zip(bins.cumulative(bounds, unit)) {
        let bound = exact(*bound);
        let _ = writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let count = bins.count();
    let _ = writeln!(out, "{metric}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", exact(bins.sum(unit)));
    let _ = writeln!(out, "{metric}_count{{{labels}}} {count}");
}

fn summary_lines(metric: &str, labels: &str, interval: &Bins, unit: Unit, out: &mut String) {
    let comma = if labels.is_empty() { "" } else { "," };
    let values = interval.percentiles(unit).unwrap_or([f64::NAN; 10]);
    for (percentile, value) in PERCENTILES.iter().zip(values) {
        // Rounded: 99.9 / 100 is not the double nearest to 0.999.
        let quantile = shortest((percentile * 10.0).round() / 1000.0);
        let value = exact(value);
        let _ = writeln!(out, "{metric}{{{labels}{comma}quantile=\"{quantile}\"}} {value}");
    }
    let _ = writeln!(out, "{metric}_sum{{{labels}}} {}", exact(interval.sum(unit)));
    let _ = writeln!(out, "{metric}_count{{{labels}}} {}", interval.count());
}

/// `envoy_` and the name with everything but letters, digits and underscores replaced.
fn metric_name(name: &str) -> String {
    let mut metric = String::with_capacity(name.len() + 6);
    metric.push_str("envoy_");
    metric.extend(name.chars().map(label_char));
    metric
}

fn label_char(c: char) -> char {
    if c.is_ascii_alphanumeric() { c } else { '_' }
}

fn labels(extracted: &Extracted<'_>) -> String {
    let mut out = String::new();
    for (name, value) in &extracted.tags {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(name.chars().map(label_char));
        let _ = write!(out, "=\"{}\"", escape_label(value));
    }
    out
}

fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}
