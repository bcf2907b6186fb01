//! A store and a watch hub without threads: the same store, and the same again from the same seed.

#![allow(clippy::unwrap_used)]

mod kit;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use quorate_api::ClusterId;
use quorate_api::proto::etcdserverpb::{CompactionRequest, PutRequest, WatchCreateRequest};
use quorate_store::backend::{self, Applied};
use quorate_store::command::Command;
use quorate_store::event::EventBatch;
use quorate_store::testing::{ALL_CASES, MemDisk, MemPlace, Rng, Survives};
use quorate_store::watch::{self, Header, Hub, WatchStream};
use quorate_store::{Applier, Error, EventSink, Stepper, Store};

use kit::whole::{Feed, Picture, options, picture};

/// The hub comes after the store that it reads.
#[derive(Clone, Default)]
struct ToHub(Arc<OnceLock<Hub>>);

impl EventSink for ToHub {
    fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        self.0.get().unwrap().publish(batches);
    }

    fn replaced(&self) {
        self.0.get().unwrap().resync_all();
    }
}

struct Member {
    place: MemPlace,
    store: Store,
    applier: Applier,
    stepper: Stepper,
    hub: Hub,
    hub_stepper: watch::Stepper,
    streams: Vec<WatchStream>,
    /// How often the hooks were called.
    asked: Arc<AtomicUsize>,
}

/// Small, so that streams are full and inboxes are too.
fn hub_options() -> watch::Options {
    watch::Options {
        outbox_bytes_max: 4 << 10,
        outboxes_bytes_max: 8 << 10,
        inbox_bytes_max: 32 << 10,
        response_bytes: 2 << 10,
        recent_batches: 8,
        ..watch::Options::default()
    }
}

impl Member {
    fn open(place: &MemPlace) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let hook = || {
            let asked = asked.clone();
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
            }
        };
        let sink = ToHub::default();
        let (store, applier, stepper) =
            Store::open_stepped(Box::new(place.clone()), options(), Box::new(sink.clone()), hook()).unwrap();
        let (hub, hub_stepper) = Hub::stepped(Arc::new(store.clone()), hub_options(), hook());
        sink.0.set(hub.clone()).unwrap();
        Self {
            place: place.clone(),
            store,
            applier,
            stepper,
            hub,
            hub_stepper,
            streams: Vec::new(),
            asked,
        }
    }

    fn image_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.place.disk().image().hash(&mut hasher);
        hasher.finish()
    }
}

fn commit_all(stepper: &Stepper) {
    while stepper.commit().unwrap() {}
}

