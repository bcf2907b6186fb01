//! The physical part of compaction: a walk over the index that takes away what nobody can read any more, in slices
//! between the entries. What is in force was decided when the command was applied; how far the walk has come shows
//! nowhere but in the size of the file.
//!
//! Before anything is removed, what the compaction took is hashed, for it will be asked for (see
//! [`crate::store::hash`]).
//!
//! There is nothing to store about it: after a start the index has every row of the file again, and the walk begins
//! anew. It stays below the oldest open read, and comes back when that is gone.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Writer;
use crate::backend;
use crate::error::Error;
use crate::mvcc::index::Resume;
use crate::stepped::{OnWork, Stopwatch};
use crate::store::{SLICE_KEYS, Shared};

/// How often the oldest open read is looked at while it is in the way.
const RETRY: Duration = Duration::from_millis(20);

/// Longest pause in reading what a compaction took; etcd's pause.
const REST_MAX: Duration = Duration::from_millis(10);

type Waiter = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What the walk and those who wait for it share.
#[derive(Default)]
pub(crate) struct Compaction {
    state: Mutex<State>,
    changed: Condvar,
    /// Called instead where nobody waits for a change.
    on_work: Option<OnWork>,
}

struct State {
    /// There may be something to remove.
    wanted: bool,
    /// Everything that compaction up to here took has been handed to the backend.
    finished: i64,
    waiters: Vec<(i64, Waiter)>,
    stop: bool,
}

/// A walk under way.
#[derive(Debug)]
pub(crate) struct Walk {
    from: Resume,
    /// All of it has been compacted up to here at least.
    floor: i64,
    begun: Stopwatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    /// Open reads are in the way of the rest.
    Blocked,
    Idle,
}

impl Compaction {
    pub fn new(on_work: Option<OnWork>) -> Self {
        Self {
            on_work,
            ..Self::default()
        }
    }

    fn wake(&self) {
        self.changed.notify_all();
        if let Some(on_work) = &self.on_work {
            on_work.call();
        }
    }

    /// Another file: nobody knows what has been removed from it. Those who wait go on waiting.
    pub fn restart(&self, wanted: bool) {
        let mut state = self.state.lock();
        state.wanted = wanted;
        state.finished = -1;
        drop(state);
        self.wake();
    }

    /// Compaction has moved on.
    pub fn begin(&self) {
        self.state.lock().wanted = true;
        self.wake();
    }

    /// After `worked`, leaves core and disk to others for as long, unless somebody waits for the end. True when it is
    /// time to stop.
    fn rest(&self, worked: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.stop && state.waiters.is_empty() {
            self.changed.wait_for(&mut state, worked.min(REST_MAX));
        }
        state.stop
    }

    pub fn wait_for(&self, revision: i64, done: Waiter) {
        let mut state = self.state.lock();
        if state.stop {
            drop(state);
            return done(Err(backend::Error::Closed.into()));
        }
        state.waiters.push((revision, done));
        drop(state);
        self.wake();
    }

    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Answers whoever waits for what is finished, once that is durable. Syncs: not to be called while apply waits.
    pub fn answer(&self, shared: &Shared) {
        if !self.state.lock().is_due() {
            return;
        }
        let result = match shared.backend.flush() {
            // It all begins again with the file that took over.
            Err(backend::Error::Replaced) => return,
            result => result.map(drop).map_err(Error::from),
        };
        let ready: Vec<_> = {
            let mut state = self.state.lock();
            let finished = state.finished;
            state
                .waiters
                .extract_if(.., |(revision, _)| *revision <= finished)
                .collect()
        };
        ready.into_iter().for_each(|(_, done)| done(result.clone()));
    }

    pub fn fail_all(&self, error: &Error) {
        let waiters = std::mem::take(&mut self.state.lock().waiters);
        waiters.into_iter().for_each(|(_, done)| done(Err(error.clone())));
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            wanted: false,
            finished: -1,
            waiters: Vec::new(),
            stop: false,
        }
    }
}

impl State {
    /// Somebody waits for what is finished.
    fn is_due(&self) -> bool {
        self.waiters.iter().any(|(revision, _)| *revision <= self.finished)
    }
}

