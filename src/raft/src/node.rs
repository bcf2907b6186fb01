//! Consensus with everything around it, running: what the server holds.
//!
//! Everything here, heartbeats above all, runs on a runtime of its own, so that it never starves behind requests.
//!
//! * [`start`] — opens the parts in order and recovers;
//! * [`observe`] — who leads, and the end of consensus;
//! * [`leases`] — keepalive and time to live;
//! * [`members`] — who is connected, and who has caught up;
//! * [`expiry`], [`purge`] — what the node does by itself;
//! * [`stop`] — ends it, within a time.

mod expiry;
mod leases;
mod members;
mod observe;
mod purge;
mod start;
mod stop;

use crate::barrier::Barrier;
use crate::lessor::Lessor;
use crate::observer::Observer;
use crate::proposer::{ProposeError, Proposer};
use crate::types::{RaftHandle, position};
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use quorate_store::Store;
use quorate_store::command::{Command, Outcome};
use quorate_wal::Wal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use leases::LeaseError;
pub use start::StartError;

pub struct Options {
    pub member: u64,
    pub heartbeat: Duration,
    pub election: Duration,
    /// Entries applied between two purges of the log.
    pub snapshot_count: u64,
    /// Entries kept behind a purge for followers that lag.
    pub catchup_entries: u64,
    pub observer: Arc<dyn Observer>,
    /// How often the log is looked at for what can be purged.
    pub purge_interval: Duration,
    /// Called once when consensus has ended for good. The process should end: it can acknowledge nothing more.
    pub on_fatal: Arc<dyn Fn(String) + Send + Sync>,
}

/// Consensus, running. Shared by the server's parts. Dropped without a [`Node::stop`], it ends as in a crash.
pub struct Node {
    /// Nothing that runs on it holds a `Node`, or neither would ever go.
    runtime: Mutex<Option<Runtime>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    parts: Arc<Parts>,
}

/// What a node's tasks share.
struct Parts {
    raft: RaftHandle,
    wal: Wal,
    store: Store,
    member: u64,
    proposer: Arc<Proposer>,
    barrier: Arc<Barrier>,
    lessor: Arc<Lessor>,
    applied: watch::Receiver<u64>,
    view: View,
    /// This member leads, has applied what earlier terms left, and keeps the time of all leases.
    leading: watch::Sender<bool>,
    /// The end of consensus is wanted.
    stopping: AtomicBool,
}

/// Raft's state as requests want it: two loads, no lock.
#[derive(Default)]
struct View {
    term: AtomicU64,
    /// 0: nobody known.
    leader: AtomicU64,
    leader_changes: AtomicU64,
}

/// For Status and metrics.
#[derive(Clone, Copy, Debug)]
pub struct RaftStatus {
    pub term: u64,
    pub leader: Option<u64>,
    pub committed: u64,
    pub applied: u64,
    pub leader_changes: u64,
}

impl Node {
    /// Proposes a command and waits for its outcome on this member. The caller sets the time limit; giving up changes
    /// nothing about the command's fate.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, ProposeError> {
        let answer = self.parts.proposer.propose(command)?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    pub fn barrier(&self) -> &Barrier {
        &self.parts.barrier
    }

    pub fn lessor(&self) -> &Lessor {
        &self.parts.lessor
    }

    pub fn proposer(&self) -> &Proposer {
        &self.parts.proposer
    }

    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    pub fn member(&self) -> u64 {
        self.parts.member
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.parts.view.term.load(Ordering::Relaxed)
    }

    pub fn leader(&self) -> Option<u64> {
        Some(self.parts.view.leader.load(Ordering::Relaxed)).filter(|leader| *leader != 0)
    }

    /// Position of the last applied entry, to wait on.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.parts.applied.clone()
    }

    /// Position of the first entry that the log still holds.
    pub fn log_first(&self) -> u64 {
        self.parts.wal.state().0.map_or(1, |purged| purged.index + 1)
    }

    /// The log has no room to spare and can't get more: what it still has is for what makes room.
    pub fn is_log_full(&self) -> bool {
        self.parts.proposer.is_log_full()
    }

    pub fn status(&self) -> RaftStatus {
        let metrics = self.parts.raft.metrics();
        let committed = metrics.borrow_watched().cluster_committed;
        let committed = committed.map_or(0, |id| position(id.index));
        let applied = *self.parts.applied.borrow();
        RaftStatus {
            term: self.term(),
            leader: self.leader(),
            // The two come from different channels; what is applied was committed.
            committed: committed.max(applied),
            applied,
            leader_changes: self.parts.view.leader_changes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A runtime that is merely dropped waits for its threads, which panics where nobody may wait.
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}
