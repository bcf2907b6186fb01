//! How large everything is.

use std::time::Duration;

/// How much data the workloads work on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Keys that puts are spread over.
    pub put_keys: u64,
    /// Keys loaded for single-key reads.
    pub get_keys: u64,
    /// Prefixes of 500 keys each, listed again and again.
    pub list_prefixes: u64,
    /// Prefixes of 500 keys each, each listed once after a restart.
    pub cold_prefixes: u64,
    pub kube_objects: u64,
    /// Leases granted ahead of each revoke window.
    pub revoke_leases: u64,
    pub memory_keys: u64,
    pub watchers: u64,
    /// Times that the leader is killed or stopped.
    pub repeats: usize,
    /// Keys and values that a new member has to fetch.
    pub join_bytes: u64,
    /// Puts per second meanwhile.
    pub join_rate: u64,
    /// Length of the warm-up before each window.
    pub warm_up: Duration,
}

pub const FULL: Scale = Scale {
    put_keys: 100_000,
    get_keys: 10_000,
    list_prefixes: 20,
    cold_prefixes: 200,
    kube_objects: 10_000,
    revoke_leases: 5_000,
    memory_keys: 1_000_000,
    watchers: 10_000,
    repeats: 10,
    join_bytes: 1 << 30,
    join_rate: 100,
    warm_up: Duration::from_secs(1),
};

pub const QUICK: Scale = Scale {
    put_keys: 10_000,
    get_keys: 1_000,
    list_prefixes: 4,
    cold_prefixes: 20,
    kube_objects: 6_000,
    revoke_leases: 500,
    memory_keys: 20_000,
    watchers: 1_000,
    repeats: 2,
    join_bytes: 4 << 20,
    join_rate: 100,
    warm_up: Duration::from_millis(100),
};
