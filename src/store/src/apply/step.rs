//! One entry being applied. It holds the locks of index and tables, lets readers in between slices of long commands,
//! and gathers what goes to the backend and to watchers.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::RwLockWriteGuard;
use quorate_api::proto::etcdserverpb::{self as pb, AlarmType};
use quorate_api::proto::mvccpb::KeyValue;
use quorate_api::proto::quorate as wire;
use quorate_api::{Error as Answer, KeyRange, MemberId, Revision};

use super::APPLY_SLICE_KEYS;
use super::size::{Ahead, Room};
use crate::backend::{Row, RowId, SystemWrite, View};
use crate::command::{Command, Outcome, Reply};
use crate::error::Error;
use crate::event::{Event, EventBatch, EventKind};
use crate::mvcc::gather::Gather;
use crate::mvcc::index::{NewVersion, Resume};
use crate::mvcc::pair;
use crate::mvcc::version::Version;
use crate::origins::Origin;
use crate::store::{Mvcc, Shared};
use crate::tables::Tables;
use crate::validate;

pub(super) struct Step<'s> {
    shared: &'s Shared,
    pub(super) mvcc: RwLockWriteGuard<'s, Mvcc>,
    pub(super) tables: RwLockWriteGuard<'s, Tables>,
    term: u64,
    /// The store's revision; a transaction under way writes the next one.
    pub(super) revision: i64,
    rows: Vec<Row>,
    system: Vec<SystemWrite>,
    batches: Vec<Arc<EventBatch>>,
    /// Of the transaction under way.
    events: Vec<Event>,
    /// Somebody waits for the answers. If not, they come without pairs, and nothing is read for those.
    answers: bool,
    /// For answers, whether somebody waits or not: what is refused must not depend on it.
    pub(super) room: Room,
    /// Values that answers wait for, see [`super::fill`].
    fills: Vec<Option<RowId>>,
    /// Why the answer of the command under way has to go without.
    unreadable: Option<Error>,
    unread: Option<Error>,
    compactions: Vec<Compaction>,
    view: Option<View>,
}

/// A compaction that came into force.
pub(super) struct Compaction {
    pub revision: i64,
    pub previous: i64,
}

pub(super) struct Done {
    pub revision: i64,
    pub compacted: i64,
    pub rows: Vec<Row>,
    pub system: Vec<SystemWrite>,
    pub batches: Vec<Arc<EventBatch>>,
    pub fills: Vec<Option<RowId>>,
    /// The first value that an answer should have had and that can't be read.
    pub unread: Option<Error>,
    pub compactions: Vec<Compaction>,
}

impl<'s> Step<'s> {
    pub fn new(shared: &'s Shared, term: u64, answers: bool) -> Self {
        let mvcc = shared.mvcc.write();
        let tables = shared.tables.write();
        Self {
            shared,
            mvcc,
            tables,
            term,
            revision: shared.revision(),
            rows: Vec::new(),
            system: Vec::new(),
            batches: Vec::new(),
            events: Vec::new(),
            answers,
            room: Room::default(),
            fills: Vec::new(),
            unreadable: None,
            unread: None,
            compactions: Vec::new(),
            view: None,
        }
    }

    pub fn finish(self) -> Done {
        debug_assert!(self.events.is_empty(), "every command ends its transaction");
        Done {
            revision: self.revision,
            compacted: self.mvcc.compacted,
            rows: self.rows,
            system: self.system,
            batches: self.batches,
            fills: self.fills,
            unread: self.unread,
            compactions: self.compactions,
        }
    }

    /// Before the commands of a batch: whether they are to run at all.
    pub fn begin(&mut self, origin: Origin) -> bool {
        // What is remembered of a member goes with it, so that nothing could tell a late repeat of its from a new batch.
        if self.tables.members.is_removed(MemberId(origin.member)) {
            return false;
        }
        self.tables.origins.advance(origin)
    }

    /// Runs one command to its outcome. An error is fatal.
    pub fn run(&mut self, command: Command) -> Result<Outcome, Error> {
        let fills = self.fills.len();
        let executed = self.permit(&command).and_then(|()| self.execute(command));
        let unreadable = self.unreadable.take();
        let result = match executed {
            Ok(_) if unreadable.is_some() => {
                self.fills.truncate(fills);
                self.unread = self.unread.take().or(unreadable);
                Err(Answer::AnswerUnreadable)
            }
            Ok(reply) => Ok(reply),
            Err(Error::Refused(answer)) => {
                debug_assert!(self.events.is_empty(), "what is refused has changed nothing");
                self.fills.truncate(fills);
                Err(answer)
            }
            Err(fatal) => return Err(fatal),
        };
        self.seal();
        Ok(Outcome {
            revision: Revision(self.revision),
            result,
        })
    }

