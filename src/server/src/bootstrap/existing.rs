//! Joins a cluster that runs: `--initial-cluster-state=existing`, after `member add`.
//!
//! ```text
//! --initial-cluster ─► others' URLs ─► GET /members ─► which of them are we? ─► GET /version ─► join
//!                                       (cluster id, ids, URLs)
//! ```
//!
//! The checks and texts are etcd's. It believes the first member that answers; here the first whose list matches is
//! believed, since a follower may not have heard yet of a member that was added a moment ago.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use quorate_api::MemberId;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::version::CLUSTER_VERSION;
use tracing::warn;

use super::addresses::{Addresses, Resolve};
use super::initial_cluster::{self, FoundingMember, InitialCluster};
use super::peers::{self, Failure, Peers, Reply};
use crate::config::{Config, QUORATE_VERSION, Url};
use crate::http::Membership;

/// How long others have to tell who is in the cluster. With more than the five seconds that a connection may take.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(10);
const VERSION_PATIENCE: Duration = Duration::from_secs(7);

/// The oldest cluster version that etcd joins.
const VERSION_MIN: (u64, u64) = (3, 0);

/// What others told goes into messages up to this length.
const TOLD_BYTES_MAX: usize = 8 << 10;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(transparent)]
    InitialCluster(#[from] initial_cluster::Error),
    #[error("cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs")]
    Nobody,
    #[error("error validating peerURLs {told}: {reason}")]
    Mismatch { told: String, reason: String },
    /// Its disk was lost or exchanged: as far as the others know, it still has what it once acknowledged.
    #[error("member {0} has already been bootstrapped")]
    AlreadyBootstrapped(MemberId),
    #[error("incompatible with current running cluster ({0})")]
    Incompatible(String),
}

/// Our place in a cluster that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub member: MemberId,
    /// Ourselves included.
    pub told: Membership,
    /// Who told it, and the version of Quorate there; etcd has none.
    pub by: Url,
    pub quorate: Option<String>,
}

/// Finds our place and checks that it can be ours. Blocks.
pub fn join(config: &Config, resolve: Resolve<'_>, peers: &dyn Peers, patience: Duration) -> Result<Place, Error> {
    let place = find_place(config, resolve, peers, patience)?;
    let known = place.told.members.iter().find(|known| known.id == place.member.0);
    // Only who has served has client URLs.
    if known.is_some_and(|known| !known.client_ur_ls.is_empty()) {
        return Err(Error::AlreadyBootstrapped(place.member));
    }
    if place.quorate.is_none() {
        return Err(Error::Incompatible(format!(
            "{} is a member of etcd, and Quorate {QUORATE_VERSION} forms clusters with Quorate only",
            place.by
        )));
    }
    check_versions(&initial_cluster::join(config)?.other_urls(), peers)?;
    Ok(place)
}

/// Asks the listed members who is in the cluster, and which of them we are.
pub fn find_place(
    config: &Config,
    resolve: Resolve<'_>,
    peers: &dyn Peers,
    patience: Duration,
) -> Result<Place, Error> {
    let listed = initial_cluster::join(config)?;
    let addresses = Addresses::new(resolve, patience);
    let mut refused = BTreeMap::new();
    let mut found = None;
    for (url, answer) in peers.get(&listed.other_urls(), peers::MEMBERS, MEMBERS_PATIENCE) {
        let (reply, told) = match answer.and_then(read) {
            Ok(read) => read,
            Err(failure) => {
                let reason = failure.whole();
                warn!(%url, reason, "member did not tell who is in the cluster");
                continue;
            }
        };
        match recognise(&listed, &told, addresses) {
            Ok(member) => {
                found = Some(Place {
                    member,
                    told,
                    by: url,
                    quorate: reply.quorate,
                });
                break;
            }
            Err(reason) => {
                let told = go_text(&told);
                refused.insert(url, Error::Mismatch { told, reason });
            }
        }
    }
    // What ends the start is said by whoever ends it.
    let ends_it = match &found {
        Some(_) => None,
        None => Some(refused.pop_first().map_or(Error::Nobody, |(_, error)| error)),
    };
    for (url, reason) in refused {
        warn!(%url, %reason, "member tells of another cluster");
    }
    match (found, ends_it) {
        (Some(place), _) => Ok(place),
        (None, error) => Err(error.unwrap_or(Error::Nobody)),
    }
}

fn read(reply: Reply) -> Result<(Reply, Membership), Failure> {
    let told = peers::membership(&reply)?;
    Ok((reply, told))
}

