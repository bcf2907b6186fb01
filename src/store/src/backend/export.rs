//! Reading a commit of the file out as a stream, see [`stream`](super::stream). Rows go as they are stored, with the
//! CRC that they were written with, which is checked on the way: damage is not handed on.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::change::{RowId, SystemTable};
use super::database::Facts;
use super::error::{During, Error};
use super::format::{self, OWN};
use super::shared::Shared;
use super::stream::{self, Counts, Header, Sealer};
use super::view::Tables;
use crate::polite::Polite;

/// Pieces have about this size, or that of their one row. With what is put around them on their way they stay below
/// 256 KiB, which is what members send in one frame.
const PIECE_BYTES: usize = 224 << 10;

/// Before it are the backend's own.
pub(super) const FIRST_RECORD: Bound<&[u8]> = Bound::Included(&[OWN + 1]);

/// One commit, standing still. It pins pages of the file, and nothing in memory.
#[derive(Clone)]
pub(crate) struct Image {
    tables: Arc<Tables>,
    shared: Arc<Shared>,
}

impl Image {
    pub(super) fn new(tables: Arc<Tables>, shared: Arc<Shared>) -> Self {
        Self { tables, shared }
    }

    pub fn facts(&self) -> &Facts {
        &self.tables.facts
    }

    pub fn system(&self, table: SystemTable, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let key = format::system_key(table, key);
        let stored = self.file(self.tables.system.get(&key[..]))?;
        stored
            .map(|bytes| Ok(Bytes::copy_from_slice(format::decode_record(&key, bytes.value())?)))
            .transpose()
    }

    pub fn pieces(&self) -> Pieces {
        Pieces {
            image: self.clone(),
            sealer: Sealer::default(),
            at: At::Header,
            counts: Counts::default(),
            polite: Polite::default(),
        }
    }

    /// Rows as they are stored, ascending, until `each` has seen enough. What is damaged is not handed on.
    pub(super) fn each_row(
        &self,
        from: Bound<RowId>,
        mut each: impl FnMut(RowId, &[u8], Option<&[u8]>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let range = (from, Bound::Unbounded);
        let mut values = self.file(self.tables.values.range::<RowId>(range))?;
        for row in self.file(self.tables.meta.range::<RowId>(range))? {
            let (id, meta) = self.file(row)?;
            let (id, meta) = (id.value(), meta.value());
            let value = match format::decode_meta(id, meta)?.tombstone {
                true => None,
                false => {
                    let next = values.next().ok_or_else(|| Error::missing(id))?;
                    let (of, value) = self.file(next)?;
                    if of.value() != id {
                        return Err(Error::missing(id));
                    }
                    format::decode_value(id, value.value())?;
                    Some(value)
                }
            };
            if each(id, meta, value.as_ref().map(|value| value.value())).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The same for records, by their keys in the file. The backend's own are in the facts.
    pub(super) fn each_record(
        &self,
        from: Bound<&[u8]>,
        mut each: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for record in self.file(self.tables.system.range::<&[u8]>((from, Bound::Unbounded)))? {
            let (key, record) = self.file(record)?;
            format::decode_record(key.value(), record.value())?;
            if each(key.value(), record.value()).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn record(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let stored = self.file(self.tables.system.get(key))?;
        stored
            .map(|record| {
                format::decode_record(key, record.value())?;
                Ok(Bytes::copy_from_slice(record.value()))
            })
            .transpose()
    }

    fn file<T>(&self, result: Result<T, impl Into<redb::Error>>) -> Result<T, Error> {
        let result = result.during("read an image out of the file");
        result.inspect_err(|error| self.shared.read_failed(error))
    }
}

/// The stream, piece by piece; after an error there are no more.
pub(crate) struct Pieces {
    image: Image,
    sealer: Sealer,
    at: At,
    counts: Counts,
    polite: Polite,
}

enum At {
    Header,
    Rows(Bound<RowId>),
    Records(Bound<Vec<u8>>),
    End,
    Done,
}

impl Iterator for Pieces {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = match std::mem::replace(&mut self.at, At::Done) {
                At::Header => {
                    self.at = At::Rows(Bound::Unbounded);
                    Ok(Some(self.header()))
                }
                At::Rows(from) => self.rows(from),
                At::Records(from) => self.records(from),
                At::End => self.sealer.end(self.counts).map(Some),
                At::Done => return None,
            };
            match piece {
                Ok(None) => {}
                Ok(Some(piece)) => return Some(Ok(piece)),
                Err(error) => {
                    self.at = At::Done;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Pieces {
    fn header(&mut self) -> Bytes {
        let Facts {
            applied,
            revision,
            compacted,
            applied_before: _,
            in_use: _,
            bound: _,
            installed: _,
        } = *self.image.facts();
        self.sealer.header(&Header {
            applied,
            revision,
            compacted,
        })
    }

    /// Each piece begins with a descent of its own: nothing of the file is held between two of them.
    fn rows(&mut self, from: Bound<RowId>) -> Result<Option<Bytes>, Error> {
        let Self {
            image,
            at,
            counts,
            polite,
            ..
        } = self;
        let mut body = Sealer::body(PIECE_BYTES);
        let begun = body.len();
        *at = At::Records(Bound::Unbounded);
        image.each_row(from, |id, meta, value| {
            let before = body.len();
            stream::put_row(&mut body, id, meta, value);
            counts.rows += 1;
            polite.pass(body.len() - before);
            if body.len() < PIECE_BYTES {
                return ControlFlow::Continue(());
            }
            *at = At::Rows(Bound::Excluded(id));
            ControlFlow::Break(())
        })?;
        let any = body.len() > begun;
        any.then(|| self.sealer.rows(body)).transpose()
    }

    fn records(&mut self, from: Bound<Vec<u8>>) -> Result<Option<Bytes>, Error> {
        let Self { image, at, counts, .. } = self;
        let from = match &from {
            Bound::Unbounded => FIRST_RECORD,
            from => from.as_ref().map(Vec::as_slice),
        };
        let mut body = Sealer::body(0);
        let begun = body.len();
        *at = At::End;
        image.each_record(from, |key, record| {
            stream::put_record(&mut body, key, record);
            counts.records += 1;
            if body.len() < PIECE_BYTES {
                return ControlFlow::Continue(());
            }
            *at = At::Records(Bound::Excluded(key.to_vec()));
            ControlFlow::Break(())
        })?;
        let any = body.len() > begun;
        any.then(|| self.sealer.records(body)).transpose()
    }
}
