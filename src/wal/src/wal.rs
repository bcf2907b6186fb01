//! The handle: what callers see of the log, and what it shares with the writer thread.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::Error;
use crate::disk::{Disk, File};
use crate::entry::{Done, Entry, LogPos};
use crate::format::{PAYLOAD_MAX, VOTE_MAX};
use crate::log::{Found, Log};
use crate::options::{Options, Recovered};
use crate::prepare::{Preparer, Spare};
use crate::read::{self, Wanted};
use crate::recover;
use crate::scan::{self, Scan};
use crate::segment::{Place, SegmentId};
#[cfg(any(test, feature = "testing"))]
use crate::stepper::{Stepper, Turns};
use crate::writer::{Op, Room, Taken, What, Writer};

/// A batch is closed at this size, to keep its buffer and the wait for its first caller bounded.
const BATCH_BYTES: usize = 4 << 20;
/// What an entry costs in an answer besides its payload.
const ENTRY_COST: usize = 32;

/// A durable log. Clones are handles to the same one.
///
/// Operations take effect for readers at once, in the order of the calls, and are durable when their [`Done`] says so.
/// When the last handle goes without [`close`](Self::close), what was queued is still written; the log only lacks its
/// end mark.
#[derive(Clone)]
pub struct Wal(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    worker: Worker,
}

/// Who takes the writer's turns.
enum Worker {
    /// Its thread, which is here with the one that prepares segments.
    Threads(Mutex<Vec<JoinHandle<()>>>),
    /// Whoever has the stepper; at the end, whoever closes the log.
    #[cfg(any(test, feature = "testing"))]
    Stepped(Turns),
}

/// Why the writer is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Close,
    Drop,
    /// As a process that is killed: what is queued is neither written nor answered.
    #[cfg(any(test, feature = "testing"))]
    Kill,
}

/// Called when there is something to do for a writer without a thread.
pub(crate) type OnWork = Box<dyn Fn() + Send + Sync>;

/// What the handles, the writer and the readers share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// The queue is no longer empty, or the writer is to stop.
    wake: Condvar,
    on_work: Option<OnWork>,
    pub(crate) preparer: Arc<Preparer>,
}

struct Core {
    log: Log,
    vote: Option<Bytes>,
    committed: Option<LogPos>,
    /// `committed` where the disk does not have it yet.
    unsaved: Option<LogPos>,
    queue: VecDeque<Op>,
    /// About what the queue will take on disk.
    queued_bytes: usize,
    /// The same for the batch that the writer has taken from it.
    writing_bytes: usize,
    /// What is left of the current segment for entries, before `writing_bytes`.
    writable_bytes: u64,
    files: BTreeMap<SegmentId, Arc<dyn File>>,
    /// Entries from here on were truncated after the batch now being written was taken from the queue.
    publish_below: u64,
    poisoned: bool,
    stop: Option<Stop>,
    /// The writer has ended: with this.
    ended: Option<Result<(), Error>>,
}

/// Everything that opening does before the end of the log is touched.
fn prepare(
    options: &Options,
    disk: Arc<dyn Disk>,
    on_work: Option<OnWork>,
) -> Result<(Arc<Shared>, Scan, Recovered), Error> {
    options.validate()?;
    let preparer = Arc::new(Preparer::new(disk.clone(), options));
    let mut scan = recover::recover(&disk, options, &preparer)?;
    let recovered = Recovered {
        vote: scan.vote.clone(),
        committed: scan.committed,
        purged: scan.log.purged(),
        last: scan.log.last(),
        clean_stop: scan.clean_stop,
        torn: scan.torn.clone(),
    };
    let mut log = std::mem::take(&mut scan.log);
    log.set_cache(options.cache_bytes);
    let files = scan
        .live
        .iter()
        .map(|live| (live.segment.id, live.segment.file.clone()))
        .collect();
    let shared = Arc::new(Shared {
        core: Mutex::new(Core {
            vote: scan.vote.clone(),
            committed: scan.committed,
            unsaved: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            writing_bytes: 0,
            writable_bytes: 0,
            files,
            publish_below: u64::MAX,
            poisoned: false,
            stop: None,
            ended: None,
            log,
        }),
        wake: Condvar::new(),
        on_work,
        preparer,
    });
    Ok((shared, scan, recovered))
}

