//! The write side: applies what the log carries, in order, as a pure function of state and command. No clock, no
//! randomness; a refusal is decided by applied state alone, so that every member decides alike.
//!
//! * [`step`] — one entry being applied: the commands, and what they do to keys and tables;
//! * [`txn`] — transactions: plan, checks, execution;
//! * [`size`] — how large answers may be, settled before anything runs;
//! * [`fill`] — values of answers, read when no lock is held any more;
//! * [`compaction`] — removing what compaction took, in slices between the entries.
//!
//! Invariant: an entry's rows, records, revision and position are one [`Change`], so a crash can't part them.

pub(crate) mod compaction;
mod fill;
mod size;
mod step;
mod txn;

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use self::compaction::{Progress, Walk};
use self::step::{Compaction, Step};
use crate::backend::{self, Applied, Change, Durable, SystemTable, SystemWrite};
use crate::command::{Command, Outcome};
use crate::error::Error;
use crate::origins::Origin;
#[cfg(feature = "planted")]
use crate::planted::{self, Bug};
use crate::store::{EventSink, Received, Restored, Root, SLICE_KEYS, Shared};

pub(crate) const RAFT_MEMBERSHIP_RECORD: &[u8] = b"raft-membership";

/// The single writer. Its owner applies entries in order, each once; after an error it applies nothing more, and the
/// process should end and start again from the log.
pub struct Applier {
    writer: Arc<Mutex<Writer>>,
    worker: Option<JoinHandle<()>>,
}

/// What apply and the compacting thread take turns with.
pub(crate) struct Writer {
    root: Arc<Root>,
    shared: Arc<Shared>,
    sink: Box<dyn EventSink>,
    applied: Option<Applied>,
    membership: Option<Bytes>,
    walk: Option<Walk>,
    unread: Option<Error>,
    failed: bool,
}

impl Applier {
    pub(crate) fn new(root: Arc<Root>, restored: Restored, sink: Box<dyn EventSink>) -> Result<Self, Error> {
        let Restored {
            shared,
            applied,
            membership,
        } = restored;
        let background = root.options.background_compaction && root.on_work.is_none();
        let writer = Arc::new(Mutex::new(Writer {
            root,
            shared,
            sink,
            applied,
            membership,
            walk: None,
            unread: None,
            failed: false,
        }));
        let worker = match background {
            true => Some(compaction::spawn(writer.clone())?),
            false => None,
        };
        Ok(Self { writer, worker })
    }

    /// The last entry whose effects are in the store; the log goes on behind it.
    pub fn applied(&self) -> Option<Applied> {
        self.writer.lock().applied
    }

    /// What raft stored with [`Applier::apply_empty`] last.
    pub fn raft_membership(&self) -> Option<Bytes> {
        self.writer.lock().membership.clone()
    }

    /// Applies one entry: its commands in order, one outcome each. What they did can be read when it returns, and the
    /// sink has their events. Any command that can be decoded can be applied; an error here is one of this member's
    /// disk, and final.
    ///
    /// False: the batch is a repeated one, or one that was left behind by a newer one of its member, or of a member that
    /// was removed. Nothing was applied but the position, and there are no outcomes.
    ///
    /// `heard`: somebody waits for the answers. Of other members' entries, and of those of before a start, nobody does:
    /// they have no pairs then, and nothing is read that only an answer needs. All else is the same.
    pub fn apply_once(
        &mut self,
        entry: Applied,
        origin: Origin,
        heard: bool,
        commands: Vec<Command>,
        out: &mut Vec<Outcome>,
    ) -> Result<bool, Error> {
        self.writer
            .lock()
            .run(|writer| writer.apply(entry, origin, commands, heard, out))
    }

    /// The same for a batch of nobody's, which is applied in any case.
    pub fn apply(&mut self, entry: Applied, commands: Vec<Command>, out: &mut Vec<Outcome>) -> Result<(), Error> {
        self.apply_once(entry, Origin::default(), true, commands, out)?;
        Ok(())
    }

    /// Why an outcome was [`quorate_api::Error::AnswerUnreadable`] since the last call.
    pub fn take_unread(&mut self) -> Option<Error> {
        self.writer.lock().unread.take()
    }

    /// Notes an entry without commands, and the membership if it carries one: opaque bytes, given back after a start.
    pub fn apply_empty(&mut self, entry: Applied, raft_membership: Option<Bytes>) -> Result<(), Error> {
        self.writer
            .lock()
            .run(|writer| writer.apply_empty(entry, raft_membership))
    }

