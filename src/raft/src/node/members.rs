//! Who is connected, and who has caught up: what changes of membership ask of consensus.

use super::Node;
use crate::proposer::ProposeError;
use std::collections::BTreeSet;
use std::time::Duration;

impl Node {
    /// Members that have been connected for `since`, this one included.
    pub fn connected(&self, _since: Duration) -> BTreeSet<u64> {
        // No member replicates to another yet.
        BTreeSet::from([self.parts.member])
    }

    /// Whether the learner has nine tenths of the leader's log. The leader alone knows; any member can be asked.
    pub async fn is_in_sync(&self, _learner: u64) -> Result<bool, ProposeError> {
        // It has nothing of it: no member replicates to another yet.
        Ok(false)
    }
}