    /// Alarms forbid what would make things worse.
    fn permit(&self, command: &Command) -> Result<(), Error> {
        let alarms = &self.tables.alarms;
        let corrupt = alarms.any(AlarmType::Corrupt);
        let no_space = alarms.any(AlarmType::Nospace);
        let (writes, grows) = match command {
            Command::Put(_) | Command::LeaseGrant(_) => (true, true),
            Command::Txn(txn) => (true, no_space && validate::txn_cost(txn) > 0),
            Command::DeleteRange(_) | Command::Compact(_) | Command::LeaseRevoke(_) => (true, false),
            Command::LeaseCheckpoint(_)
            | Command::MemberAdd(_)
            | Command::MemberRemove(_)
            | Command::MemberUpdate(_)
            | Command::MemberPromote(_)
            | Command::MemberPublish(_)
            | Command::ClusterInit(_)
            | Command::AlarmSet(_) => (false, false),
        };
        if writes && corrupt {
            return Err(Answer::Corrupt.into());
        }
        if grows && no_space {
            return Err(Answer::NoSpace.into());
        }
        Ok(())
    }

    fn execute(&mut self, command: Command) -> Result<Reply, Error> {
        match command {
            Command::Put(request) => {
                self.check_put(&request)?;
                if request.prev_kv {
                    let mut ahead = Ahead::new(self.room.next());
                    self.charge_put(&request, &mut ahead)?;
                    self.room.take(ahead.answers());
                }
                Ok(Reply::Put(self.put(&request)?))
            }
            Command::DeleteRange(request) => {
                if request.prev_kv {
                    let mut ahead = Ahead::new(self.room.next());
                    self.charge_delete(&request, &mut ahead)?;
                    self.room.take(ahead.answers());
                }
                Ok(Reply::DeleteRange(self.delete_range(&request)))
            }
            Command::Txn(request) => Ok(Reply::Txn(self.txn(&request)?)),
            Command::Compact(request) => self.compact(request.revision),
            Command::LeaseGrant(grant) => {
                let (id, ttl_secs) = (grant.id, grant.ttl_secs);
                self.tables.leases.grant(id, ttl_secs, &mut self.system)?;
                Ok(Reply::LeaseGrant { id, ttl_secs })
            }
            Command::LeaseRevoke(revoke) => self.revoke(revoke.id, revoke.expired_in_term),
            Command::LeaseCheckpoint(checkpoint) => {
                if checkpoint.term == self.term {
                    for wire::LeaseRemainder { id, remaining_secs } in checkpoint.remainders {
                        self.tables.leases.checkpoint(id, remaining_secs, &mut self.system);
                    }
                }
                Ok(Reply::Done)
            }
            Command::MemberAdd(add) => {
                self.tables.members.add(add, &mut self.system)?;
                Ok(self.members())
            }
            Command::MemberUpdate(update) => {
                self.tables.members.update(update, &mut self.system)?;
                Ok(self.members())
            }
            Command::MemberPromote(promote) => {
                self.tables.members.promote(promote, &mut self.system)?;
                Ok(self.members())
            }
            Command::MemberRemove(remove) => {
                let id = remove.id;
                self.tables.members.remove(remove, &mut self.system)?;
                self.tables.origins.forget(id, &mut self.system);
                Ok(self.members())
            }
            Command::MemberPublish(publish) => {
                self.tables.members.publish(publish, &mut self.system)?;
                Ok(self.members())
            }
            Command::ClusterInit(init) => {
                self.tables
                    .members
                    .init(init.cluster_id, init.members, &mut self.system);
                Ok(Reply::Done)
            }
            Command::AlarmSet(set) => {
                let alarm = self
                    .tables
                    .alarms
                    .set(set.member_id, set.alarm, set.active, &mut self.system);
                Ok(Reply::Alarm(alarm))
            }
        }
    }

    fn members(&self) -> Reply {
        Reply::Members(self.tables.members.list())
    }

    /// In force at once: reads below fail from here on, and what nobody can read is removed in the background.
    fn compact(&mut self, revision: i64) -> Result<Reply, Error> {
        if revision <= self.mvcc.compacted {
            return Err(Answer::Compacted.into());
        }
        if revision > self.revision {
            return Err(Answer::FutureRevision.into());
        }
        self.compactions.push(Compaction {
            revision,
            previous: self.mvcc.compacted,
        });
        self.mvcc.compacted = revision;
        Ok(Reply::Compact)
    }

