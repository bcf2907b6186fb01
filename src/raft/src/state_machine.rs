//! openraft's state machine over [`quorate_store`].
//!
//! A batch's commands are applied in order and its waiters answered in one pass, by this member, from its own apply:
//! that is what keeps a later read on the same endpoint from going back in time.

use crate::alone::Alone;
use crate::batch;
use crate::lessor::{Lessor, Monotonic, Remainder};
use crate::log_store::Flushed;
use crate::observer::{Observer, Op};
use crate::proposer::{Proposer, Whose};
use crate::runtime::watch;
use crate::space::LogSpace;
use crate::types::{LogId, StoredMembership, TypeConfig, log_id, position};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::storage::{Snapshot, SnapshotMeta};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use quorate_api::proto::quorate::LeaseRemainder;
use quorate_store::command::{Command, Outcome, Reply};
use quorate_store::{Applied, Applier, Error, Image, Received, Store, backend};
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tracing::error;

/// What a snapshot is made of, at either end of a transfer.
#[derive(Debug)]
pub enum SnapshotData {
    /// Of this member's own store, to be read out with [`Image::read`].
    Image(Image),
    /// From a peer. It was checked and is durable before openraft hears of it, since openraft ends for good when an
    /// install fails: a bad transfer must not come as far.
    Received(Box<Received>),
}

/// What apply tells the rest of the node.
pub struct Listeners {
    pub proposer: Arc<Proposer>,
    pub lessor: Arc<Lessor>,
    pub alone: Arc<Alone>,
    pub observer: Arc<dyn Observer>,
    /// Position of the last entry that was applied.
    pub applied: watch::Sender<u64>,
    /// The members table has changed.
    pub members_changed: watch::Sender<()>,
    /// Nothing is applied before it is durable in this member's log.
    pub flushed: Flushed,
}

impl Listeners {
    /// Of a member that nobody asks anything of, as in tests of storage; with where to hear what is applied.
    pub fn quiet() -> (Self, watch::Receiver<u64>) {
        let (applied, heard) = watch::channel(0);
        let listeners = Self {
            proposer: Arc::new(Proposer::new(Whose::default(), LogSpace::endless())),
            lessor: Arc::new(Lessor::new(Box::new(Monotonic::default()))),
            alone: Arc::default(),
            observer: Arc::new(()),
            applied,
            members_changed: watch::Sender::new(()),
            flushed: Flushed::upto(u64::MAX),
        };
        (listeners, heard)
    }
}

pub struct StateMachine {
    applier: Applier,
    store: Store,
    listeners: Listeners,
    outcomes: Vec<Outcome>,
}

impl StateMachine {
    pub fn new(applier: Applier, store: Store, listeners: Listeners) -> Self {
        Self {
            applier,
            store,
            listeners,
            outcomes: Vec::new(),
        }
    }

    fn apply_batch(&mut self, at: Applied, batch: &batch::Batch) -> io::Result<()> {
        let commands = batch.commands().map_err(|error| invalid(at, &error))?;
        let leases = commands.iter().map(LeaseChange::of).collect::<Vec<_>>();
        let ops = commands.iter().map(Op::of).collect::<Vec<_>>();
        self.outcomes.clear();
        let begun = Instant::now();
        let origin = batch.origin();
        let heard = self.listeners.proposer.awaits(origin);
        let fresh = self
            .applier
            .apply_once(at, origin, heard, commands, &mut self.outcomes)
            .map_err(io::Error::other)?;
        if !fresh {
            self.listeners.applied.send_replace(at.index);
            self.listeners.proposer.passed_over(origin);
            return Ok(());
        }
        let unreadable = |outcome: &Outcome| outcome.result == Err(quorate_api::Error::AnswerUnreadable);
        if self.outcomes.iter().any(unreadable)
            && let Some(error) = self.applier.take_unread()
        {
            error!(index = at.index, %error, "a value that an answer needs can't be read");
        }
        self.listeners.observer.applied(&ops, &self.outcomes, begun.elapsed());
        for (change, outcome) in leases.into_iter().zip(&self.outcomes) {
            change.tell(&self.listeners.lessor, outcome);
        }
        // Announced before it is answered: whoever hears an answer may ask what is applied.
        self.listeners.applied.send_replace(at.index);
        if ops.iter().any(|op| matches!(op, Op::Membership | Op::MemberPublish)) {
            self.listeners.members_changed.send_replace(());
        }
        self.listeners.proposer.applied(origin, self.outcomes.drain(..));
        Ok(())
    }

