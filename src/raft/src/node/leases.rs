//! Keepalive and time to live: the leader's deadlines, held against applied state. Any member can be asked; one that does
//! not lead asks the leader.
//!
//! ```text
//!   asked member ── not leading: applied position, id ──► leader ── applies as much ── lessor ── leads for certain? ──► answer
//!        └── "gone": waits until its own state says so ◄────────────────────────────────────────────────────────────┘
//! ```
//!
//! Apply changes the store, lets watchers know, and tells the lessor last. In between the lessor still has a lease that
//! everybody saw go, or lacks one that everybody saw come; an answer from it alone would contradict what its caller has
//! seen.

use super::{Node, Parts};
use crate::lessor::{Renewal, TimeToLive};
use crate::peer::{Answer, Lane, Request};
use crate::runtime::watch;
use crate::types::position;
use openraft::async_runtime::WatchReceiver;
use quorate_api::LeaseId;
use quorate_api::proto::quorate::peer::{LeaseAnswer, LeaseAsk, lease_answer};
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;

/// Nobody leads at the moment, or the leader is out of reach: asked again after this time.
const PAUSE: Duration = Duration::from_millis(20);

/// The leader gets so long for an answer, then whoever leads then is asked. It may stand still.
const ANSWER: Duration = Duration::from_millis(500);

