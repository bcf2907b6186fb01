//! Purges the log behind the last but one durable commit of the backend, less a reserve for followers.

use super::Parts;
use crate::log_store::LogStore;
use crate::peer::holds::Holds;
use crate::types::position;
use openraft::error::Fatal;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// Payload bytes after which the log is purged, however few entries they are.
const BYTES: u64 = 64 << 20;

/// Payload bytes that stay behind a purge at most, for followers that lag.
const RESERVE_BYTES: u64 = 256 << 20;

/// When to look, and what to leave.
pub(super) struct Schedule {
    pub every: Duration,
    /// Entries after which the log is purged.
    pub entries: u64,
    /// Entries that stay behind a purge.
    pub reserve: u64,
    /// What snapshots on their way to peers want kept.
    pub holds: Holds,
}

pub(super) async fn run(parts: Arc<Parts>, log: LogStore, schedule: Schedule) {
    let Schedule {
        every,
        entries,
        reserve,
        holds,
    } = schedule;
    let mut scan = interval(every);
    scan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut purged_at = log.appended_bytes();
    loop {
        scan.tick().await;
        let (purged, last) = parts.wal.state();
        let purged = purged.map_or(0, |pos| pos.index);
        let long = last.is_some_and(|last| last.index.saturating_sub(purged) > entries);
        let large = log.appended_bytes() - purged_at > BYTES;
        // What is purged is room for what comes, also where the disk has none.
        let short_of_space = !parts.proposer.log_grows();
        let safe = parts.store.durable().last_but_one.index;
        // The sole voter has no follower that could want the reserve. Entries may be large, and a reserve of them is to be
        // no more than a peer would rather have as a snapshot.
        let kept = safe
            .saturating_sub(reserve)
            .max(log.with_bytes_behind(RESERVE_BYTES).min(safe));
        let wanted = if parts.alone.is_alone() { safe } else { kept };
        let held = holds.least().filter(|_| !short_of_space).unwrap_or(u64::MAX);
        let upto = wanted.min(held);
        if upto <= purged || !(long || large || short_of_space) {
            continue;
        }
        match parts.purge(upto).await {
            Ok(()) => purged_at = log.appended_bytes(),
            Err(error) => warn!(%error, "log not purged"),
        }
    }
}

impl Parts {
    async fn purge(&self, upto: u64) -> Result<(), Fatal<crate::types::TypeConfig>> {
        self.raft.trigger().snapshot().await?;
        let built = |m: &openraft::RaftMetrics<_>| m.snapshot.is_some_and(|id| position(id.index) >= upto);
        let _ = self
            .raft
            .wait(Some(Duration::from_secs(60)))
            .metrics(built, "names a snapshot")
            .await;
        self.raft.trigger().purge_log(upto - 1).await
    }
}
