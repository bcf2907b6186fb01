//! What the handle, the Views and the backend thread share: pending rows, the queue of changes, and the state that
//! decides when the thread works.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::change::{Applied, RowId, SystemTable, SystemWrite};
use super::disk::Patient;
use super::error::Error;
use super::export::Image;
use super::pending::{Chunk, Pending};
use super::successor::{Handover, Touched};
use super::view::Published;
use crate::origins::Passed;
use crate::stepped::OnWork;

/// A change on its way to the file. Its rows are in [`Pending`] too.
#[derive(Debug)]
pub(super) struct Queued {
    pub applied: Applied,
    pub revision: i64,
    pub compacted: i64,
    pub rows: Option<Arc<Chunk>>,
    pub removed: Vec<RowId>,
    pub system: Vec<SystemWrite>,
    pub origin: Option<Passed>,
    pub bytes: usize,
}

impl Queued {
    /// Which system records it writes or takes away.
    pub fn records(&self) -> impl Iterator<Item = (SystemTable, Bytes)> {
        let system = self.system.iter().map(|(table, key, _)| (*table, key.clone()));
        let origin = self.origin.map(|origin| (SystemTable::Origin, origin.record().0));
        system.chain(origin)
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub pending: Pending,
    /// What the file lies on.
    pub disk: ArcSwap<Patient>,
    pub control: Mutex<Control>,
    /// Wakes the thread.
    pub work: Condvar,
    /// Called instead where there is none.
    pub on_work: Option<OnWork>,
    /// Wakes whoever waits for a commit, for room in the queue, or for the end.
    pub progress: Condvar,
    /// The state that new Views are taken from.
    pub current: ArcSwapOption<Published>,
    /// Stored bytes of live rows and records, as of the last commit.
    pub in_use: AtomicU64,
    /// [`Control::queued_bytes`], for who asks with every request and can't wait for the lock.
    pub queued: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Control {
    pub queue: VecDeque<Queued>,
    /// Bytes pushed and not durable: the queue plus the batch that is being committed.
    pub queued_bytes: usize,
    /// When the oldest change in the queue arrived.
    pub oldest: Option<Instant>,
    /// Changes pushed, and changes durable, since the start.
    pub pushed: u64,
    pub durable: u64,
    /// Commit at once until this many changes are durable.
    pub flush_to: u64,
    pub applied: Applied,
    pub applied_before: Applied,
    pub prune: bool,
    /// The first read that the file refused: redb serves nothing after it, so it ends the backend.
    pub read_failure: Option<Error>,
    /// What commits touch, while a copy is made.
    pub touched: Option<Touched>,
    pub handover: Option<Box<Handover>>,
    pub stop: Option<Stop>,
    pub role: Role,
    /// Set once, by the first failure; nothing is committed after.
    pub failed: Option<Arc<Error>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Commit what is queued, then end.
    Commit,
    /// End as a crash would: what is queued comes back from the log.
    Abandon,
}

/// Whether this is the file that the store stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// Not yet: it was made beside the other one and may still be thrown away.
    #[default]
    Aside,
    Current,
    /// Not any more: it has no name, and is there for those who still read it.
    Retired,
}

impl Shared {
    /// There is something to do for whoever commits. Not to be called with the lock held.
    pub fn wake(&self) {
        self.work.notify_one();
        if let Some(on_work) = &self.on_work {
            on_work.call();
        }
    }

    pub fn view_dropped(&self) {
        self.control.lock().prune = true;
        self.work.notify_one();
    }

    pub fn read_failed(&self, error: &Error) {
        if !matches!(error, Error::Closed) {
            self.control.lock().read_failure.get_or_insert_with(|| error.clone());
            self.wake();
        }
    }

    /// The last commit.
    pub fn image(self: &Arc<Self>) -> Result<Image, Error> {
        let published = self.current.load_full().ok_or(Error::Closed)?;
        Ok(Image::new(published.tables.clone(), self.clone()))
    }

    /// The disk has no space to spare.
    pub fn is_full(&self) -> bool {
        self.disk.load().space().is_full()
    }

    /// What the file will have in use once all that is queued is in it.
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed) + self.queued.load(Ordering::Relaxed)
    }

    pub fn set_queued(&self, control: &mut Control, bytes: usize) {
        control.queued_bytes = bytes;
        self.queued.store(bytes as u64, Ordering::Relaxed);
    }
}

impl Control {
    /// Why no change may come in or be waited for any more.
    pub fn refusal(&self) -> Result<(), Error> {
        if self.role == Role::Retired {
            return Err(Error::Replaced);
        }
        // The thread will find it too, and end; nothing comes in until then.
        if let Some(failure) = &self.read_failure {
            return Err(failure.clone());
        }
        match (&self.failed, self.stop) {
            (Some(source), _) => Err(Error::Poisoned { source: source.clone() }),
            (None, Some(_)) => Err(Error::Closed),
            (None, None) => Ok(()),
        }
    }
}
