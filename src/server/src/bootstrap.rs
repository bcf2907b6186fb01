//! From flags and disk to a member that knows who it is. A member with data reads that from its directory, and the
//! bootstrap settings mean nothing to it any more.
//!
//! * [`data_dir`] — the directory, its locks, and the identity that it keeps;
//! * [`initial_cluster`] — who founds a cluster, from `--initial-cluster`;
//! * [`identity`] — ids of members and clusters, computed as etcd computes them.

pub mod data_dir;
pub mod identity;
pub mod initial_cluster;

use crate::config::Config;
use data_dir::{DataDir, Identity};
use initial_cluster::{InitialCluster, Resolve};
use quorate_api::{ClusterId, MemberId};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    #[error(transparent)]
    InitialCluster(#[from] initial_cluster::Error),
}

/// A member that knows who it is, in a directory that is this process's own.
#[derive(Debug)]
pub struct Prepared {
    pub data_dir: DataDir,
    pub identity: Identity,
    /// What a new member founds.
    pub founded: Option<InitialCluster>,
}

/// Blocks: for names that don't resolve, up to `patience`; for another process on the same directory, for as long as
/// it takes. A new member whose settings don't let it found a cluster leaves no trace of having tried.
pub fn prepare(config: &Config, resolve: Resolve<'_>, patience: Duration) -> Result<Prepared, Error> {
    let (root, wal_dir) = (config.data_dir.as_path(), config.wal_dir.as_deref());
    let found = || initial_cluster::found(config, resolve, patience);
    let cluster = if DataDir::is_new(root, wal_dir)? {
        Some(found()?)
    } else {
        None
    };
    let data_dir = DataDir::open(root, wal_dir)?;
    if let Some(identity) = data_dir.identity()? {
        return Ok(Prepared {
            data_dir,
            identity,
            founded: None,
        });
    }
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => found()?,
    };
    let identity = Identity {
        cluster: ClusterId(cluster.cluster_id),
        member: MemberId(cluster.member_id),
        incarnation: rand::random(),
        log_made: false,
    };
    data_dir.write_identity(identity)?;
    Ok(Prepared {
        data_dir,
        identity,
        founded: Some(cluster),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::path::Path;

    fn prepare_with(root: &Path, args: &[&str]) -> Result<Prepared, Error> {
        let data_dir = format!("--data-dir={}", root.display());
        let args = ["quorate", &data_dir].into_iter().chain(args.iter().copied());
        let config = crate::config::load(args.map(OsString::from), std::iter::empty())
            .unwrap()
            .config;
        let nowhere = |_: &str| Err(std::io::Error::other("no such host"));
        prepare(&config, &nowhere, Duration::ZERO)
    }

    #[test]
    fn nothing_is_written_before_a_refusal() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("data");
        for bad in [
            &["--name=zz", "--initial-cluster=other=http://localhost:2380"][..],
            &["--initial-advertise-peer-urls=http://127.0.0.1:1"],
            &["--initial-cluster-state=existing"],
            &["--initial-cluster=default=http://localhost:2380,b=http://127.0.0.1:1"],
        ] {
            let refused = prepare_with(&root, bad).unwrap_err();
            assert!(matches!(refused, Error::InitialCluster(_)), "{refused}");
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "{bad:?}");
        }
    }

    #[test]
    fn a_member_with_data_does_not_ask_who_founds() {
        let temp = tempfile::tempdir().unwrap();
        let first = prepare_with(temp.path(), &[]).unwrap();
        assert!(first.founded.is_some());
        let identity = first.identity;
        drop(first);
        let again = prepare_with(temp.path(), &["--initial-cluster-state=existing"]).unwrap();
        assert_eq!((again.identity, again.founded), (identity, None));
    }
}
