//! Cluster membership. Changes are decided by the replicated table when they are applied; what is checked here is what
//! a table can't know: whether URLs are URLs, who is connected, and whether a learner has caught up.
//!
//! A change is answered when its row is applied, and never waits for the process that it is about: raft's voters follow
//! the table. Only a removal waits, for a moment, until those who stay have let the member go. Headers carry no
//! revision, since membership is no part of the store's history.

use super::{decode, mismatched, reply};
use crate::bootstrap::identity;
use crate::config::Url;
use crate::member::Member;
use crate::rpc::Reply as RpcReply;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::quorate as wire;
use quorate_api::{Error, MemberId, Revision, Status};
use quorate_store::command::{Command, Reply};
use quorate_store::members::reconfig;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::{info, warn};

/// Election timeouts that a removal is waited for, beyond its row: long enough for one election.
const LET_GO_ELECTIONS: u32 = 3;

pub async fn member_list(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::MemberListRequest = decode(message)?;
    if request.linearizable {
        member.linearize().await?;
    }
    reply(&pb::MemberListResponse {
        header: header(member),
        members: member.store.members(),
    })
}

pub async fn member_add(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::MemberAddRequest = decode(message)?;
    let (peer_urls, is_learner) = (peer_urls(&request.peer_ur_ls)?, request.is_learner);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = identity::added_member_id(peer_urls.iter().map(String::as_str), now.as_secs());
    let strict = member.limits.strict_reconfig;
    if strict {
        let known = member.store.members();
        let steady = member.node.connected(reconfig::STEADY);
        if !reconfig::is_safe_to_add(&known, &steady) {
            // Apply would say the first; where both are true, etcd does not say the second.
            let few = !is_learner && !reconfig::may_add_voter(known.iter());
            return Err(unhealthy(few));
        }
    }
    let add = wire::MemberAdd {
        id,
        peer_urls: peer_urls.clone(),
        is_learner,
        max_learners: member.limits.max_learners,
        strict,
    };
    let members = change(member, Command::MemberAdd(add)).await?;
    info!(
        "member-id" = %MemberId(id),
        "peer-urls" = ?peer_urls,
        "is-learner" = is_learner,
        "added a member"
    );
    reply(&pb::MemberAddResponse {
        header: header(member),
        member: Some(pb::Member {
            id,
            peer_ur_ls: peer_urls,
            is_learner,
            ..Default::default()
        }),
        members,
    })
}

pub async fn member_remove(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let pb::MemberRemoveRequest { id } = decode(message)?;
    let strict = member.limits.strict_reconfig;
    if strict {
        let known = member.store.members();
        let now = member.node.connected(Duration::ZERO);
        let steady = member.node.connected(reconfig::STEADY);
        if !reconfig::is_safe_to_remove(&known, id, member.id.0, &now, &steady) {
            return Err(unhealthy(!reconfig::may_remove(known.iter(), id)));
        }
    }
    let members = change(member, Command::MemberRemove(wire::MemberRemove { id, strict })).await?;
    info!("member-id" = %MemberId(id), "removed a member");
    // Whoever reads the answer may end its process at once, so the others should be able to decide without it by then.
    // It is only a matter of them: the row is gone in any case.
    if !member
        .node
        .let_go(id, member.limits.election_timeout * LET_GO_ELECTIONS)
        .await
    {
        warn!("member-id" = %MemberId(id), "the removed member still counts for the quorum; a majority has to answer");
    }
    reply(&pb::MemberRemoveResponse {
        header: header(member),
        members,
    })
}

/// etcd takes anything for a URL here, and every other member then panics over it.
pub async fn member_update(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let request: pb::MemberUpdateRequest = decode(message)?;
    let (id, peer_urls) = (request.id, peer_urls(&request.peer_ur_ls)?);
    let update = wire::MemberUpdate {
        id,
        peer_urls: peer_urls.clone(),
    };
    let members = change(member, Command::MemberUpdate(update)).await?;
    info!("member-id" = %MemberId(id), "peer-urls" = ?peer_urls, "updated a member");
    reply(&pb::MemberUpdateResponse {
        header: header(member),
        members,
    })
}

pub async fn member_promote(member: &Arc<Member>, message: Bytes) -> Result<RpcReply, Status> {
    let pb::MemberPromoteRequest { id } = decode(message)?;
    let promoted = promote(member, id).await;
    member.counts.promoted(promoted.as_ref().map(drop));
    let members = promoted?;
    info!("member-id" = %MemberId(id), "promoted a learner");
    reply(&pb::MemberPromoteResponse {
        header: header(member),
        members,
    })
}

async fn promote(member: &Arc<Member>, id: u64) -> Result<Vec<pb::Member>, Status> {
    // The table as it is, or one that does not know the learner yet would let it pass unasked.
    member.linearize().await?;
    if member.store.is_learner(MemberId(id)) && !member.is_in_sync(id).await? {
        return Err(Error::MemberLearnerNotReady.into());
    }
    let strict = member.limits.strict_reconfig;
    change(member, Command::MemberPromote(wire::MemberPromote { id, strict })).await
}

async fn change(member: &Arc<Member>, command: Command) -> Result<Vec<pb::Member>, Status> {
    match member.propose(&command).await?.result? {
        Reply::Members(members) => Ok(members),
        _ => Err(mismatched()),
    }
}

fn unhealthy(few: bool) -> Status {
    match few {
        true => Error::MemberNotEnoughStarted.into(),
        false => Error::UnhealthyCluster.into(),
    }
}

fn header(member: &Member) -> Option<pb::ResponseHeader> {
    Some(member.header(Revision(0)))
}

/// At least one, as they are stored: trimmed, the scheme in small letters, sorted.
fn peer_urls(given: &[String]) -> Result<Vec<String>, Status> {
    let parse = |url: &String| Url::parse(url).map(|url| url.raw);
    let urls: Result<Vec<_>, _> = given.iter().map(parse).collect();
    let mut urls = urls.ok().filter(|urls| !urls.is_empty()).ok_or(Error::MemberBadUrls)?;
    urls.sort();
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_a_new_member_are_checked_as_etcd_checks_them() {
        let urls = |given: &[&str]| {
            let given: Vec<_> = given.iter().map(|url| (*url).to_owned()).collect();
            peer_urls(&given).map_err(|status| status.message)
        };
        let refused = Err("etcdserver: given member URLs are invalid".into());
        assert_eq!(
            urls(&[" http://b:2 ", "HTTPS://a:1"]).unwrap(),
            ["http://b:2", "https://a:1"]
        );
        assert_eq!(urls(&["unix://a.sock"]).unwrap(), ["unix://a.sock"]);
        for bad in [
            &[][..],
            &[""],
            &["a:1"],
            &["127.0.0.1:2380"],
            &["http://a"],
            &["http://a:1/"],
            &["http://a:1/path"],
            &["ftp://a:1"],
            &["http://a:1", "nonsense"],
            &["http://a:1,http://b:1"],
        ] {
            assert_eq!(urls(bad), refused, "{bad:?}");
        }
    }
}
