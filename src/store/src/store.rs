//! The read side of the state machine, and how both sides are opened.
//!
//! ```text
//!  Applier ─ the only writer ─┐            ┌─ Store, Store, Store …: readers
//!                             ▼            ▼
//!    mvcc: RwLock<index, compacted>   tables: RwLock<leases, members, alarms>
//!    backend: values by revision      revision, applied: published last
//! ```
//!
//! A reader takes the published revision and looks at nothing newer. So the writer may let go of the index lock in the
//! middle of a change, and need not hold it while it hands rows to the backend: what is not published is not seen.
//! Order of an apply: index and tables, rows to the backend, revision, applied index, events.

mod hash;
mod history;
mod open;
mod read;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use quorate_api::proto::etcdserverpb::{AlarmMember, Member};
use quorate_api::{ClusterId, LeaseId, MemberId, Revision};

use crate::apply::compaction::Compaction;
use crate::backend::{self, Backend, Durable, Sizes};
use crate::error::Error;
use crate::event::EventBatch;
use crate::lease::LeaseInfo;
use crate::mvcc::index::Index;
use crate::mvcc::reads::OpenReads;
use crate::mvcc::values::Values;
use crate::tables::Tables;

pub use self::hash::HashKv;
pub use self::read::TxnAnswer;
pub(crate) use self::read::txn_revision;

/// Keys that are looked at in one hold of the index lock.
pub(crate) const SLICE_KEYS: usize = 1000;

/// Where changes go once they can be read. Called by the applying thread, in revision order: hand them on and return.
pub trait EventSink: Send {
    fn publish(&self, batches: Vec<Arc<EventBatch>>);
}

/// Nobody watches.
impl EventSink for () {
    fn publish(&self, _batches: Vec<Arc<EventBatch>>) {}
}

#[derive(Clone)]
pub struct Options {
    pub backend: backend::Options,
    /// Newest values that are kept in memory. Default 64 MiB.
    pub value_cache_bytes: usize,
    /// What one sorted range may hold. Default 64 MiB.
    pub range_bytes_max: usize,
    /// A thread of the store's own removes what was compacted. Off: [`crate::Applier::compact_step`] is called instead.
    pub background_compaction: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: backend::Options::default(),
            value_cache_bytes: 64 << 20,
            range_bytes_max: 64 << 20,
            background_compaction: true,
        }
    }
}

/// Keys and versions, and up to where history is gone.
pub(crate) struct Mvcc {
    pub index: Index,
    /// −1: never compacted.
    pub compacted: i64,
}

pub(crate) struct Shared {
    pub mvcc: RwLock<Mvcc>,
    /// Never taken before `mvcc` by someone who then wants that.
    pub tables: RwLock<Tables>,
    pub backend: Backend,
    pub values: Values,
    pub reads: Arc<OpenReads>,
    pub compaction: Compaction,
    pub range_bytes_max: usize,
    revision: AtomicI64,
    applied_index: AtomicU64,
}

impl Shared {
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Lets readers see what was applied.
    pub fn publish(&self, revision: i64, applied_index: u64) {
        self.revision.store(revision, Ordering::Release);
        self.applied_index.store(applied_index, Ordering::Release);
    }
}

/// A handle for readers; cheap to clone. Everything it tells comes from applied state.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    pub fn revision(&self) -> Revision {
        Revision(self.shared.revision())
    }

    /// History before this revision is gone; −1: never compacted.
    pub fn compacted(&self) -> i64 {
        self.shared.mvcc.read().compacted
    }

    /// Index of the last entry whose effects can be read; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.shared.applied_index.load(Ordering::Acquire)
    }

    /// Keys that exist.
    pub fn live_keys(&self) -> usize {
        self.shared.mvcc.read().index.live_keys()
    }

    /// By ascending id.
    pub fn members(&self) -> Vec<Member> {
        self.shared.tables.read().members.list()
    }

    pub fn member(&self, id: MemberId) -> Option<Member> {
        self.shared.tables.read().members.get(id).cloned()
    }

    /// The member was here once; its id never comes back.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.shared.tables.read().members.is_removed(id)
    }

    /// None until the cluster's first command is applied.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.shared.tables.read().members.cluster_id()
    }

    /// By member, then kind.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.shared.tables.read().alarms.list()
    }

    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.shared.tables.read().leases.get(id)
    }

    /// By ascending id.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.shared.tables.read().leases.iter().collect()
    }

    pub fn lease_count(&self) -> usize {
        self.shared.tables.read().leases.len()
    }

    /// Attached keys in byte order; none for a lease that is not there.
    pub fn lease_keys(&self, id: LeaseId) -> Vec<bytes::Bytes> {
        let tables = self.shared.tables.read();
        tables.leases.keys(id).map(bytes::Bytes::copy_from_slice).collect()
    }

    pub fn sizes(&self) -> Sizes {
        self.shared.backend.sizes()
    }

    /// The disk has no space to spare: what makes the store grow should be refused.
    pub fn is_full(&self) -> bool {
        self.shared.backend.is_full()
    }

    /// What was applied before the call is in the file when it returns.
    pub fn flush(&self) -> Result<Durable, Error> {
        Ok(self.shared.backend.flush()?)
    }

    /// What is certainly in the file, and up to where the log may be purged.
    pub fn durable(&self) -> Durable {
        self.shared.backend.durable()
    }

    /// Why nothing is made durable any more, if so.
    pub fn failure(&self) -> Option<Arc<backend::Error>> {
        self.shared.backend.failure()
    }

    /// Calls `done` once everything that compaction up to `revision` took is gone from the file for good; at once if
    /// that is so. `done` runs on the compacting thread: answer quickly.
    pub fn on_compacted(&self, revision: i64, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        self.shared.compaction.wait_for(revision, Box::new(done));
    }

    /// Memory of the index and of values kept for readers.
    pub fn memory(&self) -> Memory {
        Memory {
            index_bytes: self.shared.mvcc.read().index.heap_bytes(),
            value_bytes: self.shared.values.bytes(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub index_bytes: usize,
    pub value_bytes: usize,
}
