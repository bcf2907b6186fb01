//! The read side of the state machine, and how both sides are opened.
//!
//! ```text
//!  Applier ─ the only writer ─┐            ┌─ Store, Store, Store …: readers
//!                             ▼            ▼
//!    mvcc: RwLock<index, compacted>   tables: RwLock<leases, members, …>    
//!    backend: values by revision      revision, applied: published last
//! ```
//!
//! A reader takes the published revision and looks at nothing newer. So the writer may let go of the index lock in the
//! middle of a change, and need not hold it while it hands rows to the backend: what is not published is not seen.
//! Order of an apply: index and tables, rows to the backend, revision, applied index, events.
//!
//! All of that stands on one file and is one [`Shared`]. A snapshot that is installed brings a new file and a whole new
//! `Shared`, put in the place of the old one by one store of a pointer. Who began to read before reads on in the old
//! one, index and file, which goes when the last of them does.

mod beside;
mod defragment;
pub(crate) mod hash;
mod history;
mod image;
mod indexing;
mod install;
mod open;
mod read;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use quorate_api::proto::etcdserverpb::{AlarmMember, Member};
use quorate_api::{ClusterId, LeaseId, MemberId, Revision};

use crate::apply::compaction::Compaction;
use crate::backend::disk::Place;
use crate::backend::{self, Applied, Backend, Durable, Sizes};
use crate::error::Error;
use crate::event::EventBatch;
use crate::lease::LeaseInfo;
use crate::members::Standing;
use crate::mvcc::index::Index;
use crate::mvcc::reads::OpenReads;
use crate::mvcc::values::Values;
use crate::origins::Origin;
use crate::stepped::OnWork;
use crate::tables::Tables;

use self::beside::Beside;
pub use self::hash::HashKv;
use self::hash::Hashes;
pub use self::image::{Image, Pieces};
pub use self::install::{Incoming, Received};
pub(crate) use self::open::Restored;
pub(crate) use self::read::txn_revision;
pub use self::read::{Selection, Taken, TxnAnswer, Unfinished, VIEW_BYTES_MAX};

/// Keys that are looked at in one hold of the index lock.
pub(crate) const SLICE_KEYS: usize = 1000;

/// Where changes go once they can be read. Called by the applying thread, in revision order: hand them on and return.
pub trait EventSink: Send {
    fn publish(&self, batches: Vec<Arc<EventBatch>>);
    /// A snapshot has replaced the store, and readers have the new one: what was published before is void, and nothing
    /// of what the snapshot jumped over will be published. Watchers read history instead.
    fn replaced(&self);
}

/// Nobody watches.
impl EventSink for () {
    fn publish(&self, _batches: Vec<Arc<EventBatch>>) {}
    fn replaced(&self) {}
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

/// Everything that stands on one file.
pub(crate) struct Shared {
    pub mvcc: RwLock<Mvcc>,
    /// Never taken before `mvcc` by someone who then wants that.
    pub tables: RwLock<Tables>,
    pub backend: Backend,
    pub values: Values,
    pub reads: Arc<OpenReads>,
    pub hashes: Hashes,
    /// Those of `tables`, for who asks with every request and can't wait for the lock.
    pub learners: ArcSwap<Vec<u64>>,
    /// The thread and those who wait for it stay, whatever file it works on.
    pub compaction: Arc<Compaction>,
    pub range_bytes_max: usize,
    pub installed: Option<Applied>,
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

/// What stays when a file is replaced.
pub(crate) struct Root {
    pub current: ArcSwap<Shared>,
    pub place: Arc<dyn Place>,
    pub options: Options,
    /// There are no threads; this is called instead.
    pub on_work: Option<OnWork>,
    pub beside: Beside,
}

/// A handle for readers; cheap to clone. Everything it tells comes from applied state. Each call sees one state; what a
/// later one sees is as new or newer.
#[derive(Clone)]
pub struct Store {
    root: Arc<Root>,
}

impl Store {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    fn shared(&self) -> Arc<Shared> {
        self.root.current.load_full()
    }

    pub fn revision(&self) -> Revision {
        Revision(self.root.current.load().revision())
    }

    /// History before this revision is gone; −1: never compacted.
    pub fn compacted(&self) -> i64 {
        self.root.current.load().mvcc.read().compacted
    }

    /// Index of the last entry whose effects can be read; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.root.current.load().applied_index.load(Ordering::Acquire)
    }

