//! Header additions and removals of one configuration level (`request_headers_to_add`, …), compiled.
//!
//! Order as in Envoy's `HeaderParser`: removals, then every value is formatted (so that none sees what
//! another wrote), then overwrites, then additions. A mutation list (`HeaderMutation`) runs strictly in
//! its own order. Static values cost no formatting, and nothing allocates on a warm worker.

use std::cell::Cell;

use smallvec::SmallVec;

use super::matcher::StringMatcher;
use crate::codec::head::{HeaderList, RequestHead, ResponseHead};
use crate::codec::name::{HeaderName, names};
use crate::format::{Ctx, Formatter};
use crate::stream_info::StreamInfo;

/// Compiled header operations of one level. Empty by default.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    pub(super) removals: Box<[HeaderName]>,
    pub(super) additions: Box<[Addition]>,
    pub(super) mutations: Box<[Mutation]>,
}

/// `HeaderValueOption`.
#[derive(Debug, Clone)]
pub(super) struct Addition {
    pub(super) name: HeaderName,
    pub(super) value: Value,
    pub(super) action: AppendAction,
    /// `keep_empty_value`: a value that comes out empty is written all the same.
    pub(super) keep_empty: bool,
    /// Where Envoy joins this header's values by a comma.
    pub(super) inline: Inline,
}

/// The kinds of head in which Envoy keeps a header in one line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inline {
    request: bool,
    response: bool,
}

impl Inline {
    pub(super) fn of(name: &HeaderName) -> Self {
        Self { request: name.is_inline_in_requests(), response: name.is_inline_in_responses() }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Static(Box<[u8]>),
    Format(Formatter),
}

/// `HeaderValueOption.HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// `HeaderMutation`.
#[derive(Debug, Clone)]
pub(super) enum Mutation {
    Append(Addition),
    Remove(HeaderName),
    RemoveOnMatch(StringMatcher),
}

impl HeaderOps {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.additions.is_empty() && self.mutations.is_empty()
    }

    /// Changes a request's head; `%REQ()%` reads the same head.
    pub fn apply_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        self.apply(head, &Ctx::new(info));
    }

    /// Changes a response's head; `request` is what `%REQ()%` reads.
    pub fn apply_response(
        &self,
        head: &mut ResponseHead,
        request: Option<&RequestHead>,
        info: &StreamInfo,
    ) {
        self.apply(head, &Ctx { request, ..Ctx::new(info) });
    }

    /// Changes response trailers, which `%TRAILER()%` reads.
    pub fn apply_trailers(
        &self,
        trailers: &mut HeaderList,
        request: Option<&RequestHead>,
        response: Option<&ResponseHead>,
        info: &StreamInfo,
    ) {
        self.apply(trailers, &Ctx { request, response, ..Ctx::new(info) });
    }

    fn apply<H: Target>(&self, head: &mut H, ctx: &Ctx<'_>) {
        if self.is_empty() {
            return;
        }
        for name in &self.removals {
            head.list().remove(name);
        }
        SCRATCH.with(|cell| {
            let mut scratch = cell.take();
            scratch.clear();
            self.apply_additions(head, ctx, &mut scratch);
            for mutation in &self.mutations {
                scratch.clear();
                apply_mutation(mutation, head, ctx, &mut scratch);
            }
            cell.set(scratch);
        });
    }

    fn apply_additions<H: Target>(&self, head: &mut H, ctx: &Ctx<'_>, scratch: &mut Vec<u8>) {
        if self.additions.is_empty() {
            return;
        }
        // Where in `scratch` the value of each addition stands; `None`: it does not take place.
        let mut values: SmallVec<[Option<(usize, usize)>; 16]> = SmallVec::new();
        for addition in &self.additions {
            let start = scratch.len();
            let wanted = addition.format(head, ctx, scratch);
            values.push(wanted.then_some((start, scratch.len())));
        }
        for overwrites in [true, false] {
            for (addition, value) in self.additions.iter().zip(&values) {
                if let Some((start, end)) = *value
                    && addition.action.overwrites() == overwrites
                {
                    addition.write(head, &scratch[start..end]);
                }
            }
        }
    }
}

