//! The past, as watchers need it: changes by revision, whole transactions at a time.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_api::proto::mvccpb::KeyValue;
use quorate_api::{Error as Answer, KeyRange, Revision};

use super::{Shared, Store};
use crate::backend::{RowId, View};
use crate::error::Error;
use crate::event::{Event, EventBatch, EventKind};
use crate::mvcc::pair;
use crate::mvcc::version::Version;
use crate::watch::{History, HistoryError, Replay};

/// Rows looked at in one call, if they don't match: history of other keys must not hold a caller up for long.
const SCAN_ROWS_MAX: usize = 20_000;
/// Keys whose predecessors are looked up in one hold of the index lock.
const LOOKUPS_PER_LOCK: usize = 256;

/// A change of history without what it takes longer to find: value and predecessor.
struct Found {
    row: RowId,
    key: Bytes,
    /// None for a deletion.
    put: Option<Version>,
}

impl Store {
    /// Changes of keys in `range` from revision `from` on, at most `batches_max` transactions and about `bytes_max` of
    /// keys and values, but at least one transaction if there is any. Fails only if `from` is below the compacted
    /// revision; what was changed by that very revision, deletions included, is still there.
    pub fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Replay, Error> {
        let shared = self.shared();
        let (view, newest, own) = {
            let mvcc = shared.mvcc.read();
            if from.0 < mvcc.compacted {
                return Err(Answer::Compacted.into());
            }
            let newest = shared.revision();
            // One key's history is in the index, however long the rest is.
            let own = range.is_single().then(|| {
                let versions = mvcc.index.versions_from(&range.start, from.0);
                take(&range.start, versions, newest, batches_max, bytes_max)
            });
            (shared.backend.view()?, newest, own)
        };
        if from.0 > newest {
            return Ok(Replay {
                batches: Vec::new(),
                through: Revision(from.0 - 1),
            });
        }
        let (found, through) = match own {
            Some(own) => own,
            None => scan(&view, range, from, newest, batches_max, bytes_max)?,
        };
        let batches = shared.complete(&view, found)?;
        Ok(Replay {
            batches,
            through: Revision(through),
        })
    }
}

impl Shared {
    /// Adds values and predecessors.
    fn complete(&self, view: &View, found: Vec<Found>) -> Result<Vec<EventBatch>, Error> {
        let mut prevs = Vec::with_capacity(found.len());
        for some in found.chunks(LOOKUPS_PER_LOCK) {
            let mvcc = self.mvcc.read();
            // What is found here depends on how far compaction has come; whether it may be seen must not.
            let kept = |key: &[u8], prev: &Version| {
                prev.main >= mvcc.compacted || mvcc.index.get(key, mvcc.compacted).as_ref() == Some(prev)
            };
            prevs.extend(some.iter().map(|found| {
                let prev = match found.put {
                    Some(put) if put.create == put.main => None,
                    _ => mvcc.index.before_revision(&found.key, found.row.main),
                };
                prev.filter(|prev| kept(&found.key, prev))
                    .map(|prev| Revision(prev.main))
            }));
        }
        let ids: Vec<RowId> = found
            .iter()
            .filter(|found| found.put.is_some())
            .map(|found| found.row)
            .collect();
        let mut values = Vec::with_capacity(ids.len());
        view.values(&ids, |_, value| values.push(Bytes::copy_from_slice(value)))?;
        let mut values = values.into_iter();
        let mut batches: Vec<EventBatch> = Vec::new();
        for (Found { row, key, put }, prev) in found.into_iter().zip(prevs) {
            let kind = match put {
                Some(version) => EventKind::Put {
                    create_revision: Revision(version.create),
                    version: version.version,
                    lease: version.lease,
                    value: values.next().unwrap_or_default(),
                },
                None => EventKind::Delete,
            };
            let event = Event { kind, key, prev };
            match batches.last_mut().filter(|batch| batch.revision.0 == row.main) {
                Some(batch) => batch.events.push(event),
                None => batches.push(EventBatch {
                    revision: Revision(row.main),
                    events: vec![event],
                }),
            }
        }
        Ok(batches)
    }
}

impl History for Store {
    fn revision(&self) -> Revision {
        Store::revision(self)
    }

    fn compacted(&self) -> i64 {
        Store::compacted(self)
    }

