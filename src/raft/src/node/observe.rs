//! Watches who leads, starts and stops the lease clock, and notices the end of consensus.

use super::Parts;
use crate::leadership::Leadership;
use crate::lessor::Known;
use crate::proposer::ProposeError;
use crate::types::{RaftHandle, TypeConfig, position};
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info};

/// Runs until consensus ends. Unless that was wanted, everybody who waits hears of it, and the process should end.
pub(super) async fn observe(parts: Arc<Parts>, on_fatal: Arc<dyn Fn(String) + Send + Sync>, election: Duration) {
    // Changes with roles, votes and membership only; `metrics` would wake this several times a batch.
    let mut metrics = parts.raft.server_metrics();
    let mut led_term = None;
    loop {
        let (term, leader) = {
            // Both from the vote, which is the durable one: `current_leader` may be ahead of it, of a later term.
            let vote = metrics.borrow_and_update().vote;
            (vote.leader_id.term, vote.committed.then_some(vote.leader_id.voted_for))
        };
        parts.view.publish(term, leader);
        let leads = leader == Some(parts.identity.member);
        if leads && led_term != Some(term) {
            tokio::select! {
                biased;
                () = parts.take_over(term, election) => {
                    led_term = Some(term);
                    parts.leading.send_replace(true);
                }
                changed = metrics.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => break,
                }
            }
        } else if !leads && led_term.take().is_some() {
            parts.lessor.follow();
            parts.leading.send_replace(false);
        }
        if metrics.changed().await.is_err() {
            break;
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
    /// Starts the deadlines of all leases when everything from earlier terms is applied, so that none is missed.
    async fn take_over(&self, term: u64, election: Duration) {
        let data = self.raft.data_metrics();
        let last = data.borrow_watched().last_log;
        // A leader begins its term with a blank entry. Without one this is the vote of an earlier term, seen before the
        // new one; and when apply has ended, so will consensus. Either way there is more to hear.
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
        self.lessor.lead(term, election, known);
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