    /// Deletes the lease and what is attached to it, in byte order and one revision. An expiry that another leader
    /// ordered does nothing: it may have missed a renewal.
    fn revoke(&mut self, id: i64, expired_in_term: u64) -> Result<Reply, Error> {
        #[cfg(feature = "planted")]
        let expired_in_term = match crate::planted::is(crate::planted::Bug::StaleLeaseRevoke) {
            true => 0,
            false => expired_in_term,
        };
        if expired_in_term != 0 && expired_in_term != self.term {
            return Ok(Reply::Done);
        }
        let keys = self.tables.leases.revoke(id, &mut self.system);
        for (nth, key) in keys.ok_or(Answer::LeaseNotFound)?.into_iter().enumerate() {
            self.delete(&KeyRange::single(key.into_vec().into()), false);
            if (nth + 1) % APPLY_SLICE_KEYS == 0 {
                self.let_readers_in();
            }
        }
        Ok(Reply::LeaseRevoke)
    }

    /// Revision that a header inside of a transaction shows.
    pub(super) fn revision_so_far(&self) -> i64 {
        self.revision + i64::from(!self.events.is_empty())
    }

    /// Revision at which the transaction reads its own writes.
    fn own_revision(&self) -> i64 {
        self.revision + 1
    }

    fn next_row(&self) -> RowId {
        RowId {
            main: self.own_revision(),
            sub: u32::try_from(self.events.len()).unwrap_or(u32::MAX),
        }
    }

    /// What must hold before a put may run.
    pub(super) fn check_put(&self, request: &pb::PutRequest) -> Result<(), Answer> {
        if request.lease != 0 && !self.tables.leases.exists(request.lease) {
            return Err(Answer::LeaseNotFound);
        }
        if (request.ignore_value || request.ignore_lease) && self.mvcc.index.newest(&request.key).is_none() {
            return Err(Answer::KeyNotFound);
        }
        Ok(())
    }

    /// Writes a pair. The answer's `prev_kv` gets its value later.
    pub(super) fn put(&mut self, request: &pb::PutRequest) -> Result<pb::PutResponse, Error> {
        let id = self.next_row();
        let (key, value) = match request.ignore_value {
            // One allocation for both: the row, the event and the value cache share it.
            false => {
                let mut both = BytesMut::with_capacity(request.key.len() + request.value.len());
                both.put_slice(&request.key);
                both.put_slice(&request.value);
                let both = both.freeze();
                (both.slice(..request.key.len()), both.slice(request.key.len()..))
            }
            true => {
                let old = self.mvcc.index.newest(&request.key);
                let value = old.map(|old| self.value(old)).transpose()?.unwrap_or_default();
                (Bytes::copy_from_slice(&request.key), value)
            }
        };
        let new = NewVersion {
            id,
            value_len: u32::try_from(value.len()).unwrap_or(u32::MAX),
            lease: (!request.ignore_lease).then_some(request.lease),
        };
        let (version, old) = self.mvcc.index.put(&key, new);
        let old_lease = old.map_or(0, |old| old.lease);
        self.tables.leases.move_key(&key, old_lease, version.lease);
        if let Some(old) = old {
            self.shared.values.supersede(old.row());
        }
        let shared_bytes = if request.ignore_value { 0 } else { key.len() };
        self.shared.values.insert(id, value.clone(), shared_bytes);
        self.rows.push(Row {
            id,
            key: key.clone(),
            create: version.create,
            version: version.version,
            lease: version.lease,
            tombstone: false,
            value: value.clone(),
        });
        let prev_kv = old
            .filter(|_| request.prev_kv && self.answers)
            .map(|old| self.unvalued(key.clone(), old));
        let prev = old.and_then(|old| self.replaced(&key, Revision(old.main)));
        if self.events.is_empty() {
            // Most transactions change one key, and their events live long: with watchers, and with slow ones longer.
            self.events.reserve_exact(1);
        }
        self.events.push(Event {
            kind: EventKind::Put {
                create_revision: Revision(version.create),
                version: version.version,
                lease: version.lease,
                value,
            },
            key,
            prev: if version.create == id.main { None } else { prev },
        });
        Ok(pb::PutResponse { header: None, prev_kv })
    }

    /// What an event shows as replaced: the pair before this transaction, whatever the transaction itself put there.
    fn replaced(&self, key: &[u8], old: Revision) -> Option<Revision> {
        let own = self.revision + 1;
        if old.0 < own {
            return Some(old);
        }
        self.mvcc
            .index
            .before_revision(key, own)
            .map(|before| Revision(before.main))
    }

    pub(super) fn delete_range(&mut self, request: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        #[cfg(feature = "planted")]
        let range = match crate::planted::is(crate::planted::Bug::RangeCutShort) {
            true => KeyRange::new(request.key.clone(), Bytes::new()),
            false => range,
        };
        let before = self.events.len();
        let prev_kvs = self.delete(&range, request.prev_kv && self.answers);
        pb::DeleteRangeResponse {
            header: None,
            deleted: (self.events.len() - before) as i64,
            prev_kvs,
        }
    }

