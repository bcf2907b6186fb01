//! The peers. A cluster of one has none, so nothing calls these clients until there is a second member; what they
//! answer is what a peer out of reach would: no vote, no acknowledgement.

use crate::state_machine::SnapshotData;
use crate::types::{TypeConfig, Vote};
use openraft::alias::SnapshotOf;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, EmptyNode, OptionalSend};
use std::future::Future;

/// Makes clients for peers that can't be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

/// A peer out of reach.
#[derive(Debug)]
pub struct OutOfReach {
    target: u64,
}

impl OutOfReach {
    fn error(&self) -> Unreachable<TypeConfig> {
        Unreachable::new(&AnyError::error(format!("no link to member {:x}", self.target)))
    }
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = OutOfReach;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> OutOfReach {
        OutOfReach { target }
    }
}

impl RaftNetworkV2<TypeConfig> for OutOfReach {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(RPCError::Unreachable(self.error()))
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(RPCError::Unreachable(self.error()))
    }

    /// The trait's own default grants, which would switch pre-vote off without a word.
    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(RPCError::Unreachable(self.error()))
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(self.error()))
    }
}
