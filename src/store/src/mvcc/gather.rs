//! Shaping a range: which of its pairs are answered, in which order. Works in slices over the index, on what the
//! index knows; values are read for a sort by value only, and otherwise when the answer is written.
//!
//! In key order, an answer that grows large is not held: it is counted and sized, and read again while it is sent.
//! A sort has to hold its candidates (keys, no values), at most twice its limit.

use std::cmp::Ordering;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::RangeRequest;
use quorate_api::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::{Error as Answer, KeyRange};

use super::index::{Index, Resume};
use super::pair;
use super::version::Version;
use crate::error::Error;
use crate::validate;

/// Pairs that a key-ordered answer may hold, and bytes of their keys, before it is read twice instead.
const HOLD_PAIRS_MAX: usize = 1000;
const HOLD_KEY_BYTES_MAX: usize = 256 << 10;
/// Candidates of a sort are thinned out when this many have come since the last time, at least.
const THIN_STEP_MIN: usize = 1000;

/// What a range asks for, checked.
#[derive(Clone, Debug)]
pub struct Shape {
    limit: Option<usize>,
    sort: Option<Sort>,
    count_only: bool,
    keys_only: bool,
    hide_lease: bool,
    mod_revisions: (i64, i64),
    create_revisions: (i64, i64),
}

#[derive(Clone, Copy, Debug)]
struct Sort {
    by: SortTarget,
    descending: bool,
    /// etcd cuts an unordered answer at the limit *before* it sorts by something else than the key.
    cut_first: bool,
}

impl Shape {
    pub fn of(request: &RangeRequest) -> Result<Self, Answer> {
        let order = SortOrder::try_from(request.sort_order).map_err(|_| Answer::InvalidSortOption)?;
        let by = SortTarget::try_from(request.sort_target).map_err(|_| Answer::InvalidSortOption)?;
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        let filtered = validate::is_filtered(request);
        let sorted = by != SortTarget::Key || order == SortOrder::Descend;
        let sort = Sort {
            by,
            descending: order == SortOrder::Descend,
            cut_first: order == SortOrder::None && !filtered,
        };
        Ok(Self {
            limit,
            sort: sorted.then_some(sort),
            count_only: request.count_only,
            keys_only: request.keys_only,
            hide_lease: request.keys_only && by != SortTarget::Value,
            mod_revisions: (request.min_mod_revision, request.max_mod_revision),
            create_revisions: (request.min_create_revision, request.max_create_revision),
        })
    }

    pub fn keys_only(&self) -> bool {
        self.keys_only
    }

    pub fn admits(&self, version: &Version) -> bool {
        let within = |number: i64, (min, max): (i64, i64)| (min == 0 || number >= min) && (max == 0 || number <= max);
        within(version.main, self.mod_revisions) && within(version.create, self.create_revisions)
    }

    /// The version as the answer shows it.
    pub fn shown(&self, mut version: Version) -> Version {
        if self.keys_only {
            version.value_len = 0;
        }
        if self.hide_lease {
            version.lease = 0;
        }
        version
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }
}

/// One pair of an answer, its key in [`Items`].
#[derive(Clone, Debug)]
pub struct Item {
    start: usize,
    len: usize,
    pub version: Version,
    /// Filled for a sort by value.
    value: Bytes,
}

/// Pairs with their keys end to end.
#[derive(Clone, Debug, Default)]
pub struct Items {
    keys: Vec<u8>,
    pub list: Vec<Item>,
    value_bytes: usize,
}

impl Items {
    pub fn push(&mut self, key: &[u8], version: Version) {
        self.list.push(Item {
            start: self.keys.len(),
            len: key.len(),
            version,
            value: Bytes::new(),
        });
        self.keys.extend_from_slice(key);
    }

    pub fn key(&self, item: &Item) -> &[u8] {
        &self.keys[item.start..item.start + item.len]
    }

    pub fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    pub fn memory(&self) -> usize {
        self.keys.capacity() + self.list.capacity() * size_of::<Item>() + self.value_bytes
    }

