//! What a set of statistics consists of: Envoy's names, kinds and units, fixed at compile time.
//!
//! [`metrics!`](crate::metrics) declares an enum and its table; a scope (`cluster.foo`) declares which tables it
//! has; a worker's block has one cell per entry. Names may hold dots (`circuit_breakers.default.cx_open`).

/// Unit of a histogram (Envoy's `Histogram::Unit`). It changes no output, except that percentages are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Unspecified,
    Bytes,
    Milliseconds,
    Microseconds,
    /// Recorded scaled by 0x1000000 (Envoy's `PercentScale`), printed as a fraction.
    Percent,
}

/// Kind of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    TextReadout,
    Histogram(Unit),
}

/// One statistic of a set.
#[derive(Debug)]
pub struct StatDef {
    pub name: &'static str,
    pub kind: Kind,
    /// Exists only once it was written: what Envoy creates on first use (`upstream_rq_time`).
    pub lazy: bool,
    /// Index among the cells (counters, gauges) or among the histograms of the set.
    pub(super) slot: u16,
}

impl StatDef {
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, lazy: false, slot: 0 }
    }

    #[must_use]
    pub const fn ms(self) -> Self {
        Self { kind: Kind::Histogram(Unit::Milliseconds), ..self }
    }

    #[must_use]
    pub const fn us(self) -> Self {
        Self { kind: Kind::Histogram(Unit::Microseconds), ..self }
    }

    #[must_use]
    pub const fn bytes(self) -> Self {
        Self { kind: Kind::Histogram(Unit::Bytes), ..self }
    }

    #[must_use]
    pub const fn percent(self) -> Self {
        Self { kind: Kind::Histogram(Unit::Percent), ..self }
    }

    /// Marks a statistic that exists only once it was written.
    #[must_use]
    pub const fn lazy(self) -> Self {
        Self { lazy: true, ..self }
    }
}

/// The table behind a [`StatSet`]; compared by address.
#[derive(Debug)]
pub struct StatTable {
    pub defs: &'static [StatDef],
    pub(super) cells: usize,
    pub(super) histograms: usize,
}

impl StatTable {
    /// Made by `metrics!` from definitions that went through [`assign_slots`].
    pub const fn new(defs: &'static [StatDef]) -> Self {
        let (mut cells, mut histograms, mut i) = (0, 0, 0);
        while i < defs.len() {
            match defs[i].kind {
                Kind::Histogram(_) => histograms += 1,
                Kind::Counter | Kind::Gauge | Kind::TextReadout => cells += 1,
            }
            i += 1;
        }
        Self { defs, cells, histograms }
    }
}

/// Numbers counters and gauges, and histograms, of a set.
pub const fn assign_slots<const N: usize>(mut defs: [StatDef; N]) -> [StatDef; N] {
    let (mut cells, mut histograms, mut i) = (0, 0, 0);
    while i < N {
        match defs[i].kind {
            Kind::Histogram(_) => {
                defs[i].slot = histograms;
                histograms += 1;
            }
            Kind::Counter | Kind::Gauge | Kind::TextReadout => {
                defs[i].slot = cells;
                cells += 1;
            }
        }
        i += 1;
    }
    defs
}

/// An enum made by [`metrics!`](crate::metrics).
pub trait StatSet: Copy + 'static {
    const TABLE: &'static StatTable;
    fn index(self) -> usize;
}

/// Declares a set of statistics: an enum whose variants index a worker's block, and their names as Envoy prints
/// them. Kinds: `counter`, `gauge`, `histogram` (then a unit: `ms`, `us`, `bytes`, `percent`); `lazy` hides a
/// statistic until it is written.
///
/// ```
/// outrigger::metrics! {
///     /// Connections of a listener.
///     pub enum ListenerCx {
///         Total: counter "downstream_cx_total",
///         Active: gauge "downstream_cx_active",
///         Length: histogram "downstream_cx_length_ms" ms,
///     }
/// }
/// ```
#[macro_export]
macro_rules! metrics {
    ($(#[$doc:meta])* $vis:vis enum $set:ident {
        $($variant:ident: $kind:ident $name:literal $($attribute:ident)*),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $set { $($variant),+ }

        impl $crate::stats::StatSet for $set {
            const TABLE: &'static $crate::stats::StatTable = {
                const DEFS: &[$crate::stats::StatDef] = &$crate::stats::assign_slots([
                    $($crate::stats::StatDef::new($name, $crate::metrics!(@kind $kind))$(.$attribute())*),+
                ]);
                static TABLE: $crate::stats::StatTable = $crate::stats::StatTable::new(DEFS);
                &TABLE
            };

            #[inline]
            fn index(self) -> usize {
                self as usize
            }
        }
    };
    (@kind counter) => { $crate::stats::Kind::Counter };
    (@kind gauge) => { $crate::stats::Kind::Gauge };
    (@kind text) => { $crate::stats::Kind::TextReadout };
    (@kind histogram) => { $crate::stats::Kind::Histogram($crate::stats::Unit::Unspecified) };
}
