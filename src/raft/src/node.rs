//! Consensus with everything around it, running: what the server holds.
//!
//! Everything here, heartbeats above all, runs on a runtime of its own, so that it never starves behind requests.
//!
//! * [`start`] — opens the parts in order and recovers;
//! * [`observe`] — who leads, and the end of consensus;
//! * [`membership`] — raft's voters follow the members table;
//! * [`progress`] — how far others are;
//! * [`transfer`] — leadership given away; [`disk`] — when the disk hangs; [`reach`] — when others can't get through;
//! * [`hash`] — what others hold, to be compared;
//! * [`leases`] — keepalive and time to live; [`lead`] — whether this member leads for certain;
//! * [`expiry`], [`checkpoints`], [`purge`] — what the node does by itself;
//! * [`stop`] — ends it, within a time.

mod checkpoints;
mod disk;
mod expiry;
mod hash;
mod lead;
mod leases;
mod membership;
mod observe;
mod progress;
mod purge;
mod reach;
mod start;
mod stop;
mod transfer;

use crate::alone::Alone;
use crate::barrier::Barrier;
use crate::leadership::{Leadership, Led};
use crate::lessor::{Clock, Lessor};
use crate::observer::Observer;
use crate::peer::Network;
use crate::peer::service::Service;
use crate::proposer::{ProposeError, Proposer};
use crate::runtime::watch;
use crate::types::{RaftHandle, position};
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use quorate_store::Store;
use quorate_store::command::{Command, Outcome};
use quorate_wal::Wal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use leases::LeaseError;
pub use start::{StartError, Threads};
pub use transfer::TransferError;

/// Who this member is, to its peers.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub cluster: u64,
    pub member: u64,
    /// Of the data directory.
    pub incarnation: u64,
    /// Which start of this member's process on this data directory; larger each time.
    pub boot: u64,
    /// Members that are let in before the members table is there: those that found the cluster, or those that were there
    /// when this member joined.
    pub known: BTreeSet<u64>,
}

pub struct Options {
    pub identity: Identity,
    /// The voters that the cluster begins with, this one among them. Empty: this member joins one that is there. Without
    /// meaning once the log has begun.
    pub founders: BTreeSet<u64>,
    pub heartbeat: Duration,
    pub election: Duration,
    /// Entries applied between two purges of the log.
    pub snapshot_count: u64,
    /// Entries kept behind a purge for followers that lag.
    pub catchup_entries: u64,
    pub observer: Arc<dyn Observer>,
    /// How often the log is looked at for what can be purged.
    pub purge_interval: Duration,
    /// What long leases have left goes into the log as often; [`CHECKPOINT_PERIOD`](crate::lessor::CHECKPOINT_PERIOD).
    pub lease_checkpoint_period: Duration,
    /// Called once when consensus has ended for good. The process should end: it can acknowledge nothing more.
    pub on_fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// Called once this member has been removed from the cluster, for good.
    pub on_removed: Arc<dyn Fn() + Send + Sync>,
    pub network: Arc<dyn Network>,
    /// Leases end by it.
    pub clock: Arc<dyn Clock>,
}

/// Consensus, running. Shared by the server's parts. Dropped without a [`Node::stop`], it ends as in a crash.
pub struct Node {
    /// Nothing that runs on it holds a `Node`, or neither would ever go.
    threads: Mutex<Option<Threads>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    parts: Arc<Parts>,
}

/// What a node's tasks share.
pub(crate) struct Parts {
    pub raft: RaftHandle,
    pub wal: Wal,
    pub store: Store,
    pub identity: Identity,
    pub proposer: Arc<Proposer>,
    pub barrier: Arc<Barrier>,
    pub alone: Arc<Alone>,
    pub lessor: Arc<Lessor>,
    pub network: Arc<dyn Network>,
    /// Incarnations of members as they were first seen, where the table does not know them yet.
    pub seen: Mutex<BTreeMap<u64, u64>>,
    /// One hash of everything at a time is worked out for peers.
    pub hashing: Arc<tokio::sync::Mutex<()>>,
    /// When a leader was last heard, and which.
    pub heard: Mutex<Option<Heard>>,
    applied: watch::Receiver<u64>,
    election: Duration,
    view: View,
    /// This member leads, has applied what earlier terms left, and keeps the time of all leases.
    leading: watch::Sender<bool>,
    /// The members table has changed.
    members_changed: watch::Sender<()>,
    /// This member is removed, and others have said that they do not need it.
    left: watch::Sender<bool>,
    /// The end of consensus is wanted.
    stopping: AtomicBool,
    /// Whoever works on a peer's request is inside. Closed at the end.
    pub door: RwLock<()>,
    on_removed: Arc<dyn Fn() + Send + Sync>,
}

/// A leader's last sign of life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub term: u64,
    pub leader: u64,
    pub at: Instant,
}

/// Raft's state as requests want it: two loads, no lock.
struct View {
    term: AtomicU64,
    /// 0: nobody known.
    leader: AtomicU64,
    leader_changes: AtomicU64,
    led: watch::Sender<Leadership>,
    /// When the present leader became known.
    elected: Mutex<Option<Instant>>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
            led: watch::Sender::new(Leadership::default()),
            elected: Mutex::new(None),
        }
    }
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
        self.parts.identity.member
    }

    /// What this member does for its peers.
    pub fn service(&self) -> Service {
        Service::new(self.parts.clone())
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.parts.view.term.load(Ordering::Relaxed)
    }

    pub fn leader(&self) -> Option<u64> {
        Some(self.parts.view.leader.load(Ordering::Relaxed)).filter(|leader| *leader != 0)
    }

    /// Since when the present leader has been known; `None` before the first.
    pub fn led_for(&self) -> Option<Duration> {
        self.parts.view.elected.lock().map(|at| at.elapsed())
    }

    /// Who leads, to wait on.
    pub fn led(&self) -> Led {
        self.parts.view.led.subscribe()
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

impl Parts {
    /// As far as this member knows.
    pub fn leads(&self) -> bool {
        self.view.leader.load(Ordering::Relaxed) == self.identity.member
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.get_mut().iter().for_each(JoinHandle::abort);
    }
}
