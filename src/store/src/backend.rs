//! The durable store: versions by revision, and system records, in one redb file behind one writer.
//!
//! ```text
//!  apply ── push(Change) ──► pending rows (readable at once)        View = file as of a commit + rows above its bound
//!                       └──► queue ──► backend thread ──► one transaction: rows, removals, system records, applied
//!                                       └──► publishes the next View, frees pending rows that no View needs
//! ```
//!
//! The log is what clients wait for; this file follows it in large commits, every second or every 8 MiB.
//! What holds at every moment, power loss included:
//! * effects and applied index are of the same commit, cut between entries;
//! * a commit that was reported durable is there after a restart, and opening takes milliseconds;
//! * a value that was pushed and not compacted can be read: above a View's bound from memory, else from the file;
//! * bytes that are not what was written are an error, never an answer;
//! * after a commit failed nothing is made durable any more. A full disk is no failure: see [`disk`].

pub mod change;
mod committer;
mod database;
pub mod disk;
mod error;
mod export;
#[cfg(any(test, feature = "testing"))]
mod falsify;
mod format;
mod import;
mod pending;
mod shared;
mod stream;
mod successor;
mod view;

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use self::change::{Applied, Change, Row, RowId, SystemTable, SystemWrite};
use self::committer::Committer;
use self::database::{Facts, Opened};
use self::disk::{Disk, FilePlace, Patient, Place};
pub use self::error::Error;
pub(crate) use self::export::{Image, Pieces};
#[cfg(any(test, feature = "testing"))]
pub use self::falsify::falsify;
pub(crate) use self::format::decode_meta;
pub use self::format::{FORMAT, MetaRow};
pub(crate) use self::import::{Import, OnRows};
use self::pending::Pending;
use self::shared::{Control, Queued, Role, Shared, Stop};
pub(crate) use self::stream::StreamRow;
pub(crate) use self::successor::Adopt;
use self::successor::{GoOn, Handover, Successor, Touched};
use self::view::InUse;
pub use self::view::View;
use crate::stepped::OnWork;

/// Told about what the backend thread does, on that thread: answer quickly.
pub trait Observer: Send + Sync + 'static {
    fn committed(&self, _stats: CommitStats) {}
    /// A slice of a compaction was removed; on the compacting thread, as the next.
    fn compacted(&self, _slice: CompactionSlice) {}
    /// Everything that was compacted is removed, so long after the first slice.
    fn compaction_ended(&self, _took: Duration) {}
    /// Called once, at the first failure. Nothing is made durable after it: the process should end.
    fn fatal(&self, _error: &Error) {}
}

/// Nobody listens.
impl Observer for () {}

/// One commit: what went in and how long it took, syncs included.
#[derive(Clone, Copy, Debug)]
pub struct CommitStats {
    pub changes: usize,
    pub bytes: usize,
    pub took: Duration,
}

/// A slice of a compaction, and what it kept waiting.
#[derive(Clone, Copy, Debug)]
pub struct CompactionSlice {
    pub rows: usize,
    /// All of it: apply waits for this.
    pub took: Duration,
    /// The part with the index: reads wait for this.
    pub index_took: Duration,
}

#[derive(Clone)]
pub struct Options {
    /// The first change after a commit waits at most this long. Default 1 s.
    pub commit_interval: Duration,
    /// This much queued is committed at once. Default 8 MiB: what does not fit into half of redb's cache is written, and
    /// read again for its checksums, within the same commit.
    pub commit_bytes: usize,
    /// [`Backend::push`] waits while so much is not durable. Default 256 MiB; admission should act long before.
    pub pending_bytes_max: usize,
    /// redb's page cache. Default 32 MiB.
    pub cache_bytes: usize,
    /// Kept allocated beside the file for the day the disk is full. Default 64 MiB.
    pub reserve_bytes: u64,
    pub observer: Arc<dyn Observer>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(1),
            commit_bytes: 8 << 20,
            pending_bytes_max: 256 << 20,
            cache_bytes: 32 << 20,
            reserve_bytes: 64 << 20,
            observer: Arc::new(()),
        }
    }
}

/// Where the file stands, all of one commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The log is replayed from behind this.
    pub applied: Applied,
    pub applied_before: Applied,
    /// 0 in a file that nothing was ever committed to.
    pub revision: i64,
    pub compacted: i64,
    /// The file began as an image of this state.
    pub installed: Option<Applied>,
    /// Opening had to walk the whole file; never so after a mere crash.
    pub walked: bool,
}

