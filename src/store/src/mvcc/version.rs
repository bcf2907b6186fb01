//! What the index knows of a version without reading its value, and the packed record of a key's versions.

use std::collections::VecDeque;

use crate::backend::{MetaRow, RowId};

/// One version of a key, or the tombstone that ends a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Revision of the change, and its place within the transaction.
    pub main: i64,
    pub sub: u32,
    pub value_len: u32,
    /// Revision that created the generation; of no meaning for a tombstone.
    pub create: i64,
    /// Writes since the creation; 0 for a tombstone.
    pub version: i64,
    /// 0: none.
    pub lease: i64,
}

impl Version {
    pub fn tombstone(id: RowId) -> Self {
        Self {
            main: id.main,
            sub: id.sub,
            value_len: 0,
            create: 0,
            version: 0,
            lease: 0,
        }
    }

    /// As it was stored.
    pub fn of(row: &MetaRow<'_>) -> Self {
        if row.tombstone {
            return Self::tombstone(row.id);
        }
        Self {
            main: row.id.main,
            sub: row.id.sub,
            // Values come in requests of far less than 4 GiB.
            value_len: u32::try_from(row.value_len).unwrap_or(u32::MAX),
            create: row.create,
            version: row.version,
            lease: row.lease,
        }
    }

    pub fn row(&self) -> RowId {
        RowId {
            main: self.main,
            sub: self.sub,
        }
    }

    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Nothing, if this ends a generation.
    pub fn live(self) -> Option<Self> {
        (!self.is_tombstone()).then_some(self)
    }
}

/// All versions of one key. The newest is inline; most keys have no other and no lease, and so no [`More`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    main: i64,
    create: i64,
    version: i64,
    more: Option<Box<More>>,
    sub: u32,
    value_len: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More {
    /// Of the newest version.
    lease: i64,
    /// Ascending. Compaction takes from the front, a part at a time.
    older: VecDeque<Version>,
}

/// How far compaction came with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compacted {
    Done,
    /// Nothing is left of it.
    Gone,
    /// It may remove no more for now, and has not come to an end.
    Unfinished,
}

impl Record {
    pub fn new(newest: Version) -> Self {
        let Version {
            main,
            sub,
            value_len,
            create,
            version,
            lease,
        } = newest;
        let more = (lease != 0).then(|| {
            Box::new(More {
                lease,
                older: VecDeque::new(),
            })
        });
        Self {
            main,
            create,
            version,
            more,
            sub,
            value_len,
        }
    }

    pub fn newest(&self) -> Version {
        Version {
            main: self.main,
            sub: self.sub,
            value_len: self.value_len,
            create: self.create,
            version: self.version,
            lease: self.more.as_ref().map_or(0, |more| more.lease),
        }
    }

    /// The version or tombstone that stood at revision `at`.
    pub fn at(&self, at: i64) -> Option<Version> {
        if self.main <= at {
            return Some(self.newest());
        }
        let older = &self.more.as_ref()?.older;
        let upto = older.partition_point(|version| version.main <= at);
        upto.checked_sub(1).map(|last| older[last])
    }

