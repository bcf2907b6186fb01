//! How far others are, as the leader sees it.

use super::{Node, Parts};
use crate::peer::{Answer, Lane, Request};
use crate::proposer::ProposeError;
use crate::types::position;
use openraft::async_runtime::{Instant, WatchReceiver};
use quorate_api::proto::quorate::peer::{InSync, in_sync_answer};
use std::collections::BTreeSet;
use std::time::Duration;

/// A learner may be promoted when it has this share of the leader's log, as in etcd.
const IN_SYNC_PERCENT: u64 = 90;

/// Nobody leads at the moment, or the leader is out of reach: asked again after this time.
const PAUSE: Duration = Duration::from_millis(50);

impl Node {
    /// Members that have been in touch with this one for so long without a break, itself among them.
    pub fn connected(&self, since: Duration) -> BTreeSet<u64> {
        let mut connected = self.parts.network.connected(since);
        connected.insert(self.member());
        connected
    }

    /// Whether a learner's log is close enough to the leader's to be promoted. Any member can be asked. The caller sets
    /// the time limit.
    pub async fn is_in_sync(&self, learner: u64) -> Result<bool, ProposeError> {
        let parts = &self.parts;
        let mut led = self.led();
        loop {
            let leader = led.borrow_and_update().leader;
            if let Some(known) = parts.is_in_sync_here(learner) {
                return Ok(known);
            }
            if let Some(leader) = leader {
                let asked = parts
                    .network
                    .call(leader, Lane::Control, Request::InSync(InSync { id: learner }));
                if let Ok(Ok(Answer::InSync(answer))) = asked.await {
                    match answer.state() {
                        in_sync_answer::State::Yes => return Ok(true),
                        in_sync_answer::State::No => return Ok(false),
                        in_sync_answer::State::NotLeader => {}
                    }
                }
            }
            if matches!(tokio::time::timeout(PAUSE, led.changed()).await, Ok(Err(_))) {
                return Err(ProposeError::Stopped);
            }
        }
    }
}

impl Parts {
    /// `None`: this member does not lead.
    pub(crate) fn is_in_sync_here(&self, learner: u64) -> Option<bool> {
        let own = self.last_log()?;
        let matched = self.matched(learner);
        Some(u128::from(matched) * 100 >= u128::from(own) * u128::from(IN_SYNC_PERCENT))
    }

    /// The position of this leader's last entry. `None`: this member does not lead.
    pub(super) fn last_log(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.replication.as_ref()?;
        Some(metrics.last_log_index.map_or(0, position))
    }

    /// Up to where a member is known to have this leader's log; 0 for those that nothing is known of.
    pub(super) fn matched(&self, member: u64) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref();
        let matched = replication.and_then(|all| all.get(&member).copied().flatten());
        matched.map_or(0, |id| position(id.index))
    }

    /// Whether a member has answered this leader within the time.
    pub(super) fn has_answered(&self, member: u64, within: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heartbeat = metrics.heartbeat.as_ref();
        let last = heartbeat.and_then(|all| all.get(&member).cloned().flatten());
        last.is_some_and(|at| at.elapsed() <= within)
    }
}
