//! `/clusters`: thresholds, hosts and their counters; one cluster at a time.

use std::collections::VecDeque;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use prost::Message;
use regex::Regex;

use super::listeners::to_proto;
use crate::admin::answer::{Answer, JSON, TEXT};
use crate::admin::query::Query;
use crate::admin::{Admin, AdminState, ClusterStatus, HostHealth, HostStatus, Thresholds};
use crate::config::json::{JsonWriter, Style};
use crate::config::pb::envoy::admin::v3 as pb;
use crate::config::pb::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use crate::config::pb::envoy::config::core::v3 as core;
use crate::config::pb::envoy::r#type::v3::Percent;
use crate::config::pb::google::protobuf::UInt32Value;

pub(super) fn clusters(admin: &Admin, query: &Query) -> Answer {
    let filter = match query.filled("filter").map(Regex::new) {
        Some(Ok(filter)) => Some(filter),
        Some(Err(_)) => return Answer::refuse(StatusCode::BAD_REQUEST, "Invalid re2 regex"),
        None => None,
    };
    let mut names = admin.state.cluster_names();
    names.retain(|name| filter.as_ref().is_none_or(|filter| filter.is_match(name)));
    let statuses = Statuses { state: admin.state.clone(), names: names.into() };
    if query.get("format") == Some("json") {
        return Answer::pieces(JSON, JsonClusters::new(statuses));
    }
    Answer::pieces(TEXT, statuses.map(|status| text(&status)))
}

/// Clusters one after the other, as they are when their turn comes.
struct Statuses {
    state: Rc<dyn AdminState>,
    names: VecDeque<Arc<str>>,
}

impl Iterator for Statuses {
    type Item = ClusterStatus;

    fn next(&mut self) -> Option<ClusterStatus> {
        while let Some(name) = self.names.pop_front() {
            if let Some(status) = self.state.cluster(&name) {
                return Some(status);
            }
        }
        None
    }
}

fn text(cluster: &ClusterStatus) -> String {
    let mut out = String::new();
    let name = &cluster.name;
    let _ = writeln!(out, "{name}::observability_name::{}", cluster.observability_name);
    let priorities = [("default", cluster.default_thresholds), ("high", cluster.high_thresholds)];
    for (priority, of) in priorities {
        let _ =
            writeln!(out, "{name}::{priority}_priority::max_connections::{}", of.max_connections);
        let _ = writeln!(
            out,
            "{name}::{priority}_priority::max_pending_requests::{}",
            of.max_pending_requests
        );
        let _ = writeln!(out, "{name}::{priority}_priority::max_requests::{}", of.max_requests);
        let _ = writeln!(out, "{name}::{priority}_priority::max_retries::{}", of.max_retries);
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api);
    if !cluster.eds_service_name.is_empty() {
        let _ = writeln!(out, "{name}::eds_service_name::{}", cluster.eds_service_name);
    }
    for host in &cluster.hosts {
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{name}::{}::{key}::{value}", host.address);
        };
        let stats = host.stats;
        line("cx_active", &stats.cx_active);
        line("cx_connect_fail", &stats.cx_connect_fail);
        line("cx_total", &stats.cx_total);
        line("rq_active", &stats.rq_active);
        line("rq_error", &stats.rq_error);
        line("rq_pending_active", &stats.rq_pending_active);
        line("rq_success", &stats.rq_success);
        line("rq_timeout", &stats.rq_timeout);
        line("rq_total", &stats.rq_total);
        line("hostname", &host.hostname);
        line("health_flags", &flags(host.health));
        line("weight", &host.weight);
        line("region", &host.region);
        line("zone", &host.zone);
        line("sub_zone", &host.sub_zone);
        line("canary", &host.canary);
        line("priority", &host.priority);
        // Computed by outlier detection only; -1 without.
        line("success_rate", &-1);
        line("local_origin_success_rate", &-1);
    }
    out
}

