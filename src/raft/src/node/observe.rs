//! Watches who leads, starts and stops the lease clock, and notices the end of consensus.
//!
//! Consensus calls whoever won the last election its leader until another wins. A leader that nobody hears any more leads
//! nobody: it is not known as one, here and as etcd has it, until it is heard again. The same goes for a leader that hears
//! of no quorum.

use super::{Heard, Parts};
use crate::leadership::Leadership;
use crate::lessor::Known;
use crate::proposer::ProposeError;
use crate::types::{RaftHandle, TypeConfig, position};
use openraft::async_runtime::{Instant as _, WatchReceiver};
use openraft::error::Fatal;
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info};

/// A leader is lost after this much of an election timeout without a word, when the last of those that hear nothing of it
/// would have begun to campaign.
const LOST_PERCENT: u32 = 150;

/// Runs until consensus ends. Unless that was wanted, everybody who waits hears of it, and the process should end.
///
/// `found` is the term that the log had at the start. Whether or not this member led it, that has ended.
pub(super) async fn observe(
    parts: Arc<Parts>,
    on_fatal: Arc<dyn Fn(String) + Send + Sync>,
    heartbeat: Duration,
    found: u64,
) {
    // Changes with roles, votes and membership only; `metrics` would wake this several times a batch.
    let mut metrics = parts.raft.server_metrics();
    let mut led_term = None;
    let mut won: Option<(u64, Instant)> = None;
    let mut looks = interval(heartbeat);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (term, leader) = {
            // Both from the vote, which is the durable one: `current_leader` may be ahead of it, of a later term.
            let vote = metrics.borrow_and_update().vote;
            (vote.leader_id.term, vote.committed.then_some(vote.leader_id.voted_for))
        };
        let own = parts.identity.member;
        let leader = leader.filter(|leader| *leader != own || term > found);
        if leader != Some(own) {
            parts.lessor.follow();
        }
        if leader == Some(own) && won.is_none_or(|(earlier, _)| earlier != term) {
            won = Some((term, Instant::now()));
        }
        let leads = leader == Some(own) && won.is_some_and(|(_, at)| parts.is_heard(at));
        let leader = leader.filter(|leader| leads || parts.hears(term, *leader));
        parts.view.publish(term, leader);
        if leads && led_term != Some(term) {
            tokio::select! {
                biased;
                () = parts.take_over(term) => {
                    led_term = Some(term);
                    parts.leading.send_replace(true);
                }
                changed = metrics.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => break,
                },
                _ = looks.tick() => continue,
            }
        } else if !leads && led_term.take().is_some() {
            // By its vote it may lead yet; then what it has on its way may still come about.
            parts.lessor.suspend();
            parts.leading.send_replace(false);
        }
        tokio::select! {
            biased;
            changed = metrics.changed() => if changed.is_err() { break },
            _ = looks.tick() => {}
        }
    }
    let reason = ended(&parts.raft).await;
    if !parts.stopping.load(Ordering::Acquire) {
        error!(%reason, "consensus has ended");
        parts.proposer.abandon(ProposeError::Unknown);
        parts.barrier.close();
        on_fatal(reason.to_string());
    }
}

/// Waits until the raft core has ended, and tells why.
pub(super) async fn ended(raft: &RaftHandle) -> Fatal<TypeConfig> {
    let mut metrics = raft.metrics();
    loop {
        if let Err(reason) = &metrics.borrow_and_update().running_state {
            return reason.clone();
        }
        if metrics.changed().await.is_err() {
            let last = metrics.borrow_watched().running_state.clone();
            // One that ends without a word has panicked.
            return last.err().unwrap_or(Fatal::Panicked);
        }
    }
}

impl super::View {
    fn publish(&self, term: u64, leader: Option<u64>) {
        let leader = leader.unwrap_or(0);
        self.term.store(term, Ordering::Relaxed);
        let before = self.leader.swap(leader, Ordering::Relaxed);
        let now = Leadership {
            term,
            leader: Some(leader).filter(|leader| *leader != 0),
        };
        self.led.send_if_modified(|led| std::mem::replace(led, now) != now);
        if before != leader && leader != 0 {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
            *self.elected.lock() = Some(Instant::now());
            info!(term, leader = format_args!("{leader:x}"), "elected leader");
        }
    }
}