impl Wal {
    /// Opens the log, or founds one where there is none. Everything that is returned is durable.
    pub fn open(options: Options, disk: Arc<dyn Disk>) -> Result<(Self, Recovered), Error> {
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.into()).spawn(run);
            spawned.map_err(|e| Error::io("start thread of the log in", &options.dir, e))
        };
        let (shared, scan, recovered) = prepare(&options, disk, None)?;
        let preparer = shared.preparer.clone();
        let mut threads = Vec::new();
        if options.prepare_ahead {
            let preparer = preparer.clone();
            threads.push(spawn("wal-prepare", Box::new(move || preparer.run()))?);
        }
        let mut writer = Writer::new(shared.clone(), options.clone(), scan, &recovered);
        let started = writer
            .open()
            .and_then(|()| spawn("wal", Box::new(move || writer.run())));
        match started {
            Ok(writer) => threads.push(writer),
            Err(error) => {
                preparer.stop();
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error);
            }
        }
        let worker = Worker::Threads(Mutex::new(threads));
        Ok((Self(Arc::new(Handle { shared, worker })), recovered))
    }

    /// The same without threads, for simulations: operations queue up, and are written and answered when the
    /// [`Stepper`] takes a turn, on its caller's thread. `on_work` is called, on the thread of the operation, whenever
    /// there is something to do again; it must only wake somebody up.
    ///
    /// Segments are prepared between the turns whatever [`Options::prepare_ahead`] says, so that all calls to the disk
    /// are a function of the calls made. [`close`](Self::close) and the drop of the last handle take the turns that are
    /// left themselves.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_stepped(
        options: Options,
        disk: Arc<dyn Disk>,
        on_work: impl Fn() + Send + Sync + 'static,
    ) -> Result<(Self, Recovered, Stepper), Error> {
        let options = Options {
            prepare_ahead: false,
            ..options
        };
        let (shared, scan, recovered) = prepare(&options, disk, Some(Box::new(on_work)))?;
        let mut writer = Writer::new(shared.clone(), options, scan, &recovered);
        writer.open()?;
        let turns = Turns::new(shared.clone(), writer);
        let stepper = Stepper::new(turns.clone());
        let worker = Worker::Stepped(turns);
        Ok((Self(Arc::new(Handle { shared, worker })), recovered, stepper))
    }

    /// Adds entries at the end. They can be read when this returns, and are durable when `done` hears `Ok`.
    ///
    /// They have to follow the last entry: the next index, and no lower term. With [`Error::NoSpace`] they are gone
    /// again, with all that were appended after them.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.append_to(Room::Entries, entries, done);
    }

    /// The same for entries that are small and that the log has to take even on a full disk: those by which a leader
    /// is elected and members change. They may use what votes and purges have in reserve.
    pub fn append_reserved(&self, entries: Vec<Entry>, done: Done) {
        self.append_to(Room::Reserve, entries, done);
    }

    fn append_to(&self, room: Room, entries: Vec<Entry>, done: Done) {
        self.submit(done, |core| {
            let mut last = core.log.last();
            for entry in &entries {
                if !Log::follows(last, entry.pos) {
                    return Err(Error::NotNext { last, got: entry.pos });
                }
                if entry.payload.len() > PAYLOAD_MAX {
                    return Err(Error::TooLarge {
                        what: "entry",
                        bytes: entry.payload.len(),
                        max: PAYLOAD_MAX,
                    });
                }
                last = Some(entry.pos);
            }
            entries.iter().cloned().for_each(|entry| core.log.push(entry));
            Ok(What::Append(entries, room))
        });
    }

    pub fn save_vote(&self, vote: Bytes, done: Done) {
        self.submit(done, |core| {
            if vote.len() > VOTE_MAX {
                return Err(Error::TooLarge {
                    what: "vote",
                    bytes: vote.len(),
                    max: VOTE_MAX,
                });
            }
            core.vote = Some(vote.clone());
            Ok(What::Vote(vote))
        });
    }

    /// Notes how far the log is committed. Written along with the next batch, or when the log is closed: losing the
    /// latest one only means to learn it again.
    ///
    /// A position beyond the end of the log is kept in memory until the log reaches it.
    pub fn save_committed(&self, pos: LogPos) {
        let mut core = self.0.shared.core.lock();
        if pos.index < u64::MAX && core.committed.is_none_or(|committed| committed.index < pos.index) {
            core.committed = Some(pos);
            core.unsaved = Some(pos);
        }
    }

    /// Drops the entries after `after`; `None` drops all that are not purged. Committed entries can't go.
    pub fn truncate_after(&self, after: Option<u64>, done: Done) {
        self.submit(done, |core| {
            let purged = core.log.purged().map(|purged| purged.index);
            let floor = after.max(purged);
            let reached = core.committed.filter(|pos| core.log.holds(*pos));
            if let Some(committed) = reached.filter(|pos| floor < Some(pos.index)) {
                return Err(Error::TruncatesCommitted { after, committed });
            }
            core.log.truncate(after);
            core.publish_below = core.publish_below.min(after.map_or(0, |after| after.saturating_add(1)));
            Ok(What::Truncate {
                after: floor,
                last: core.log.last(),
            })
        });
    }

    /// Drops the entries up to `upto`, inclusive. Where the log ends before that, it becomes empty, as by a
    /// [`reset`](Self::reset).
    pub fn purge(&self, upto: LogPos, done: Done) {
        self.submit(done, |core| {
            let upto = possible(upto)?;
            let beyond = core.log.last().is_none_or(|last| last.index < upto.index);
            core.log.purge(upto);
            if beyond {
                core.publish_below = 0;
                return Ok(What::Reset(upto));
            }
            Ok(What::Purge(upto))
        });
    }

    /// Empties the log: the next entry is the one after `purged`. For when a snapshot has taken the log's place.
    pub fn reset(&self, purged: LogPos, done: Done) {
        self.submit(done, |core| {
            let purged = possible(purged)?;
            core.publish_below = 0;
            core.log.reset(purged);
            Ok(What::Reset(purged))
        });
    }

    /// Takes effect in memory, then queues; or queues the refusal, so that answers keep their order.
    fn submit(&self, done: Done, accept: impl FnOnce(&mut Core) -> Result<What, Error>) {
        let shared = &self.0.shared;
        let mut core = shared.core.lock();
        if core.stop.is_some() {
            drop(core);
            return done(Err(Error::Closed));
        }
        let accepted = if core.poisoned {
            Err(Error::Poisoned)
        } else {
            accept(&mut core)
        };
        let what = accepted.unwrap_or_else(|refused| What::Answer(Err(refused)));
        let idle = core.queue.is_empty();
        core.queued_bytes += what.bytes();
        core.queue.push_back(Op { what, done });
        drop(core);
        if idle {
            shared.wake();
        }
    }

    /// The entries of `range` that the log has, in order, up to about `max_bytes`, but at least one if there is one.
    /// Indexes that are purged or not appended yet are left out.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, Error> {
        let (wanted, recent) = self.find(range, max_bytes);
        if wanted.is_empty() {
            return Ok(recent);
        }
        let mut entries = Vec::with_capacity(wanted.len() + recent.len());
        if let Err(error) = read::read(&wanted, &mut entries) {
            // A segment that was purged meanwhile may hold something else by now: then these entries are gone, not bad.
            let first = self.0.shared.core.lock().log.first();
            if wanted[0].index >= first {
                return Err(error);
            }
            let (Some(last), again) = (wanted.last().map(|w| w.index.max(first)), first) else {
                return Ok(recent);
            };
            return if again > last {
                Ok(recent)
            } else {
                self.read(again..last + 1, max_bytes)
            };
        }
        entries.extend(recent);
        Ok(entries)
    }

    fn find(&self, range: Range<u64>, max_bytes: usize) -> (Vec<Wanted>, Vec<Entry>) {
        let core = self.0.shared.core.lock();
        let (mut wanted, mut recent) = (Vec::new(), Vec::new());
        let mut bytes = 0usize;
        for index in range.start.max(core.log.first())..range.end.min(core.log.next()) {
            let len = core.log.len_of(index).unwrap_or(0);
            bytes = bytes.saturating_add(len + ENTRY_COST);
            if bytes > max_bytes && !(wanted.is_empty() && recent.is_empty()) {
                break;
            }
            match core.log.find(index) {
                Some(Found::Recent(entry)) => recent.push(entry),
                Some(Found::OnDisk(index, slot)) => match core.files.get(&slot.place().segment) {
                    Some(file) => wanted.push(Wanted {
                        index,
                        slot,
                        file: file.clone(),
                    }),
                    None => break,
                },
                None => break,
            }
        }
        (wanted, recent)
    }

    /// The purge point, and the last entry (the purge point in an empty log). Both may be ahead of the disk.
    pub fn state(&self) -> (Option<LogPos>, Option<LogPos>) {
        let core = self.0.shared.core.lock();
        (core.log.purged(), core.log.last())
    }

    /// The vote as last given, which may be ahead of the disk.
    pub fn vote(&self) -> Option<Bytes> {
        self.0.shared.core.lock().vote.clone()
    }

    /// The committed position as last given, which may be ahead of the disk.
    pub fn committed(&self) -> Option<LogPos> {
        self.0.shared.core.lock().committed
    }

    /// Whether the log can continue a backend that has made everything up to `applied` durable.
    /// [`Options::applied`] asks the same before anything is written, and should be preferred.
    pub fn check_against(&self, applied: LogPos) -> Result<(), Error> {
        let core = self.0.shared.core.lock();
        let segment = core.files.last_key_value().map_or(SegmentId::FIRST, |(id, _)| *id);
        scan::check_reaches(&core.log, Some(applied), "applied").map_err(|what| Error::damage(segment, 0, what))
    }

    /// True while there is space for a further segment. When it turns false, what is prepared already still takes
    /// [`writable_bytes`](Self::writable_bytes); refuse clients then, so that the log need not. It turns true by itself
    /// once there is space again.
    pub fn space(&self) -> Arc<AtomicBool> {
        self.0.shared.preparer.space().clone()
    }

    /// About how many more bytes of entries the log takes without another segment: what is left of the current one and
    /// all of the one that is prepared, less everything that has been asked for and is not yet written, whether it waits
    /// in the queue or is on its way to the disk. Entries count with their heads and padding (up to 40 bytes each); what
    /// [`append_reserved`](Self::append_reserved), votes and purges have in reserve is not part of it.
    pub fn writable_bytes(&self) -> u64 {
        let ready = self.0.shared.preparer.ready_bytes();
        let core = self.0.shared.core.lock();
        (core.writable_bytes + ready).saturating_sub((core.queued_bytes + core.writing_bytes) as u64)
    }

    /// The next segment is being made. Until it is there or [`space`](Self::space) turns false, it is open whether the log
    /// takes more than [`writable_bytes`](Self::writable_bytes).
    pub fn is_preparing(&self) -> bool {
        self.0.shared.preparer.is_preparing()
    }

    /// Writes what is queued and an end mark, and ends the log's threads. Other handles still read; what they ask to
    /// write is answered with [`Error::Closed`].
    pub fn close(self) -> Result<(), Error> {
        self.0.stop(Stop::Close);
        self.0.shared.core.lock().ended.clone().unwrap_or(Err(Error::Closed))
    }
}

