//! Everything at once, in any order: writes, late publishing, compaction, installs, failing reads, slow clients,
//! cancels, progress. The model knows only what a client may rely on, and checks each response as it is read.

use super::super::{History, Options, WatchStream};
use super::world::{Op, World, revision, wire};
use bytes::Bytes;
use proptest::prelude::*;
use quorate_api::KeyRange;
use quorate_api::proto::etcdserverpb::watch_create_request::FilterType;
use quorate_api::proto::etcdserverpb::{self as pb, WatchCreateRequest};
use quorate_api::proto::mvccpb;
use quorate_api::proto::mvccpb::event::EventType;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const STREAMS: usize = 3;
const IDS: i64 = 6;

#[derive(Clone, Debug)]
enum Step {
    /// `(key, value length)`; no value is a delete. Published at once, or only with the next `Publish`.
    Write {
        ops: Vec<(u8, Option<u8>)>,
        publish: bool,
    },
    Publish,
    /// Several transactions arrive as a snapshot, compacted up to so many revisions before its end or not at all.
    Install {
        writes: u8,
        compacted: Option<u8>,
    },
    /// So many revisions behind the newest.
    Compact(u8),
    FailReads(u8),
    Create {
        stream: usize,
        id: i64,
        spec: Spec,
    },
    Cancel {
        stream: usize,
        id: i64,
    },
    Progress {
        stream: usize,
    },
    Tick,
    /// Clients had time to read what they were sent.
    TickSlow,
    Take {
        stream: usize,
        responses: u8,
    },
    Reopen {
        stream: usize,
    },
    Dispatch,
    ReadHistory,
}

#[derive(Clone, Debug)]
struct Spec {
    range: usize,
    /// Relative to the store's revision; `None` for "from now on".
    start: Option<i64>,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    notify: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stream = 0..STREAMS;
    let id = 1..=IDS;
    let op = (0..6u8, prop::option::weighted(0.7, 0..60u8));
    let spec = (
        0..RANGES.len(),
        prop::option::of(-12..5i64),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(range, start, no_put, no_delete, prev_kv, fragment, notify)| Spec {
            range,
            start,
            no_put,
            no_delete,
            prev_kv,
            fragment,
            notify,
        });
    let step = prop_oneof![
        12 => (prop::collection::vec(op, 1..6), prop::bool::weighted(0.8))
            .prop_map(|(ops, publish)| Step::Write { ops, publish }),
        2 => Just(Step::Publish),
        1 => (0..6u8, prop::option::weighted(0.3, 0..6u8))
            .prop_map(|(writes, compacted)| Step::Install { writes, compacted }),
        1 => (0..10u8).prop_map(Step::Compact),
        1 => (1..3u8).prop_map(Step::FailReads),
        6 => (stream.clone(), id.clone(), spec).prop_map(|(stream, id, spec)| Step::Create { stream, id, spec }),
        2 => (stream.clone(), id).prop_map(|(stream, id)| Step::Cancel { stream, id }),
        2 => stream.clone().prop_map(|stream| Step::Progress { stream }),
        1 => Just(Step::Tick),
        2 => Just(Step::TickSlow),
        6 => (stream.clone(), 1..5u8).prop_map(|(stream, responses)| Step::Take { stream, responses }),
        1 => stream.prop_map(|stream| Step::Reopen { stream }),
        12 => Just(Step::Dispatch),
        5 => Just(Step::ReadHistory),
    ];
    prop::collection::vec(step, 1..150)
}

const RANGES: &[(&str, &str)] = &[
    ("a", ""),
    ("b", ""),
    ("c", ""),
    ("a", "c"),
    ("b", "e"),
    ("c", "\0"),
    ("", "\0"),
];

fn key(at: u8) -> Bytes {
    Bytes::copy_from_slice(&[b'a' + at])
}

