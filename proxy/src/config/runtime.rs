//! Runtime values: `layered_runtime` of the bootstrap, later layers over earlier ones, and what `/runtime_modify` adds.
//!
//! A value is looked up by whoever has a runtime key in its configuration (`RuntimeFraction`, `RuntimeFlag`, `RuntimeDouble`), and
//! under the names that Envoy itself has given (`Own`); all other keys are kept and listed at `/runtime`, and reported
//! where they are Envoy's. The values in force are one immutable `Runtime`, process-wide as in Envoy, swapped when the
//! admin layer changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;

use crate::config::compile::core::value_to_json;
use crate::config::compile::diagnostic::FieldPath;
use crate::config::core::{Fraction, RuntimeDouble, RuntimeFlag, RuntimeFraction};
use crate::config::pb::envoy::config::bootstrap::v3 as pb;
use crate::config::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};

/// Keys with names that Envoy has given, of which the data path asks for those of its clusters and listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// `upstream.maintenance_mode.<cluster>`: percent of its requests that are answered 503.
    MaintenanceMode,
    /// `circuit_breakers.<cluster>.<default|high>.<limit>`
    CircuitBreakers,
    /// `overload.global_downstream_max_connections`, `envoy.resource_limits.listener.<name>.connection_limit`
    ConnectionLimits,
    /// `fault.http.<cluster>.…`: a fault's for the clients of one cluster.
    Faults,
    /// `upstream.healthy_panic_threshold`: in percent, for every cluster; asked when hosts change.
    PanicThreshold,
    /// `load_balancing_policy.drop_overload_limit`: in percent.
    DropOverloadLimit,
}

/// See `Own::ConnectionLimits`.
pub const GLOBAL_CONNECTIONS: &str = "overload.global_downstream_max_connections";
const PANIC_THRESHOLD: &str = "upstream.healthy_panic_threshold";
/// In percent: see `SharedCluster::drops`.
pub const DROP_OVERLOAD_LIMIT: &str = "load_balancing_policy.drop_overload_limit";
const MAINTENANCE_MODE: &str = "upstream.maintenance_mode.";
const CIRCUIT_BREAKERS: &str = "circuit_breakers.";
const LISTENER: &str = "envoy.resource_limits.listener.";
const CONNECTION_LIMIT: &str = ".connection_limit";

/// Names of circuit breakers behind cluster and priority.
const BREAKERS: [&str; 7] = [
    ".max_connections",
    ".max_pending_requests",
    ".max_requests",
    ".max_retries",
    ".max_connection_pools",
    ".retry_budget.budget_percent",
    ".retry_budget.min_retry_concurrency",
];

/// Where the keys begin that Envoy asks for unnamed by any configuration: those that are not `Own` do nothing here.
const ENVOYS: [&str; 8] = [
    "envoy.reloadable_features.",
    "envoy.restart_features.",
    "envoy.deprecated_features",
    "envoy.resource_limits.",
    "upstream.",
    "circuit_breakers.",
    "overload.",
    "outlier_detection.",
];

