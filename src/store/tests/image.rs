//! Snapshots at the level of the store: what an image holds, who notices an install, and what is refused.

#![allow(clippy::unwrap_used)]

mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_store::backend::{self, Applied};
use quorate_store::command::Command;
use quorate_store::event::EventBatch;
use quorate_store::testing::Rng;
use quorate_store::{Applier, Error, EventSink, Image, Received, Store};

use kit::whole::{Feed, everything, options, picture};

struct Node {
    store: Store,
    applier: Applier,
    replaced: Arc<AtomicUsize>,
    folder: Arc<tempfile::TempDir>,
}

struct Sink(Arc<AtomicUsize>);

impl EventSink for Sink {
    fn publish(&self, _batches: Vec<Arc<EventBatch>>) {}

    fn replaced(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Node {
    fn new() -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap()), options())
    }

    fn open(folder: Arc<tempfile::TempDir>, options: quorate_store::Options) -> Self {
        let replaced = Arc::new(AtomicUsize::new(0));
        let path = folder.path().join("backend");
        let (store, applier) = Store::open(&path, options, Box::new(Sink(replaced.clone()))).unwrap();
        Self {
            store,
            applier,
            replaced,
            folder,
        }
    }

    fn fed(seed: u64, cluster: u64, steps: usize) -> (Self, Feed) {
        let mut node = Self::new();
        let mut feed = Feed::new(seed);
        feed.found(&mut node.applier, cluster);
        feed.steps(steps, &node.store, &mut node.applier);
        node.store.flush().unwrap();
        (node, feed)
    }

    fn crash(self) -> Self {
        let folder = self.folder.clone();
        drop((self.store, self.applier));
        Self::open(folder, options())
    }

    fn image(&self) -> Image {
        self.store.flush().unwrap();
        self.store.image().unwrap()
    }

    fn receive(&self, stream: &[u8]) -> Result<Received, Error> {
        let mut incoming = self.store.receive()?;
        incoming.push(Bytes::copy_from_slice(stream))?;
        incoming.finish()
    }

    fn install(&mut self, image: &Image) {
        let received = self.receive(&stream(image)).unwrap();
        self.applier.install(received).unwrap();
    }

    fn has_leftovers(&self) -> bool {
        self.folder.path().join("backend.incoming").exists()
    }
}

fn stream(image: &Image) -> Vec<u8> {
    image
        .read()
        .map(|piece| piece.unwrap())
        .collect::<Vec<Bytes>>()
        .concat()
}

fn put(key: &str, value: Vec<u8>) -> Command {
    Command::Put(pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        ..Default::default()
    })
}

#[test]
fn an_image_is_the_whole_store_however_it_is_cut() {
    for seed in 0..4 {
        let (mut from, mut feed) = Node::fed(seed, 7, 400);
        let image = from.image();
        let before = picture(&from.store);
        assert_eq!(image.applied(), from.applier.applied());
        assert_eq!(image.raft_membership().unwrap(), from.applier.raft_membership());
        assert_eq!(
            (image.revision(), image.compacted()),
            (from.store.revision().0, from.store.compacted())
        );
        let stream = stream(&image);
        // Another history of its own: nothing of it may be left.
        let (mut to, _) = Node::fed(seed + 100, 7, 50);
        let mut incoming = to.store.receive().unwrap();
        let mut rng = Rng(seed);
        let mut rest = Bytes::from(stream);
        while !rest.is_empty() {
            let most = [1, 30, 5000, 1 << 20][rng.below(4) as usize];
            let now = rest.split_to(rest.len().min(1 + rng.below(most) as usize));
            incoming.push(now).unwrap();
        }
        let received = incoming.finish().unwrap();
        assert_eq!(Some(received.applied()), image.applied());
        assert_eq!(received.raft_membership(), image.raft_membership().unwrap());
        to.applier.install(received).unwrap();
        assert_eq!(to.replaced.load(Ordering::SeqCst), 1);
        assert_eq!(to.store.installed(), image.applied());
        assert_eq!(picture(&to.store), before, "seed {seed}");
        assert_eq!(to.applier.applied(), image.applied());
        assert!(!to.has_leftovers());
        to = to.crash();
        assert_eq!(picture(&to.store), before, "seed {seed}, after a start");
        assert_eq!(to.applier.raft_membership(), image.raft_membership().unwrap());
        // Both go on alike, compaction included.
        let mut twin = Feed {
            rng: feed.rng.clone(),
            index: feed.index,
        };
        feed.steps(100, &from.store, &mut from.applier);
        twin.steps(100, &to.store, &mut to.applier);
        assert_eq!(picture(&to.store), picture(&from.store), "seed {seed}, 100 entries on");
        assert_eq!(to.store.sizes().in_use_bytes > 0, from.store.sizes().in_use_bytes > 0);
        let again = to.image();
        assert_eq!(again.applied(), to.applier.applied());
    }
}

