//! One batch in the making: a buffer that is written in one piece, its header filled in last.

use crate::format::{self, BATCH, Batch, Kind, Record};
use crate::segment::Place;

#[derive(Debug, Default)]
pub(crate) struct BatchBuffer {
    bytes: Vec<u8>,
    records: u32,
}

/// A point to go back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    bytes: usize,
    records: u32,
}

/// What one batch may leave allocated for the next.
const KEEP_BYTES: usize = 1 << 20;

impl BatchBuffer {
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes that the batch would be with one more record of this many bytes (head and padding included).
    pub(crate) fn bytes_with(&self, record: usize) -> usize {
        self.bytes.len().max(BATCH) + record
    }

    /// Adds a record to the batch that will be written at `start`; returns the offset it will lie at.
    pub(crate) fn push(&mut self, start: Place, session: u32, record: &Record<'_>) -> u64 {
        if self.bytes.is_empty() {
            self.bytes.resize(BATCH, 0);
        }
        let at = Place {
            offset: start.offset + self.bytes.len() as u64,
            ..start
        };
        record.encode(&mut self.bytes, at, session);
        self.records += 1;
        at.offset
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            records: self.records,
        }
    }

    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.records = mark.records;
    }

    /// Fills in the header. What is returned is the whole batch, to be written at `start`.
    pub(crate) fn seal(&mut self, start: Place, session: u32, synced: Place) -> &[u8] {
        let body = format::encode_batch(Batch {
            synced,
            bytes: self.bytes.len() as u32,
            records: self.records,
        });
        let mut head = Vec::with_capacity(BATCH);
        format::encode_record(&mut head, start, Kind::Batch, session, &[&body]);
        self.bytes[..BATCH].copy_from_slice(&head);
        &self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.records = 0;
    }
}
