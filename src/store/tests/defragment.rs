//! Defragmentation: the same store in a smaller file, whatever happens meanwhile and wherever it breaks off.

#![allow(clippy::unwrap_used)]

mod kit;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use quorate_api::Code;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_store::backend::{self, Applied};
use quorate_store::command::Command;
use quorate_store::testing::{Fail, MemDisk, MemPlace, Rng};
use quorate_store::{Applier, Error, Store};

use kit::exchange::{Exchange, open_in};
use kit::whole::{Feed, Picture, options, picture};

fn open(path: &Path) -> (Store, Applier) {
    Store::open(path, options(), Box::new(())).unwrap()
}

fn put(key: String, value: Vec<u8>) -> Command {
    Command::Put(pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    })
}

fn compact(store: &Store, feed: &mut Feed, applier: &mut Applier) {
    let revision = store.revision().0;
    let request = pb::CompactionRequest {
        revision,
        physical: false,
    };
    feed.apply(applier, Command::Compact(request));
    while applier.compact_step(1000).unwrap() {}
}

#[test]
fn what_is_free_goes_back_to_the_disk_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    let (store, mut applier) = open(&path);
    let mut feed = Feed::new(1);
    feed.found(&mut applier, 7);
    for n in 0..400u32 {
        let value = vec![(n % 251) as u8; 30_000];
        feed.apply(&mut applier, put(format!("big{}", n % 10), value));
    }
    feed.steps(200, &store, &mut applier);
    feed.alarms(&mut applier, false);
    compact(&store, &mut feed, &mut applier);
    feed.steps(30, &store, &mut applier);
    store.flush().unwrap();
    let (before, sizes, durable) = (picture(&store), store.sizes(), store.durable());
    // Somebody reads the old one all the while.
    let image = store.image().unwrap();
    let pieces = || image.read().map(|piece| piece.unwrap()).collect::<Vec<Bytes>>();
    let read = pieces();
    store.defragment().unwrap();
    assert_eq!(picture(&store), before);
    assert_eq!(store.durable(), durable);
    let after = store.sizes();
    assert_eq!(after.in_use_bytes, sizes.in_use_bytes);
    assert!(
        after.total_bytes < sizes.total_bytes / 4,
        "{} bytes of {}",
        after.total_bytes,
        sizes.total_bytes
    );
    assert_eq!(pieces(), read, "the old file is there for who reads it");
    let names = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["backend", "backend.reserve"]);
    feed.steps(30, &store, &mut applier);
    store.flush().unwrap();
    store.defragment().unwrap();
    let after = picture(&store);
    drop((image, store, applier));
    let (store, applier) = open(&path);
    assert_eq!(picture(&store), after);
    assert_eq!(
        applier.raft_membership().as_deref(),
        Some(b"voters of 7".as_slice()),
        "records that no command writes are there, too"
    );
}

/// One copy after the other while entries are applied, compacted and committed: the store ends as one that had none.
#[test]
fn entries_that_come_meanwhile_are_in_it() {
    const COPIES: usize = 4;
    for seed in 0..4 {
        let place = MemPlace::default();
        let (store, mut applier) = open_in(&place);
        let (twin, mut other) = open_in(&MemPlace::default());
        let (mut feed, mut twin_feed) = (Feed::new(seed), Feed::new(seed));
        feed.found(&mut applier, 7);
        twin_feed.found(&mut other, 7);
        let copies = AtomicUsize::new(0);
        let steps = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..COPIES {
                    store.defragment().unwrap();
                    copies.fetch_add(1, Ordering::Release);
                }
            });
            let mut rng = Rng(seed);
            let mut steps = 0;
            while steps < 500 || copies.load(Ordering::Acquire) < COPIES {
                feed.step(&store, &mut applier);
                steps += 1;
                if rng.chance(3) {
                    store.flush().unwrap();
                }
            }
            steps
        });
        for _ in 0..steps {
            twin_feed.step(&twin, &mut other);
        }
        assert_eq!(picture(&store), picture(&twin), "seed {seed}");
        store.flush().unwrap();
        twin.flush().unwrap();
        assert_eq!(store.sizes().in_use_bytes, twin.sizes().in_use_bytes, "seed {seed}");
        drop((store, applier));
        let (store, _) = open_in(&MemPlace::with(place.disk()));
        assert_eq!(picture(&store), picture(&twin), "seed {seed}, after a start");
    }
}