/// Not everything that a renewal waits for is an apply.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
        let here = || self.parts.renew_here(id);
        self.ask_about(id, here, Request::LeaseRenew).await
    }

    /// How long a lease has left; `None`: there is no such lease. The caller sets the time limit.
    pub async fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, LeaseError> {
        let here = || self.parts.time_to_live_here(id);
        self.ask_about(id, here, Request::LeaseTimeToLive).await
    }

    /// Asks here, and the leader if that is another, until one knows.
    async fn ask_about<T, F>(
        &self,
        id: i64,
        here: impl Fn() -> F,
        request: fn(LeaseAsk) -> Request,
    ) -> Result<Option<T>, LeaseError>
    where
        F: Future<Output = Result<Option<T>, LeaseError>>,
        T: FromLeader,
    {
        let parts = &self.parts;
        let mut led = self.led();
        loop {
            led.borrow_and_update();
            match here().await {
                Err(LeaseError::NotLeader) => {}
                answer => return answer,
            }
            let was_stored = parts.is_stored(id);
            let applied = *parts.applied.borrow();
            let asked = tokio::select! {
                answer = timeout(ANSWER, self.ask_leader(request(LeaseAsk { id, applied }))) => answer.ok().flatten(),
                // Who leads now may be in reach.
                changed = led.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(LeaseError::Stopped),
                },
            };
            match asked {
                Some(answer) if answer.state() == lease_answer::State::Alive => {
                    // The leader has applied no less than this member had. What went here since has gone.
                    let went = was_stored && !parts.is_stored(id);
                    return Ok((!went).then(|| T::from_leader(&answer)));
                }
                Some(answer) if answer.state() == lease_answer::State::Gone => {
                    if !parts.is_stored(id) {
                        return Ok(None);
                    }
                    parts.barrier.pass().await.map_err(|_| LeaseError::Stopped)?;
                    if !parts.is_stored(id) {
                        return Ok(None);
                    }
                    // Granted anew, it seems.
                    continue;
                }
                _ => {}
            }
            if matches!(timeout(PAUSE, led.changed()).await, Ok(Err(_))) {
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

/// What is read from the leader's answer about a lease that is alive.
trait FromLeader {
    fn from_leader(answer: &LeaseAnswer) -> Self;
}

/// Granted TTL in seconds.
impl FromLeader for i64 {
    fn from_leader(answer: &LeaseAnswer) -> Self {
        answer.granted_secs
    }
}

impl FromLeader for TimeToLive {
    fn from_leader(answer: &LeaseAnswer) -> Self {
        Self {
            granted_secs: answer.granted_secs,
            remaining_secs: answer.remaining_secs,
        }
    }
}

impl Parts {
    /// For a peer: from a state that is not older than the peer's, and in time, or not at all.
    pub(crate) async fn asked<'s, T, F>(
        &'s self,
        ask: LeaseAsk,
        here: impl FnOnce(&'s Self, i64) -> F,
    ) -> Result<Option<T>, LeaseError>
    where
        F: Future<Output = Result<Option<T>, LeaseError>>,
    {
        let LeaseAsk { id, applied } = ask;
        let answer = async {
            let mut own = self.applied.clone();
            own.wait_for(|own| *own >= applied)
                .await
                .map_err(|_| LeaseError::Stopped)?;
            here(self, id).await
        };
        timeout(ANSWER, answer).await.unwrap_or(Err(LeaseError::NotLeader))
    }

    /// [`Node::renew`], where this member leads.
    pub(crate) async fn renew_here(&self, id: i64) -> Result<Option<i64>, LeaseError> {
        let mut applied = self.applied.clone();
        loop {
            applied.borrow_and_update();
            match self.lessor.renew(id) {
                Renewal::Renewed { ttl_secs, term } => {
                    self.confirm(term).await?;
                    self.catches_up().await?;
                    return Ok(self.is_stored(id).then_some(ttl_secs));
                }
                Renewal::NotLeader => return Err(LeaseError::NotLeader),
                Renewal::Unknown if !self.is_stored(id) => {
                    if self.is_gone(id).await? {
                        return Ok(None);
                    }
                }
                Renewal::Reset { term } => {
                    self.reset(term, id);
                    look_again(&mut applied).await?;
                }
                Renewal::Unknown | Renewal::Ending | Renewal::Settling => look_again(&mut applied).await?,
            }
        }
    }

    /// [`Node::time_to_live`], where this member leads.
    pub(crate) async fn time_to_live_here(&self, id: i64) -> Result<Option<TimeToLive>, LeaseError> {
        let mut applied = self.applied.clone();
        loop {
            applied.borrow_and_update();
            let term = self.lessor.term().ok_or(LeaseError::NotLeader)?;
            let left = self.lessor.time_to_live(id).map_err(|_| LeaseError::NotLeader)?;
            match (left, self.is_stored(id)) {
                (_, false) => {
                    if self.is_gone(id).await? {
                        return Ok(None);
                    }
                }
                (Some(left), true) => {
                    self.confirm(term).await?;
                    self.catches_up().await?;
                    return Ok(self.is_stored(id).then_some(left));
                }
                (None, true) => look_again(&mut applied).await?,
            }
        }
    }

    /// Waits until what is committed by now is applied here. Others may have applied it, and told so, while the disk of this
    /// one is slow.
    async fn catches_up(&self) -> Result<(), LeaseError> {
        let committed = {
            let metrics = self.raft.data_metrics();
            let committed = metrics.borrow_watched().cluster_committed;
            committed.map_or(0, |committed| position(committed.index))
        };
        if *self.applied.borrow() >= committed {
            return Ok(());
        }
        let (mut applied, mut led) = (self.applied.clone(), self.view.led.subscribe());
        tokio::select! {
            biased;
            applied = applied.wait_for(|applied| *applied >= committed) => applied.map(drop).map_err(|_| LeaseError::Stopped),
            _ = led.changed() => Err(LeaseError::NotLeader),
        }
    }

    /// Whether a lease that is not here is nowhere: its grant may have been answered by a member that is ahead in apply,
    /// or in a term that this one has not heard of.
    async fn is_gone(&self, id: i64) -> Result<bool, LeaseError> {
        self.barrier.pass().await.map_err(|_| LeaseError::Stopped)?;
        Ok(!self.is_stored(id))
    }

    fn is_stored(&self, id: i64) -> bool {
        self.store.lease(LeaseId(id)).is_some()
    }
}

/// Waits for an apply, or a moment.
async fn look_again(applied: &mut watch::Receiver<u64>) -> Result<(), LeaseError> {
    match timeout(LOOK_AGAIN, applied.changed()).await {
        Ok(Err(_)) => Err(LeaseError::Stopped),
        _ => Ok(()),
    }
}
