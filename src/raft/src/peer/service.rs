//! The side that is asked: what a member does for its peers.

use super::message::{self, Malformed};
use super::{Answer, PROTOCOL, Reason, Request};
use crate::lessor::TimeToLive;
use crate::node::{LeaseError, Parts};
use crate::state_machine::received_snapshot;
use crate::types::{TypeConfig, Vote, position};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use quorate_api::proto::quorate::peer::{self as pb, forward_answer::Fate, in_sync_answer};
use quorate_api::{ClusterId, MemberId};
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use quorate_store::{Incoming, Received};
use std::collections::HashMap;
use std::sync::Arc;

/// What a peer is refused with.
pub type Refusal = pb::Refused;

pub(crate) fn refusal(reason: Reason, text: impl Into<String>) -> Refusal {
    pb::Refused {
        reason: reason as i32,
        text: text.into(),
    }
}

fn malformed(error: &Malformed) -> Refusal {
    refusal(Reason::Malformed, error.to_string())
}

/// Serves peers. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    parts: Arc<Parts>,
}

impl Service {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        Self { parts }
    }

    /// Of this member's data directory.
    pub fn incarnation(&self) -> u64 {
        self.parts.identity.incarnation
    }

    /// Whether whoever says this may talk to this member: asked first on every link, and again for every request, since
    /// members are removed.
    pub fn admit(&self, hello: &pb::Hello) -> Result<(), Refusal> {
        let own = &self.parts.identity;
        if hello.protocol != PROTOCOL {
            let text = format!("speaks peer protocol {}, this member speaks {PROTOCOL}", hello.protocol);
            return Err(refusal(Reason::OtherProtocol, text));
        }
        if hello.cluster_id != own.cluster {
            let (theirs, ours) = (ClusterId(hello.cluster_id), ClusterId(own.cluster));
            let text = format!("is of cluster {theirs}, this member is of cluster {ours}");
            return Err(refusal(Reason::OtherCluster, text));
        }
        if hello.to != own.member {
            let (meant, found) = (MemberId(hello.to), MemberId(own.member));
            let text = format!("looks for member {meant} and found {found}: is its peer URL right?");
            return Err(refusal(Reason::WrongMember, text));
        }
        let from = MemberId(hello.from);
        let standing = self.parts.store.standing(from);
        // The table's word, or else the first that was seen of a member.
        let known = || {
            standing
                .incarnation
                .or_else(|| self.parts.seen.lock().get(&hello.from).copied())
        };
        if standing.is_removed {
            // One that is still counted is needed, it and no wiped one: its vote may decide that it is not.
            let is_leaving =
                known().is_none_or(|known| known == hello.incarnation) && self.parts.is_counted(hello.from);
            #[cfg(feature = "planted")]
            let is_leaving = is_leaving && !planted::is(Bug::RemovedCutOff);
            if is_leaving {
                return Ok(());
            }
            return Err(refusal(
                Reason::Removed,
                format!("member {from} has been removed from the cluster"),
            ));
        }
        let is_known = standing.is_member || own.known.contains(&hello.from);
        // Only who leads can tell that somebody is no member: this one's table may be older than the other's membership,
        // and the other may be the one to say so, as a leader or a candidate. etcd's members do the same.
        if hello.from == own.member || !is_known && self.parts.leads() {
            return Err(refusal(
                Reason::UnknownMember,
                format!("member {from} is not known here"),
            ));
        }
        let known = known().unwrap_or(hello.incarnation);
        if is_known && standing.incarnation.is_none() {
            self.parts.seen.lock().entry(hello.from).or_insert(hello.incarnation);
        }
        #[cfg(feature = "planted")]
        let known = if planted::is(Bug::WipedCounted) {
            hello.incarnation
        } else {
            known
        };
        if known == hello.incarnation {
            return Ok(());
        }
        let text = format!(
            "member {from} has come back with another data directory, without what it had acknowledged: remove the member \
             and add it again"
        );
        Err(refusal(Reason::OtherIncarnation, text))
    }

    /// Works on a request. Appends take their place in openraft's queue when the future is first polled, so whoever polls
    /// in the order of requests keeps it.
    pub async fn handle(&self, from: &pb::Hello, request: Request) -> Answer {
        let Ok(_inside) = self.parts.door.try_read() else {
            return Answer::Refused(refusal(Reason::NotReady, "this member is stopping"));
        };
        if let Err(refused) = self.admit(from) {
            return Answer::Refused(refused);
        }
        match self.answer(from, request).await {
            Ok(answer) => answer,
            Err(refused) => Answer::Refused(refused),
        }
    }

    async fn answer(&self, from: &pb::Hello, request: Request) -> Result<Answer, Refusal> {
        let raft = &self.parts.raft;
        let ended = |_| refusal(Reason::NotReady, "consensus has ended here");
        Ok(match request {
            Request::Hello(_) => return Err(refusal(Reason::Malformed, "a second hello")),
            Request::Ping(_) => Answer::Pong(pb::Pong {}),
            Request::Append(append) => {
                let request = message::get_append(append).map_err(|error| malformed(&error))?;
                self.check_append(from, &request)?;
                // Before consensus hears of it: whoever then hears that there is a leader finds it heard.
                self.parts.heard(request.vote.leader_id.term, from.from);
                let answer = raft.append_entries(request).await.map_err(ended)?;
                Answer::Append(message::put_append_answer(&answer))
            }
            Request::Vote(request) => {
                let request = message::get_vote_request(request).map_err(|error| malformed(&error))?;
                check_candidate(from, &request.vote)?;
                let answer = raft.vote(request).await.map_err(ended)?;
                Answer::Vote(message::put_vote_answer(&answer))
            }
            Request::PreVote(request) => {
                let request = message::get_vote_request(request).map_err(|error| malformed(&error))?;
                check_candidate(from, &request.vote)?;
                let answer = raft.pre_vote(request).await.map_err(ended)?;
                Answer::PreVote(message::put_vote_answer(&answer))
            }
            Request::Transfer(request) => {
                let request = message::get_transfer(request).map_err(|error| malformed(&error))?;
                check_candidate(from, request.from_leader())?;
                let answer = raft
                    .handle_transfer_leader(request)
                    .await
                    .map_err(|_| refusal(Reason::NotReady, "consensus has ended here"))?;
                Answer::Transfer(pb::TransferAnswer {
                    accepted: answer.is_ok(),
                    reason: answer.err().map(|error| error.to_string()).unwrap_or_default(),
                })
            }
            Request::Forward(forward) => {
                let batch = message::get_forwarded(forward.batch).map_err(|error| malformed(&error))?;
                if batch.origin().member != from.from || batch.origin().boot != from.boot {
                    return Err(refusal(Reason::Malformed, "a batch of another origin"));
                }
                let fate = if self.parts.leads() {
                    let proposer = self.parts.proposer.clone();
                    proposer.accept(raft.clone(), batch, forward.grows_store).await
                } else {
                    Fate::NotLeader
                };
                Answer::Forward(pb::ForwardAnswer { fate: fate as i32 })
            }
            Request::Reach(_) => Answer::Reach(self.parts.reach(from.from)),
            Request::Hash(ask) => Answer::Hash(self.parts.hash(ask.revision).await),
            Request::ReadIndex(_) => {
                let index = if self.parts.leads() {
                    self.parts.barrier.index().await.unwrap_or(0)
                } else {
                    0
                };
                Answer::ReadIndex(pb::ReadIndexAnswer { index })
            }
            Request::LeaseRenew(ask) => {
                let renewed = self.parts.asked(ask, |parts, id| parts.renew_here(id)).await;
                let full = |secs: i64| TimeToLive {
                    granted_secs: secs,
                    remaining_secs: secs,
                };
                Answer::Lease(lease_answer(renewed.map(|renewed| renewed.map(full))))
            }
            Request::LeaseTimeToLive(ask) => {
                let left = self.parts.asked(ask, |parts, id| parts.time_to_live_here(id)).await;
                Answer::Lease(lease_answer(left))
            }
            Request::InSync(ask) => {
                let state = match self.parts.is_in_sync_here(ask.id) {
                    None => in_sync_answer::State::NotLeader,
                    Some(true) => in_sync_answer::State::Yes,
                    Some(false) => in_sync_answer::State::No,
                };
                Answer::InSync(pb::InSyncAnswer { state: state as i32 })
            }
        })
    }

    /// What nobody but a liar sends: entries that contradict committed ones, a leader that speaks for another.
    fn check_append(&self, from: &pb::Hello, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Refusal> {
        check_candidate(from, &request.vote)?;
        let (Some(first), Some(committed)) = (request.entries.first(), self.parts.wal.committed()) else {
            return Ok(());
        };
        // A leader that does not know yet that it is none any more: what it has beyond the committed entries may be
        // anything, and consensus tells it so.
        if request.vote < self.parts.raft.server_metrics().borrow_watched().vote {
            return Ok(());
        }
        let known = position(first.log_id.index)..committed.index.saturating_add(1);
        if known.is_empty() {
            return Ok(());
        }
        // Entries that are here already, sent again. What is purged can't be compared, and won't be looked at.
        let (purged, _) = self.parts.wal.state();
        let known = known.start.max(purged.map_or(0, |purged| purged.index) + 1)..known.end;
        if known.is_empty() {
            return Ok(());
        }
        let sent: HashMap<u64, u64> = request
            .entries
            .iter()
            .map(|entry| (position(entry.log_id.index), entry.log_id.leader_id.term))
            .collect();
        let here = self
            .parts
            .wal
            .read(known, COMPARED_BYTES)
            .map_err(|error| refusal(Reason::NotReady, format!("the log can't be read: {error}")))?;
        let other = here
            .iter()
            .find(|entry| sent.get(&entry.pos.index).is_some_and(|term| *term != entry.pos.term));
        match other {
            None => Ok(()),
            Some(entry) => Err(refusal(
                Reason::Malformed,
                format!(
                    "entry {} is committed here with term {}",
                    entry.pos.index, entry.pos.term
                ),
            )),
        }
    }

    /// Begins to take in a snapshot: checks what its sender says of it.
    pub fn snapshot(&self, head: pb::SnapshotHead) -> Result<Arrival, Refusal> {
        let hello = head
            .hello
            .ok_or(Malformed::Missing("hello"))
            .map_err(|error| malformed(&error))?;
        self.admit(&hello)?;
        let vote = message::get_vote(head.vote).map_err(|error| malformed(&error))?;
        check_candidate(&hello, &vote)?;
        if !vote.committed {
            return Err(malformed(&Malformed::NotCommitted));
        }
        let last = head
            .last
            .ok_or(Malformed::Missing("last"))
            .and_then(message::get_log_id);
        let last = last.map_err(|error| malformed(&error))?;
        let index = position(last.index);
        if last.leader_id.term > vote.leader_id.term {
            return Err(malformed(&Malformed::Future {
                index,
                term: last.leader_id.term,
                leader: vote.leader_id.term,
            }));
        }
        Ok(Arrival {
            parts: self.parts.clone(),
            vote,
            last,
        })
    }
}

