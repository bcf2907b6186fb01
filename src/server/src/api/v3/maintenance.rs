//! Maintenance: what this member says about itself and does to its own file, and alarms.

use super::{decode, mismatched, range, reply};
use crate::member::Member;
use crate::rpc::Reply as RpcReply;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{self as pb, AlarmType, alarm_request::AlarmAction};
use quorate_api::proto::quorate::AlarmSet;
use quorate_api::{Error, MemberId, Status, version};
use quorate_raft::node::TransferError;
use quorate_runtime::bulk;
use quorate_store::command::{Command, Reply};
use std::sync::Arc;
use std::time::Instant;
use tracing::{info, warn};

pub fn status(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let _: pb::StatusRequest = decode(message)?;
    let raft = member.node.status();
    let sizes = member.store.sizes();
    let mut errors = Vec::new();
    if raft.leader.is_none() {
        errors.push(Error::NoLeader.text().to_owned());
    }
    let text = |alarm: &pb::AlarmMember| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name());
    errors.extend(member.store.alarms().iter().map(text));
    reply(&pb::StatusResponse {
        header: Some(member.header_now()),
        version: version::ETCD_VERSION.to_owned(),
        db_size: sizes.total_bytes.try_into().unwrap_or(i64::MAX),
        leader: raft.leader.unwrap_or(0),
        raft_index: raft.committed,
        raft_term: raft.term,
        raft_applied_index: raft.applied,
        errors,
        db_size_in_use: sizes.in_use_bytes.try_into().unwrap_or(i64::MAX),
        is_learner: member.is_learner(),
        storage_version: version::STORAGE_VERSION.to_owned(),
        db_size_quota: member
            .limits
            .quota_bytes
            .map_or(-1, |quota| quota.try_into().unwrap_or(i64::MAX)),
        downgrade_info: Some(pb::DowngradeInfo::default()),
    })
}

/// Asked of the leader; done when another leads.
pub async fn move_leader(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::MoveLeaderRequest = decode(message)?;
    let is_voter = |target: &pb::Member| !target.is_learner;
    if member.node.leader() != Some(member.id.0) {
        return Err(Error::NotLeader.into());
    }
    if !member
        .store
        .member(MemberId(request.target_id))
        .is_some_and(|target| is_voter(&target))
    {
        return Err(Error::BadLeaderTransferee.into());
    }
    match member
        .node
        .transfer(request.target_id, member.limits.request_timeout)
        .await
    {
        // etcd gives no header here.
        Ok(()) => reply(&pb::MoveLeaderResponse { header: None }),
        Err(TransferError::NotLeader) => Err(Error::NotLeader.into()),
        Err(TransferError::BadTarget) => Err(Error::BadLeaderTransferee.into()),
        Err(TransferError::Timeout) => Err(Error::TimeoutLeaderTransfer.into()),
    }
}

pub async fn alarm(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::AlarmRequest = decode(message)?;
    let alarms = match (
        AlarmAction::try_from(request.action),
        AlarmType::try_from(request.alarm),
    ) {
        (Ok(AlarmAction::Get), alarm) => {
            member.linearize().await?;
            let mut alarms = member.store.alarms();
            alarms.retain(|held| alarm == Ok(AlarmType::None) || held.alarm == request.alarm);
            alarms
        }
        (Ok(action), Ok(AlarmType::Nospace | AlarmType::Corrupt)) => {
            let active = action == AlarmAction::Activate;
            let set = AlarmSet {
                member_id: request.member_id,
                alarm: request.alarm,
                active,
            };
            match member.propose(&Command::AlarmSet(set)).await?.result? {
                Reply::Alarm(changed) => changed.into_iter().collect(),
                _ => return Err(mismatched()),
            }
        }
        // An action or alarm that nobody knows changes nothing.
        _ => Vec::new(),
    };
    reply(&pb::AlarmResponse {
        header: Some(member.header_now()),
        alarms,
    })
}

pub async fn hash_kv(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::HashKvRequest = decode(message)?;
    member.linearize().await?;
    // Walks the whole history.
    let begun = Instant::now();
    let hashed = range::off_thread(member, move |store| store.hash_kv(request.revision)).await;
    member.counts.hash_took.observe(begun.elapsed().as_secs_f64());
    let (hash, _slot) = hashed?;
    reply(&pb::HashKvResponse {
        header: Some(member.header(hash.revision)),
        hash: hash.hash,
        compact_revision: hash.compacted,
        hash_revision: hash.at.0,
    })
}

/// Of this member's own file. It serves on meanwhile, where etcd's stands still; and like etcd's, what has begun comes to
/// its end whether or not the client still waits for it.
pub async fn defragment(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let _: pb::DefragmentRequest = decode(message)?;
    let turn = member.defragmentation.clone().lock_owned().await;
    let work = {
        let member = member.clone();
        move || {
            let _turn = turn;
            member.counts.defragmenting.set(1);
            member.serving.send_replace(!member.limits.not_serving_in_defrag);
            let done = defragment_here(&member);
            member.serving.send_replace(true);
            member.counts.defragmenting.set(0);
            done
        }
    };
    let done = bulk::spawn("defragment", work).await;
    done.map_err(|_| Status::from(Error::Stopped))??;
    // etcd gives no header here.
    reply(&pb::DefragmentResponse { header: None })
}

fn defragment_here(member: &Member) -> Result<(), quorate_store::Error> {
    let before = member.store.sizes();
    let begun = Instant::now();
    info!(
        "current-db-size-bytes" = before.total_bytes,
        "current-db-size-in-use-bytes" = before.in_use_bytes,
        "starting defragment"
    );
    match member.store.defragment() {
        Ok(()) => {
            let took = begun.elapsed();
            member.counts.defrag_took.observe(took.as_secs_f64());
            let after = member.store.sizes();
            info!(
                "current-db-size-bytes" = after.total_bytes,
                "current-db-size-bytes-before" = before.total_bytes,
                "current-db-size-in-use-bytes" = after.in_use_bytes,
                ?took,
                "finished defragment"
            );
            Ok(())
        }
        Err(error) => {
            warn!(%error, "failed to defragment");
            Err(error)
        }
    }
}
