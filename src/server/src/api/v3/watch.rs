//! Watch: one gRPC stream, many watchers. The hub owns them; this carries requests in and responses out.

use super::{decode_streamed, leader};
use crate::member::Member;
use crate::metrics::counts::{StreamApi, Told};
use crate::rpc::{CallContext, Incoming, Outgoing};
use parking_lot::Mutex;
use quorate_api::proto::etcdserverpb::{self as pb, watch_request::RequestUnion};
use quorate_api::{Code, Error, Status};
use quorate_store::watch::{Header, Response, Segments, WatchStream};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

/// Responses that are ready at the same time are sent together, up to about this size.
const BATCH_BYTES: usize = 16 << 10;

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
        lost = leader::lost(member), if call.requires_leader() => Err(lost),
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
        let Some(first) = poll_fn(|cx| stream.lock().poll_next(cx)).await else {
            return Err(Error::Stopped.into());
        };
        let header = Header {
            cluster_id: member.cluster.0,
            member_id: member.id.0,
            raft_term: member.node.term(),
        };
        let ready = write_ready(first, stream, &header, &mut segments);
        let begun = Instant::now();
        outgoing
            .send_framed(segments.take(), ready.count)
            .await
            .inspect_err(|error| {
                if is_broken(error) {
                    member.counts.send_failed(StreamApi::Watch);
                }
            })?;
        member.counts.told(ready.told(), begun.elapsed());
    }
}

/// Other than by the client's wish.
fn is_broken(error: &Status) -> bool {
    error.code != Code::Canceled
}

/// What is sent together.
#[derive(Default)]
struct Ready {
    count: usize,
    events: usize,
    control: bool,
}

impl Ready {
    fn add(&mut self, response: Response, header: &Header, out: &mut Segments) {
        self.count += 1;
        self.events += response.events_len();
        self.control |= response.is_control();
        response.encode_grpc(header, out);
    }

    /// What matters most in it.
    fn told(&self) -> Told {
        match self.events {
            0 if self.control => Told::Control,
            0 => Told::Progress,
            events => Told::Events(events),
        }
    }
}

/// Writes the response and those that wait behind it. One event may be for a hundred watchers of the stream, and a send
/// costs more than the response.
fn write_ready(first: Response, stream: &Mutex<WatchStream>, header: &Header, out: &mut Segments) -> Ready {
    let mut ready = Ready::default();
    ready.add(first, header, out);
    let mut stream = stream.lock();
    while out.len() < BATCH_BYTES
        && let Some(next) = stream.try_next()
    {
        ready.add(next, header, out);
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;
    use quorate_api::proto::mvccpb::KeyValue;
    use quorate_api::{KeyRange, Revision};
    use quorate_store::event::{Event, EventBatch, EventKind};
    use quorate_store::watch::{History, HistoryError, Hub, Options, Replay};

    /// All that these watchers need of a store.
    struct Nothing;

    impl History for Nothing {
        fn revision(&self) -> Revision {
            Revision(1)
        }

        fn compacted(&self) -> i64 {
            -1
        }

        fn read(&self, _: &KeyRange, _: Revision, _: usize, _: usize) -> Result<Replay, HistoryError> {
            unreachable!("nobody is behind")
        }

        fn pair_at(&self, _: &[u8], _: Revision) -> Result<Option<KeyValue>, HistoryError> {
            unreachable!("nobody asks for previous pairs")
        }
    }

    fn put(revision: i64, value: &[u8]) -> Arc<EventBatch> {
        let event = Event {
            kind: EventKind::Put {
                create_revision: Revision(revision),
                version: 1,
                lease: 0,
                value: Bytes::copy_from_slice(value),
            },
            key: Bytes::from_static(b"k"),
            prev: None,
        };
        Arc::new(EventBatch {
            revision: Revision(revision),
            events: vec![event],
        })
    }

    fn messages(mut bytes: &[u8]) -> Vec<pb::WatchResponse> {
        let mut messages = Vec::new();
        while let Some((prefix, rest)) = bytes.split_first_chunk::<5>() {
            let len = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            messages.push(pb::WatchResponse::decode(&rest[..len]).unwrap());
            bytes = &rest[len..];
        }
        messages
    }

    #[test]
    fn what_is_ready_is_written_together_up_to_a_bound() {
        let (hub, mut stepper) = Hub::manual(Arc::new(Nothing), Options::default());
        let stream = Mutex::new(hub.stream());
        for _ in 0..100 {
            stream.lock().create(pb::WatchCreateRequest {
                key: Bytes::from_static(b"k"),
                ..Default::default()
            });
        }
        let mut out = Segments::new();
        let mut batches = |stepper: &mut quorate_store::watch::Stepper| {
            stepper.settle();
            let mut batches = Vec::new();
            loop {
                let Some(first) = stream.lock().try_next() else {
                    return batches;
                };
                let ready = write_ready(first, &stream, &Header::default(), &mut out);
                let bytes = out.take().concat();
                let messages = messages(&bytes);
                assert_eq!(messages.len(), ready.count);
                batches.push((bytes.len(), messages));
            }
        };
        let created = batches(&mut stepper);
        assert_eq!(created.len(), 1);
        assert!(created[0].1.iter().all(|response| response.created));

        hub.publish(vec![put(2, b"small")]);
        let small = batches(&mut stepper);
        let ids: Vec<i64> = small
            .iter()
            .flat_map(|(_, batch)| batch)
            .map(|response| response.watch_id)
            .collect();
        assert_eq!((small.len(), ids), (1, (0..100).collect()));

        hub.publish(vec![put(3, &[b'v'; 5000])]);
        let large = batches(&mut stepper);
        assert_eq!(large.iter().map(|(_, batch)| batch.len()).sum::<usize>(), 100);
        assert!(
            large.iter().all(|(bytes, _)| *bytes < BATCH_BYTES + 6000),
            "one response more at most"
        );
        assert_eq!(large.len(), 25);
    }
}
