//! Keepalive and time to live: the lessor's deadlines, held against applied state.
//!
//! Apply changes the store, lets watchers know, and tells the lessor last. In between the lessor still has a lease that
//! everybody saw go, or lacks one that everybody saw come; an answer from it alone would contradict what its caller has
//! seen.

use super::Node;
use crate::lessor::{Renewal, TimeToLive};
use quorate_api::LeaseId;

/// Why there is no answer about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("this member does not lead and keeps no deadlines")]
    NoLeader,
    #[error("the node is stopping")]
    Stopped,
}

impl Node {
    /// Lets a lease live on for its full TTL from now, which is returned in seconds; `None`: there is no such lease. The
    /// caller sets the time limit.
    ///
    /// For a lease that has ended the answer waits for its revocation, so that "gone" is true when it is said.
    pub async fn renew(&self, id: i64) -> Result<Option<i64>, LeaseError> {
        let mut applied = self.applied();
        loop {
            applied.borrow_and_update();
            match self.lessor().renew(id) {
                Renewal::Renewed { ttl_secs } => return Ok(self.is_stored(id).then_some(ttl_secs)),
                Renewal::NotLeader => return Err(LeaseError::NoLeader),
                Renewal::Unknown if !self.is_stored(id) => return Ok(None),
                Renewal::Unknown | Renewal::Ending => applied.changed().await.map_err(|_| LeaseError::Stopped)?,
            }
        }
    }

    /// How long a lease has left; `None`: there is no such lease. The caller sets the time limit.
    pub async fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, LeaseError> {
        let mut applied = self.applied();
        loop {
            applied.borrow_and_update();
            let left = self.lessor().time_to_live(id).map_err(|_| LeaseError::NoLeader)?;
            match (left, self.is_stored(id)) {
                (_, false) => return Ok(None),
                (Some(left), true) => return Ok(Some(left)),
                (None, true) => applied.changed().await.map_err(|_| LeaseError::Stopped)?,
            }
        }
    }

    fn is_stored(&self, id: i64) -> bool {
        self.store().lease(LeaseId(id)).is_some()
    }
}
