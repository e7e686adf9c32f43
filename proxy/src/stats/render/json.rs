//! `/stats?format=json`: Envoy's structure. Counters, gauges and text readouts are entries of `stats`; histograms
//! are one entry behind them, whose form `histogram_buckets` chooses.

use std::fmt::Write;
use std::rc::Rc;

use super::walk::{Item, Walk};
use super::{CHUNK, HistogramBuckets, Phase, StatsParams};
use crate::stats::Registry;
use crate::stats::bins::{Bins, PERCENTILES};
use crate::stats::definition::Unit;
use crate::stats::number::to_chars;
use crate::stats::scope::Value;

#[derive(Debug)]
pub(super) struct JsonRender {
    registry: Registry,
    params: Rc<StatsParams>,
    phases: std::slice::Iter<'static, Phase>,
    walk: Option<Walk>,
    started: bool,
    /// An entry of the array that is being written stands before the next one.
    comma: bool,
    /// The histograms' entry is open.
    histograms: bool,
    done: bool,
}

impl JsonRender {
    pub(super) fn new(registry: &Registry, params: StatsParams) -> Self {
        Self {
            registry: registry.clone(),
            phases: params.phases().iter(),
            params: Rc::new(params),
            walk: None,
            started: false,
            comma: false,
            histograms: false,
            done: false,
        }
    }

    pub(super) fn next_chunk(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        let mut out = String::new();
        if !self.started {
            self.started = true;
            out.push_str("{\"stats\":[");
        }
        while out.len() < CHUNK {
            let Some(walk) = self.walk.take() else {
                let Some(phase) = self.phases.next() else {
                    self.finish(&mut out);
                    break;
                };
                self.walk = Some(Walk::new(&self.registry, self.params.clone(), *phase));
                continue;
            };
            self.step(walk, &mut out);
        }
        Some(out)
    }

    fn step(&mut self, mut walk: Walk, out: &mut String) {
        let Some(item) = walk.next() else { return };
        if let Value::Histogram(unit, bins) = &item.reading.value {
            self.open_histograms(out);
            self.separate(out);
            let interval = walk.interval(&item, bins);
            self.histogram(&walk, &item, &interval, bins, *unit, out);
        } else {
            self.separate(out);
            let _ = write!(out, "{{\"name\":{},\"value\":", quoted(&item.name));
            match (&item.reading.value, item.number()) {
                (Value::Text(text), _) => out.push_str(&quoted(text)),
                (_, Some(number)) => out.push_str(itoa::Buffer::new().format(number)),
                (_, None) => out.push_str("null"),
            }
            out.push('}');
        }
        self.walk = Some(walk);
    }

    fn separate(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.comma, true) {
            out.push(',');
        }
    }

    fn open_histograms(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.histograms, true) {
            return;
        }
        self.separate(out);
        self.comma = false;
        let percentiles = PERCENTILES.map(to_chars).join(",");
        match self.params.buckets {
            HistogramBuckets::Unset | HistogramBuckets::Summary => {
                let _ = write!(
                    out,
                    "{{\"histograms\":{{\"supported_quantiles\":[{percentiles}],\"computed_quantiles\":["
                );
            }
            HistogramBuckets::Detailed => {
                let _ = write!(
                    out,
                    "{{\"histograms\":{{\"supported_percentiles\":[{percentiles}],\"details\":["
                );
            }
            HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => {
                out.push_str("{\"histograms\":[");
            }
        }
    }

    fn finish(&mut self, out: &mut String) {
        self.done = true;
        if self.histograms {
            match self.params.buckets {
                HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => out.push_str("]}"),
                HistogramBuckets::Unset
                | HistogramBuckets::Summary
                | HistogramBuckets::Detailed => {
                    out.push_str("]}}");
                }
            }
        }
        out.push_str("]}");
    }

    fn histogram(
        &self,
        walk: &Walk,
        item: &Item,
        interval: &Bins,
        total: &Bins,
        unit: Unit,
        out: &mut String,
    ) {
        let _ = write!(out, "{{\"name\":{},", quoted(&item.name));
        match self.params.buckets {
            HistogramBuckets::Unset | HistogramBuckets::Summary => {
                percentiles("values", interval, total, unit, out);
            }
            HistogramBuckets::Detailed => {
                details("totals", total, unit, out);
                out.push(',');
                details("intervals", interval, unit, out);
                out.push(',');
                percentiles("percentiles", interval, total, unit, out);
            }
            HistogramBuckets::Cumulative | HistogramBuckets::Disjoint => {
                let disjoint = self.params.buckets == HistogramBuckets::Disjoint;
                buckets(walk.bounds(item), interval, total, unit, disjoint, out);
            }
        }
        out.push('}');
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn nullable(value: Option<f64>) -> String {
    value.map_or_else(|| "null".to_owned(), to_chars)
}

fn percentiles(key: &str, interval: &Bins, total: &Bins, unit: Unit, out: &mut String) {
    let (interval, total) = (interval.percentiles(unit), total.percentiles(unit));
    let _ = write!(out, "\"{key}\":[");
    for index in 0..PERCENTILES.len() {
        let comma = if index > 0 { "," } else { "" };
        let (new, all) =
            (nullable(interval.map(|of| of[index])), nullable(total.map(|of| of[index])));
        let _ = write!(out, "{comma}{{\"cumulative\":{all},\"interval\":{new}}}");
    }
    out.push(']');
}

fn details(key: &str, bins: &Bins, unit: Unit, out: &mut String) {
    let _ = write!(out, "\"{key}\":[");
    for (index, (left, width, count)) in bins.details(unit).enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let (left, width) = (to_chars(left), to_chars(width));
        let _ =
            write!(out, "{comma}{{\"lower_bound\":{left},\"width\":{width},\"count\":{count}}}");
    }
    out.push(']');
}

fn buckets(
    bounds: &[f64],
    interval: &Bins,
    total: &Bins,
    unit: Unit,
    disjoint: bool,
    out: &mut String,
) {
    let (interval, total) = (interval.cumulative(bounds, unit), total.cumulative(bounds, unit));
    let mut below = (0, 0);
    out.push_str("\"buckets\":[");
    for (index, bound) in bounds.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let (new, all) = (interval[index] - below.0, total[index] - below.1);
        let _ = write!(
            out,
            "{comma}{{\"upper_bound\":{},\"interval\":{new},\"cumulative\":{all}}}",
            to_chars(*bound)
        );
        if disjoint {
            below = (interval[index], total[index]);
        }
    }
    out.push(']');
}
