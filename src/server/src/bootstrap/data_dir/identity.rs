//! `identity.json`: who this member is, and how it came into its cluster.

use super::{Error, durable};
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::{ClusterId, MemberId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

pub(super) const FORMAT: u32 = 2;

/// What is written once, before a member has any data. It does not change for as long as the data lives, but for
/// `log_made`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// Random, made with the directory: tells a wiped member from the one that lost its disk.
    pub incarnation: u64,
    /// The log was there once, so that an empty place for it is none to start a new one in.
    pub log_made: bool,
    pub origin: Origin,
}

/// How a member came into its cluster, and who else was in it. Decided once: a crash before the first entry of the log
/// must not let the next start found another cluster, because by then a flag or the others' answers have changed. From
/// the first entry on, the replicated table says who is there and this is history.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// All of these, itself included, found the cluster, and everybody has the same list.
    Founded(Vec<Member>),
    /// Was added to a cluster of these, itself included, as it was told before its first start.
    Joined(Vec<Member>),
}

impl Origin {
    /// By id.
    pub fn members(&self) -> &[Member] {
        match self {
            Self::Founded(members) | Self::Joined(members) => members,
        }
    }
}

/// Read before the rest: a newer format may have other fields.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: String,
    member_id: String,
    incarnation: String,
    #[serde(default)]
    log_made: bool,
    /// In format 1 every member had founded its cluster, alone.
    #[serde(default)]
    joined: bool,
    #[serde(default)]
    members: Vec<MemberFile>,
}

#[derive(Serialize, Deserialize)]
struct MemberFile {
    id: String,
    name: String,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
    is_learner: bool,
}

impl From<&Member> for MemberFile {
    fn from(member: &Member) -> Self {
        let Member {
            id,
            name,
            peer_ur_ls,
            client_ur_ls,
            is_learner,
        } = member;
        Self {
            id: MemberId(*id).to_string(),
            name: name.clone(),
            peer_urls: peer_ur_ls.clone(),
            client_urls: client_ur_ls.clone(),
            is_learner: *is_learner,
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Option<Record>, Error> {
    let raw = match fs::read(path) {
        Ok(raw) => raw,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let damaged = |reason: String| Error::Damaged {
        path: path.to_path_buf(),
        reason,
    };
    let Versioned { format } = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(Error::Newer {
            path: path.to_path_buf(),
            found: format,
        });
    }
    let IdentityFile {
        format: _,
        cluster_id,
        member_id,
        incarnation,
        log_made,
        joined,
        members,
    } = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| damaged(format!("{text:?}: {error}")));
    let member = |member: MemberFile| {
        let MemberFile {
            id,
            name,
            peer_urls,
            client_urls,
            is_learner,
        } = member;
        Ok(Member {
            id: hex(&id)?,
            name,
            peer_ur_ls: peer_urls,
            client_ur_ls: client_urls,
            is_learner,
        })
    };
    let members = members.into_iter().map(member).collect::<Result<_, Error>>()?;
    Ok(Some(Record {
        cluster: ClusterId(hex(&cluster_id)?),
        member: MemberId(hex(&member_id)?),
        incarnation: hex(&incarnation)?,
        log_made,
        origin: if joined {
            Origin::Joined(members)
        } else {
            Origin::Founded(members)
        },
    }))
}

pub(super) fn write(path: &Path, record: &Record) -> Result<(), Error> {
    let Record {
        cluster,
        member,
        incarnation,
        log_made,
        origin,
    } = record;
    let file = IdentityFile {
        format: FORMAT,
        cluster_id: cluster.to_string(),
        member_id: member.to_string(),
        incarnation: format!("{incarnation:x}"),
        log_made: *log_made,
        joined: matches!(origin, Origin::Joined(_)),
        members: origin.members().iter().map(MemberFile::from).collect(),
    };
    let text = serde_json::to_vec_pretty(&file).map_err(io::Error::from);
    text.and_then(|text| durable::replace(path, &text))
        .map_err(Error::io("write", path))
}
