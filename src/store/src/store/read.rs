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
use crate::mvcc::answer::{Hold, RangeAnswer};
use crate::mvcc::compare::Judge;
use crate::mvcc::gather::{Gather, Shape};
use crate::mvcc::pair;
use crate::mvcc::version::Version;

/// Answers up to this size may keep a View, if they are [taken](Taken) at once.
pub const VIEW_BYTES_MAX: usize = 32 << 10;

/// How an answer will be read out. Rows that are written while somebody keeps a View stay in memory until it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Right away, if it is no larger than [`VIEW_BYTES_MAX`].
    AtOnce,
    /// At the speed of a client, whatever its size.
    Slowly,
}

/// A range after its first slice.
pub enum Selection {
    Done(RangeAnswer),
    /// More keys to look at, or any to sort.
    Rest(Unfinished),
}

impl Selection {
    pub fn finish(self) -> Result<RangeAnswer, Error> {
        match self {
            Selection::Done(answer) => Ok(answer),
            Selection::Rest(rest) => rest.finish(),
        }
    }
}

/// A range that is not selected yet. While it lives, compaction waits below its revision.
pub struct Unfinished {
    shared: Arc<Shared>,
    revision: i64,
    gather: Gather,
    /// The index was seen to its end.
    seen: bool,
    hold: Hold,
}

/// The answer to a read-only transaction: which branch, and the answers of its ranges, all of one revision.
pub struct TxnAnswer {
    pub revision: Revision,
    pub succeeded: bool,
    pub ranges: Vec<RangeAnswer>,
}

impl Store {
    /// Reads a range at the newest revision or the one asked for. The request's key was checked.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<RangeAnswer, Error> {
        self.select(request, Taken::AtOnce)?.finish()
    }

    /// The same, one slice of it: short work, whatever the request asks for.
    pub fn select(&self, request: &pb::RangeRequest, taken: Taken) -> Result<Selection, Error> {
        let shared = self.shared();
        let mvcc = shared.mvcc.read();
        let revision = shared.revision();
        let at = match Revision::from_range(request.revision) {
            None => revision,
            Some(asked) => readable(asked.0, revision, mvcc.compacted)?,
        };
        let begun = shared.begin(mvcc, request, revision, at, taken)?;
        Ok(if begun.seen {
            Selection::Done(begun.finish()?)
        } else {
            Selection::Rest(begun)
        })
    }

    /// Runs a transaction that changes nothing (see [`crate::validate::is_read_only`]): all of it at one revision, and
    /// all of it within the budget of one range.
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
        let budget = shared.range_bytes_max;
        let mut left = budget;
        for op in ops {
            let Some(Request::RequestRange(range)) = &op.request else {
                return Err(Answer::KeyNotFound.into());
            };
            // In the order in which a transaction that writes is checked.
            Shape::of(range)?;
            let mvcc = shared.mvcc.read();
            let at = txn_revision(range.revision, revision, mvcc.compacted)?;
            // Small answers may be large together.
            let begun = shared.begin(mvcc, range, revision, at.unwrap_or(revision), Taken::Slowly)?;
            let over = |error| match error {
                Error::Memory { .. } => Error::Memory { budget },
                other => other,
            };
            let answer = begun.finish_within(left).map_err(over)?;
            left = left.checked_sub(answer.memory()).ok_or(Error::Memory { budget })?;
            ranges.push(answer);
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
    /// The first slice at revision `at`, which `mvcc` says is readable, unless there is to be a sort: that holds what it
    /// has seen. A small answer that needs nothing more keeps a View; any other keeps compaction away and takes Views as
    /// it goes.
    fn begin(
        self: &Arc<Self>,
        mvcc: RwLockReadGuard<'_, Mvcc>,
        request: &pb::RangeRequest,
        revision: i64,
        at: i64,
        taken: Taken,
    ) -> Result<Unfinished, Error> {
        let mut gather = Gather::new(request, at, true)?;
        let seen = !gather.wants_settling() && gather.step(&mvcc.index, SLICE_KEYS);
        let hold = if seen && !gather.reads_on() {
            Hold::Nothing
        } else if seen && taken == Taken::AtOnce && !gather.spilled && gather.encoded_len <= VIEW_BYTES_MAX {
            // Taken under the lock, a View has all rows that the index knows of.
            Hold::View(self.backend.view()?)
        } else {
            Hold::Pin {
                _held: self.reads.pin(at),
            }
        };
        drop(mvcc);
        Ok(Unfinished {
            shared: self.clone(),
            revision,
            gather,
            seen,
            hold,
        })
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

impl Unfinished {
    /// Looks at the rest, in slices; sorts.
    pub fn finish(self) -> Result<RangeAnswer, Error> {
        let budget = self.shared.range_bytes_max;
        self.finish_within(budget)
    }

    fn finish_within(mut self, budget: usize) -> Result<RangeAnswer, Error> {
        self.complete(budget)?;
        let Self {
            shared,
            revision,
            gather,
            seen: _,
            hold,
        } = self;
        let hold = if gather.reads_on() { hold } else { Hold::Nothing };
        Ok(RangeAnswer::new(shared, Revision(revision), gather, hold))
    }

    fn complete(&mut self, budget: usize) -> Result<(), Error> {
        while !self.seen {
            self.seen = self.gather.step(&self.shared.mvcc.read().index, SLICE_KEYS);
            if self.gather.wants_settling() {
                self.settle(budget)?;
            }
        }
        self.gather.finish();
        Ok(())
    }

    fn settle(&mut self, budget: usize) -> Result<(), Error> {
        let mut fresh = None;
        let shared = &self.shared;
        let mut value = |version: Version| shared.value(None, &mut fresh, version);
        self.gather.settle(&mut value, budget)
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
