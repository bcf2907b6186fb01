//! openraft's type parameters, chosen once.

use crate::batch::Batch;
use openraft::raft::responder::Responder;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{EmptyNode, OptionalSend, Raft, RaftTypeConfig};
use std::fmt;

/// The type parameters of consensus here.
///
/// * `D` is an encoded batch of commands; its answers don't travel through openraft (`R` is nothing), since the member
///   that took a request answers it from its own apply;
/// * nodes carry no address: addresses live in the replicated members table, so that changing one is no membership
///   change;
/// * `leader_id_std`: one leader per term, as etcd's clients and tests assume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = ();
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Batch, u64, EmptyNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = crate::runtime::Runtime;
    type Responder<T>
        = FnResponder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, EmptyNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type RaftHandle = Raft<TypeConfig, crate::state_machine::StateMachine>;

/// A log id from its two parts.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// openraft counts entries from 0, etcd and our files from 1, where 0 can mean "none": everything outside openraft
/// uses positions.
pub fn position(index: u64) -> u64 {
    index.saturating_add(1)
}

/// Runs a closure with the result of a write. A batch needs to hear of failures only; its answers come from apply.
pub struct FnResponder<T>(pub Box<dyn FnOnce(T) + Send>);

impl<T> fmt::Debug for FnResponder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnResponder")
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for FnResponder<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
