//! Whether this member leads for certain: one that was cut off or stood still may lead in its own eyes only.
//!
//! ```text
//!   a quorum answered what was sent at s           elected at e > s             deadlines from e + election timeout on
//!   ────┼──────────────────┼───────────────────────────┼─────────────────────────────────┼──►
//!       s ◄── CERTAIN ────►                             another leader
//! ```
//!
//! Whoever is elected next needs a vote of one of those who answered, and got it after that answer. So a renewal by this
//! member's clock, at t < s + [`certain_for`], was made before e + [`certain_for`]. The other gives every lease its TTL from
//! e + election timeout on, which is later by half an election timeout: what either clock may err, or what the members'
//! settings may differ by. Whether the voters keep their own promise to wait does not matter, nor whether they have
//! restarted meanwhile or have voted because leadership was given away. Remainders in the log are taken back before a
//! renewal is answered, so they are not in the way.

use super::Parts;
use super::leases::LeaseError;
use openraft::async_runtime::{Instant, WatchReceiver};
use std::time::Duration;

/// For so long after what a quorum has answered was sent.
fn certain_for(election: Duration) -> Duration {
    election / 2
}

impl Parts {
    /// Returns when this member was the leader of `term` at some time after the call, or, to the same effect, when no
    /// leader elected since can shorten what this one said before the call. Mostly that is known without asking anybody.
    /// The caller sets the time limit.
    pub(super) async fn confirm(&self, term: u64) -> Result<(), LeaseError> {
        #[cfg(feature = "planted")]
        if quorate_store::planted::is(quorate_store::planted::Bug::LeaseRenewedByDeposed)
            || quorate_store::planted::is(quorate_store::planted::Bug::StaleLeaseRevoke)
        {
            return Ok(());
        }
        if self.leads_lately(term) {
            return Ok(());
        }
        // Not sent yet, so a quorum that answers it has seen no later leader by now.
        self.barrier.index().await.map_err(|_| LeaseError::Stopped)?;
        // Another leader may have been the one that answered.
        if self.leads_in(term) {
            Ok(())
        } else {
            Err(LeaseError::NotLeader)
        }
    }

    fn leads_lately(&self, term: u64) -> bool {
        if !self.leads_in(term) {
            return false;
        }
        if self.alone.is_alone() {
            return true;
        }
        let metrics = self.raft.metrics();
        let acknowledged = metrics.borrow_watched().last_quorum_acked;
        acknowledged.is_some_and(|at| at.into_inner().elapsed() < certain_for(self.election))
    }

    /// By what consensus last said.
    fn leads_in(&self, term: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader == Some(self.identity.member);
        leader && metrics.vote.committed && metrics.vote.leader_id.term == term
    }
}
