//! Rows that the file does not have yet, or that a reader with an older View can't see there yet.
//!
//! Invariant: for every live View, each row above its durable bound that was ever pushed is here. Rows leave only when
//! no live View has a bound below them.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::RwLock;

use super::change::{Row, RowId, row_bytes};
use super::view::Published;

/// The rows of one push, ascending.
#[derive(Debug)]
pub(super) struct Chunk {
    pub rows: Vec<Row>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
    /// Every View that may still be in someone's hands, oldest first.
    views: VecDeque<(RowId, Weak<Published>)>,
}

impl Pending {
    /// Makes the rows readable. `rows` must not be empty.
    pub fn push(&self, rows: Vec<Row>) -> Arc<Chunk> {
        debug_assert!(
            rows.windows(2).all(|pair| pair[0].id < pair[1].id),
            "rows ascend within a change"
        );
        let bytes = rows.iter().map(row_bytes).sum();
        let chunk = Arc::new(Chunk { rows, bytes });
        let mut inner = self.inner.write();
        debug_assert!(
            inner.chunks.back().is_none_or(|last| last.last() < chunk.first()),
            "a change's rows are newer than any before"
        );
        inner.bytes += bytes;
        inner.chunks.push_back(chunk.clone());
        chunk
    }

    pub fn get(&self, id: RowId) -> Option<Bytes> {
        self.inner.read().get(id)
    }

    /// Values of those `ids` that lie above `bound`, by position, under one lock.
    pub fn get_above(&self, bound: RowId, ids: &[RowId]) -> Vec<(usize, Option<Bytes>)> {
        if ids.iter().all(|id| *id <= bound) {
            return Vec::new();
        }
        let inner = self.inner.read();
        let above = ids.iter().enumerate().filter(|(_, id)| **id > bound);
        above.map(|(at, id)| (at, inner.get(*id))).collect()
    }

    /// Chunks with rows at or above `from`.
    pub fn chunks_above(&self, from: RowId) -> Vec<Arc<Chunk>> {
        let inner = self.inner.read();
        let first = inner.chunks.partition_point(|chunk| chunk.last() < from);
        inner.chunks.range(first..).cloned().collect()
    }

    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }

    /// From now on `view` may be in use, and later ones have bounds at least as high.
    pub fn track(&self, bound: RowId, view: &Arc<Published>) {
        self.inner.write().views.push_back((bound, Arc::downgrade(view)));
    }

    /// Lets go of what no live View needs from here. The rows are freed outside of the lock.
    pub fn prune(&self) {
        let freed = {
            let mut inner = self.inner.write();
            while inner.views.front().is_some_and(|(_, view)| view.strong_count() == 0) {
                inner.views.pop_front();
            }
            let Some((bound, _)) = inner.views.front() else { return };
            let bound = *bound;
            let keep = inner.chunks.partition_point(|chunk| chunk.last() <= bound);
            let freed: Vec<_> = inner.chunks.drain(..keep).collect();
            inner.bytes -= freed.iter().map(|chunk| chunk.bytes).sum::<usize>();
            freed
        };
        drop(freed);
    }
}

impl Inner {
    fn get(&self, id: RowId) -> Option<Bytes> {
        let at = self.chunks.partition_point(|chunk| chunk.last() < id);
        let rows = &self.chunks.get(at)?.rows;
        let row = &rows[rows.binary_search_by_key(&id, |row| row.id).ok()?];
        (!row.tombstone).then(|| row.value.clone())
    }
}

impl Chunk {
    fn first(&self) -> RowId {
        self.rows.first().map_or(RowId::ZERO, |row| row.id)
    }

    pub fn last(&self) -> RowId {
        self.rows.last().map_or(RowId::ZERO, |row| row.id)
    }
}
