//! Operations as requests, and answers as what was answered.

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, compare, request_op, response_op,
};
use quorate_api::proto::mvccpb;
use tonic::Status;

use crate::check::{Answer, Kv, Previous, Request};
use crate::client::{Client, DELETE, PUT, Retry};

/// The header's revision and the answer.
pub(super) async fn perform(client: &Client, key: &Bytes, request: &Request) -> Result<(i64, Answer), Status> {
    match request {
        Request::Get { serializable } => {
            let mut range = get(key);
            range.serializable = *serializable;
            let answer = client.range(&range).await?;
            Ok((revision(answer.header)?, Answer::Got(found(answer))))
        }
        Request::Put(value) => {
            // every other asks, so that both ways are used
            let asks = value.last().is_some_and(|last| last % 2 == 0);
            let request = PutRequest {
                prev_kv: asks,
                ..put(key, value)
            };
            let answer: PutResponse = client.call(PUT, &request, Retry::IfNothingWasDone).await?;
            let previous = match asks {
                true => Previous::Was(answer.prev_kv.map(kv)),
                false => Previous::NotAsked,
            };
            Ok((revision(answer.header)?, Answer::Put(previous)))
        }
        Request::Swap(expected, value) => swap(client, key, *expected, value).await,
        Request::Delete => {
            let request = DeleteRangeRequest {
                key: key.clone(),
                prev_kv: true,
                ..DeleteRangeRequest::default()
            };
            let answer: DeleteRangeResponse = client.call(DELETE, &request, Retry::IfNothingWasDone).await?;
            let previous = answer.prev_kvs.into_iter().next().map(kv);
            let deleted = match (answer.deleted, previous) {
                (0, None) => Answer::NotDeleted,
                (1, previous) => Answer::Deleted(Previous::Was(previous)),
                (deleted, previous) => {
                    return Err(Status::internal(format!(
                        "deleted {deleted} keys, one was {previous:?}"
                    )));
                }
            };
            Ok((revision(answer.header)?, deleted))
        }
    }
}

async fn swap(client: &Client, key: &Bytes, expected: Option<i64>, value: &Bytes) -> Result<(i64, Answer), Status> {
    let operation = |request| RequestOp { request: Some(request) };
    let request = TxnRequest {
        compare: vec![Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(compare::TargetUnion::ModRevision(expected.unwrap_or(0))),
            ..Compare::default()
        }],
        success: vec![operation(request_op::Request::RequestPut(put(key, value)))],
        failure: vec![operation(request_op::Request::RequestRange(get(key)))],
    };
    let answer = client.txn(&request).await?;
    let revision = revision(answer.header)?;
    let done = answer.responses.into_iter().next().and_then(|done| done.response);
    match (answer.succeeded, done) {
        (true, Some(response_op::Response::ResponsePut(_))) => Ok((revision, Answer::Swapped)),
        (false, Some(response_op::Response::ResponseRange(range))) => Ok((revision, Answer::NotSwapped(found(range)))),
        (succeeded, other) => Err(Status::internal(format!("a swap answered {succeeded} and {other:?}"))),
    }
}

fn get(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

fn put(key: &Bytes, value: &Bytes) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value: value.clone(),
        ..PutRequest::default()
    }
}

fn found(answer: RangeResponse) -> Option<Kv> {
    answer.kvs.into_iter().next().map(kv)
}

pub(super) fn kv(kv: mvccpb::KeyValue) -> Kv {
    Kv {
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn revision(header: Option<ResponseHeader>) -> Result<i64, Status> {
    header
        .map(|header| header.revision)
        .ok_or_else(|| Status::internal("an answer without a header"))
}
