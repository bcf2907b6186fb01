//! The writer thread: takes what is queued, makes one batch of it, writes and syncs it, answers.
//!
//! While a batch is on its way to the disk the next one gathers in the queue, so a single client waits for one sync and
//! a thousand share one; there is no timer. A batch goes into the current segment in one write. Where it does not fit,
//! the part that fits is written and synced, and the rest opens the next segment.
//!
//! All of it happens in turns, which know nothing of the thread: a simulation takes them by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::batch::{BatchBuffer, Mark};
use crate::entry::{Done, Entry, LogPos};
use crate::format::{self, BATCH, HEADER, Record, STATE_MAX, State, record_bytes};
use crate::prepare::Spare;
use crate::scan::{Live, Scan, Segment};
use crate::segment::Place;
use crate::wal::{Shared, Stop};
use crate::{Error, Options, Recovered};

/// An operation in the queue.
pub(crate) struct Op {
    pub what: What,
    pub done: Done,
}

pub(crate) enum What {
    Append(Vec<Entry>, Room),
    Vote(Bytes),
    /// `last` is what the log ends with afterwards.
    Truncate {
        after: Option<u64>,
        last: Option<LogPos>,
    },
    Purge(LogPos),
    Reset(LogPos),
    /// Only to be answered, in its turn.
    Answer(Result<(), Error>),
}

impl What {
    /// About what it takes on disk.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Append(entries, _) => entries
                .iter()
                .map(|e| record_bytes(format::ENTRY_BODY + e.payload.len()))
                .sum(),
            Self::Answer(_) => 0,
            _ => 64,
        }
    }
}

/// What the writer does next.
pub(crate) enum Taken {
    Batch { ops: Vec<Op>, committed: Option<LogPos> },
    End { stop: Stop, committed: Option<LogPos> },
}

/// Why a record could not be put into the batch.
enum Halt {
    /// The next segment can't be made; what is written stays good.
    NoSpace,
    Fatal(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        match error {
            Error::NoSpace => Self::NoSpace,
            other => Self::Fatal(other),
        }
    }
}