    /// Deletes what exists of the range, and returns it if asked to: without values, those come later.
    fn delete(&mut self, range: &KeyRange, want_prev: bool) -> Vec<KeyValue> {
        let mut prev_kvs = Vec::new();
        let first = self.events.len();
        let mut id = self.next_row();
        let mut from = Resume::Start;
        loop {
            let Self {
                shared,
                mvcc,
                tables,
                rows,
                events,
                fills,
                ..
            } = self;
            let next = mvcc
                .index
                .delete(range, &from, &mut id, APPLY_SLICE_KEYS, |key, old, id| {
                    let key = Bytes::copy_from_slice(key);
                    tables.leases.move_key(&key, old.lease, 0);
                    shared.values.supersede(old.row());
                    rows.push(Row {
                        id,
                        key: key.clone(),
                        create: 0,
                        version: 0,
                        lease: 0,
                        tombstone: true,
                        value: Bytes::new(),
                    });
                    if want_prev {
                        fills.push(Some(old.row()));
                        prev_kvs.push(pair::key_value(key.clone(), &old, Bytes::new()));
                    }
                    if events.is_empty() {
                        events.reserve_exact(1);
                    }
                    events.push(Event {
                        kind: EventKind::Delete,
                        key,
                        prev: Some(Revision(old.main)),
                    });
                });
            let Some(next) = next else { break };
            from = next;
            self.let_readers_in();
        }
        self.look_behind_own_writes(first);
        prev_kvs
    }

    /// Corrects events, from the one at `first`, that seem to replace what this very transaction wrote.
    fn look_behind_own_writes(&mut self, first: usize) {
        let own = Revision(self.revision + 1);
        let mut events = std::mem::take(&mut self.events);
        for event in events.iter_mut().skip(first).filter(|event| event.prev == Some(own)) {
            event.prev = self.replaced(&event.key, own);
        }
        self.events = events;
    }

    /// A range inside of a transaction: the state after the operations before it, or an older one.
    pub(super) fn range(&mut self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        if !self.answers {
            return Ok(pb::RangeResponse::default());
        }
        let at = if request.revision > 0 {
            request.revision
        } else {
            self.own_revision()
        };
        let mut gather = Gather::new(request, at, false)?;
        loop {
            let all = gather.step(&self.mvcc.index, APPLY_SLICE_KEYS);
            if gather.wants_settling() {
                // Without a budget: what it may take was settled before anything ran.
                let settled = gather.settle(&mut |version| self.value(version), usize::MAX);
                if let Err(error) = settled {
                    // The transaction is done all the same, here as on members that can read it.
                    self.unreadable.get_or_insert(error);
                    return Ok(pb::RangeResponse::default());
                }
            }
            if all {
                break;
            }
            self.let_readers_in();
        }
        gather.finish();
        let mut kvs = Vec::with_capacity(gather.items.list.len());
        for item in &gather.items.list {
            let key = Bytes::copy_from_slice(gather.items.key(item));
            self.fills.push((!gather.shape.keys_only()).then(|| item.version.row()));
            kvs.push(pair::key_value(key, &gather.shape.shown(item.version), Bytes::new()));
        }
        Ok(pb::RangeResponse {
            header: None,
            kvs,
            more: gather.more(),
            count: gather.count,
        })
    }

    fn unvalued(&mut self, key: Bytes, version: Version) -> KeyValue {
        self.fills.push(Some(version.row()));
        pair::key_value(key, &version, Bytes::new())
    }

    /// A value while the locks are held: for what has to be known now.
    pub(super) fn value(&mut self, version: Version) -> Result<Bytes, Error> {
        let Self { shared, rows, view, .. } = self;
        value_now(shared, rows, view, version)
    }

    /// Whoever waits for the locks gets them now. They see nothing of this entry, since its revision is not published.
    pub(super) fn let_readers_in(&mut self) {
        RwLockWriteGuard::bump(&mut self.mvcc);
        RwLockWriteGuard::bump(&mut self.tables);
    }

    /// Ends the transaction: what it changed becomes a revision.
    fn seal(&mut self) {
        if self.events.is_empty() {
            return;
        }
        self.revision = self.own_revision();
        let mut events = std::mem::take(&mut self.events);
        events.shrink_to_fit();
        self.batches.push(Arc::new(EventBatch {
            revision: Revision(self.revision),
            events,
        }));
    }
}

/// From this entry's own rows, which the backend does not have yet, or from where readers find it.
fn value_now(shared: &Shared, rows: &[Row], view: &mut Option<View>, version: Version) -> Result<Bytes, Error> {
    if let Ok(at) = rows.binary_search_by_key(&version.row(), |row| row.id) {
        return Ok(rows[at].value.clone());
    }
    shared.value(None, view, version)
}
