//! The versions that clients see. etcd's version decides what client libraries dare to use, so it is a constant of
//! the API that we serve and not of our own releases.

/// The etcd release whose behaviour we serve; reported by Status, `/version` and the metrics.
pub const ETCD_VERSION: &str = "3.7.1";

/// Cluster version: major and minor of [`ETCD_VERSION`].
pub const CLUSTER_VERSION: &str = "3.7";

/// Cluster and storage version as `/version` and Status print them.
pub const STORAGE_VERSION: &str = "3.7.0";

/// Our own release.
pub const QUORATE_VERSION: &str = env!("CARGO_PKG_VERSION");
