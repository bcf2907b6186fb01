//! Transactions: which branches run is settled against the state before the first operation, at every depth; then
//! everything on that path is checked; then it runs, and can't fail any more.

use quorate_api::Error as Answer;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_api::proto::etcdserverpb::{self as pb, ResponseHeader, ResponseOp};

use super::APPLY_SLICE_KEYS;
use super::size::Ahead;
use super::step::Step;
use crate::error::Error;
use crate::mvcc::compare::{Judge, VALUES_SLICE};
use crate::mvcc::gather::Shape;
use crate::store::txn_revision;

/// Which branches run: one verdict per transaction, in the order in which they are come upon.
type Path = Vec<bool>;

impl Step<'_> {
    pub(super) fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        let mut path = Path::new();
        self.plan(request, &mut path)?;
        let mut ahead = Ahead::new(self.room.next());
        self.check(request, &mut path.iter().copied(), &mut ahead)?;
        self.room.take(ahead.answers());
        self.execute_txn(request, &mut path.iter().copied())
    }

    fn plan(&mut self, request: &pb::TxnRequest, path: &mut Path) -> Result<(), Error> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !self.holds(compare)? {
                succeeded = false;
                break;
            }
        }
        path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.plan(nested, path)?;
            }
        }
        Ok(())
    }

    fn holds(&mut self, compare: &pb::Compare) -> Result<bool, Error> {
        let mut judge = Judge::new(compare);
        // Values are read while the locks are held: so many and no more.
        let visits = if judge.reads_values() {
            VALUES_SLICE
        } else {
            APPLY_SLICE_KEYS
        };
        loop {
            judge.step(&self.mvcc.index, self.revision, visits);
            if let Some(verdict) = judge.verdict(|version| self.value(version))? {
                return Ok(verdict);
            }
            self.let_readers_in();
        }
    }

    /// Whatever can be refused is refused here, before anything runs.
    fn check<'r>(
        &mut self,
        request: &'r pb::TxnRequest,
        path: &mut impl Iterator<Item = bool>,
        ahead: &mut Ahead<'r>,
    ) -> Result<(), Answer> {
        for op in branch(request, next(path)) {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    Shape::of(range)?;
                    txn_revision(range.revision, self.revision, self.mvcc.compacted)?;
                    self.charge_range(range, ahead)?;
                }
                Some(Request::RequestPut(put)) => {
                    self.check_put(put)?;
                    // A delete before it on the path may take away what the put wants to keep.
                    let keeps = put.ignore_value || put.ignore_lease;
                    if keeps && ahead.deletes(&put.key) {
                        return Err(Answer::KeyNotFound);
                    }
                    self.charge_put(put, ahead)?;
                }
                Some(Request::RequestDeleteRange(delete)) => self.charge_delete(delete, ahead)?,
                Some(Request::RequestTxn(nested)) => self.check(nested, path, ahead)?,
                None => return Err(Answer::KeyNotFound),
            }
        }
        Ok(())
    }

    fn execute_txn(
        &mut self,
        request: &pb::TxnRequest,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<pb::TxnResponse, Error> {
        let succeeded = next(path);
        let ops = branch(request, succeeded);
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    let mut response = self.range(range)?;
                    response.header = self.header();
                    Some(Response::ResponseRange(response))
                }
                Some(Request::RequestPut(put)) => {
                    let mut response = self.put(put)?;
                    response.header = self.header();
                    Some(Response::ResponsePut(response))
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let mut response = self.delete_range(delete);
                    response.header = self.header();
                    Some(Response::ResponseDeleteRange(response))
                }
                Some(Request::RequestTxn(nested)) => {
                    let mut response = self.execute_txn(nested, path)?;
                    // Present and all zero, as in etcd.
                    response.header = Some(ResponseHeader::default());
                    Some(Response::ResponseTxn(response))
                }
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(pb::TxnResponse {
            header: None,
            succeeded,
            responses,
        })
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision_so_far(),
            ..Default::default()
        })
    }
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// The path has a verdict for every transaction on it, in this order.
fn next(path: &mut impl Iterator<Item = bool>) -> bool {
    let verdict = path.next();
    debug_assert!(verdict.is_some(), "planned, checked and executed alike");
    verdict.unwrap_or_default()
}