/// A watcher as its client knows it.
#[derive(Debug)]
struct Watcher {
    spec: Spec,
    range: KeyRange,
    /// As asked for; 0 for "from now on".
    start: i64,
    /// Revision of the store when the request was made.
    asked_at: i64,
    /// From here on events are owed: known once created.
    from: Option<i64>,
    seen: usize,
    last_event: i64,
    /// Fragments of a response that is not complete.
    pieces: Vec<mvccpb::Event>,
    cancel_asked: bool,
    compacted: bool,
}

struct Client {
    stream: WatchStream,
    /// By id: watchers in the order of their creation; the first one has not been reported cancelled.
    watchers: BTreeMap<i64, VecDeque<Watcher>>,
    progress_asked: usize,
    last_progress: i64,
}

struct Model {
    world: World,
    clients: Vec<Client>,
    unpublished: Vec<std::sync::Arc<crate::event::EventBatch>>,
}

impl Model {
    fn new() -> Self {
        let world = World::with(Options {
            outbox_bytes_max: 3500,
            outboxes_bytes_max: 5000,
            outbox_responses_max: 6,
            response_bytes: 500,
            fragment_bytes: 300,
            inbox_bytes_max: 5000,
            recent_batches: 3,
            ..Options::default()
        });
        world.past.scan_max(4);
        let clients = (0..STREAMS).map(|_| Client::new(&world)).collect();
        Self {
            world,
            clients,
            unpublished: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.world.past.revision().0;
        match step {
            Step::Write { mut ops, publish } => {
                // A transaction changes a key once.
                let mut keys = BTreeSet::new();
                ops.retain(|(at, _)| keys.insert(*at));
                let ops: Vec<Op> = ops
                    .into_iter()
                    .map(|(at, value)| match value {
                        Some(len) => Op::Put(key(at), Bytes::from(vec![b'v'; usize::from(len)])),
                        None => Op::Delete(key(at)),
                    })
                    .collect();
                self.unpublished.extend(self.world.past.apply(&ops));
                if publish {
                    self.publish();
                }
            }
            Step::Publish => self.publish(),
            Step::Install { writes, compacted } => {
                for at in 0..writes {
                    self.world
                        .past
                        .apply(&[Op::Put(key(at % 6), Bytes::from_static(b"installed"))]);
                }
                if let Some(before) = compacted {
                    self.compact(i64::from(before));
                }
                self.unpublished.clear();
                self.world.hub.resync_all();
            }
            Step::Compact(before) => self.compact(i64::from(before)),
            Step::FailReads(times) => self.world.past.fail(usize::from(times)),
            Step::Create { stream, id, spec } => self.clients[stream].create(id, spec, now),
            Step::Cancel { stream, id } => self.clients[stream].cancel(id),
            Step::Progress { stream } => {
                self.clients[stream].progress_asked += 1;
                self.clients[stream].stream.progress();
            }
            Step::Tick => self.world.hub.tick_progress(),
            Step::TickSlow => self.world.hub.tick_slow(),
            Step::Take { stream, responses } => {
                for _ in 0..responses {
                    self.clients[stream].take(&self.world);
                }
            }
            Step::Reopen { stream } => self.clients[stream] = Client::new(&self.world),
            Step::Dispatch => self.world.stepper.dispatch(),
            Step::ReadHistory => {
                self.world.stepper.read_history();
            }
        }
    }

    fn publish(&mut self) {
        self.world.hub.publish(std::mem::take(&mut self.unpublished));
    }

    fn compact(&mut self, before: i64) {
        let at = self.world.past.revision().0 - before;
        if at > 0 {
            self.world.past.compact(at);
        }
    }

    /// Lets everything come to rest: then nothing may be missing.
    fn finish(mut self) {
        self.publish();
        self.world.past.fail(0);
        self.rest();
        let now = self.world.past.revision().0;
        let mut live = 0;
        for client in &mut self.clients {
            let mut may_tell = true;
            let mut here = 0;
            for watcher in client.watchers.values().flatten() {
                assert!(!watcher.cancel_asked, "a cancel was not answered: {watcher:?}");
                assert!(watcher.pieces.is_empty(), "half a response: {watcher:?}");
                let from = watcher.from.expect("every create is answered");
                // A dead watcher keeps its id, and etcd takes it for one that is behind.
                may_tell &= !watcher.compacted;
                if !watcher.compacted {
                    let owed = watcher.owed(&self.world, from, now).len();
                    assert_eq!(watcher.seen, owed, "events are missing: {watcher:?}");
                    here += 1;
                    may_tell &= watcher.start <= now;
                }
            }
            // And now there is an answer about progress.
            client.last_progress = 0;
            client.progress_asked = 1;
            client.stream.progress();
            self.world.stepper.settle();
            while client.take(&self.world) {}
            let told = if may_tell && here > 0 { now } else { 0 };
            assert_eq!(client.last_progress, told);
            live += here;
        }
        let stats = self.world.hub.stats();
        assert_eq!((stats.streams, stats.watchers, stats.behind), (STREAMS as u64, live, 0));
        self.clients.clear();
        self.world.stepper.settle();
        let stats = self.world.hub.stats();
        assert_eq!((stats.streams, stats.watchers, stats.behind), (0, 0, 0));
        assert_eq!((stats.queued_bytes, stats.pending_events), (0, 0));
    }

    fn rest(&mut self) {
        let mut quiet = 0;
        // To find nothing is to read on as well, and the hub may have waited for that.
        while quiet < 2 {
            self.world.stepper.settle();
            quiet += 1;
            for client in &mut self.clients {
                while client.take(&self.world) {
                    quiet = 0;
                }
            }
        }
    }
}

impl Client {
    fn new(world: &World) -> Self {
        Self {
            stream: world.hub.stream(),
            watchers: BTreeMap::new(),
            progress_asked: 0,
            last_progress: 0,
        }
    }

