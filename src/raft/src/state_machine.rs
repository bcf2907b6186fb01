//! openraft's state machine over [`quorate_store`].
//!
//! A batch's commands are applied in order and its waiters answered in one pass, by this member, from its own apply:
//! that is what keeps a later read on the same endpoint from going back in time.

use crate::batch;
use crate::barrier::Barrier;
use crate::lessor::Lessor;
use crate::proposer::Proposer;
use crate::types::{LogId, StoredMembership, TypeConfig, log_id, position};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use quorate_store::command::{Command, Outcome, Reply};
use quorate_store::{Applied, Applier, Store};
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// What a snapshot hands over: a consistent image of the store.
#[derive(Debug)]
pub struct SnapshotData {
    applied: Option<Applied>,
}

/// What apply tells the rest of the node.
pub struct Listeners {
    pub proposer: Arc<Proposer>,
    pub lessor: Arc<Lessor>,
    pub barrier: Arc<Barrier>,
    /// Position of the last entry that was applied.
    pub applied: watch::Sender<u64>,
}

pub struct StateMachine {
    applier: Applier,
    store: Store,
    listeners: Listeners,
    outcomes: Vec<Outcome>,
}

impl StateMachine {
    pub fn new(applier: Applier, store: Store, listeners: Listeners) -> Self {
        Self { applier, store, listeners, outcomes: Vec::new() }
    }

    fn apply_batch(&mut self, at: Applied, batch: &batch::Batch) -> io::Result<()> {
        let commands = batch.commands().map_err(|error| invalid(at, &error))?;
        let leases = commands.iter().map(LeaseChange::of).collect::<Vec<_>>();
        self.outcomes.clear();
        self.applier.apply(at, commands, &mut self.outcomes).map_err(io::Error::other)?;
        for (change, outcome) in leases.into_iter().zip(&self.outcomes) {
            change.tell(&self.listeners.lessor, outcome);
        }
        // Announced before it is answered: whoever hears an answer may ask what is applied.
        self.listeners.applied.send_replace(at.index);
        self.listeners.proposer.applied(batch.origin(), at.index, self.outcomes.drain(..));
        Ok(())
    }

    fn apply_membership(&mut self, at: Applied, id: LogId, membership: crate::types::Membership) -> io::Result<()> {
        let stored = StoredMembership::new(Some(id), membership);
        self.applier.apply_empty(at, Some(encode_stored(&stored))).map_err(io::Error::other)?;
        self.listeners.applied.send_replace(at.index);
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.applier.applied().map(|applied| log_id(applied.term, applied.index - 1));
        let membership = decode_stored(self.applier.raft_membership())?;
        Ok((applied, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let at = Applied { index: position(entry.log_id.index), term: entry.log_id.leader_id.term };
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
        SnapshotBuilder { store: self.store.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let _ = (meta, snapshot);
        Err(io::Error::other("TODO"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        current_snapshot(&self.store)
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
        self.store.flush().map_err(io::Error::other)?;
        match current_snapshot(&self.store)? {
            Some(snapshot) => Ok(snapshot),
            None => Err(io::Error::other("nothing has been applied yet, so there is nothing to take a snapshot of")),
        }
    }
}

fn current_snapshot(store: &Store) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
    let _ = store;
    Ok(None)
}

/// What a command does to leases, remembered across its apply.
enum LeaseChange {
    None,
    Grant,
    Revoke { id: i64 },
}

impl LeaseChange {
    fn of(command: &Command) -> Self {
        match command {
            Command::LeaseGrant(_) => Self::Grant,
            Command::LeaseRevoke(revoke) => Self::Revoke { id: revoke.id },
            _ => Self::None,
        }
    }

    fn tell(self, lessor: &Lessor, outcome: &Outcome) {
        match (self, &outcome.result) {
            (Self::Grant, Ok(Reply::LeaseGrant { id, ttl_secs })) => lessor.granted(*id, *ttl_secs),
            // A stale revocation ends as `Done` and changes nothing.
            (Self::Revoke { id }, Ok(Reply::LeaseRevoke)) => lessor.revoked(id),
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
    let Some(raw) = raw else { return Ok(StoredMembership::default()) };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the stored raft membership can't be read");
    let (head, rest) = raw.split_at_checked(17).ok_or_else(damaged)?;
    let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).map_err(|_| damaged());
    let id = if head[0] != 0 { Some(log_id(number(1)?, number(9)?)) } else { None };
    let membership = batch::decode_membership(rest).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(StoredMembership::new(id, membership))
}

fn invalid(at: Applied, error: &batch::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("entry {} can't be applied: {error}", at.index))
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
