//! What is applied, as it is counted.

use quorate_store::command::{Command, Outcome};
use std::time::Duration;

/// Hears of every entry that was applied, on the thread that applies: answer quickly.
pub trait Observer: Send + Sync + 'static {
    /// An entry's commands in their order, with their outcomes, and the time that all of them took.
    fn applied(&self, _ops: &[Op], _outcomes: &[Outcome], _took: Duration) {}
}

/// Nobody listens.
impl Observer for () {}

/// Kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Put,
    DeleteRange,
    Txn,
    Compaction,
    LeaseGrant,
    /// Asked for by a client.
    LeaseRevoke,
    /// By the leader's clock.
    LeaseExpire,
    LeaseCheckpoint,
    Alarm,
    MemberPublish,
    /// Changes of the members table.
    Membership,
}

impl Op {
    pub const ALL: [Op; 11] = [
        Op::Put,
        Op::DeleteRange,
        Op::Txn,
        Op::Compaction,
        Op::LeaseGrant,
        Op::LeaseRevoke,
        Op::LeaseExpire,
        Op::LeaseCheckpoint,
        Op::Alarm,
        Op::MemberPublish,
        Op::Membership,
    ];

    pub fn of(command: &Command) -> Self {
        match command {
            Command::Put(_) => Op::Put,
            Command::DeleteRange(_) => Op::DeleteRange,
            Command::Txn(_) => Op::Txn,
            Command::Compact(_) => Op::Compaction,
            Command::LeaseGrant(_) => Op::LeaseGrant,
            Command::LeaseRevoke(revoke) if revoke.expired_in_term > 0 => Op::LeaseExpire,
            Command::LeaseRevoke(_) => Op::LeaseRevoke,
            Command::LeaseCheckpoint(_) => Op::LeaseCheckpoint,
            Command::AlarmSet(_) => Op::Alarm,
            Command::MemberPublish(_) => Op::MemberPublish,
            Command::MemberAdd(_)
            | Command::MemberRemove(_)
            | Command::MemberUpdate(_)
            | Command::MemberPromote(_)
            | Command::ClusterInit(_) => Op::Membership,
        }
    }

    /// The value of etcd's `op` and `type` labels.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Put => "Put",
            Op::DeleteRange => "DeleteRange",
            Op::Txn => "Txn",
            Op::Compaction => "Compaction",
            Op::LeaseGrant => "LeaseGrant",
            Op::LeaseRevoke | Op::LeaseExpire => "LeaseRevoke",
            Op::LeaseCheckpoint => "LeaseCheckpoint",
            Op::Alarm => "Alarm",
            Op::MemberPublish => "ClusterMemberAttrSet",
            Op::Membership => "unknown",
        }
    }
}
