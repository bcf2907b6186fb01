//! Records fetched from a file, sound ones only.

use super::Segment;
use crate::Error;
use crate::format::{self, Head, RECORD};
use crate::segment::Place;

/// A view of a file that moves along with the scan.
pub(super) struct Window<'a> {
    segment: &'a Segment,
    /// How much is read at a time.
    step: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(segment: &'a Segment, step: u64) -> Self {
        Self {
            segment,
            step,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// `len` bytes from `at`. The caller has made sure that the file has them.
    pub(super) fn get(&mut self, at: u64, len: usize) -> Result<&[u8], Error> {
        let end = at + len as u64;
        debug_assert!(end <= self.segment.bytes);
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let want = (self.segment.bytes - at).min(self.step.max(len as u64));
            self.bytes.resize(want as usize, 0);
            self.start = at;
            if let Err(e) = self.segment.file.read_at(&mut self.bytes, at) {
                self.bytes.clear();
                return Err(Error::io("read log segment", self.segment.id.file_name(), e));
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// The first place from `at` on, in steps of `blank`, where the file does not hold the same as `blank`, or where less
    /// than that is left of it.
    pub(super) fn skip_blank(&mut self, mut at: u64, blank: &[u8]) -> Result<u64, Error> {
        while at + blank.len() as u64 <= self.segment.bytes && self.get(at, blank.len())? == blank {
            at += blank.len() as u64;
        }
        Ok(at)
    }

    /// The record at `at` if there is a sound one: kind, session and body.
    pub(super) fn record(&mut self, at: u64) -> Result<Result<(Head, &[u8]), String>, Error> {
        let rest = self.segment.bytes - at;
        if rest < RECORD as u64 {
            return Ok(Err("the segment ends".into()));
        }
        let head = Head::parse(self.get(at, RECORD)?);
        if head.is_blank() {
            return Ok(Err("nothing is written there".into()));
        }
        // Before anything of that size is allocated.
        if (head.len as u64) > rest - RECORD as u64 {
            return Ok(Err(format!(
                "record length {} is more than the {rest} bytes left in the segment",
                head.len
            )));
        }
        let place = Place {
            segment: self.segment.id,
            offset: at,
        };
        let record = self.get(at, RECORD + head.len)?;
        if !format::is_sound(record, place) {
            return Ok(Err("wrong checksum".into()));
        }
        Ok(Ok((head, &record[RECORD..])))
    }
}