/// What is certainly in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    pub last: Applied,
    /// As of the commit before; the log may be purged up to here.
    pub last_but_one: Applied,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Live rows and records with what is still queued; the quota looks at this.
    pub in_use_bytes: u64,
    /// Blocks that the file has taken from the disk.
    pub total_bytes: u64,
    /// Rows held in memory because they, or a View that is in use, are not in the file yet.
    pub pending_bytes: u64,
}

/// What is left for the last round of a copy, which commits wait for.
const COPY_LEFT_BYTES: usize = 1 << 20;
/// Where more is written than can be copied in the same time, there is no end in sight.
const COPY_ROUNDS_MAX: usize = 10;
const HANDOVER_PATIENCE: Duration = Duration::from_millis(50);

/// The handle. Dropping it without [`Backend::close`] leaves what is queued to the log, as a crash would.
pub struct Backend {
    shared: Arc<Shared>,
    options: Options,
    worker: Worker,
}

/// Who makes the commits.
enum Worker {
    Thread(Option<JoinHandle<()>>),
    /// Whoever needs one, or says that it is time.
    Stepped(Mutex<Option<Committer>>),
}

impl Backend {
    /// Opens the file at `path`, or makes it. Not made by halves: a crash leaves no file or a whole one.
    pub fn open(path: &Path, options: Options) -> Result<(Self, Recovered), Error> {
        Self::open_in(&FilePlace::new(path), options)
    }

    /// The same at any place.
    pub fn open_in(place: &dyn Place, options: Options) -> Result<(Self, Recovered), Error> {
        Self::open_with(place, options, None)
    }

    /// With `on_work` there is no thread.
    pub(crate) fn open_with(
        place: &dyn Place,
        options: Options,
        on_work: Option<OnWork>,
    ) -> Result<(Self, Recovered), Error> {
        let disk = match place.current()? {
            Some(disk) => disk,
            None => {
                let disk = place.incoming()?;
                drop(database::open(Patient::new(disk.clone(), 0), options.cache_bytes)?);
                place.adopt()?;
                disk
            }
        };
        let (backend, recovered) = Self::open_aside(disk, options, on_work)?;
        backend.take_over();
        Ok((backend, recovered))
    }

    /// The same on any disk.
    pub fn open_disk(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Recovered), Error> {
        let (backend, recovered) = Self::open_aside(disk, options, None)?;
        backend.take_over();
        Ok((backend, recovered))
    }

    /// Opens a file that is not the store's yet. Whatever fails with it concerns only whoever opened it.
    pub(crate) fn open_aside(
        disk: Arc<dyn Disk>,
        options: Options,
        on_work: Option<OnWork>,
    ) -> Result<(Self, Recovered), Error> {
        let stepped = on_work.is_some();
        let disk = Patient::new(disk, options.reserve_bytes);
        let Opened { db, facts, walked } = database::open(disk.clone(), options.cache_bytes)?;
        let Facts {
            applied,
            applied_before,
            revision,
            compacted,
            in_use,
            bound: _,
            installed,
        } = facts;
        let shared = Arc::new(Shared {
            pending: Pending::default(),
            disk: ArcSwap::from_pointee(disk),
            control: Mutex::new(Control {
                applied,
                applied_before,
                ..Control::default()
            }),
            work: Condvar::new(),
            on_work,
            progress: Condvar::new(),
            current: ArcSwapOption::empty(),
            in_use: AtomicU64::new(in_use),
            queued: AtomicU64::new(0),
        });
        let committer = Committer {
            db,
            in_use: Arc::new(InUse),
            facts,
            shared: shared.clone(),
            options: options.clone(),
            replaced: Vec::new(),
        };
        committer.publish()?;
        let worker = match stepped {
            true => Worker::Stepped(Mutex::new(Some(committer))),
            false => {
                let thread = std::thread::Builder::new()
                    .name("backend".into())
                    .spawn(move || committer.run());
                let thread = thread.map_err(|source| Error::File {
                    doing: "start the thread of backend file",
                    path: Path::new("").to_owned(),
                    source: Arc::new(source),
                })?;
                Worker::Thread(Some(thread))
            }
        };
        let recovered = Recovered {
            applied,
            applied_before,
            revision,
            compacted,
            installed: (installed.index > 0).then_some(installed),
            walked,
        };
        Ok((
            Self {
                shared,
                options,
                worker,
            },
            recovered,
        ))
    }

