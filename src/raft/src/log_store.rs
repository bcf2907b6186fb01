//! openraft's log over [`quorate_wal`]. Votes, committed index and entries share one file sequence; a batch of
//! appends costs one fdatasync.

mod flushed;

use crate::alone::Alone;
use crate::batch;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, position};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::vote::leader_id_std::LeaderId;
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
#[cfg(feature = "planted")]
use quorate_store::planted::{self, Bug};
use quorate_wal::{LogPos, Wal};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use flushed::Flushed;

/// Entries are read back in pieces of about this many bytes, for apply after a restart as for slow followers, so that
/// memory never follows the length of the log.
const READ_BYTES: usize = 1 << 20;

/// A handle; clones share the log.
#[derive(Clone)]
pub struct LogStore {
    wal: Wal,
    /// Payload bytes appended by this process.
    appended: Arc<AtomicU64>,
    marks: Arc<Mutex<Marks>>,
    syncs: Arc<Syncs>,
    flushed: Flushed,
    alone: Arc<Alone>,
}

/// Where in the log each so many bytes begin, as far as this process has appended them.
#[derive(Default)]
struct Marks {
    /// Position and the bytes appended before it; both grow.
    marks: VecDeque<(u64, u64)>,
}

/// Bytes between two marks.
const MARK_BYTES: u64 = 1 << 20;

/// Marks that are kept.
const MARKS_MAX: usize = 4096;

impl Marks {
    fn note(&mut self, first: u64, before: u64) {
        // What a leader before had here and was cut off does not count.
        while self.marks.back().is_some_and(|(position, _)| *position >= first) {
            self.marks.pop_back();
        }
        if self.marks.back().is_none_or(|(_, bytes)| before >= bytes + MARK_BYTES) {
            self.marks.push_back((first, before));
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    fn behind(&self, bytes: u64) -> u64 {
        let next = self.marks.partition_point(|(_, before)| *before <= bytes);
        next.checked_sub(1).map_or(0, |at| self.marks[at].0)
    }
}

/// Appends that are not on disk yet, and since when none of them came to be.
struct Syncs {
    under_way: AtomicUsize,
    start: Instant,
    /// Milliseconds after `start`: when the last one ended, or the first began.
    moved: AtomicU64,
}

impl Default for Syncs {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            start: Instant::now(),
            moved: AtomicU64::new(0),
        }
    }
}

impl Syncs {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn begin(&self) {
        if self.under_way.fetch_add(1, Ordering::AcqRel) == 0 {
            self.moved.store(self.now(), Ordering::Release);
        }
    }

    fn end(&self) {
        self.moved.store(self.now(), Ordering::Release);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }

    fn stuck_for(&self) -> Duration {
        if self.under_way.load(Ordering::Acquire) == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.now().saturating_sub(self.moved.load(Ordering::Acquire)))
    }
}

impl LogStore {
    pub fn new(wal: Wal) -> Self {
        // What was found when the log was opened was read from disk.
        let (_, last) = wal.state();
        Self {
            wal,
            appended: Arc::default(),
            marks: Arc::default(),
            syncs: Arc::default(),
            flushed: Flushed::upto(last.map_or(0, |last| last.index)),
            alone: Arc::default(),
        }
    }

    /// Up to where the log is durable.
    pub fn flushed(&self) -> Flushed {
        self.flushed.clone()
    }

    /// Whether this member is the only voter, by the newest membership in the log.
    pub fn alone(&self) -> Arc<Alone> {
        self.alone.clone()
    }

