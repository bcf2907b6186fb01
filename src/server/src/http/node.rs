//! What the endpoints ask the node. The server implements it once for all listeners.

use std::future::Future;
use std::pin::Pin;

use quorate_api::Status;

/// An answer that takes a read of the store.
pub type ProbeFuture<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

/// An alarm that some member has raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    NoSpace,
    Corrupt,
    Unknown,
}

impl Alarm {
    pub const fn name(self) -> &'static str {
        match self {
            Alarm::NoSpace => "NOSPACE",
            Alarm::Corrupt => "CORRUPT",
            Alarm::Unknown => "UNKNOWN",
        }
    }
}

/// The two endpoints that are made of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    Livez,
    Readyz,
}

impl Probe {
    /// The value of the `type` label, and the path without its slash.
    pub const fn name(self) -> &'static str {
        match self {
            Probe::Livez => "livez",
            Probe::Readyz => "readyz",
        }
    }

    pub const fn checks(self) -> &'static [Check] {
        match self {
            Probe::Livez => &[Check::SerializableRead],
            Probe::Readyz => &[
                Check::DataCorruption,
                Check::SerializableRead,
                Check::LinearizableRead,
                Check::NonLearner,
            ],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    pub const fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// The cluster as its members tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub cluster: quorate_api::ClusterId,
    /// Voters and learners, by id.
    pub members: Vec<quorate_api::proto::etcdserverpb::Member>,
}

/// The node as its HTTP endpoints see it.
pub trait NodeState: Send + Sync + 'static {
    /// Alarms of all members, in the order in which they were raised.
    fn alarms(&self) -> Vec<Alarm>;

    fn has_leader(&self) -> bool;

    /// This member has no vote yet.
    fn is_learner(&self) -> bool;

    /// Reads the smallest key, without its value and with all rights, from the agreed state. Dropped when the asker
    /// goes away.
    fn probe_linearizable(&self) -> ProbeFuture<'_>;

    /// The same from this member's own state.
    fn probe_serializable(&self) -> ProbeFuture<'_>;

    /// `X.Y.Z`, or `None` until the members have agreed on one.
    fn cluster_version(&self) -> Option<String>;

    /// The version of the stored data's layout, as etcd names it; `None` before it is known.
    fn storage_version(&self) -> Option<String> {
        Some(quorate_api::version::STORAGE_VERSION.to_owned())
    }

    /// `None` before this member knows.
    fn membership(&self) -> Option<Membership> {
        None
    }

    /// The object at `raft.status` of `/debug/vars`.
    fn raft_status(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// `/health` was answered; feeds `etcd_server_health_success` and `_failures`.
    fn observe_health(&self, _ok: bool) {}

    /// A check was run; feeds `etcd_server_healthcheck` and `etcd_server_healthchecks_total`.
    fn observe_check(&self, _probe: Probe, _check: Check, _ok: bool) {}
}