    /// Replaces the whole store by what was received. When it returns, readers have it, and it survives power loss; who
    /// began to read before reads on undisturbed. A snapshot that does not fit is refused and changes nothing. Any other
    /// error is final: after a start the file is the old one or the new one, whole.
    pub fn install(&mut self, received: Received) -> Result<(), Error> {
        let mut writer = self.writer.lock();
        if !writer.failed {
            writer.admits(&received)?;
        }
        writer.run(|writer| writer.install(received))
    }

    /// Ends in good order: what was applied is in the file. The file itself is let go of with the last [`crate::Store`].
    pub fn close(self) -> Result<Durable, Error> {
        let shared = self.writer.lock().shared.clone();
        drop(self);
        Ok(shared.backend.flush()?)
    }

    /// Without a compacting thread: removes a slice of what compaction took, `keys_max` keys looked at and as many
    /// versions removed at most. False when there is nothing more to do
    /// at the moment.
    pub fn compact_step(&mut self, keys_max: usize) -> Result<bool, Error> {
        Writer::compact_step(&self.writer, keys_max)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn writer(&self) -> &Arc<Mutex<Writer>> {
        &self.writer
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        let shared = self.writer.lock().shared.clone();
        shared.compaction.stop();
        if let Some(worker) = self.worker.take() {
            // A panic of the thread has been reported by the panic hook; there is nothing to add.
            let _ = worker.join();
        }
        shared.compaction.fail_all(&backend::Error::Closed.into());
    }
}

impl Writer {
    /// After an error half of an entry may be in memory, so nothing may follow it.
    fn run<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.failed {
            return Err(Error::Poisoned);
        }
        let result = what(self);
        self.failed = result.is_err();
        result
    }

    /// See [`Applier::compact_step`].
    pub(crate) fn compact_step(this: &Mutex<Self>, keys_max: usize) -> Result<bool, Error> {
        let shared = this.lock().shared.clone();
        while shared.hash_step() {}
        let mut writer = this.lock();
        let progress = writer.run(|writer| writer.compact_slice(keys_max))?;
        let shared = writer.shared.clone();
        drop(writer);
        shared.compaction.answer(&shared);
        Ok(progress == Progress::More)
    }

    fn follows(&self, entry: Applied) -> Result<(), Error> {
        match self.applied {
            Some(applied) if entry.index <= applied.index => Err(Error::OutOfOrder {
                index: entry.index,
                applied: applied.index,
            }),
            _ => Ok(()),
        }
    }

    fn apply(
        &mut self,
        entry: Applied,
        origin: Origin,
        commands: Vec<Command>,
        answers: bool,
        out: &mut Vec<Outcome>,
    ) -> Result<bool, Error> {
        self.follows(entry)?;
        let shared = self.shared.clone();
        let first = out.len();
        let mut step = Step::new(&shared, entry.term, answers);
        let fresh = step.begin(origin);
        #[cfg(feature = "planted")]
        let fresh = fresh || planted::is(Bug::ExecutedTwice);
        if fresh {
            for command in commands {
                out.push(step.run(command)?);
            }
        }
        let done = step.finish();
        if done.system.iter().any(|(table, ..)| *table == SystemTable::Member) {
            let learners = shared.tables.read().members.learners();
            shared.learners.store(Arc::new(learners));
        }
        #[cfg(feature = "planted")]
        if planted::is(Bug::AppliedOutsideCommit) {
            self.push_aside(entry, Vec::new(), Vec::new())?;
        }
        shared.backend.push(Change {
            applied: entry,
            revision: done.revision,
            compacted: done.compacted,
            rows: done.rows,
            removed: Vec::new(),
            system: done.system,
            origin: fresh
                .then(|| shared.tables.read().origins.passed(origin.member))
                .flatten(),
        })?;
        self.applied = Some(entry);
        shared.publish(done.revision, entry.index);
        if !done.batches.is_empty() {
            self.sink.publish(done.batches);
        }
        if !done.compactions.is_empty() {
            for Compaction { revision, previous } in done.compactions {
                // Nothing has been removed for it: that, too, takes the writer.
                shared.hashes.owe(revision, previous, shared.reads.pin(previous));
            }
            shared.compaction.begin();
        }
        let unread = fill::fill(&shared, &mut out[first..], &done.fills);
        match done.unread.or(unread) {
            // The file itself fails, and not what is stored in one place of it: it has said its last.
            Some(error) if !error.is_damage() => Err(error),
            damaged => {
                self.unread = damaged.or_else(|| self.unread.take());
                Ok(fresh)
            }
        }
    }

