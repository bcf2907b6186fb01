//! The redb file: opening it, and writing one batch of changes as one transaction.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, Table};

use super::change::{Applied, RowId, SystemTable};
use super::disk::{Patient, Summed};
use super::error::{During, Error};
use super::format::{self, ROW_ID_LEN, stored_cost};
use super::shared::Queued;
use super::stream::StreamRow;
use crate::origins::Passed;
use crate::polite::Polite;

/// The state that the last commit left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub applied: Applied,
    /// As of the commit before.
    pub applied_before: Applied,
    pub revision: i64,
    pub compacted: i64,
    /// Stored bytes of live rows and records.
    pub in_use: u64,
    /// The newest row.
    pub bound: RowId,
    /// The file began as an image of this state; nothing at all if it began empty.
    pub installed: Applied,
}

pub(super) struct Opened {
    pub db: Database,
    pub facts: Facts,
    /// redb had to walk the whole file, which quick-repair is there to avoid.
    pub walked: bool,
}

/// Opens the file, or makes a new one of an empty disk.
pub(super) fn open(disk: Patient, cache_bytes: usize) -> Result<Opened, Error> {
    let disk = Summed::open(disk)?;
    let walked = Rc::new(Cell::new(false));
    let noted = walked.clone();
    let mut builder = Builder::new();
    builder
        .set_cache_size(cache_bytes)
        .set_repair_callback(move |_| noted.set(true));
    let db = builder.create_with_backend(disk).during("open backend file")?;
    let facts = match read_facts(&db)? {
        Some(facts) => facts,
        None => {
            initialize(&db)?;
            Facts::default()
        }
    };
    Ok(Opened {
        db,
        facts,
        walked: walked.get(),
    })
}

fn read_facts(db: &Database) -> Result<Option<Facts>, Error> {
    let read = db.begin_read().during("begin a read of the backend")?;
    let system = match read.open_table(format::SYSTEM) {
        Ok(system) => system,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error).during("open table system"),
    };
    let record = |key: &[u8]| -> Result<Option<Vec<u8>>, Error> {
        let stored = system.get(key).during("read a system record")?;
        stored
            .map(|bytes| Ok(format::decode_record(key, bytes.value())?.to_vec()))
            .transpose()
    };
    let number = |key: &[u8]| -> Result<u64, Error> { record(key)?.map_or(Ok(0), |bytes| le(key, &bytes)) };
    let position = |key: &[u8]| -> Result<Applied, Error> {
        let Some(bytes) = record(key)? else {
            return Ok(Applied::default());
        };
        let (index, term) = bytes.split_at_checked(8).ok_or_else(|| odd_length(key))?;
        Ok(Applied {
            index: le(key, index)?,
            term: le(key, term)?,
        })
    };
    let meta = read.open_table(format::META).during("open table meta")?;
    let last = meta.last().during("find the newest row")?;
    Ok(Some(Facts {
        applied: position(format::APPLIED_RECORD)?,
        applied_before: position(format::APPLIED_BEFORE_RECORD)?,
        revision: number(format::REVISION_RECORD)? as i64,
        compacted: number(format::COMPACTED_RECORD)? as i64,
        in_use: number(format::IN_USE_RECORD)?,
        bound: last.map_or(RowId::ZERO, |(id, _)| id.value()),
        installed: position(format::INSTALLED_RECORD)?,
    }))
}

fn le(key: &[u8], bytes: &[u8]) -> Result<u64, Error> {
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| odd_length(key))
}

fn odd_length(key: &[u8]) -> Error {
    Error::Corrupt {
        what: format!("system record {} has an odd length", key.escape_ascii()),
    }
}

pub(super) fn begin(db: &Database) -> Result<redb::WriteTransaction, Error> {
    let mut write = begin_passing(db)?;
    write.set_quick_repair(true); // or opening after a crash walks the whole file
    Ok(write)
}

/// One that nobody will ever open the file at.
pub(super) fn begin_passing(db: &Database) -> Result<redb::WriteTransaction, Error> {
    let mut write = db.begin_write().during("begin a backend commit")?;
    write
        .set_durability(Durability::Immediate)
        .during("begin a backend commit")?;
    Ok(write)
}