/// What is left of a lease, if there is one and anything can be said.
fn lease_answer(left: Result<Option<TimeToLive>, LeaseError>) -> pb::LeaseAnswer {
    use pb::lease_answer::State;
    let (state, left) = match left {
        Ok(Some(left)) => (State::Alive, Some(left)),
        Ok(None) => (State::Gone, None),
        Err(_) => (State::NotLeader, None),
    };
    pb::LeaseAnswer {
        state: state as i32,
        granted_secs: left.map_or(0, |left| left.granted_secs),
        remaining_secs: left.map_or(0, |left| left.remaining_secs),
    }
}

/// Entries that came again are compared as far as they fit in here: openraft would look at them one by one.
const COMPARED_BYTES: usize = 4 << 20;

/// Nobody stands for another or leads in its name.
fn check_candidate(from: &pb::Hello, vote: &Vote) -> Result<(), Refusal> {
    if vote.leader_id.voted_for == from.from {
        return Ok(());
    }
    Err(refusal(Reason::Malformed, "a vote of another member"))
}

/// A snapshot that a peer wants to send. Taking it in writes and syncs: [`Arrival::begin`], pushing and finishing are
/// not for async threads.
pub struct Arrival {
    parts: Arc<Parts>,
    vote: Vote,
    last: crate::types::LogId,
}

