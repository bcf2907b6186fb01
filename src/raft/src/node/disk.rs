//! A leader whose disk hangs gives leadership away: it acknowledges nothing any more, and holds up everybody.

use super::Parts;
use crate::log_store::LogStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, warn};

pub(super) async fn run(parts: Arc<Parts>, log: LogStore, look_every: Duration) {
    let mut looks = interval(look_every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let bound = parts.election;
    loop {
        looks.tick().await;
        let stuck = log.stuck_for();
        if stuck <= bound || !parts.leads() {
            continue;
        }
        let own = parts.identity.member;
        let others: Vec<u64> = parts.voters().into_iter().filter(|id| *id != own).collect();
        if others.is_empty() {
            continue;
        }
        warn!(
            stuck_ms = stuck.as_millis(),
            "the log's disk hangs; giving leadership away"
        );
        let given = timeout(parts.election * 2, parts.give_to(&others)).await;
        parts.proposer.hold(false);
        if given.is_err() {
            error!(
                stuck_ms = stuck.as_millis(),
                "the log's disk hangs, and nobody takes over"
            );
        }
    }
}
