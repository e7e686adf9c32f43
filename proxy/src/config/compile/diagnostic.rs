//! What compiling a resource finds wrong: every problem, each with its field path.

use std::cell::{Cell, RefCell};
use std::fmt;

/// What becomes of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Applied without the field: counted, logged once, listed by the admin interface.
    Ignored,
    /// The resource is rejected.
    Error,
}

/// One finding. `path` is the proto field path inside the resource, as in `virtual_hosts[2].routes[0].match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub resource: String,
    pub path: String,
    pub severity: Severity,
    pub reason: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}: {}", self.resource, self.path, self.reason)
    }
}

/// Collects the findings of one resource.
#[derive(Debug, Default)]
pub struct Diagnostics {
    resource: String,
    found: RefCell<Vec<Diagnostic>>,
    /// How many of them the support table found: nobody needs to say those again.
    from_table: Cell<usize>,
}

impl Diagnostics {
    /// `resource` names it for people: `cluster "foo"`.
    pub fn new(resource: impl Into<String>) -> Self {
        Self { resource: resource.into(), ..Self::default() }
    }

    pub fn root(&self) -> FieldPath<'_> {
        FieldPath { sink: self, parent: None, segment: Segment::Root }
    }

    pub fn has_errors(&self) -> bool {
        self.found.borrow().iter().any(|d| d.severity == Severity::Error)
    }

    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.found.into_inner()
    }
}

#[derive(Debug, Clone, Copy)]
enum Segment<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

/// Where in a resource a compile function stands: made on the way down, formatted only when something is found.
#[derive(Debug, Clone, Copy)]
pub struct FieldPath<'a> {
    sink: &'a Diagnostics,
    parent: Option<&'a FieldPath<'a>>,
    segment: Segment<'a>,
}

impl<'a> FieldPath<'a> {
    pub fn field<'b>(&'b self, name: &'b str) -> FieldPath<'b> {
        FieldPath { sink: self.sink, parent: Some(self), segment: Segment::Field(name) }
    }

    pub fn index<'b>(&'b self, name: &'b str, index: usize) -> FieldPath<'b> {
        FieldPath { sink: self.sink, parent: Some(self), segment: Segment::Index(name, index) }
    }

    /// An entry of a map field.
    pub fn key<'b>(&'b self, name: &'b str, key: &'b str) -> FieldPath<'b> {
        FieldPath { sink: self.sink, parent: Some(self), segment: Segment::Key(name, key) }
    }

    /// The resource is rejected because of this field.
    pub fn error(&self, reason: impl fmt::Display) {
        self.report(Severity::Error, reason);
    }

    /// The field is applied without.
    pub fn ignored(&self, reason: impl fmt::Display) {
        self.report(Severity::Ignored, reason);
    }

    /// `None` and an error for `Err`: lets a compile function go on to the next problem.
    pub fn ok_or_error<T, E: fmt::Display>(&self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(error);
                None
            }
        }
    }

    /// What was found so far is from the support table: a second finding at the same path adds nothing.
    pub fn table_done(&self) {
        self.sink.from_table.set(self.sink.found.borrow().len());
    }

    fn report(&self, severity: Severity, reason: impl fmt::Display) {
        let path = self.to_string();
        let mut found = self.sink.found.borrow_mut();
        // The support table and a compile function may both speak of a field that is not built; the stricter counts.
        let known = &mut found[..self.sink.from_table.get()];
        if let Some(known) = known.iter_mut().find(|other| other.path == path) {
            if severity > known.severity {
                known.severity = severity;
                known.reason = reason.to_string();
            }
            return;
        }
        found.push(Diagnostic {
            resource: self.sink.resource.clone(),
            path,
            severity,
            reason: reason.to_string(),
        });
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.segment, Segment::Root) {
                f.write_str(".")?;
            }
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(name, index) => write!(f, "{name}[{index}]"),
            Segment::Key(name, key) => write!(f, "{name}[{key:?}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_severities_are_kept() {
        let found = Diagnostics::new("cluster \"a\"");
        let root = found.root();
        root.index("endpoints", 2).field("address").error("no port");
        root.field("x").ignored("not implemented");
        assert!(found.has_errors());
        let all = found.into_vec();
        assert_eq!(all[0].to_string(), "cluster \"a\": endpoints[2].address: no port");
        assert_eq!(all[1].severity, Severity::Ignored);
    }

    #[test]
    fn the_tables_findings_are_not_repeated() {
        let found = Diagnostics::new("cluster");
        let root = found.root();
        root.field("a").ignored("table");
        root.field("b").error("table");
        root.table_done();
        root.field("a").error("compiled");
        root.field("b").ignored("compiled");
        root.field("c").error("one");
        root.field("c").error("two");
        let all: Vec<_> = found.into_vec().into_iter().map(|one| one.to_string()).collect();
        assert_eq!(
            all,
            ["cluster: a: compiled", "cluster: b: table", "cluster: c: one", "cluster: c: two"]
        );
    }
}
