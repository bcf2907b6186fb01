//! From flags and disk to a member that knows who it is. A member with data reads that from its directory, and the
//! bootstrap settings mean nothing to it any more.
//!
//! * [`data_dir`] — the directory, its lock, and the identity that it keeps;
//! * [`initial_cluster`] — who founds a cluster, from `--initial-cluster`;
//! * [`identity`] — ids of members and clusters, computed as etcd computes them.

pub mod data_dir;
pub mod identity;
pub mod initial_cluster;