fn flags(health: HostHealth) -> String {
    let flags = [
        (health.failed_active_health_check, "/failed_active_hc"),
        (health.failed_outlier_check, "/failed_outlier_check"),
        (health.failed_eds_health, "/failed_eds_health"),
        (health.degraded_active_health_check, "/degraded_active_hc"),
        (health.degraded_eds_health, "/degraded_eds_health"),
        (health.pending_dynamic_removal, "/pending_dynamic_removal"),
        (health.pending_active_health_check, "/pending_active_hc"),
        (health.excluded_via_immediate_hc_fail, "/excluded_via_immediate_hc_fail"),
        (health.active_health_check_timeout, "/active_hc_timeout"),
        (health.eds_status_draining, "/eds_status_draining"),
    ];
    let set: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

/// `{"cluster_statuses": […]}` piece by piece.
struct JsonClusters {
    statuses: Statuses,
    json: JsonWriter,
    started: bool,
    done: bool,
}

impl JsonClusters {
    fn new(statuses: Statuses) -> Self {
        Self { statuses, json: JsonWriter::new(Style::DUMP), started: false, done: false }
    }
}

impl Iterator for JsonClusters {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        match self.statuses.next() {
            Some(status) => {
                if !std::mem::replace(&mut self.started, true) {
                    self.json.open_map();
                    self.json.key("cluster_statuses");
                    self.json.open_list();
                }
                let bytes = proto(&status).encode_to_vec();
                self.json.message("envoy.admin.v3.ClusterStatus", &bytes, None);
            }
            None => {
                self.done = true;
                if self.started {
                    self.json.close_list();
                } else {
                    self.json.open_map();
                }
                self.json.close_map();
                return Some(format!("{}\n", self.json.take()));
            }
        }
        Some(self.json.take())
    }
}

fn proto(cluster: &ClusterStatus) -> pb::ClusterStatus {
    let thresholds = [
        (core::RoutingPriority::Default, cluster.default_thresholds),
        (core::RoutingPriority::High, cluster.high_thresholds),
    ];
    pb::ClusterStatus {
        name: cluster.name.to_string(),
        added_via_api: cluster.added_via_api,
        host_statuses: cluster.hosts.iter().map(host).collect(),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: thresholds.map(|(priority, of)| threshold(priority, of)).into(),
            per_host_thresholds: Vec::new(),
        }),
        observability_name: cluster.observability_name.clone(),
        eds_service_name: cluster.eds_service_name.clone(),
        ..pb::ClusterStatus::default()
    }
}

fn threshold(priority: core::RoutingPriority, of: Thresholds) -> circuit_breakers::Thresholds {
    let number = |value: u64| Some(UInt32Value { value: u32::try_from(value).unwrap_or(u32::MAX) });
    circuit_breakers::Thresholds {
        priority: priority.into(),
        max_connections: number(of.max_connections),
        max_pending_requests: number(of.max_pending_requests),
        max_requests: number(of.max_requests),
        max_retries: number(of.max_retries),
        ..circuit_breakers::Thresholds::default()
    }
}

fn host(host: &HostStatus) -> pb::HostStatus {
    use pb::simple_metric::Type;
    let stats = host.stats;
    let metric = |name: &str, value: u64, kind: Type| pb::SimpleMetric {
        name: name.to_owned(),
        value,
        r#type: kind.into(),
    };
    pb::HostStatus {
        address: Some(to_proto(&host.address)),
        stats: vec![
            metric("cx_connect_fail", stats.cx_connect_fail, Type::Counter),
            metric("cx_total", stats.cx_total, Type::Counter),
            metric("rq_error", stats.rq_error, Type::Counter),
            metric("rq_success", stats.rq_success, Type::Counter),
            metric("rq_timeout", stats.rq_timeout, Type::Counter),
            metric("rq_total", stats.rq_total, Type::Counter),
            metric("cx_active", stats.cx_active, Type::Gauge),
            metric("rq_active", stats.rq_active, Type::Gauge),
            metric("rq_pending_active", stats.rq_pending_active, Type::Gauge),
        ],
        health_status: Some(health(host.health)),
        weight: host.weight,
        hostname: host.hostname.clone(),
        priority: host.priority,
        locality: Some(core::Locality {
            region: host.region.clone(),
            zone: host.zone.clone(),
            sub_zone: host.sub_zone.clone(),
        }),
        success_rate: None::<Percent>,
        ..pb::HostStatus::default()
    }
}

fn health(of: HostHealth) -> pb::HostHealthStatus {
    let eds = if of.failed_eds_health {
        core::HealthStatus::Unhealthy
    } else if of.degraded_eds_health {
        core::HealthStatus::Degraded
    } else if of.eds_status_draining {
        core::HealthStatus::Draining
    } else {
        core::HealthStatus::Healthy
    };
    pb::HostHealthStatus {
        failed_active_health_check: of.failed_active_health_check,
        failed_outlier_check: of.failed_outlier_check,
        failed_active_degraded_check: of.degraded_active_health_check,
        pending_dynamic_removal: of.pending_dynamic_removal,
        pending_active_hc: of.pending_active_health_check,
        excluded_via_immediate_hc_fail: of.excluded_via_immediate_hc_fail,
        active_hc_timeout: of.active_health_check_timeout,
        eds_health_status: eds.into(),
        ..pb::HostHealthStatus::default()
    }
}
