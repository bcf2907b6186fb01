//! The log as its readers see it: where each entry lies, and the recent ones themselves.
//!
//! ```text
//!   purged │ first ……………………………… unwritten ………… next
//!          │ [slot][slot][slot][slot][slot][slot][slot]
//!          │             [ cached payloads: a suffix  ]
//! ```
//! Invariants: slots are consecutive in index and never fall in term; the cache is a suffix of the slots and holds at
//! least every entry that has not been written, so that each entry can be read from the moment it is appended.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::entry::{Entry, LogPos};
use crate::segment::{Place, SegmentId};

/// Where an entry lies. `place` means nothing until the entry has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub term: u64,
    segment: SegmentId,
    offset: u32,
    /// Payload bytes.
    pub len: u32,
}

impl Slot {
    pub(crate) fn new(term: u64, len: usize, place: Place) -> Self {
        // Segments are smaller than 4 GiB, so neither is cut short.
        Self {
            term,
            segment: place.segment,
            offset: place.offset as u32,
            len: len as u32,
        }
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            segment: self.segment,
            offset: u64::from(self.offset),
        }
    }
}

const NOWHERE: Place = Place {
    segment: SegmentId(0),
    offset: 0,
};

#[derive(Debug, Default)]
pub(crate) struct Log {
    purged: Option<LogPos>,
    /// The entry before the first slot, where there was one.
    base: Option<LogPos>,
    /// Index of the first slot; with no slots, of the next entry (any, in a log that never had one).
    first: u64,
    slots: VecDeque<Slot>,
    cache: VecDeque<Bytes>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// The first index that is not written yet.
    unwritten: u64,
}

/// An entry found by [`Log::find`].
pub(crate) enum Found {
    Recent(Entry),
    OnDisk(u64, Slot),
}

impl Log {
    #[cfg(test)]
    pub(crate) fn new(cache_bytes_max: usize) -> Self {
        Self {
            cache_bytes_max,
            ..Self::default()
        }
    }

    /// A log whose entries up to `last` are somewhere else, or gone: what a segment's state record tells.
    pub(crate) fn after(purged: Option<LogPos>, last: Option<LogPos>) -> Self {
        let first = last.map_or(0, |last| last.index + 1);
        Self {
            purged,
            base: last,
            first,
            unwritten: first,
            ..Self::default()
        }
    }

    pub(crate) fn set_cache(&mut self, cache_bytes_max: usize) {
        self.cache_bytes_max = cache_bytes_max;
    }

    pub(crate) fn purged(&self) -> Option<LogPos> {
        self.purged
    }

    /// The last entry, or the purge point.
    pub(crate) fn last(&self) -> Option<LogPos> {
        match self.slots.back() {
            Some(slot) => Some(LogPos {
                term: slot.term,
                index: self.next() - 1,
            }),
            None => self.base,
        }
    }