/// A run, and everything that it shows, line by line.
struct World {
    rng: Rng,
    member: Member,
    feed: Feed,
    /// From where snapshots come.
    donor: (Store, Applier, Stepper, Feed),
    seen: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut member = Member::open(&MemPlace::crashable());
        let mut feed = Feed::new(seed);
        feed.found(&mut member.applier, 7);
        let (store, mut applier, stepper) =
            Store::open_stepped(Box::new(MemPlace::default()), options(), Box::new(()), || {}).unwrap();
        let mut other = Feed::new(!seed);
        other.found(&mut applier, 7);
        Self {
            rng: Rng(seed ^ 0x57e9),
            member,
            feed,
            donor: (store, applier, stepper, other),
            seen: Vec::new(),
        }
    }

    fn reopen(&mut self, survives: Survives) {
        let place = self.member.place.power_loss(survives, &mut self.rng);
        self.member = Member::open(&place);
        self.feed.index = self.member.applier.applied().map_or(0, |applied| applied.index);
        if self.member.store.cluster_id() != Some(ClusterId(7)) {
            self.feed.found(&mut self.member.applier, 7);
        }
        self.seen
            .push(format!("{survives:?}: {:?}", picture(&self.member.store)));
    }

    fn install(&mut self) {
        let (store, applier, stepper, feed) = &mut self.donor;
        while feed.index <= self.feed.index || store.revision() < self.member.store.revision() {
            feed.step(store, applier);
        }
        commit_all(stepper);
        let mut incoming = self.member.store.receive().unwrap();
        for piece in store.image().unwrap().read() {
            incoming.push(piece.unwrap()).unwrap();
        }
        let received = incoming.finish().unwrap();
        self.member.applier.install(received).unwrap();
        self.feed.index = feed.index;
    }

    fn watch(&mut self) {
        let rng = &mut self.rng;
        if self.member.streams.len() < 3 || rng.chance(10) {
            self.member.streams.push(self.member.hub.stream());
        }
        let at = rng.below(self.member.streams.len() as u64) as usize;
        let (key, range_end): (Bytes, Bytes) = match rng.below(4) {
            0 => (format!("key/{:03}", rng.below(60)).into(), Bytes::new()),
            1 => ("key/".into(), "key0".into()),
            _ => (
                format!("key/{:03}", rng.below(30)).into(),
                format!("key/{:03}", 30 + rng.below(30)).into(),
            ),
        };
        let newest = self.member.store.revision().0 as u64;
        self.member.streams[at].create(WatchCreateRequest {
            key,
            range_end,
            start_revision: if rng.chance(50) {
                1 + rng.below(newest + 3) as i64
            } else {
                0
            },
            prev_kv: rng.chance(30),
            progress_notify: rng.chance(30),
            ..Default::default()
        });
    }

    fn read(&mut self, at: usize, most: u64) {
        let header = Header::default();
        for _ in 0..most {
            let Some(response) = self.member.streams[at].try_next() else {
                break;
            };
            let mut out = watch::Segments::new();
            response.encode_grpc(&header, &mut out);
            self.seen.push(format!("stream {at}: {:?}", out.take()));
        }
    }

    fn step(&mut self) {
        let streams = self.member.streams.len() as u64;
        let mut chosen = self.rng.below(100);
        if chosen >= 95 && self.rng.chance(70) {
            chosen -= 30; // lives are long enough for watchers to fall behind
        }
        match chosen {
            0..45 => {
                let outcomes = self.feed.step(&self.member.store, &mut self.member.applier);
                self.seen.push(format!("{outcomes:?}"));
            }
            45..53 => {
                let commit = self.member.stepper.commit();
                self.seen
                    .push(format!("commit: {commit:?}, {:?}", self.member.store.durable()));
            }
            53..59 => {
                let most = 1 + self.rng.below(30) as usize;
                let compact = self.member.stepper.compact(most);
                self.seen.push(format!("compact: {compact:?}"));
            }
            59..61 => {
                let flush = self.member.store.flush();
                self.seen.push(format!("flush: {flush:?}"));
            }
            61..68 => self.watch(),
            68..70 if streams > 0 => {
                let at = self.rng.below(streams) as usize;
                match self.rng.below(3) {
                    0 => self.member.streams[at].progress(),
                    1 => drop(self.member.streams.remove(at)),
                    _ => self.member.streams[at].cancel(self.rng.below(4) as i64),
                }
            }
            70 => self.member.hub.tick_progress(),
            71 => self.member.hub.tick_slow(),
            72..82 => {
                let waiting = self.member.hub_stepper.step();
                self.seen
                    .push(format!("waiting: {waiting}, {:?}", self.member.hub.stats()));
            }
            82..93 if streams > 0 => {
                let at = self.rng.below(streams) as usize;
                let most = self.rng.below(10);
                self.read(at, most);
            }
            93..95 => self.install(),
            95 => {
                // The disk dies in the middle of a commit.
                self.member.place.disk().fail_write_after(self.rng.below(20));
                let flush = self.member.store.flush();
                self.seen.push(format!("flush: {flush:?}"));
                let survives = ALL_CASES[self.rng.below(ALL_CASES.len() as u64) as usize];
                self.reopen(survives);
            }
            96 => self.reopen(Survives::All),
            97 => self.reopen(Survives::Nothing),
            98 => self.reopen(Survives::Sectors),
            _ => {
                let before = picture(&self.member.store);
                self.member.store.defragment().unwrap();
                assert_eq!(picture(&self.member.store), before);
            }
        }
        let asked = self.member.asked.load(Ordering::Relaxed);
        self.seen
            .push(format!("{chosen}, {asked}, {:x}", self.member.image_hash()));
    }

    fn end(mut self) -> Vec<String> {
        self.member.hub_stepper.step();
        (0..self.member.streams.len()).for_each(|at| self.read(at, u64::MAX));
        self.member.store.flush().unwrap();
        self.seen.push(format!("{:?}", picture(&self.member.store)));
        self.seen.push(format!("{:x}", self.member.image_hash()));
        self.seen
    }
}

fn run(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    (0..600).for_each(|_| world.step());
    world.end()
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let mut ends = Vec::new();
    let (mut events, mut behind) = (0, 0);
    for seed in 0..12 {
        let (first, again) = (run(seed), run(seed));
        events += first.iter().filter(|line| line.starts_with("stream")).count();
        behind += first
            .iter()
            .filter(|line| line.contains("behind: ") && !line.contains("behind: 0"))
            .count();
        let differs = first.iter().zip(&again).position(|(a, b)| a != b);
        if let Some(at) = differs {
            panic!("seed {seed}, line {at}:\n{}\n{}", first[at], again[at]);
        }
        assert_eq!(first.len(), again.len(), "seed {seed}");
        ends.push(first.last().unwrap().clone());
    }
    println!("{events} responses, {behind} times behind");
    assert!(events > 400, "only {events} responses of watches");
    assert!(behind > 50, "watchers were behind only {behind} times");
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends.len(), 12, "other seeds are other runs");
}