/// What is sent is bounded by what a row takes, not by what there is.
#[test]
fn pieces_are_small_and_values_are_whole() {
    let mut node = Node::new();
    let mut feed = Feed::new(1);
    for n in 0..40 {
        feed.apply(&mut node.applier, put(&format!("k{n}"), vec![n; 60_000]));
    }
    feed.apply(&mut node.applier, put("long", vec![1; 1_500_000]));
    feed.apply(&mut node.applier, put("empty", Vec::new()));
    let image = node.image();
    let lengths: Vec<usize> = image.read().map(|piece| piece.unwrap().len()).collect();
    let long = lengths.iter().filter(|len| **len > 400_000).count();
    assert_eq!(long, 1, "{lengths:?}");
    assert!(lengths.len() > 10, "{lengths:?}");
    let mut to = Node::new();
    to.install(&image);
    assert_eq!(picture(&to.store), picture(&node.store));
}

#[test]
fn an_image_stands_still() {
    let (mut node, mut feed) = Node::fed(3, 1, 200);
    let image = node.image();
    let before = stream(&image);
    let mut pieces = image.read();
    let first = pieces.next().unwrap().unwrap();
    feed.steps(200, &node.store, &mut node.applier);
    feed.alarms(&mut node.applier, false);
    let revision = node.store.revision().0;
    feed.apply(
        &mut node.applier,
        Command::Compact(pb::CompactionRequest {
            revision,
            physical: false,
        }),
    );
    while node.applier.compact_step(100).unwrap() {}
    let (other, _) = Node::fed(4, 1, 1000);
    node.install(&other.image());
    let rest: Vec<Bytes> = pieces.map(|piece| piece.unwrap()).collect();
    assert_eq!([&first[..], &rest.concat()].concat(), before);
    assert_eq!(stream(&image), before);
}

/// Readers that began before read on in what they began with; those that come after have the new state.
#[test]
fn an_install_leaves_open_reads_alone() {
    let mut node = Node::new();
    let mut feed = Feed::new(1);
    for n in 0..4000 {
        feed.apply(&mut node.applier, put(&format!("old/{n:05}"), vec![n as u8; 300]));
    }
    node.store.flush().unwrap();
    // Not durable, and dropped with the old file: but those who read it still have it.
    feed.apply(&mut node.applier, put("old/last", vec![1; 200]));
    let expected = node.store.range(&everything(0)).unwrap().into_kvs().unwrap();
    let mut large = node.store.range(&everything(0)).unwrap();
    let mut kvs = large.next_kvs(700).unwrap();
    let one = pb::RangeRequest {
        key: Bytes::from_static(b"old/last"),
        ..Default::default()
    };
    let small = node.store.range(&one).unwrap();
    let at_once = everything(0);
    let untouched = node.store.range(&at_once).unwrap();

    let (mut other, mut feed) = Node::fed(5, 1, 600);
    feed.alarms(&mut other.applier, false);
    while other.store.revision() <= node.store.revision() {
        feed.apply(&mut other.applier, put("new", vec![2; 20]));
    }
    node.install(&other.image());
    assert_eq!(node.store.hash_kv(0).unwrap(), other.store.hash_kv(0).unwrap());
    drop(other);

    while large.pairs_left() > 0 {
        kvs.append(&mut large.next_kvs(1000).unwrap());
    }
    assert_eq!(kvs, expected);
    assert_eq!(untouched.into_kvs().unwrap(), expected);
    assert_eq!(small.into_kvs().unwrap()[0].value, vec![1; 200]);
    drop(large);
    node.store.flush().unwrap();
    assert_eq!(node.store.range(&one).unwrap().count, 0);
}

