//! Ends leases: what the lessor says has ended is revoked through the log.

use super::Parts;
use quorate_api::proto::quorate::LeaseRevoke;
use quorate_store::command::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

/// Leases are looked at this often; etcd's period.
const SCAN: Duration = Duration::from_millis(500);

/// Leases revoked by one round of proposals. Puts that arrive meanwhile go between two rounds.
const SLICE: usize = 500;

pub(super) async fn run(parts: Arc<Parts>) {
    let mut scan = interval(SCAN);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        scan.tick().await;
        while let Some((term, ended)) = parts.lessor.expired(SLICE) {
            let wanted = ended.len();
            let revoked = parts.revoke(term, ended).await;
            if revoked > 0 {
                info!(leases = revoked, "leases expired");
            }
            // What was refused is refused at once: asking again at once would do nothing else any more.
            if revoked < wanted {
                break;
            }
        }
    }
}

impl Parts {
    /// Proposes all and waits for all; those without an outcome go back to the lessor. How many have one.
    async fn revoke(&self, term: u64, ended: Vec<i64>) -> usize {
        let propose = |id: i64| {
            let revoke = LeaseRevoke {
                id,
                expired_in_term: term,
            };
            (id, self.proposer.propose(&Command::LeaseRevoke(revoke)))
        };
        let answers: Vec<_> = ended.into_iter().map(propose).collect();
        let mut revoked = 0;
        for (id, answer) in answers {
            let settled = match answer {
                Ok(answer) => matches!(answer.await, Ok(Ok(_))),
                Err(_) => false,
            };
            if settled {
                revoked += 1;
            } else {
                self.lessor.retry(id);
            }
        }
        revoked
    }
}