    fn apply_membership(&mut self, at: Applied, id: LogId, membership: crate::types::Membership) -> io::Result<()> {
        let stored = StoredMembership::new(Some(id), membership);
        self.applier
            .apply_empty(at, Some(encode_stored(&stored)))
            .map_err(io::Error::other)?;
        self.listeners.applied.send_replace(at.index);
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self
            .applier
            .applied()
            .map(|applied| log_id(applied.term, applied.index - 1));
        let membership = decode_stored(self.applier.raft_membership())?;
        Ok((applied, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let at = Applied {
                index: position(entry.log_id.index),
                term: entry.log_id.leader_id.term,
            };
            self.listeners.flushed.wait(at.index).await?;
            match entry.payload {
                EntryPayload::Normal(batch) => self.apply_batch(at, &batch)?,
                EntryPayload::Membership(membership) => self.apply_membership(at, entry.log_id, membership)?,
                EntryPayload::Blank => {
                    self.applier.apply_empty(at, None).map_err(io::Error::other)?;
                    self.listeners.applied.send_replace(at.index);
                }
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            store: self.store.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.listeners.alone.doubt();
        let received = match snapshot {
            SnapshotData::Received(received) => *received,
            SnapshotData::Image(image) => {
                let store = self.store.clone();
                spawn_blocking(move || copy(&store, &image)).await?
            }
        };
        let found = meta_of(Some(received.applied()), received.raft_membership())?;
        if found != *meta {
            return Err(io::Error::other(format!(
                "the snapshot should be {meta} and is {found}"
            )));
        }
        let index = received.applied().index;
        self.applier.install(received).map_err(io::Error::other)?;
        self.listeners.applied.send_replace(index);
        self.listeners.members_changed.send_replace(());
        self.listeners.proposer.jumped(|origin| self.store.has_passed(origin));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let snapshot = durable_snapshot(&self.store)?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

/// Names the last durable commit of the backend: no copying, no pinned pages. openraft purges the log behind what was
/// "built"; a transfer reads a fresh image when it starts.
pub struct SnapshotBuilder {
    store: Store,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        let store = self.store.clone();
        let built = spawn_blocking(move || {
            match store.flush() {
                // The disk is full. What is durable is what there is to name; a failure here would end the node.
                Err(Error::Backend(backend::Error::DiskFull)) => {}
                flushed => drop(flushed.map_err(io::Error::other)?),
            }
            durable_snapshot(&store)
        });
        built.await
    }
}

/// The last durable commit of the store. Before anything was applied it names nothing, and purges nothing.
fn durable_snapshot(store: &Store) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
    let image = store.image().map_err(io::Error::other)?;
    let meta = meta_of(image.applied(), image.raft_membership().map_err(io::Error::other)?)?;
    Ok(Snapshot {
        meta,
        snapshot: SnapshotData::Image(image),
    })
}

/// A received image as openraft wants it.
pub fn received_snapshot(received: Received) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
    let meta = meta_of(Some(received.applied()), received.raft_membership())?;
    Ok(Snapshot {
        meta,
        snapshot: SnapshotData::Received(Box::new(received)),
    })
}

fn meta_of(applied: Option<Applied>, membership: Option<Bytes>) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    let last_log_id = applied.map(|applied| log_id(applied.term, applied.index.saturating_sub(1)));
    Ok(SnapshotMeta {
        last_log_id,
        last_membership: decode_stored(membership)?,
    })
}

/// An image of a store in this process, as if it had come from a peer.
fn copy(store: &Store, image: &Image) -> io::Result<Received> {
    let mut incoming = store.receive().map_err(io::Error::other)?;
    for piece in image.read() {
        let piece = piece.map_err(io::Error::other)?;
        incoming.push(piece).map_err(io::Error::other)?;
    }
    incoming.finish().map_err(io::Error::other)
}

/// Syncs and long reads leave the threads that heartbeats run on.
async fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    crate::runtime::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// What a command does to leases, remembered across its apply.
enum LeaseChange {
    None,
    Grant,
    Revoke { id: i64 },
    Checkpoint { term: u64, remainders: Vec<Remainder> },
}

impl LeaseChange {
    fn of(command: &Command) -> Self {
        match command {
            Command::LeaseGrant(_) => Self::Grant,
            Command::LeaseRevoke(revoke) => Self::Revoke { id: revoke.id },
            Command::LeaseCheckpoint(checkpoint) => {
                let remainder = |left: &LeaseRemainder| Remainder {
                    id: left.id,
                    remaining_secs: left.remaining_secs,
                };
                Self::Checkpoint {
                    term: checkpoint.term,
                    remainders: checkpoint.remainders.iter().map(remainder).collect(),
                }
            }
            _ => Self::None,
        }
    }

