//! What the index knows of a version without reading its value, and the packed record of a key's versions.

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
    /// Ascending.
    older: Vec<Version>,
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
                older: Vec::new(),
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

    fn older(&self) -> &[Version] {
        self.more.as_ref().map_or(&[], |more| &more.older)
    }

    /// The version or tombstone that stood at revision `at`.
    pub fn at(&self, at: i64) -> Option<Version> {
        if self.main <= at {
            return Some(self.newest());
        }
        let older = self.older();
        let upto = older.partition_point(|version| version.main <= at);
        upto.checked_sub(1).map(|last| older[last])
    }

    /// Ascending, the newest last.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = Version> + '_ {
        self.older().iter().copied().chain(std::iter::once(self.newest()))
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
        more.older.push(last);
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
    /// changed at `floor` itself stays, deletions included, so that a watch can start there. True: nothing is left.
    pub fn compact(&mut self, floor: i64, removed: &mut Vec<RowId>) -> bool {
        let all_below = self.main < floor;
        let older = self.older();
        if older.is_empty() && !(all_below && self.version == 0) {
            return false;
        }
        let below = older.partition_point(|version| version.main < floor);
        // The last one below the floor stands at it, unless it is a tombstone or something was changed at the floor.
        let (last_below, next) = if all_below {
            (Some(self.newest()), None)
        } else {
            let last = below.checked_sub(1).map(|last| older[last]);
            (last, Some(older.get(below).map_or(self.main, |next| next.main)))
        };
        let stands = next != Some(floor) && last_below.is_some_and(|last| !last.is_tombstone());
        let drop = match (all_below, stands) {
            (true, _) => older.len(),
            (false, true) => below - 1,
            (false, false) => below,
        };
        let gone = all_below && !stands;
        if let Some(more) = &mut self.more {
            removed.extend(more.older.drain(..drop).map(|version| version.row()));
            if more.older.is_empty() && more.lease == 0 {
                self.more = None;
            } else if drop > 0 {
                more.older.shrink_to_fit();
            }
        }
        if gone {
            removed.push(RowId {
                main: self.main,
                sub: self.sub,
            });
        }
        gone
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
            prop_assert_eq!(before.versions().collect::<Vec<_>>(), all.clone());
            let stands = all.iter().rev().find(|v| v.main <= floor).filter(|v| !v.is_tombstone());
            let want: Vec<Version> = all.iter().filter(|v| v.main >= floor || Some(*v) == stands).copied().collect();
            let mut removed = Vec::new();
            let gone = record.compact(floor, &mut removed);
            prop_assert_eq!(gone, want.is_empty());
            if !gone {
                prop_assert_eq!(record.versions().collect::<Vec<_>>(), want.clone());
                for at in floor..main + 2 {
                    let live = |r: &Record| r.at(at).and_then(Version::live);
                    prop_assert_eq!(live(&record), live(&before));
                }
            }
            prop_assert_eq!(removed.len() + want.len(), all.len());
        }
    }
}
