//! From flags and disk to a member that knows who it is. A member with data reads that from its directory, and the
//! bootstrap settings mean nothing to it any more.
//!
//! ```text
//! data? ─ yes ────────────────────────────────────────────────────────────► identity and origin as written
//!   └─ no ─ new ──────► settings agree? ─► running already? ─► founds  ─┐
//!        └─ existing ─► which member are we? ─► versions?   ─► joins   ─┴─► identity and origin, durably
//!                       └ nothing on disk up to here ┘
//! ```
//!
//! * [`data_dir`] — the directory, its locks, and the identity that it keeps;
//! * [`initial_cluster`] — who founds a cluster, from `--initial-cluster`;
//! * [`running`] — whether it was founded before; [`existing`] — our place in one that was;
//! * [`peers`] — asks other members; [`addresses`] — compares where they are;
//! * [`identity`] — ids of members and clusters, computed as etcd computes them.

pub mod addresses;
pub mod data_dir;
pub mod existing;
pub mod identity;
pub mod initial_cluster;
pub mod peers;
pub mod running;
#[cfg(test)]
mod scripted;

use crate::config::{ClusterState, Config};
use addresses::Resolve;
use data_dir::{DataDir, Origin, Record};
use peers::Peers;
use quorate_api::proto::etcdserverpb::Member;
use quorate_api::{ClusterId, MemberId};
use std::time::Duration;
use tracing::{info, warn};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error(transparent)]
    InitialCluster(#[from] initial_cluster::Error),
    #[error(transparent)]
    Running(#[from] running::Error),
    #[error(transparent)]
    Existing(#[from] existing::Error),
}

/// A member that knows who it is, in a directory that is this process's own.
#[derive(Debug)]
pub struct Prepared {
    pub data_dir: DataDir,
    pub identity: Identity,
    pub start: Start,
    /// What it did when it was new. A restart may find that nothing of that has reached its log yet; then it does the
    /// same again.
    pub origin: Origin,
}

/// Who this process is, among all that ever ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// Of the data directory, random.
    pub incarnation: u64,
    /// Which start of it this is, from 1.
    pub boot: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// New, and founds the cluster together with the other members of its origin.
    Found,
    /// New, and was added to a cluster that runs.
    Join,
    /// Has been started before.
    Restart,
}

/// Blocks: for names that don't resolve, up to `patience`; for other members, some seconds; for another process on the
/// same directory, for as long as it takes. A new member that is refused leaves no trace of having tried.
pub fn prepare(
    config: &Config,
    resolve: Resolve<'_>,
    peers: &dyn Peers,
    patience: Duration,
) -> Result<Prepared, Error> {
    let (root, wal_dir) = (config.data_dir.as_path(), config.wal_dir.as_deref());
    let decide = || decide(config, resolve, peers, patience).inspect_err(advise);
    let decided = if DataDir::is_new(root, wal_dir)? {
        Some(decide()?)
    } else {
        None
    };
    let data_dir = DataDir::open(root, wal_dir)?;
    if let Some(mut record) = data_dir.record()? {
        // Flags that say who founds, joins or advertises what are for new members. Whatever they say by now, this one
        // has promised things under the identity that it has, and founds or joins as it once decided.
        let counted = !record.origin.members().is_empty();
        if !counted {
            record.origin = Origin::Founded(vec![alone(config, record.member)]);
        }
        let boot = data_dir.count_boot(counted)?;
        if !counted {
            data_dir.write_record(&record)?;
        }
        return Ok(prepared(data_dir, record, Start::Restart, boot));
    }
    let record = match decided {
        Some(record) => record,
        None => decide()?,
    };
    // Before the identity: where one is written there is a count, so that its loss is noticed.
    let boot = data_dir.count_boot(false)?;
    data_dir.write_record(&record)?;
    let start = match record.origin {
        Origin::Founded(_) => Start::Found,
        Origin::Joined(_) => Start::Join,
    };
    Ok(prepared(data_dir, record, start, boot))
}

fn prepared(data_dir: DataDir, record: Record, start: Start, boot: u64) -> Prepared {
    let Record {
        cluster,
        member,
        incarnation,
        log_made: _,
        origin,
    } = record;
    Prepared {
        data_dir,
        identity: Identity {
            cluster,
            member,
            incarnation,
            boot,
        },
        start,
        origin,
    }
}

/// What a new member does. Writes nothing.
fn decide(config: &Config, resolve: Resolve<'_>, peers: &dyn Peers, patience: Duration) -> Result<Record, Error> {
    let (cluster, member, origin) = match config.initial_cluster_state {
        ClusterState::New => {
            let founding = initial_cluster::found(config, resolve, patience)?;
            running::check(&founding, peers)?;
            let founders = founding.membership();
            (
                founders.cluster,
                founding.member_id(),
                Origin::Founded(founders.members),
            )
        }
        ClusterState::Existing => {
            let place = existing::join(config, resolve, peers, patience)?;
            (place.told.cluster, place.member, Origin::Joined(place.told.members))
        }
    };
    info!(
        "member-id" = %member,
        "cluster-id" = %cluster,
        members = origin.members().len(),
        founds = matches!(origin, Origin::Founded(_)),
        "member has its place in the cluster"
    );
    Ok(Record {
        cluster,
        member,
        incarnation: rand::random(),
        log_made: false,
        origin,
    })
}

/// Where etcd's text says what is wrong and not what to do.
fn advise(error: &Error) {
    if let Error::Running(running::Error::AlreadyBootstrapped(id))
    | Error::Existing(existing::Error::AlreadyBootstrapped(id)) = error
    {
        warn!(
            "member-id" = %id,
            "the cluster knows this member with data, and here is none: remove it with 'etcdctl member remove {id}', add \
             it again with 'etcdctl member add', and start it with an empty data directory and \
             --initial-cluster-state=existing"
        );
    }
}

/// What format 1 of the identity did not say: there were only clusters of one, known by what they advertise.
fn alone(config: &Config, member: MemberId) -> Member {
    let urls = config.initial_advertise_peer_urls.iter();
    Member {
        id: member.0,
        peer_ur_ls: urls.map(|url| url.raw.clone()).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
