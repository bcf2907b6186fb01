//! Watch: one gRPC stream, many watchers. The hub owns them; this carries requests in and responses out.

use super::decode_streamed;
use crate::member::Member;
use crate::metrics::counts::{StreamApi, Told};
use crate::rpc::{CallContext, Incoming, Outgoing};
use parking_lot::Mutex;
use quorate_api::proto::etcdserverpb::{self as pb, watch_request::RequestUnion};
use quorate_api::{Code, Error, Status};
use quorate_store::watch::{Header, Segments, WatchStream};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        ended = requests(member, &stream, incoming) => ended,
        ended = responses(member, &stream, outgoing) => ended,
        () = leader_lost(member), if call.requires_leader() => Err(Error::NoLeader.into()),
    }
}

async fn requests(member: &Member, stream: &Mutex<WatchStream>, mut incoming: Incoming) -> Result<(), Status> {
    loop {
        poll_fn(|cx| stream.lock().poll_ready(cx)).await;
        let received = incoming.message().await.inspect_err(|error| {
            if is_broken(error) {
                member.counts.receive_failed(StreamApi::Watch);
            }
        });
        let Some(message) = received? else {
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
        let told = match response.events_len() {
            0 if response.is_control() => Told::Control,
            0 => Told::Progress,
            events => Told::Events(events),
        };
        response.encode(&header, &mut segments);
        let begun = Instant::now();
        outgoing.send(segments.take()).await.inspect_err(|error| {
            if is_broken(error) {
                member.counts.send_failed(StreamApi::Watch);
            }
        })?;
        member.counts.told(told, begun.elapsed());
    }
}

/// Other than by the client's wish.
fn is_broken(error: &Status) -> bool {
    error.code != Code::Canceled
}

/// Returns when no leader was known for three election timeouts in a row.
async fn leader_lost(member: &Member) {
    let election = member.limits.election_timeout;
    let mut missing = Duration::ZERO;
    loop {
        tokio::time::sleep(election).await;
        missing = if member.node.leader().is_some() {
            Duration::ZERO
        } else {
            missing + election
        };
        if missing >= election * 3 {
            return;
        }
    }
}
