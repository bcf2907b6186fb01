//! The standard gRPC health service. Only the server as a whole, named "", is known, and it serves as soon as it
//! listens; losing the leader or raising an alarm does not change that.

use super::{decode, decode_streamed, reply};
use crate::rpc::{Incoming, Outgoing, Reply};
use bytes::Bytes;
use pb::health_check_response::ServingStatus;
use prost::Message;
use quorate_api::proto::grpc::health::v1 as pb;
use quorate_api::{Error, Status};

pub fn check(message: Bytes) -> Result<Reply, Status> {
    let request: pb::HealthCheckRequest = decode(message)?;
    if !request.service.is_empty() {
        return Err(Error::UnknownHealthService.into());
    }
    reply(&serving(ServingStatus::Serving))
}

pub fn list(message: Bytes) -> Result<Reply, Status> {
    let _: pb::HealthListRequest = decode(message)?;
    let statuses = [(String::new(), serving(ServingStatus::Serving))].into();
    reply(&pb::HealthListResponse { statuses })
}

/// Says the one thing there is to say and stays open, as nothing ever changes.
pub async fn watch(mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), Status> {
    let Some(message) = incoming.message().await? else {
        return Ok(());
    };
    let request: pb::HealthCheckRequest = decode_streamed(message)?;
    let status = if request.service.is_empty() {
        ServingStatus::Serving
    } else {
        ServingStatus::ServiceUnknown
    };
    outgoing.send(serving(status).encode_to_vec()).await?;
    std::future::pending().await
}

fn serving(status: ServingStatus) -> pb::HealthCheckResponse {
    pb::HealthCheckResponse { status: status as i32 }
}
