//! Where each key has been: an ordered map from key to its versions, in memory, without values.
//!
//! ```text
//! lowest key ─► Leaf: up to 64 keys packed end to end, with a 40-byte record each
//!               record: newest version inline ─► older versions and lease, if there are any
//! ```
//!
//! Everything that may touch many keys works in slices: it visits a bounded number and says where to go on, so that
//! whoever holds the lock can let others in between. Since versions are only ever added on top, and compaction stays
//! below every open read, a scan at one revision sees the same state however long it takes.

use std::collections::BTreeMap;
use std::ops::Bound;

use quorate_api::{KeyRange, RangeEnd};

use super::leaf::{self, Leaf};
use super::version::{Compacted, Record, Version};
use crate::backend::RowId;

/// Where the next slice starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    Start,
    After(Box<[u8]>),
}

/// A put, as far as the index is concerned.
#[derive(Clone, Copy, Debug)]
pub struct NewVersion {
    pub id: RowId,
    pub value_len: u32,
    /// `None` keeps the lease that the key has.
    pub lease: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct Index {
    /// By a bound that no key of the leaf is below; the first one's is the empty key.
    leaves: BTreeMap<Box<[u8]>, Leaf>,
    keys: usize,
    live: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            leaves: BTreeMap::from([(Box::default(), Leaf::default())]),
            keys: 0,
            live: 0,
        }
    }
}

impl Index {
    /// Keys that exist at the newest revision.
    pub fn live_keys(&self) -> usize {
        self.live
    }

    /// Keys with any version at all, deleted ones included.
    pub fn keys(&self) -> usize {
        self.keys
    }

    fn record(&self, key: &[u8]) -> Option<&Record> {
        let (_, leaf) = self.leaf_of(key)?;
        leaf.find(key).map(|at| leaf.record(at))
    }

    fn leaf_of(&self, key: &[u8]) -> Option<(&[u8], &Leaf)> {
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.leaves
            .range::<[u8], _>(upto)
            .next_back()
            .map(|(bound, leaf)| (&**bound, leaf))
    }

    fn leaf_of_mut(&mut self, key: &[u8]) -> &mut Leaf {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let found = self.leaves.range_mut::<[u8], _>(upto).next_back();
        found
            .map(|(_, leaf)| leaf)
            .expect("the first leaf's bound is the empty key, and that leaf is never removed")
    }

    /// The pair that stood at revision `at`, if the key existed then.
    pub fn get(&self, key: &[u8], at: i64) -> Option<Version> {
        self.record(key)?.at(at)?.live()
    }

    /// The newest pair, if the key exists.
    pub fn newest(&self, key: &[u8]) -> Option<Version> {
        self.record(key)?.newest().live()
    }