fn fed(place: &MemPlace) -> (Store, Applier, Feed, Picture) {
    let (store, mut applier) = open_in(place);
    let mut feed = Feed::new(5);
    feed.found(&mut applier, 7);
    feed.steps(150, &store, &mut applier);
    store.flush().unwrap();
    let before = picture(&store);
    (store, applier, feed, before)
}

/// B4, B19, D15: power loss at every write of the new file, and of what is applied after it.
#[test]
fn crash_at_each_defrag_step_keeps_revision() {
    let place = MemPlace::default();
    let (store, mut applier, mut feed, before) = fed(&place);
    let mut exchange = Exchange::begin(&place, before.clone());
    store.defragment().unwrap();
    assert_eq!(picture(&store), before);
    exchange.go_on(&store, &mut applier, &mut feed);
    drop((store, applier));
    exchange.survives_power_loss();
}

fn assert_no_space(refused: Result<(), Error>) {
    let error = refused.unwrap_err();
    assert!(
        matches!(error, Error::NotDefragmented(backend::Error::NoSpaceForCopy)),
        "{error:?}"
    );
    assert_eq!(error.status().code, Code::ResourceExhausted);
}

const NEVER: u64 = 1 << 60;

/// B19: a disk that fails under the copy costs the copy, and nothing else.
#[test]
fn interrupted_defrag_loses_nothing() {
    let place = MemPlace::default();
    let (store, mut applier, mut feed, _) = fed(&place);
    let mut failed = 0;
    for good in 0.. {
        let disk = MemDisk::default();
        match good % 2 {
            0 => disk.fail_sync_after(good / 2),
            _ => disk.fail_write_after(good / 2 * 5),
        }
        place.make_next_of(disk.clone());
        match store.defragment() {
            Ok(()) => {
                // From here on it is the store's own.
                disk.fail_sync_after(NEVER);
                disk.fail_write_after(NEVER);
                break;
            }
            Err(Error::NotDefragmented(backend::Error::Disk { .. } | backend::Error::Database { .. })) => failed += 1,
            Err(error) => panic!("{error:?}"),
        }
        assert!(!place.has_incoming() && store.failure().is_none(), "after {good}");
        feed.step(&store, &mut applier);
        store.flush().unwrap();
    }
    assert!(failed > 5, "{failed} times");
    let small = MemDisk::default();
    small.set_capacity(64 << 10);
    place.make_next_of(small);
    assert_no_space(store.defragment());
    assert!(!store.is_full(), "which is no business of the store's own file");
    let rotten = MemDisk::default();
    rotten.fail_reads(true);
    place.make_next_of(rotten);
    assert!(store.defragment().is_err(), "it is read back before it counts");
    assert!(store.failure().is_none());
    feed.step(&store, &mut applier);
    store.flush().unwrap();
    store.defragment().unwrap();
    let last = picture(&store);
    drop((store, applier));
    assert_eq!(picture(&open_in(&MemPlace::with(place.disk())).0), last);
}

/// One whose end is uncertain is final for the process, and the next start finds one of the two, which are the same.
#[test]
fn a_defrag_that_breaks_off_at_the_name_is_final() {
    for fail in [Fail::Rename, Fail::FolderSync] {
        let place = MemPlace::default();
        let (store, mut applier, mut feed, before) = fed(&place);
        place.fail(fail);
        assert!(matches!(store.defragment(), Err(Error::Backend(_))));
        assert!(store.failure().is_some());
        assert_eq!(picture(&store), before, "readers keep what they have");
        feed.index += 1;
        let at = Applied {
            index: feed.index,
            term: 9,
        };
        assert!(applier.apply_empty(at, None).is_err());
        assert!(store.defragment().is_err());
        drop((store, applier));
        let (store, _) = open_in(&MemPlace::with(place.disk()));
        assert_eq!(picture(&store), before);
    }
}

