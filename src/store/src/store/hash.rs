//! One number for everything that the store holds at a revision, to compare members by.
//!
//! Members compact at the same revisions, and at different times. So each compaction hashes what is there up to its
//! revision before it removes anything, and the last ten of these hashes are kept: they can be compared long after.
//! They are lost with the process, and owed for the compactions that it applies again.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_api::{Error as Answer, KeyRange, Revision};

use super::{SLICE_KEYS, Shared, Store};
use crate::backend::RowId;
use crate::error::Error;
use crate::mvcc::index::Resume;
use crate::mvcc::pair;
use crate::mvcc::reads::Pin;
use crate::mvcc::version::Version;

/// Rows that are hashed between two looks at the index.
const SLICE_ROWS: usize = 512;
const SLICE_BYTES: usize = 1 << 20;

/// Hashes of compactions that are remembered.
const KEPT: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// The revision that was hashed.
    pub at: Revision,
    /// The store's revision meanwhile.
    pub revision: Revision,
    /// −1: never compacted. Members can be compared only where this is the same.
    pub compacted: i64,
}

/// Hashes of the last compactions, and those still to be computed.
#[derive(Default)]
pub(crate) struct Hashes(Mutex<State>);

#[derive(Default)]
struct State {
    known: VecDeque<Known>,
    /// Worked on in order. One that is under way comes back to the front.
    owed: VecDeque<Hashing>,
}

#[derive(Clone, Copy)]
struct Known {
    revision: i64,
    previous: i64,
    hash: u32,
}

/// A hash on its way.
struct Hashing {
    /// Up to here.
    at: i64,
    /// What compaction at this revision takes does not count.
    compacted: i64,
    /// Nothing that is hashed is removed before it is.
    _pin: Pin,
    /// No key exists at `at`. etcd then counts every version that is there, whatever compaction is about to take.
    nothing_lives: bool,
    hash: u32,
    /// None when it has come to the end.
    from: Option<RowId>,
}

impl Hashing {
    fn new(at: i64, compacted: i64, nothing_lives: bool, pin: Pin) -> Self {
        Self {
            at,
            compacted,
            _pin: pin,
            nothing_lives,
            hash: crc32c::crc32c(b"key"),
            from: Some(RowId::ZERO),
        }
    }

    /// The next slice. False when there is no more.
    fn step(&mut self, shared: &Shared) -> Result<bool, Error> {
        let Some(first) = self.from.take() else {
            return Ok(false);
        };
        let slice = shared.slice(first, self.at)?;
        self.hash = shared.hash_slice(self, &slice.rows)?;
        self.from = slice.next;
        Ok(self.from.is_some())
    }
}

impl Hashes {
    /// Compaction at `revision` is in force, the one before it was at `previous`; `pin` keeps what that one left.
    pub fn owe(&self, revision: i64, previous: i64, pin: Pin) {
        if revision <= 0 {
            // Asked for, this means the newest.
            return;
        }
        let mut state = self.0.lock();
        // That there is something at the revision itself is enough for etcd to look at what is to be kept.
        state.owed.push_back(Hashing::new(revision, previous, false, pin));
        if state.owed.len() > KEPT {
            // By the time all are known this one would be forgotten; and what compaction may remove waits for it.
            state.owed.pop_front();
        }
    }

    fn get(&self, revision: i64) -> Option<Known> {
        let state = self.0.lock();
        state.known.iter().find(|known| known.revision == revision).copied()
    }
}

impl Store {
    /// Hashes what is there at `revision`, 0 being the newest: `key`, then each version in order of revisions with its
    /// position and its encoded pair, as etcd does. Of a revision that was compacted lately, it is the hash of then.
    /// Reads everything; to be called where that may take its time.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, Error> {
        let shared = self.shared();
        if let Some(known) = shared.hashes.get(revision) {
            return Ok(HashKv {
                hash: known.hash,
                at: Revision(revision),
                revision: Revision(shared.revision()),
                compacted: known.previous,
            });
        }
        // Pinned where history begins: nothing that is hashed is removed before it is.
        let (newest, compacted, pin) = {
            let mvcc = shared.mvcc.read();
            let newest = shared.revision();
            if revision > newest {
                return Err(Answer::FutureRevision.into());
            }
            if revision > 0 && revision < mvcc.compacted {
                return Err(Answer::Compacted.into());
            }
            (newest, mvcc.compacted, shared.reads.pin(mvcc.compacted))
        };
        let at = if revision > 0 { revision } else { newest };
        let mut hashing = Hashing::new(at, compacted, !shared.any_lives(at), pin);
        while hashing.step(&shared)? {}
        Ok(HashKv {
            hash: hashing.hash,
            at: Revision(at),
            revision: Revision(newest),
            compacted,
        })
    }
}

