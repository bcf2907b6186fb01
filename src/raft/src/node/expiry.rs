//! Ends leases: what the lessor says has ended is revoked through the log.
//!
//! A revocation carries the term in which the lessor saw the end, and does nothing in an entry of another. Whatever
//! happens between the look at the clock and the entry (the process may be stopped for minutes) no lease goes that a
//! later leader has renewed: an entry of term T that is applied comes before the first entry of every later term, and a
//! leader renews only when it has applied the first of its own. A lease that it could renew was not revoked, then. Within
//! its own term the lessor remembers whose revocation is on its way, also while the leader hears of no quorum.
//!
//! So a leader that was deposed could do no harm. It asks all the same before it proposes anything, unless it heard of a
//! quorum just now: what it proposed would have to be overwritten.

use super::Parts;
use quorate_api::Error;
use quorate_api::proto::quorate::LeaseRevoke;
use quorate_store::command::{Command, Reply};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::info;

/// Leases are looked at this often; etcd's period.
const SCAN: Duration = Duration::from_millis(500);

/// Leases revoked by one round of proposals. Puts that arrive meanwhile go between two rounds.
const SLICE: usize = 500;

/// Each revocation that an alarm forbids leaves an entry in the log: they come again after this time, as in etcd.
const FORBIDDEN: Duration = Duration::from_secs(3);

pub(super) async fn run(parts: Arc<Parts>) {
    let mut scan = interval(SCAN);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        scan.tick().await;
        while let Some(term) = parts.lessor.is_due() {
            if parts.confirm(term).await.is_err() {
                break;
            }
            // Renewed meanwhile, or no leader any more.
            let Some((term, ended)) = parts.lessor.expired(SLICE) else {
                break;
            };
            let wanted = ended.len();
            let Round {
                revoked,
                settled,
                forbidden,
            } = parts.revoke(term, ended).await;
            if revoked > 0 {
                info!(leases = revoked, "leases expired");
            }
            if forbidden {
                sleep(FORBIDDEN).await;
            }
            // What was refused is refused at once: asking again at once would do nothing else any more.
            if settled < wanted {
                break;
            }
        }
    }
}

#[derive(Default)]
struct Round {
    /// Revocations that did their work.
    revoked: usize,
    /// Those that need not come again. They may have done nothing in another term, or a client was first.
    settled: usize,
    /// An alarm forbids them.
    forbidden: bool,
}

impl Parts {
    /// Proposes all and waits for all; those without an outcome go back to the lessor.
    async fn revoke(&self, term: u64, ended: Vec<i64>) -> Round {
        let propose = |id: i64| {
            let revoke = LeaseRevoke {
                id,
                expired_in_term: term,
            };
            (id, self.proposer.propose(&Command::LeaseRevoke(revoke)))
        };
        let answers: Vec<_> = ended.into_iter().map(propose).collect();
        let mut round = Round::default();
        for (id, answer) in answers {
            let outcome = match answer {
                Ok(answer) => answer.await.ok().and_then(Result::ok),
                Err(_) => None,
            };
            match outcome.map(|outcome| outcome.result) {
                Some(Ok(Reply::LeaseRevoke)) => {
                    round.settled += 1;
                    round.revoked += 1;
                }
                Some(Ok(_) | Err(Error::LeaseNotFound)) => round.settled += 1,
                Some(Err(_)) => {
                    round.forbidden = true;
                    self.lessor.retry(id);
                }
                None => self.lessor.retry(id),
            }
        }
        round
    }
}
