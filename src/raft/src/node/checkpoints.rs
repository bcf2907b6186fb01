//! Notes in the log what long leases have left, in slices, so that the next leader goes on from there.

use super::Parts;
use crate::lessor::Remainder;
use quorate_api::proto::quorate::{LeaseCheckpoint, LeaseRemainder};
use quorate_store::command::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Remainders in one command, about 12 KB; as many as etcd's.
const SLICE: usize = 1000;

/// Looked for so often, and ten times a period where that is more often.
const SCAN: Duration = Duration::from_secs(1);

pub(super) async fn run(parts: Arc<Parts>, period: Duration) {
    let mut scan = interval(SCAN.min(period / 10).max(Duration::from_millis(1)));
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        scan.tick().await;
        while let Some((term, remainders)) = parts.lessor.checkpoints(SLICE) {
            let ids: Vec<_> = remainders.iter().map(|left| left.id).collect();
            let answer = parts.proposer.propose(&checkpoint(term, remainders));
            // One after the other: the log is there for others, too.
            let applied = match answer {
                Ok(answer) => matches!(answer.await, Ok(Ok(_))),
                Err(_) => false,
            };
            if !applied {
                ids.into_iter().for_each(|id| parts.lessor.unsettled(term, id));
                break;
            }
        }
    }
}

impl Parts {
    /// Takes back the remainder of a lease that is renewed. Goes on when whoever asked for it has gone: until there is an
    /// outcome, nobody can renew the lease.
    pub(super) fn reset(&self, term: u64, id: i64) {
        let full = Remainder { id, remaining_secs: 0 };
        let lessor = self.lessor.clone();
        match self.proposer.propose(&checkpoint(term, vec![full])) {
            Ok(answer) => {
                crate::runtime::spawn(async move {
                    if !matches!(answer.await, Ok(Ok(_))) {
                        lessor.unsettled(term, id);
                    }
                });
            }
            Err(_) => lessor.unsettled(term, id),
        }
    }
}

fn checkpoint(term: u64, remainders: Vec<Remainder>) -> Command {
    let remainder = |Remainder { id, remaining_secs }| LeaseRemainder { id, remaining_secs };
    Command::LeaseCheckpoint(LeaseCheckpoint {
        term,
        remainders: remainders.into_iter().map(remainder).collect(),
    })
}
