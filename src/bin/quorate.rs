//! `quorate`: the node.

use std::process::ExitCode;

// Measured against the system's allocator: less CPU per call and less memory held after a load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quorate_server::main()
}