    fn apply_empty(&mut self, entry: Applied, raft_membership: Option<Bytes>) -> Result<(), Error> {
        self.follows(entry)?;
        let record = |membership: &Bytes| -> SystemWrite {
            (
                SystemTable::Cluster,
                RAFT_MEMBERSHIP_RECORD.into(),
                Some(Bytes::copy_from_slice(membership)),
            )
        };
        let system = raft_membership.iter().map(record).collect();
        self.push_aside(entry, Vec::new(), system)?;
        self.applied = Some(entry);
        self.membership = raft_membership.or_else(|| self.membership.take());
        self.shared.publish(self.shared.revision(), entry.index);
        Ok(())
    }

    fn admits(&self, received: &Received) -> Result<(), Error> {
        let image = received.applied();
        if !received.is_of(&self.root) {
            return Err(Error::OtherStore);
        }
        if let Some(applied) = self.applied.filter(|applied| image.index <= applied.index) {
            return Err(Error::NotNewer {
                image: image.index,
                applied: applied.index,
            });
        }
        let cluster = |shared: &Shared| shared.tables.read().members.cluster_id();
        match (cluster(received.shared()), cluster(&self.shared)) {
            (Some(image), Some(own)) if image != own => Err(Error::OtherCluster { image, own }),
            _ if received.revision() < self.shared.revision() => Err(Error::Backwards {
                image: received.revision(),
                own: self.shared.revision(),
            }),
            _ => Ok(()),
        }
    }

    fn install(&mut self, received: Received) -> Result<(), Error> {
        let Restored {
            shared,
            applied,
            membership,
        } = received.take_place()?;
        let old = std::mem::replace(&mut self.shared, shared);
        self.applied = applied;
        self.membership = membership;
        self.walk = None;
        let wanted = self.shared.mvcc.read().compacted >= 0;
        // Current before the old one is retired: who is told of that finds the new one.
        self.root.current.store(self.shared.clone());
        self.shared.compaction.restart(wanted);
        old.backend.retire();
        #[cfg(feature = "planted")]
        if planted::is(Bug::InstallWithoutResync) {
            return Ok(());
        }
        self.sink.replaced();
        Ok(())
    }

    /// A change that moves no revision.
    fn push_aside(
        &self,
        applied: Applied,
        removed: Vec<backend::RowId>,
        system: Vec<SystemWrite>,
    ) -> Result<(), Error> {
        let compacted = self.shared.mvcc.read().compacted;
        let change = Change {
            applied,
            revision: self.shared.revision(),
            compacted,
            rows: Vec::new(),
            removed,
            system,
            origin: None,
        };
        Ok(self.shared.backend.push(change)?)
    }
}

/// Keys that one hold of the lock deletes or reads while an entry is applied.
const APPLY_SLICE_KEYS: usize = SLICE_KEYS;

#[cfg(test)]
pub(crate) mod tests {
    use quorate_api::Error as Answer;
    use quorate_api::proto::etcdserverpb::request_op::Request;
    use quorate_api::proto::etcdserverpb::{self as pb};

    use super::*;
    use crate::backend::RowId;
    use crate::command::Reply;
    use crate::store::{Options, Store};

    pub struct Node {
        pub store: Store,
        pub applier: Applier,
        index: u64,
        _folder: tempfile::TempDir,
    }

    impl Node {
        pub fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut options = Options {
                background_compaction: false,
                // Values come from where they are stored.
                value_cache_bytes: 0,
                ..Options::default()
            };
            options.backend.reserve_bytes = 0;
            let (store, applier) = Store::open(&folder.path().join("store"), options, Box::new(())).unwrap();
            Self {
                store,
                applier,
                index: 0,
                _folder: folder,
            }
        }

        pub fn next(&mut self) -> Applied {
            self.index += 1;
            Applied {
                index: self.index,
                term: 1,
            }
        }