impl Own {
    fn of(key: &str) -> Option<Self> {
        let is_breaker = |key: &str| {
            BREAKERS.iter().any(|end| {
                key.strip_suffix(end)
                    .and_then(|key| key.strip_suffix(".default").or(key.strip_suffix(".high")))
                    .is_some()
            })
        };
        let is_limit = |key: &str| {
            key.strip_prefix(LISTENER).is_some_and(|key| key.ends_with(CONNECTION_LIMIT))
        };
        match key {
            GLOBAL_CONNECTIONS => Some(Self::ConnectionLimits),
            PANIC_THRESHOLD => Some(Self::PanicThreshold),
            DROP_OVERLOAD_LIMIT => Some(Self::DropOverloadLimit),
            _ if key.starts_with(MAINTENANCE_MODE) => Some(Self::MaintenanceMode),
            _ if key.starts_with(CIRCUIT_BREAKERS) && is_breaker(key) => {
                Some(Self::CircuitBreakers)
            }
            _ if is_limit(key) => Some(Self::ConnectionLimits),
            _ if is_fault_of_cluster(key) => Some(Self::Faults),
            _ => None,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A value, in all the readings that it has.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeValue {
    /// As `/runtime` shows it.
    pub text: Box<str>,
    pub number: Option<f64>,
    pub boolean: Option<bool>,
    pub fraction: Option<Fraction>,
}

impl RuntimeValue {
    fn from_text(text: &str) -> Self {
        Self {
            text: text.into(),
            number: text.parse().ok().filter(|number: &f64| number.is_finite()),
            boolean: match text {
                _ if text.eq_ignore_ascii_case("true") => Some(true),
                _ if text.eq_ignore_ascii_case("false") => Some(false),
                _ => None,
            },
            fraction: None,
        }
    }

    /// Whole and not negative: also a percentage, where a fraction is asked for.
    pub fn integer(&self) -> Option<u64> {
        self.number
            .filter(|number| *number >= 0.0 && number.fract() == 0.0)
            .map(|number| number as u64)
    }
}

/// One layer.
#[derive(Debug, Clone, Default, PartialEq)]
struct Layer {
    name: String,
    is_admin: bool,
    values: BTreeMap<String, RuntimeValue>,
}

impl Layer {
    fn report_ignored(&self, path: &FieldPath<'_>) {
        for key in self.values.keys() {
            let is_asked = Own::of(key).is_some() || key.starts_with("overload.premature_reset_");
            if !is_asked && ENVOYS.iter().any(|begin| key.starts_with(begin)) {
                path.field(key).ignored("nothing asks for this runtime key");
            }
        }
    }
}

/// All values in force.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    layers: Vec<Layer>,
    merged: FxHashMap<Box<str>, RuntimeValue>,
    /// A bit for each of `Own` that there is a key of.
    own: u8,
}

/// A key of `/runtime`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEntry {
    pub key: String,
    /// The value in force.
    pub final_value: String,
    /// By layer; empty where a layer does not have the key.
    pub layer_values: Vec<String>,
}

static PUBLISHED: AtomicU64 = AtomicU64::new(0);
static CURRENT: LazyLock<ArcSwap<Runtime>> = LazyLock::new(ArcSwap::default);

/// Those of `Own` that `CURRENT` has a key of.
static OWN: AtomicU8 = AtomicU8::new(0);

/// The process's values.
pub fn current() -> Arc<Runtime> {
    CURRENT.load_full()
}

/// A whole number in force now.
pub fn integer(key: &str) -> Option<u64> {
    CURRENT.load().get(key).and_then(RuntimeValue::integer)
}

/// Whether there is any key of a kind, so that nobody looks for its own where there is none.
#[inline]
pub fn has(own: Own) -> bool {
    OWN.load(Relaxed) & own.bit() != 0
}

/// Whether a request to the cluster is one of those that maintenance mode answers; asks for a random number where there
/// is such a mode.
#[inline]
pub fn is_in_maintenance(cluster: &str, random: impl FnOnce() -> u64) -> bool {
    has(Own::MaintenanceMode)
        && integer(&format!("{MAINTENANCE_MODE}{cluster}"))
            .is_some_and(|percent| random() % 100 < percent)
}

/// The limit of a circuit breaker, `max_requests` for one, of the priority `default` or `high`.
pub fn breaker(cluster: &str, priority: &str, limit: &str) -> Option<f64> {
    let key = format!("{CIRCUIT_BREAKERS}{cluster}.{priority}.{limit}");
    CURRENT.load().number(&key).filter(|number| *number >= 0.0)
}

/// In percent, for every cluster.
pub fn panic_threshold() -> Option<u8> {
    integer(PANIC_THRESHOLD).map(|percent| percent.min(100) as u8)
}

/// The key of a listener's limit.
pub fn listener_connections(name: &str) -> String {
    format!("{LISTENER}{name}{CONNECTION_LIMIT}")
}

/// Keys of a fault behind `fault.http.` and the name of a cluster.
const FAULT_KEYS: [&str; 5] = [
    ".delay.fixed_delay_percent",
    ".delay.fixed_duration_ms",
    ".abort.abort_percent",
    ".abort.http_status",
    ".abort.grpc_status",
];

fn is_fault_of_cluster(key: &str) -> bool {
    key.strip_prefix("fault.http.").is_some_and(|rest| {
        FAULT_KEYS.iter().any(|end| rest.len() > end.len() && rest.ends_with(end))
    })
}

/// Puts values in force for the process: once at start, and after each change of the admin layer.
pub fn publish(runtime: Runtime) {
    let own = runtime.own;
    CURRENT.store(Arc::new(runtime));
    OWN.store(own, Relaxed);
    PUBLISHED.fetch_add(1, Relaxed);
}

/// How often values were put in force (`runtime.load_success`).
pub fn loads() -> u64 {
    PUBLISHED.load(Relaxed)
}

impl RuntimeFraction {
    /// Whether a random number falls into the fraction that is in force now.
    pub fn is_hit(&self, random: u64) -> bool {
        self.in_force().hits(random)
    }