    fn tell(self, lessor: &Lessor, outcome: &Outcome) {
        match (self, &outcome.result) {
            (Self::Grant, Ok(Reply::LeaseGrant { id, ttl_secs })) => lessor.granted(*id, *ttl_secs),
            // A stale revocation ends as `Done` and changes nothing.
            (Self::Revoke { id }, Ok(Reply::LeaseRevoke)) => lessor.revoked(id),
            // A stale one ends the same way; the lessor of its term is gone then, or will renew nothing any more.
            (Self::Checkpoint { term, remainders }, Ok(_)) => {
                remainders.into_iter().for_each(|noted| lessor.noted(term, noted));
            }
            _ => {}
        }
    }
}

/// has log id u8 · term u64 · index u64 · membership as in the log, little-endian.
fn encode_stored(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    let (term, index) = stored.log_id().map_or((0, 0), |id| (id.leader_id.term, id.index));
    out.put_u8(u8::from(stored.log_id().is_some()));
    out.put_u64_le(term);
    out.put_u64_le(index);
    batch::encode_membership(stored.membership(), &mut out);
    out.freeze()
}

fn decode_stored(raw: Option<Bytes>) -> io::Result<StoredMembership> {
    let Some(raw) = raw else {
        return Ok(StoredMembership::default());
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the stored raft membership can't be read");
    let (head, rest) = raw.split_at_checked(17).ok_or_else(damaged)?;
    let number = |at: usize| {
        head[at..at + 8]
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| damaged())
    };
    let id = if head[0] != 0 {
        Some(log_id(number(1)?, number(9)?))
    } else {
        None
    };
    let membership = batch::decode_membership(rest).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(StoredMembership::new(id, membership))
}

fn invalid(at: Applied, error: &batch::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("entry {} can't be applied: {error}", at.index),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Membership;

    #[test]
    fn stored_membership_reads_back() {
        let membership = Membership::new_with_defaults(vec![[1, 2].into()], [3]);
        for id in [None, Some(log_id(4, 0)), Some(log_id(4, 17))] {
            let stored = StoredMembership::new(id, membership.clone());
            assert_eq!(decode_stored(Some(encode_stored(&stored))).unwrap(), stored);
        }
        assert_eq!(decode_stored(None).unwrap(), StoredMembership::default());
        assert!(decode_stored(Some(Bytes::from_static(&[1, 2]))).is_err());
    }
}
