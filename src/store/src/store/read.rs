//! Ranges, read-only transactions and single old pairs.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLockReadGuard;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::mvccpb::KeyValue;
use quorate_api::{Error as Answer, Revision};

use super::{Mvcc, SLICE_KEYS, Shared, Store};
use crate::backend::View;
use crate::error::Error;
use crate::mvcc::answer::RangeAnswer;
use crate::mvcc::compare::Judge;
use crate::mvcc::gather::Gather;
use crate::mvcc::pair;
use crate::mvcc::version::Version;

/// The answer to a read-only transaction: which branch, and the answers of its ranges, all of one revision.
pub struct TxnAnswer {
    pub revision: Revision,
    pub succeeded: bool,
    pub ranges: Vec<RangeAnswer>,
}

impl Store {
    /// Reads a range at the newest revision or the one asked for. The request's key was checked.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<RangeAnswer, Error> {
        let shared = self.shared();
        let mvcc = shared.mvcc.read();
        let revision = shared.revision();
        let at = match Revision::from_range(request.revision) {
            None => revision,
            Some(asked) => readable(asked.0, revision, mvcc.compacted)?,
        };
        shared.gather(mvcc, request, revision, at)
    }

    /// Runs a transaction that changes nothing (see [`crate::validate::is_read_only`]): all of it at one revision.
    pub fn read_txn(&self, request: &pb::TxnRequest) -> Result<TxnAnswer, Error> {
        let shared = self.shared();
        let (revision, pin) = {
            let _mvcc = shared.mvcc.read();
            let revision = shared.revision();
            (revision, shared.reads.pin(revision))
        };
        let mut succeeded = true;
        for compare in &request.compare {
            if !shared.holds(compare, revision)? {
                succeeded = false;
                break;
            }
        }
        let ops = if succeeded { &request.success } else { &request.failure };
        let mut ranges = Vec::with_capacity(ops.len());
        for op in ops {
            let Some(Request::RequestRange(range)) = &op.request else {
                return Err(Answer::KeyNotFound.into());
            };
            let mvcc = shared.mvcc.read();
            let at = txn_revision(range.revision, revision, mvcc.compacted)?;
            ranges.push(shared.gather(mvcc, range, revision, at.unwrap_or(revision))?);
        }
        drop(pin);
        Ok(TxnAnswer {
            revision: Revision(revision),
            succeeded,
            ranges,
        })
    }

    /// The pair of `key` that was written at `mod_revision`, for events that show what they replaced. None when
    /// compaction has taken it, or when there is no such version.
    pub fn pair_at(&self, key: &[u8], mod_revision: Revision) -> Result<Option<KeyValue>, Error> {
        let shared = self.shared();
        let mvcc = shared.mvcc.read();
        let written = mvcc.index.written(key, mod_revision.0);
        // Decided by what compaction takes, not by how far it has come with it.
        let kept = |version: &Version| {
            version.main >= mvcc.compacted || mvcc.index.get(key, mvcc.compacted).as_ref() == Some(version)
        };
        let Some(version) = written.filter(kept) else {
            return Ok(None);
        };
        let view = shared.backend.view()?;
        drop(mvcc);
        let value = shared.value(Some(&view), &mut None, version)?;
        Ok(Some(pair::key_value(Bytes::copy_from_slice(key), &version, value)))
    }
}

impl Shared {
    /// At revision `at`, which `mvcc` says is readable.
    fn gather(
        self: &Arc<Self>,
        mvcc: RwLockReadGuard<'_, Mvcc>,
        request: &pb::RangeRequest,
        revision: i64,
        at: i64,
    ) -> Result<RangeAnswer, Error> {
        let mut gather = Gather::new(request, at, true)?;
        let mut all = gather.step(&mvcc.index, SLICE_KEYS);
        let (mut view, mut pin) = (None, None);
        if all && !gather.spilled {
            // Taken under the lock, a View has all rows that the index knows of.
            if !gather.shape.keys_only() && gather.len_answered() > 0 {
                view = Some(self.backend.view()?);
            }
            drop(mvcc);
        } else {
            pin = Some(self.reads.pin(at));
            drop(mvcc);
        }
        while !all {
            self.settle(&mut gather, view.as_ref())?;
            all = gather.step(&self.mvcc.read().index, SLICE_KEYS);
        }
        if gather.wants_settling() {
            self.settle(&mut gather, view.as_ref())?;
            gather.finish();
        }
        Ok(RangeAnswer::new(self.clone(), Revision(revision), gather, view, pin))
    }

    fn settle(&self, gather: &mut Gather, view: Option<&View>) -> Result<(), Error> {
        let mut fresh = None;
        let mut value = |version: Version| self.value(view, &mut fresh, version);
        gather.settle(&mut value, self.range_bytes_max)
    }

    fn holds(&self, compare: &pb::Compare, at: i64) -> Result<bool, Error> {
        let mut judge = Judge::new(compare);
        let mut fresh = None;
        loop {
            judge.step(&self.mvcc.read().index, at, SLICE_KEYS);
            if let Some(verdict) = judge.verdict(|version| self.value(None, &mut fresh, version))? {
                return Ok(verdict);
            }
        }
    }

    /// A value from memory, from `view`, or from a View that is taken and left in `fresh`.
    pub(crate) fn value(
        &self,
        view: Option<&View>,
        fresh: &mut Option<View>,
        version: Version,
    ) -> Result<Bytes, Error> {
        if let Some(value) = self.values.get(version.row()) {
            return Ok(value);
        }
        let view = match (view, &mut *fresh) {
            (Some(view), _) => view,
            (None, Some(fresh)) => fresh,
            (None, none) => none.insert(self.backend.view()?),
        };
        Ok(view.value(version.row())?)
    }
}

/// A revision that a client names outside of a transaction.
fn readable(asked: i64, revision: i64, compacted: i64) -> Result<i64, Answer> {
    if asked > revision {
        Err(Answer::FutureRevision)
    } else if asked < compacted {
        Err(Answer::Compacted)
    } else {
        Ok(asked)
    }
}

/// A revision that a client names inside of a transaction: 0 is the newest (`None`), less is always too old.
pub(crate) fn txn_revision(asked: i64, revision: i64, compacted: i64) -> Result<Option<i64>, Answer> {
    match asked {
        0 => Ok(None),
        ..0 => Err(Answer::Compacted),
        asked => readable(asked, revision, compacted).map(Some),
    }
}