/// Many watchers of few ranges, on streams that come and go or are hardly read: whose turn it is must not depend on the
/// order of a hash table.
fn crowd(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    for _ in 0..600 {
        let mut rng = world.rng.clone();
        let streams = world.member.streams.len() as u64;
        match rng.below(20) {
            0..6 => {
                world.feed.step(&world.member.store, &mut world.member.applier);
            }
            6 if streams < 6 => {
                let mut stream = world.member.hub.stream();
                for _ in 0..12 {
                    let from = 20 * rng.below(3);
                    stream.create(WatchCreateRequest {
                        key: format!("key/{from:03}").into(),
                        range_end: format!("key/{:03}", from + 30).into(),
                        prev_kv: rng.chance(50),
                        ..Default::default()
                    });
                }
                world.member.streams.push(stream);
            }
            7 if streams > 3 => drop(world.member.streams.remove(rng.below(streams) as usize)),
            8 => world.member.hub.tick_slow(),
            9..14 => {
                world.member.hub_stepper.step();
                world.seen.push(format!("{:?}", world.member.hub.stats()));
            }
            14.. if streams > 0 => world.read(rng.below(streams) as usize, 6),
            _ => {}
        }
        world.rng = rng;
    }
    world.end()
}

#[test]
fn a_crowd_of_watchers_is_served_in_the_same_order_again() {
    for seed in 0..6 {
        let (first, again) = (crowd(seed), crowd(seed));
        let differs = first.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        let responses = first.iter().filter(|line| line.starts_with("stream")).count();
        assert!(responses > 200, "seed {seed}: only {responses} responses");
    }
}

/// What the same entries, commits at the same places, compactions and installs come to.
fn outcome(seed: u64, stepped: bool) -> (Vec<String>, Vec<Vec<u8>>, Picture) {
    let mut options = options();
    options.backend.commit_bytes = 128 << 20; // no commit that nobody asked for
    let place = MemPlace::default();
    let boxed = Box::new(place.clone());
    let (store, mut applier) = if stepped {
        let (store, applier, _) = Store::open_stepped(boxed, options, Box::new(()), || {}).unwrap();
        (store, applier)
    } else {
        Store::open_in(boxed, options, Box::new(())).unwrap()
    };
    let (mut seen, mut images) = (Vec::new(), Vec::new());
    let mut rng = Rng(seed);
    let mut feed = Feed::new(seed);
    feed.found(&mut applier, 7);
    let mut donor = World::new(seed).donor;
    for _ in 0..300 {
        match rng.below(20) {
            0..16 => seen.push(format!("{:?}", feed.step(&store, &mut applier))),
            16..19 => {
                seen.push(format!("{:?}", store.flush()));
                images.push(place.disk().image());
            }
            _ => {
                let (from, applier_of, stepper, feed_of) = &mut donor;
                while feed_of.index <= feed.index || from.revision() < store.revision() {
                    feed_of.step(from, applier_of);
                }
                commit_all(stepper);
                let mut incoming = store.receive().unwrap();
                for piece in from.image().unwrap().read() {
                    incoming.push(piece.unwrap()).unwrap();
                }
                applier.install(incoming.finish().unwrap()).unwrap();
                feed.index = feed_of.index;
            }
        }
    }
    while applier.compact_step(10).unwrap() {}
    seen.push(format!("{:?}", applier.close()));
    images.push(place.disk().image());
    let picture = picture(&store);
    drop(store);
    images.push(place.disk().image());
    (seen, images, picture)
}

#[test]
fn threads_and_steps_come_to_the_same() {
    for seed in 0..6 {
        let (stepped, threaded) = (outcome(seed, true), outcome(seed, false));
        assert_eq!(stepped.0, threaded.0, "seed {seed}");
        assert!(
            stepped.2 == threaded.2,
            "seed {seed}: {:?}\n{:?}",
            stepped.2,
            threaded.2
        );
        assert!(stepped.1 == threaded.1, "seed {seed}: the files differ");
    }
}

fn put(value: Vec<u8>) -> Command {
    Command::Put(PutRequest {
        key: "key".into(),
        value: value.into(),
        ..Default::default()
    })
}

fn apply(applier: &mut Applier, index: u64, command: Command) {
    let entry = Applied { index, term: 1 };
    applier.apply(entry, vec![command], &mut Vec::new()).unwrap();
}

