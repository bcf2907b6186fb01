//! The standard gRPC health service. Only the server as a whole, named "", is known, and it serves as soon as it
//! listens; losing the leader or raising an alarm does not change that, and a defragmentation only if that is wanted.

use super::{decode, decode_streamed, reply};
use crate::member::Member;
use crate::rpc::{Incoming, Outgoing, Reply};
use bytes::Bytes;
use pb::health_check_response::ServingStatus;
use prost::Message;
use quorate_api::proto::grpc::health::v1 as pb;
use quorate_api::{Error, Status};

pub fn check(member: &Member, message: Bytes) -> Result<Reply, Status> {
    let request: pb::HealthCheckRequest = decode(message)?;
    if !request.service.is_empty() {
        return Err(Error::UnknownHealthService.into());
    }
    reply(&told(now(member)))
}

pub fn list(member: &Member, message: Bytes) -> Result<Reply, Status> {
    let _: pb::HealthListRequest = decode(message)?;
    let statuses = [(String::new(), told(now(member)))].into();
    reply(&pb::HealthListResponse { statuses })
}

/// Says how it is, and again whenever that changes.
pub async fn watch(member: &Member, mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), Status> {
    let Some(message) = incoming.message().await? else {
        return Ok(());
    };
    let request: pb::HealthCheckRequest = decode_streamed(message)?;
    if !request.service.is_empty() {
        outgoing
            .send(told(ServingStatus::ServiceUnknown).encode_to_vec())
            .await?;
        return std::future::pending().await;
    }
    let mut serving = member.serving.subscribe();
    let mut last = None;
    loop {
        let status = status(*serving.borrow_and_update());
        if last.replace(status) != Some(status) {
            outgoing.send(told(status).encode_to_vec()).await?;
        }
        if serving.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn now(member: &Member) -> ServingStatus {
    status(*member.serving.borrow())
}

fn status(serving: bool) -> ServingStatus {
    if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn told(status: ServingStatus) -> pb::HealthCheckResponse {
    pb::HealthCheckResponse { status: status as i32 }
}
