//! The binary `outrigger`: an allocator, and the server's exit code.

use std::process::ExitCode;

use outrigger::http_filters::ExtraFilters;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    outrigger::server::main(std::env::args_os(), &ExtraFilters::default())
}
