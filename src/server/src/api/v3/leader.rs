//! The end of streams whose clients would rather have an error than wait without a leader.

use crate::member::Member;
use quorate_api::{Error, Status};
use std::time::Duration;

/// Election timeouts in a row without a leader after which it counts as lost.
const PATIENCE: u32 = 3;

/// Returns when the leader is lost, with what to tell the client.
pub async fn lost(member: &Member) -> Status {
    missing(|| member.node.leader().is_none(), member.limits.election_timeout).await;
    Error::NoLeader.into()
}

async fn missing(is_missing: impl Fn() -> bool, election: Duration) {
    let mut rounds = 0;
    while rounds < PATIENCE {
        tokio::time::sleep(election).await;
        rounds = if is_missing() { rounds + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_leader_is_lost_after_three_looks_in_a_row() {
        let looks = Cell::new(0);
        // Missing twice, there once, then gone for good.
        let look = || {
            looks.set(looks.get() + 1);
            looks.get() != 3
        };
        missing(look, Duration::from_millis(1)).await;
        assert_eq!(looks.get(), 6);
    }
}