impl Shared {
    /// Goes on with the hash of a compaction that is owed, a slice of it. False: none is owed. One caller at a time.
    pub fn hash_step(&self) -> bool {
        let mut hashing = {
            let mut state = self.hashes.0.lock();
            let Some(hashing) = state.owed.pop_front() else {
                return false;
            };
            hashing
        };
        match hashing.step(self) {
            Ok(true) => self.hashes.0.lock().owed.push_front(hashing),
            Ok(false) => {
                let mut state = self.hashes.0.lock();
                state.known.push_back(Known {
                    revision: hashing.at,
                    previous: hashing.compacted,
                    hash: hashing.hash,
                });
                if state.known.len() > KEPT {
                    state.known.pop_front();
                }
            }
            // What can't be read has no hash. Whoever reads it for its own sake says so.
            Err(_) => {}
        }
        true
    }

    fn any_lives(&self, at: i64) -> bool {
        let mut from = Resume::Start;
        loop {
            let mut found = false;
            let all = KeyRange::all();
            let next = self.mvcc.read().index.scan(&all, &from, at, SLICE_KEYS, |_, _| {
                found = true;
                false
            });
            match next {
                _ if found => return true,
                Some(next) => from = next,
                None => return false,
            }
        }
    }

    fn slice(&self, first: RowId, at: i64) -> Result<Slice, Error> {
        let view = self.backend.view()?;
        let mut slice = Slice::default();
        let mut bytes = 0;
        view.scan_rows(first, |row| {
            if row.id.main > at {
                return ControlFlow::Break(());
            }
            if slice.rows.len() >= SLICE_ROWS || bytes >= SLICE_BYTES {
                slice.next = Some(row.id);
                return ControlFlow::Break(());
            }
            bytes += usize::try_from(row.value_len).unwrap_or(usize::MAX);
            slice.rows.push((Bytes::copy_from_slice(row.key), Version::of(&row)));
            ControlFlow::Continue(())
        })?;
        Ok(slice)
    }

    fn hash_slice(&self, hashing: &Hashing, rows: &[(Bytes, Version)]) -> Result<u32, Error> {
        let Hashing {
            at,
            compacted,
            _pin: _,
            nothing_lives,
            hash,
            from: _,
        } = *hashing;
        let stands_at = if nothing_lives { compacted } else { at };
        let (counted, view): (Vec<_>, _) = {
            let mvcc = self.mvcc.read();
            let counts = |(key, version): &&(Bytes, Version)| {
                if version.main > compacted {
                    return true;
                }
                // What compaction takes does not count, whether it has been taken or not; nor does a deletion that
                // it leaves for watchers.
                !version.is_tombstone() && mvcc.index.get(key, stands_at).as_ref() == Some(version)
            };
            (rows.iter().filter(counts).collect(), self.backend.view()?)
        };
        let live = counted.iter().filter(|(_, version)| !version.is_tombstone());
        let ids: Vec<RowId> = live.map(|(_, version)| version.row()).collect();
        let mut values = Vec::with_capacity(ids.len());
        view.values(&ids, |_, value| values.push(Bytes::copy_from_slice(value)))?;
        let mut values = values.into_iter();
        let mut hash = hash;
        let mut buffer = Vec::new();
        for (key, version) in counted {
            buffer.clear();
            buffer.extend_from_slice(&version.main.to_be_bytes());
            buffer.push(b'_');
            buffer.extend_from_slice(&i64::from(version.sub).to_be_bytes());
            if version.is_tombstone() {
                buffer.push(b't');
                let nothing = Version::tombstone(RowId::ZERO);
                pair::put_message(&mut buffer, key, &nothing, b"");
            } else {
                pair::put_message(&mut buffer, key, version, &values.next().unwrap_or_default());
            }
            hash = crc32c::crc32c_append(hash, &buffer);
        }
        Ok(hash)
    }
}

#[derive(Default)]
struct Slice {
    rows: Vec<(Bytes, Version)>,
    /// Where to go on.
    next: Option<RowId>,
}