    /// Versions of revision `from` and later, ascending. What is older costs nothing: a key may have a million.
    pub fn versions_from(&self, from: i64) -> impl Iterator<Item = Version> + '_ {
        let older = self.more.iter().flat_map(move |more| {
            let first = more.older.partition_point(|version| version.main < from);
            more.older.range(first..).copied()
        });
        older.chain(Some(self.newest()).filter(|newest| newest.main >= from))
    }

    /// What the transaction of revision `main` left there, as far as it put the key.
    pub fn written(&self, main: i64) -> Option<Version> {
        let own = self.versions_from(main).take_while(|version| version.main == main);
        own.filter_map(Version::live).last()
    }

    /// Puts a newer version on top.
    pub fn push(&mut self, newest: Version) {
        debug_assert!(
            (self.main, self.sub) < (newest.main, newest.sub),
            "versions of a key ascend"
        );
        let last = self.newest();
        let more = self.more.get_or_insert_default();
        if more.older.len() == more.older.capacity() {
            // Doubling from four, as Vec would, costs 160 bytes for the first old version of each key.
            more.older.reserve_exact((more.older.len() / 2).max(1));
        }
        more.older.push_back(last);
        more.lease = newest.lease;
        let Version {
            main,
            sub,
            value_len,
            create,
            version,
            lease: _,
        } = newest;
        (self.main, self.sub, self.value_len) = (main, sub, value_len);
        (self.create, self.version) = (create, version);
    }

    /// Drops what compaction at `floor` takes: everything before it but the version that stands there. What was
    /// changed at `floor` itself stays, deletions included, so that a watch can start there. At most `room` versions
    /// go, the oldest first, so that what is left reads the same at every point.
    pub fn compact(&mut self, floor: i64, room: usize, removed: &mut Vec<RowId>) -> Compacted {
        let all_below = self.main < floor;
        let ends = all_below && self.version == 0;
        let Some(more) = &mut self.more else {
            return if ends { self.end(room, removed) } else { Compacted::Done };
        };
        let older = &mut more.older;
        let drop = if all_below {
            older.len()
        } else {
            let below = older.partition_point(|version| version.main < floor);
            // The last one below the floor stands at it, unless it is a tombstone or something was changed there.
            let next = older.get(below).map_or(self.main, |next| next.main);
            let last = below.checked_sub(1).map(|last| older[last]);
            let stands = next != floor && last.is_some_and(|last| !last.is_tombstone());
            below - usize::from(stands)
        };
        let now = drop.min(room);
        removed.extend(older.drain(..now).map(|version| version.row()));
        if now < drop {
            return Compacted::Unfinished;
        }
        if older.is_empty() && more.lease == 0 {
            self.more = None;
        } else if drop > 0 {
            older.shrink_to_fit();
        }
        if ends {
            self.end(room - now, removed)
        } else {
            Compacted::Done
        }
    }

    /// The tombstone goes too.
    fn end(&mut self, room: usize, removed: &mut Vec<RowId>) -> Compacted {
        if room == 0 {
            return Compacted::Unfinished;
        }
        removed.push(self.newest().row());
        Compacted::Gone
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.more.as_ref().map_or(0, |more| {
            size_of::<More>() + more.older.capacity() * size_of::<Version>()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(main: i64, live: bool) -> Version {
        let mut version = Version::tombstone(RowId { main, sub: 0 });
        (version.create, version.version) = if live { (main, 1) } else { (0, 0) };
        version
    }

    #[test]
    fn a_record_of_one_version_takes_forty_bytes() {
        assert_eq!(size_of::<Record>(), 40);
        assert_eq!(Record::new(version(2, true)).heap_bytes(), 0);
    }

    proptest! {
        /// What can be read at or above the floor is the same before and after; below it nothing is kept for nothing.
        /// B11, B13: what was changed at the floor stays, deletions included.
        #[test]
        fn compaction_keeps_what_stands_at_the_floor(
            changes in prop::collection::vec((1..4i64, any::<bool>(), any::<bool>()), 1..12),
            floor in 1..40i64,
            room in 1..4usize,
        ) {
            let mut main = 1;
            let mut all = Vec::new();
            for (step, live, same) in changes {
                if !same || all.is_empty() {
                    main += step;
                }
                let mut one = version(main, live);
                one.sub = all.len() as u32;
                all.push(one);
            }
            let mut record = Record::new(all[0]);
            all[1..].iter().for_each(|one| record.push(*one));
            let before = record.clone();
            prop_assert_eq!(before.versions_from(0).collect::<Vec<_>>(), all.clone());
            for at in 0..main + 2 {
                let from: Vec<Version> = all.iter().filter(|v| v.main >= at).copied().collect();
                prop_assert_eq!(before.versions_from(at).collect::<Vec<_>>(), from);
                let written = all.iter().rev().find(|v| v.main == at && !v.is_tombstone());
                prop_assert_eq!(before.written(at), written.copied());
            }
            let stands = all.iter().rev().find(|v| v.main <= floor).filter(|v| !v.is_tombstone());
            let want: Vec<Version> = all.iter().filter(|v| v.main >= floor || Some(*v) == stands).copied().collect();
            let mut removed = Vec::new();
            let mut end = Compacted::Unfinished;
            while end == Compacted::Unfinished {
                let before_slice = removed.len();
                end = record.compact(floor, room, &mut removed);
                prop_assert!(removed.len() - before_slice <= room);
                if end == Compacted::Unfinished {
                    prop_assert_eq!(removed.len() - before_slice, room, "no slice for nothing");
                }
                for at in floor..main + 2 {
                    let live = |r: &Record| r.at(at).and_then(Version::live);
                    prop_assert_eq!(live(&record), live(&before));
                }
            }
            prop_assert_eq!(end == Compacted::Gone, want.is_empty());
            if end == Compacted::Done {
                prop_assert_eq!(record.versions_from(0).collect::<Vec<_>>(), want.clone());
            }
            prop_assert_eq!(removed.len() + want.len(), all.len());
            let all: Vec<RowId> = all.iter().map(Version::row).filter(|row| !want.iter().any(|v| v.row() == *row)).collect();
            prop_assert_eq!(removed, all);
        }
    }
}
