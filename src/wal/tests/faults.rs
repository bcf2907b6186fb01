//! Disks that refuse: failed syncs and writes, full, slow.
#![allow(clippy::unwrap_used)]

mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use kit::{all, entry, open, options, pos, segment, until, wait};
use parking_lot::Mutex;
use quorate_wal::disk::{FaultyDisk, Tear};
use quorate_wal::{Error, Observer, Options, Wal};

fn open_counting(disk: &FaultyDisk) -> (Wal, Arc<AtomicUsize>) {
    let fatal = Arc::new(AtomicUsize::new(0));
    let count = fatal.clone();
    let on_fatal = Arc::new(move |_: &Error| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (
        Wal::open(Options { on_fatal, ..options() }, Arc::new(disk.clone()))
            .unwrap()
            .0,
        fatal,
    )
}

/// B40, D6
#[test]
fn failed_sync_ends_acknowledging() {
    let disk = FaultyDisk::new();
    let (wal, fatal) = open_counting(&disk);
    wait(|done| wal.append(vec![entry(1, 0, 10)], done)).unwrap();
    // Three in the queue behind the one that fails.
    disk.hold_syncs(true);
    disk.fail_sync(1);
    let (tell, told) = mpsc::channel();
    for i in 1..5 {
        let tell = tell.clone();
        wal.append(
            vec![entry(1, i, 10)],
            Box::new(move |outcome| tell.send((i, outcome)).unwrap()),
        );
    }
    disk.hold_syncs(false);
    let told: Vec<_> = (1..5).map(|_| told.recv().unwrap()).collect();
    assert!(told.iter().map(|(i, _)| *i).eq(1..5), "answers keep their order");
    assert!(matches!(told[0].1, Err(Error::Sync { .. })), "{:?}", told[0]);
    assert!(
        told.iter()
            .all(|(_, outcome)| matches!(outcome, Err(Error::Sync { .. } | Error::Poisoned)))
    );
    for _ in 0..3 {
        assert!(matches!(
            wait(|done| wal.save_vote(Bytes::new(), done)),
            Err(Error::Poisoned)
        ));
        assert!(matches!(wait(|done| wal.append(vec![], done)), Err(Error::Poisoned)));
    }
    assert_eq!(fatal.load(Ordering::SeqCst), 1, "told once");
    assert_eq!(wal.read(0..1, 0).unwrap(), [entry(1, 0, 10)], "reads go on");
    assert!(matches!(wal.close(), Err(Error::Poisoned)));
}

/// D6
#[test]
fn a_failed_write_ends_acknowledging() {
    let disk = FaultyDisk::new();
    let (wal, fatal) = open_counting(&disk);
    wait(|done| wal.append(vec![entry(1, 0, 10)], done)).unwrap();
    disk.fail_write(1);
    let told = wait(|done| wal.append(vec![entry(1, 1, 600)], done));
    assert!(matches!(told, Err(Error::Write { .. })), "{told:?}");
    assert!(matches!(
        wait(|done| wal.save_vote(Bytes::new(), done)),
        Err(Error::Poisoned)
    ));
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    drop(wal);
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(all(&wal), [entry(1, 0, 10)]);
}

/// B40: after a failed sync the page cache shows what the disk does not have. What the next start has read from there
/// and reported must not vanish with the power.
#[test]
fn what_a_restart_after_a_failed_sync_reports_is_durable() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wait(|done| wal.append(vec![entry(1, 0, 900)], done)).unwrap();
    disk.fail_sync(1);
    wait(|done| wal.append(vec![entry(1, 1, 900)], done)).unwrap_err();
    drop(wal);
    let (wal, found) = open(&disk).unwrap();
    drop(wal);
    disk.power_loss(Tear::Lose);
    let (_, again) = open(&disk).unwrap();
    assert_eq!(found.last, Some(pos(1, 1)), "the page cache has it");
    assert_eq!(again.last, found.last);
}