/// A copy needs space beside the file, which comes first.
#[test]
fn a_full_disk_is_not_filled_by_a_copy() {
    let place = MemPlace::default();
    let (store, mut applier) = {
        let mut options = options();
        options.backend.reserve_bytes = 1 << 20;
        Store::open_in(Box::new(place.clone()), options, Box::new(())).unwrap()
    };
    let mut feed = Feed::new(6);
    feed.found(&mut applier, 7);
    let disk = place.disk();
    disk.set_capacity(disk.used() + (64 << 10));
    for n in 0..40 {
        feed.apply(&mut applier, put(format!("k{n}"), vec![n; 10_000]));
    }
    store.flush().unwrap();
    assert!(store.is_full());
    assert_no_space(store.defragment());
    disk.set_capacity(u64::MAX);
    feed.apply(&mut applier, put("k".into(), vec![]));
    store.flush().unwrap();
    // It looks for space once the commit is through.
    while store.is_full() {
        std::thread::yield_now();
    }
    store.defragment().unwrap();
}

/// The reserve for a full disk goes with the name.
#[test]
fn the_new_file_has_the_reserve() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.backend.reserve_bytes = 1 << 20;
    let (store, mut applier) = Store::open(&folder.path().join("backend"), options, Box::new(())).unwrap();
    let mut feed = Feed::new(6);
    feed.found(&mut applier, 7);
    store.flush().unwrap();
    store.defragment().unwrap();
    let reserve = std::fs::metadata(folder.path().join("backend.reserve")).unwrap();
    assert_eq!(reserve.len(), 1 << 20);
    assert!(!store.is_full());
}

/// B16: there is one place for a new file, and a snapshot goes first.
#[test]
fn snapshot_install_and_defrag_exclude_each_other() {
    let (from, mut source) = open_in(&MemPlace::default());
    let mut feed = Feed::new(8);
    feed.found(&mut source, 7);
    let place = MemPlace::default();
    let (store, mut applier) = open_in(&place);
    let pieces = |from: &Store| -> Vec<Bytes> {
        from.flush().unwrap();
        from.image().unwrap().read().map(|piece| piece.unwrap()).collect()
    };
    feed.steps(100, &from, &mut source);
    let mut incoming = store.receive().unwrap();
    let gave_way = store.defragment().unwrap_err();
    assert!(matches!(gave_way, Error::GaveWay));
    assert_eq!(gave_way.status().code, Code::Unavailable);
    pieces(&from)
        .into_iter()
        .for_each(|piece| incoming.push(piece).unwrap());
    let received = incoming.finish().unwrap();
    assert!(
        matches!(store.defragment(), Err(Error::GaveWay)),
        "until it is installed"
    );
    applier.install(received).unwrap();
    store.defragment().unwrap();

    let ended = AtomicBool::new(false);
    let (mut waited, mut gave_way) = (0, 0);
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let mut gave_way = 0;
            while !ended.load(Ordering::Acquire) {
                match store.defragment() {
                    Ok(()) => {}
                    Err(Error::GaveWay) => gave_way += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            gave_way
        });
        for _ in 0..10 {
            feed.steps(20, &from, &mut source);
            let pieces = pieces(&from);
            let mut incoming = loop {
                match store.receive() {
                    Ok(incoming) => break incoming,
                    Err(Error::Defragmenting) => {
                        waited += 1;
                        std::thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            pieces.into_iter().for_each(|piece| incoming.push(piece).unwrap());
            let received = incoming.finish().unwrap();
            applier.install(received).unwrap();
            assert_eq!(picture(&store), picture(&from));
        }
        ended.store(true, Ordering::Release);
        gave_way = copying.join().unwrap();
    });
    assert!(
        waited > 0 && gave_way > 0,
        "waited {waited} times, gave way {gave_way} times"
    );
    store.flush().unwrap();
    drop((store, applier));
    assert_eq!(picture(&open_in(&MemPlace::with(place.disk())).0), picture(&from));
}