        pub fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
            let entry = self.next();
            let mut outcomes = Vec::new();
            self.applier.apply(entry, commands, &mut outcomes).unwrap();
            outcomes
        }
    }

    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Command {
        Command::Put(pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        })
    }

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    /// A bad value ends neither the node nor the command whose answer would show it; and where nobody hears the answer,
    /// it is not even looked at. What the others answer is whole.
    #[test]
    fn a_value_that_cannot_be_read_costs_one_answer() {
        let put_prev = |key: &'static str| {
            Command::Put(pb::PutRequest {
                key: key.into(),
                value: "new".into(),
                prev_kv: true,
                ..Default::default()
            })
        };
        let sorted_by_value = || {
            Command::Txn(pb::TxnRequest {
                success: vec![
                    op(Request::RequestPut(pb::PutRequest {
                        key: "written".into(),
                        ..Default::default()
                    })),
                    op(Request::RequestRange(pb::RangeRequest {
                        key: "good".into(),
                        range_end: "h".into(),
                        ..Default::default()
                    })),
                    op(Request::RequestRange(pb::RangeRequest {
                        key: "a".into(),
                        range_end: "z".into(),
                        sort_target: 4,
                        sort_order: 1,
                        ..Default::default()
                    })),
                ],
                ..Default::default()
            })
        };
        let mut node = Node::new();
        node.apply(vec![put("bad", "1"), put("good", "2")]);
        let entry = node.next();
        // Behind the back of the index, as a damaged file would have it.
        let lost = RowId { main: 2, sub: 0 };
        node.applier
            .writer
            .lock()
            .push_aside(entry, vec![lost], Vec::new())
            .unwrap();
        node.store.flush().unwrap();

        let outcomes = node.apply(vec![sorted_by_value(), put_prev("bad"), put_prev("good")]);
        assert_eq!(outcomes[0].result, Err(Answer::AnswerUnreadable));
        assert_eq!(outcomes[1].result, Err(Answer::AnswerUnreadable));
        let Ok(Reply::Put(pb::PutResponse {
            prev_kv: Some(prev), ..
        })) = &outcomes[2].result
        else {
            panic!("{outcomes:?}")
        };
        assert_eq!(prev.value, "2");
        assert_eq!(
            outcomes.iter().map(|outcome| outcome.revision.0).collect::<Vec<_>>(),
            [4, 5, 6]
        );
        assert!(node.applier.take_unread().is_some(), "somebody has to tell");
        assert!(node.applier.take_unread().is_none());
        assert_eq!(node.store.live_keys(), 3);

        let mut node = Node::new();
        node.apply(vec![put("bad", "1"), put("good", "2")]);
        let entry = node.next();
        node.applier
            .writer
            .lock()
            .push_aside(entry, vec![lost], Vec::new())
            .unwrap();
        node.store.flush().unwrap();
        let entry = node.next();
        let mut outcomes = Vec::new();
        let commands = vec![sorted_by_value(), put_prev("bad"), put_prev("good")];
        let nobody = Origin::default();
        node.applier
            .apply_once(entry, nobody, false, commands, &mut outcomes)
            .unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
        assert_eq!(node.store.revision().0, 6);
    }

    /// B43: a slice of compaction is bounded by keys and by versions, whatever the history looks like, so that apply
    /// gets its turn; and what is written meanwhile does not keep it from coming to its end.
    #[test]
    fn compaction_keeps_up_without_stalls() {
        const SLICE: usize = 100;
        let mut node = Node::new();
        let shared = node.applier.writer.lock().shared.clone();
        let versions = || -> usize {
            let index = &shared.mvcc.read().index;
            index.dump().iter().map(|(_, versions)| versions.len()).sum()
        };
        let hot: Vec<Command> = (0..5000).map(|number: u32| put("hot", number.to_string())).collect();
        let wide = |value: &'static str| (0..1000).map(move |number: u32| put(format!("wide{number}"), value));
        node.apply(hot);
        node.apply(wide("old").collect());
        node.apply(wide("new").collect());
        node.apply(vec![Command::Compact(pb::CompactionRequest {
            revision: node.store.revision().0,
            physical: false,
        })]);
        let (all, kept) = (versions(), 1001);
        let mut slices = 0;
        loop {
            let before = versions();
            let more = node.applier.compact_step(SLICE).unwrap();
            let removed = before - versions();
            assert!(removed <= SLICE, "{removed} versions in one slice");
            slices += 1;
            if !more {
                break;
            }
            node.apply(vec![put("hot", "meanwhile")]);
        }
        assert_eq!(versions(), kept + slices - 1, "all is gone that can go");
        // Leaves are looked at whole.
        let enough = (all - kept).div_ceil(SLICE) + 2 * 1001 / SLICE;
        assert!(slices <= enough, "{slices} slices, {enough} would do");
    }
}
