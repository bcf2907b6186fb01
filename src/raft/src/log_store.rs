//! openraft's log over [`quorate_wal`]. Votes, committed index and entries share one file sequence; a batch of
//! appends costs one fdatasync.

use crate::batch;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, position};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::vote::leader_id_std::LeaderId;
use openraft::{OptionalSend, RaftLogReader};
use quorate_wal::{LogPos, Wal};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// Entries are read back in pieces of about this many bytes, for apply after a restart as for slow followers, so that
/// memory never follows the length of the log.
const READ_BYTES: usize = 1 << 20;

/// A handle; clones share the log.
#[derive(Clone)]
pub struct LogStore {
    wal: Wal,
    /// Payload bytes appended by this process.
    appended: Arc<AtomicU64>,
}

impl LogStore {
    pub fn new(wal: Wal) -> Self {
        Self {
            wal,
            appended: Arc::default(),
        }
    }

    /// Payload bytes appended by this process so far: with it, purging follows the size of the log.
    pub fn appended_bytes(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// Entries of `range`, up to about `max_bytes` of them but at least one if there is one.
    fn read(&self, range: std::ops::Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
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

    fn bounds(&self, range: &impl RangeBounds<u64>) -> std::ops::Range<u64> {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at + 1,
            Bound::Excluded(at) => *at,
            Bound::Unbounded => u64::MAX,
        };
        // In the log's count from 1, `pos.index` is one more than openraft's index: the next after a purged one, and the
        // exclusive end of what is there.
        let (purged, last) = self.wal.state();
        start.max(purged.map_or(0, |pos| pos.index))..end.min(last.map_or(0, |pos| pos.index))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.bounds(&range);
        let pieces = (self.clone(), range, Vec::new().into_iter());
        Box::pin(stream::unfold(pieces, |(store, mut range, mut piece)| async move {
            if let Some(entry) = piece.next() {
                return Some((Ok(entry), (store, range, piece)));
            }
            match store.read(range.clone(), READ_BYTES) {
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
        self.wal.vote().map(decode_vote).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(self.bounds(&(start..end)), READ_BYTES)
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
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| quorate_wal::Entry {
                pos: to_pos(entry.log_id()),
                payload: batch::encode(&entry.payload),
            })
            .collect();
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        self.appended.fetch_add(bytes as u64, Ordering::Relaxed);
        self.wal.append(
            entries,
            Box::new(move |result| callback.io_completed(result.map_err(other))),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, synced) = done();
        self.wal.truncate_after(last_log_id.map(|id| position(id.index)), done);
        wait(synced).await
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
