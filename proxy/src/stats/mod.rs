//! Counters, gauges, histograms: per-worker blocks, merged when read.
