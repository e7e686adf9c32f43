//! `/stats`: a line per statistic, as Envoy prints it.

use std::fmt::Write;
use std::rc::Rc;

use super::walk::{Item, Walk};
use super::{CHUNK, HistogramBuckets, Phase, StatsParams};
use crate::stats::Registry;
use crate::stats::bins::{Bins, PERCENTILES};
use crate::stats::definition::Unit;
use crate::stats::number::{shortest, six_digits};
use crate::stats::scope::Value;

#[derive(Debug)]
pub(super) struct TextRender {
    registry: Registry,
    params: Rc<StatsParams>,
    phases: std::slice::Iter<'static, Phase>,
    walk: Option<Walk>,
}

impl TextRender {
    pub(super) fn new(registry: &Registry, params: StatsParams) -> Self {
        let phases = params.phases().iter();
        Self { registry: registry.clone(), params: Rc::new(params), phases, walk: None }
    }

    pub(super) fn next_chunk(&mut self) -> Option<String> {
        let mut out = String::new();
        while out.len() < CHUNK {
            let Some(walk) = &mut self.walk else {
                let Some(phase) = self.phases.next() else { break };
                self.walk = Some(Walk::new(&self.registry, self.params.clone(), *phase));
                continue;
            };
            match walk.next() {
                Some(item) => line(walk, &item, self.params.buckets, &mut out),
                None => self.walk = None,
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

fn line(walk: &Walk, item: &Item, buckets: HistogramBuckets, out: &mut String) {
    out.push_str(&item.name);
    match &item.reading.value {
        Value::Counter(n) | Value::Gauge(n) => {
            out.push_str(": ");
            out.push_str(itoa::Buffer::new().format(*n));
        }
        Value::Text(text) => {
            out.push_str(": \"");
            escape_html(text, out);
            out.push('"');
        }
        Value::Histogram(..) if !item.reading.used => out.push_str(": No recorded values"),
        Value::Histogram(unit, bins) => {
            let interval = walk.interval(item, bins);
            histogram(&interval, bins, *unit, buckets, walk.bounds(item), out);
        }
    }
    out.push('\n');
}

/// As absl's HTML sanitizer does for text readouts.
fn escape_html(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

fn histogram(
    interval: &Bins,
    total: &Bins,
    unit: Unit,
    buckets: HistogramBuckets,
    bounds: &[f64],
    out: &mut String,
) {
    match buckets {
        HistogramBuckets::Unset | HistogramBuckets::Summary => {
            out.push_str(": ");
            summary(interval, total, unit, out);
        }
        HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => {
            let disjoint = buckets == HistogramBuckets::Disjoint;
            let (interval, total) =
                (interval.cumulative(bounds, unit), total.cumulative(bounds, unit));
            out.push(':');
            let mut below = (0, 0);
            for (index, bound) in bounds.iter().enumerate() {
                let (new, all) = (interval[index] - below.0, total[index] - below.1);
                let _ = write!(out, " B{}({new},{all})", six_digits(*bound));
                if disjoint {
                    below = (interval[index], total[index]);
                }
            }
        }
        HistogramBuckets::Detailed => {
            out.push_str(":\n  totals=");
            details(total, unit, out);
            out.push_str("\n  intervals=");
            details(interval, unit, out);
            out.push_str("\n  summary=");
            summary(interval, total, unit, out);
        }
    }
}

fn details(bins: &Bins, unit: Unit, out: &mut String) {
    for (index, (left, width, count)) in bins.details(unit).enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let _ = write!(out, "{comma}{},{}:{count}", six_digits(left), six_digits(width));
    }
}

fn summary(interval: &Bins, total: &Bins, unit: Unit, out: &mut String) {
    let interval = interval.percentiles(unit).unwrap_or([f64::NAN; 10]);
    let total = total.percentiles(unit).unwrap_or([f64::NAN; 10]);
    for (index, percentile) in PERCENTILES.iter().enumerate() {
        let space = if index > 0 { " " } else { "" };
        let (new, all) = (shortest(interval[index]), shortest(total[index]));
        let _ = write!(out, "{space}P{}({new},{all})", shortest(*percentile));
    }
}
