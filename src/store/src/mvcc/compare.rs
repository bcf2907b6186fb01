//! The guards of a transaction.

use std::cmp::Ordering;

use bytes::Bytes;
use quorate_api::KeyRange;
use quorate_api::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_api::proto::etcdserverpb::{self as pb};

use super::index::{Index, Resume};
use super::version::Version;
use crate::error::Error;

/// Keys whose values are compared at a time, where the values are read under a lock.
pub const VALUES_SLICE: usize = 64;

/// One compare under way: it holds for every key of its range, in slices if there are many. [`Judge::step`] looks at
/// the index, and [`Judge::verdict`] at values, which may have to come from the file: no lock is needed for it.
pub struct Judge<'c> {
    compare: &'c pb::Compare,
    range: KeyRange,
    from: Resume,
    seen: bool,
    refuted: bool,
    /// The index has been looked through.
    all: bool,
    /// Versions whose value is still to be compared.
    unread: Vec<Version>,
}

impl<'c> Judge<'c> {
    pub fn new(compare: &'c pb::Compare) -> Self {
        Self {
            compare,
            range: KeyRange::new(compare.key.clone(), compare.range_end.clone()),
            from: Resume::Start,
            seen: false,
            refuted: false,
            all: false,
            unread: Vec::new(),
        }
    }

    pub fn reads_values(&self) -> bool {
        CompareTarget::try_from(self.compare.target) == Ok(CompareTarget::Value)
    }

    /// Looks at `visits` more keys, as they stood at revision `at`.
    pub fn step(&mut self, index: &Index, at: i64, visits: usize) {
        let reads_values = self.reads_values();
        let Self {
            compare,
            range,
            from,
            seen,
            refuted,
            all,
            unread,
        } = self;
        let mut look = |version: Version| {
            *seen = true;
            if reads_values {
                unread.push(version);
            } else {
                *refuted = !holds(compare, version);
            }
            !*refuted
        };
        let next = if range.is_single() {
            index.get(&range.start, at).map(&mut look);
            None
        } else {
            index.scan(range, from, at, visits, |_, version| look(version))
        };
        match next {
            Some(next) => *from = next,
            None => *all = true,
        }
    }

    /// After a step: the verdict, or nothing when there is more to look at.
    pub fn verdict(&mut self, mut value: impl FnMut(Version) -> Result<Bytes, Error>) -> Result<Option<bool>, Error> {
        for version in self.unread.drain(..) {
            let order = (*value(version)?).cmp(given_value(self.compare));
            if !satisfies(self.compare, order) {
                self.refuted = true;
                break;
            }
        }
        if self.refuted {
            return Ok(Some(false));
        }
        Ok(self.all.then(|| self.seen || holds_for_nothing(self.compare)))
    }
}

fn holds(compare: &pb::Compare, version: Version) -> bool {
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => version.version.cmp(&given_number(compare)),
        Ok(CompareTarget::Create) => version.create.cmp(&given_number(compare)),
        Ok(CompareTarget::Mod) => version.main.cmp(&given_number(compare)),
        Ok(CompareTarget::Lease) => version.lease.cmp(&given_number(compare)),
        // A value is compared when it has been read. A target that nobody knows: odd, but what every client of etcd
        // gets.
        Ok(CompareTarget::Value) | Err(_) => Ordering::Equal,
    };
    satisfies(compare, order)
}

/// A key that does not exist has zeros for attributes, and a value that compares to nothing.
fn holds_for_nothing(compare: &pb::Compare) -> bool {
    match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => false,
        Ok(_) => satisfies(compare, 0.cmp(&given_number(compare))),
        Err(_) => satisfies(compare, Ordering::Equal),
    }
}

fn satisfies(compare: &pb::Compare, order: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

fn given_value(compare: &pb::Compare) -> &[u8] {
    match &compare.target_union {
        Some(TargetUnion::Value(given)) => given,
        _ => b"",
    }
}

/// What the client compares with; 0 when it filled in another attribute than the one it named.
fn given_number(compare: &pb::Compare) -> i64 {
    match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(given)))
        | (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(given)))
        | (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(given)))
        | (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(given))) => *given,
        _ => 0,
    }
}
