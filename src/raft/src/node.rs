//! Starts the parts of consensus in order, and ends them in the opposite one.
//!
//! Everything here, heartbeats above all, runs on a runtime of its own, so that it never starves behind requests.

use crate::barrier::Barrier;
use crate::lessor::{Known, Lessor, Monotonic};
use crate::log_store::LogStore;
use crate::network::NoPeers;
use crate::observer::Observer;
use crate::proposer::{ProposeError, Proposer};
use crate::state_machine::{Listeners, StateMachine};
use crate::tracker::Tracker;
use crate::types::{RaftHandle, position};
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use quorate_api::proto::quorate::LeaseRevoke;
use quorate_store::command::{Command, Outcome};
use quorate_store::{Applier, Store};
use quorate_wal::Wal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// Threads for openraft, apply and, later, the peers.
const THREADS: usize = 2;

/// Leases are looked at this often; etcd's period.
const LEASE_SCAN: Duration = Duration::from_millis(500);

/// Leases revoked by one round of proposals. Puts that arrive meanwhile go between two rounds.
const LEASE_SLICE: usize = 500;

/// How often the log is looked at for what can be purged.
const PURGE_SCAN: Duration = Duration::from_secs(1);

/// Prepared log space that is kept for deletes, compaction and raft itself when the disk is full.
const LOG_RESERVE: u64 = 4 << 20;

/// Payload bytes after which the log is purged, however few entries they are.
const PURGE_BYTES: u64 = 64 << 20;

pub struct Options {
    pub member: u64,
    pub heartbeat: Duration,
    pub election: Duration,
    /// Entries applied between two purges of the log.
    pub snapshot_count: u64,
    /// Entries kept behind a purge for followers that lag.
    pub catchup_entries: u64,
    pub observer: Arc<dyn Observer>,
    /// Called once when consensus has ended for good. The process should end: it can acknowledge nothing more.
    pub on_fatal: Arc<dyn Fn(String) + Send + Sync>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("start the raft runtime")]
    Runtime(#[source] std::io::Error),
    #[error("raft settings: {0}")]
    Settings(String),
    #[error("raft could not start: {0}")]
    Raft(String),
    #[error("no leader after {0:?}")]
    NoLeader(Duration),
}

