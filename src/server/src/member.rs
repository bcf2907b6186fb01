//! This member, as its request handlers see it: consensus, store and watch hub, the limits that were configured, and
//! what every answer's header says.

use crate::bootstrap::Identity;
use crate::budget::Budget;
use crate::metrics::counts::Counts;
use quorate_api::proto::etcdserverpb::{self as pb, AlarmType, ResponseHeader};
use quorate_api::proto::quorate::AlarmSet;
use quorate_api::{ClusterId, Error, MemberId, Revision, Status};
use quorate_raft::barrier::BarrierError;
use quorate_raft::{Node, Op, ProposeError};
use quorate_store::Store;
use quorate_store::command::{Command, Outcome};
use quorate_store::watch::Hub;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, watch};
use tracing::warn;

/// What the operator set and requests are held against.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--max-request-bytes`: of one replicated request.
    pub request_bytes: usize,
    /// `--max-txn-ops`
    pub txn_ops: usize,
    /// `--quota-backend-bytes`; `None`: no quota.
    pub quota_bytes: Option<u64>,
    /// `--strict-reconfig-check`
    pub strict_reconfig: bool,
    /// `--max-learners`
    pub max_learners: u64,
    /// How long a request may wait for consensus: 5 s and two election timeouts.
    pub request_timeout: Duration,
    pub election_timeout: Duration,
    /// `--feature-gates=StopGRPCServiceOnDefrag`: the health service says so while the file is defragmented.
    pub not_serving_in_defrag: bool,
    /// Shortest lease: one and a half election timeouts, in whole seconds.
    pub lease_ttl_min_secs: i64,
}

fn refused(error: ProposeError) -> Error {
    match error {
        ProposeError::TooManyRequests => Error::TooManyRequests,
        ProposeError::NoSpace => Error::NoSpace,
        ProposeError::Unknown => Error::Timeout,
        ProposeError::Stopped => Error::Stopped,
    }
}

/// What etcd's internal request adds to a client's, as part of what `--max-request-bytes` is compared with: tag and
/// length of the request, of the header, and the tag of the header's id, for requests of 16 KiB to 2 MiB.
const REQUEST_OVERHEAD: usize = 8;

/// Long selections at a time: they are bound by CPU and memory bandwidth, and writes want their share of both.
const LARGE_READS: usize = 4;

/// Shared by everything that serves requests.
pub struct Member {
    pub id: MemberId,
    pub cluster: ClusterId,
    /// Of the data directory.
    pub incarnation: u64,
    /// What this member founded, or was told when it joined.
    pub origin: Vec<pb::Member>,
    pub node: Arc<Node>,
    pub store: Store,
    pub hub: Hub,
    pub limits: Limits,
    pub counts: Arc<Counts>,
    /// Memory for answers that are being put together.
    pub memory: Budget,
    /// Selections that may be long run this many at a time, off the threads that serve.
    pub large_reads: Arc<Semaphore>,
    /// One at a time.
    pub defragmentation: Arc<Mutex<()>>,
    /// What the gRPC health service says.
    pub serving: watch::Sender<bool>,
    raising_nospace: AtomicBool,
}

impl Member {
    pub fn new(
        identity: Identity,
        origin: Vec<pb::Member>,
        node: Arc<Node>,
        hub: Hub,
        limits: Limits,
        counts: Arc<Counts>,
        memory: Budget,
    ) -> Self {
        let store = node.store().clone();
        let large_reads = Arc::new(Semaphore::new(LARGE_READS));
        let raising_nospace = AtomicBool::new(false);
        Self {
            id: identity.member,
            cluster: identity.cluster,
            incarnation: identity.incarnation,
            origin,
            node,
            store,
            hub,
            limits,
            counts,
            memory,
            large_reads,
            defragmentation: Arc::default(),
            serving: watch::Sender::new(true),
            raising_nospace,
        }
    }

    /// This member has no vote, and serves little.
    pub fn is_learner(&self) -> bool {
        self.store.is_learner(self.id)
    }