    /// The runtime's fraction, or without one the default.
    pub fn in_force(&self) -> Fraction {
        match &self.runtime_key {
            Some(key) => CURRENT.load().fraction(key, self.default),
            None => self.default,
        }
    }
}

impl RuntimeFlag {
    /// The runtime's word, or without one the default.
    pub fn in_force(&self) -> bool {
        match &self.runtime_key {
            Some(key) => CURRENT.load().boolean(key, self.default),
            None => self.default,
        }
    }
}

impl RuntimeDouble {
    /// The runtime's number, or without one the default.
    pub fn in_force(&self) -> f64 {
        match &self.runtime_key {
            Some(key) => CURRENT.load().number(key).unwrap_or(self.default),
            None => self.default,
        }
    }
}

impl Runtime {
    /// Compiles `layered_runtime`. Layers from files and from a control plane stay empty; the support table reports them.
    pub fn compile(pb: Option<&pb::LayeredRuntime>, path: &FieldPath<'_>) -> Self {
        let mut runtime = Self::default();
        for (index, layer) in pb.iter().flat_map(|pb| &pb.layers).enumerate() {
            let path = path.index("layers", index);
            if layer.name.is_empty() {
                path.field("name").error("value length must be at least 1 characters");
            }
            if runtime.layers.iter().any(|other| other.name == layer.name) {
                path.field("name").error(format_args!("duplicate layer name {:?}", layer.name));
            }
            let mut compiled = Layer { name: layer.name.clone(), ..Layer::default() };
            match &layer.layer_specifier {
                Some(pb::runtime_layer::LayerSpecifier::StaticLayer(values)) => {
                    let path = path.field("static_layer");
                    compile_values(values, "", &mut compiled.values, &path);
                    compiled.report_ignored(&path);
                }
                Some(pb::runtime_layer::LayerSpecifier::AdminLayer(_)) => {
                    if runtime.layers.iter().any(|layer| layer.is_admin) {
                        path.field("admin_layer").error("at most one admin layer may be given");
                    }
                    compiled.is_admin = true;
                }
                Some(_) => {}
                None => path.error("a layer has to say what it is"),
            }
            runtime.layers.push(compiled);
        }
        runtime.merge();
        runtime
    }

    fn merge(&mut self) {
        self.merged.clear();
        for layer in &self.layers {
            for (key, value) in &layer.values {
                self.merged.insert(key.as_str().into(), value.clone());
            }
        }
        self.own =
            self.merged.keys().filter_map(|key| Own::of(key)).fold(0, |all, own| all | own.bit());
    }

    /// These values with others in the admin layer: an empty one is taken out.
    ///
    /// # Errors
    /// There is no admin layer.
    pub fn with_admin_values(&self, values: &[(String, String)]) -> Result<Self, String> {
        let mut changed = self.clone();
        let Some(layer) = changed.layers.iter_mut().find(|layer| layer.is_admin) else {
            return Err("No admin layer specified".to_owned());
        };
        for (key, value) in values {
            if value.is_empty() {
                layer.values.remove(key);
            } else {
                layer.values.insert(key.clone(), RuntimeValue::from_text(value));
            }
        }
        changed.merge();
        Ok(changed)
    }

    pub fn get(&self, key: &str) -> Option<&RuntimeValue> {
        self.merged.get(key)
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.number
    }

    pub fn boolean(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(|value| value.boolean).unwrap_or(default)
    }

    /// A whole number counts as percent.
    pub fn fraction(&self, key: &str, default: Fraction) -> Fraction {
        let Some(value) = self.get(key) else { return default };
        let percent = || {
            value
                .integer()
                .map(|number| Fraction { numerator: number.min(100) as u32, denominator: 100 })
        };
        value.fraction.or_else(percent).unwrap_or(default)
    }