    /// Versions of a key that are still known, from revision `from` on, ascending.
    pub fn versions_from(&self, key: &[u8], from: i64) -> impl Iterator<Item = Version> + '_ {
        let record = self.record(key).into_iter();
        record.flat_map(move |record| record.versions_from(from))
    }

    /// The pair that the transaction of revision `main` put there.
    pub fn written(&self, key: &[u8], main: i64) -> Option<Version> {
        self.record(key)?.written(main)
    }

    /// The newest live version of every key that has one.
    pub fn each_newest(&self, mut each: impl FnMut(&[u8], Version)) {
        for leaf in self.leaves.values() {
            for at in 0..leaf.len() {
                if let Some(newest) = leaf.record(at).newest().live() {
                    each(leaf.key(at), newest);
                }
            }
        }
    }

    /// What stood before the transaction of `revision`: for a watcher, that is what a change in it replaced, even where
    /// the transaction wrote the key more than once. Nothing if the key did not exist, or if that version is compacted.
    pub fn before_revision(&self, key: &[u8], revision: i64) -> Option<Version> {
        self.get(key, revision.saturating_sub(1))
    }

    /// Writes a key. Returns the new version and the one that it replaced.
    pub fn put(&mut self, key: &[u8], new: NewVersion) -> (Version, Option<Version>) {
        let leaf = self.leaf_of_mut(key);
        let found = leaf.find(key);
        let old = found.and_then(|at| leaf.record(at).newest().live());
        let version = Version {
            main: new.id.main,
            sub: new.id.sub,
            value_len: new.value_len,
            create: old.map_or(new.id.main, |old| old.create),
            version: old.map_or(1, |old| old.version.saturating_add(1)),
            lease: new.lease.unwrap_or_else(|| old.map_or(0, |old| old.lease)),
        };
        match found {
            Some(at) => leaf.record_mut(at).push(version),
            None => self.insert(key, version),
        }
        self.live += usize::from(old.is_none());
        (version, old)
    }

    /// A key that is not there.
    fn insert(&mut self, key: &[u8], version: Version) {
        let leaf = self.leaf_of_mut(key);
        let at = leaf.lower_bound(key);
        leaf.insert(at, key, Record::new(version));
        if let Some(right) = leaf.split(at) {
            self.leaves.insert(right.key(0).into(), right);
        }
        self.keys += 1;
    }

    /// Takes in a version that was stored before, in ascending order of rows: how the index comes back at a start.
    pub fn restore(&mut self, key: &[u8], version: Version) {
        let leaf = self.leaf_of_mut(key);
        let found = leaf.find(key);
        let lived = found.is_some_and(|at| !leaf.record(at).newest().is_tombstone());
        match found {
            Some(at) => leaf.record_mut(at).push(version),
            None => self.insert(key, version),
        }
        self.live = self.live + usize::from(!version.is_tombstone()) - usize::from(lived);
    }

    /// Deletes what exists of `range`, at most `visits` keys looked at. Each deletion gets the next sub-revision
    /// from `id`. Returns where to go on, if anything is left.
    pub fn delete(
        &mut self,
        range: &KeyRange,
        from: &Resume,
        id: &mut RowId,
        visits: usize,
        mut deleted: impl FnMut(&[u8], Version, RowId),
    ) -> Option<Resume> {
        let start = start_of(range, from);
        let first: Box<[u8]> = self.leaf_of(start)?.0.into();
        let mut left = visits;
        for (_, leaf) in self
            .leaves
            .range_mut::<[u8], _>((Bound::Included(&*first), Bound::Unbounded))
        {
            let (begin, end) = span(leaf, range, from, start);
            let stop = end.min(begin.saturating_add(left));
            for at in begin..stop {
                let Some(old) = leaf.record(at).newest().live() else {
                    continue;
                };
                leaf.record_mut(at).push(Version::tombstone(*id));
                deleted(leaf.key(at), old, *id);
                id.sub += 1;
                self.live -= 1;
            }
            left -= stop.saturating_sub(begin);
            if end < leaf.len() && stop == end {
                return None;
            }
            if left == 0 && stop > 0 {
                return Some(Resume::After(leaf.key(stop - 1).into()));
            }
        }
        None
    }

    /// Shows the pairs of `range` that existed at revision `at`, in byte order, at most `visits` keys looked at;
    /// `each` may end it. Returns where to go on, if anything may be left.
    pub fn scan(
        &self,
        range: &KeyRange,
        from: &Resume,
        at_revision: i64,
        visits: usize,
        mut each: impl FnMut(&[u8], Version) -> bool,
    ) -> Option<Resume> {
        let start = start_of(range, from);
        let (first, _) = self.leaf_of(start)?;
        let mut left = visits;
        for (_, leaf) in self.leaves.range::<[u8], _>((Bound::Included(first), Bound::Unbounded)) {
            let (begin, end) = span(leaf, range, from, start);
            let stop = end.min(begin.saturating_add(left));
            for at in begin..stop {
                if let Some(version) = leaf.record(at).at(at_revision).and_then(Version::live)
                    && !each(leaf.key(at), version)
                {
                    return Some(Resume::After(leaf.key(at).into()));
                }
            }
            left -= stop.saturating_sub(begin);
            if end < leaf.len() && stop == end {
                return None;
            }
            if left == 0 && stop > 0 {
                return Some(Resume::After(leaf.key(stop - 1).into()));
            }
        }
        None
    }

    /// Drops history below `floor` (see [`Record::compact`]) in at least one leaf and about `visits` keys, and at most
    /// as many versions: all of them may be of one key. Returns where to go on; `Start` is for the first slice.
    pub fn compact(&mut self, from: &Resume, floor: i64, visits: usize, removed: &mut Vec<RowId>) -> Option<Resume> {
        let mut here: Box<[u8]> = match from {
            Resume::Start => Box::default(),
            Resume::After(bound) => self.leaf_of(bound)?.0.into(),
        };
        let mut left = visits;
        let full = removed.len().saturating_add(visits.max(1));
        let mut before: Option<Box<[u8]>> = None;
        loop {
            let leaf = self.leaves.get_mut(&here)?;
            left = left.saturating_sub(leaf.len());
            let (mut gone, mut unfinished) = (0, false);
            leaf.retain(|record| {
                let end = record.compact(floor, full - removed.len(), removed);
                gone += usize::from(end == Compacted::Gone);
                unfinished |= end == Compacted::Unfinished;
                end != Compacted::Gone
            });
            let length = leaf.len();
            self.keys -= gone;
            if unfinished {
                // The same leaf again, where its keys then are: what is done in it costs a look at each record.
                return Some(Resume::After(here));
            }
            if length == 0 && !here.is_empty() {
                self.leaves.remove(&here);
            } else if let Some(before) = &before
                && length <= leaf::RECORDS_MAX / 4
            {
                self.merge(before, &here);
            }
            let after = (Bound::Excluded(&*here), Bound::Unbounded);
            let next: Box<[u8]> = self.leaves.range::<[u8], _>(after).next()?.0.clone();
            if left == 0 {
                return Some(Resume::After(next));
            }
            if self.leaves.contains_key(&here) {
                before = Some(here);
            }
            here = next;
        }
    }

    /// Mass deletions leave leaves nearly empty; compaction moves neighbours together as it passes.
    fn merge(&mut self, before: &[u8], here: &[u8]) {
        let Some((bound, mut leaf)) = self.leaves.remove_entry(here) else {
            return;
        };
        let absorbed = self
            .leaves
            .get_mut(before)
            .is_some_and(|previous| previous.absorb(&mut leaf));
        if !absorbed {
            self.leaves.insert(bound, leaf);
        }
    }

    /// Bytes on the heap, without the map of leaves' own slack.
    pub fn heap_bytes(&self) -> usize {
        let fixed = size_of::<Box<[u8]>>() + size_of::<Leaf>();
        let leaves = self.leaves.iter();
        leaves
            .map(|(bound, leaf)| fixed + bound.len() + leaf.heap_bytes())
            .sum()
    }

    /// Everything it knows, for comparisons.
    #[cfg(test)]
    pub fn dump(&self) -> Vec<(Vec<u8>, Vec<Version>)> {
        let mut all = Vec::new();
        for leaf in self.leaves.values() {
            for at in 0..leaf.len() {
                all.push((leaf.key(at).to_vec(), leaf.record(at).versions_from(i64::MIN).collect()));
            }
        }
        all
    }
}

