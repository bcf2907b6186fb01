//! Families of parts that are not here. Dashboards and etcd's own suite look for the names.
//!
//! * `etcd_snap_fsync_*`, `etcd_debugging_snap_save_*`: there is no raft snapshot file. What would be in it stands in the
//!   backend, and is durable with it;
//! * `etcd_snap_db_fsync_*`: a received snapshot is made durable by the backend's commits while it comes, and by none at
//!   its end that would be the sync; `etcd_snap_db_save_total_*` has all of it;
//! * `etcd_debugging_disk_backend_commit_*`: the backend does not commit in such steps;
//! * `etcd_debugging_store_*`: the v2 store; `etcd_grpc_proxy_*`: the proxy. Neither exists;
//! * `etcd_mvcc_hash_*`, `etcd_debugging_auth_revision`: not yet.

use prometheus::Result;
use quorate_runtime::metrics::{Registry, buckets};

/// Registers them, at zero.
pub fn register(registry: &Registry) -> Result<()> {
    let counters = [
        ("etcd_debugging_store_expires_total", "v2 keys that expired."),
        ("etcd_debugging_store_watch_requests_total", "v2 watch requests."),
        (
            "etcd_grpc_proxy_events_coalescing_total",
            "Events that the proxy sent as one.",
        ),
    ];
    for (name, help) in counters {
        registry.counter(name, help)?;
    }
    let gauges = [
        ("etcd_debugging_auth_revision", "Revision of users and roles."),
        ("etcd_debugging_store_watchers", "v2 watchers."),
        ("etcd_grpc_proxy_cache_hits_total", "Hits in the proxy's cache."),
        ("etcd_grpc_proxy_cache_keys_total", "Ranges in the proxy's cache."),
        ("etcd_grpc_proxy_cache_misses_total", "Misses in the proxy's cache."),
        (
            "etcd_grpc_proxy_watchers_coalescing_total",
            "Watchers that the proxy serves with one.",
        ),
    ];
    for (name, help) in gauges {
        registry.gauge(name, help)?;
    }
    let histograms: [(&str, &str, &[f64]); 8] = [
        (
            "etcd_mvcc_hash_duration_seconds",
            "Time that a hash of the backend took.",
            &buckets::B6,
        ),
        (
            "etcd_snap_db_fsync_duration_seconds",
            "Sync of a received snapshot.",
            &buckets::B1,
        ),
        (
            "etcd_snap_fsync_duration_seconds",
            "Sync of a raft snapshot file.",
            &buckets::B1,
        ),
        (
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "Encoding a raft snapshot.",
            &buckets::B1,
        ),
        (
            "etcd_debugging_snap_save_total_duration_seconds",
            "Saving a raft snapshot.",
            &buckets::B1,
        ),
        (
            "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
            "Rebalancing pages in a backend commit.",
            &buckets::B1,
        ),
        (
            "etcd_debugging_disk_backend_commit_spill_duration_seconds",
            "Spilling pages in a backend commit.",
            &buckets::B1,
        ),
        (
            "etcd_debugging_disk_backend_commit_write_duration_seconds",
            "Writing pages in a backend commit.",
            &buckets::B1,
        ),
    ];
    for (name, help, bounds) in histograms {
        registry.histogram(name, help, bounds)?;
    }
    Ok(())
}