    /// Lowest first.
    pub fn layer_names(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.name.clone()).collect()
    }

    /// Ordered by key.
    pub fn entries(&self) -> Vec<RuntimeEntry> {
        let mut keys: Vec<_> = self.merged.iter().map(|(key, value)| (&**key, value)).collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        let entry = |(key, value): (&str, &RuntimeValue)| RuntimeEntry {
            key: key.to_owned(),
            final_value: value.text.to_string(),
            layer_values: self
                .layers
                .iter()
                .map(|layer| layer.values.get(key).map(|value| value.text.to_string()))
                .map(Option::unwrap_or_default)
                .collect(),
        };
        keys.into_iter().map(entry).collect()
    }

    /// `runtime.num_layers`, `runtime.num_keys` and `runtime.admin_overrides_active`.
    pub fn sizes(&self) -> (usize, usize, bool) {
        let overridden = self.layers.iter().any(|layer| layer.is_admin && !layer.values.is_empty());
        (self.layers.len(), self.merged.len(), overridden)
    }
}

/// Nested structures spell keys with dots, unless they are a fraction.
fn compile_values(
    values: &Struct,
    prefix: &str,
    out: &mut BTreeMap<String, RuntimeValue>,
    path: &FieldPath<'_>,
) {
    for (name, value) in &values.fields {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let compiled = match &value.kind {
            Some(Kind::BoolValue(boolean)) => RuntimeValue {
                boolean: Some(*boolean),
                ..RuntimeValue::from_text(if *boolean { "true" } else { "false" })
            },
            Some(Kind::NumberValue(number)) => RuntimeValue {
                number: Some(*number),
                ..RuntimeValue::from_text(&number.to_string())
            },
            Some(Kind::StringValue(text)) => RuntimeValue::from_text(text),
            Some(Kind::StructValue(inner)) => match compile_fraction(inner) {
                Some(fraction) => {
                    let text = value_to_json(value).to_string();
                    RuntimeValue { fraction: Some(fraction), ..RuntimeValue::from_text(&text) }
                }
                None => {
                    compile_values(inner, &key, out, path);
                    continue;
                }
            },
            Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {
                path.error(format_args!("Invalid runtime entry value for {key}"));
                continue;
            }
        };
        out.insert(key, compiled);
    }
}

