//! What was done to the store by this process: counted from events where they tell, and by handlers where not.

use prometheus::{Histogram, IntCounter, IntGauge};
use quorate_runtime::metrics::{Registry, buckets};
use quorate_store::event::{EventBatch, EventKind};
use std::sync::Arc;

/// Handles, looked up once.
pub struct Counts {
    puts: IntCounter,
    deletes: IntCounter,
    put_bytes: IntGauge,
    /// Range operations, those of transactions included.
    pub ranges: IntCounter,
    /// Transactions of more than one operation.
    pub txns: IntCounter,
    pub leases_granted: IntCounter,
    pub leases_renewed: IntCounter,
    pub leases_revoked: IntCounter,
    /// Seconds asked for.
    pub lease_ttl: Histogram,
}

impl Counts {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help| registry.counter(name, help);
        Ok(Self {
            puts: counter("etcd_mvcc_put_total", "Puts applied.")?,
            deletes: counter("etcd_mvcc_delete_total", "Keys deleted.")?,
            put_bytes: registry.gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of keys and values put.",
            )?,
            ranges: counter("etcd_mvcc_range_total", "Ranges read.")?,
            txns: counter("etcd_mvcc_txn_total", "Transactions of more than one operation.")?,
            leases_granted: counter("etcd_debugging_lease_granted_total", "Leases granted.")?,
            leases_renewed: counter("etcd_debugging_lease_renewed_total", "Renewals, handled as leader.")?,
            leases_revoked: counter("etcd_debugging_lease_revoked_total", "Leases revoked by clients.")?,
            lease_ttl: registry.histogram(
                "etcd_debugging_lease_ttl_total",
                "Times to live that were asked for, in seconds.",
                &buckets::TTL,
            )?,
        })
    }

    /// Called by the applying thread for what it has just applied.
    pub fn applied(&self, batches: &[Arc<EventBatch>]) {
        let (mut puts, mut deletes, mut bytes) = (0, 0, 0);
        for event in batches.iter().flat_map(|batch| &batch.events) {
            match &event.kind {
                EventKind::Put { value, .. } => {
                    puts += 1;
                    bytes += event.key.len() + value.len();
                }
                EventKind::Delete => deletes += 1,
            }
        }
        self.puts.inc_by(puts);
        self.deletes.inc_by(deletes);
        self.put_bytes.add(bytes.try_into().unwrap_or(i64::MAX));
    }
}
