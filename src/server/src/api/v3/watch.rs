//! Watch: one gRPC stream, many watchers. The hub owns them; this carries requests in and responses out.

use super::{decode_streamed, leader};
use crate::member::Member;
use crate::rpc::{CallContext, Incoming, Outgoing};
use parking_lot::Mutex;
use quorate_api::proto::etcdserverpb::{self as pb, watch_request::RequestUnion};
use quorate_api::{Error, Status};
use quorate_store::watch::{Header, Segments, WatchStream};
use std::future::poll_fn;
use std::sync::Arc;

/// Serves one stream until the client ends it. A half-closed stream goes on: its watchers keep running.
pub async fn serve(
    member: &Arc<Member>,
    call: CallContext,
    incoming: Incoming,
    mut outgoing: Outgoing,
) -> Result<(), Status> {
    outgoing.send_head()?;
    let stream = Mutex::new(member.hub.stream());
    // Requests and responses flow independently: a client that does not read may still cancel.
    tokio::select! {
        ended = requests(&stream, incoming) => ended,
        ended = responses(member, &stream, outgoing) => ended,
        lost = leader::lost(member), if call.requires_leader() => Err(lost),
    }
}

async fn requests(stream: &Mutex<WatchStream>, mut incoming: Incoming) -> Result<(), Status> {
    loop {
        poll_fn(|cx| stream.lock().poll_ready(cx)).await;
        let Some(message) = incoming.message().await? else {
            return std::future::pending().await;
        };
        let request: pb::WatchRequest = decode_streamed(message)?;
        let mut stream = stream.lock();
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => stream.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => stream.progress(),
            None => {}
        }
    }
}

async fn responses(member: &Member, stream: &Mutex<WatchStream>, mut outgoing: Outgoing) -> Result<(), Status> {
    let mut segments = Segments::new();
    loop {
        // A response leaves the hub only once the client has room for it: until then it can still grow, and its memory
        // is the hub's to bound.
        outgoing.ready().await?;
        let Some(response) = poll_fn(|cx| stream.lock().poll_next(cx)).await else {
            return Err(Error::Stopped.into());
        };
        let header = Header {
            cluster_id: member.cluster.0,
            member_id: member.id.0,
            raft_term: member.node.term(),
        };
        response.encode(&header, &mut segments);
        outgoing.send(segments.take()).await?;
    }
}
