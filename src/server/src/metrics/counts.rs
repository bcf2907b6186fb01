//! What was done to the store by this process: counted from events where they tell, and by handlers where not.

use super::timed::Timed;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use quorate_api::Status;
use quorate_raft::Op;
use quorate_runtime::metrics::{Registry, buckets};
use quorate_store::event::{EventBatch, EventKind};
use std::sync::Arc;
use std::time::Duration;

/// Requests that are not replicated, behind those that are.
const RANGE: usize = Op::ALL.len();
const READ_ONLY_TXN: usize = RANGE + 1;

/// What a watch stream was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A watcher was created or has ended.
    Control,
    Progress,
    Events(usize),
}

/// A stream that carries more than one message, for `etcd_network_server_stream_failures_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamApi {
    Watch,
    LeaseKeepAlive,
}

/// Handles, looked up once.
pub struct Counts {
    puts: IntCounter,
    deletes: IntCounter,
    put_bytes: IntGauge,
    /// Range operations, those of transactions included.
    pub ranges: IntCounter,
    /// Transactions of more than one operation.
    pub txns: IntCounter,
    pub leases_renewed: IntCounter,
    /// Read barriers that timed out.
    pub slow_reads: IntCounter,
    learners_promoted: IntCounter,
    promotions_failed: IntCounterVec,
    /// HashKV, in seconds.
    pub hash_took: Histogram,
    /// 1 while this member is defragmented.
    pub defragmenting: IntGauge,
    pub defrag_took: Histogram,
    range_took: Timed,
    request_took: Timed,
    told_control: Histogram,
    told_progress: Histogram,
    told_events: Histogram,
    told_per_event: Histogram,
    stream_failures: IntCounterVec,
}

impl Counts {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help| registry.counter(name, help);
        let sending = |what: &str, help| {
            let name = format!("etcd_debugging_server_watch_send_loop_{what}_seconds");
            registry.histogram(&name, help, &buckets::B1)
        };
        let range_took = registry.histogram_vec(
            "etcd_server_range_duration_seconds",
            "Time that selecting a range took.",
            &["success"],
            &buckets::B2,
        )?;
        let request_took = registry.histogram_vec(
            "etcd_server_request_duration_seconds",
            "Time from a request's checks to its outcome.",
            &["type", "success"],
            &buckets::B1,
        )?;
        Ok(Self {
            puts: counter("etcd_mvcc_put_total", "Puts applied.")?,
            deletes: counter("etcd_mvcc_delete_total", "Keys deleted.")?,
            put_bytes: registry.gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of keys and values put.",
            )?,
            ranges: counter("etcd_mvcc_range_total", "Ranges read.")?,
            txns: counter("etcd_mvcc_txn_total", "Transactions of more than one operation.")?,
            leases_renewed: counter("etcd_debugging_lease_renewed_total", "Renewals, handled as leader.")?,
            slow_reads: counter("etcd_server_slow_read_indexes_total", "Read barriers that timed out.")?,
            learners_promoted: counter(
                "etcd_server_learner_promote_successes",
                "Learners that were promoted at this member's request.",
            )?,
            promotions_failed: registry.counter_vec(
                "etcd_server_learner_promote_failures",
                "Learners that could not be promoted at this member's request.",
                &["Reason"],
            )?,
            hash_took: registry.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "Time that a hash of keys and values took.",
                &buckets::B6,
            )?,
            defragmenting: registry.gauge("etcd_disk_defrag_inflight", "1 while the backend is defragmented.")?,
            defrag_took: registry.histogram(
                "etcd_disk_backend_defrag_duration_seconds",
                "Time that a defragmentation took.",
                &buckets::B4,
            )?,
            range_took: Timed::new(range_took, 1),
            request_took: Timed::new(request_took, READ_ONLY_TXN + 1),
            told_control: sending("control_stream_duration", "Time to send one answer to a watch request.")?,
            told_progress: sending("progress_duration", "Time to send one progress notice.")?,
            told_events: sending("watch_stream_duration", "Time to send one response with events.")?,
            told_per_event: sending(
                "watch_stream_duration_per_event",
                "Time to send one response with events, divided by their number.",
            )?,
            stream_failures: registry.counter_vec(
                "etcd_network_server_stream_failures_total",
                "Streams that broke while a message was received or sent.",
                &["Type", "API"],
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

    /// A selection, its wait for the barrier not included.
    pub fn selected(&self, success: bool, took: Duration) {
        self.ranges.inc();
        self.range_took.observe(0, None, success, took);
    }

    /// A Range request, as its client waits for it.
    pub fn range_answered(&self, success: bool, took: Duration) {
        self.request_took.observe(RANGE, Some("Range"), success, took);
    }

    pub fn read_only_txn_answered(&self, ranges: usize, took: Duration) {
        self.ranges.inc_by(ranges as u64);
        if ranges > 1 {
            self.txns.inc();
        }
        self.request_took
            .observe(READ_ONLY_TXN, Some("ReadonlyTxn"), true, took);
    }

    /// A replicated request.
    pub fn proposed(&self, op: Op, success: bool, took: Duration) {
        self.request_took.observe(op as usize, Some(op.name()), success, took);
    }

    /// The promotion of a learner that was asked for here.
    pub fn promoted(&self, result: Result<(), &Status>) {
        match result {
            Ok(()) => self.learners_promoted.inc(),
            Err(status) => self.promotions_failed.with_label_values(&[&status.message[..]]).inc(),
        }
    }

    pub fn told(&self, what: Told, took: Duration) {
        let secs = took.as_secs_f64();
        match what {
            Told::Control => self.told_control.observe(secs),
            Told::Progress => self.told_progress.observe(secs),
            Told::Events(events) => {
                self.told_events.observe(secs);
                self.told_per_event.observe(secs / events.max(1) as f64);
            }
        }
    }

    /// A stream broke, other than by its client's wish.
    pub fn receive_failed(&self, api: StreamApi) {
        self.stream_failed("receive", api);
    }

    pub fn send_failed(&self, api: StreamApi) {
        self.stream_failed("send", api);
    }

    fn stream_failed(&self, kind: &str, api: StreamApi) {
        let api = match api {
            StreamApi::Watch => "watch",
            StreamApi::LeaseKeepAlive => "lease-keepalive",
        };
        self.stream_failures.with_label_values(&[kind, api]).inc();
    }
}
