//! What is checked before a request is proposed: pure functions of the request. What passes can be applied; whatever
//! of these checks is skipped, apply still neither fails nor panics.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::{Error, KeyRange, RangeEnd};

use crate::lease::TTL_SECS_MAX;
use crate::mvcc::gather::Shape;

pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    non_empty(&request.key)?;
    Shape::of(request).map(drop)
}

/// Asks for pairs of certain revisions only.
pub fn is_filtered(request: &pb::RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ] != [0; 4]
}

pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    non_empty(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    non_empty(&request.key)
}

/// Keys, options, number of operations and duplicate keys, at every depth.
pub fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Error> {
    txn_ops(request, ops_max)?;
    Touched::of(&request.success)?;
    Touched::of(&request.failure)?;
    Ok(())
}

fn non_empty(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Each level may have as many as the levels above it left over.
fn txn_ops(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Error> {
    let pb::TxnRequest {
        compare,
        success,
        failure,
    } = request;
    let ops = compare.len().max(success.len()).max(failure.len());
    let left = ops_max.checked_sub(ops).ok_or(Error::TooManyOps)?;
    compare.iter().try_for_each(|compare| non_empty(&compare.key))?;
    success.iter().chain(failure).try_for_each(|op| match &op.request {
        Some(Request::RequestRange(op)) => range(op),
        Some(Request::RequestPut(op)) => put(op),
        Some(Request::RequestDeleteRange(op)) => delete_range(op),
        Some(Request::RequestTxn(op)) => txn_ops(op, left),
        None => Err(Error::KeyNotFound),
    })
}

/// Keys that the operations of one branch put, and ranges that they delete.
#[derive(Default)]
struct Touched<'r> {
    puts: HashSet<&'r [u8]>,
    deletes: Ranges,
}

impl<'r> Touched<'r> {
    /// Refuses what etcd refuses, no more: see "duplicate keys" in the tests. Deletes of a level count for all its
    /// puts; those of nested transactions for what comes later.
    fn of(ops: &'r [pb::RequestOp]) -> Result<Self, Error> {
        let mut all = Touched::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                all.deletes.add(&delete.key, &delete.range_end);
            }
        }
        for op in ops {
            let Some(Request::RequestTxn(nested)) = &op.request else {
                continue;
            };
            let then = Touched::of(&nested.success)?;
            let other = Touched::of(&nested.failure)?;
            for key in &then.puts {
                all.put(key)?;
            }
            // One of the two branches runs, so the same key in both is put once.
            for key in other.puts.iter().filter(|key| !then.puts.contains(*key)) {
                all.put(key)?;
            }
            all.deletes.extend(then.deletes);
            all.deletes.extend(other.deletes);
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                all.put(&put.key)?;
            }
        }
        Ok(all)
    }

    fn put(&mut self, key: &'r [u8]) -> Result<(), Error> {
        if self.deletes.contain(key) || !self.puts.insert(key) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// A union of key ranges, kept apart and in order: a request of a megabyte may name a hundred thousand.
#[derive(Default)]
struct Ranges {
    /// Start to exclusive end.
    apart: BTreeMap<Bytes, Bytes>,
}

impl Ranges {
    fn add(&mut self, key: &Bytes, range_end: &Bytes) {
        let range = KeyRange::new(key.clone(), range_end.clone());
        let end = match range.end {
            RangeEnd::Single => [key, &b"\0"[..]].concat().into(),
            RangeEnd::Before(end) => end,
            // etcd does not consider these.
            RangeEnd::Infinity => return,
        };
        if *key < end {
            self.join(key.clone(), end);
        }
    }

    fn join(&mut self, mut start: Bytes, mut end: Bytes) {
        while let Some((other, until)) = self.apart.range(..=end.clone()).next_back() {
            if *until < start {
                break;
            }
            start = start.min(other.clone());
            end = end.max(until.clone());
            let other = other.clone();
            self.apart.remove(&other);
        }
        self.apart.insert(start, end);
    }

    fn extend(&mut self, other: Ranges) {
        for (start, end) in other.apart {
            self.join(start, end);
        }
    }

    fn contain(&self, key: &[u8]) -> bool {
        let upto = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let before = self.apart.range::<[u8], _>(upto).next_back();
        before.is_some_and(|(_, end)| key < end.as_ref())
    }
}

/// Nothing but ranges in either branch: it changes nothing and need not be replicated.
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// A read-only transaction all of whose ranges are serializable, or that has none.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// What a lease grant counts toward the quota.
pub const LEASE_COST: u64 = 64;
const PUT_COST: u64 = 256;

/// What a put counts toward the quota.
pub fn put_cost(request: &pb::PutRequest) -> u64 {
    PUT_COST + request.key.len() as u64 + request.value.len() as u64
}

/// What a transaction counts toward the quota: its dearer branch, nested ones included.
pub fn txn_cost(request: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        let cost = |op: &pb::RequestOp| match &op.request {
            Some(Request::RequestPut(op)) => put_cost(op),
            Some(Request::RequestTxn(op)) => txn_cost(op),
            Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
        };
        ops.iter().map(cost).sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

/// The TTL that a grant gets: what was asked for, but at least the minimum.
pub fn lease_ttl(asked_secs: i64, min_secs: i64) -> Result<i64, Error> {
    if asked_secs > TTL_SECS_MAX {
        return Err(Error::LeaseTtlTooLarge);
    }
    Ok(asked_secs.max(min_secs))
}

/// The shortest TTL that the leader can tell from a lost heartbeat: three halves of an election timeout, rounded up.
pub fn lease_ttl_min(election_ticks: u64, heartbeat_ms: u64) -> i64 {
    let ms = (3 * election_ticks / 2).saturating_mul(heartbeat_ms);
    i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
