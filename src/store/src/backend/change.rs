//! What goes into the backend: versions of keys, removals, and the system records of the same entries.

use bytes::Bytes;

use crate::origins::Passed;

/// Where a version lives: revision `main`, and `sub` for the change's place within its transaction. Orders as
/// revisions do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    pub main: i64,
    pub sub: u32,
}

impl RowId {
    /// Before every row there can be.
    pub const ZERO: RowId = RowId { main: 0, sub: 0 };
}

/// One version of one key, or the tombstone that ends a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: RowId,
    pub key: Bytes,
    /// Revision that created the key's generation; not above `id.main`.
    pub create: i64,
    /// Writes to the key since then; 0 for a tombstone.
    pub version: i64,
    /// 0 means no lease.
    pub lease: i64,
    /// A tombstone has no value.
    pub tombstone: bool,
    /// Pinned in memory until it is durable: hand over an exact allocation, not a slice of a receive buffer.
    pub value: Bytes,
}

/// Position of the last raft entry whose effects are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
}

/// Name spaces for what is not a version of a key: generic bytes to bytes. The number is part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SystemTable {
    /// Named facts: cluster id, raft membership, …
    Cluster = 1,
    Member = 2,
    /// Ids of members that were removed, never to come back.
    Removed = 3,
    Lease = 4,
    Alarm = 5,
    Auth = 6,
    /// The v2 tree.
    V2 = 7,
    /// The newest batch of each member that was applied.
    Origin = 8,
    /// Which data directory a member has.
    Incarnation = 9,
}

/// Sets (`Some`) or takes away (`None`) one system record.
pub type SystemWrite = (SystemTable, Bytes, Option<Bytes>);

/// Everything that the entries of one apply call did. It is cut at entry boundaries only and goes into one backend
/// transaction together with `applied`, so that effects and position can't part.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub applied: Applied,
    /// The store's revision after these entries. Its own record, since compaction may remove the row that had it.
    pub revision: i64,
    /// Compaction is in force up to here (−1: never compacted).
    pub compacted: i64,
    /// Ascending, and all newer than any row pushed before.
    pub rows: Vec<Row>,
    /// Rows that compaction takes away, durable or still pending.
    pub removed: Vec<RowId>,
    /// In order; the last write to a record counts.
    pub system: Vec<SystemWrite>,
    /// Whose batch it is and which of that member's have passed, to be remembered. It would be a record among the others if not every entry had one; a write
    /// to that record counts more.
    pub origin: Option<Passed>,
}

/// What taking a row away costs until it is durable: its id, and its share of the pages that the commit rewrites.
const REMOVAL_BYTES: usize = 256;

impl Change {
    /// What it pins in memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        let rows: usize = self.rows.iter().map(row_bytes).sum();
        let system: usize = self
            .system
            .iter()
            .map(|(_, k, v)| 64 + k.len() + v.as_ref().map_or(0, Bytes::len))
            .sum();
        64 + rows + self.removed.len() * REMOVAL_BYTES + system
    }
}

pub(super) fn row_bytes(row: &Row) -> usize {
    size_of::<Row>() + row.key.len() + row.value.len()
}
