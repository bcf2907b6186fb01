//! Leadership given away: on demand, and before the leader ends.
//!
//! openraft takes no more writes and sends no more heartbeats from the moment a transfer begins, so a target that can't
//! take over costs an election timeout. The target is therefore a voter that has answered lately and has the whole log;
//! writes wait in the proposer's queue until somebody leads again, and go there.

use super::{Node, Parts};
use crate::leadership::Led;
use openraft::async_runtime::WatchReceiver;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// A target gets so long to win its election; then another is tried.
const TARGET_PATIENCE: Duration = Duration::from_millis(200);

/// How often progress is looked at while a target catches up.
const POLL: Duration = Duration::from_millis(2);

/// Why leadership is still where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("this member does not lead")]
    NotLeader,
    #[error("the target is no voter of the cluster")]
    BadTarget,
    #[error("the target did not take over in time")]
    Timeout,
}

impl Node {
    /// Gives leadership to `target`, within `limit`. To give it to the leader itself is done at once.
    pub async fn transfer(&self, target: u64, limit: Duration) -> Result<(), TransferError> {
        let parts = &self.parts;
        if !parts.leads() {
            return Err(TransferError::NotLeader);
        }
        if target == parts.identity.member {
            return Ok(());
        }
        if !parts.voters().contains(&target) {
            return Err(TransferError::BadTarget);
        }
        let given = timeout(limit, parts.give_to(&[target])).await;
        parts.proposer.hold(false);
        // Another may have been elected because the target did not answer.
        match given {
            Ok(Some(leader)) if leader == target => Ok(()),
            _ => Err(TransferError::Timeout),
        }
    }

    /// Gives leadership to whoever can take it, within `limit`; true when this member does not lead any more. What clients
    /// bring from now on waits for the next leader.
    pub async fn hand_over(&self, limit: Duration) -> bool {
        let parts = &self.parts;
        let own = parts.identity.member;
        let others: Vec<u64> = parts.voters().into_iter().filter(|id| *id != own).collect();
        if !parts.leads() {
            return true;
        }
        if others.is_empty() {
            return false;
        }
        let given = timeout(limit, parts.give_to(&others)).await.is_ok();
        parts.proposer.hold(false);
        if !given {
            warn!("nobody took over leadership in time");
        }
        given
    }
}

impl Parts {
    pub(super) fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect()
    }

    /// Tries the candidates, the furthest first, until this member does not lead any more; who does, if that is known.
    ///
    /// Only while a candidate is being tried nothing is handed to consensus: with nobody to try, work goes on.
    pub(super) async fn give_to(&self, candidates: &[u64]) -> Option<u64> {
        let mut led = self.view.led.subscribe();
        let mut tried = BTreeSet::new();
        loop {
            let connected = self.network.connected(Duration::ZERO);
            let best = candidates
                .iter()
                .copied()
                .filter(|id| !tried.contains(id) && connected.contains(id) && self.has_answered(*id, self.election))
                .max_by_key(|id| self.matched(*id));
            let Some(target) = best else {
                // All were tried: once more, they may be reachable again.
                tried.clear();
                self.proposer.hold(false);
                sleep(POLL).await;
                if !self.leads() {
                    return led.borrow().leader;
                }
                continue;
            };
            tried.insert(target);
            self.proposer.hold(true);
            let begun = Instant::now();
            while self.last_log().is_some_and(|last| self.matched(target) < last) && begun.elapsed() < TARGET_PATIENCE {
                sleep(POLL).await;
            }
            info!(target = format_args!("{target:x}"), "transferring leadership");
            if self.raft.trigger().transfer_leader(target).await.is_err() {
                return None;
            }
            if let Ok(leader) = timeout(TARGET_PATIENCE, led_elsewhere(&mut led, self.identity.member)).await {
                return leader;
            }
        }
    }
}

/// Returns when another member is known to lead.
async fn led_elsewhere(led: &mut Led, own: u64) -> Option<u64> {
    let elsewhere = led.wait_for(|now| now.leader.is_some_and(|leader| leader != own));
    let leader = elsewhere.await.map(|now| now.leader);
    match leader {
        Ok(leader) => leader,
        Err(_) => std::future::pending().await,
    }
}
