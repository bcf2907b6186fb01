//! What apply did, whoever asked for it: counted where it happens, so that transactions, expired leases and what a
//! restart repeats are in it.

use super::timed::Timed;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter};
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_raft::{Observer, Op};
use quorate_runtime::metrics::{Registry, buckets};
use quorate_store::command::{Outcome, Reply};
use std::time::Duration;
use tracing::warn;

pub struct Applied {
    took: Timed,
    /// `--warning-apply-duration`
    slow: Duration,
    slow_total: IntCounter,
    ranges: IntCounter,
    txns: IntCounter,
    leases_granted: IntCounter,
    leases_revoked: IntCounter,
    leases_expired: IntCounter,
    /// Seconds asked for.
    lease_ttl: Histogram,
}

impl Applied {
    /// `ranges` and `txns` are also counted where nothing is applied: reads are not replicated.
    pub fn new(registry: &Registry, slow: Duration, ranges: IntCounter, txns: IntCounter) -> prometheus::Result<Self> {
        let counter = |name, help| registry.counter(name, help);
        // There is one version, so it is no label that tells kinds apart.
        let took = HistogramVec::new(
            HistogramOpts::new(
                "etcd_server_apply_duration_seconds",
                "Time that applying one command took, as its share of its entry.",
            )
            .const_label("version", "v3")
            .buckets(buckets::B2.to_vec()),
            &["op", "success"],
        )?;
        let took = registry.register(took)?;
        Ok(Self {
            took: Timed::new(took, Op::ALL.len()),
            slow,
            slow_total: counter(
                "etcd_server_slow_apply_total",
                "Entries whose applying took longer than --warning-apply-duration.",
            )?,
            ranges,
            txns,
            leases_granted: counter("etcd_debugging_lease_granted_total", "Leases granted.")?,
            leases_revoked: counter("etcd_debugging_lease_revoked_total", "Leases that ended.")?,
            leases_expired: counter(
                "etcd_debugging_server_lease_expired_total",
                "Leases that ended by the leader's clock.",
            )?,
            lease_ttl: registry.histogram(
                "etcd_debugging_lease_ttl_total",
                "Times to live of granted leases, in seconds.",
                &buckets::TTL,
            )?,
        })
    }

    fn count(&self, op: Op, reply: &Reply) {
        match reply {
            Reply::Txn(response) => {
                let ops = Ops::of(response);
                self.ranges.inc_by(ops.ranges);
                if ops.all > 1 {
                    self.txns.inc();
                }
            }
            Reply::LeaseGrant { ttl_secs, .. } => {
                self.leases_granted.inc();
                self.lease_ttl.observe(*ttl_secs as f64);
            }
            Reply::LeaseRevoke => {
                self.leases_revoked.inc();
                if op == Op::LeaseExpire {
                    self.leases_expired.inc();
                }
            }
            _ => {}
        }
    }
}

/// Operations that a transaction executed, those of inner ones included.
#[derive(Default)]
struct Ops {
    all: u64,
    ranges: u64,
}

impl Ops {
    fn of(response: &pb::TxnResponse) -> Self {
        let mut ops = Self::default();
        let mut left = vec![response];
        while let Some(txn) = left.pop() {
            for response in txn.responses.iter().filter_map(|op| op.response.as_ref()) {
                match response {
                    Response::ResponseTxn(inner) => left.push(inner),
                    Response::ResponseRange(_) => {
                        ops.all += 1;
                        ops.ranges += 1;
                    }
                    Response::ResponsePut(_) | Response::ResponseDeleteRange(_) => ops.all += 1,
                }
            }
        }
        ops
    }
}

impl Observer for Applied {
    fn applied(&self, ops: &[Op], outcomes: &[Outcome], took: Duration) {
        let share = took / u32::try_from(ops.len()).unwrap_or(u32::MAX).max(1);
        for (op, outcome) in ops.iter().zip(outcomes) {
            let success = outcome.result.is_ok();
            self.took.observe(*op as usize, Some(op.name()), success, share);
            if let Ok(reply) = &outcome.result {
                self.count(*op, reply);
            }
        }
        if took > self.slow {
            self.slow_total.inc();
            warn!(took = ?took, "expected-duration" = ?self.slow, commands = ops.len(), "apply request took too long");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_api::Revision;

    fn txn(responses: Vec<Response>) -> pb::TxnResponse {
        let op = |response| pb::ResponseOp {
            response: Some(response),
        };
        pb::TxnResponse {
            responses: responses.into_iter().map(op).collect(),
            ..Default::default()
        }
    }

    fn outcome(reply: Reply) -> Outcome {
        Outcome {
            revision: Revision(1),
            result: Ok(reply),
        }
    }

    #[test]
    fn what_transactions_do_inside_is_counted() {
        let registry = Registry::new();
        let counter = |name| registry.counter(name, name).unwrap();
        let (ranges, txns) = (counter("ranges"), counter("txns"));
        let applied = Applied::new(&registry, Duration::from_millis(100), ranges.clone(), txns.clone()).unwrap();
        let range = || Response::ResponseRange(Default::default());
        let put = || Response::ResponsePut(Default::default());
        let nested = txn(vec![Response::ResponseTxn(txn(vec![range(), put()]))]);
        let single = txn(vec![put()]);
        let outcomes = [outcome(Reply::Txn(nested)), outcome(Reply::Txn(single))];
        applied.applied(&[Op::Txn; 2], &outcomes, Duration::from_millis(1));
        assert_eq!((ranges.get(), txns.get()), (1, 1));
        let page = registry.scrape();
        let line = r#"etcd_server_apply_duration_seconds_count{op="Txn",success="true",version="v3"} 2"#;
        assert!(page.lines().any(|have| have == line), "{page}");
        assert!(page.contains("etcd_server_slow_apply_total 0"));

        applied.applied(
            &[Op::LeaseExpire],
            &[outcome(Reply::LeaseRevoke)],
            Duration::from_secs(1),
        );
        let page = registry.scrape();
        for line in [
            "etcd_server_slow_apply_total 1",
            "etcd_debugging_lease_revoked_total 1",
            "etcd_debugging_server_lease_expired_total 1",
        ] {
            assert!(page.lines().any(|have| have == line), "{line}");
        }
    }
}