impl Handle {
    fn stop(&self, stop: Stop) {
        self.shared.core.lock().stop.get_or_insert(stop);
        match &self.worker {
            Worker::Threads(threads) => {
                self.shared.wake();
                join(std::mem::take(&mut *threads.lock()));
            }
            #[cfg(any(test, feature = "testing"))]
            Worker::Stepped(turns) => turns.finish(),
        }
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    // A callback may hold the last handle. Its thread can't wait for itself, nor for the other one, which ends after it;
    // both do end once the callback returns.
    if threads
        .iter()
        .any(|thread| thread.thread().id() == thread::current().id())
    {
        return;
    }
    for thread in threads {
        let _ = thread.join();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop(Stop::Drop);
    }
}

/// A position that a log can go on from.
fn possible(pos: LogPos) -> Result<LogPos, Error> {
    match pos.index {
        u64::MAX => Err(Error::OutOfRange { pos }),
        _ => Ok(pos),
    }
}

impl Core {
    /// The committed position, if it is news and the log that the writer is about to write holds that very entry. While
    /// something in the queue is still to cut entries off, the writer's log is not the one in memory.
    fn take_unsaved(&mut self) -> Option<LogPos> {
        let same = self.publish_below == u64::MAX;
        self.unsaved.take_if(|pos| same && self.log.holds(*pos))
    }