thread_local! {
    /// Where values are formatted, given back after each use.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn apply_mutation<H: Target>(
    mutation: &Mutation,
    head: &mut H,
    ctx: &Ctx<'_>,
    scratch: &mut Vec<u8>,
) {
    match mutation {
        Mutation::Append(addition) => {
            if addition.format(head, ctx, scratch) {
                addition.write(head, scratch);
            }
        }
        Mutation::Remove(name) => {
            if !head.remove_special(name) {
                head.list().remove(name);
            }
        }
        Mutation::RemoveOnMatch(matcher) => {
            let mut lower = SmallVec::<[u8; 64]>::new();
            head.list().retain_lines(|name, _| {
                lower.clear();
                lower.extend(name.iter().map(u8::to_ascii_lowercase));
                !matcher.matches(&lower)
            });
        }
    }
}

impl AppendAction {
    fn overwrites(self) -> bool {
        matches!(self, Self::OverwriteIfExistsOrAdd | Self::OverwriteIfExists)
    }
}

impl Addition {
    /// Appends the value to `scratch`; whether the addition takes place.
    fn format<H: Target>(&self, head: &H, ctx: &Ctx<'_>, scratch: &mut Vec<u8>) -> bool {
        match self.action {
            AppendAction::AddIfAbsent if head.contains(&self.name) => return false,
            AppendAction::OverwriteIfExists if !head.contains(&self.name) => return false,
            _ => {}
        }
        let start = scratch.len();
        match &self.value {
            Value::Static(value) => scratch.extend_from_slice(value),
            Value::Format(formatter) => {
                head.with_ctx(ctx, |ctx| formatter.write(ctx, scratch));
                // Nothing that an operator prints may end the line (a decoded query parameter could).
                for byte in &mut scratch[start..] {
                    if matches!(byte, b'\r' | b'\n' | 0) {
                        *byte = b' ';
                    }
                }
            }
        }
        self.keep_empty || scratch.len() > start
    }

    fn write<H: Target>(&self, head: &mut H, value: &[u8]) {
        if self.action.overwrites() {
            head.list().set(&self.name, value);
        } else if head.is_inline(self.inline) && head.contains(&self.name) {
            join(head.list(), &self.name, value);
        } else {
            head.list().append(&self.name, value);
        }
    }
}

/// Envoy keeps certain headers in one line: what is added to them follows a comma.
fn join(list: &mut HeaderList, name: &HeaderName, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    let mut joined = SmallVec::<[u8; 256]>::new();
    for line in list.get_all(name) {
        joined.extend_from_slice(line);
        if !joined.is_empty() {
            joined.push(b',');
        }
    }
    joined.extend_from_slice(value);
    list.set(name, &joined);
}

/// Heads and trailers, as header operations see them.
trait Target {
    fn list(&mut self) -> &mut HeaderList;
    fn contains(&self, name: &HeaderName) -> bool;
    /// One of the headers that Envoy joins by a comma in this kind of head.
    fn is_inline(&self, inline: Inline) -> bool;
    /// Runs with a context that reads this head too.
    fn with_ctx(&self, ctx: &Ctx<'_>, then: impl FnOnce(&Ctx<'_>));
    /// Removes what is no line of the list.
    fn remove_special(&mut self, _name: &HeaderName) -> bool {
        false
    }
}

impl Target for RequestHead {
    fn list(&mut self) -> &mut HeaderList {
        &mut self.headers
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.headers.contains(name)
    }

    fn is_inline(&self, inline: Inline) -> bool {
        inline.request
    }

    fn with_ctx(&self, ctx: &Ctx<'_>, then: impl FnOnce(&Ctx<'_>)) {
        then(&Ctx { request: Some(self), ..*ctx });
    }

    fn remove_special(&mut self, name: &HeaderName) -> bool {
        if *name == names::HOST || name.as_str() == ":authority" {
            self.clear_authority();
            return true;
        }
        name.is_pseudo()
    }
}

impl Target for ResponseHead {
    fn list(&mut self) -> &mut HeaderList {
        &mut self.headers
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.headers.contains(name)
    }

    fn is_inline(&self, inline: Inline) -> bool {
        inline.response
    }

    fn with_ctx(&self, ctx: &Ctx<'_>, then: impl FnOnce(&Ctx<'_>)) {
        then(&Ctx { response: Some(self), ..*ctx });
    }
}

impl Target for HeaderList {
    fn list(&mut self) -> &mut HeaderList {
        self
    }

    fn contains(&self, name: &HeaderName) -> bool {
        HeaderList::contains(self, name)
    }

    fn is_inline(&self, _inline: Inline) -> bool {
        false
    }

    fn with_ctx(&self, ctx: &Ctx<'_>, then: impl FnOnce(&Ctx<'_>)) {
        then(&Ctx { trailers: Some(self), ..*ctx });
    }
}

#[cfg(test)]
#[path = "header_ops_tests.rs"]
mod tests;
