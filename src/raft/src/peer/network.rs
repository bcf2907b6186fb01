//! openraft's side that asks: its network traits over [`Network`].

use super::holds::Holds;
use super::message::{self, Malformed};
use super::{Answer, Lane, Network, PeerError, Reason, Reply, Request};
use crate::state_machine::SnapshotData;
use crate::types::{TypeConfig, Vote, position};
use futures_util::{Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, OptionalSend};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Requests with entries on their way to one follower. Each has about 1 MiB of them at most.
const PIPELINE: usize = 16;

/// After a failure the next attempt waits so long: a peer that comes back should not wait for its entries.
const BACKOFF: Duration = Duration::from_millis(50);

/// Makes clients for peers. All of them share the links.
pub struct Peers {
    pub network: Arc<dyn Network>,
    pub holds: Holds,
}

/// One peer.
pub struct Peer {
    network: Arc<dyn Network>,
    holds: Holds,
    target: u64,
    /// For appends. Within a replication stream an empty one, which tells of a commit, follows entries that it must not
    /// overtake: the follower would miss what comes before it.
    lane: Lane,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer {
            network: self.network.clone(),
            holds: self.holds.clone(),
            target,
            lane: Lane::Log,
        }
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer {
            network: self.network.clone(),
            holds: self.holds.clone(),
            target,
            lane: Lane::Control,
        }
    }
}

impl Peer {
    async fn ask<T>(
        &self,
        request: Request,
        read: impl FnOnce(Answer) -> Option<Result<T, Malformed>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = self.network.call(self.target, Lane::Control, request);
        read_answer(self.target, answer, read).await
    }

    fn append(&self, request: AppendEntriesRequest<TypeConfig>) -> (Sent, Reply) {
        let sent = Sent {
            prev: request.prev_log_id,
            last: request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id),
        };
        let request = Request::Append(message::put_append(request));
        (sent, self.network.call(self.target, self.lane, request))
    }
}

/// What an append spoke of.
struct Sent {
    prev: Option<crate::types::LogId>,
    last: Option<crate::types::LogId>,
}

async fn read_answer<T>(
    target: u64,
    reply: Reply,
    read: impl FnOnce(Answer) -> Option<Result<T, Malformed>>,
) -> Result<T, RPCError<TypeConfig>> {
    let answer = reply
        .await
        .unwrap_or(Err(PeerError::Lost { to: target }))
        .map_err(rpc_error)?;
    match read(answer) {
        Some(Ok(read)) => Ok(read),
        Some(Err(malformed)) => Err(network_error(&malformed)),
        None => Err(network_error(&Malformed::Missing("the answer to this request"))),
    }
}

async fn read_append(target: u64, reply: Reply) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
    let read = |answer| match answer {
        Answer::Append(answer) => Some(message::get_append_answer(answer)),
        _ => None,
    };
    read_answer(target, reply, read).await
}

fn network_error(error: &(impl std::error::Error + 'static)) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    match error {
        PeerError::Lost { .. } => network_error(&error),
        // Asking again at once would be refused again at once.
        PeerError::Unreachable { .. } | PeerError::Refused { .. } => RPCError::Unreachable(Unreachable::new(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (_, reply) = self.append(rpc);
        read_append(self.target, reply).await
    }

    /// Requests leave as they come, whatever has been answered; answers are given in their order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let target = self.target;
        let answers = input
            .map(move |request| {
                // Sent here and not when the future is first polled: that keeps the order.
                let (sent, reply) = self.append(request);
                async move {
                    let answer = read_append(target, reply).await?;
                    if answer.is_conflict() && sent.prev.is_none() {
                        // Nothing can conflict with the beginning.
                        return Err(network_error(&Malformed::Missing("a position to conflict with")));
                    }
                    Ok(answer.into_stream_result(sent.prev, sent.last))
                }
            })
            .buffered(PIPELINE);
        let answers: BoxStream<'s, _> = Box::pin(answers);
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let read = |answer| match answer {
            Answer::Vote(answer) => Some(message::get_vote_answer(answer)),
            _ => None,
        };
        self.ask(Request::Vote(message::put_vote_request(&rpc)), read).await
    }

    /// The trait's own default grants, which would switch pre-vote off without a word.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let read = |answer| match answer {
            Answer::PreVote(answer) => Some(message::get_vote_answer(answer)),
            _ => None,
        };
        self.ask(Request::PreVote(message::put_vote_request(&rpc)), read).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let _hold = self
            .holds
            .hold(snapshot.meta.last_log_id.map_or(0, |id| position(id.index)));
        let transfer = self.network.snapshot(self.target, vote, snapshot);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = transfer => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error @ PeerError::Lost { .. }) => Err(StreamingError::Network(NetworkError::new(&error))),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let read = |answer| match answer {
            Answer::Transfer(answer) => Some(Ok(answer)),
            _ => None,
        };
        let answer = self
            .ask(Request::Transfer(message::put_transfer(&request)), read)
            .await?;
        if answer.accepted {
            return Ok(Ok(()));
        }
        // openraft only logs which rejection it was.
        Err(RPCError::Network(NetworkError::new(&AnyError::error(answer.reason))))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

/// Whether asking again can't help until an operator does something.
pub fn is_final(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Removed | Reason::OtherCluster | Reason::OtherIncarnation | Reason::OtherProtocol
    )
}