    fn read(
        &self,
        range: &KeyRange,
        from: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Replay, HistoryError> {
        let failed = |error| self.history_error(error);
        self.history(range, from, batches_max, bytes_max).map_err(failed)
    }

    fn pair_at(&self, key: &[u8], mod_revision: Revision) -> Result<Option<KeyValue>, HistoryError> {
        let failed = |error| self.history_error(error);
        Store::pair_at(self, key, mod_revision).map_err(failed)
    }

    fn pairs_at(&self, wanted: &[(&[u8], Revision)]) -> Result<Vec<Option<KeyValue>>, HistoryError> {
        let failed = |error| self.history_error(error);
        self.pairs(wanted).map_err(failed)
    }
}

impl Store {
    /// What [`Store::pair_at`] finds for each of these, with a lock and a View for many.
    fn pairs(&self, wanted: &[(&[u8], Revision)]) -> Result<Vec<Option<KeyValue>>, Error> {
        let shared = self.shared();
        let mut pairs = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(LOOKUPS_PER_LOCK) {
            let mvcc = shared.mvcc.read();
            let kept = |key: &[u8], version: &Version| {
                version.main >= mvcc.compacted || mvcc.index.get(key, mvcc.compacted).as_ref() == Some(version)
            };
            let written = |(key, at): &(&[u8], Revision)| {
                let version = mvcc.index.get(key, at.0).filter(|version| version.main == at.0);
                version.filter(|version| kept(key, version))
            };
            let versions: Vec<Option<Version>> = some.iter().map(written).collect();
            let view = shared.backend.view()?;
            drop(mvcc);
            for ((key, _), version) in some.iter().zip(versions) {
                let Some(version) = version else {
                    pairs.push(None);
                    continue;
                };
                let value = shared.value(Some(&view), &mut None, version)?;
                pairs.push(Some(pair::key_value(Bytes::copy_from_slice(key), &version, value)));
            }
        }
        Ok(pairs)
    }

    fn history_error(&self, error: Error) -> HistoryError {
        match error {
            Error::Refused(Answer::Compacted) => HistoryError::Compacted {
                at: Store::compacted(self),
            },
            other => HistoryError::Failed(other.to_string()),
        }
    }
}

fn found(key: Bytes, version: Version) -> Found {
    Found {
        row: version.row(),
        key,
        put: version.live(),
    }
}

/// Counts transactions and bytes, and says where a slice ends: never within a transaction.
struct Budget {
    batches_max: usize,
    bytes_max: usize,
    batches: usize,
    bytes: usize,
    last: i64,
}

impl Budget {
    /// False: this change opens a transaction that does not belong to the slice any more.
    fn admits(&mut self, main: i64, key_len: usize, value_len: u64) -> bool {
        if main != self.last {
            let full = self.batches >= self.batches_max.max(1) || self.bytes >= self.bytes_max;
            if full && self.batches > 0 {
                return false;
            }
            self.batches += 1;
            self.last = main;
        }
        let value_len = usize::try_from(value_len).unwrap_or(usize::MAX);
        self.bytes = self.bytes.saturating_add(key_len).saturating_add(value_len);
        true
    }
}

fn budget(batches_max: usize, bytes_max: usize) -> Budget {
    Budget {
        batches_max,
        bytes_max,
        batches: 0,
        bytes: 0,
        last: -1,
    }
}

/// What one slice may have of a key's versions, and the revision through which it reaches. Stops where the slice ends:
/// there may be a million more.
fn take(
    key: &Bytes,
    versions: impl Iterator<Item = Version>,
    newest: i64,
    batches_max: usize,
    bytes_max: usize,
) -> (Vec<Found>, i64) {
    let mut budget = budget(batches_max, bytes_max);
    let mut slice = Vec::new();
    for version in versions.take_while(|version| version.main <= newest) {
        if !budget.admits(version.main, key.len(), version.value_len.into()) {
            return (slice, version.main - 1);
        }
        slice.push(found(key.clone(), version));
    }
    (slice, newest)
}

fn scan(
    view: &View,
    range: &KeyRange,
    from: Revision,
    newest: i64,
    batches_max: usize,
    bytes_max: usize,
) -> Result<(Vec<Found>, i64), Error> {
    let mut budget = budget(batches_max, bytes_max);
    let mut rows = Vec::new();
    let mut through = newest;
    let mut seen = 0;
    let mut last = from.0;
    let first = RowId { main: from.0, sub: 0 };
    view.scan_rows(first, |row| {
        if row.id.main > newest {
            return ControlFlow::Break(());
        }
        seen += 1;
        let full = seen > SCAN_ROWS_MAX && row.id.main != last;
        let wanted = !full && range.contains(row.key);
        if full || (wanted && !budget.admits(row.id.main, row.key.len(), row.value_len)) {
            through = row.id.main - 1;
            return ControlFlow::Break(());
        }
        last = row.id.main;
        if wanted {
            rows.push(found(Bytes::copy_from_slice(row.key), Version::of(&row)));
        }
        ControlFlow::Continue(())
    })?;
    Ok((rows, through))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_looks_at_no_more_than_it_takes() {
        let version = |main| Version {
            main,
            sub: 0,
            value_len: 10,
            create: 2,
            version: main - 1,
            lease: 0,
        };
        let key = Bytes::from_static(b"hot");
        let mut looked = 0;
        let versions = (2..1_000_000).map(version).inspect(|_| looked += 1);
        let (slice, through) = take(&key, versions, 2_000_000, 5, usize::MAX);
        assert_eq!((slice.len(), through, looked), (5, 6, 6));
        let mut looked = 0;
        let versions = (2..1_000_000).map(version).inspect(|_| looked += 1);
        let (slice, through) = take(&key, versions, 2_000_000, usize::MAX, 100);
        assert_eq!((slice.len(), through, looked), (8, 9, 9));
        let (slice, through) = take(&key, (2..10).map(version), 7, usize::MAX, usize::MAX);
        assert_eq!((slice.len(), through), (6, 7));
    }
}
