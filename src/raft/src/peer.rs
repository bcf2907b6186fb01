//! What members say to each other, and both ends of it.
//!
//! ```text
//!   openraft ── network ──► Request ──┐                        ┌──► service ──► openraft, proposer, barrier, lessor
//!   proposer, barrier, leases ────────┴── Network (the seam) ──┘
//!                                         real: gRPC over TLS; in tests: in memory, with faults
//! ```
//!
//! * [`Network`] — the seam: carries requests to peers and brings back answers;
//! * [`message`] — openraft's types as messages, and back;
//! * [`network`] — openraft's side that asks;
//! * [`service`] — the side that is asked;
//! * [`holds`] — what the log keeps for snapshots that are on their way.
//!
//! Invariants: nothing a peer says is trusted for length, count, position or term. A request without an answer may have
//! been acted on.

pub mod holds;
pub mod message;
pub mod network;
pub mod service;

use crate::state_machine::SnapshotData;
use crate::types::Vote;
use openraft::alias::SnapshotOf;
use quorate_api::proto::quorate::peer as pb;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::oneshot;

pub use pb::answer::Body as Answer;
pub use pb::refused::Reason;
pub use pb::request::Body as Request;

/// Spoken here. A peer that speaks another is refused.
pub const PROTOCOL: u32 = 1;

/// A snapshot as openraft hands it over.
pub type Snapshot = SnapshotOf<crate::types::TypeConfig, SnapshotData>;

/// What may wait for what. A link has one of each, so that a heartbeat does not stand in line behind megabytes of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Short questions: heartbeats, votes, read index, leases.
    Control,
    /// Entries and forwarded batches.
    Log,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Certainly not sent.
    #[error("no link to member {to:x}: {reason}")]
    Unreachable { to: u64, reason: String },
    /// Sent, perhaps; the link ended before the answer came.
    #[error("the link to member {to:x} ended before the answer")]
    Lost { to: u64 },
    /// The peer does not serve this.
    #[error("member {to:x} refuses: {text}")]
    Refused { to: u64, reason: Reason, text: String },
}

/// An answer that is on its way.
pub type Reply = oneshot::Receiver<Result<Answer, PeerError>>;

pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries requests to other members. The real one speaks gRPC; another, in memory, loses, repeats and delays.
pub trait Network: Send + Sync + 'static {
    /// Sends a request. Those of one lane to one peer arrive in the order of the calls, or not at all.
    fn call(&self, to: u64, lane: Lane, request: Request) -> Reply;

    /// Sends a snapshot and waits until the peer has installed it or refused; its vote is the answer. Dropping the future
    /// ends the transfer.
    fn snapshot(&self, to: u64, vote: Vote, snapshot: Snapshot) -> BoxFuture<Result<Vote, PeerError>>;

    /// Members with which a link has stood for so long without a break.
    fn connected(&self, since: Duration) -> BTreeSet<u64>;

    /// The members table or what stood for it may have changed: links may have to.
    fn members_changed(&self);

    /// Members that are not in the table any more and whose votes may still be needed: their links stay, from the next
    /// [`Network::members_changed`] on until they are not named any more.
    fn leaving(&self, _members: BTreeSet<u64>) {}
}

/// A member without peers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Network for NoPeers {
    fn call(&self, to: u64, _lane: Lane, _request: Request) -> Reply {
        let (tx, rx) = oneshot::channel();
        let _ = tx.send(Err(unreachable(to)));
        rx
    }

    fn snapshot(&self, to: u64, _vote: Vote, _snapshot: Snapshot) -> BoxFuture<Result<Vote, PeerError>> {
        Box::pin(std::future::ready(Err(unreachable(to))))
    }

    fn connected(&self, _since: Duration) -> BTreeSet<u64> {
        BTreeSet::new()
    }

    fn members_changed(&self) {}
}

fn unreachable(to: u64) -> PeerError {
    PeerError::Unreachable {
        to,
        reason: "this member has no peers".to_owned(),
    }
}
