//! The guards of a transaction.

use std::cmp::Ordering;

use bytes::Bytes;
use quorate_api::KeyRange;
use quorate_api::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_api::proto::etcdserverpb::{self as pb};

use super::index::{Index, Resume};
use super::version::Version;
use crate::error::Error;

/// One compare under way: it holds for every key of its range, in slices if there are many.
pub struct Judge<'c> {
    compare: &'c pb::Compare,
    range: KeyRange,
    from: Resume,
    seen: bool,
}

impl<'c> Judge<'c> {
    pub fn new(compare: &'c pb::Compare) -> Self {
        Self {
            compare,
            range: KeyRange::new(compare.key.clone(), compare.range_end.clone()),
            from: Resume::Start,
            seen: false,
        }
    }

    /// The verdict over what stood at revision `at`, or nothing when there is more to look at.
    pub fn step(
        &mut self,
        index: &Index,
        at: i64,
        visits: usize,
        mut value: impl FnMut(Version) -> Result<Bytes, Error>,
    ) -> Result<Option<bool>, Error> {
        let mut verdict = Ok(true);
        let mut look = |version: Version| {
            verdict = holds(self.compare, version, &mut value);
            self.seen = true;
            matches!(verdict, Ok(true))
        };
        let next = if self.range.is_single() {
            index.get(&self.range.start, at).map(&mut look);
            None
        } else {
            index.scan(&self.range, &self.from, at, visits, |_, version| look(version))
        };
        if !verdict? {
            return Ok(Some(false));
        }
        match next {
            Some(next) => {
                self.from = next;
                Ok(None)
            }
            None => Ok(Some(self.seen || holds_for_nothing(self.compare))),
        }
    }
}

fn holds(
    compare: &pb::Compare,
    version: Version,
    value: &mut impl FnMut(Version) -> Result<Bytes, Error>,
) -> Result<bool, Error> {
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let given: &[u8] = match &compare.target_union {
                Some(TargetUnion::Value(given)) => given,
                _ => b"",
            };
            (*value(version)?).cmp(given)
        }
        Ok(CompareTarget::Version) => version.version.cmp(&given_number(compare)),
        Ok(CompareTarget::Create) => version.create.cmp(&given_number(compare)),
        Ok(CompareTarget::Mod) => version.main.cmp(&given_number(compare)),
        Ok(CompareTarget::Lease) => version.lease.cmp(&given_number(compare)),
        // Odd, but it is what every client of etcd gets.
        Err(_) => Ordering::Equal,
    };
    Ok(satisfies(compare, order))
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