    /// From now on the store stands on this file: it waits for space, and its failure ends the process.
    pub(crate) fn take_over(&self) {
        self.shared.control.lock().role = Role::Current;
        let disk = self.shared.disk.load();
        // Without one, the thread that would wait for space is everybody's.
        if let Worker::Thread(_) = self.worker {
            disk.settle();
        }
        disk.replenish();
    }

    /// Another file has taken over. What is queued is dropped, nothing more is written; open Views read on.
    pub(crate) fn retire(&self) {
        let mut control = self.shared.control.lock();
        control.role = Role::Retired;
        control.queue.clear();
        control.oldest = None;
        drop(control);
        self.shared.disk.load().space().leave();
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
    }

    /// The last durable state, to be read out as a whole. Unlike a View it pins no rows in memory.
    pub(crate) fn image(&self) -> Result<Image, Error> {
        self.shared.image()
    }

    /// Puts what is live, and nothing else, into a file on `disk`, which is empty; then gives that the name with `adopt`
    /// and stands on it. Commits, reads and Views go on meanwhile. `go_on` is asked after every few MiB. After an error
    /// all is as before, unless the backend has failed.
    pub(crate) fn defragment(&self, disk: Arc<dyn Disk>, adopt: Adopt, go_on: GoOn<'_>) -> Result<(), Error> {
        let go_on = || {
            go_on()?;
            self.shared.control.lock().refusal()?;
            match self.is_full() {
                true => Err(Error::NoSpaceForCopy),
                false => Ok(()),
            }
        };
        self.shared.control.lock().touched = Some(Touched::default());
        let copied = self
            .copy(disk, &go_on)
            .map_err(|error| match error {
                Error::Disk { source, .. } if disk::is_no_space(&source) => Error::NoSpaceForCopy,
                error => error,
            })
            .and_then(|successor| self.hand_over(successor, adopt, &go_on));
        self.shared.control.lock().touched = None;
        copied
    }

    fn copy(&self, disk: Arc<dyn Disk>, go_on: GoOn<'_>) -> Result<Successor, Error> {
        go_on()?;
        let mut successor = Successor::of(&self.shared.image()?, disk, &self.options, go_on)?;
        for _ in 0..COPY_ROUNDS_MAX {
            let touched = self.shared.control.lock().touched.replace(Touched::default());
            let bytes = successor.follow(&self.shared.image()?, touched.unwrap_or_default(), go_on)?;
            go_on()?;
            if bytes < COPY_LEFT_BYTES {
                break;
            }
        }
        Ok(successor)
    }

    fn hand_over(&self, successor: Successor, adopt: Adopt, go_on: GoOn<'_>) -> Result<(), Error> {
        let (tell, told) = mpsc::channel();
        self.shared.control.lock().handover = Some(Box::new(Handover { successor, adopt, tell }));
        self.shared.wake();
        loop {
            if let Worker::Stepped(committer) = &self.worker {
                committer.lock().as_mut().map(Committer::step);
            }
            match told.recv_timeout(HANDOVER_PATIENCE) {
                Ok(done) => return done,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Error::Closed),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = go_on() {
                // One that is being looked at comes to its end.
                if self.shared.control.lock().handover.take().is_some() {
                    return Err(error);
                }
            }
        }
    }

    /// Makes the change readable at once and queues it for the file. Called by one thread, in apply order, before
    /// anything refers to the new rows, and without locks that readers need: it waits while too much is not durable.
    pub fn push(&self, change: Change) -> Result<(), Error> {
        let bytes = change.bytes();
        let Change {
            applied,
            revision,
            compacted,
            rows,
            removed,
            system,
            origin,
        } = change;
        {
            let mut control = self.shared.control.lock();
            control.refusal()?;
            while control.queued_bytes > 0 && control.queued_bytes + bytes > self.options.pending_bytes_max {
                control.flush_to = control.pushed;
                self.await_commit(&mut control);
                control.refusal()?;
            }
        }
        let rows = (!rows.is_empty()).then(|| self.shared.pending.push(rows));
        let mut control = self.shared.control.lock();
        control.refusal()?;
        control.pushed += 1;
        let (before, after) = (control.queued_bytes, control.queued_bytes + bytes);
        self.shared.set_queued(&mut control, after);
        let first = control.oldest.is_none();
        if first {
            control.oldest = Some(Instant::now());
        }
        control.queue.push_back(Queued {
            applied,
            revision,
            compacted,
            rows,
            removed,
            system,
            origin,
            bytes,
        });
        drop(control);
        // The thread sleeps until the first change is due; any other concerns it only if it makes enough.
        if first || (before < self.options.commit_bytes && after >= self.options.commit_bytes) {
            self.shared.wake();
        }
        Ok(())
    }