    /// Keys of dropped items go too.
    fn repack(&mut self) {
        let mut keys = Vec::with_capacity(self.list.iter().map(|item| item.len).sum());
        for item in &mut self.list {
            let start = keys.len();
            keys.extend_from_slice(&self.keys[item.start..item.start + item.len]);
            item.start = start;
        }
        self.keys = keys;
        self.value_bytes = self.list.iter().map(|item| item.value.len()).sum();
    }
}

/// A range under way.
pub struct Gather {
    pub shape: Shape,
    pub range: KeyRange,
    pub at: i64,
    from: Resume,
    may_spill: bool,
    /// Key-ordered and too large to hold: `items` stays empty.
    pub spilled: bool,
    pub items: Items,
    /// Items before this one have been settled.
    valued: usize,
    /// Keys in the range.
    pub count: i64,
    /// Those that pass the filters.
    admitted: usize,
    /// Bytes of the answer's `kvs`.
    pub encoded_len: usize,
}

impl Gather {
    /// `may_spill`: whoever takes the answer can read large ones again.
    pub fn new(request: &RangeRequest, at: i64, may_spill: bool) -> Result<Self, Answer> {
        let mut shape = Shape::of(request)?;
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        if range.is_single() {
            // One is always in order.
            shape.sort = None;
        }
        Ok(Self {
            shape,
            range,
            at,
            from: Resume::Start,
            may_spill,
            spilled: false,
            items: Items::default(),
            valued: 0,
            count: 0,
            admitted: 0,
            encoded_len: 0,
        })
    }

    /// Looks at `visits` more keys. True when that was all.
    pub fn step(&mut self, index: &Index, visits: usize) -> bool {
        if self.range.is_single() {
            let key = self.range.start.clone();
            if let Some(version) = index.get(&key, self.at) {
                self.take(&key, version);
            }
            return true;
        }
        let range = self.range.clone();
        let from = std::mem::replace(&mut self.from, Resume::Start);
        let next = index.scan(&range, &from, self.at, visits, |key, version| {
            self.take(key, version);
            true
        });
        match next {
            Some(next) => self.from = next,
            None => return true,
        }
        false
    }

    fn take(&mut self, key: &[u8], version: Version) {
        self.count += 1;
        if self.shape.count_only || !self.shape.admits(&version) {
            return;
        }
        self.admitted += 1;
        if let Some(sort) = self.shape.sort {
            if !sort.cut_first || self.admitted <= self.shape.limit().saturating_add(1) {
                self.items.push(key, version);
            }
            return;
        }
        if self.admitted > self.shape.limit() {
            return;
        }
        self.encoded_len += pair::kvs_len(key.len(), &self.shape.shown(version));
        if self.spilled {
            return;
        }
        self.items.push(key, version);
        let large = self.items.list.len() > HOLD_PAIRS_MAX || self.items.key_bytes() > HOLD_KEY_BYTES_MAX;
        if large && self.may_spill {
            self.spilled = true;
            self.items = Items::default();
        }
    }

    /// True when [`Gather::settle`] has something to do after each slice.
    pub fn wants_settling(&self) -> bool {
        self.shape.sort.is_some()
    }

    /// After each slice: values for a sort by value, and candidates that have no chance any more are let go of.
    pub fn settle(
        &mut self,
        value: &mut dyn FnMut(Version) -> Result<Bytes, Error>,
        budget: usize,
    ) -> Result<(), Error> {
        let Some(sort) = self.shape.sort else { return Ok(()) };
        let over = Error::Memory { budget };
        while sort.by == SortTarget::Value && self.valued < self.items.list.len() {
            let item = &mut self.items.list[self.valued];
            item.value = value(item.version)?;
            self.items.value_bytes += item.value.len();
            self.valued += 1;
            // Values may be large: looked at with each of them, not once a slice.
            if self.items.memory() > budget {
                // Worth an ordering only if a good part goes.
                let limit = self
                    .shape
                    .limit
                    .filter(|limit| !sort.cut_first && self.valued > limit.saturating_add(limit / 8));
                match limit {
                    Some(limit) => self.thin(sort, limit),
                    None => return Err(over),
                }
                if self.items.memory() > budget {
                    return Err(over);
                }
            }
        }
        self.valued = self.items.list.len();
        if let Some(limit) = self.shape.limit
            && !sort.cut_first
            && self.items.list.len() >= limit.saturating_add(limit.max(THIN_STEP_MIN))
        {
            self.thin(sort, limit);
        }
        if self.items.memory() > budget {
            return Err(over);
        }
        Ok(())
    }