const COPY_BYTES: usize = 1 << 20;
const PAGE: u64 = 4096;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    options: Options,
    /// Oldest first; the last one is written to.
    live: Vec<Live>,
    batch: BatchBuffer,
    /// Where the batch will be written.
    end: Place,
    /// Everything before this is durable.
    synced: Place,
    /// Something before `end` has been written and not synced.
    unsynced: bool,
    session: u32,
    /// What the records written or in the batch add up to; told again at the head of each segment.
    vote: Option<Bytes>,
    committed: Option<LogPos>,
    purged: Option<LogPos>,
    last: Option<LogPos>,
    /// Where the entries of this batch lie, for the readers once it is written.
    staged: Vec<(u64, Place)>,
    /// Segments to let go of once the purge in this batch is durable.
    retiring: Vec<Spare>,
    poisoned: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, options: Options, scan: Scan, found: &Recovered) -> Self {
        let Scan {
            vote,
            committed,
            live,
            retired,
            end,
            synced,
            session,
            ..
        } = scan;
        Self {
            shared,
            options,
            live,
            batch: BatchBuffer::default(),
            end,
            synced,
            unsynced: false,
            session,
            vote,
            committed,
            purged: found.purged,
            last: found.last,
            staged: Vec::new(),
            retiring: retired
                .into_iter()
                .map(|Segment { id, bytes, .. }| Spare { id, bytes })
                .collect(),
            poisoned: false,
        }
    }

    /// Marks where this run begins, which cuts off whatever lay beyond the end, and makes all before it durable.
    pub(crate) fn open(&mut self) -> Result<(), Error> {
        let new = self.session == 0;
        let Some(session) = self.session.checked_add(1) else {
            return Err(Error::damage(
                self.end.segment,
                self.end.offset,
                "the last of all session numbers is in use",
            ));
        };
        self.session = session;
        if new {
            self.push_state();
        } else {
            self.rewrite_tail()?;
            self.free_retired()?;
        }
        let marked = self.put(&Record::Open, Room::Reserve).map(|_| ());
        marked
            .and_then(|()| self.flush().map_err(Halt::Fatal))
            .map_err(|halt| match halt {
                Halt::NoSpace => Error::NoSpace,
                Halt::Fatal(error) => error,
            })?;
        let current = self.current();
        let (next, bytes) = (current.id.next(), self.shared.preparer.bytes_after(Some(current.bytes)));
        self.shared.preparer.want(next, bytes);
        self.idle_work();
        self.tell_writable();
        Ok(())
    }

    /// Writes again what may have been read from the page cache alone: after a failed sync, a page can look clean and
    /// hold what the disk does not have.
    fn rewrite_tail(&mut self) -> Result<(), Error> {
        let segment = self.current().clone();
        let mut at = if self.synced.segment == segment.id {
            self.synced.offset
        } else {
            HEADER as u64
        };
        let mut bytes = vec![0; COPY_BYTES.min((self.end.offset - at) as usize)];
        while at < self.end.offset {
            let part = bytes.len().min((self.end.offset - at) as usize);
            let read = segment.file.read_at(&mut bytes[..part], at);
            read.map_err(|e| Error::io("read log segment", segment.id.file_name(), e))?;
            self.write(&bytes[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }

    /// Lets go of segments that were purged before. The purge that says so has just been written again if need be; it
    /// has to be durable first, or a log could come back that still needs them.
    fn free_retired(&mut self) -> Result<(), Error> {
        if !self.retiring.is_empty() {
            self.flush()?;
            self.shared.preparer.free(std::mem::take(&mut self.retiring));
        }
        Ok(())
    }

    pub(crate) fn run(mut self) {
        while self.turn(self.shared.next()) {}
    }

    /// Takes one batch to its answers; or ends, and that is the last turn.
    pub(crate) fn turn(&mut self, taken: Taken) -> bool {
        let (stop, committed) = match taken {
            Taken::Batch { ops, committed } => {
                self.process(ops, committed);
                self.idle_work();
                return true;
            }
            Taken::End { stop, committed } => (stop, committed),
        };
        let outcome = match stop {
            _ if self.poisoned => Err(Error::Poisoned),
            Stop::Close => self.close(committed),
            Stop::Drop => Ok(()),
            #[cfg(any(test, feature = "testing"))]
            Stop::Kill => Err(Error::Closed),
        };
        self.shared.preparer.stop();
        self.shared.ended(outcome);
        false
    }

    fn close(&mut self, committed: Option<LogPos>) -> Result<(), Error> {
        let marked = (|| {
            if let Some(committed) = committed.filter(|pos| self.covers(*pos)) {
                self.put_committed(committed)?;
            }
            self.put(&Record::End, Room::Reserve)?;
            Ok(())
        })();
        match marked {
            // Without its end mark the log is as good; the next start only looks at it more closely.
            Ok(()) | Err(Halt::NoSpace) => self.flush(),
            Err(Halt::Fatal(error)) => Err(error),
        }
    }

    /// What is done between the batches where no thread does it meanwhile.
    pub(crate) fn idle_work(&self) {
        if !self.options.prepare_ahead {
            self.shared.preparer.work();
        }
    }

    /// Takes a batch from the queue to its answers.
    fn process(&mut self, ops: Vec<Op>, committed: Option<LogPos>) {
        let mut answers = Vec::with_capacity(ops.len());
        let mut full = false;
        let mut fatal = None;
        for Op { what, done } in ops {
            let answer = match what {
                What::Answer(answer) => answer,
                _ if self.poisoned || fatal.is_some() => Err(Error::Poisoned),
                // They continue one that was refused.
                What::Append(..) if full => Err(Error::NoSpace),
                what => match self.encode(&what) {
                    Ok(()) => Ok(()),
                    Err(Halt::NoSpace) if matches!(what, What::Append(..)) => {
                        full = true;
                        Err(Error::NoSpace)
                    }
                    // The others can't be undone in memory. They have a reserve of their own, so this is far away.
                    Err(Halt::NoSpace) => Err(fatal.insert(Error::NoSpace).clone()),
                    Err(Halt::Fatal(error)) => Err(fatal.insert(error).clone()),
                },
            };
            answers.push((done, answer));
        }
        if full {
            answers.extend(
                self.shared
                    .refuse_appends(self.last)
                    .into_iter()
                    .map(|done| (done, Err(Error::NoSpace))),
            );
        }
        let mut unsaved = committed;
        if fatal.is_none() && !self.batch.is_empty() {
            // After the entries, so that a torn batch can't keep the position and lose them.
            if let Some(pos) = committed.filter(|pos| self.covers(*pos)) {
                match self.put_committed(pos) {
                    Ok(()) => unsaved = None,
                    Err(Halt::NoSpace) => {}
                    Err(Halt::Fatal(error)) => fatal = Some(error),
                }
            }
        }
        if fatal.is_none() {
            fatal = self.flush().err();
        }
        if let Some(error) = fatal {
            self.poison(&error, &mut answers);
        } else {
            self.shared.publish(&mut self.staged, unsaved, &self.retiring);
            if !self.retiring.is_empty() {
                self.shared.preparer.free(std::mem::take(&mut self.retiring));
            }
            self.tell_writable();
        }
        for (done, answer) in answers {
            done(answer);
        }
    }

    /// From here on nothing is acknowledged: what the disk holds is unknown until it is read again by a new process.
    fn poison(&mut self, error: &Error, answers: &mut [(Done, Result<(), Error>)]) {
        self.poisoned = true;
        self.batch.clear();
        self.staged.clear();
        self.retiring.clear();
        self.shared.poison();
        (self.options.on_fatal)(error);
        for (_, answer) in answers.iter_mut().filter(|(_, answer)| answer.is_ok()) {
            *answer = Err(error.clone());
        }
    }

    fn reaches(&self, pos: LogPos) -> bool {
        self.last.is_some_and(|last| last.index >= pos.index)
    }

    /// The entry at this position can be the one that was committed, as far as the last one tells: terms never fall.
    fn covers(&self, pos: LogPos) -> bool {
        self.last.is_some_and(|last| match last.index == pos.index {
            true => last.term == pos.term,
            false => last.index > pos.index && last.term >= pos.term,
        })
    }

    fn put_committed(&mut self, pos: LogPos) -> Result<(), Halt> {
        self.put(&Record::Committed(pos), Room::Reserve)?;
        self.committed = Some(pos);
        Ok(())
    }

    fn encode(&mut self, what: &What) -> Result<(), Halt> {
        match what {
            What::Answer(_) => {}
            What::Append(entries, room) => self.append(entries, *room)?,
            What::Vote(vote) => {
                self.put(&Record::Vote(vote), Room::Reserve)?;
                self.vote = Some(vote.clone());
            }
            What::Truncate { after, last } => {
                if self.last.map(|last| last.index) <= *after {
                    return Ok(()); // what it cuts off never came to be written
                }
                self.put(&Record::Truncate(*last), Room::Reserve)?;
                self.last = *last;
                while self.staged.last().is_some_and(|(index, _)| Some(*index) > *after) {
                    self.staged.pop();
                }
            }
            What::Purge(upto) if self.reaches(*upto) => {
                if self.purged.is_some_and(|purged| purged.index >= upto.index) {
                    return Ok(());
                }
                let needed = |live: &Live| live.max_index.is_some_and(|max| max > upto.index);
                let dead = self
                    .live
                    .iter()
                    .take(self.live.len() - 1)
                    .take_while(|live| !needed(live))
                    .count();
                let oldest = self.live[dead].segment.id;
                self.put(&Record::Purge { upto: *upto, oldest }, Room::Reserve)?;
                self.retire(dead);
                self.purged = Some(*upto);
            }
            What::Purge(upto) | What::Reset(upto) => {
                let dead = self.live.len() - 1;
                let oldest = self.live[dead].segment.id;
                self.put(&Record::Reset { upto: *upto, oldest }, Room::Reserve)?;
                self.retire(dead);
                self.live.iter_mut().for_each(|live| live.max_index = None); // none of what was there counts any more
                self.purged = Some(*upto);
                self.last = Some(*upto);
                self.staged.clear();
            }
        }
        Ok(())
    }

    fn append(&mut self, entries: &[Entry], room: Room) -> Result<(), Halt> {
        let before = (self.batch.mark(), self.end, self.last, self.staged.len());
        for Entry { pos, payload } in entries {
            debug_assert!(
                self.last.is_none_or(|last| last.index + 1 == pos.index),
                "{pos} after {:?}",
                self.last
            );
            match self.put(&Record::Entry { pos: *pos, payload }, room) {
                Ok(place) => {
                    self.last = Some(*pos);
                    self.staged.push((pos.index, place));
                    if let Some(live) = self.live.last_mut() {
                        live.max_index = live.max_index.max(Some(pos.index));
                    }
                }
                Err(Halt::NoSpace) => {
                    self.take_back(before)?;
                    return Err(Halt::NoSpace);
                }
                Err(fatal) => return Err(fatal),
            }
        }
        Ok(())
    }

    /// Undoes an append that found no space for all its entries.
    fn take_back(&mut self, (mark, end, last, staged): (Mark, Place, Option<LogPos>, usize)) -> Result<(), Halt> {
        self.staged.truncate(staged);
        if self.end == end {
            self.batch.rewind(mark);
        } else if self.last != last {
            // Its first entries are written already.
            self.put(&Record::Truncate(last), Room::Reserve)
                .map_err(|halt| match halt {
                    Halt::NoSpace => Halt::Fatal(Error::NoSpace),
                    fatal => fatal,
                })?;
        }
        self.last = last;
        Ok(())
    }

    fn retire(&mut self, count: usize) {
        let dead = self.live.drain(..count).map(|live| Spare {
            id: live.segment.id,
            bytes: live.segment.bytes,
        });
        self.retiring.extend(dead);
    }

    fn current(&self) -> &Segment {
        &self.live.last().expect("there is always a segment to write to").segment
    }

    /// Adds a record to the batch, in the next segment if this one is full.
    fn put(&mut self, record: &Record<'_>, room: Room) -> Result<Place, Halt> {
        let need = record_bytes(record.body_bytes());
        let bytes = self.current().bytes;
        let until = self.end.offset + self.batch.bytes_with(need) as u64;
        if until > bytes - format::reserve(bytes) {
            // What may stay goes on only if that costs nothing.
            let may_stay = room == Room::Reserve && until <= bytes;
            match self.roll(need as u64, !may_stay) {
                Err(Halt::NoSpace) if may_stay => {}
                other => other?,
            }
        }
        let offset = self.batch.push(self.end, self.session, record);
        Ok(Place { offset, ..self.end })
    }

    /// Goes on in the next segment, which has room for a record of `need` bytes. Waits for that to be made, or has no
    /// space unless it is ready.
    fn roll(&mut self, need: u64, wait: bool) -> Result<(), Halt> {
        let current = self.current();
        let usual = self.shared.preparer.bytes_after(Some(current.bytes));
        let least = (HEADER + BATCH + STATE_MAX) as u64 + need;
        let bytes = match format::usable(usual) >= need {
            true => usual,
            false => (least + format::reserve(format::SEGMENT_BYTES_MAX)).next_multiple_of(PAGE),
        };
        // First of all, so that nothing has happened yet when there is no space.
        let next = current.id.next();
        let fresh = match wait {
            true => self.shared.preparer.take(next, bytes, need)?,
            false => self.shared.preparer.take_ready(next, need).ok_or(Halt::NoSpace)?,
        };
        self.flush().map_err(Halt::Fatal)?;
        self.end = Place {
            segment: fresh.id,
            offset: HEADER as u64,
        };
        self.shared.add_file(fresh.id, fresh.file.clone());
        self.shared
            .preparer
            .want(fresh.id.next(), self.shared.preparer.bytes_after(Some(fresh.bytes)));
        self.live.push(fresh.into());
        self.push_state();
        Ok(())
    }

    fn push_state(&mut self) {
        debug_assert!(self.batch.is_empty());
        let Self {
            vote,
            committed,
            purged,
            last,
            live,
            ..
        } = self;
        let state = State {
            vote: vote.as_deref(),
            committed: *committed,
            purged: *purged,
            last: *last,
            oldest: live[0].segment.id.0,
        };
        self.batch.push(self.end, self.session, &Record::State(state));
    }

    /// Writes and syncs the batch as far as it has come.
    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() && !self.unsynced {
            self.batch.clear();
            return Ok(());
        }
        let timed = self.shared.is_timed();
        let now = || timed.then(Instant::now);
        let between = |from: Option<Instant>, to| {
            from.zip(to)
                .map_or(Duration::ZERO, |(from, to): (_, Instant)| to - from)
        };
        let start = now();
        let mut bytes = 0;
        if !self.batch.is_empty() {
            let mut batch = std::mem::take(&mut self.batch);
            let sealed = batch.seal(self.end, self.session, self.synced);
            bytes = sealed.len() as u64;
            self.write(sealed, self.end.offset)?;
            batch.clear();
            self.batch = batch;
        }
        let written = now();
        let segment = self.current();
        segment.file.sync().map_err(|e| Error::Sync {
            segment: segment.id,
            source: Arc::new(e),
        })?;
        self.unsynced = false;
        self.end.offset += bytes;
        self.synced = self.end;
        let (write, sync) = (between(start, written), between(written, now()));
        self.options.observer.batch(bytes, write, sync);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let segment = self.current();
        let wrote = segment.file.write_at(bytes, offset);
        wrote.map_err(|e| Error::Write {
            segment: segment.id,
            offset,
            bytes: bytes.len(),
            source: Arc::new(e),
        })?;
        self.unsynced = true;
        Ok(())
    }

    fn tell_writable(&self) {
        let bytes = self.current().bytes;
        self.shared
            .set_writable((bytes - format::reserve(bytes)).saturating_sub(self.end.offset));
    }
}

/// Which part of a segment a record may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Entries,
    /// All of it: small records that have to be written even when the disk is full.
    Reserve,
}
