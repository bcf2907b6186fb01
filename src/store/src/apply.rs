//! The write side: applies what the log carries, in order, as a pure function of state and command. No clock, no
//! randomness; a refusal is decided by applied state alone, so that every member decides alike.
//!
//! * [`step`] — one entry being applied: the commands, and what they do to keys and tables;
//! * [`txn`] — transactions: plan, checks, execution;
//! * [`fill`] — values of answers, read when no lock is held any more;
//! * [`compaction`] — removing what compaction took, in slices between the entries.
//!
//! Invariant: an entry's rows, records, revision and position are one [`Change`], so a crash can't part them.

pub(crate) mod compaction;
mod fill;
mod step;
mod txn;

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use self::compaction::{Progress, Walk};
use self::step::Step;
use crate::backend::{self, Applied, Change, Durable, SystemTable, SystemWrite};
use crate::command::{Command, Outcome};
use crate::error::Error;
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
    failed: bool,
}

impl Applier {
    pub(crate) fn new(root: Arc<Root>, restored: Restored, sink: Box<dyn EventSink>) -> Result<Self, Error> {
        let Restored {
            shared,
            applied,
            membership,
        } = restored;
        let background = root.options.background_compaction;
        let writer = Arc::new(Mutex::new(Writer {
            root,
            shared,
            sink,
            applied,
            membership,
            walk: None,
            failed: false,
        }));
        let worker = match background {
            true => Some(compaction::spawn(writer.clone())?),
            false => None,
        };
        Ok(Self { writer, worker })
    }

    /// From now on changes go to `sink`. The hub of watchers reads history from the store, so the store is there first.
    pub fn publish_to(&mut self, sink: Box<dyn EventSink>) {
        self.writer.lock().sink = sink;
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
    pub fn apply(&mut self, entry: Applied, commands: Vec<Command>, out: &mut Vec<Outcome>) -> Result<(), Error> {
        self.writer.lock().run(|writer| writer.apply(entry, commands, out))
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

    /// Without a compacting thread: removes a slice of what compaction took. False when there is nothing more to do
    /// at the moment.
    pub fn compact_step(&mut self, keys_max: usize) -> Result<bool, Error> {
        let mut writer = self.writer.lock();
        let progress = writer.run(|writer| writer.compact_slice(keys_max))?;
        let shared = writer.shared.clone();
        drop(writer);
        shared.compaction.answer(&shared);
        Ok(progress == Progress::More)
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

    fn follows(&self, entry: Applied) -> Result<(), Error> {
        match self.applied {
            Some(applied) if entry.index <= applied.index => Err(Error::OutOfOrder {
                index: entry.index,
                applied: applied.index,
            }),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, entry: Applied, commands: Vec<Command>, out: &mut Vec<Outcome>) -> Result<(), Error> {
        self.follows(entry)?;
        let shared = self.shared.clone();
        let first = out.len();
        let mut step = Step::new(&shared, entry.term);
        for command in commands {
            out.push(step.run(command)?);
        }
        let done = step.finish();
        shared.backend.push(Change {
            applied: entry,
            revision: done.revision,
            compacted: done.compacted,
            rows: done.rows,
            removed: Vec::new(),
            system: done.system,
        })?;
        self.applied = Some(entry);
        shared.publish(done.revision, entry.index);
        if !done.batches.is_empty() {
            self.sink.publish(done.batches);
        }
        if done.compaction_begun {
            shared.compaction.begin();
        }
        fill::fill(&shared, &mut out[first..], &done.fills)
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
        };
        Ok(self.shared.backend.push(change)?)
    }
}

/// Keys that one hold of the lock deletes or reads while an entry is applied.
const APPLY_SLICE_KEYS: usize = SLICE_KEYS;
