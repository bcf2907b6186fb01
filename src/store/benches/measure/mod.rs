//! What several benchmarks count by.

use std::time::Duration;

pub fn key(n: u64) -> String {
    // Scattered, as names are.
    format!("/registry/pods/namespace/{:039}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// CPU time of this thread: on a shared machine, time on the wall says little.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}