impl Parts {
    /// Notes a leader's sign of life. One of an earlier term does not know yet that it leads nobody.
    pub(crate) fn heard(&self, term: u64, leader: u64) {
        let at = Instant::now();
        let mut heard = self.heard.lock();
        if heard.is_none_or(|heard| heard.term <= term) {
            *heard = Some(Heard { term, leader, at });
        }
    }

    fn patience(&self) -> Duration {
        self.election * LOST_PERCENT / 100
    }

    /// Whether another still leads, as far as this member can tell.
    fn hears(&self, term: u64, leader: u64) -> bool {
        let heard = *self.heard.lock();
        heard.is_some_and(|heard| (heard.term, heard.leader) == (term, leader) && heard.at.elapsed() < self.patience())
    }

    /// Whether this member, which has won an election at `won`, still leads anybody.
    fn is_heard(&self, won: Instant) -> bool {
        let own = BTreeSet::from([self.identity.member]);
        if self.voters() == own {
            return true;
        }
        #[cfg(feature = "planted")]
        if planted::is(Bug::LeaseRenewedByDeposed) {
            return true;
        }
        let data = self.raft.data_metrics();
        let acked = data.borrow_watched().last_quorum_acked;
        // One that was only just elected has a quorum's votes, and no acknowledgement yet.
        won.elapsed() < self.patience() || acked.is_some_and(|acked| acked.elapsed() < self.patience())
    }

    /// Starts the deadlines of all leases when everything from earlier terms is applied, so that none is missed.
    async fn take_over(&self, term: u64) {
        let data = self.raft.data_metrics();
        let last = data.borrow_watched().last_log;
        // A leader begins its term with a blank entry. Without one this is an earlier term, and the next is about to be
        // heard of; and when apply has ended, so will consensus. Either way there is more to hear.
        let Some(last) = last.filter(|last| last.leader_id.term == term) else {
            return std::future::pending().await;
        };
        let last = position(last.index);
        if self.applied.clone().wait_for(|applied| *applied >= last).await.is_err() {
            return std::future::pending().await;
        }
        let known = || {
            let all = self.store.leases();
            let known = |lease: &quorate_store::LeaseInfo| Known {
                id: lease.id.0,
                ttl_secs: lease.ttl_secs,
                remaining_secs: lease.remaining_secs,
            };
            all.iter().map(known).collect()
        };
        self.lessor.lead(term, self.election, known);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Node, Options, ProposeError};
    use quorate_store::Store;
    use quorate_store::command::Command;
    use quorate_wal::Wal;
    use quorate_wal::disk::FaultyDisk;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    /// A core that ends without having been told to leaves a node that answers nothing: that must not go on for long,
    /// whatever the reason is called.
    #[test]
    fn an_end_that_nobody_asked_for_is_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let mut stored = quorate_store::Options::default();
        stored.backend.reserve_bytes = 0;
        let (store, applier) = Store::open(&dir.path().join("store"), stored, Box::new(())).unwrap();
        let (wal, _) = Wal::open(quorate_wal::Options::new("/wal"), Arc::new(FaultyDisk::new())).unwrap();
        let (tell, told) = mpsc::channel();
        let options = Options {
            on_fatal: Arc::new(move |reason| tell.send(reason).unwrap()),
            ..Options::alone(7)
        };
        let node = Node::start(crate::node::Threads::start().unwrap(), options, wal, store, applier).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(node.parts.raft.shutdown()).unwrap();
        assert_eq!(told.recv().unwrap(), "raft stopped");
        let refused = runtime.block_on(node.propose(&Command::Compact(Default::default())));
        assert_eq!(refused, Err(ProposeError::Stopped));
        node.stop(Duration::from_secs(1));
        assert!(told.try_recv().is_err(), "told once");
    }
}