impl Arrival {
    /// Of the leader that sends it.
    pub fn term(&self) -> u64 {
        self.vote.leader_id.term
    }

    /// `None`: another is being taken in, or a defragmentation first has to give way.
    pub fn begin(&self) -> Result<Option<Incoming>, Refusal> {
        match self.parts.store.receive() {
            Ok(incoming) => Ok(Some(incoming)),
            Err(quorate_store::Error::Receiving | quorate_store::Error::Defragmenting) => Ok(None),
            Err(error) => Err(refusal(
                Reason::NotReady,
                format!("no snapshot can be taken in: {error}"),
            )),
        }
    }

    /// Installs what was received, and returns this member's vote, as the sender wants to know it.
    pub async fn install(self, received: Received) -> Result<pb::Vote, Refusal> {
        let snapshot = received_snapshot(received)
            .map_err(|error| refusal(Reason::Malformed, format!("the snapshot can't be read: {error}")))?;
        if snapshot.meta.last_log_id != Some(self.last) {
            return Err(refusal(Reason::Malformed, "the snapshot is another than was said"));
        }
        // openraft panics at a snapshot that contradicts what is committed here; nobody but a liar sends one.
        if let Some(committed) = self.parts.wal.committed() {
            let (index, term) = (position(self.last.index), self.last.leader_id.term);
            let newer = (term, index) > (committed.term, committed.index);
            if newer && index <= committed.index {
                let text = format!(
                    "entry {} is committed here with term {}",
                    committed.index, committed.term
                );
                return Err(refusal(Reason::Malformed, text));
            }
        }
        let installed = self.parts.raft.install_full_snapshot(self.vote, snapshot).await;
        match installed {
            Ok(response) => Ok(message::put_vote(&response.vote)),
            Err(_) => Err(refusal(Reason::NotReady, "consensus has ended here")),
        }
    }
}
