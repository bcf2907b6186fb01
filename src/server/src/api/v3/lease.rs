//! Leases. Their existence is replicated; their deadlines are the leader's, kept by its lessor.

use super::{decode, decode_streamed, leader, mismatched, reply};
use crate::member::Member;
use crate::metrics::counts::StreamApi;
use crate::rpc::{CallContext, Incoming, Outgoing, Reply as RpcReply};
use bytes::Bytes;
use prost::Message;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::quorate as wire;
use quorate_api::{Code, Error, LeaseId, Status};
use quorate_raft::LeaseError;
use quorate_store::command::{Command, Reply};
use quorate_store::validate;
use rand::Rng;
use std::future::Future;
use std::sync::Arc;

pub async fn grant(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::LeaseGrantRequest = decode(message)?;
    member.check_quota(validate::LEASE_COST)?;
    let ttl_secs = validate::lease_ttl(request.ttl, member.limits.lease_ttl_min_secs)?;
    loop {
        let id = if request.id == 0 { random_id() } else { request.id };
        let outcome = member
            .propose(&Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs }))
            .await?;
        match outcome.result {
            Ok(Reply::LeaseGrant { id, ttl_secs }) => {
                let header = Some(member.header(outcome.revision));
                return reply(&pb::LeaseGrantResponse {
                    header,
                    id,
                    ttl: ttl_secs,
                    error: String::new(),
                });
            }
            // Our own choice was taken: choose again. A client's choice is the client's error.
            Err(Error::LeaseExists) if request.id == 0 => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(mismatched()),
        }
    }
}

/// Positive, as etcd's are: some clients print and parse them as such.
fn random_id() -> i64 {
    rand::rng().random_range(1..=i64::MAX)
}

pub async fn revoke(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::LeaseRevokeRequest = decode(message)?;
    let outcome = member
        .propose(&Command::LeaseRevoke(wire::LeaseRevoke {
            id: request.id,
            expired_in_term: 0,
        }))
        .await?;
    outcome.result?;
    reply(&pb::LeaseRevokeResponse {
        header: Some(member.header(outcome.revision)),
    })
}

pub async fn time_to_live(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::LeaseTimeToLiveRequest = decode(message)?;
    if member.node.leader().is_none() {
        return Err(Error::NoLeader.into());
    }
    member.linearize().await?;
    let mut response = pb::LeaseTimeToLiveResponse {
        id: request.id,
        ttl: -1,
        ..Default::default()
    };
    if let Some(left) = in_time(member, member.node.time_to_live(request.id)).await? {
        response.ttl = left.remaining_secs;
        response.granted_ttl = left.granted_secs;
        if request.keys {
            response.keys = member.store.lease_keys(LeaseId(request.id));
        }
    }
    response.header = Some(member.header_now());
    reply(&response)
}

pub async fn leases(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let _: pb::LeaseLeasesRequest = decode(message)?;
    let ids = match member.node.lessor().by_deadline() {
        Some(ids) => ids,
        None => member.store.leases().into_iter().map(|lease| lease.id.0).collect(),
    };
    let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
    reply(&pb::LeaseLeasesResponse {
        header: Some(member.header_now()),
        leases,
    })
}

/// One answer a request, in order; an unknown lease is an answer and no error.
pub async fn keep_alive(
    member: &Arc<Member>,
    call: CallContext,
    incoming: Incoming,
    outgoing: Outgoing,
) -> Result<(), Status> {
    tokio::select! {
        ended = answer(member, incoming, outgoing) => ended,
        lost = leader::lost(member), if call.requires_leader() => Err(lost),
    }
}

async fn answer(member: &Member, mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), Status> {
    let counts = &member.counts;
    let broken = |error: &Status| error.code != Code::Canceled;
    loop {
        let received = incoming.message().await;
        let received = received.inspect_err(|error| {
            if broken(error) {
                counts.receive_failed(StreamApi::LeaseKeepAlive);
            }
        });
        let Some(message) = received? else { return Ok(()) };
        let request: pb::LeaseKeepAliveRequest = decode_streamed(message)?;
        // Sampled before the renewal, as etcd does: a client may rely on nothing newer.
        let header = Some(member.header_now());
        let renewed = in_time(member, member.node.renew(request.id)).await?;
        if renewed.is_some() {
            member.counts.leases_renewed.inc();
        }
        let response = pb::LeaseKeepAliveResponse {
            header,
            id: request.id,
            ttl: renewed.unwrap_or(0),
        };
        let sent = outgoing.send(response.encode_to_vec()).await;
        sent.inspect_err(|error| {
            if broken(error) {
                counts.send_failed(StreamApi::LeaseKeepAlive);
            }
        })?;
    }
}

async fn in_time<T>(member: &Member, asked: impl Future<Output = Result<T, LeaseError>>) -> Result<T, Status> {
    match tokio::time::timeout(member.limits.request_timeout, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(LeaseError::NotLeader)) => Err(Error::NoLeader.into()),
        Ok(Err(LeaseError::Stopped)) => Err(Error::Stopped.into()),
        Err(_) if member.node.leader().is_none() => Err(Error::NoLeader.into()),
        Err(_) => Err(Error::Timeout.into()),
    }
}
