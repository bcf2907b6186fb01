//! What readers hold: one read transaction of the file, and the row up to which that transaction is complete.
//!
//! Where a value is read is decided by comparing its revision with that bound: at or below, it is in the file; above,
//! it is pinned in memory for as long as this View lives. There is no "first here, then there", so a commit between
//! two steps of a read can't make a value vanish, and a missing row is damage.

use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};

use super::change::{Applied, RowId, SystemTable};
use super::database::Facts;
use super::error::{During, Error};
use super::format::{self, MetaRow};
use super::shared::Shared;

/// One commit of the file: its tables, which stand still, and what it says of itself.
pub(super) struct Tables {
    pub meta: ReadOnlyTable<RowId, &'static [u8]>,
    pub values: ReadOnlyTable<RowId, &'static [u8]>,
    pub system: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub facts: Facts,
    /// The file is open for as long as somebody has this.
    _file: Arc<InUse>,
}

/// Held by whatever reads a file.
#[derive(Debug)]
pub(super) struct InUse;

/// A state of the file that readers share. Dropping the last handle lets pinned rows go.
pub(super) struct Published {
    pub tables: Arc<Tables>,
    /// Rows at or below are in this transaction, unless compaction removed them.
    bound: RowId,
    shared: Weak<Shared>,
}

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Published")
            .field("bound", &self.bound)
            .field("applied", &self.tables.facts.applied)
            .finish_non_exhaustive()
    }
}

impl Published {
    pub fn new(db: &Database, file: Arc<InUse>, facts: Facts, shared: &Arc<Shared>) -> Result<Self, Error> {
        let read = db.begin_read().during("begin a read of the backend")?;
        let tables = Tables {
            meta: read.open_table(format::META).during("open table meta")?,
            values: read.open_table(format::VALUES).during("open table values")?,
            system: read.open_table(format::SYSTEM).during("open table system")?,
            facts,
            _file: file,
        };
        Ok(Self {
            tables: Arc::new(tables),
            bound: facts.bound,
            shared: Arc::downgrade(shared),
        })
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.view_dropped();
        }
    }
}

/// A reader's grip on one durable state plus everything pushed since. Cheap to clone. It pins pages of the file and
/// rows in memory, so whoever holds one lets go of it after seconds, not hours.
#[derive(Clone, Debug)]
pub struct View {
    published: Arc<Published>,
    shared: Arc<Shared>,
}

/// Reading on along the leaf costs less than a new descent for this many rows.
const STEPS_MAX: usize = 4;

impl View {
    pub(super) fn new(published: Arc<Published>, shared: Arc<Shared>) -> Self {
        Self { published, shared }
    }

    /// What the durable part of this View was made of.
    pub fn applied(&self) -> Applied {
        self.published.tables.facts.applied
    }

    /// An error of the file, as opposed to one of what is stored in it, is the last thing the file says.
    fn file<T>(&self, doing: &'static str, result: Result<T, impl Into<redb::Error>>) -> Result<T, Error> {
        result.during(doing).inspect_err(|error| self.shared.read_failed(error))
    }

    /// The value of a version that the caller knows to exist: one that was pushed before this call and not compacted
    /// away in a change that was pushed before the View was taken. Anything else is reported as damage.
    pub fn value(&self, id: RowId) -> Result<Bytes, Error> {
        if id > self.published.bound {
            return self.shared.pending.get(id).ok_or_else(|| Error::missing(id));
        }
        let stored = self.file("read a value", self.published.tables.values.get(id))?;
        let stored = stored.ok_or_else(|| Error::missing(id))?;
        Ok(Bytes::copy_from_slice(format::decode_value(id, stored.value())?))
    }

    /// Hands the values of `ids` to `each`, in that order, with the position of the id. No copies are made; neighbours
    /// in ascending order share their way down the tree.
    pub fn values(&self, ids: &[RowId], mut each: impl FnMut(usize, &[u8])) -> Result<(), Error> {
        let bound = self.published.bound;
        let mut pinned = self.shared.pending.get_above(bound, ids).into_iter();
        let mut cursor = None;
        for (at, &id) in ids.iter().enumerate() {
            if id > bound {
                let value = pinned.next().and_then(|(_, value)| value);
                each(at, &value.ok_or_else(|| Error::missing(id))?);
                continue;
            }
            let mut steps_left = STEPS_MAX;
            loop {
                let (open, sought) = match &mut cursor {
                    Some(open) if steps_left > 0 => (open, false),
                    stale => {
                        let values = &self.published.tables.values;
                        let seek = self.file("seek a value", values.lower_bound(Bound::Included(id)))?;
                        (stale.insert(seek), true)
                    }
                };
                let next = self.file("read a value", open.next())?;
                let found = next.as_ref().map(|(key, _)| key.value());
                match next {
                    Some((_, stored)) if found == Some(id) => {
                        each(at, format::decode_value(id, stored.value())?);
                        break;
                    }
                    _ if sought => return Err(Error::missing(id)),
                    Some(_) if found < Some(id) => steps_left -= 1,
                    _ => steps_left = 0,
                }
            }
        }
        Ok(())
    }

    /// All durable rows of `meta`, ascending; values are not touched. This is how the index comes back at a start.
    pub fn scan_meta(&self, mut each: impl FnMut(MetaRow<'_>)) -> Result<(), Error> {
        for row in self.file("scan table meta", self.published.tables.meta.iter())? {
            let (id, bytes) = self.file("scan table meta", row)?;
            each(format::decode_meta(id.value(), bytes.value())?);
        }
        Ok(())
    }

    /// Rows from `from` on, ascending, durable and pushed alike, until `each` has seen enough. Rows that compaction has
    /// taken may still be among them.
    pub fn scan_rows(&self, from: RowId, mut each: impl FnMut(MetaRow<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        let bound = self.published.bound;
        if from <= bound {
            let rows = self.published.tables.meta.range(from..=bound);
            for row in self.file("scan table meta", rows)? {
                let (id, bytes) = self.file("scan table meta", row)?;
                if each(format::decode_meta(id.value(), bytes.value())?).is_break() {
                    return Ok(());
                }
            }
        }
        for chunk in self.shared.pending.chunks_above(bound.max(from)) {
            for row in chunk.rows.iter().filter(|row| row.id > bound && row.id >= from) {
                if each(MetaRow::of(row)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// All durable records of one system table, ascending by key.
    pub fn scan_system(&self, table: SystemTable, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let from = [table as u8];
        for record in self.file("scan table system", self.published.tables.system.range(&from[..]..))? {
            let (key, bytes) = self.file("scan table system", record)?;
            let Some(name) = key.value().strip_prefix(&from) else {
                break;
            };
            each(name, format::decode_record(key.value(), bytes.value())?);
        }
        Ok(())
    }

    /// One durable system record.
    pub fn system(&self, table: SystemTable, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let key = format::system_key(table, key);
        let stored = self.file("read a system record", self.published.tables.system.get(&key[..]))?;
        stored
            .map(|bytes| Ok(Bytes::copy_from_slice(format::decode_record(&key, bytes.value())?)))
            .transpose()
    }
}