impl Writer {
    /// One slice of the walk.
    pub(super) fn compact_slice(&mut self, keys_max: usize) -> Result<Progress, Error> {
        let shared = self.shared.clone();
        let watch = || Stopwatch::start(shared.compaction.on_work.as_ref());
        let begun = watch();
        // Nothing is compacted before something was applied.
        let Some(applied) = self.applied else {
            return Ok(Progress::Idle);
        };
        let walk = match &mut self.walk {
            Some(walk) => walk,
            none => {
                let reachable = floor(&shared, shared.mvcc.read().compacted);
                let mut state = shared.compaction.state.lock();
                if !state.wanted {
                    return Ok(Progress::Idle);
                }
                if reachable <= state.finished {
                    return Ok(Progress::Blocked);
                }
                state.wanted = false;
                none.insert(Walk {
                    from: Resume::Start,
                    floor: i64::MAX,
                    begun,
                })
            }
        };
        let walk_begun = walk.begun;
        let mut removed = Vec::new();
        let index_begun = watch();
        let (next, compacted) = {
            let mut mvcc = shared.mvcc.write();
            let compacted = mvcc.compacted;
            let floor = floor(&shared, compacted);
            walk.floor = walk.floor.min(floor);
            (mvcc.index.compact(&walk.from, floor, keys_max, &mut removed), compacted)
        };
        let index_took = index_begun.elapsed();
        let done_to = walk.floor;
        match next {
            Some(next) => walk.from = next,
            None => self.walk = None,
        }
        let rows = removed.len();
        if !removed.is_empty() {
            removed.iter().for_each(|id| shared.values.remove(*id));
            self.push_aside(applied, removed, Vec::new())?;
        }
        let observer = &self.root.options.backend.observer;
        observer.compacted(backend::CompactionSlice {
            rows,
            took: begun.elapsed(),
            index_took,
        });
        if self.walk.is_some() {
            return Ok(Progress::More);
        }
        observer.compaction_ended(walk_begun.elapsed());
        let mut state = shared.compaction.state.lock();
        state.finished = state.finished.max(done_to);
        state.wanted |= done_to < compacted;
        Ok(if state.wanted { Progress::More } else { Progress::Idle })
    }
}

/// Below what revision rows may go: called under the lock of the index, in which reads are registered.
fn floor(shared: &Shared, compacted: i64) -> i64 {
    shared.reads.oldest().map_or(compacted, |open| open.min(compacted))
}

/// The thread that does the walking.
pub(super) fn spawn(writer: Arc<Mutex<Writer>>) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new()
        .name("compaction".into())
        .spawn(move || run(&writer));
    thread.map_err(|source| {
        Error::from(backend::Error::File {
            doing: "start the compacting thread",
            path: std::path::PathBuf::new(),
            source: Arc::new(source),
        })
    })
}

fn run(writer: &Mutex<Writer>) {
    let compaction = &*writer.lock().shared.compaction.clone();
    while wait(compaction) {
        loop {
            let shared = writer.lock().shared.clone();
            // First, since removing waits for it. With the last apply there may be one more.
            loop {
                let begun = Instant::now();
                if !shared.hash_step() || compaction.rest(begun.elapsed()) {
                    break;
                }
            }
            drop(shared);
            let mut guard = writer.lock();
            let progress = guard.run(|writer| writer.compact_slice(SLICE_KEYS));
            let shared = guard.shared.clone();
            // Or this thread would have it again before one that waits for it wakes up.
            MutexGuard::unlock_fair(guard);
            compaction.answer(&shared);
            drop(shared);
            match progress {
                Ok(Progress::More) if compaction.state.lock().stop => break,
                Ok(Progress::More) => {}
                Ok(Progress::Idle) => break,
                Ok(Progress::Blocked) => {
                    let mut state = compaction.state.lock();
                    if !state.stop {
                        compaction.changed.wait_for(&mut state, RETRY);
                    }
                    break;
                }
                Err(error) => {
                    // Apply hears the same error next; it is the one to report it. Stopped first: from then on, who
                    // comes to wait is answered at once, and not left behind.
                    compaction.stop();
                    compaction.fail_all(&error);
                    return;
                }
            }
        }
    }
    compaction.fail_all(&backend::Error::Closed.into());
}

/// Until there is something to do; false: it is time to end.
fn wait(compaction: &Compaction) -> bool {
    let mut state = compaction.state.lock();
    loop {
        if state.stop {
            return false;
        }
        if state.wanted || state.is_due() {
            return true;
        }
        compaction.changed.wait(&mut state);
    }
}