    /// Of what was settled, keeps the best `limit`.
    fn thin(&mut self, sort: Sort, limit: usize) {
        let mut list = std::mem::take(&mut self.items.list);
        list[..self.valued].select_nth_unstable_by(limit, |a, b| self.order(sort, a, b));
        list.drain(limit..self.valued);
        self.items.list = list;
        self.items.repack();
        self.valued = limit;
    }

    /// Ties go by key, so that every member answers alike.
    fn order(&self, sort: Sort, a: &Item, b: &Item) -> Ordering {
        let by_key = || self.items.key(a).cmp(self.items.key(b));
        let by_target = match sort.by {
            SortTarget::Key => by_key(),
            SortTarget::Version => a.version.version.cmp(&b.version.version),
            SortTarget::Create => a.version.create.cmp(&b.version.create),
            SortTarget::Mod => a.version.main.cmp(&b.version.main),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        let by_target = if sort.descending {
            by_target.reverse()
        } else {
            by_target
        };
        by_target.then_with(by_key)
    }

    /// After the last slice and its settling: puts the result in order and cuts it to the limit.
    pub fn finish(&mut self) {
        let Some(sort) = self.shape.sort else { return };
        let mut list = std::mem::take(&mut self.items.list);
        list.sort_unstable_by(|a, b| self.order(sort, a, b));
        list.truncate(self.shape.limit());
        list.iter_mut().for_each(|item| item.value = Bytes::new());
        self.encoded_len = list
            .iter()
            .map(|item| pair::kvs_len(item.len, &self.shape.shown(item.version)))
            .sum();
        list.shrink_to_fit();
        self.items.list = list;
        self.items.repack();
    }

    /// Whoever writes the answer will read the index or values for it.
    pub fn reads_on(&self) -> bool {
        self.spilled || (!self.shape.keys_only && self.len_answered() > 0)
    }

    /// Pairs that will be answered.
    pub fn len_answered(&self) -> usize {
        self.admitted.min(self.shape.limit())
    }

    /// The limit cut something off.
    pub fn more(&self) -> bool {
        self.admitted > self.shape.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::NewVersion;
    use super::*;
    use crate::backend::RowId;

    /// E2: a value too many is one value, not a slice of them.
    #[test]
    fn a_sort_by_value_stops_at_its_budget() {
        const VALUE: usize = 100 << 10;
        const BUDGET: usize = 1 << 20;
        let mut index = Index::default();
        for main in 0..1000 {
            let new = NewVersion {
                id: RowId { main, sub: 0 },
                value_len: VALUE as u32,
                lease: None,
            };
            index.put(format!("{main:04}").as_bytes(), new);
        }
        let sort = |limit| {
            let request = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                sort_order: SortOrder::Descend as i32,
                sort_target: SortTarget::Value as i32,
                limit,
                ..Default::default()
            };
            let mut gather = Gather::new(&request, 1000, true).unwrap();
            assert!(gather.step(&index, 1001));
            let mut loaded = 0;
            let mut value = |version: Version| {
                loaded += VALUE;
                Ok(Bytes::from(vec![(version.main % 251) as u8; VALUE]))
            };
            let settled = gather.settle(&mut value, BUDGET);
            let first = settled.map(|()| {
                gather.finish();
                let list = &gather.items.list;
                list.iter().map(|item| item.version.main % 251).collect::<Vec<_>>()
            });
            (first, loaded)
        };
        let (all, loaded) = sort(0);
        assert!(matches!(all, Err(Error::Memory { budget: BUDGET })));
        assert!(loaded <= BUDGET + VALUE, "{loaded} bytes loaded");
        let (too_many, _) = sort(20);
        assert!(matches!(too_many, Err(Error::Memory { .. })));
        // Those that can't be among the first make room.
        let (first, loaded) = sort(3);
        assert_eq!((first.unwrap(), loaded), (vec![250; 3], 1000 * VALUE));
    }
}