    /// A batch of what is queued; the end when nothing is left and it is time to stop.
    fn take(&mut self) -> Option<Taken> {
        if self.queue.is_empty() {
            let stop = self.stop?;
            let committed = self.take_unsaved();
            return Some(Taken::End { stop, committed });
        }
        let mut bytes = 0;
        let full = |op: &Op| {
            bytes += op.what.bytes();
            bytes > BATCH_BYTES
        };
        let take = self
            .queue
            .iter()
            .position(full)
            .map_or(self.queue.len(), |at| at.max(1));
        let ops: Vec<Op> = self.queue.drain(..take).collect();
        self.writing_bytes = ops.iter().map(|op| op.what.bytes()).sum();
        self.queued_bytes -= self.writing_bytes;
        // What stays queued has already taken effect in memory.
        self.publish_below = self
            .queue
            .iter()
            .map(|op| ends_below(&op.what, u64::MAX))
            .min()
            .unwrap_or(u64::MAX);
        let committed = self.take_unsaved();
        Some(Taken::Batch { ops, committed })
    }
}

/// What the writer asks for.
impl Shared {
    /// There is something to do for the writer.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
        if let Some(on_work) = &self.on_work {
            on_work();
        }
    }

    /// Whether anybody measures time for this log: not where every run has to be like the one before.
    pub(crate) fn is_timed(&self) -> bool {
        self.on_work.is_none()
    }

