//! One number for everything that the store holds at a revision, to compare members by.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_api::{Error as Answer, Revision};

use super::{Shared, Store};
use crate::backend::RowId;
use crate::error::Error;
use crate::mvcc::pair;
use crate::mvcc::version::Version;

/// Rows that are hashed between two looks at the index.
const SLICE_ROWS: usize = 512;
const SLICE_BYTES: usize = 1 << 20;

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

impl Store {
    /// Hashes what is there at `revision`, 0 being the newest: `key`, then each version in order of revisions with its
    /// position and its encoded pair, as etcd does. Reads everything; to be called where that may take its time.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, Error> {
        let shared = self.shared();
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
        let mut hash = crc32c::crc32c(b"key");
        let mut from = Some(RowId::ZERO);
        while let Some(first) = from {
            let slice = shared.slice(first, at)?;
            hash = shared.hash_slice(hash, &slice.rows, at, compacted)?;
            from = slice.next;
        }
        drop(pin);
        Ok(HashKv {
            hash,
            at: Revision(at),
            revision: Revision(newest),
            compacted,
        })
    }
}

impl Shared {
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

    fn hash_slice(&self, hash: u32, rows: &[(Bytes, Version)], at: i64, compacted: i64) -> Result<u32, Error> {
        let (counted, view): (Vec<_>, _) = {
            let mvcc = self.mvcc.read();
            let counts = |(key, version): &&(Bytes, Version)| {
                if version.main > compacted {
                    return true;
                }
                // What compaction takes does not count, whether it has been taken or not; nor does a deletion that
                // it leaves for watchers.
                !version.is_tombstone() && mvcc.index.get(key, at).as_ref() == Some(version)
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