fn start_of<'a>(range: &'a KeyRange, from: &'a Resume) -> &'a [u8] {
    match from {
        Resume::Start => &range.start,
        Resume::After(key) => key,
    }
}

/// Which positions of the leaf are in the range and still to be visited.
fn span(leaf: &Leaf, range: &KeyRange, from: &Resume, start: &[u8]) -> (usize, usize) {
    let begin = match (leaf.search(start), from) {
        (Ok(at), Resume::After(_)) => at + 1,
        (Ok(at) | Err(at), _) => at,
    };
    let end = match &range.end {
        RangeEnd::Infinity => leaf.len(),
        RangeEnd::Single if range.contains(start) && *from == Resume::Start => match leaf.search(start) {
            Ok(at) => at + 1,
            Err(at) => at,
        },
        RangeEnd::Single => begin,
        RangeEnd::Before(end) => leaf.lower_bound(end).max(begin),
    };
    (begin, end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn put(index: &mut Index, key: &[u8], main: i64) -> (Version, Option<Version>) {
        let new = NewVersion {
            id: RowId { main, sub: 0 },
            value_len: 1,
            lease: Some(0),
        };
        index.put(key, new)
    }

    fn all_at(index: &Index, range: &KeyRange, at: i64, visits: usize) -> Vec<(Vec<u8>, i64)> {
        let mut found = Vec::new();
        let mut from = Resume::Start;
        loop {
            let next = index.scan(range, &from, at, visits, |key, version| {
                found.push((key.to_vec(), version.main));
                true
            });
            match next {
                Some(next) => from = next,
                None => return found,
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u16),
        Delete(u16, u16),
        Compact(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..900u16).prop_map(Step::Put),
            1 => (0..900u16, 0..900u16).prop_map(|(a, b)| Step::Delete(a, b)),
            1 => any::<u8>().prop_map(Step::Compact),
        ];
        prop::collection::vec(step, 1..600)
    }

    fn key(number: u16) -> Vec<u8> {
        format!("k{number:05}").into_bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// B18: and what is rebuilt from stored rows is the same index.
        #[test]
        fn it_is_a_map_of_all_versions(steps in steps(), visits in 1..100usize) {
            let mut index = Index::default();
            let mut model: BTreeMap<Vec<u8>, Vec<(i64, bool)>> = BTreeMap::new();
            let mut floor = 0;
            let mut stored: BTreeMap<RowId, (Vec<u8>, Version)> = BTreeMap::new();
            let mut main = 1;
            for step in steps {
                main += 1;
                match step {
                    Step::Put(number) => {
                        let (new, _) = put(&mut index, &key(number), main);
                        stored.insert(new.row(), (key(number), new));
                        model.entry(key(number)).or_default().push((main, true));
                    }
                    Step::Delete(from, to) => {
                        let range = KeyRange::new(Bytes::from(key(from)), Bytes::from(key(to)));
                        let mut id = RowId { main, sub: 0 };
                        let mut from = Resume::Start;
                        loop {
                            let next = index.delete(&range, &from, &mut id, visits, |key, _, id| {
                                stored.insert(id, (key.to_vec(), Version::tombstone(id)));
                            });
                            match next {
                                Some(next) => from = next,
                                None => break,
                            }
                        }
                        for (key, versions) in &mut model {
                            if range.contains(key) && versions.last().is_some_and(|last| last.1) {
                                versions.push((main, false));
                            }
                        }
                    }
                    Step::Compact(part) => {
                        floor = floor.max(main * i64::from(part) / 256);
                        let mut removed = Vec::new();
                        let mut from = Resume::Start;
                        loop {
                            let before = removed.len();
                            let next = index.compact(&from, floor, visits, &mut removed);
                            prop_assert!(removed.len() - before <= visits);
                            match next {
                                Some(next) => from = next,
                                None => break,
                            }
                        }
                        removed.iter().for_each(|id| assert!(stored.remove(id).is_some(), "removed once"));
                    }
                }
            }
            for at in [floor, (floor + main) / 2, main] {
                let want: Vec<(Vec<u8>, i64)> = model
                    .iter()
                    .filter_map(|(key, versions)| {
                        let last = versions.iter().rev().find(|(main, _)| *main <= at)?;
                        last.1.then(|| (key.clone(), last.0))
                    })
                    .collect();
                prop_assert_eq!(all_at(&index, &KeyRange::all(), at, visits), want.clone());
                for (key, main) in &want {
                    prop_assert_eq!(index.get(key, at).map(|v| v.main), Some(*main));
                }
                let part = KeyRange::new(Bytes::from(key(200)), Bytes::from(key(500)));
                let inside: Vec<_> = want.into_iter().filter(|(key, _)| part.contains(key)).collect();
                prop_assert_eq!(all_at(&index, &part, at, visits), inside);
            }
            let mut again = Index::default();
            stored.values().for_each(|(key, version)| again.restore(key, *version));
            prop_assert_eq!(again.dump(), index.dump());
            prop_assert_eq!((again.keys(), again.live_keys()), (index.keys(), index.live_keys()));
            prop_assert_eq!(index.live_keys(), all_at(&index, &KeyRange::all(), main, 7).len());
        }
    }

    #[test]
    fn a_single_key_range_is_that_key() {
        let mut index = Index::default();
        for key in ["a", "aa", "b"] {
            put(&mut index, key.as_bytes(), 2);
        }
        let one = KeyRange::single(Bytes::from_static(b"aa"));
        assert_eq!(all_at(&index, &one, 2, 1), [(b"aa".to_vec(), 2)]);
        let none = KeyRange::single(Bytes::from_static(b"ab"));
        assert_eq!(all_at(&index, &none, 2, 1), []);
        let inverted = KeyRange::new(Bytes::from_static(b"b"), Bytes::from_static(b"a"));
        assert_eq!(all_at(&index, &inverted, 2, 1), []);
    }

    /// One key, written over and over. Looked through one by one, these would be tens of billions of versions.
    #[test]
    fn a_hot_key_is_looked_up_as_fast_as_any() {
        const VERSIONS: i64 = 300_000;
        let mut index = Index::default();
        for main in 2..VERSIONS {
            put(&mut index, b"hot", main);
        }
        for main in 3..VERSIONS {
            assert_eq!(index.before_revision(b"hot", main).map(|v| v.main), Some(main - 1));
            assert_eq!(index.written(b"hot", main).map(|v| v.main), Some(main));
            assert_eq!(index.versions_from(b"hot", main).next().map(|v| v.main), Some(main));
        }
    }

    /// B43: one key may have all the versions there are, and what is done of it is not moved about for each slice.
    #[test]
    fn a_hot_key_is_compacted_in_slices() {
        const VERSIONS: i64 = 300_000;
        let mut index = Index::default();
        for main in 2..VERSIONS {
            put(&mut index, b"hot", main);
        }
        put(&mut index, b"other", VERSIONS);
        let mut from = Resume::Start;
        let mut slices = 0;
        let mut all = 0;
        loop {
            let mut removed = Vec::new();
            let next = index.compact(&from, VERSIONS, 100, &mut removed);
            assert!(removed.len() <= 100);
            (all, slices) = (all + removed.len() as i64, slices + 1);
            let Some(next) = next else { break };
            from = next;
        }
        assert_eq!((all, slices), (VERSIONS - 3, (VERSIONS - 3 + 99) / 100));
        assert_eq!(index.versions_from(b"hot", 0).count(), 1);
    }

    /// The aim is the key's own bytes and 64 more.
    #[test]
    fn a_key_costs_its_bytes_and_little_more() {
        for scatter in [1u64, 0x9e37_79b9_7f4a_7c15] {
            let mut index = Index::default();
            const KEYS: u64 = 100_000;
            for number in 0..KEYS {
                let key = format!("/registry/{:054}", number.wrapping_mul(scatter));
                assert_eq!(key.len(), 64);
                put(&mut index, key.as_bytes(), 2 + number as i64);
            }
            let each = index.heap_bytes() / KEYS as usize;
            assert!(each <= 64 + 64, "{each} bytes a key, multiplier {scatter}");
        }
    }
}
