//! A store that keeps everything, and a client that writes down what it is sent.

use super::super::{Header, History, HistoryError, Hub, Options, Replay, Response, Segments, Stepper, WatchStream};
use crate::event::{Event, EventBatch, EventKind};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use quorate_api::proto::etcdserverpb::{self as pb, WatchCreateRequest};
use quorate_api::proto::mvccpb;
use quorate_api::{KeyRange, Revision};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const HEADER: Header = Header {
    cluster_id: 0xcdf8_1819_4e3a_8c32,
    member_id: 0x8e9e_05c5_2164_694d,
    raft_term: 2,
};

#[derive(Clone, Debug)]
pub enum Op {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put(
        Bytes::copy_from_slice(key.as_bytes()),
        Bytes::copy_from_slice(value.as_bytes()),
    )
}

pub fn delete(key: &str) -> Op {
    Op::Delete(Bytes::copy_from_slice(key.as_bytes()))
}

#[derive(Debug)]
pub struct Past {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    revision: i64,
    compacted: i64,
    log: Vec<Arc<EventBatch>>,
    live: BTreeMap<Bytes, mvccpb::KeyValue>,
    /// Every pair ever written, with the revision that replaced it.
    pairs: BTreeMap<(Bytes, i64), (mvccpb::KeyValue, i64)>,
    /// Revisions that one read looks at.
    scan_max: i64,
    failures: usize,
    reads: usize,
    pair_reads: usize,
    pair_calls: usize,
}

impl Past {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                revision: 1,
                compacted: -1,
                log: Vec::new(),
                live: BTreeMap::new(),
                pairs: BTreeMap::new(),
                scan_max: i64::MAX,
                failures: 0,
                reads: 0,
                pair_reads: 0,
                pair_calls: 0,
            }),
        })
    }

    /// One transaction; `None` when it changed nothing.
    pub fn apply(&self, ops: &[Op]) -> Option<Arc<EventBatch>> {
        let mut state = self.state.lock();
        let at = state.revision + 1;
        let mut events = Vec::new();
        for op in ops {
            let key = match op {
                Op::Put(key, _) | Op::Delete(key) => key.clone(),
            };
            let old = state.live.remove(&key);
            if let Some(old) = &old {
                let replaced = state.pairs.get_mut(&(key.clone(), old.mod_revision)).unwrap();
                replaced.1 = at;
            }
            let prev = old.as_ref().map(|old| Revision(old.mod_revision));
            let kind = match op {
                Op::Put(_, value) => {
                    let pair = mvccpb::KeyValue {
                        key: key.clone(),
                        create_revision: old.as_ref().map_or(at, |old| old.create_revision),
                        mod_revision: at,
                        version: old.as_ref().map_or(1, |old| old.version + 1),
                        value: value.clone(),
                        lease: 0,
                    };
                    let kind = EventKind::Put {
                        create_revision: Revision(pair.create_revision),
                        version: pair.version,
                        lease: 0,
                        value: value.clone(),
                    };
                    state.live.insert(key.clone(), pair.clone());
                    state.pairs.insert((key.clone(), at), (pair, i64::MAX));
                    kind
                }
                Op::Delete(_) if old.is_none() => continue,
                Op::Delete(_) => EventKind::Delete,
            };
            events.push(Event { kind, key, prev });
        }
        if events.is_empty() {
            return None;
        }
        let revision = Revision(at);
        let batch = Arc::new(EventBatch { revision, events });
        state.revision = at;
        state.log.push(Arc::clone(&batch));
        Some(batch)
    }

    pub fn compact(&self, at: i64) {
        let mut state = self.state.lock();
        assert!(at <= state.revision);
        state.compacted = state.compacted.max(at);
    }

    pub fn fail(&self, times: usize) {
        self.state.lock().failures = times;
    }

    pub fn scan_max(&self, revisions: i64) {
        self.state.lock().scan_max = revisions;
    }

    /// Reads of history and of single pairs so far.
    pub fn reads(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.reads, state.pair_reads)
    }

    /// In how many calls single pairs were asked for.
    pub fn pair_calls(&self) -> usize {
        self.state.lock().pair_calls
    }

    /// What a watcher of `range` has to get: events with revisions in `from..=to`.
    pub fn events(&self, range: &KeyRange, from: i64, to: i64) -> Vec<mvccpb::Event> {
        let state = self.state.lock();
        let batches = state.log.iter().filter(|batch| (from..=to).contains(&batch.revision.0));
        batches
            .flat_map(|batch| batch.events.iter().map(|event| (batch.revision.0, event)))
            .filter(|(_, event)| range.contains(&event.key))
            .map(|(revision, event)| state.message(revision, event))
            .collect()
    }
}

impl State {
    /// The event with its previous pair, whether compacted or not.
    fn message(&self, revision: i64, event: &Event) -> mvccpb::Event {
        let prev = event
            .prev
            .map(|prev| self.pairs[&(event.key.clone(), prev.0)].0.clone());
        match &event.kind {
            EventKind::Put { .. } => mvccpb::Event {
                r#type: mvccpb::event::EventType::Put.into(),
                kv: Some(self.pairs[&(event.key.clone(), revision)].0.clone()),
                prev_kv: prev,
            },
            EventKind::Delete => mvccpb::Event {
                r#type: mvccpb::event::EventType::Delete.into(),
                kv: Some(mvccpb::KeyValue {
                    key: event.key.clone(),
                    mod_revision: revision,
                    ..Default::default()
                }),
                prev_kv: prev,
            },
        }
    }

