//! Old values in answers. While an entry is applied, answers get everything but the values of pairs, for those may
//! have to come from the file; they are filled in when locks are gone and readers are served again. Nothing can have
//! removed them meanwhile: compaction and apply take turns.

use bytes::Bytes;
use quorate_api::Error as Answer;
use quorate_api::proto::etcdserverpb::response_op::Response;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::mvccpb::KeyValue;

use crate::backend::RowId;
use crate::command::{Outcome, Reply};
use crate::error::Error;
use crate::store::Shared;

/// `fills` has one element per pair in the answers, in the order in which [`each_pair`] comes upon them; none where the
/// pair shall have no value. A value that can't be read costs the answer it belongs to, and no more: the command was
/// executed, and what it did needs no old value. Returns the first such failure.
pub(super) fn fill(shared: &Shared, outcomes: &mut [Outcome], fills: &[Option<RowId>]) -> Option<Error> {
    if fills.is_empty() {
        return None;
    }
    match read(shared, fills) {
        Ok(values) => {
            put_in(outcomes, values);
            None
        }
        Err(_) => fill_each(shared, outcomes, fills),
    }
}

fn fill_each(shared: &Shared, outcomes: &mut [Outcome], mut fills: &[Option<RowId>]) -> Option<Error> {
    let mut failure = None;
    for outcome in outcomes {
        let mut pairs = 0;
        if let Ok(reply) = &mut outcome.result {
            each_pair(reply, &mut |_| pairs += 1);
        }
        let (own, rest) = fills.split_at(pairs.min(fills.len()));
        fills = rest;
        match read(shared, own) {
            Ok(values) => put_in(std::slice::from_mut(outcome), values),
            Err(error) => {
                outcome.result = Err(Answer::AnswerUnreadable);
                failure.get_or_insert(error);
            }
        }
    }
    failure
}

fn put_in(outcomes: &mut [Outcome], values: Vec<Bytes>) {
    let wanted = values.len();
    let mut values = values.into_iter();
    let mut pairs = 0;
    for outcome in outcomes {
        if let Ok(reply) = &mut outcome.result {
            each_pair(reply, &mut |pair| {
                pairs += 1;
                pair.value = values.next().unwrap_or_default();
            });
        }
    }
    debug_assert_eq!(pairs, wanted, "each pair has its value");
}

fn read(shared: &Shared, fills: &[Option<RowId>]) -> Result<Vec<Bytes>, Error> {
    let mut values = vec![Bytes::new(); fills.len()];
    let mut unknown = Vec::new();
    for (at, id) in fills.iter().enumerate() {
        let Some(id) = id else { continue };
        match shared.values.get(*id) {
            Some(value) => values[at] = value,
            None => unknown.push((*id, at)),
        }
    }
    if !unknown.is_empty() {
        // Neighbours share their way into the file.
        unknown.sort_unstable();
        let ids: Vec<RowId> = unknown.iter().map(|(id, _)| *id).collect();
        let view = shared.backend.view()?;
        view.values(&ids, |nth, value| {
            values[unknown[nth].1] = Bytes::copy_from_slice(value)
        })?;
    }
    Ok(values)
}

fn each_pair(reply: &mut Reply, each: &mut impl FnMut(&mut KeyValue)) {
    match reply {
        Reply::Put(put) => put.prev_kv.iter_mut().for_each(each),
        Reply::DeleteRange(delete) => delete.prev_kvs.iter_mut().for_each(each),
        Reply::Txn(txn) => each_pair_of_txn(txn, each),
        Reply::Compact
        | Reply::LeaseGrant { .. }
        | Reply::LeaseRevoke
        | Reply::Members(_)
        | Reply::Alarm(_)
        | Reply::Done => {}
    }
}

fn each_pair_of_txn(txn: &mut pb::TxnResponse, each: &mut impl FnMut(&mut KeyValue)) {
    for op in &mut txn.responses {
        match &mut op.response {
            Some(Response::ResponseRange(range)) => range.kvs.iter_mut().for_each(&mut *each),
            Some(Response::ResponsePut(put)) => put.prev_kv.iter_mut().for_each(&mut *each),
            Some(Response::ResponseDeleteRange(delete)) => delete.prev_kvs.iter_mut().for_each(&mut *each),
            Some(Response::ResponseTxn(nested)) => each_pair_of_txn(nested, each),
            None => {}
        }
    }
}
