//! Log and backend.

use prometheus::{Histogram, IntGauge};
use quorate_runtime::metrics::{Registry, buckets};
use std::sync::Arc;
use std::time::Duration;

/// Counts for both observers.
pub struct Disk {
    wal_fsync: Histogram,
    wal_write: Histogram,
    wal_bytes: IntGauge,
    commit: Histogram,
    on_fatal: Arc<dyn Fn(String) + Send + Sync>,
}

impl Disk {
    pub fn new(registry: &Registry, on_fatal: Arc<dyn Fn(String) + Send + Sync>) -> prometheus::Result<Self> {
        let histogram = |name, help| registry.histogram(name, help, &buckets::B1);
        Ok(Self {
            wal_fsync: histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "Time that one sync of the log took.",
            )?,
            wal_write: histogram(
                "etcd_disk_wal_write_duration_seconds",
                "Time that one write to the log took.",
            )?,
            wal_bytes: registry.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log.")?,
            commit: histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "Time that one backend commit took.",
            )?,
            on_fatal,
        })
    }
}

impl quorate_wal::Observer for Disk {
    fn batch(&self, bytes: u64, write: Duration, sync: Duration) {
        self.wal_bytes.add(bytes.try_into().unwrap_or(i64::MAX));
        self.wal_write.observe(write.as_secs_f64());
        self.wal_fsync.observe(sync.as_secs_f64());
    }
}

impl quorate_store::backend::Observer for Disk {
    fn committed(&self, stats: quorate_store::backend::CommitStats) {
        self.commit.observe(stats.took.as_secs_f64());
    }

    fn fatal(&self, error: &quorate_store::backend::Error) {
        (self.on_fatal)(format!("backend: {error}"));
    }
}
