//! Opens the parts of consensus in order and recovers.

use super::observe::{ended, observe};
use super::{Node, Options, Parts, View, expiry, purge};
use crate::barrier::Barrier;
use crate::lessor::{Lessor, Monotonic};
use crate::log_store::LogStore;
use crate::network::NoPeers;
use crate::proposer::Proposer;
use crate::space::LogSpace;
use crate::state_machine::{Listeners, StateMachine};
use crate::tracker::Tracker;
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use quorate_store::{Applier, Store};
use quorate_wal::Wal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Threads for openraft, apply and, later, the peers.
const THREADS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("start the raft runtime")]
    Runtime(#[source] std::io::Error),
    #[error("raft settings: {0}")]
    Settings(String),
    /// With openraft's own reason, which has the causes in its text.
    #[error("raft could not start: {0}")]
    Raft(String),
}

impl StartError {
    fn raft(reason: impl std::fmt::Display) -> Self {
        Self::Raft(reason.to_string())
    }
}

impl Node {
    /// Recovers from log and store, wins the election of a sole voter, and returns when everything that the log held
    /// is applied and this member leads: from then on a local read sees every write that was ever acknowledged, and
    /// every lease has its deadline. Takes what it takes; there is nothing to serve before.
    pub fn start(options: Options, wal: Wal, store: Store, applier: Applier) -> Result<Arc<Self>, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        match runtime.block_on(Self::start_on(&runtime, options, wal, store, applier)) {
            Ok(node) => {
                *node.runtime.lock() = Some(runtime);
                Ok(node)
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    async fn start_on(
        runtime: &Runtime,
        options: Options,
        wal: Wal,
        store: Store,
        applier: Applier,
    ) -> Result<Arc<Self>, StartError> {
        let member = options.member;
        let tracker = Arc::new(Tracker::new(member, next_boot(&store, member)));
        let proposer = Arc::new(Proposer::new(tracker, LogSpace::of(wal.clone())));
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
            .map_err(StartError::raft)?;
        let parts = Arc::new(Parts {
            raft: raft.clone(),
            wal,
            store,
            member,
            proposer: proposer.clone(),
            barrier: barrier.clone(),
            lessor,
            applied: applied.clone(),
            view: View::default(),
            leading: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
        });
        let mut tasks = vec![
            runtime.spawn(observe(parts.clone(), options.on_fatal, options.election)),
            runtime.spawn(proposer.run(raft.clone())),
            runtime.spawn(barrier.run(raft, applied)),
        ];
        parts.found_or_recover().await?;
        tasks.push(runtime.spawn(expiry::run(parts.clone())));
        let schedule = purge::Schedule {
            every: options.purge_interval,
            entries: options.snapshot_count,
            reserve: options.catchup_entries,
        };
        tasks.push(runtime.spawn(purge::run(parts.clone(), log, schedule)));
        Ok(Arc::new(Self {
            runtime: Mutex::default(),
            tasks: Mutex::new(tasks),
            parts,
        }))
    }
}

impl Parts {
    async fn found_or_recover(&self) -> Result<(), StartError> {
        if self.raft.is_initialized().await.map_err(StartError::raft)? {
            // Leadership is not restored from the last run: only a vote in a new term, with a blank entry of that
            // term applied, proves that every entry found in the log is committed.
            self.raft.trigger().elect(false).await.map_err(StartError::raft)?;
        } else {
            let founders = BTreeMap::from([(self.member, EmptyNode::new())]);
            self.raft.initialize(founders).await.map_err(StartError::raft)?;
        }
        let mut leading = self.leading.subscribe();
        tokio::select! {
            // Its sender is `self`.
            _ = leading.wait_for(|leading| *leading) => {}
            reason = ended(&self.raft) => return Err(StartError::raft(reason)),
        }
        let metrics = self.raft.server_metrics();
        let alone = metrics.borrow_watched().membership_config.voter_ids().eq([self.member]);
        self.barrier.set_alone(alone);
        Ok(())
    }
}

/// Batches of an earlier start that are still under way must be older than those of this one, and those newer than any
/// that was applied. So it is the time, and if the clock was set back since, the number after the last.
fn next_boot(store: &Store, member: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let last = store.origin(member).map_or(0, |(boot, _)| boot);
    now.max(last.saturating_add(1))
}

fn raft_config(options: &Options) -> Result<Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election),
        election_timeout_max: millis(options.election) * 2,
        // The backend commits by itself; "building" a snapshot only names its last commit, and when to do so is
        // decided in `purge`.
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