    /// A header that speaks of `revision`, with the term as it is now.
    pub fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.id.0,
            revision: revision.0,
            raft_term: self.node.term(),
        }
    }

    /// A header that speaks of the store as it is now.
    pub fn header_now(&self) -> ResponseHeader {
        self.header(self.store.revision())
    }

    /// Sends a command through the log and waits until this member has applied it.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, Status> {
        let begun = Instant::now();
        let answer = tokio::time::timeout(self.limits.request_timeout, self.node.propose(command)).await;
        let success = matches!(&answer, Ok(Ok(outcome)) if outcome.result.is_ok());
        self.counts.proposed(Op::of(command), success, begun.elapsed());
        let error = match answer {
            Ok(Ok(outcome)) => return Ok(outcome),
            Err(_) if self.node.leader().is_none() => Error::DeadlineExceeded,
            Err(_) => self.timed_out(begun.elapsed()),
            Ok(Err(error)) => refused(error),
        };
        Err(error.into())
    }

    /// Why a proposal that was made so long ago may not have come through, in etcd's words.
    fn timed_out(&self, ago: Duration) -> Error {
        // The leader before was lost up to two election timeouts before this one was known.
        let lost_and_found = self
            .node
            .led_for()
            .is_some_and(|led| led < ago && ago < led.saturating_add(self.limits.election_timeout * 2));
        if lost_and_found {
            return Error::TimeoutLeaderFail;
        }
        let connected = self.node.connected(ago);
        let in_touch = match self.node.leader() {
            Some(leader) if leader == self.id.0 => {
                let voters = self.store.members().into_iter().filter(|member| !member.is_learner);
                let (there, all) = voters.fold((0, 0), |(there, all), voter| {
                    (there + usize::from(connected.contains(&voter.id)), all + 1)
                });
                there > all / 2
            }
            Some(leader) => connected.contains(&leader),
            None => true,
        };
        if in_touch {
            Error::Timeout
        } else {
            Error::TimeoutConnectionLost
        }
    }

    /// Waits until a local read sees everything that was acknowledged before the call.
    pub async fn linearize(&self) -> Result<(), Status> {
        match tokio::time::timeout(self.limits.request_timeout, self.node.barrier().pass()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(BarrierError::Stopped)) => Err(Error::Stopped.into()),
            Err(_) => {
                self.counts.slow_reads.inc();
                Err(Error::Timeout.into())
            }
        }
    }

    /// Whether a learner has caught up with the leader.
    pub async fn is_in_sync(&self, learner: u64) -> Result<bool, Status> {
        let asked = self.node.is_in_sync(learner);
        match tokio::time::timeout(self.limits.request_timeout, asked).await {
            Ok(answer) => answer.map_err(|error| refused(error).into()),
            Err(_) => Err(Error::Timeout.into()),
        }
    }

    /// `--max-request-bytes`, for a request of so many encoded bytes.
    pub fn check_size(&self, encoded: usize) -> Result<(), Status> {
        // etcd's request ids begin with 16 bits of the member's id; the longer of them take a byte more.
        let id = prost::encoding::encoded_len_varint((self.id.0 & 0xffff) << 48);
        if encoded + REQUEST_OVERHEAD + id > self.limits.request_bytes {
            return Err(Error::RequestTooLarge.into());
        }
        Ok(())
    }

    /// Refuses what would take the store over its quota, and raises the alarm that makes all members refuse. Requests
    /// that cost nothing pass, since only they can make room; a log that is all but full refuses even these, later.
    pub fn check_quota(self: &Arc<Self>, cost: u64) -> Result<(), Status> {
        if cost == 0 {
            return Ok(());
        }
        if self.store.is_full() || self.node.is_log_full() {
            return Err(Error::NoSpace.into());
        }
        let Some(quota) = self.limits.quota_bytes else {
            return Ok(());
        };
        if self.store.in_use_bytes().saturating_add(cost) < quota {
            return Ok(());
        }
        self.raise_nospace();
        Err(Error::NoSpace.into())
    }

    /// Returns when everything that compaction up to `revision` takes is gone from the file for good.
    pub async fn wait_for_compaction(&self, revision: i64) -> Result<(), Status> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.store.on_compacted(revision, move |result| drop(tx.send(result)));
        match rx.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Error::Stopped.into()),
        }
    }

    fn raise_nospace(self: &Arc<Self>) {
        let raised = |alarm: &quorate_api::proto::etcdserverpb::AlarmMember| {
            alarm.member_id == self.id.0 && alarm.alarm() == AlarmType::Nospace
        };
        if self.store.alarms().iter().any(raised) || self.raising_nospace.swap(true, Ordering::AcqRel) {
            return;
        }
        warn!(
            quota_bytes = self.limits.quota_bytes,
            "quota exceeded; raising the NOSPACE alarm"
        );
        let member = self.clone();
        tokio::spawn(async move {
            let alarm = AlarmSet {
                member_id: member.id.0,
                alarm: AlarmType::Nospace as i32,
                active: true,
            };
            let _ = member.propose(&Command::AlarmSet(alarm)).await;
            member.raising_nospace.store(false, Ordering::Release);
        });
    }
}