/// An empty file gets its tables in one commit.
fn initialize(db: &Database) -> Result<(), Error> {
    let write = begin(db)?;
    {
        write.open_table(format::META).during("make table meta")?;
        write.open_table(format::VALUES).during("make table values")?;
        write.open_table(format::SYSTEM).during("make table system")?;
    }
    write.commit().during("make backend file")
}

/// Writes the batch, in ascending key order, as one durable transaction. On an error nothing of it is in the file.
pub(super) fn commit(db: &Database, before: Facts, batch: &[Queued]) -> Result<Facts, Error> {
    let Some(last) = batch.last() else { return Ok(before) };
    let write = begin(db)?;
    let mut removed: Vec<RowId> = batch.iter().flat_map(|change| change.removed.iter().copied()).collect();
    removed.sort_unstable();
    removed.dedup();
    // Rows that came and went within the batch never reach the file.
    let stillborn = removed.split_off(removed.partition_point(|id| *id <= before.bound));
    let mut size = Size { in_use: before.in_use };
    let mut bound = before.bound;
    let facts;
    {
        let mut meta = write.open_table(format::META).during("open table meta")?;
        let mut values = write.open_table(format::VALUES).during("open table values")?;
        let mut encoded = Vec::new();
        let rows = || {
            batch
                .iter()
                .filter_map(|change| change.rows.as_deref())
                .flat_map(|chunk| &chunk.rows)
        };
        let live = || rows().filter(|row| stillborn.binary_search(&row.id).is_err());
        let mut end = meta
            .upper_bound_mut(Bound::<RowId>::Unbounded)
            .during("write table meta")?;
        for row in live() {
            format::encode_meta(row, &mut encoded);
            end.insert_before(row.id, &encoded[..]).during("write table meta")?;
            size.add(ROW_ID_LEN, encoded.len());
        }
        end.close().during("write table meta")?;
        let mut end = values
            .upper_bound_mut(Bound::<RowId>::Unbounded)
            .during("write table values")?;
        for row in live().filter(|row| !row.tombstone) {
            format::encode_value(row.id, &row.value, &mut encoded);
            end.insert_before(row.id, &encoded[..]).during("write table values")?;
            size.add(ROW_ID_LEN, encoded.len());
        }
        end.close().during("write table values")?;
        if let Some(row) = rows().last() {
            bound = row.id;
        }
        remove_from(&mut meta, &mut values, &removed, &mut size)?;
        let mut system = write.open_table(format::SYSTEM).during("open table system")?;
        write_system(&mut system, batch, &mut size)?;
        facts = Facts {
            applied: last.applied,
            applied_before: before.applied,
            revision: last.revision,
            compacted: last.compacted,
            in_use: size.in_use,
            bound,
            installed: before.installed,
        };
        put_facts(&mut system, &facts)?;
    }
    write.commit().during("commit to the backend")?;
    Ok(facts)
}

/// Rows as they are stored, ascending and newer than all that are there.
pub(super) fn append_rows(
    write: &redb::WriteTransaction,
    rows: &[StreamRow],
    polite: &mut Polite,
) -> Result<(), Error> {
    let mut meta = write.open_table(format::META).during("open table meta")?;
    let mut values = write.open_table(format::VALUES).during("open table values")?;
    let unbounded = Bound::<RowId>::Unbounded;
    let mut end = meta.upper_bound_mut(unbounded).during("write table meta")?;
    for row in rows {
        end.insert_before(row.id, &row.meta[..]).during("write table meta")?;
        polite.pass(row.meta.len());
    }
    end.close().during("write table meta")?;
    let mut end = values.upper_bound_mut(unbounded).during("write table values")?;
    for row in rows {
        if let Some(value) = &row.value {
            end.insert_before(row.id, &value[..]).during("write table values")?;
            polite.pass(value.len());
        }
    }
    end.close().during("write table values")
}

/// Ascending; some may not be there.
pub(super) fn remove_rows(write: &redb::WriteTransaction, removed: &[RowId], size: &mut Size) -> Result<(), Error> {
    let mut meta = write.open_table(format::META).during("open table meta")?;
    let mut values = write.open_table(format::VALUES).during("open table values")?;
    remove_from(&mut meta, &mut values, removed, size)
}

type Rows<'t> = Table<'t, RowId, &'static [u8]>;

