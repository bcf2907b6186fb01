//! A second file that follows the one that the store stands on, until it takes its place. It has what is live and
//! nothing else: that is what defragmenting means here.
//!
//! Commits go on meanwhile, and nobody waits. Each round copies what is new in the last commit: rows from behind the
//! newest row of the round before, and what the commits since have noted as [`Touched`]. As a round takes a fraction of
//! the one before, little is left for the last one, which is taken between two commits.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use redb::Database;

use super::Options;
use super::change::RowId;
use super::database::{self, Facts, Opened, Size};
use super::disk::{Disk, Gathered, Patient};
use super::error::{During, Error};
use super::export::{FIRST_RECORD, Image};
use super::format::{self, ROW_ID_LEN};
use super::shared::Queued;
use super::stream::StreamRow;
use crate::polite::Polite;

/// What commits did besides adding rows. Notes too much do no harm: what holds is read from the commit that is copied.
#[derive(Debug, Default)]
pub(super) struct Touched {
    removed: Vec<RowId>,
    /// By their keys in the file.
    records: BTreeSet<Vec<u8>>,
}

impl Touched {
    pub fn note(&mut self, batch: &[Queued]) {
        for change in batch {
            self.removed.extend_from_slice(&change.removed);
            self.records
                .extend(change.records().map(|(table, key)| format::system_key(table, &key)));
        }
    }
}

/// Whether to go on, asked after every commit of the copy.
pub(super) type GoOn<'a> = &'a dyn Fn() -> Result<(), Error>;

/// Gives the copy the name of the file.
pub(crate) type Adopt = Box<dyn FnOnce() -> Result<(), Error> + Send>;

pub(super) struct Successor {
    pub db: Database,
    pub disk: Patient,
    /// Rows up to here were looked at.
    copied: RowId,
    size: Size,
    commit_bytes: usize,
    polite: Polite,
}

impl Successor {
    /// All of `image`, into an empty disk.
    pub fn of(image: &Image, disk: Arc<dyn Disk>, options: &Options, go_on: GoOn<'_>) -> Result<Self, Error> {
        // Written once and not read, like an image that comes from a peer.
        let gathered = Patient::new(Arc::new(Gathered::new(disk.clone())), 0);
        let mut successor = Self {
            db: database::open(gathered.clone(), options.cache_bytes)?.db,
            disk: gathered,
            copied: RowId::ZERO,
            size: Size { in_use: 0 },
            commit_bytes: options.commit_bytes,
            polite: Polite::default(),
        };
        successor.rows(image, go_on)?;
        successor.records(image, go_on)?;
        successor.rest(image, &[], Vec::new())?;
        successor.db.close().during("close a copy of the file")?;
        // From here on as the store will use it, so it is read back before it counts.
        successor.disk = Patient::new(disk, options.reserve_bytes);
        let Opened { db, facts, .. } = database::open(successor.disk.clone(), options.cache_bytes)?;
        successor.db = db;
        check(&facts, image.facts())?;
        Ok(successor)
    }

    /// From the image before to this one. `touched` was taken after that one and before this one. Returns the bytes of
    /// new rows.
    pub fn follow(&mut self, image: &Image, mut touched: Touched, go_on: GoOn<'_>) -> Result<usize, Error> {
        let bytes = self.rows(image, go_on)?;
        touched.removed.sort_unstable();
        touched.removed.dedup();
        let records = touched.records.into_iter();
        let records = records.map(|key| image.record(&key).map(|record| (key, record)));
        let records: Vec<_> = records.collect::<Result<_, Error>>()?;
        self.rest(image, &touched.removed, records)?;
        Ok(bytes)
    }

    /// Nothing was committed since `image`, so that this must be the same.
    pub fn is_of(&self, facts: &Facts) -> Result<(), Error> {
        let copied = Facts {
            in_use: self.size.in_use,
            ..*facts
        };
        check(&copied, facts)
    }

    /// Rows that are newer than those that were looked at before.
    fn rows(&mut self, image: &Image, go_on: GoOn<'_>) -> Result<usize, Error> {
        let mut all = 0;
        loop {
            let mut rows = Vec::new();
            let mut bytes = 0;
            let polite = &mut self.polite;
            image.each_row(Bound::Excluded(self.copied), |id, meta, value| {
                let len = meta.len() + value.map_or(0, <[u8]>::len);
                bytes += len;
                polite.pass(len);
                rows.push(StreamRow {
                    id,
                    meta: Bytes::copy_from_slice(meta),
                    value: value.map(Bytes::copy_from_slice),
                });
                match bytes < self.commit_bytes {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
            all += bytes;
            let Some(last) = rows.last() else { break };
            self.copied = last.id;
            let write = database::begin_passing(&self.db)?;
            database::append_rows(&write, &rows, &mut self.polite)?;
            write.commit().during("copy rows")?;
            for row in &rows {
                self.size.add(ROW_ID_LEN, row.meta.len());
                if let Some(value) = &row.value {
                    self.size.add(ROW_ID_LEN, value.len());
                }
            }
            go_on()?;
        }
        self.copied = self.copied.max(image.facts().bound);
        Ok(all)
    }

    /// All of them, into a file that has none.
    fn records(&mut self, image: &Image, go_on: GoOn<'_>) -> Result<(), Error> {
        let mut from = FIRST_RECORD.map(<[u8]>::to_vec);
        loop {
            let mut records = Vec::new();
            let mut bytes = 0;
            image.each_record(from.as_ref().map(Vec::as_slice), |key, record| {
                bytes += key.len() + record.len();
                records.push((key.to_vec(), record.to_vec()));
                match bytes < self.commit_bytes {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
            let Some((last, _)) = records.last() else { break };
            from = Bound::Excluded(last.clone());
            let write = database::begin_passing(&self.db)?;
            {
                let mut system = write.open_table(format::SYSTEM).during("open table system")?;
                for (key, record) in &records {
                    database::put_record(&mut system, key, Some(record), &mut self.size)?;
                }
            }
            write.commit().during("copy records")?;
            go_on()?;
        }
        Ok(())
    }

    /// What is no new row, and then the file is of the state that `image` is of.
    fn rest(&mut self, image: &Image, removed: &[RowId], records: Vec<(Vec<u8>, Option<Bytes>)>) -> Result<(), Error> {
        let write = database::begin(&self.db)?;
        database::remove_rows(&write, removed, &mut self.size)?;
        {
            let mut system = write.open_table(format::SYSTEM).during("open table system")?;
            for (key, record) in &records {
                database::put_record(&mut system, key, record.as_deref(), &mut self.size)?;
            }
            let facts = Facts {
                in_use: self.size.in_use,
                ..*image.facts()
            };
            database::put_facts(&mut system, &facts)?;
            database::put_position(&mut system, format::INSTALLED_RECORD, facts.installed)?;
        }
        write.commit().during("copy what is no row")
    }
}

fn check(copied: &Facts, facts: &Facts) -> Result<(), Error> {
    // The newest row may be one that compaction has removed, and then only the other file's thread knows of it.
    let bound = copied.bound;
    if *copied == (Facts { bound, ..*facts }) {
        return Ok(());
    }
    Err(Error::Corrupt {
        what: format!("a copy of the file says {copied:?}, and should say {facts:?}"),
    })
}

/// One that is complete but for what the last commits did, for the thread that makes them.
pub(super) struct Handover {
    pub successor: Successor,
    pub adopt: Adopt,
    /// Whoever made it waits for the outcome.
    pub tell: std::sync::mpsc::Sender<Result<(), Error>>,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").finish_non_exhaustive()
    }
}