/// D14: half a snapshot is never applied, nor is one with a flipped bit; the store that was to be replaced serves on.
#[test]
fn half_snapshot_is_never_applied() {
    let (from, _) = Node::fed(11, 7, 300);
    let whole = stream(&from.image());
    let (mut to, mut feed) = Node::fed(12, 7, 40);
    let before = picture(&to.store);
    let refuse = |stream: &[u8], what: &str| {
        let error = to.receive(stream).expect_err(what);
        assert!(
            matches!(error, Error::Backend(backend::Error::Image { .. })),
            "{what}: {error}"
        );
        assert!(!to.has_leftovers(), "{what}");
    };
    let mut rng = Rng(13);
    let seed = rng.0;
    refuse(b"", "nothing");
    refuse(&whole[..whole.len() - 1], "all but a byte");
    refuse(&[&whole[..], b"x"].concat(), "a byte more");
    refuse(
        b"something else that is long enough to be looked at by whoever reads it",
        "no image",
    );
    for _ in 0..40 {
        let cut = rng.below(whole.len() as u64) as usize;
        refuse(&whole[..cut], &format!("cut at {cut}, seed {seed}"));
        let bit = rng.below(whole.len() as u64 * 8) as usize;
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refuse(&flipped, &format!("bit {bit}, seed {seed}"));
    }
    // Given up on the way.
    for cut in [0, 10, whole.len() / 2, whole.len()] {
        let mut incoming = to.store.receive().unwrap();
        incoming.push(Bytes::copy_from_slice(&whole[..cut])).unwrap();
        drop(incoming);
        assert!(!to.has_leftovers());
    }
    let mut incoming = to.store.receive().unwrap();
    assert!(incoming.push(Bytes::from_static(b"not it")).is_err());
    assert!(
        incoming.push(whole.clone().into()).is_err(),
        "nothing is taken after an error"
    );
    assert!(incoming.finish().is_err());
    drop(to.receive(&whole).unwrap());
    assert!(!to.has_leftovers());
    assert_eq!(picture(&to.store), before);
    assert_eq!(to.replaced.load(Ordering::SeqCst), 0);
    feed.steps(10, &to.store, &mut to.applier);
    to.store.flush().unwrap();
    to.install(&from.image());
    assert_eq!(picture(&to.store), picture(&from.store));
}

/// A stream taken apart, to be put together again with checksums that are right.
#[derive(Clone)]
struct Apart {
    header: Vec<u8>,
    frames: Vec<(u8, Vec<u8>)>,
}

impl Apart {
    fn of(stream: &[u8]) -> Self {
        let (header, mut rest) = stream.split_at(52);
        rest = &rest[4..];
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let len = u32::from_le_bytes(rest[1..5].try_into().unwrap()) as usize;
            frames.push((rest[0], rest[5..5 + len].to_vec()));
            rest = &rest[5 + len + 4..];
        }
        Self {
            header: header.to_vec(),
            frames,
        }
    }

    fn together(&self) -> Vec<u8> {
        let mut crc = crc32c::crc32c(&self.header);
        let mut out = [&self.header[..], &crc.to_le_bytes()].concat();
        for (kind, body) in &self.frames {
            let frame = [&[*kind][..], &(body.len() as u32).to_le_bytes(), body].concat();
            crc = crc32c::crc32c_append(crc, &frame);
            out.extend_from_slice(&frame);
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out
    }
}

