//! Before a cluster is founded: whether it is running already.
//!
//! A founding member that lost its disk would found the cluster again, with votes and acknowledgements forgotten that
//! others count on. Members that are only just founding it with us say so (or nothing at all yet), and don't count.

use std::time::Duration;

use quorate_api::{ClusterId, MemberId};
use tracing::info;

use super::initial_cluster::InitialCluster;
use super::peers::{self, Peers};
use crate::config::Url;
use crate::http::Membership;

/// Nobody waits for anybody: members that start at the same time find each other's ports silent or not ready.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("member {0} has already been bootstrapped")]
    AlreadyBootstrapped(MemberId),
    #[error(
        "member {member} was removed from cluster {cluster}, says {url}: add it again, and start it with \
         --initial-cluster-state=existing"
    )]
    Removed {
        member: MemberId,
        cluster: ClusterId,
        url: Url,
    },
    #[error(
        "{url} is a member of cluster {theirs}, and these settings found cluster {ours}: --initial-cluster and \
         --initial-cluster-token must be the same on all founding members"
    )]
    OtherCluster {
        url: Url,
        theirs: ClusterId,
        ours: ClusterId,
    },
}

/// Asks all other founding members at once, and takes the worst of what they say.
pub(super) fn check(founding: &InitialCluster, peers: &dyn Peers) -> Result<(), Error> {
    let mut refused = Vec::new();
    for (url, answer) in peers.get(&founding.other_urls(), peers::MEMBERS, PATIENCE) {
        let told = match answer.and_then(|reply| peers::membership(&reply)) {
            Ok(told) => told,
            Err(failure) => {
                let reason = failure.whole();
                info!(%url, reason, "founding member did not tell who is in the cluster");
                continue;
            }
        };
        match judge(founding, &url, &told) {
            Ok(()) => info!(%url, "founding member is founding this cluster, too"),
            Err(error @ Error::AlreadyBootstrapped(_)) => return Err(error),
            Err(error) => refused.push((url, error)),
        }
    }
    refused.sort_by(|(one, _), (other, _)| one.cmp(other));
    refused.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

fn judge(founding: &InitialCluster, url: &Url, told: &Membership) -> Result<(), Error> {
    let (member, ours) = (founding.member_id(), ClusterId(founding.cluster_id));
    match told.members.iter().find(|known| known.id == member.0) {
        // Only who has served has client URLs.
        Some(known) if !known.client_ur_ls.is_empty() => Err(Error::AlreadyBootstrapped(member)),
        _ if told.cluster != ours => Err(Error::OtherCluster {
            url: url.clone(),
            theirs: told.cluster,
            ours,
        }),
        Some(_) => Ok(()),
        // A founding member was there at the beginning.
        None => Err(Error::Removed {
            member,
            cluster: ours,
            url: url.clone(),
        }),
    }
}

#[cfg(test)]
mod tests;