    /// Waits for the thread to make some progress, or at least for a while; or makes the next commit here.
    fn await_commit(&self, control: &mut MutexGuard<'_, Control>) {
        match &self.worker {
            Worker::Thread(_) => {
                self.shared.work.notify_one();
                self.shared.progress.wait_for(control, Duration::from_millis(100));
            }
            Worker::Stepped(committer) => MutexGuard::unlocked(control, || {
                committer.lock().as_mut().map(Committer::step);
            }),
        }
    }

    /// One commit of a backend without a thread; false when nothing is queued.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn commit_step(&self) -> Result<bool, Error> {
        let Worker::Stepped(committer) = &self.worker else {
            return Ok(false);
        };
        let committed = committer.lock().as_mut().is_some_and(Committer::step);
        match self.failure() {
            Some(source) => Err(Error::Poisoned { source }),
            None => Ok(committed),
        }
    }

    /// The newest durable state and everything pushed since.
    pub fn view(&self) -> Result<View, Error> {
        let published = self.shared.current.load_full().ok_or(Error::Closed)?;
        Ok(View::new(published, self.shared.clone()))
    }

    /// What was pushed before the call is durable when it returns. On a full disk it does not wait for space.
    pub fn flush(&self) -> Result<Durable, Error> {
        let mut control = self.shared.control.lock();
        let target = control.pushed;
        control.flush_to = control.flush_to.max(target);
        while control.durable < target {
            control.refusal()?;
            if self.shared.disk.load().space().is_stalled() {
                return Err(Error::DiskFull);
            }
            self.await_commit(&mut control);
        }
        Ok(Durable {
            last: control.applied,
            last_but_one: control.applied_before,
        })
    }

    pub fn durable(&self) -> Durable {
        let control = self.shared.control.lock();
        Durable {
            last: control.applied,
            last_but_one: control.applied_before,
        }
    }

    /// [`Sizes::in_use_bytes`] alone, which costs nothing to ask for.
    pub fn in_use_bytes(&self) -> u64 {
        self.shared.in_use()
    }

    pub fn sizes(&self) -> Sizes {
        Sizes {
            in_use_bytes: self.in_use_bytes(),
            total_bytes: self.shared.disk.load().disk().allocated().unwrap_or_default(),
            pending_bytes: self.shared.pending.bytes() as u64,
        }
    }

    /// The disk has no space to spare: what makes the store grow should be refused until this is false again.
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Why nothing is made durable any more, if so.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.shared.control.lock().failed.clone()
    }

    /// Commits what is queued and ends the thread. On a full disk it does not wait for space; the log has the rest.
    pub fn close(mut self) -> Result<(), Error> {
        let flushed = self.flush();
        self.stop(Stop::Commit);
        flushed?;
        match self.failure() {
            Some(source) => Err(Error::Poisoned { source }),
            None => Ok(()),
        }
    }

    fn stop(&mut self, how: Stop) {
        let thread = match &mut self.worker {
            Worker::Thread(thread) => thread.take(),
            Worker::Stepped(committer) => {
                let committer = committer.get_mut().take();
                return committer
                    .into_iter()
                    .for_each(|committer| self.stop_here(committer, how));
            }
        };
        let Some(thread) = thread else { return };
        let retired = {
            let mut control = self.shared.control.lock();
            control.stop = Some(how);
            control.role == Role::Retired
        };
        self.shared.disk.load().space().leave();
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        if retired {
            // The last of its readers is here, perhaps where nobody may wait. The file has no name any more: what the
            // thread still does with it is of no consequence.
            return;
        }
        // A panic of the thread has been reported by the panic hook; there is nothing to add.
        let _ = thread.join();
        self.shared.current.store(None);
    }

    fn stop_here(&self, mut committer: Committer, how: Stop) {
        self.shared.control.lock().stop = Some(how);
        while committer.step() {}
        match self.failure() {
            Some(_) => self.shared.current.store(None),
            None => committer.close(),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop(Stop::Abandon);
    }
}