    /// Index of the first entry that is here.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// One past the last entry that is here.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Entries between the purge point and the first slot are missing.
    pub(crate) fn has_hole(&self) -> bool {
        match (self.base, self.purged) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(base), Some(purged)) => base.index > purged.index,
        }
    }

    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if let Some(slot) = index
            .checked_sub(self.first)
            .and_then(|at| self.slots.get(usize::try_from(at).ok()?))
        {
            return Some(slot.term);
        }
        self.base.filter(|base| base.index == index).map(|base| base.term)
    }

    /// The log has the entry at `pos`, or has purged it.
    pub(crate) fn holds(&self, pos: LogPos) -> bool {
        self.last().is_some_and(|last| last.index >= pos.index)
            && self.term_at(pos.index).is_none_or(|term| term == pos.term)
    }

    pub(crate) fn follows(last: Option<LogPos>, pos: LogPos) -> bool {
        pos.index < u64::MAX && last.is_none_or(|last| pos.index == last.index + 1 && pos.term >= last.term)
    }

    fn push_slot(&mut self, pos: LogPos, slot: Slot) {
        debug_assert!(
            Self::follows(self.last(), pos),
            "{pos} does not follow {:?}",
            self.last()
        );
        if self.slots.is_empty() && self.base.is_none() {
            self.first = pos.index;
            self.unwritten = pos.index;
        }
        self.slots.push_back(slot);
    }

    /// Adds an entry that was found on disk. The caller has checked that it [`follows`](Self::follows).
    pub(crate) fn push_written(&mut self, pos: LogPos, len: usize, place: Place) {
        self.push_slot(pos, Slot::new(pos.term, len, place));
        self.unwritten = self.next();
    }

    /// Adds an entry that is yet to be written. The caller has checked that it [`follows`](Self::follows).
    pub(crate) fn push(&mut self, entry: Entry) {
        self.push_slot(entry.pos, Slot::new(entry.pos.term, entry.payload.len(), NOWHERE));
        self.cache_bytes += entry.payload.len();
        self.cache.push_back(entry.payload);
        self.evict();
    }

    /// Tells where an entry was written. Indexes come in order; one that has gone since is passed over.
    pub(crate) fn locate(&mut self, index: u64, place: Place) {
        let Some(at) = index.checked_sub(self.first) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(at as usize) {
            slot.segment = place.segment;
            slot.offset = place.offset as u32;
            self.unwritten = self.unwritten.max(index + 1);
        }
    }

    /// Lets go of cached entries over the budget, oldest first, as far as they are written.
    pub(crate) fn evict(&mut self) {
        while self.cache_bytes > self.cache_bytes_max && self.cached_from() < self.unwritten {
            match self.cache.pop_front() {
                Some(payload) => self.cache_bytes -= payload.len(),
                None => break,
            }
        }
    }

    fn cached_from(&self) -> u64 {
        self.next() - self.cache.len() as u64
    }

    /// Drops the entries after `after`, which becomes the last one. `None` drops all that are not purged.
    pub(crate) fn truncate(&mut self, after: Option<u64>) {
        let keep = after.map_or(0, |after| after.saturating_add(1).saturating_sub(self.first));
        while self.slots.len() as u64 > keep {
            self.slots.pop_back();
            if let Some(payload) = self.cache.pop_back() {
                self.cache_bytes -= payload.len();
            }
        }
        if self.slots.is_empty() && after.is_none() {
            self.base = self.purged;
            self.first = self.purged.map_or(0, |purged| purged.index + 1);
            self.unwritten = self.first;
        }
        self.unwritten = self.unwritten.min(self.next());
    }

    /// While scanning: truncates to an end that lies before the first slot, in segments that were dropped since.
    pub(crate) fn truncate_below(&mut self, last: LogPos) {
        self.truncate(Some(last.index));
        if self.slots.is_empty() {
            *self = Self {
                cache_bytes_max: self.cache_bytes_max,
                ..Self::after(self.purged, Some(last))
            };
        }
    }

    /// Drops the entries up to `upto`. Beyond the end of the log that is a reset.
    pub(crate) fn purge(&mut self, upto: LogPos) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        if upto.index >= self.next() {
            return self.reset(upto);
        }
        self.purged = Some(upto);
        if upto.index < self.first {
            return; // the log starts later anyway
        }
        while self.first <= upto.index {
            if self.cached_from() == self.first
                && let Some(payload) = self.cache.pop_front()
            {
                self.cache_bytes -= payload.len();
            }
            self.slots.pop_front();
            self.first += 1;
        }
        self.base = Some(upto);
        self.unwritten = self.unwritten.max(self.first);
    }

    /// Empties the log; the next entry is the one after `upto`.
    pub(crate) fn reset(&mut self, upto: LogPos) {
        *self = Self {
            cache_bytes_max: self.cache_bytes_max,
            ..Self::after(Some(upto), Some(upto))
        };
    }

    pub(crate) fn find(&self, index: u64) -> Option<Found> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get(at)?;
        let pos = LogPos { term: slot.term, index };
        Some(
            match index
                .checked_sub(self.cached_from())
                .and_then(|at| self.cache.get(at as usize))
            {
                Some(payload) => Found::Recent(Entry {
                    pos,
                    payload: payload.clone(),
                }),
                None => Found::OnDisk(index, *slot),
            },
        )
    }

    /// Payload bytes of the entry.
    pub(crate) fn len_of(&self, index: u64) -> Option<usize> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get(at).map(|slot| slot.len as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64, bytes: usize) -> Entry {
        Entry {
            pos: LogPos { term, index },
            payload: vec![index as u8; bytes].into(),
        }
    }

    fn place(offset: u64) -> Place {
        Place {
            segment: SegmentId(1),
            offset,
        }
    }

    fn recent(log: &Log, index: u64) -> bool {
        matches!(log.find(index), Some(Found::Recent(_)))
    }

    #[test]
    fn unwritten_entries_stay_in_memory_whatever_the_budget() {
        let mut log = Log::new(0);
        (0..4).for_each(|i| log.push(entry(1, i, 100)));
        assert!((0..4).all(|i| recent(&log, i)));
        log.locate(0, place(64));
        log.locate(1, place(200));
        log.evict();
        assert!(!recent(&log, 0) && !recent(&log, 1) && recent(&log, 2) && recent(&log, 3));
    }

    #[test]
    fn an_entry_appended_over_a_truncated_one_is_unwritten_again() {
        let mut log = Log::new(0);
        (5..9).for_each(|i| log.push(entry(1, i, 10)));
        (5..9).for_each(|i| log.locate(i, place(i * 64)));
        log.evict();
        log.truncate(Some(6));
        log.push(entry(2, 7, 10));
        log.evict();
        assert!(recent(&log, 7));
        assert_eq!(log.last(), Some(LogPos { term: 2, index: 7 }));
    }

    #[test]
    fn purging_leaves_the_purge_point_as_the_last_position() {
        let mut log = Log::new(1000);
        (0..4).for_each(|i| log.push(entry(1, i, 10)));
        log.purge(LogPos { term: 1, index: 3 });
        assert_eq!((log.first(), log.next()), (4, 4));
        assert_eq!(log.last(), log.purged());
        assert!(Log::follows(log.last(), LogPos { term: 1, index: 4 }));
        assert!(!Log::follows(log.last(), LogPos { term: 0, index: 4 }));
    }

    #[test]
    fn purging_beyond_the_end_empties_the_log() {
        let mut log = Log::new(1000);
        (0..4).for_each(|i| log.push(entry(1, i, 10)));
        log.purge(LogPos { term: 2, index: 20 });
        assert_eq!((log.first(), log.next()), (21, 21));
        assert!(log.find(3).is_none());
    }

    #[test]
    fn truncating_everything_returns_to_the_purge_point() {
        let mut log = Log::new(1000);
        (0..9).for_each(|i| log.push(entry(1, i, 10)));
        log.purge(LogPos { term: 1, index: 3 });
        log.truncate(None);
        assert_eq!(log.last(), Some(LogPos { term: 1, index: 3 }));
        assert_eq!(log.next(), 4);
        let mut log = Log::new(1000);
        (7..9).for_each(|i| log.push(entry(1, i, 10)));
        log.truncate(None);
        assert!(
            Log::follows(log.last(), LogPos { term: 0, index: 0 }),
            "a log without history starts anywhere"
        );
    }

    #[test]
    fn purging_before_a_log_that_starts_later_keeps_its_entries() {
        let mut log = Log::new(1000);
        (2..6).for_each(|i| log.push(entry(1, i, 10)));
        log.purge(LogPos { term: 1, index: 1 });
        assert_eq!((log.first(), log.next()), (2, 6));
        assert!(!log.has_hole());
    }
}