fn compile_fraction(value: &Struct) -> Option<Fraction> {
    let number = |value: &PbValue| match &value.kind {
        Some(Kind::NumberValue(number)) if *number >= 0.0 => Some(*number as u32),
        Some(Kind::StringValue(text)) => text.parse().ok(),
        _ => None,
    };
    let (numerator, denominator) = (value.fields.get("numerator"), value.fields.get("denominator"));
    if numerator.is_none() && denominator.is_none() {
        return None;
    }
    let denominator = match denominator.and_then(|value| value.kind.as_ref()) {
        None => 100,
        Some(Kind::StringValue(name)) if name == "HUNDRED" => 100,
        Some(Kind::StringValue(name)) if name == "TEN_THOUSAND" => 10_000,
        Some(Kind::StringValue(name)) if name == "MILLION" => 1_000_000,
        Some(Kind::NumberValue(number)) => *[100, 10_000, 1_000_000].get(*number as usize)?,
        Some(_) => return None,
    };
    Some(Fraction { numerator: numerator.map_or(Some(0), number)?.min(denominator), denominator })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::diagnostic::Diagnostics;
    use crate::config::json::from_yaml;

    const LAYERS: &str = "
layers:
- name: base
  static_layer:
    a: {b: true, c: 12, d: \"1.5\", e: x, f: {numerator: 3, denominator: TEN_THOUSAND}}
    other.http_reject_path_with_fragment: false
- name: over
  static_layer: {a.c: 13, a: {b: no}}
- name: admin
  admin_layer: {}
";

    fn compile(text: &str) -> (Runtime, Vec<String>) {
        let found = Diagnostics::new("bootstrap");
        let layers: pb::LayeredRuntime = from_yaml(text).unwrap();
        let runtime = Runtime::compile(Some(&layers), &found.root().field("layered_runtime"));
        (
            runtime,
            found.into_vec().iter().map(|one| format!("{}: {}", one.path, one.reason)).collect(),
        )
    }

    #[test]
    fn later_layers_win() {
        let (runtime, found) = compile(LAYERS);
        assert!(found.is_empty());
        assert!(!runtime.boolean("a.b", true));
        assert_eq!(runtime.number("a.c"), Some(13.0));
        assert_eq!(runtime.number("a.d"), Some(1.5));
        assert_eq!(runtime.number("a.e"), None);
        let never = Fraction::NEVER;
        assert_eq!(runtime.fraction("a.f", never), Fraction { numerator: 3, denominator: 10_000 });
        assert_eq!(runtime.fraction("a.c", never), Fraction { numerator: 13, denominator: 100 });
        assert_eq!(runtime.fraction("a.e", never), never);
        assert_eq!(runtime.sizes(), (3, 6, false));
    }

    #[test]
    fn the_admin_layer_is_changed_and_shown() {
        let (runtime, _) = compile(LAYERS);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let changed = runtime.with_admin_values(&[pair("a.c", "5"), pair("z", "w")]).unwrap();
        let entry = changed.entries().into_iter().find(|entry| entry.key == "a.c").unwrap();
        assert_eq!(entry.layer_values, ["12", "13", "5"]);
        assert_eq!(entry.final_value, "5");
        assert_eq!(changed.layer_names(), ["base", "over", "admin"]);
        let back = changed.with_admin_values(&[pair("a.c", ""), pair("z", "")]).unwrap();
        assert_eq!(back, runtime);
        assert!(Runtime::default().with_admin_values(&[]).is_err());
    }

    #[test]
    fn wrong_layers_are_reported() {
        let (_, found) = compile(
            "layers: [{name: a, static_layer: {bad: [1]}}, {name: a, admin_layer: {}}, {name: b, admin_layer: {}}, {name: c}]",
        );
        assert_eq!(
            found,
            [
                "layered_runtime.layers[0].static_layer: Invalid runtime entry value for bad",
                "layered_runtime.layers[1].name: duplicate layer name \"a\"",
                "layered_runtime.layers[2].admin_layer: at most one admin layer may be given",
                "layered_runtime.layers[3]: a layer has to say what it is",
            ]
        );
    }

    #[test]
    fn faults_by_cluster_are_known_by_their_keys() {
        for (key, expected) in [
            ("fault.http.abort.abort_percent", false),
            ("fault.http.delay.fixed_delay_percent", false),
            ("fault.http.up.abort.abort_percent", true),
            ("fault.http.abort.abort.abort_percent", true),
            ("other.up.abort.abort_percent", false),
        ] {
            let (runtime, _) =
                compile(&format!("layers: [{{name: a, static_layer: {{{key}: 1}}}}]"));
            assert_eq!(Own::of(key) == Some(Own::Faults), expected, "{key}");
            assert_eq!(runtime.own, if expected { Own::Faults.bit() } else { 0 });
        }
        let (runtime, _) = compile(LAYERS);
        let values = [("fault.http.up.delay.fixed_duration_ms".to_owned(), "5".to_owned())];
        assert_eq!(runtime.with_admin_values(&values).unwrap().own, Own::Faults.bit());
    }

    #[test]
    fn envoys_own_keys_that_do_nothing_are_told() {
        let (runtime, found) = compile(
            "layers: [{name: a, static_layer: {envoy.reloadable_features.x: true, upstream.use_retry: 0, mine.x: 1, \
             upstream.maintenance_mode.c: 1, circuit_breakers.c.high.max_requests: 1, circuit_breakers.c.max_requests: 1, \
             envoy.resource_limits.listener.l.connection_limit: 1}}]",
        );
        let path = "layered_runtime.layers[0].static_layer";
        let expected = [
            "circuit_breakers.c.max_requests",
            "envoy.reloadable_features.x",
            "upstream.use_retry",
        ]
        .map(|key| format!("{path}.{key}: nothing asks for this runtime key"));
        assert_eq!(found, expected);
        let own = [Own::MaintenanceMode, Own::CircuitBreakers, Own::ConnectionLimits];
        assert_eq!(runtime.own, own.iter().map(|own| own.bit()).sum::<u8>());
    }

    #[test]
    fn a_fraction_without_a_key_is_its_default() {
        let fraction = RuntimeFraction::fixed(Fraction::ALWAYS);
        assert!(fraction.is_hit(99));
    }
}