    /// The last that was saved.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        self.wal.vote().map(decode_vote).transpose()
    }

    /// Payload bytes appended by this process so far: with it, purging follows the size of the log.
    pub fn appended_bytes(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// A position with at least so many payload bytes behind it that this process appended; 0 when there are not as many.
    pub fn with_bytes_behind(&self, bytes: u64) -> u64 {
        match self.appended_bytes().checked_sub(bytes) {
            Some(before) => self.marks.lock().behind(before),
            None => 0,
        }
    }

    /// For how long the disk has not made anything durable of what waits for it.
    pub fn stuck_for(&self) -> Duration {
        self.syncs.stuck_for()
    }

    /// Entries of `range`, up to about `max_bytes` of them but at least one if there is one.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.wal
            .read(position(range.start)..position(range.end), max_bytes)
            .map_err(other)?
            .into_iter()
            .map(to_entry)
            .collect()
    }

    /// What the log has of `range`: openraft lets a read leave out what was purged at its start, and what was not
    /// appended yet at its end.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let asked = Asked::new(range);
        let held = self.held();
        asked.start.unwrap_or(0).max(held.start)..asked.end.min(held.end)
    }

    /// The entries that the log has now, in openraft's count.
    fn held(&self) -> Range<u64> {
        // In the log's count from 1, `pos.index` is one more than openraft's index: the next after a purged one, and the
        // exclusive end of what is there.
        let (purged, last) = self.wal.state();
        purged.map_or(0, |pos| pos.index)..last.map_or(0, |pos| pos.index)
    }

    /// What a stream of `range` yields: from its very start, wherever the log starts, to the end of the log or of the
    /// range. Up to the committed position the log has everything, so an end before that is none.
    fn whole(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let asked = Asked::new(range);
        let held = self.held();
        let committed = self.wal.committed().map_or(0, |pos| pos.index);
        asked.start.unwrap_or(held.start)..asked.end.min(held.end.max(committed))
    }
}

/// The bounds of a range, which openraft may leave open at either side.
struct Asked {
    start: Option<u64>,
    end: u64,
}

impl Asked {
    fn new(range: &impl RangeBounds<u64>) -> Self {
        Self {
            start: match range.start_bound() {
                Bound::Included(at) => Some(*at),
                Bound::Excluded(at) => Some(at.saturating_add(1)),
                Bound::Unbounded => None,
            },
            end: match range.end_bound() {
                Bound::Included(at) => at.saturating_add(1),
                Bound::Excluded(at) => *at,
                Bound::Unbounded => u64::MAX,
            },
        }
    }
}