/// D6
#[test]
fn read_error_returns_no_wrong_data() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let entries: Vec<_> = (0..6).map(|i| entry(1, i, 200)).collect();
    wait(|done| wal.append(entries.clone(), done)).unwrap();
    disk.fail_reads(&segment(1));
    assert!(matches!(wal.read(0..6, usize::MAX), Err(Error::Io { .. })));
    assert_eq!(
        wal.read(5..6, 0).unwrap(),
        entries[5..],
        "what is in memory needs no disk"
    );
    disk.heal_reads();
    assert_eq!(all(&wal), entries);
}

/// D7
#[test]
fn disk_full_recovers_by_itself() {
    for prepare_ahead in [false, true] {
        let disk = FaultyDisk::new();
        let (wal, _) = Wal::open(
            Options {
                prepare_ahead,
                ..options()
            },
            Arc::new(disk.clone()),
        )
        .unwrap();
        disk.set_capacity(Some(12 << 10));
        let mut next = 0;
        let mut warned_with = None;
        let refused = loop {
            let outcome = wait(|done| wal.append(vec![entry(1, next, 300)], done));
            if warned_with.is_none() && !wal.space().load(Ordering::SeqCst) {
                warned_with = Some(wal.writable_bytes());
            }
            match outcome {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::NoSpace), "{refused:?}");
        assert!(
            next > 15 && warned_with.is_some(),
            "{next} entries, warned with {warned_with:?} bytes left"
        );
        assert_eq!(wal.state().1, Some(pos(1, next - 1)), "the refused entry is gone again");
        // Small records have a reserve, reads go on.
        wait(|done| wal.save_vote(Bytes::from_static(b"full"), done)).unwrap();
        wait(|done| wal.truncate_after(Some(next - 2), done)).unwrap();
        assert_eq!(all(&wal).len() as u64, next - 1);
        // What does not fit whole leaves nothing behind, in memory or on disk.
        let many = (next - 1..next + 20).map(|i| entry(2, i, 300)).collect();
        assert!(matches!(wait(|done| wal.append(many, done)), Err(Error::NoSpace)));
        assert_eq!(wal.state().1, Some(pos(1, next - 2)));
        let kept = all(&wal);
        drop(wal);
        let (wal, found) = Wal::open(
            Options {
                prepare_ahead,
                ..options()
            },
            Arc::new(disk.clone()),
        )
        .unwrap();
        assert_eq!(
            (found.last, found.vote.as_deref()),
            (Some(pos(1, next - 2)), Some(&b"full"[..]))
        );
        assert_eq!(all(&wal), kept);
        disk.set_capacity(None);
        if prepare_ahead {
            until("space is noticed", || wal.space().load(Ordering::SeqCst));
        }
        wait(|done| wal.append((next - 1..next + 30).map(|i| entry(3, i, 300)).collect(), done)).unwrap();
        assert!(wal.space().load(Ordering::SeqCst));
        wal.close().unwrap();
    }
}

/// D7: purging is a way out of a full disk.
#[test]
fn purging_makes_space_on_a_full_disk() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(12 << 10));
    for i in 0..400 {
        match wait(|done| wal.append(vec![entry(1, i, 300)], done)) {
            Ok(()) => {}
            Err(Error::NoSpace) => {
                wait(|done| wal.purge(pos(1, i - 2), done)).unwrap();
                wait(|done| wal.append(vec![entry(1, i, 300)], done)).unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(disk.used() <= 12 << 10);
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.last, Some(pos(1, 399)));
}

#[test]
fn a_log_that_finds_no_space_for_its_first_segment_says_so() {
    let disk = FaultyDisk::new();
    disk.set_capacity(Some(100));
    assert!(matches!(open(&disk).map(|(_, found)| found), Err(Error::NoSpace)));
    disk.set_capacity(None);
    assert_eq!(open(&disk).unwrap().1.last, None);
}

#[test]
fn what_gathers_during_a_sync_shares_the_next_one() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let syncs = disk.syncs();
    disk.hold_syncs(true);
    let (tell, told) = mpsc::channel();
    for i in 0..60 {
        let tell = tell.clone();
        wal.append(
            vec![entry(1, i, 1)],
            Box::new(move |outcome| tell.send(outcome.map(|()| i)).unwrap()),
        );
    }
    assert_eq!(
        wal.read(0..60, usize::MAX).unwrap().len(),
        60,
        "unsynced entries can be read"
    );
    assert!(told.try_recv().is_err(), "nothing is acknowledged before its sync");
    disk.hold_syncs(false);
    assert!((0..60).all(|i| told.recv().unwrap().unwrap() == i));
    let syncs = disk.syncs() - syncs;
    assert!(
        syncs <= 4,
        "{syncs} syncs for two batches and at most one change of segment"
    );
}

