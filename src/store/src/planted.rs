//! Deliberate bugs, one at a time, to see that tests find them. Behind a feature that nothing but tests switches on.

use std::cell::Cell;

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// What somebody might get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log says that an append is durable before it is.
    AnswerBeforeSync,
    /// A vote is given before it is durable.
    VoteBeforeSync,
    /// What is committed is applied before it is durable here.
    ApplyBeforeSync,
    /// A batch that comes twice is executed twice.
    ExecutedTwice,
    /// A read joins a barrier that was sent before it came.
    BarrierJoinedLate,
    /// A leader tells where it is without asking whether it still leads.
    ReadIndexUnasked,
    /// A leader ends leases without being certain that it still leads, and an expiry that an earlier leader ordered is
    /// executed. Either check alone keeps leases alive.
    StaleLeaseRevoke,
    /// Whoever hears of no leader stands for election at once.
    NoPreVote,
    /// A member that comes back without its data is let in.
    WipedCounted,
    /// A watcher that compaction has overtaken goes on behind it.
    EventDroppedAtCompaction,
    /// Watchers are not told that a snapshot has jumped.
    InstallWithoutResync,
    /// Position and effects are separate commits.
    AppliedOutsideCommit,
    /// After a start the store counts from before its last change.
    LowerRevisionAfterCrash,
    /// A leader renews leases without being certain that it still leads.
    LeaseRenewedByDeposed,
    /// Of a range only the first key is deleted.
    RangeCutShort,
    /// A removed member is not talked to, though its vote is needed.
    RemovedCutOff,
}

/// From now on, on this thread.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
