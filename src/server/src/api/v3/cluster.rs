//! Cluster membership.

use super::{decode, reply};
use crate::member::Member;
use crate::rpc::Reply;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::{Revision, Status};
use std::sync::Arc;

pub async fn member_list(member: &Arc<Member>, message: Bytes) -> Result<Reply, Status> {
    let request: pb::MemberListRequest = decode(message)?;
    if request.linearizable {
        member.linearize().await?;
    }
    // Membership is no part of the store's history, so these headers carry no revision.
    let header = Some(member.header(Revision(0)));
    reply(&pb::MemberListResponse {
        header,
        members: member.store.members(),
    })
}