    /// Waits for something to do.
    pub(crate) fn next(&self) -> Taken {
        let mut core = self.core.lock();
        loop {
            if let Some(taken) = core.take() {
                return taken;
            }
            self.wake.wait(&mut core);
        }
    }

    /// The same, where nobody waits.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn try_next(&self) -> Option<Taken> {
        self.core.lock().take()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn has_work(&self) -> bool {
        let core = self.core.lock();
        core.ended.is_none() && (!core.queue.is_empty() || core.stop.is_some())
    }

    /// What is queued is lost, without answers, and nothing more is written.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn kill(&self) {
        let mut core = self.core.lock();
        core.stop = Some(Stop::Kill);
        core.queued_bytes = 0;
        let queue = std::mem::take(&mut core.queue);
        drop(core);
        drop(queue); // what the callbacks hold may call back
    }

    pub(crate) fn add_file(&self, id: SegmentId, file: Arc<dyn File>) {
        self.core.lock().files.insert(id, file);
    }

    /// A batch is durable: its entries can be read from disk.
    pub(crate) fn publish(&self, staged: &mut Vec<(u64, Place)>, unsaved: Option<LogPos>, retired: &[Spare]) {
        let mut core = self.core.lock();
        for (index, place) in staged.drain(..) {
            if index < core.publish_below {
                core.log.locate(index, place);
            }
        }
        core.log.evict();
        core.unsaved = core.unsaved.or(unsaved);
        for spare in retired {
            core.files.remove(&spare.id);
        }
    }

    /// The log could not take an entry: everything appended after `last` goes, from memory and from the queue.
    pub(crate) fn refuse_appends(&self, last: Option<LogPos>) -> Vec<Done> {
        let mut core = self.core.lock();
        let mut end = last.map_or(0, |last| last.index + 1);
        let (mut refused, mut kept) = (Vec::new(), VecDeque::new());
        for op in std::mem::take(&mut core.queue) {
            match op.what {
                What::Append(..) => refused.push(op.done),
                _ => {
                    end = ends_below(&op.what, end);
                    kept.push_back(op);
                }
            }
        }
        core.queued_bytes = kept.iter().map(|op| op.what.bytes()).sum();
        core.queue = kept;
        core.log.truncate(end.checked_sub(1));
        refused
    }

    pub(crate) fn poison(&self) {
        let mut core = self.core.lock();
        core.poisoned = true;
        core.writable_bytes = 0;
    }

    /// What the current segment has left, now that the batch is written.
    pub(crate) fn set_writable(&self, bytes: u64) {
        let mut core = self.core.lock();
        core.writable_bytes = bytes;
        core.writing_bytes = 0;
    }

    pub(crate) fn ended(&self, outcome: Result<(), Error>) {
        self.core.lock().ended = Some(outcome);
    }
}

/// One past the last of the entries before `end` that an operation leaves.
fn ends_below(what: &What, end: u64) -> u64 {
    match what {
        What::Truncate { after, .. } => end.min(after.map_or(0, |after| after.saturating_add(1))),
        What::Reset(_) => 0,
        _ => end,
    }
}
