//! `/memory`, and the memory gauges of `server.*`.

use crate::admin::Admin;
use crate::admin::answer::Answer;
use crate::admin::query::Query;

/// What the process holds, in bytes, as the kernel counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::admin) struct Memory {
    /// Anonymous memory that is resident: what the allocator has touched, and stacks.
    pub(in crate::admin) allocated: u64,
    /// Private writable address space.
    pub(in crate::admin) heap: u64,
    /// Resident memory.
    pub(in crate::admin) physical: u64,
}

impl Memory {
    /// Reads `/proc/self/status`; zeros where there is none.
    pub(in crate::admin) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status");
        status.map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes =
                line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kilobytes.unwrap_or(0) * 1024
        };
        Self { allocated: field("RssAnon:"), heap: field("VmData:"), physical: field("VmRSS:") }
    }
}

pub(super) fn memory(_: &Admin, _: &Query) -> Answer {
    let memory = Memory::now();
    Answer::json(format!(
        "{{\n \"allocated\": \"{}\",\n \"heap_size\": \"{}\",\n \"pageheap_unmapped\": \"0\",\n \
         \"pageheap_free\": \"0\",\n \"total_thread_cache\": \"0\",\n \
         \"total_physical_bytes\": \"{}\"\n}}\n",
        memory.allocated, memory.heap, memory.physical
    ))
}
