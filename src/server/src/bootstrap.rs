//! From flags and disk to a member that knows who it is.
//!
//! * [`data_dir`] — the directory, its lock, and the identity that it keeps;
//! * [`identity`] — ids of members and clusters, computed as etcd computes them.

pub mod data_dir;
pub mod identity;