/// Checks that `entries` begin with `start`: a gap must not pass for the start of what was asked for.
fn from_start(entries: Vec<Entry>, start: u64) -> io::Result<Vec<Entry>> {
    match entries.first().map(RaftEntry::index) {
        Some(first) if first == start => Ok(entries),
        found => {
            let found = found.map_or("none after it".to_owned(), |first| format!("entry {first} next"));
            Err(io::Error::other(format!("the log has no entry {start}, and {found}")))
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.whole(&range);
        let pieces = (self.clone(), range, Vec::new().into_iter());
        Box::pin(stream::unfold(pieces, |(store, mut range, mut piece)| async move {
            if let Some(entry) = piece.next() {
                return Some((Ok(entry), (store, range, piece)));
            }
            if range.is_empty() {
                return None;
            }
            // Whoever applies these takes the end of the stream for the end of the range, so each piece has to go on
            // where the one before it ended, up to there.
            let read = store.read(range.clone(), READ_BYTES);
            match read.and_then(|entries| from_start(entries, range.start)) {
                Ok(entries) => {
                    range.start = entries.last().map_or(range.end, |entry| entry.index() + 1);
                    let mut piece = entries.into_iter();
                    let entry = piece.next()?;
                    Some((Ok(entry), (store, range, piece)))
                }
                Err(error) => {
                    range.start = range.end;
                    Some((Err(error), (store, range, piece)))
                }
            }
        }))
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(self.bounds(&range), usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.vote()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        // What is sent to a follower continues what it has.
        from_start(self.read(self.bounds(&(start..end)), READ_BYTES)?, start)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let (purged, last) = self.wal.state();
        let last_purged_log_id = purged.map(from_pos);
        Ok(LogState {
            last_purged_log_id,
            last_log_id: last.map(from_pos).or(last_purged_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, synced) = done();
        self.wal.save_vote(encode_vote(vote), done);
        #[cfg(feature = "planted")]
        if planted::is(Bug::VoteBeforeSync) {
            return Ok(());
        }
        wait(synced).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.wal.save_committed(to_pos(committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.wal.committed().map(from_pos))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Elections and changes of membership go on when the disk is full: they may be what makes room.
        let mut reserved = true;
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                reserved &= !matches!(entry.payload, EntryPayload::Normal(_));
                let pos = to_pos(entry.log_id());
                if let EntryPayload::Membership(_) = entry.payload {
                    self.alone.membership_appended(pos.index);
                }
                quorate_wal::Entry {
                    pos,
                    payload: batch::encode(&entry.payload),
                }
            })
            .collect();
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        let before = self.appended.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(first) = entries.first() {
            self.marks.lock().note(first.pos.index, before);
        }
        self.syncs.begin();
        #[cfg(feature = "planted")]
        let callback = match planted::is(Bug::AnswerBeforeSync) {
            true => {
                callback.io_completed(Ok(()));
                IOFlushed::noop()
            }
            false => callback,
        };
        let syncs = self.syncs.clone();
        let flushed = self.flushed.clone();
        let last = entries.last().map_or(0, |entry| entry.pos.index);
        let done = Box::new(move |result: Result<(), _>| {
            syncs.end();
            match &result {
                Ok(()) => flushed.appended(last),
                Err(_) => flushed.failed(),
            }
            callback.io_completed(result.map_err(other));
        });
        match reserved {
            true => self.wal.append_reserved(entries, done),
            false => self.wal.append(entries, done),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, synced) = done();
        let last = last_log_id.map(|id| position(id.index));
        self.wal.truncate_after(last, done);
        wait(synced).await?;
        self.flushed.truncated(last.unwrap_or(0));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        // Nobody waits for a purge: losing it in a crash only keeps entries that are not needed.
        self.wal.purge(to_pos(log_id), Box::new(|_| {}));
        Ok(())
    }
}

type Synced = oneshot::Receiver<Result<(), quorate_wal::Error>>;

fn done() -> (quorate_wal::Done, Synced) {
    let (tx, rx) = oneshot::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

async fn wait(synced: Synced) -> io::Result<()> {
    match synced.await {
        Ok(result) => result.map_err(other),
        Err(_) => Err(io::Error::other("the log was closed before it could sync")),
    }
}

fn other(error: quorate_wal::Error) -> io::Error {
    io::Error::other(error)
}

fn to_pos(id: LogId) -> LogPos {
    LogPos {
        term: id.leader_id.term,
        index: position(id.index),
    }
}

fn from_pos(pos: LogPos) -> LogId {
    log_id(pos.term, pos.index - 1)
}

fn to_entry(entry: quorate_wal::Entry) -> io::Result<Entry> {
    let payload = batch::decode(entry.payload).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("entry {}: {error}", entry.pos.index),
        )
    })?;
    Ok(Entry::new(from_pos(entry.pos), payload))
}

/// term u64 · voted for u64 · committed u8, little-endian.
fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
    out.freeze()
}