/// Between the writing of an entry and that of the one that replaced it, readers see the new one.
#[test]
fn an_entry_truncated_while_it_is_written_is_not_found_on_disk() {
    let disk = FaultyDisk::new();
    let options = Options {
        cache_bytes: 0,
        ..options()
    };
    let (wal, _) = Wal::open(options, Arc::new(disk.clone())).unwrap();
    let (tell, told) = mpsc::channel();
    let before = disk.contents(&segment(1)).unwrap();
    disk.hold_syncs(true);
    let reader = wal.clone();
    wal.append(
        (0..3).map(|i| entry(1, i, 20)).collect(),
        Box::new(move |_| tell.send(reader.read(0..9, usize::MAX)).unwrap()),
    );
    until("the batch is written", || disk.contents(&segment(1)).unwrap() != before);
    wal.truncate_after(Some(0), Box::new(|_| {}));
    wal.append((1..3).map(|i| entry(2, i, 30)).collect(), Box::new(|_| {}));
    disk.hold_syncs(false);
    let expect = [entry(1, 0, 20), entry(2, 1, 30), entry(2, 2, 30)];
    assert_eq!(told.recv().unwrap().unwrap(), expect);
    wait(|done| wal.append(vec![], done)).unwrap();
    assert_eq!(all(&wal), expect);
}

#[test]
fn every_batch_is_observed() {
    #[derive(Default)]
    struct Seen(Mutex<Vec<u64>>);
    impl Observer for Seen {
        fn batch(&self, bytes: u64, _write: Duration, sync: Duration) {
            assert!(sync >= Duration::from_millis(1));
            self.0.lock().push(bytes);
        }
    }
    let (disk, seen) = (FaultyDisk::new(), Arc::new(Seen::default()));
    disk.slow_syncs(Duration::from_millis(1));
    let (wal, _) = Wal::open(
        Options {
            observer: seen.clone(),
            ..options()
        },
        Arc::new(disk.clone()),
    )
    .unwrap();
    let before = seen.0.lock().len();
    wait(|done| wal.append(vec![entry(1, 0, 100)], done)).unwrap();
    assert_eq!(seen.0.lock()[before..], [40 + 16 + 16 + 104]);
}

#[test]
fn the_last_handle_may_go_in_a_callback() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (tell, told) = mpsc::channel();
    disk.hold_syncs(true);
    let held = wal.clone();
    wal.append(
        vec![entry(1, 0, 10)],
        Box::new(move |outcome| {
            drop(held);
            tell.send(outcome).unwrap();
        }),
    );
    let release = disk.clone();
    let unblock = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        release.hold_syncs(false);
    });
    drop(wal);
    told.recv().unwrap().unwrap();
    unblock.join().unwrap();
}

#[test]
fn readers_see_whole_entries_while_segments_are_recycled() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let (reader, stop) = (wal.clone(), Arc::new(AtomicUsize::new(0)));
    let stopped = stop.clone();
    let reading = std::thread::spawn(move || {
        let mut read = 0;
        while stopped.load(Ordering::SeqCst) == 0 {
            for found in reader.read(0..u64::MAX, 8000).unwrap() {
                assert_eq!(found, entry(1, found.pos.index, 200));
                read += 1;
            }
        }
        read
    });
    for i in 0..1500 {
        wait(|done| wal.append(vec![entry(1, i, 200)], done)).unwrap();
        if i % 20 == 19 {
            wait(|done| wal.purge(pos(1, i - 15), done)).unwrap();
        }
    }
    stop.store(1, Ordering::SeqCst);
    assert!(reading.join().unwrap() > 100);
}
