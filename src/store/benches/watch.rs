//! What does an event cost the watch hub, per watcher that gets it?
//!
//! `cargo bench -p quorate-store --bench watch --profile quick [-- name]`. Everything runs on one thread, by hand; the
//! figures are CPU time, steady on a busy machine. Sockets, TLS and HTTP/2 are not in them. "dispatch" is the hub up to the
//! outboxes, "take" is what the streams' tasks do: pop and encode as a gRPC message. One row also runs the hub's own
//! threads. Memory is resident size.

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::WatchCreateRequest;
use quorate_api::proto::mvccpb;
use quorate_api::{KeyRange, Revision};
use quorate_store::event::{Event, EventBatch, EventKind};
use quorate_store::watch::{Header, History, HistoryError, Hub, Options, Replay, Segments, Stepper, WatchStream};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 256;
const HEADER: Header = Header {
    cluster_id: 0xcdf8_1819_4e3a_8c32,
    member_id: 0x8e9e_05c5_2164_694d,
    raft_term: 2,
};

/// A store whose every revision is one put of the key that is asked about: a past that costs nothing to keep.
struct Present(AtomicI64);

impl History for Present {
    fn revision(&self) -> Revision {
        Revision(self.0.load(Ordering::Relaxed))
    }

    fn compacted(&self) -> i64 {
        -1
    }

    fn read(
        &self,
        range: &KeyRange,
        from: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Replay, HistoryError> {
        let most = batches_max.min(bytes_max / (range.start.len() + VALUE_BYTES) + 1) as i64;
        let through = Revision(self.revision().0.min(from.0 - 1 + most));
        let batches = (from.0..=through.0)
            .map(|at| batch(Revision(at), &range.start))
            .collect();
        Ok(Replay { batches, through })
    }

    fn pair_at(&self, key: &[u8], mod_revision: Revision) -> Result<Option<mvccpb::KeyValue>, HistoryError> {
        Ok(Some(mvccpb::KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: 2,
            mod_revision: mod_revision.0,
            version: 1,
            value: Bytes::from_static(&[b'p'; VALUE_BYTES]),
            lease: 0,
        }))
    }
}

impl Present {
    fn put(&self, key: &Bytes) -> Arc<EventBatch> {
        let revision = Revision(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        Arc::new(batch(revision, key))
    }
}

fn batch(revision: Revision, key: &Bytes) -> EventBatch {
    let event = Event {
        kind: EventKind::Put {
            create_revision: Revision(2),
            version: 2,
            lease: 0,
            value: Bytes::from_static(&[b'v'; VALUE_BYTES]),
        },
        key: key.clone(),
        prev: Some(Revision(revision.0 - 1)),
    };
    EventBatch {
        revision,
        events: vec![event],
    }
}

struct Bench {
    store: Arc<Present>,
    hub: Hub,
    stepper: Stepper,
    streams: Vec<WatchStream>,
}

fn request(key: &str, range_end: &str, prev_kv: bool) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        prev_kv,
        ..Default::default()
    }
}

impl Bench {
    /// `requests` dealt out to `streams` in turn.
    fn new(streams: usize, requests: impl Iterator<Item = WatchCreateRequest>) -> Self {
        let store = Arc::new(Present(AtomicI64::new(1)));
        let options = Options {
            outbox_bytes_max: 64 << 20,
            outboxes_bytes_max: usize::MAX,
            outbox_responses_max: 1 << 20,
            ..Options::default()
        };
        let (hub, stepper) = Hub::manual(store.clone(), options);
        let streams: Vec<_> = (0..streams).map(|_| hub.stream()).collect();
        let mut bench = Self {
            store,
            hub,
            stepper,
            streams,
        };
        for (at, request) in requests.enumerate() {
            let stream = at % bench.streams.len();
            bench.streams[stream].create(request);
        }
        bench.stepper.settle();
        bench.take();
        bench
    }

