//! Opens the parts of consensus in order and recovers.

use super::observe::{ended, observe};
use super::{Identity, Node, Options, Parts, View, checkpoints, disk, expiry, membership, purge, reach};
use crate::barrier::{self, Barrier};
use crate::lessor::{CHECKPOINT_PERIOD, Lessor, Monotonic};
use crate::log_store::LogStore;
use crate::peer::NoPeers;
use crate::peer::holds::Holds;
use crate::peer::network::Peers;
use crate::proposer::{self, Proposer, Whose};
use crate::runtime::{self, watch};
use crate::space::LogSpace;
use crate::state_machine::{Listeners, StateMachine};
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};
use parking_lot::Mutex;
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use quorate_store::{Applier, Store};
use quorate_wal::Wal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::RwLock;

/// Threads for openraft, apply and the peers.
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

/// Where consensus and the peers run, apart from requests.
#[derive(Debug)]
pub struct Threads {
    /// Gone once the node has ended.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Threads {
    pub fn start() -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("raft")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    pub(super) fn take(&mut self) -> Option<Runtime> {
        self.runtime.take()
    }

    /// To start on them what talks to peers.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A runtime that is merely dropped waits for its threads, which panics where nobody may wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Options {
    /// For a member that founds a cluster of its own; with the server's defaults.
    pub fn alone(member: u64) -> Self {
        Self {
            identity: Identity {
                member,
                boot: 1,
                ..Identity::default()
            },
            founders: BTreeSet::from([member]),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            snapshot_count: 10_000,
            catchup_entries: 5_000,
            observer: Arc::new(()),
            purge_interval: Duration::from_secs(1),
            lease_checkpoint_period: CHECKPOINT_PERIOD,
            on_fatal: Arc::new(|_| {}),
            on_removed: Arc::new(|| {}),
            network: Arc::new(NoPeers),
            clock: Arc::new(Monotonic::default()),
        }
    }
}

impl Node {
    /// [`Node::launch`] on threads that become the node's own. Blocks.
    pub fn start(
        threads: Threads,
        options: Options,
        wal: Wal,
        store: Store,
        applier: Applier,
    ) -> Result<Arc<Self>, StartError> {
        let node = threads.handle().block_on(Self::launch(options, wal, store, applier))?;
        *node.threads.lock() = Some(threads);
        Ok(node)
    }

