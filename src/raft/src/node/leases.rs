//! Keepalive and time to live: the leader's deadlines, held against applied state. Any member can be asked; one that does
//! not lead asks the leader.
//!
//! Apply changes the store, lets watchers know, and tells the lessor last. In between the lessor still has a lease that
//! everybody saw go, or lacks one that everybody saw come; an answer from it alone would contradict what its caller has
//! seen.

use super::{Node, Parts};
use crate::lessor::{Renewal, TimeToLive};
use crate::peer::{Answer, Lane, Request};
use quorate_api::LeaseId;
use quorate_api::proto::quorate::peer::{LeaseAnswer, LeaseAsk, lease_answer};
use std::time::Duration;

/// Nobody leads at the moment, or the leader is out of reach: asked again after this time.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no answer about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("this member does not lead and keeps no deadlines")]
    NotLeader,
    #[error("the node is stopping")]
    Stopped,
}

impl Node {
    /// Lets a lease live on for its full TTL from now, which is returned in seconds; `None`: there is no such lease. The
    /// caller sets the time limit.
    ///
    /// For a lease that has ended the answer waits for its revocation, so that "gone" is true when it is said.
    pub async fn renew(&self, id: i64) -> Result<Option<i64>, LeaseError> {
        let mut led = self.led();
        loop {
            led.borrow_and_update();
            match self.parts.renew_here(id).await {
                Err(LeaseError::NotLeader) => {}
                answer => return answer,
            }
            match self.ask_leader(Request::LeaseRenew(LeaseAsk { id })).await {
                Some(answer) if answer.state() == lease_answer::State::Alive => return Ok(Some(answer.granted_secs)),
                Some(answer) if answer.state() == lease_answer::State::Gone => return Ok(None),
                _ => {}
            }
            if matches!(tokio::time::timeout(PAUSE, led.changed()).await, Ok(Err(_))) {
                return Err(LeaseError::Stopped);
            }
        }
    }

    /// How long a lease has left; `None`: there is no such lease. The caller sets the time limit.
    pub async fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, LeaseError> {
        let mut led = self.led();
        loop {
            led.borrow_and_update();
            match self.parts.time_to_live_here(id).await {
                Err(LeaseError::NotLeader) => {}
                answer => return answer,
            }
            match self.ask_leader(Request::LeaseTimeToLive(LeaseAsk { id })).await {
                Some(answer) if answer.state() == lease_answer::State::Alive => {
                    return Ok(Some(TimeToLive {
                        granted_secs: answer.granted_secs,
                        remaining_secs: answer.remaining_secs,
                    }));
                }
                Some(answer) if answer.state() == lease_answer::State::Gone => return Ok(None),
                _ => {}
            }
            if matches!(tokio::time::timeout(PAUSE, led.changed()).await, Ok(Err(_))) {
                return Err(LeaseError::Stopped);
            }
        }
    }

    /// `None`: nobody else leads, or it has no answer.
    async fn ask_leader(&self, request: Request) -> Option<LeaseAnswer> {
        let leader = self.leader().filter(|leader| *leader != self.member())?;
        match self.parts.network.call(leader, Lane::Control, request).await {
            Ok(Ok(Answer::Lease(answer))) => Some(answer),
            _ => None,
        }
    }
}

impl Parts {
    /// [`Node::renew`], where this member leads.
    pub(crate) async fn renew_here(&self, id: i64) -> Result<Option<i64>, LeaseError> {
        let mut applied = self.applied.clone();
        loop {
            applied.borrow_and_update();
            match self.lessor.renew(id) {
                Renewal::Renewed { ttl_secs } => return Ok(self.is_stored(id).then_some(ttl_secs)),
                Renewal::NotLeader => return Err(LeaseError::NotLeader),
                Renewal::Unknown if !self.is_stored(id) => return Ok(None),
                Renewal::Unknown | Renewal::Ending => applied.changed().await.map_err(|_| LeaseError::Stopped)?,
            }
        }
    }

    /// [`Node::time_to_live`], where this member leads.
    pub(crate) async fn time_to_live_here(&self, id: i64) -> Result<Option<TimeToLive>, LeaseError> {
        let mut applied = self.applied.clone();
        loop {
            applied.borrow_and_update();
            let left = self.lessor.time_to_live(id).map_err(|_| LeaseError::NotLeader)?;
            match (left, self.is_stored(id)) {
                (_, false) => return Ok(None),
                (Some(left), true) => return Ok(Some(left)),
                (None, true) => applied.changed().await.map_err(|_| LeaseError::Stopped)?,
            }
        }
    }

    fn is_stored(&self, id: i64) -> bool {
        self.store.lease(LeaseId(id)).is_some()
    }
}