    /// Encodes all that waits, as a stream's task would; returns the bytes.
    fn take(&mut self) -> usize {
        let mut bytes = 0;
        for stream in &mut self.streams {
            let mut out = Segments::new();
            while let Some(response) = stream.try_next() {
                response.encode_grpc(&HEADER, &mut out);
                if out.len() > 64 << 10 {
                    bytes += out.len();
                    black_box(out.take());
                }
            }
            bytes += out.len();
            black_box(out.take());
        }
        bytes
    }

    /// `rounds` times: `per_round` events on keys in turn, dispatch, take.
    fn run(&mut self, name: &str, rounds: usize, per_round: usize, keys: &[Bytes]) {
        let before = self.hub.stats().events_total;
        let (mut dispatching, mut taking) = (Duration::ZERO, Duration::ZERO);
        let mut keys = keys.iter().cycle();
        for _ in 0..rounds {
            let batches = keys.by_ref().take(per_round).map(|key| self.store.put(key)).collect();
            let start = cpu(ClockId::ThreadCPUTime);
            self.hub.publish(batches);
            self.stepper.dispatch();
            let dispatched = cpu(ClockId::ThreadCPUTime);
            black_box(self.take());
            dispatching += dispatched - start;
            taking += cpu(ClockId::ThreadCPUTime) - dispatched;
        }
        let delivered = self.hub.stats().events_total - before;
        let events = (rounds * per_round) as f64;
        println!(
            "{name:<58} {:>9.2} {:>12.0} {:>12.0} {:>9.2}",
            delivered as f64 / events,
            dispatching.as_nanos() as f64 / delivered as f64,
            taking.as_nanos() as f64 / delivered as f64,
            dispatching.as_nanos() as f64 / events / 1000.0,
        );
    }
}

fn fan_out() {
    let key = [Bytes::from_static(b"/registry/configmaps/default/one")];
    for prev_kv in [false, true] {
        for (watchers, streams) in [(1, 1), (100, 1), (100, 100), (1000, 1), (1000, 100)] {
            let requests = (0..watchers).map(|_| request("/registry/configmaps/default/one", "", prev_kv));
            let mut bench = Bench::new(streams, requests);
            for per_round in [1, 10] {
                let with = if prev_kv { ", prev_kv" } else { "" };
                let name = format!("{watchers} watchers of a key, {streams} streams, {per_round}/round{with}");
                bench.run(&name, 200_000 / watchers / per_round + 1, per_round, &key);
            }
        }
    }
}

fn ranges() {
    let keys: Vec<Bytes> = (0..10_000)
        .map(|n| Bytes::from(format!("/registry/pods/ns-{n:05}/pod")))
        .collect();
    let prefix = |n: usize| {
        request(
            &format!("/registry/pods/ns-{n:05}/"),
            &format!("/registry/pods/ns-{n:05}0"),
            false,
        )
    };

    let mut bench = Bench::new(100, (0..10_000).map(prefix));
    bench.run("10,000 disjoint prefixes, 100 streams, 1/round", 50_000, 1, &keys);
    bench.run("10,000 disjoint prefixes, 100 streams, 100/round", 1000, 100, &keys);

    // [0, n): the longest contains all others, half of them contain the average key.
    let nested = (0..10_000).map(|n| request("/registry/pods/", &format!("/registry/pods/ns-{n:05}0"), false));
    let mut bench = Bench::new(100, nested);
    bench.run("10,000 nested ranges, 100 streams, 1/round", 100, 1, &keys);

    let same = (0..10_000).map(|_| request("/registry/pods/", "/registry/pods0", false));
    let mut bench = Bench::new(100, same);
    bench.run("10,000 watchers of one prefix, 100 streams, 1/round", 100, 1, &keys);

    let elsewhere = [Bytes::from_static(b"/registry/secrets/default/one")];
    let mut bench = Bench::new(100, (0..10_000).map(prefix));
    let start = cpu(ClockId::ThreadCPUTime);
    for _ in 0..1000 {
        let batches = (0..100).map(|_| bench.store.put(&elsewhere[0])).collect();
        bench.hub.publish(batches);
        bench.stepper.dispatch();
    }
    println!(
        "{:<58} {:>9} {:>12} {:>12} {:>9.2}",
        "10,000 disjoint prefixes, key that nobody watches",
        0,
        "-",
        "-",
        (cpu(ClockId::ThreadCPUTime) - start).as_nanos() as f64 / 100_000.0 / 1000.0
    );
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .unwrap_or_default()
        * 4096
}

