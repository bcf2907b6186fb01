//! KV writes: Put, DeleteRange, Txn and Compact.

use super::{decode, mismatched, range, reply};
use crate::member::Member;
use crate::rpc::Reply as RpcReply;
use bytes::Bytes;
use quorate_api::error::transport;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::{Error, Status};
use quorate_store::command::{Command, Reply};
use quorate_store::validate;
use std::sync::Arc;

pub async fn put(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let size = message.len();
    let request: pb::PutRequest = decode(message)?;
    member.check_quota(validate::put_cost(&request))?;
    validate::put(&request)?;
    member.check_size(size)?;
    let outcome = member.propose(&Command::Put(request)).await?;
    let Reply::Put(mut response) = outcome.result? else {
        return Err(mismatched());
    };
    response.header = Some(member.header(outcome.revision));
    reply(&response)
}

pub async fn delete_range(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let size = message.len();
    let request: pb::DeleteRangeRequest = decode(message)?;
    validate::delete_range(&request)?;
    member.check_size(size)?;
    let outcome = member.propose(&Command::DeleteRange(request)).await?;
    let Reply::DeleteRange(mut response) = outcome.result? else {
        return Err(mismatched());
    };
    response.header = Some(member.header(outcome.revision));
    reply(&response)
}

pub async fn txn(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let size = message.len();
    let request =
        quorate_api::txn::decode(message, member.limits.txn_ops.saturating_add(1)).map_err(|error| match error {
            quorate_api::txn::Error::TooDeep { .. } => Error::TooManyOps.into(),
            other => transport::bad_message(other),
        })?;
    member.check_quota(validate::txn_cost(&request))?;
    validate::txn(&request, member.limits.txn_ops)?;
    if validate::is_read_only(&request) {
        return range::read_only_txn(member, request).await;
    }
    member.check_size(size)?;
    let outcome = member.propose(&Command::Txn(request)).await?;
    let Reply::Txn(mut response) = outcome.result? else {
        return Err(mismatched());
    };
    response.header = Some(member.header(outcome.revision));
    reply(&response)
}

pub async fn compact(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::CompactionRequest = decode(message)?;
    let pb::CompactionRequest { revision, physical } = request;
    let outcome = member.propose(&Command::Compact(request)).await?;
    // etcd waits for a running removal even when this request is late.
    if physical && matches!(outcome.result, Ok(_) | Err(Error::Compacted)) {
        member.wait_for_compaction(revision).await?;
    }
    outcome.result?;
    reply(&pb::CompactionResponse {
        header: Some(member.header(outcome.revision)),
    })
}
