//! Log and backend.

use prometheus::{Histogram, IntCounter, IntGauge};
use quorate_runtime::metrics::{Registry, buckets};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Counts for both observers.
pub struct Disk {
    wal_fsync: Histogram,
    wal_write: Histogram,
    wal_bytes: IntGauge,
    commit: Histogram,
    compacted_rows: IntCounter,
    /// Unix time; 0 before the first.
    compaction_last: IntGauge,
    compaction_pause_ms: Histogram,
    compaction_total_ms: Histogram,
    index_pause_ms: Histogram,
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
            compacted_rows: registry.counter(
                "etcd_debugging_mvcc_db_compaction_keys_total",
                "Rows that compaction removed.",
            )?,
            compaction_last: registry.gauge(
                "etcd_debugging_mvcc_db_compaction_last",
                "Unix time at which the last compaction ended; 0 before the first.",
            )?,
            compaction_pause_ms: registry.histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "Time that apply had to wait for one slice of a compaction.",
                &buckets::B7,
            )?,
            compaction_total_ms: registry.histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Time that a whole compaction took.",
                &buckets::B9,
            )?,
            index_pause_ms: registry.histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                "Time that reads had to wait for one slice of a compaction.",
                &buckets::B8,
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

    fn compacted(&self, slice: quorate_store::backend::CompactionSlice) {
        let millis = |took: Duration| took.as_secs_f64() * 1e3;
        self.compacted_rows.inc_by(slice.rows as u64);
        self.compaction_pause_ms.observe(millis(slice.took));
        self.index_pause_ms.observe(millis(slice.index_took));
    }

    fn compaction_ended(&self, took: Duration) {
        self.compaction_total_ms.observe(took.as_secs_f64() * 1e3);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        self.compaction_last.set(now.try_into().unwrap_or(i64::MAX));
    }

    fn fatal(&self, error: &quorate_store::backend::Error) {
        (self.on_fatal)(format!("backend: {error}"));
    }
}