/// Consensus, running. Shared by the server's parts.
pub struct Node {
    runtime: Mutex<Option<Runtime>>,
    raft: RaftHandle,
    wal: Wal,
    log_space: Arc<AtomicBool>,
    store: Store,
    member: u64,
    proposer: Arc<Proposer>,
    barrier: Arc<Barrier>,
    lessor: Arc<Lessor>,
    applied: watch::Receiver<u64>,
    view: Arc<View>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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
    /// Recovers from log and store, wins the election of a sole voter, and returns when everything that the log held
    /// is applied: from then on a local read sees every write that was ever acknowledged.
    pub fn start(options: Options, wal: Wal, store: Store, applier: Applier) -> Result<Arc<Self>, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let handle = runtime.handle().clone();
        handle.block_on(Self::start_on(options, runtime, wal, store, applier))
    }

    async fn start_on(
        options: Options,
        runtime: Runtime,
        wal: Wal,
        store: Store,
        applier: Applier,
    ) -> Result<Arc<Self>, StartError> {
        let member = options.member;
        let proposer = Arc::new(Proposer::new(Arc::new(Tracker::new(member, rand::random()))));
        let barrier = Arc::new(Barrier::default());
        let lessor = Arc::new(Lessor::new(Box::new(Monotonic::default())));
        let (applied_tx, applied) = watch::channel(applier.applied().map_or(0, |applied| applied.index));
        let listeners = Listeners {
            proposer: proposer.clone(),
            lessor: lessor.clone(),
            barrier: barrier.clone(),
            observer: options.observer.clone(),
            applied: applied_tx,
        };
        let machine = StateMachine::new(applier, store.clone(), listeners);
        let config = Arc::new(raft_config(&options)?);
        let log = LogStore::new(wal.clone());
        let raft = Raft::new(member, config, NoPeers, log.clone(), machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;

        let node = Arc::new(Self {
            runtime: Mutex::new(Some(runtime)),
            raft: raft.clone(),
            log_space: wal.space(),
            wal,
            store,
            member,
            proposer: proposer.clone(),
            barrier: barrier.clone(),
            lessor,
            applied: applied.clone(),
            view: Arc::default(),
            tasks: Mutex::default(),
        });
        let spawned = vec![
            tokio::spawn(watch_raft(node.clone(), options.on_fatal.clone(), options.election)),
            tokio::spawn(proposer.run(raft.clone())),
            tokio::spawn(barrier.run(raft, applied)),
        ];
        node.tasks.lock().extend(spawned);
        node.found_or_recover(options.election).await?;
        node.tasks.lock().push(tokio::spawn(expire_leases(node.clone())));
        let purge = purge_log(node.clone(), log, options.snapshot_count, options.catchup_entries);
        node.tasks.lock().push(tokio::spawn(purge));
        Ok(node)
    }

    async fn found_or_recover(&self, election: Duration) -> Result<(), StartError> {
        let failed = |error: String| StartError::Raft(error);
        if !self
            .raft
            .is_initialized()
            .await
            .map_err(|error| failed(error.to_string()))?
        {
            let founders = BTreeMap::from([(self.member, EmptyNode::new())]);
            self.raft
                .initialize(founders)
                .await
                .map_err(|error| failed(error.to_string()))?;
        } else {
            // Leadership is not restored from the last run: only a vote in a new term, with a blank entry of that
            // term applied, proves that every entry found in the log is committed.
            self.raft
                .trigger()
                .elect(false)
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        let limit = election * 10;
        let led = self
            .raft
            .wait(Some(limit))
            .metrics(|m| m.current_leader == Some(m.id), "leads")
            .await;
        let metrics = led.map_err(|_| StartError::NoLeader(limit))?;
        let last = metrics.last_log_index.map_or(0, position);
        // The replay of a long log takes what it takes; there is nothing to serve before its end.
        let mut applied = self.applied.clone();
        applied
            .wait_for(|applied| *applied >= last)
            .await
            .map_err(|_| failed("apply ended".to_owned()))?;
        self.barrier
            .set_alone(metrics.membership_config.voter_ids().eq([self.member]));
        Ok(())
    }

    /// Proposes a command and waits for its outcome on this member. The caller sets the time limit; giving up changes
    /// nothing about the command's fate.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, ProposeError> {
        let answer = self.proposer.propose(command)?;
        match answer.await {
            Ok(Ok(applied)) => Ok(applied.outcome),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ProposeError::Stopped),
        }
    }

    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    pub fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    pub fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn member(&self) -> u64 {
        self.member
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.view.term.load(Ordering::Relaxed)
    }

    pub fn leader(&self) -> Option<u64> {
        Some(self.view.leader.load(Ordering::Relaxed)).filter(|leader| *leader != 0)
    }

    /// Position of the last applied entry, to wait on.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Position of the first entry that the log still holds.
    pub fn log_first(&self) -> u64 {
        self.wal.state().0.map_or(1, |purged| purged.index + 1)
    }

    /// The log has no room to spare and can't get more: what it still has is for what makes room.
    pub fn is_log_full(&self) -> bool {
        !self.log_space.load(Ordering::Relaxed) && self.wal.writable_bytes() < LOG_RESERVE
    }

    pub fn status(&self) -> RaftStatus {
        let committed = self
            .raft
            .metrics()
            .borrow_watched()
            .cluster_committed
            .map_or(0, |id| position(id.index));
        let applied = *self.applied.borrow();
        RaftStatus {
            term: self.term(),
            leader: self.leader(),
            // The two come from different channels; what is applied was committed.
            committed: committed.max(applied),
            applied,
            leader_changes: self.view.leader_changes.load(Ordering::Relaxed),
        }
    }

    /// Answers what was accepted, as far as `patience` goes, then closes log and store. Blocks; call it off the async
    /// threads.
    pub fn stop(&self, patience: Duration) {
        let Some(runtime) = self.runtime.lock().take() else {
            return;
        };
        self.proposer.close();
        runtime.block_on(async {
            let drained = async {
                while !self.proposer.is_idle() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            if tokio::time::timeout(patience, drained).await.is_err() {
                warn!(
                    commands = self.proposer.pending(),
                    "commands left without an outcome at stop"
                );
            }
            self.barrier.close();
            self.tasks.lock().drain(..).for_each(|task| task.abort());
            if self.raft.shutdown().await.is_err() {
                warn!("the raft core had ended before it was told to");
            }
        });
        self.proposer.abandon(ProposeError::Stopped);
        runtime.shutdown_timeout(Duration::from_millis(100));
        if let Err(error) = self.wal.clone().close() {
            warn!(%error, "log not closed in order; the next start will replay it");
        }
        if let Err(error) = self.store.flush() {
            warn!(%error, "store not flushed; the next start will replay the log");
        }
    }
}