#[test]
fn nothing_is_committed_before_somebody_says_so_and_the_hook_asks_for_it() {
    let mut member = Member::open(&MemPlace::crashable());
    assert!(
        !member.stepper.commit().unwrap(),
        "a store that was just opened has nothing to commit"
    );
    let asked = || member.asked.load(Ordering::Relaxed);
    let before = asked();
    let image = member.image_hash();
    apply(&mut member.applier, 1, put(b"one".to_vec()));
    assert_eq!(asked(), before + 1);
    assert_eq!((member.image_hash(), member.store.durable().last.index), (image, 0));
    assert!(member.stepper.commit().unwrap());
    assert!(!member.stepper.commit().unwrap());
    assert_eq!(member.store.durable().last.index, 1);
    apply(&mut member.applier, 2, put(b"two".to_vec()));
    assert_eq!(member.store.flush().unwrap().last.index, 2, "who flushes commits");
    apply(&mut member.applier, 3, put(b"three".to_vec()));
    assert_eq!(member.applier.close().unwrap().last.index, 3);
    assert_eq!(member.store.sizes().pending_bytes, 0);
}

#[test]
fn who_finds_the_queue_full_commits() {
    let mut options = options();
    options.backend.pending_bytes_max = 10_000;
    let (store, mut applier, _stepper) =
        Store::open_stepped(Box::new(MemPlace::default()), options, Box::new(()), || {}).unwrap();
    (1..40).for_each(|index| apply(&mut applier, index, put(vec![1; 3000])));
    assert!(store.durable().last.index > 30);
}

#[test]
fn who_waits_for_a_compaction_hears_of_its_end() {
    let mut member = Member::open(&MemPlace::crashable());
    (1..40).for_each(|index| apply(&mut member.applier, index, put(vec![1; 100])));
    let compact = CompactionRequest {
        revision: 20,
        physical: true,
    };
    let asked = member.asked.load(Ordering::Relaxed);
    apply(&mut member.applier, 40, Command::Compact(compact));
    assert!(member.asked.load(Ordering::Relaxed) > asked);
    let heard = Arc::new(OnceLock::new());
    let tell = heard.clone();
    member
        .store
        .on_compacted(20, move |result| tell.set(result.is_ok()).unwrap());
    assert_eq!(heard.get(), None);
    while member.stepper.compact(5).unwrap() {}
    assert_eq!(heard.get(), Some(&true));
    assert_eq!(member.store.durable().last.index, 40, "and it is durable");
}

#[derive(Default)]
struct Fatal(AtomicUsize);

impl backend::Observer for Fatal {
    fn fatal(&self, _: &backend::Error) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A disk that fails, and one without space for which nobody could wait.
#[test]
fn a_commit_that_fails_is_final_and_hangs_nobody() {
    for full in [true, false] {
        let fatal = Arc::new(Fatal::default());
        let mut options = options();
        options.backend.observer = fatal.clone();
        let disk = MemDisk::default();
        let place = Box::new(MemPlace::with(disk.clone()));
        let (store, mut applier, stepper) = Store::open_stepped(place, options, Box::new(()), || {}).unwrap();
        apply(&mut applier, 1, put(b"one".to_vec()));
        store.flush().unwrap();
        match full {
            true => disk.set_capacity(disk.used()),
            false => disk.fail_write_after(0),
        }
        apply(&mut applier, 2, put(vec![2; 100_000]));
        assert!(matches!(stepper.commit(), Err(Error::Backend(_))));
        assert!(stepper.commit().is_err() && store.flush().is_err());
        assert!(store.failure().is_some());
        assert_eq!(fatal.0.load(Ordering::Relaxed), 1);
        let refused = applier.apply(Applied { index: 3, term: 1 }, vec![put(Vec::new())], &mut Vec::new());
        assert!(refused.is_err());
        assert!(applier.close().is_err());
        drop(store);
        assert!(!stepper.commit().unwrap(), "there is nothing left to commit to");
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_task_that_waits_for_a_stream_is_woken_by_a_step_and_hears_the_end() {
    let mut member = Member::open(&MemPlace::crashable());
    let mut stream = member.hub.stream();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    stream.create(WatchCreateRequest {
        key: "key".into(),
        ..Default::default()
    });
    assert!(stream.poll_next(&mut cx).is_pending());
    member.hub_stepper.step();
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert!(matches!(stream.poll_next(&mut cx), Poll::Ready(Some(response)) if response.events_len() == 0));
    assert!(stream.poll_next(&mut cx).is_pending());
    apply(&mut member.applier, 1, put(b"one".to_vec()));
    assert!(stream.poll_next(&mut cx).is_pending(), "nothing happens by itself");
    assert!(!member.hub_stepper.step());
    assert!(matches!(stream.poll_next(&mut cx), Poll::Ready(Some(response)) if response.events_len() == 1));
    assert!(stream.poll_next(&mut cx).is_pending());
    member.hub.stop();
    member.hub_stepper.step();
    assert!(matches!(stream.poll_next(&mut cx), Poll::Ready(None)));
    assert_eq!(woken.0.load(Ordering::Relaxed), 3);
}
