//! Writing a new file from a stream, see [`stream`](super::stream). The file is nobody's yet: whatever goes wrong with
//! stream or disk, it is thrown away and the store has noticed nothing. Only when the end has come and everything
//! agrees with it does a last commit say what the file is of.

use std::sync::Arc;

use bytes::Bytes;
use redb::Database;

use super::change::RowId;
use super::database::{self, Facts, Size};
use super::disk::{Disk, Gathered, Patient};
use super::error::{During, Error};
use super::format::{self, OWN, ROW_ID_LEN};
use super::stream::{self, Counts, Decoder, Header, Part, StreamRow, bad};
use crate::polite::Polite;

pub(crate) struct Import {
    disk: Arc<dyn Disk>,
    db: Database,
    decoder: Decoder,
    /// So much is written by one commit.
    commit_bytes: usize,
    header: Option<Header>,
    end: Option<Counts>,
    /// Of what came so far.
    counts: Counts,
    size: Size,
    newest: RowId,
    last_key: Bytes,
    /// Came, but is not written.
    rows: Vec<StreamRow>,
    records: Vec<(Bytes, Bytes)>,
    bytes: usize,
    failed: bool,
    on_rows: OnRows,
    polite: Polite,
}

/// Gets the rows that were written, in their order.
pub(crate) type OnRows = Box<dyn FnMut(Vec<StreamRow>) -> Result<(), Error> + Send>;

impl Import {
    /// Into an empty disk.
    pub fn new(disk: Arc<dyn Disk>, cache_bytes: usize, commit_bytes: usize, on_rows: OnRows) -> Result<Self, Error> {
        let gathered = Arc::new(Gathered::new(disk.clone()));
        let opened = database::open(Patient::new(gathered, 0), cache_bytes)?;
        Ok(Self {
            disk,
            db: opened.db,
            decoder: Decoder::default(),
            commit_bytes,
            header: None,
            end: None,
            counts: Counts::default(),
            size: Size { in_use: 0 },
            newest: RowId::ZERO,
            last_key: Bytes::new(),
            rows: Vec::new(),
            records: Vec::new(),
            bytes: 0,
            failed: false,
            on_rows,
            polite: Polite::default(),
        })
    }

    /// The next bytes, cut anywhere. After an error nothing more is taken.
    pub fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        if self.failed {
            return Err(bad("an earlier part of it was refused"));
        }
        let result = self.take(bytes);
        self.failed = result.is_err();
        result
    }

    fn take(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.decoder.push(bytes);
        while let Some(part) = self.decoder.next()? {
            match part {
                Part::Header(header) => self.header = Some(checked(header)?),
                Part::Rows(mut body) => {
                    self.bytes += body.len();
                    while !body.is_empty() {
                        let row = stream::take_row(&mut body)?;
                        self.take_row(row)?;
                    }
                }
                Part::Records(mut body) => {
                    self.bytes += body.len();
                    while !body.is_empty() {
                        let (key, record) = stream::take_record(&mut body)?;
                        self.take_record(key, record)?;
                    }
                }
                Part::End(end) => self.end = Some(end),
            }
            if self.bytes >= self.commit_bytes {
                self.commit(None)?;
            }
        }
        Ok(())
    }

    fn take_row(&mut self, row: StreamRow) -> Result<(), Error> {
        let StreamRow { id, meta, value } = &row;
        let revision = self.header.map_or(0, |header| header.revision);
        if *id <= self.newest || id.main > revision {
            return Err(bad(format!("revision {}.{} is out of order", id.main, id.sub)));
        }
        let told = format::decode_meta(*id, meta).map_err(as_bad)?;
        let len = match value {
            Some(value) => Some(format::decode_value(*id, value).map_err(as_bad)?.len() as u64),
            None => None,
        };
        if len != (!told.tombstone).then_some(told.value_len) {
            return Err(bad(format!("revision {}.{} contradicts itself", id.main, id.sub)));
        }
        self.size.add(ROW_ID_LEN, meta.len());
        if let Some(value) = value {
            self.size.add(ROW_ID_LEN, value.len());
        }
        self.newest = *id;
        self.counts.rows += 1;
        self.rows.push(row);
        Ok(())
    }

    fn take_record(&mut self, key: Bytes, record: Bytes) -> Result<(), Error> {
        if key <= self.last_key || key.first() == Some(&OWN) {
            return Err(bad(format!("system record {} is out of order", key.escape_ascii())));
        }
        format::decode_record(&key, &record).map_err(as_bad)?;
        self.size.add(key.len(), record.len());
        self.last_key = key.clone();
        self.counts.records += 1;
        self.records.push((key, record));
        Ok(())
    }

    fn commit(&mut self, whole: Option<Header>) -> Result<(), Error> {
        let write = match whole {
            Some(_) => database::begin(&self.db)?,
            None => database::begin_passing(&self.db)?,
        };
        {
            database::append_rows(&write, &self.rows, &mut self.polite)?;
            let mut system = write.open_table(format::SYSTEM).during("open table system")?;
            for (key, record) in &self.records {
                system.insert(&key[..], &record[..]).during("write a system record")?;
            }
            if let Some(Header {
                applied,
                revision,
                compacted,
            }) = whole
            {
                let facts = Facts {
                    applied,
                    // There is no earlier state of this file to fall back to.
                    applied_before: applied,
                    revision,
                    compacted,
                    in_use: self.size.in_use,
                    bound: self.newest,
                    installed: applied,
                };
                database::put_facts(&mut system, &facts)?;
                database::put_position(&mut system, format::INSTALLED_RECORD, facts.installed)?;
            }
        }
        write.commit().during("write an image that came")?;
        self.records.clear();
        self.bytes = 0;
        (self.on_rows)(std::mem::take(&mut self.rows))
    }

    /// All of it has come. The file is durable, and closed.
    pub fn finish(mut self) -> Result<Arc<dyn Disk>, Error> {
        if self.failed {
            return Err(bad("an earlier part of it was refused"));
        }
        let (Some(header), Some(end), true) = (self.header, self.end, self.decoder.is_whole()) else {
            return Err(bad("it ends early"));
        };
        if end != self.counts {
            return Err(bad(format!("it has {:?} and should have {end:?}", self.counts)));
        }
        self.commit(Some(header))?;
        self.db.close().during("close an image that came")?;
        Ok(self.disk)
    }
}

fn checked(header: Header) -> Result<Header, Error> {
    let Header {
        applied: _,
        revision,
        compacted,
    } = header;
    if revision < 1 {
        return Err(bad("it is of a store that nothing was applied to"));
    }
    if !(-1..=revision).contains(&compacted) {
        return Err(bad(format!("compacted at {compacted} of revision {revision}")));
    }
    Ok(header)
}

/// Damage on the way is not damage of this member.
fn as_bad(error: Error) -> Error {
    bad(error.to_string())
}