fn raft_config(options: &Options) -> Result<Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election),
        election_timeout_max: millis(options.election) * 2,
        // The backend commits by itself; "building" a snapshot only names its last commit, and when to do so is
        // decided in `purge_log`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A leader that restarts must be elected again: its state machine is behind its log.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        ..Config::default()
    };
    config
        .validate()
        .map_err(|error| StartError::Settings(error.to_string()))
}

/// Publishes term and leader, starts and stops the lease clock, and notices the end.
async fn watch_raft(node: Arc<Node>, on_fatal: Arc<dyn Fn(String) + Send + Sync>, election: Duration) {
    let mut metrics = node.raft.metrics();
    let mut led_term = None;
    loop {
        let (term, leader, committed_vote, state) = {
            let now = metrics.borrow_and_update();
            (
                now.current_term,
                now.current_leader,
                now.vote.committed,
                now.running_state.clone(),
            )
        };
        if let Err(reason) = state {
            if !matches!(reason, Fatal::Stopped) {
                error!(%reason, "consensus has ended");
                node.proposer.abandon(ProposeError::Unknown);
                node.barrier.close();
                on_fatal(reason.to_string());
            }
            return;
        }
        node.view.term.store(term, Ordering::Relaxed);
        let before = node.view.leader.swap(leader.unwrap_or(0), Ordering::Relaxed);
        if before != leader.unwrap_or(0) && leader.is_some() {
            node.view.leader_changes.fetch_add(1, Ordering::Relaxed);
            info!(
                term,
                leader = format_args!("{:x}", leader.unwrap_or(0)),
                "elected leader"
            );
        }
        let leads = leader == Some(node.member) && committed_vote;
        if leads && led_term != Some(term) {
            led_term = Some(term);
            start_lease_clock(&node, term, election).await;
        } else if !leads && led_term.take().is_some() {
            node.lessor.follow();
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Deadlines start when everything from earlier terms is applied, so that no lease is missed.
async fn start_lease_clock(node: &Node, term: u64, election: Duration) {
    let last = node.raft.metrics().borrow_watched().last_log_index.map_or(0, position);
    if node.applied.clone().wait_for(|applied| *applied >= last).await.is_err() {
        return;
    }
    let known = || {
        let all = node.store.leases();
        let known = |lease: &quorate_store::LeaseInfo| Known {
            id: lease.id.0,
            ttl_secs: lease.ttl_secs,
            remaining_secs: lease.remaining_secs,
        };
        all.iter().map(known).collect()
    };
    node.lessor.lead(term, election, known);
}

async fn expire_leases(node: Arc<Node>) {
    let mut scan = tokio::time::interval(LEASE_SCAN);
    scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        scan.tick().await;
        while let Some((term, ended)) = node.lessor.expired(LEASE_SLICE) {
            let count = ended.len();
            let answers: Vec<_> = ended
                .into_iter()
                .map(|id| {
                    (
                        id,
                        node.proposer.propose(&Command::LeaseRevoke(LeaseRevoke {
                            id,
                            expired_in_term: term,
                        })),
                    )
                })
                .collect();
            for (id, answer) in answers {
                let settled = match answer {
                    Ok(answer) => matches!(answer.await, Ok(Ok(_))),
                    Err(_) => false,
                };
                if !settled {
                    node.lessor.retry(id);
                }
            }
            info!(leases = count, "leases expired");
        }
    }
}

/// Purges the log behind the last but one durable commit of the backend, less a reserve for followers.
async fn purge_log(node: Arc<Node>, log: LogStore, every: u64, reserve: u64) {
    let mut scan = tokio::time::interval(PURGE_SCAN);
    scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut purged_at = log.appended_bytes();
    loop {
        scan.tick().await;
        let (purged, last) = node.wal.state();
        let purged = purged.map_or(0, |pos| pos.index);
        let long = last.is_some_and(|last| last.index.saturating_sub(purged) > every);
        let large = log.appended_bytes() - purged_at > PURGE_BYTES;
        // The sole voter has no follower that could want the reserve.
        let reserve = if node.barrier.is_alone() { 0 } else { reserve };
        let upto = node.store.durable().last_but_one.index.saturating_sub(reserve);
        if upto <= purged || !(long || large) {
            continue;
        }
        let purge = async {
            node.raft.trigger().snapshot().await?;
            let built = |m: &openraft::RaftMetrics<_>| m.snapshot.is_some_and(|id| position(id.index) >= upto);
            let _ = node
                .raft
                .wait(Some(Duration::from_secs(60)))
                .metrics(built, "names a snapshot")
                .await;
            node.raft.trigger().purge_log(upto - 1).await
        };
        match purge.await {
            Ok(()) => purged_at = log.appended_bytes(),
            Err(error) => warn!(%error, "log not purged"),
        }
    }
}