    /// Recovers from log and store, on the runtime that this is called on.
    ///
    /// A sole voter wins its election here, and this returns when everything that the log held is applied and it leads:
    /// from then on a local read sees every write that was ever acknowledged, and every lease has its deadline. Takes what
    /// it takes; there is nothing to serve before. Where others have to be asked this returns at once.
    pub async fn launch(options: Options, wal: Wal, store: Store, applier: Applier) -> Result<Arc<Self>, StartError> {
        let config = Arc::new(raft_config(&options)?);
        let Options {
            identity,
            founders,
            election,
            ..
        } = options;
        let member = identity.member;
        let whose = Whose {
            member,
            boot: identity.boot,
        };
        let proposer = Arc::new(Proposer::new(whose, LogSpace::of(wal.clone())));
        let checkpoint_period = options.lease_checkpoint_period;
        let clock = Box::new(options.clock.clone());
        let lessor = Arc::new(Lessor::with_checkpoints(clock, checkpoint_period));
        let members_changed = watch::Sender::new(());
        let (applied_tx, applied) = watch::channel(applier.applied().map_or(0, |applied| applied.index));
        let log = LogStore::new(wal.clone());
        let found = log.vote().map_err(StartError::raft)?;
        let barrier = Arc::new(Barrier::new(log.alone()));
        let listeners = Listeners {
            proposer: proposer.clone(),
            lessor: lessor.clone(),
            alone: log.alone(),
            observer: options.observer.clone(),
            applied: applied_tx,
            members_changed: members_changed.clone(),
            flushed: log.flushed(),
        };
        let machine = StateMachine::new(applier, store.clone(), listeners);
        let network = options.network.clone();
        let holds = Holds::default();
        let peers = Peers {
            network: network.clone(),
            holds: holds.clone(),
        };
        let raft = Raft::new(member, config, peers, log.clone(), machine)
            .await
            .map_err(StartError::raft)?;
        let parts = Arc::new(Parts {
            raft: raft.clone(),
            wal,
            store,
            identity,
            proposer: proposer.clone(),
            barrier: barrier.clone(),
            alone: log.alone(),
            lessor,
            network: network.clone(),
            seen: Mutex::default(),
            hashing: Arc::default(),
            heard: Mutex::default(),
            applied: applied.clone(),
            election,
            view: View::default(),
            leading: watch::Sender::new(false),
            members_changed,
            left: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
            door: RwLock::default(),
            on_removed: options.on_removed,
        });
        let led = parts.view.led.subscribe();
        let mut tasks = vec![
            runtime::spawn(observe(
                parts.clone(),
                options.on_fatal,
                options.heartbeat,
                found.map_or(0, |vote| vote.leader_id.term),
            )),
            runtime::spawn(proposer.run(proposer::Ways {
                raft: raft.clone(),
                network: network.clone(),
                led: led.clone(),
            })),
            runtime::spawn(barrier.run(
                barrier::Ways {
                    member,
                    raft,
                    network,
                    led,
                },
                applied,
            )),
        ];
        parts.found_or_recover(founders).await?;
        tasks.push(runtime::spawn(expiry::run(parts.clone())));
        tasks.push(runtime::spawn(checkpoints::run(parts.clone(), checkpoint_period)));
        tasks.push(runtime::spawn(membership::run(parts.clone())));
        tasks.push(runtime::spawn(parts.clone().watch_removal()));
        tasks.push(runtime::spawn(disk::run(parts.clone(), log.clone(), options.heartbeat)));
        tasks.push(runtime::spawn(reach::run(parts.clone())));
        let schedule = purge::Schedule {
            every: options.purge_interval,
            entries: options.snapshot_count,
            reserve: options.catchup_entries,
            holds,
        };
        tasks.push(runtime::spawn(purge::run(parts.clone(), log, schedule)));
        Ok(Arc::new(Self {
            threads: Mutex::default(),
            tasks: Mutex::new(tasks),
            parts,
        }))
    }
}

impl Parts {
    async fn found_or_recover(&self, founders: BTreeSet<u64>) -> Result<(), StartError> {
        let is_new = !self.raft.is_initialized().await.map_err(StartError::raft)?;
        let voters = if is_new { founders } else { self.voters_found() };
        let alone = voters.iter().eq([&self.identity.member]);
        if is_new && !voters.is_empty() {
            let founders: BTreeMap<u64, EmptyNode> = voters.into_iter().map(|id| (id, EmptyNode::new())).collect();
            self.raft.initialize(founders).await.map_err(StartError::raft)?;
        } else if alone {
            // Leadership is not restored from the last run: only a vote in a new term, with a blank entry of that
            // term applied, proves that every entry found in the log is committed.
            self.raft.trigger().elect(false).await.map_err(StartError::raft)?;
        }
        if !alone {
            return Ok(());
        }
        let mut leading = self.leading.subscribe();
        tokio::select! {
            biased;
            // Its sender is `self`.
            _ = leading.wait_for(|leading| *leading) => {}
            reason = ended(&self.raft) => return Err(StartError::raft(reason)),
        }
        self.find_out_whether_alone();
        Ok(())
    }

    fn voters_found(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect()
    }
}

fn raft_config(options: &Options) -> Result<Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // openraft's follower campaigns when neither the leader's lease nor a random time after it has been renewed. Together
    // they are one to one and a quarter election timeouts, where etcd has one to two: nobody is deposed sooner, and writes
    // go on before one and a half have passed, with up to one and a half heartbeats until somebody looks at the clock. A
    // leader that has heard of no quorum for five eighths of one takes no more writes.
    let lease = millis(options.election * 5 / 8);
    let least = millis(options.election * 3 / 8).max(millis(options.heartbeat) + 1);
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: least,
        election_timeout_max: lease.max(least + 1),
        // Entries go to the followers while they are being written here.
        broadcast_submitted_on_append: Some(true),
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
    #[cfg(feature = "planted")]
    let config = Config {
        enable_pre_vote: Some(!planted::is(Bug::NoPreVote)),
        ..config
    };
    config
        .validate()
        .map_err(|error| StartError::Settings(error.to_string()))
}