fn remove_from(meta: &mut Rows<'_>, values: &mut Rows<'_>, removed: &[RowId], size: &mut Size) -> Result<(), Error> {
    for run in removed.chunk_by(|a, b| b.main - a.main <= RUN_GAP_MAX) {
        remove_run(meta, run, size)?;
        remove_run(values, run, size)?;
    }
    Ok(())
}

/// Rows to remove that are no farther apart than this are removed in one walk over the leaves they share, which costs
/// a fraction of a descent for each.
const RUN_GAP_MAX: i64 = 32;

/// Removes the rows of one ascending run.
fn remove_run(table: &mut Rows<'_>, run: &[RowId], size: &mut Size) -> Result<(), Error> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Ok(());
    };
    if run.len() == 1 {
        if let Some(old) = table.remove(first).during("remove compacted rows")? {
            size.subtract(ROW_ID_LEN, old.value().len());
        }
        return Ok(());
    }
    let mut left = run;
    let goes = |id: RowId, stored: &[u8]| {
        while left.first().is_some_and(|next| *next < id) {
            left = &left[1..];
        }
        let goes = left.first() == Some(&id);
        if goes {
            size.subtract(ROW_ID_LEN, stored.len());
        }
        !goes
    };
    table.retain_in(*first..=*last, goes).during("remove compacted rows")
}

pub(super) type System<'t> = Table<'t, &'static [u8], &'static [u8]>;

fn write_system(system: &mut System<'_>, batch: &[Queued], size: &mut Size) -> Result<(), Error> {
    let mut newest = BTreeMap::new();
    let origins: BTreeMap<_, _> = batch
        .iter()
        .filter_map(|change| Some((change.origin?.member, change.origin?)))
        .collect();
    let origins: Vec<_> = origins.into_values().map(Passed::record).collect();
    for (key, value) in &origins {
        newest.insert((SystemTable::Origin, key), value);
    }
    // Behind those: one that a write takes away stays away, since nothing more is applied of its member.
    for (table, key, value) in batch.iter().flat_map(|change| &change.system) {
        newest.insert((*table, key), value);
    }
    for ((table, key), value) in newest {
        let key = format::system_key(table, key);
        let record = value.as_ref().map(|value| format::encode_record(&key, value));
        put_record(system, &key, record.as_deref(), size)?;
    }
    Ok(())
}

/// By its key in the file, and as it is stored. None: it goes.
pub(super) fn put_record(
    system: &mut System<'_>,
    key: &[u8],
    record: Option<&[u8]>,
    size: &mut Size,
) -> Result<(), Error> {
    let old = match record {
        Some(record) => {
            size.add(key.len(), record.len());
            system.insert(key, record).during("write a system record")?
        }
        None => system.remove(key).during("remove a system record")?,
    };
    if let Some(old) = old {
        size.subtract(key.len(), old.value().len());
    }
    Ok(())
}

/// All but what the file began as.
pub(super) fn put_facts(system: &mut System<'_>, facts: &Facts) -> Result<(), Error> {
    put_position(system, format::APPLIED_RECORD, facts.applied)?;
    put_position(system, format::APPLIED_BEFORE_RECORD, facts.applied_before)?;
    put_number(system, format::REVISION_RECORD, facts.revision as u64)?;
    put_number(system, format::COMPACTED_RECORD, facts.compacted as u64)?;
    put_number(system, format::IN_USE_RECORD, facts.in_use)
}

fn put_number(system: &mut System<'_>, key: &[u8], number: u64) -> Result<(), Error> {
    put(system, key, &number.to_le_bytes())
}

pub(super) fn put_position(system: &mut System<'_>, key: &[u8], Applied { index, term }: Applied) -> Result<(), Error> {
    put(system, key, &[index.to_le_bytes(), term.to_le_bytes()].concat())
}

fn put(system: &mut System<'_>, key: &[u8], value: &[u8]) -> Result<(), Error> {
    let record = format::encode_record(key, value);
    system.insert(key, &record[..]).during("write a system record")?;
    Ok(())
}

/// Counts what is stored, so that nobody has to walk the tree for it.
pub(super) struct Size {
    pub in_use: u64,
}

impl Size {
    pub fn add(&mut self, key_len: usize, value_len: usize) {
        self.in_use += stored_cost(key_len, value_len);
    }

    fn subtract(&mut self, key_len: usize, value_len: usize) {
        self.in_use = self.in_use.saturating_sub(stored_cost(key_len, value_len));
    }
}
