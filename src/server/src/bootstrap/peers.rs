//! What a member asks others before it is one of them: who is in the cluster, and of which version it is.
//!
//! * [`http`] — asked for real, over the dialler that all connections to peers share.

pub mod http;

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;
use quorate_api::ClusterId;
use quorate_api::proto::etcdserverpb::Member;
use serde::Deserialize;

use crate::config::Url;
use crate::http::Membership;

/// Other members, as far as one asks them at its start.
pub trait Peers {
    /// Sends `GET path` to all of them at once. The answers come as they arrive, one for each URL, each within
    /// `patience`; dropping them gives up the rest. Blocks between them.
    fn get(&self, urls: &[Url], path: &'static str, patience: Duration) -> Answers;
}

pub type Answers = Box<dyn Iterator<Item = (Url, Result<Reply, Failure>)>>;

/// An answer with status 200, not believed in yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// `X-Etcd-Cluster-Id`
    pub cluster: Option<String>,
    /// `X-Quorate-Version`: etcd's members don't have it.
    pub quorate: Option<String>,
    pub body: Bytes,
}

/// Why an answer is none. Nothing of what the other side sent is in the text: it may be long, and strange.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("exchange HTTP")]
    Exchange(#[source] hyper::Error),
    #[error("read the answer's body")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the status is {0}")]
    Status(StatusCode),
    #[error("the body is not what {0} says in etcd")]
    Json(&'static str, #[source] serde_json::Error),
    #[error("there is no cluster id in the header")]
    ClusterId,
    #[error("the list of members is empty")]
    NoMembers,
    #[error("the list has a member without id, or two of the same")]
    MemberIds,
}

impl Failure {
    /// With all its causes.
    pub(super) fn whole(self) -> String {
        format!("{:#}", anyhow::Error::new(self))
    }
}

pub(super) const MEMBERS: &str = "/members";
pub(super) const VERSION: &str = "/version";

/// One element of `/members`. What etcd leaves out is empty; Go writes a list without elements as `null`.
#[derive(Deserialize)]
struct Heard {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
    #[serde(default)]
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
}

/// Reads the answer to `/members`.
pub(super) fn membership(reply: &Reply) -> Result<Membership, Failure> {
    let heard: Vec<Heard> = serde_json::from_slice(&reply.body).map_err(|error| Failure::Json(MEMBERS, error))?;
    let cluster = reply
        .cluster
        .as_deref()
        .and_then(cluster_id)
        .ok_or(Failure::ClusterId)?;
    if heard.is_empty() {
        return Err(Failure::NoMembers);
    }
    let ids: BTreeSet<_> = heard.iter().map(|member| member.id).collect();
    if ids.len() != heard.len() || ids.contains(&0) {
        return Err(Failure::MemberIds);
    }
    let member = |heard: Heard| Member {
        id: heard.id,
        name: heard.name,
        peer_ur_ls: heard.peer_urls.unwrap_or_default(),
        client_ur_ls: heard.client_urls.unwrap_or_default(),
        is_learner: heard.is_learner,
    };
    let mut members: Vec<_> = heard.into_iter().map(member).collect();
    members.sort_by_key(|member| member.id);
    Ok(Membership { cluster, members })
}

fn cluster_id(text: &str) -> Option<ClusterId> {
    // The number parser takes a sign, and Go's does not.
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(text, 16).ok()?;
    (is_hex && id != 0).then_some(ClusterId(id))
}

/// The answer to `/version`.
#[derive(Deserialize)]
pub(super) struct Versions {
    /// `not_decided` until the members have agreed on one.
    #[serde(rename = "etcdcluster", default)]
    pub cluster: String,
}

pub(super) fn versions(reply: &Reply) -> Result<Versions, Failure> {
    serde_json::from_slice(&reply.body).map_err(|error| Failure::Json(VERSION, error))
}

#[cfg(test)]
mod tests;
