//! Installs on a disk that fails or loses power at any moment: the old store or the new one, never anything between.

#![allow(clippy::unwrap_used)]

mod kit;

use std::sync::Arc;

use quorate_store::testing::{Fail, MemDisk, MemPlace};
use quorate_store::{Applier, Error, Store};

use kit::exchange::{Exchange, open_in};
use kit::whole::{Feed, Picture, options, picture};

/// A store with something in it, everything durable.
fn old(seed: u64) -> (MemPlace, Store, Applier, Picture, Feed) {
    let place = MemPlace::default();
    let (store, mut applier) = open_in(&place);
    let mut feed = Feed::new(seed);
    feed.found(&mut applier, 7);
    feed.steps(20, &store, &mut applier);
    store.flush().unwrap();
    let before = picture(&store);
    (place, store, applier, before, feed)
}

/// The pieces of a newer one, what it shows, and how it goes on.
fn newer() -> (Vec<bytes::Bytes>, Picture, Feed) {
    let (store, mut applier) = open_in(&MemPlace::default());
    let mut feed = Feed::new(2);
    feed.found(&mut applier, 7);
    feed.steps(150, &store, &mut applier);
    store.flush().unwrap();
    let pieces = store.image().unwrap().read().map(|piece| piece.unwrap()).collect();
    (pieces, picture(&store), feed)
}

fn receive(store: &Store, pieces: &[bytes::Bytes]) -> Result<quorate_store::Received, Error> {
    let mut incoming = store.receive()?;
    pieces.iter().try_for_each(|piece| incoming.push(piece.clone()))?;
    incoming.finish()
}

/// B33, D14: power loss at every write of an install, and of what is applied after it.
#[test]
fn received_snapshot_survives_power_loss() {
    let (pieces, after, mut feed) = newer();
    let (place, store, mut applier, before, _) = old(1);
    let old_disk = place.disk();
    let mut exchange = Exchange::begin(&place, before);
    let received = receive(&store, &pieces).unwrap();
    assert!(place.has_incoming(), "received is not installed");
    assert_eq!(old_disk.trace_len(), 0, "the old file is left alone");
    applier.install(received).unwrap();
    assert_eq!(picture(&store), after);
    exchange.go_on(&store, &mut applier, &mut feed);
    drop((store, applier));
    exchange.survives_power_loss();
}

/// A disk that fails under the transfer costs the transfer, and nothing else.
#[test]
fn a_failing_transfer_leaves_the_store_alone() {
    let (pieces, after, _) = newer();
    let (place, store, mut applier, _, mut feed) = old(3);
    let mut failed = 0;
    for good in 0.. {
        let disk = MemDisk::default();
        disk.fail_sync_after(good);
        place.make_next_of(disk);
        match receive(&store, &pieces) {
            Err(Error::Backend(_)) => failed += 1,
            Err(error) => panic!("{error}"),
            Ok(received) => {
                drop(received);
                break;
            }
        }
        assert!(!place.has_incoming());
        feed.step(&store, &mut applier);
        store.flush().unwrap();
    }
    assert!(failed > 5, "{failed} syncs");
    let small = MemDisk::default();
    small.set_capacity(64 << 10);
    place.make_next_of(small);
    assert!(receive(&store, &pieces).is_err(), "no space for it");
    assert!(!store.is_full(), "which is no business of the store's own file");
    let rotten = MemDisk::default();
    place.make_next_of(rotten.clone());
    let mut incoming = store.receive().unwrap();
    pieces.iter().for_each(|piece| incoming.push(piece.clone()).unwrap());
    rotten.fail_reads(true);
    let unreadable = incoming.finish();
    assert!(unreadable.is_err(), "it is read back before it counts");
    assert!(store.failure().is_none());
    feed.step(&store, &mut applier);
    store.flush().unwrap();
    applier.install(receive(&store, &pieces).unwrap()).unwrap();
    assert_eq!(picture(&store), after);
}

/// An install that breaks off is final for the process, and the next start finds one of the two.
#[test]
fn an_install_that_breaks_off_leaves_old_or_new() {
    let (pieces, after, _) = newer();
    for fail in [Fail::Rename, Fail::FolderSync] {
        let (place, store, mut applier, before, mut feed) = old(4);
        let received = receive(&store, &pieces).unwrap();
        place.fail(fail);
        assert!(matches!(applier.install(received), Err(Error::Backend(_))));
        assert_eq!(picture(&store), before, "readers keep what they have");
        feed.index += 1000;
        let at = quorate_store::Applied {
            index: feed.index,
            term: 9,
        };
        assert!(matches!(applier.apply_empty(at, None), Err(Error::Poisoned)));
        let again = receive(&store, &pieces).unwrap();
        assert!(matches!(applier.install(again), Err(Error::Poisoned)));
        drop((store, applier));
        let (store, _) = open_in(&MemPlace::with(place.disk()));
        let expected = if fail == Fail::Rename { &before } else { &after };
        assert_eq!(&picture(&store), expected);
    }
}

/// The reserve for a full disk goes with the name.
#[test]
fn the_new_file_has_the_reserve() {
    let (pieces, _, _) = newer();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options();
    options.backend.reserve_bytes = 1 << 20;
    let path = folder.path().join("backend");
    let (store, mut applier) = Store::open(&path, options, Box::new(())).unwrap();
    let reserve = || std::fs::metadata(folder.path().join("backend.reserve")).unwrap().len();
    assert_eq!(reserve(), 1 << 20);
    let received = receive(&store, &pieces).unwrap();
    assert_eq!(reserve(), 1 << 20);
    applier.install(received).unwrap();
    assert_eq!(reserve(), 1 << 20);
    assert!(!store.is_full());
    assert!(!folder.path().join("backend.incoming").exists());
}