fn memory() {
    for (name, single) in [("10,000 single keys", true), ("10,000 prefixes", false)] {
        let empty = Bench::new(100, std::iter::empty());
        let before = resident();
        let bench = Bench::new(
            100,
            (0..10_000).map(|n| {
                let key = format!("/registry/pods/ns-{n:05}/");
                let end = format!("/registry/pods/ns-{n:05}0");
                request(&key, if single { "" } else { &end }, true)
            }),
        );
        let used = resident().saturating_sub(before);
        println!(
            "{name}, 100 streams: {} KiB resident, {} bytes per watcher",
            used >> 10,
            used / 10_000
        );
        drop((empty, bench));
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn cpu(of: ClockId) -> Duration {
    let time = clock_gettime(of);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn threads() {
    let store = Arc::new(Present(AtomicI64::new(1)));
    let Ok(hub) = Hub::start(store.clone(), Options::default()) else {
        return println!("no threads to be had");
    };
    const EVENTS: u64 = 20_000;
    const READERS: u64 = 4;
    const WATCHERS: u64 = 25;
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut stream = hub.stream();
            for _ in 0..WATCHERS {
                stream.create(request("key", "", false));
            }
            thread::spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                let mut cx = Context::from_waker(&waker);
                let mut out = Segments::new();
                let mut seen = 0;
                while seen < EVENTS * WATCHERS {
                    match stream.poll_next(&mut cx) {
                        Poll::Ready(Some(response)) => {
                            seen += response.events_len() as u64;
                            response.encode_grpc(&HEADER, &mut out);
                        }
                        Poll::Ready(None) => return,
                        Poll::Pending => {
                            black_box(out.take());
                            thread::park();
                        }
                    }
                }
            })
        })
        .collect();
    while hub.stats().watchers < READERS * WATCHERS {
        thread::yield_now();
    }
    let key = Bytes::from_static(b"key");
    let (start, cpu_before) = (Instant::now(), cpu(ClockId::ProcessCPUTime));
    for _ in 0..EVENTS {
        hub.publish(vec![store.put(&key)]);
        if start.elapsed().as_micros() % 16 == 0 {
            thread::sleep(Duration::from_micros(50)); // apply has other things to do
        }
    }
    for reader in readers {
        let _ = reader.join();
    }
    let delivered = (EVENTS * READERS * WATCHERS) as f64;
    println!(
        "own threads, {} watchers on {READERS} streams: {:.2} M delivered/s, {:.2} µs CPU per delivered event",
        READERS * WATCHERS,
        delivered / start.elapsed().as_secs_f64() / 1e6,
        (cpu(ClockId::ProcessCPUTime) - cpu_before).as_secs_f64() * 1e6 / delivered,
    );
    hub.stop();
}

fn main() {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("memory") {
        memory(); // first: nothing was freed yet that could be reused
    }
    println!(
        "{:<58} {:>9} {:>12} {:>12} {:>9}",
        "", "watchers", "dispatch", "take", "dispatch"
    );
    println!(
        "{:<58} {:>9} {:>12} {:>12} {:>9}",
        "", "/event", "ns/delivered", "ns/delivered", "µs/event"
    );
    if wanted("fan_out") {
        fan_out();
    }
    if wanted("ranges") {
        ranges();
    }
    if wanted("threads") {
        threads();
    }
}