    fn create(&mut self, id: i64, spec: Spec, now: i64) {
        let watchers = self.watchers.entry(id).or_default();
        if watchers.back().is_some_and(|last| !last.cancel_asked) {
            return; // in use
        }
        let (key, range_end) = RANGES[spec.range];
        let start = spec.start.map_or(0, |relative| (now + relative).max(1));
        let mut filters: Vec<i32> = Vec::new();
        filters.extend(spec.no_put.then_some(FilterType::Noput as i32));
        filters.extend(spec.no_delete.then_some(FilterType::Nodelete as i32));
        self.stream.create(WatchCreateRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(range_end.as_bytes()),
            start_revision: start,
            progress_notify: spec.notify,
            filters,
            prev_kv: spec.prev_kv,
            watch_id: id,
            fragment: spec.fragment,
        });
        watchers.push_back(Watcher {
            range: KeyRange::new(
                Bytes::from_static(key.as_bytes()),
                Bytes::from_static(range_end.as_bytes()),
            ),
            spec,
            start,
            asked_at: now,
            from: None,
            seen: 0,
            last_event: 0,
            pieces: Vec::new(),
            cancel_asked: false,
            compacted: false,
        });
    }

    fn cancel(&mut self, id: i64) {
        self.stream.cancel(id);
        if let Some(last) = self.watchers.get_mut(&id).and_then(VecDeque::back_mut) {
            last.cancel_asked = true;
        }
    }