    fn fault(&mut self) -> Result<(), HistoryError> {
        if self.failures == 0 {
            return Ok(());
        }
        self.failures -= 1;
        Err(HistoryError::Failed("disk on fire".into()))
    }
}

impl History for Past {
    fn revision(&self) -> Revision {
        Revision(self.state.lock().revision)
    }

    fn compacted(&self) -> i64 {
        self.state.lock().compacted
    }

    fn read(
        &self,
        range: &KeyRange,
        from: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Replay, HistoryError> {
        let mut state = self.state.lock();
        state.reads += 1;
        state.fault()?;
        if from.0 < state.compacted {
            return Err(HistoryError::Compacted { at: state.compacted });
        }
        let mut batches = Vec::new();
        let mut bytes = 0;
        let last = state.revision.min(from.0.saturating_add(state.scan_max - 1));
        for batch in state
            .log
            .iter()
            .filter(|batch| (from.0..=last).contains(&batch.revision.0))
        {
            let events: Vec<Event> = batch
                .events
                .iter()
                .filter(|event| range.contains(&event.key))
                .cloned()
                .collect();
            if events.is_empty() {
                continue;
            }
            bytes += events.iter().map(|event| event.key.len()).sum::<usize>();
            batches.push(EventBatch {
                revision: batch.revision,
                events,
            });
            if batches.len() == batches_max || bytes >= bytes_max {
                let through = batch.revision;
                return Ok(Replay { batches, through });
            }
        }
        let through = Revision(last.max(from.0 - 1));
        Ok(Replay { batches, through })
    }

    fn pair_at(&self, key: &[u8], mod_revision: Revision) -> Result<Option<mvccpb::KeyValue>, HistoryError> {
        Ok(self.pairs_at(&[(key, mod_revision)])?.remove(0))
    }

    fn pairs_at(&self, wanted: &[(&[u8], Revision)]) -> Result<Vec<Option<mvccpb::KeyValue>>, HistoryError> {
        let mut state = self.state.lock();
        state.pair_calls += 1;
        state.pair_reads += wanted.len();
        state.fault()?;
        let pair = |(key, at): &(&[u8], Revision)| {
            let (pair, replaced) = &state.pairs[&(Bytes::copy_from_slice(key), at.0)];
            (*replaced > state.compacted).then(|| pair.clone())
        };
        Ok(wanted.iter().map(pair).collect())
    }
}

/// A store, its hub, and the hand that moves both.
pub struct World {
    pub past: Arc<Past>,
    pub hub: Hub,
    pub stepper: Stepper,
}

impl World {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let past = Past::new();
        let (hub, stepper) = Hub::manual(past.clone(), options);
        Self { past, hub, stepper }
    }

    /// Applies and publishes; the hub has not looked at it yet. Returns the revision.
    pub fn write(&self, ops: &[Op]) -> i64 {
        let batch = self.past.apply(ops).expect("these operations change something");
        let revision = batch.revision.0;
        self.hub.publish(vec![batch]);
        revision
    }

    /// Writes and lets the hub do what follows.
    pub fn put(&mut self, key: &str, value: &str) -> i64 {
        let revision = self.write(&[put(key, value)]);
        self.stepper.settle();
        revision
    }

    /// Creates a watcher and returns what the stream says until all is quiet.
    pub fn create(&mut self, stream: &mut WatchStream, request: WatchCreateRequest) -> Vec<pb::WatchResponse> {
        stream.create(request);
        self.drain(stream)
    }

    /// Everything that there is for the stream.
    pub fn drain(&mut self, stream: &mut WatchStream) -> Vec<pb::WatchResponse> {
        let mut got = Vec::new();
        let mut quiet = 0;
        for _ in 0..1000 {
            self.stepper.settle();
            let before = got.len();
            got.extend(std::iter::from_fn(|| stream.try_next()).map(|response| wire(&response)));
            // To find nothing is to read on as well, and the hub may have waited for that.
            quiet = if got.len() == before { quiet + 1 } else { 0 };
            if quiet == 2 {
                return got;
            }
        }
        panic!("there is no end to it; the last was {:?}", got.last());
    }
}

pub fn watch(key: &str, range_end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        start_revision,
        ..Default::default()
    }
}

/// The response as a client decodes it; on the way it is checked that it says what was meant.
pub fn wire(response: &Response) -> pb::WatchResponse {
    let mut out = Segments::new();
    response.encode_grpc(&HEADER, &mut out);
    let expected_len = out.len();
    let mut bytes = BytesMut::new();
    out.take().iter().for_each(|segment| bytes.extend_from_slice(segment));
    assert_eq!(bytes.len(), expected_len);
    let prefix = bytes.split_to(5);
    assert_eq!(prefix[0], 0);
    assert_eq!(
        u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize,
        bytes.len()
    );
    let message = pb::WatchResponse::decode(bytes.freeze()).unwrap();
    assert_eq!(message, response.to_message(&HEADER));
    let header = message.header.unwrap();
    assert_eq!(
        (header.cluster_id, header.member_id),
        (HEADER.cluster_id, HEADER.member_id)
    );
    message
}

pub fn revision(response: &pb::WatchResponse) -> i64 {
    response.header.as_ref().unwrap().revision
}

/// Mod revisions of all events, response by response.
pub fn revisions(responses: &[pb::WatchResponse]) -> Vec<Vec<i64>> {
    let of = |response: &pb::WatchResponse| {
        response
            .events
            .iter()
            .map(|e| e.kv.as_ref().unwrap().mod_revision)
            .collect()
    };
    responses.iter().map(of).collect()
}
