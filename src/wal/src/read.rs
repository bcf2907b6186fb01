//! Entries read back from segments, each checked before anyone sees it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::File;
use crate::entry::{Entry, LogPos};
use crate::format::{ENTRY_BODY, Head, RECORD, Record, decode, is_sound, record_bytes};
use crate::log::Slot;
use crate::segment::Place;
use crate::{Error, segment};

/// One read call fetches neighbouring entries up to this many bytes together.
const RUN_BYTES: u64 = 256 << 10;
/// Votes, batch headers and the like between two entries are read over; a larger gap starts a new read.
const GAP_BYTES: u64 = 4 << 10;

/// An entry to be read, and the file it is in.
pub(crate) struct Wanted {
    pub index: u64,
    pub slot: Slot,
    pub file: Arc<dyn File>,
}

impl Wanted {
    fn extent(&self) -> Range<u64> {
        let start = self.slot.place().offset;
        start..start + record_bytes(ENTRY_BODY + self.slot.len as usize) as u64
    }
}

/// Reads `wanted`, which is in the order of writing, into `out`.
pub(crate) fn read(wanted: &[Wanted], out: &mut Vec<Entry>) -> Result<(), Error> {
    let mut left = wanted;
    while let Some(first) = left.first() {
        let segment = first.slot.place().segment;
        let mut run = first.extent();
        let mut count = 1;
        for next in &left[1..] {
            let extent = next.extent();
            let near = next.slot.place().segment == segment && extent.start >= run.end;
            if !near || extent.start - run.end > GAP_BYTES || extent.end - run.start > RUN_BYTES {
                break;
            }
            run.end = extent.end;
            count += 1;
        }
        let mut bytes = vec![0; (run.end - run.start) as usize];
        first
            .file
            .read_at(&mut bytes, run.start)
            .map_err(|e| Error::io("read log segment", segment::SegmentId::file_name(segment), e))?;
        let bytes = Bytes::from(bytes);
        for wanted in &left[..count] {
            out.push(check(wanted, &bytes, wanted.extent().start - run.start)?);
        }
        left = &left[count..];
    }
    Ok(())
}

fn check(wanted: &Wanted, run: &Bytes, at: u64) -> Result<Entry, Error> {
    let at = at as usize;
    let place: Place = wanted.slot.place();
    let pos = LogPos {
        term: wanted.slot.term,
        index: wanted.index,
    };
    let damage = |what: String| Error::damage(place.segment, place.offset, format!("entry {pos}: {what}"));
    let head = Head::parse(&run[at..at + RECORD]);
    let body = at + RECORD..at + RECORD + ENTRY_BODY + wanted.slot.len as usize;
    if head.len != body.len() {
        return Err(damage(format!(
            "read back with a length of {} instead of {}",
            head.len,
            body.len()
        )));
    }
    if !is_sound(&run[at..body.end], place) {
        return Err(damage("read back with a wrong checksum".into()));
    }
    match decode(head.kind, &run[body.clone()]).map_err(damage)? {
        Record::Entry { pos: found, .. } if found == pos => Ok(Entry {
            pos,
            payload: run.slice(body.start + ENTRY_BODY..body.end),
        }),
        other => Err(damage(format!("its place holds {:?} instead", other.kind()))),
    }
}