    /// Keys that exist.
    pub fn live_keys(&self) -> usize {
        self.root.current.load().mvcc.read().index.live_keys()
    }

    /// By ascending id.
    pub fn members(&self) -> Vec<Member> {
        self.root.current.load().tables.read().members.list()
    }

    pub fn member(&self, id: MemberId) -> Option<Member> {
        self.root.current.load().tables.read().members.get(id).cloned()
    }

    /// The member is there and has no vote. For who asks with every request: it waits for nothing.
    pub fn is_learner(&self, id: MemberId) -> bool {
        self.root.current.load().learners.load().contains(&id.0)
    }

    /// Which data directory a member published from last; None before it did.
    pub fn incarnation(&self, id: MemberId) -> Option<u64> {
        self.root.current.load().tables.read().members.incarnation(id)
    }

    /// What is known of an id, in one look.
    pub fn standing(&self, id: MemberId) -> Standing {
        self.root.current.load().tables.read().members.standing(id)
    }

    /// The members, and who is removed and among `counted`: whoever consensus may have to talk to.
    pub fn members_and_leaving(&self, counted: &BTreeSet<u64>) -> Vec<Member> {
        self.root.current.load().tables.read().members.with_leaving(counted)
    }

    /// The member was here once; its id never comes back.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.root.current.load().tables.read().members.is_removed(id)
    }

    /// None until the cluster's first command is applied.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.root.current.load().tables.read().members.cluster_id()
    }

    /// The newest batch of a member that was applied, as (boot, sequence). None: nothing of it ever was, or it was removed.
    pub fn origin(&self, member: u64) -> Option<(u64, u64)> {
        self.root.current.load().tables.read().origins.get(member)
    }

    /// Whether a batch was applied, or never will be since newer ones of its member were.
    pub fn has_passed(&self, origin: Origin) -> bool {
        self.root.current.load().tables.read().origins.has_passed(origin)
    }

    /// By member, then kind.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.root.current.load().tables.read().alarms.list()
    }

    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.root.current.load().tables.read().leases.get(id)
    }

    /// By ascending id.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.root.current.load().tables.read().leases.iter().collect()
    }

    /// Attached keys in byte order; none for a lease that is not there.
    pub fn lease_keys(&self, id: LeaseId) -> Vec<bytes::Bytes> {
        let shared = self.shared();
        let tables = shared.tables.read();
        tables.leases.keys(id).map(bytes::Bytes::copy_from_slice).collect()
    }

    /// Reads that compaction has to leave something for.
    pub fn open_reads(&self) -> usize {
        self.root.current.load().reads.count()
    }

    /// [`Sizes::in_use_bytes`] alone, for who asks with every request.
    pub fn in_use_bytes(&self) -> u64 {
        self.root.current.load().backend.in_use_bytes()
    }

    pub fn sizes(&self) -> Sizes {
        self.root.current.load().backend.sizes()
    }

    /// The disk has no space to spare: what makes the store grow should be refused.
    pub fn is_full(&self) -> bool {
        self.root.current.load().backend.is_full()
    }

    /// What was applied before the call is in the file when it returns.
    pub fn flush(&self) -> Result<Durable, Error> {
        loop {
            match self.shared().backend.flush() {
                // What was queued there is in the file that took over, and that is current by now.
                Err(backend::Error::Replaced) => {}
                result => return Ok(result?),
            }
        }
    }

    /// What is certainly in the file, and up to where the log may be purged.
    pub fn durable(&self) -> Durable {
        self.root.current.load().backend.durable()
    }

    /// The state that came as a snapshot and that this file began as. While nothing newer is durable, a crash may have
    /// kept the log from being reset: that it ends before is then no damage.
    pub fn installed(&self) -> Option<Applied> {
        self.shared().installed
    }

    /// Why nothing is made durable any more, if so.
    pub fn failure(&self) -> Option<Arc<backend::Error>> {
        self.root.current.load().backend.failure()
    }

    /// Calls `done` once everything that compaction up to `revision` took is gone from the file for good; at once if
    /// that is so. `done` runs on the compacting thread: answer quickly.
    pub fn on_compacted(&self, revision: i64, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        self.root.current.load().compaction.wait_for(revision, Box::new(done));
    }

    /// Memory of the index and of values kept for readers.
    pub fn memory(&self) -> Memory {
        let shared = self.shared();
        Memory {
            index_bytes: shared.mvcc.read().index.heap_bytes(),
            value_bytes: shared.values.bytes(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub index_bytes: usize,
    pub value_bytes: usize,
}