/// Pairs the members that we were given with those that the cluster has, one to one, and gives ours.
fn recognise(listed: &InitialCluster, told: &Membership, addresses: Addresses<'_>) -> Result<MemberId, String> {
    let (existing, local) = (&told.members, &listed.members);
    if existing.len() != local.len() {
        return Err(format!(
            "member count is unequal (the cluster has {}, --initial-cluster names {})",
            existing.len(),
            local.len()
        ));
    }
    let urls: Vec<_> = existing.iter().map(peer_urls).collect();
    let mut pairs: Vec<Option<usize>> = vec![None; existing.len()];
    // Those that read the same first: a name that doesn't resolve keeps nobody from being recognised by it.
    for (urls, pair) in urls.iter().zip(&mut pairs) {
        *pair = local.iter().position(|member| Ok(&member.peer_urls) == urls.as_ref());
    }
    for at in 0..existing.len() {
        if pairs[at].is_some() {
            continue;
        }
        let mut difference = String::new();
        for (index, member) in local.iter().enumerate() {
            let same = match &urls[at] {
                Ok(urls) => addresses.same(urls, &member.peer_urls),
                Err(reason) => Err(reason.clone()),
            };
            match same {
                Ok(()) if pairs.contains(&Some(index)) => difference = format!("{:?} is matched twice", member.name),
                Ok(()) => {
                    pairs[at] = Some(index);
                    break;
                }
                Err(reason) => difference = reason,
            }
        }
        if pairs[at].is_none() {
            let member = &existing[at];
            return Err(format!(
                "PeerURLs: no match found for existing member ({}, [{}]), last resolver error ({difference})",
                MemberId(member.id),
                member.peer_ur_ls.join(" ")
            ));
        }
    }
    let is_ours = |(_, pair): &(&Member, &Option<usize>)| {
        pair.and_then(|index| local.get(index))
            .is_some_and(|member: &FoundingMember| member.id == listed.member_id)
    };
    let ours = existing.iter().zip(&pairs).find(is_ours);
    ours.map(|(member, _)| MemberId(member.id))
        .ok_or_else(|| "no existing member has the PeerURLs of this one".to_owned())
}

fn peer_urls(member: &Member) -> Result<Vec<Url>, String> {
    let parse = |text: &String| Url::parse(text).map_err(|_| format!("failed to parse string to URL: {text:?}"));
    let mut urls = member.peer_ur_ls.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    Ok(urls)
}

/// What the cluster has, as etcd prints it.
fn go_text(told: &Membership) -> String {
    let mut text = format!("{{ClusterID:{} Members:[", told.cluster);
    for (index, member) in told.members.iter().enumerate() {
        let gap = if index > 0 { " " } else { "" };
        let _ = write!(
            text,
            "{gap}&{{ID:{} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} ClientURLs:[{}]}}}}",
            MemberId(member.id),
            member.peer_ur_ls.join(" "),
            member.is_learner,
            member.name,
            member.client_ur_ls.join(" ")
        );
        if text.len() > TOLD_BYTES_MAX {
            text.truncate(text.floor_char_boundary(TOLD_BYTES_MAX));
            text.push('…');
            return text;
        }
    }
    text.push_str("] RemovedMemberIDs:[]}");
    text
}

/// At least one of the others must be of a cluster version that we can serve, and none of another: who does not answer
/// may be down.
fn check_versions(others: &[Url], peers: &dyn Peers) -> Result<(), Error> {
    let max = minor_version(CLUSTER_VERSION).unwrap_or(VERSION_MIN);
    let mut compatible = false;
    for (url, answer) in peers.get(others, peers::VERSION, VERSION_PATIENCE) {
        let versions = match answer.and_then(|reply| peers::versions(&reply)) {
            Ok(versions) => versions,
            Err(failure) => {
                let reason = failure.whole();
                warn!(%url, reason, "member did not tell its version");
                continue;
            }
        };
        let Some(version) = minor_version(&versions.cluster) else {
            warn!(%url, "member's cluster has no version yet");
            continue;
        };
        if !(VERSION_MIN..=max).contains(&version) {
            let ((major, minor), (low_major, low_minor)) = (version, VERSION_MIN);
            return Err(Error::Incompatible(format!(
                "{url} is of cluster version {major}.{minor}, and Quorate {QUORATE_VERSION} joins {low_major}.{low_minor} \
                 to {CLUSTER_VERSION}"
            )));
        }
        compatible = true;
    }
    if compatible {
        Ok(())
    } else {
        Err(Error::Incompatible(
            "no other member tells its cluster's version".to_owned(),
        ))
    }
}

/// Major and minor of `3.7.1` or `3.7`.
fn minor_version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.split('.');
    let version = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(version)
}

#[cfg(test)]
mod tests;
