//! `compare`: etcd and Quorate in turn, under the same clients, in one table. See the README beside this package.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quorate_bench::main()
}