/// Right checksums make nothing right that is not.
#[test]
fn a_forged_stream_is_refused() {
    let mut from = Node::new();
    let mut feed = Feed::new(21);
    feed.found(&mut from.applier, 7);
    for n in 0..8 {
        feed.apply(&mut from.applier, put(&format!("k{n}"), vec![n; 100_000]));
    }
    feed.steps(100, &from.store, &mut from.applier);
    let good = Apart::of(&stream(&from.image()));
    let to = Node::new();
    assert!(
        to.receive(&good.together()).is_ok(),
        "put together again it is what it was"
    );
    let rows = good.frames.iter().filter(|(kind, _)| *kind == b'R').count();
    assert!(rows > 2, "{rows} frames of rows");
    let refuse = |what: &str, forge: &dyn Fn(&mut Apart)| {
        let mut forged = good.clone();
        forge(&mut forged);
        let refused = to.receive(&forged.together());
        assert!(
            matches!(refused, Err(Error::Backend(backend::Error::Image { .. }))),
            "{what}"
        );
    };
    refuse("frames changed places", &|forged| forged.frames.swap(0, 1));
    refuse("a frame twice", &|forged| {
        forged.frames.insert(0, forged.frames[0].clone())
    });
    refuse("a frame missing", &|forged| drop(forged.frames.remove(1)));
    refuse("records missing", &|forged| {
        forged.frames.retain(|(kind, _)| *kind != b'S')
    });
    refuse("no end", &|forged| drop(forged.frames.pop()));
    refuse("two ends", &|forged| {
        forged.frames.extend(forged.frames.last().cloned())
    });
    refuse("a kind that is none", &|forged| {
        forged.frames.insert(0, (b'?', Vec::new()))
    });
    refuse("half a row", &|forged| forged.frames[0].1.truncate(20));
    refuse("a record of the backend's own", &|forged| {
        forged.frames.insert(rows, (b'S', vec![2, 0, b'a', 4, 0, 0, 0, 0]));
    });
    let number = |at: usize, value: i64| {
        move |forged: &mut Apart| forged.header[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    refuse("format 2", &|forged| forged.header[16] = 2);
    refuse("nothing applied", &number(36, 0));
    refuse("rows of the future", &number(36, 50));
    refuse("compacted beyond", &number(44, i64::MAX));
    refuse("compacted below all", &number(44, -2));
    let mut rng = Rng(22);
    for _ in 0..60 {
        let at = rng.below(good.frames.len() as u64) as usize;
        let bit = rng.below(good.frames[at].1.len() as u64 * 8) as usize;
        refuse(&format!("frame {at}, bit {bit}"), &|forged| {
            forged.frames[at].1[bit / 8] ^= 1 << (bit % 8)
        });
    }
    let mut huge = good.together()[..56].to_vec();
    huge.extend_from_slice(&[b'R', 0xff, 0xff, 0xff, 0xff]);
    assert!(to.receive(&huge).is_err());
}

/// B10: snapshots close together come one after the other.
#[test]
fn back_to_back_snapshots_install() {
    let (mut from, mut feed) = Node::fed(31, 7, 50);
    let mut to = Node::new();
    for round in 1..6 {
        feed.steps(20, &from.store, &mut from.applier);
        let image = from.image();
        let mut incoming = to.store.receive().unwrap();
        assert!(matches!(to.store.receive(), Err(Error::Receiving)));
        image.read().for_each(|piece| incoming.push(piece.unwrap()).unwrap());
        let received = incoming.finish().unwrap();
        assert!(
            matches!(to.store.receive(), Err(Error::Receiving)),
            "until it is installed or dropped"
        );
        to.applier.install(received).unwrap();
        assert_eq!(to.replaced.load(Ordering::SeqCst), round);
        assert_eq!(picture(&to.store), picture(&from.store));
        if round == 3 {
            to = to.crash();
            to.replaced.store(3, Ordering::SeqCst);
        }
    }
}

#[test]
fn an_image_that_does_not_fit_is_refused_and_changes_nothing() {
    let (mut node, mut feed) = Node::fed(41, 7, 100);
    let old = node.image();
    feed.steps(10, &node.store, &mut node.applier);
    let before = picture(&node.store);
    let received = node.receive(&stream(&old)).unwrap();
    assert!(matches!(node.applier.install(received), Err(Error::NotNewer { .. })));
    let received = node.receive(&stream(&node.image())).unwrap();
    assert!(
        matches!(node.applier.install(received), Err(Error::NotNewer { .. })),
        "the same entry"
    );
    let (stranger, _) = Node::fed(42, 8, 500);
    let received = node.receive(&stream(&stranger.image())).unwrap();
    assert!(matches!(
        node.applier.install(received),
        Err(Error::OtherCluster { .. })
    ));
    let (peer, _) = Node::fed(43, 7, 500);
    let received = stranger.receive(&stream(&peer.image())).unwrap();
    assert!(matches!(node.applier.install(received), Err(Error::OtherStore)));
    // A later entry with an earlier revision.
    let mut behind = Node::new();
    let at = Applied { index: 9999, term: 99 };
    behind.applier.apply_empty(at, None).unwrap();
    let received = node.receive(&stream(&behind.image())).unwrap();
    assert!(matches!(node.applier.install(received), Err(Error::Backwards { .. })));
    assert_eq!(picture(&node.store), before);
    assert!(!node.has_leftovers());
    feed.steps(10, &node.store, &mut node.applier);
    node.install(&peer.image());
    assert_eq!(picture(&node.store), picture(&peer.store));
}

#[test]
fn nothing_applied_is_nothing_to_send() {
    let empty = Node::new();
    let image = empty.image();
    assert_eq!((image.applied(), image.raft_membership().unwrap()), (None, None));
    assert_eq!((image.revision(), image.compacted()), (1, -1));
    assert!(Node::new().receive(&stream(&image)).is_err());
}

/// Who waits for compaction hears of it when the file that took over is through with it, too; flushes that were under
/// way end well.
#[test]
fn those_who_wait_are_not_forgotten() {
    let options = quorate_store::Options {
        background_compaction: true,
        ..options()
    };
    let mut node = Node::open(Arc::new(tempfile::tempdir().unwrap()), options);
    let mut feed = Feed::new(51);
    feed.found(&mut node.applier, 7);
    for n in 0..50 {
        feed.apply(&mut node.applier, put("k", vec![n]));
    }
    let compact = |revision| {
        Command::Compact(pb::CompactionRequest {
            revision,
            physical: false,
        })
    };
    // Held up by a read, and then overtaken.
    let held = node.store.read_txn(&pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(everything(10))),
        }],
        ..Default::default()
    });
    let mut held = held.unwrap();
    feed.apply(&mut node.applier, compact(20));
    let (tx, rx) = mpsc::channel();
    node.store.on_compacted(20, move |result| tx.send(result).unwrap());
    let flushing = {
        let store = node.store.clone();
        std::thread::spawn(move || (0..50).for_each(|_| assert!(store.flush().is_ok())))
    };
    let (mut peer, mut other) = Node::fed(52, 7, 500);
    other.alarms(&mut peer.applier, false);
    let at = peer.store.revision().0;
    other.apply(&mut peer.applier, compact(at));
    node.install(&peer.image());
    rx.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    flushing.join().unwrap();
    assert_eq!(
        held.ranges.remove(0).into_kvs().unwrap().len(),
        1,
        "the old file still has it"
    );
}