    /// Reads one response, if there is one, and checks it.
    fn take(&mut self, world: &World) -> bool {
        let Some(response) = self.stream.try_next() else {
            return false;
        };
        let response = wire(&response);
        let at = revision(&response);
        assert!(at <= world.past.revision().0);
        if response.watch_id == -1 {
            assert_eq!(
                self.progress_asked
                    .checked_sub(1)
                    .map(|left| self.progress_asked = left),
                Some(())
            );
            assert!(at >= self.last_progress, "progress went back");
            self.last_progress = at;
            let current = self.watchers.values().filter_map(VecDeque::front);
            let mut told = 0;
            for watcher in current.filter(|watcher| watcher.from.is_some() && !watcher.compacted) {
                watcher.check_progress(world, at);
                told += 1;
            }
            assert!(told > 0, "progress of no watcher");
            return true;
        }
        let watchers = self
            .watchers
            .get_mut(&response.watch_id)
            .expect("an id that was asked for");
        let watcher = watchers.front_mut().expect("a watcher that was not cancelled");
        if response.created {
            assert!(!response.canceled && watcher.from.is_none() && at >= watcher.asked_at);
            watcher.from = Some(if watcher.start == 0 { at + 1 } else { watcher.start });
            watcher.last_event = 0;
        } else if response.compact_revision != 0 {
            watcher.check_compacted(world, &response);
        } else if response.canceled {
            assert!(watcher.cancel_asked && watcher.from.is_some());
            watchers.pop_front();
        } else if response.events.is_empty() {
            assert!(watcher.spec.notify && !watcher.compacted);
            watcher.check_progress(world, at);
        } else {
            watcher.check_events(world, response);
        }
        true
    }
}

impl Watcher {
    fn owed(&self, world: &World, from: i64, to: i64) -> Vec<mvccpb::Event> {
        let mut events = world.past.events(&self.range, from, to);
        events.retain(|event| match event.r#type() {
            EventType::Put => !self.spec.no_put,
            EventType::Delete => !self.spec.no_delete,
        });
        events
    }

    fn check_events(&mut self, world: &World, response: pb::WatchResponse) {
        assert!(!self.compacted && (self.spec.fragment || !response.fragment));
        let header = revision(&response);
        self.pieces.extend(response.events);
        if response.fragment {
            return;
        }
        let got = std::mem::take(&mut self.pieces);
        let owed = self.owed(world, self.from.expect("created comes first"), i64::MAX);
        let rest = &owed[self.seen..];
        assert!(got.len() <= rest.len(), "more than there is: {got:?}");
        for (got, want) in got.iter().zip(rest) {
            assert_eq!((&got.kv, got.r#type), (&want.kv, want.r#type), "{self:?}");
            let at = want.kv.as_ref().unwrap().mod_revision;
            match &got.prev_kv {
                Some(_) => assert!(self.spec.prev_kv && got.prev_kv == want.prev_kv),
                None => assert!(!self.spec.prev_kv || want.prev_kv.is_none() || at <= world.past.compacted()),
            }
            self.last_event = at;
        }
        assert!(header >= self.last_event);
        self.seen += got.len();
        let torn = owed
            .get(self.seen)
            .is_some_and(|next| next.kv.as_ref().unwrap().mod_revision == self.last_event);
        assert!(!torn, "a transaction in two responses: {self:?}");
    }

    /// Everything up to `at` was sent, nothing beyond it, and `at` is not before its time.
    fn check_progress(&self, world: &World, at: i64) {
        let from = self.from.expect("created comes first");
        assert!(
            at >= self.start && at >= from - 1 && at >= self.last_event,
            "{at} for {self:?}"
        );
        assert!(self.pieces.is_empty());
        assert_eq!(self.seen, self.owed(world, from, at).len(), "promised {at} to {self:?}");
    }

    fn check_compacted(&mut self, world: &World, response: &pb::WatchResponse) {
        assert!(response.canceled && response.events.is_empty() && response.cancel_reason.is_empty());
        assert_eq!(revision(response), 0);
        let at = response.compact_revision;
        assert!(at <= world.past.compacted() && !self.compacted && self.pieces.is_empty());
        let from = self.from.expect("created comes first");
        assert!(from.max(self.last_event + 1) < at, "needs nothing below {at}: {self:?}");
        self.compacted = true;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// B5, B6, B7, B8, B14, B15, B47, D20
    #[test]
    fn every_client_gets_exactly_what_it_is_owed(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