fn decode_vote(mut raw: Bytes) -> io::Result<Vote> {
    if raw.len() != 17 {
        let why = format!("vote of {} bytes, expected 17", raw.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let leader_id = LeaderId {
        term: raw.get_u64_le(),
        voted_for: raw.get_u64_le(),
    };
    Ok(Vote {
        leader_id,
        committed: raw.get_u8() != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use quorate_wal::RealDisk;
    use std::sync::mpsc;
    use tempfile::TempDir;

    /// A log of the entries 0 to 9, as openraft counts them.
    fn store() -> (TempDir, LogStore) {
        let dir = tempfile::tempdir().unwrap();
        let options = quorate_wal::Options {
            segment_bytes: 64 << 10,
            ..quorate_wal::Options::new(dir.path())
        };
        let (wal, _) = Wal::open(options, Arc::new(RealDisk)).unwrap();
        let store = LogStore::new(wal);
        append(&store, 0..10, 1);
        (dir, store)
    }

    fn append(store: &LogStore, range: Range<u64>, bytes: usize) {
        let entries = range.map(|index| quorate_wal::Entry {
            pos: to_pos(log_id(1, index)),
            payload: match bytes {
                1 => batch::encode(&EntryPayload::Blank),
                _ => vec![1; bytes].into(), // begins as a batch does
            },
        });
        finish(|done| store.wal.append(entries.collect(), done));
    }

    fn finish(call: impl FnOnce(quorate_wal::Done)) {
        let (tell, told) = mpsc::channel();
        call(Box::new(move |outcome| tell.send(outcome).unwrap()));
        told.recv().unwrap().unwrap();
    }

    async fn read(store: &LogStore, range: impl RangeBounds<u64> + Clone + Debug + Send) -> (Vec<u64>, bool) {
        let found: Vec<_> = store.clone().entries_stream(range).await.collect().await;
        let whole = found.iter().all(Result::is_ok);
        (found.into_iter().flatten().map(|entry| entry.index()).collect(), whole)
    }

    fn indexes(range: Range<u64>, whole: bool) -> (Vec<u64>, bool) {
        (range.collect(), whole)
    }

    #[test]
    fn bytes_behind_a_position_are_known_to_the_mark() {
        let mut marks = Marks::default();
        for position in 1..=100 {
            marks.note(position, (position - 1) * (MARK_BYTES / 2));
        }
        assert_eq!(marks.behind(0), 1);
        assert_eq!(marks.behind(MARK_BYTES * 10), 21);
        assert_eq!(marks.behind(MARK_BYTES * 10 + 1), 21);
        assert_eq!(marks.behind(u64::MAX), 99);
        marks.note(50, MARK_BYTES * 60);
        assert_eq!(marks.behind(u64::MAX), 50, "what was cut off is forgotten");
        assert_eq!(Marks::default().behind(5), 0);
    }

    /// B41: entries that are to be applied must not be passed over because they were purged.
    #[tokio::test]
    async fn a_stream_that_starts_below_the_log_is_an_error() {
        let (_dir, mut store) = store();
        finish(|done| store.wal.purge(to_pos(log_id(1, 3)), done));
        assert_eq!(read(&store, 3..7).await, indexes(0..0, false));
        assert_eq!(read(&store, 0..2).await, indexes(0..0, false));
        assert_eq!(read(&store, 4..7).await, indexes(4..7, true));
        assert_eq!(read(&store, ..7).await, indexes(4..7, true));
        assert_eq!(read(&store, ..).await, indexes(4..10, true));
        assert_eq!(read(&store, 8..).await, indexes(8..10, true));
        assert_eq!(read(&store, 5..5).await, indexes(0..0, true));
        assert!(store.limited_get_log_entries(2, 8).await.is_err());
        assert_eq!(store.limited_get_log_entries(4, 8).await.unwrap().len(), 4);
        assert_eq!(store.limited_get_log_entries(4, 4).await.unwrap().len(), 0);
        // This one openraft wants lenient.
        assert_eq!(store.try_get_log_entries(2..20).await.unwrap().len(), 6);
    }

    /// B41: nor may they be missing at the end, once they are committed.
    #[tokio::test]
    async fn a_stream_that_ends_below_what_is_committed_is_an_error() {
        let (_dir, store) = store();
        assert_eq!(read(&store, 8..20).await, indexes(8..10, true), "not appended yet");
        store.wal.save_committed(to_pos(log_id(1, 12)));
        assert_eq!(read(&store, 8..13).await, indexes(8..10, false));
        assert_eq!(read(&store, 8..10).await, indexes(8..10, true));
    }

    #[tokio::test]
    async fn entries_that_go_while_they_are_streamed_are_an_error() {
        let (_dir, store) = store();
        append(&store, 10..13, READ_BYTES / 2);
        let mut reader = store.clone();
        let mut stream = Box::pin(reader.entries_stream(0..13).await);
        assert_eq!(stream.next().await.unwrap().unwrap().index(), 0);
        finish(|done| store.wal.purge(to_pos(log_id(1, 12)), done));
        let rest: Vec<_> = stream.collect().await;
        assert!(rest.last().unwrap().is_err());
        assert!(rest.len() < 13);
    }
}
