//! Disks that refuse: failed syncs and writes, full, slow.
#![allow(clippy::unwrap_used)]

mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use kit::{all, entry, open, options, pos, segment, until, wait};
use parking_lot::Mutex;
use quorate_wal::disk::{Disk, FaultyDisk, Tear};
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
    for prepare_ahead in [false, true] {
        let disk = FaultyDisk::new();
        let used: Arc<dyn Disk> = Arc::new(disk.clone());
        let options = Options {
            prepare_ahead,
            ..options()
        };
        let (wal, _) = Wal::open(options, used.clone()).unwrap();
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
        drop(wal);
        disk.hold_syncs(false);
        told.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        until("the threads end", || Arc::strong_count(&used) == 1);
    }
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

/// B40: a purge whose sync failed is read from the page cache by the next start. Until it is durable, the segments that
/// it lets go of stay, since a power loss may bring back the log that needs them.
#[test]
fn purged_segments_stay_until_a_restart_has_made_their_purge_durable() {
    let mut failures = 0;
    // With every number of votes before it, so that some recoveries have to begin a new segment.
    for (prepare_ahead, votes) in [false, true]
        .into_iter()
        .flat_map(|ahead| (0..60).map(move |n| (ahead, n)))
    {
        let options = || Options {
            prepare_ahead,
            ..options()
        };
        let disk = FaultyDisk::new();
        let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
        let entries: Vec<_> = (0..24).map(|i| entry(1, i, 300)).collect();
        for entry in &entries {
            wait(|done| wal.append(vec![entry.clone()], done)).unwrap();
        }
        for _ in 0..votes {
            wait(|done| wal.save_vote(Bytes::from_static(b"vote"), done)).unwrap();
        }
        let used = (1..).take_while(|n| disk.contents(&segment(*n)).is_some()).count();
        assert!(used > 3, "{used} segments");
        if prepare_ahead {
            let in_use = |n: &u64| {
                disk.contents(&segment(*n))
                    .is_some_and(|bytes| bytes[64..80] != [0; 16])
            };
            let next = (1..).find(|n| !in_use(n)).unwrap();
            until("the next segment is prepared", || {
                disk.contents(&segment(next)).is_some()
            });
        }
        disk.fail_sync(1);
        if wait(|done| wal.purge(pos(1, 20), done)).is_ok() {
            continue; // it began a segment, and the sync was that of the one after it
        }
        failures += 1;
        drop(wal);
        disk.fail_sync(1);
        let failed = Wal::open(options(), Arc::new(disk.clone())).map(|(_, found)| found);
        assert!(matches!(failed, Err(Error::Sync { .. })), "{failed:?}");
        disk.power_loss(Tear::Lose);
        let (wal, found) = Wal::open(options(), Arc::new(disk.clone()))
            .unwrap_or_else(|e| panic!("ahead {prepare_ahead}, {votes} votes: {e}"));
        assert_eq!((found.purged, found.last), (None, Some(pos(1, 23))));
        assert_eq!(all(&wal), entries);
    }
    assert!(failures > 100, "{failures}");
}

/// A purge that the last run had no time to act on: its segments go once the log is open.
#[test]
fn segments_purged_before_a_restart_are_put_to_use() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    for i in 0..24 {
        wait(|done| wal.append(vec![entry(1, i, 300)], done)).unwrap();
    }
    disk.fail_sync(1);
    wait(|done| wal.purge(pos(1, 23), done)).unwrap_err();
    drop(wal);
    assert!(disk.contents(&segment(1)).is_some());
    let (wal, found) = open(&disk).unwrap();
    assert_eq!(found.purged, Some(pos(1, 23)));
    drop(wal);
    assert_eq!(disk.contents(&segment(1)), None);
    assert!(disk.paths().len() <= 3, "{:?}", disk.paths());
}

/// A committed position must not reach the disk before the truncation that makes room for its entry: the entry that is
/// there until then has another term, and the log would be refused.
#[test]
fn a_committed_position_waits_for_the_truncation_before_its_entry() {
    let disk = FaultyDisk::new();
    let options = || Options {
        segment_bytes: 16 << 20,
        ..options()
    };
    let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
    wait(|done| wal.append(vec![entry(1, 0, 10)], done)).unwrap();
    let before = disk.contents(&segment(1)).unwrap();
    disk.hold_syncs(true);
    wal.save_vote(Bytes::new(), Box::new(|_| {}));
    until("the batch is written", || disk.contents(&segment(1)).unwrap() != before);
    // More than one batch holds, so that the truncation comes in a later one.
    let (cut, (tell, told)) = (disk.clone(), mpsc::channel());
    wal.append(vec![entry(1, 1, 1 << 20)], Box::new(|_| {}));
    wal.append(vec![entry(3, 2, 1 << 20)], Box::new(|_| {}));
    wal.append(
        vec![entry(3, 3, 1 << 20)],
        Box::new(move |outcome| {
            cut.cut_power_after(0);
            tell.send(outcome).unwrap();
        }),
    );
    wal.append(vec![entry(3, 4, 3 << 20)], Box::new(|_| {}));
    wal.truncate_after(Some(0), Box::new(|_| {}));
    wal.append(vec![entry(2, 1, 10)], Box::new(|_| {}));
    wal.save_committed(pos(2, 1));
    disk.hold_syncs(false);
    told.recv().unwrap().unwrap();
    drop(wal);
    disk.power_loss(Tear::Lose);
    let (_, found) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
    assert_eq!((found.last, found.committed), (Some(pos(3, 3)), None));
}

/// The same where nothing is queued: the entry that the log has at that index is another one.
#[test]
fn a_committed_position_of_another_term_is_not_written() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    wal.save_committed(pos(2, 1));
    wait(|done| wal.append((0..3).map(|i| entry(1, i, 10)).collect(), done)).unwrap();
    wait(|done| wal.truncate_after(Some(0), done)).unwrap();
    wait(|done| wal.append((1..3).map(|i| entry(1, i, 10)).collect(), done)).unwrap();
    drop(wal);
    let (wal, found) = open(&disk).unwrap();
    assert_eq!((found.last, found.committed), (Some(pos(1, 2)), None));
    wal.save_committed(pos(2, 1));
    wait(|done| wal.truncate_after(Some(0), done)).unwrap();
    wait(|done| wal.append(vec![entry(2, 1, 10)], done)).unwrap();
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.committed, Some(pos(2, 1)));
}

/// D7: finding out that the disk is full writes nothing to it.
#[test]
fn a_full_disk_is_not_filled_further_to_find_out() {
    let disk = FaultyDisk::new();
    let options = Options {
        segment_bytes: 3 << 20,
        ..options()
    };
    let (wal, _) = Wal::open(options, Arc::new(disk.clone())).unwrap();
    disk.set_capacity(Some(disk.used() + (2 << 20)));
    let refused = (0..).find_map(|i| {
        let writes = disk.writes();
        let outcome = wait(|done| wal.append(vec![entry(1, i, 500 << 10)], done));
        outcome.err().map(|error| (error, disk.writes() - writes))
    });
    assert!(matches!(refused, Some((Error::NoSpace, 0))), "{refused:?}");
}

/// D7: where there is no space for a whole segment, a smaller one will do.
#[test]
fn a_nearly_full_disk_gets_smaller_segments() {
    for prepare_ahead in [false, true] {
        let disk = FaultyDisk::new();
        // For segments of 4, 8 and not 16 MiB.
        disk.set_capacity(Some(21 << 20));
        let options = Options {
            prepare_ahead,
            segment_bytes: 64 << 20,
            ..options()
        };
        let (wal, _) = Wal::open(options, Arc::new(disk.clone())).unwrap();
        for i in 0..13 {
            wait(|done| wal.append(vec![entry(1, i, 1 << 20)], done))
                .unwrap_or_else(|e| panic!("entry {i}, ahead {prepare_ahead}: {e}"));
        }
        assert_eq!(disk.contents(&segment(3)).unwrap().len(), 8 << 20);
        let refused = wait(|done| wal.append(vec![entry(1, 13, 6 << 20)], done));
        assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    }
}

/// D7: a disk that only says no when it is written to is not written to for every caller.
#[test]
fn an_exceeded_quota_is_tried_seldom() {
    let disk = FaultyDisk::new();
    let options = Options {
        prepare_ahead: true,
        ..options()
    };
    let (wal, _) = Wal::open(options, Arc::new(disk.clone())).unwrap();
    disk.set_quota(Some(12 << 10));
    let mut next = 0;
    while wait(|done| wal.append(vec![entry(1, next, 300)], done)).is_ok() {
        next += 1;
    }
    for _ in 0..200 {
        let told = wait(|done| wal.append(vec![entry(1, next, 300)], done));
        assert!(matches!(told, Err(Error::NoSpace)), "{told:?}");
    }
    assert!(disk.over_quota() < 20, "{} tries", disk.over_quota());
    disk.set_quota(None);
    until("space is noticed", || wal.space().load(Ordering::SeqCst));
    wait(|done| wal.append(vec![entry(1, next, 300)], done)).unwrap();
}

/// D7: started on a full disk, a lone member still elects itself: a vote, and the blank entry of its term.
#[test]
fn a_restart_on_a_full_disk_takes_what_an_election_needs() {
    for prepare_ahead in [false, true] {
        let options = || Options {
            prepare_ahead,
            ..options()
        };
        let disk = FaultyDisk::new();
        let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
        disk.set_capacity(Some(12 << 10));
        let mut next = 0;
        while wait(|done| wal.append(vec![entry(1, next, 300)], done)).is_ok() {
            next += 1;
        }
        while wait(|done| wal.append(vec![entry(1, next, 10)], done)).is_ok() {
            next += 1;
        }
        drop(wal);
        for term in 2..4 {
            let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
            wait(|done| wal.save_vote(Bytes::from_static(b"myself"), done)).unwrap();
            wait(|done| wal.append_reserved(vec![entry(term, next, 10)], done)).unwrap();
            next += 1;
            let told = wait(|done| wal.append(vec![entry(term, next, 10)], done));
            assert!(matches!(told, Err(Error::NoSpace)), "{told:?}");
        }
        // And then makes room.
        let (wal, _) = Wal::open(options(), Arc::new(disk.clone())).unwrap();
        wait(|done| wal.purge(pos(3, next - 1), done)).unwrap();
        until("there is space again", || {
            wait(|done| wal.append(vec![entry(3, wal.state().1.unwrap().index + 1, 300)], done)).is_ok()
        });
    }
}

#[test]
fn what_is_queued_counts_as_written() {
    let disk = FaultyDisk::new();
    let options = Options {
        segment_bytes: 64 << 10,
        ..options()
    };
    let (wal, _) = Wal::open(options, Arc::new(disk.clone())).unwrap();
    let (before, blank) = (wal.writable_bytes(), disk.contents(&segment(1)).unwrap());
    disk.hold_syncs(true);
    let (tell, told) = mpsc::channel();
    let mut left = Vec::new();
    for i in 0..5 {
        let tell = tell.clone();
        wal.append(
            vec![entry(1, i, 1000)],
            Box::new(move |outcome| tell.send(outcome).unwrap()),
        );
        if i == 0 {
            // This one is on its way to the disk, the others wait.
            until("the batch is written", || disk.contents(&segment(1)).unwrap() != blank);
        }
        left.push(wal.writable_bytes());
    }
    // Nothing is asserted while the writer is held up, since a failure would wait for it.
    disk.hold_syncs(false);
    (0..5).for_each(|_| told.recv().unwrap().unwrap());
    for (i, left) in left.iter().enumerate() {
        let most = before - 1000 * (i as u64 + 1);
        assert!(*left <= most, "{left} bytes are left with {} entries", i + 1);
    }
    let queued = left[4];
    assert!(before - queued < 5500, "{} bytes for 5 entries", before - queued);
    // Now the heads of the batches are known too.
    let after = wal.writable_bytes();
    assert!(
        after <= queued && queued - after < 500,
        "{queued} bytes before, {after} after"
    );
}

/// A spare that could not be made ready is still a spare: on a full disk there is no other way to a segment.
#[test]
fn a_spare_survives_an_error_of_the_disk() {
    let disk = FaultyDisk::new();
    let (wal, _) = open(&disk).unwrap();
    let mut next = 0;
    let mut append = |wal: &Wal| {
        next += 1;
        wait(|done| wal.append(vec![entry(1, next - 1, 300)], done))
    };
    (0..30).for_each(|_| append(&wal).unwrap());
    wait(|done| wal.purge(pos(1, 28), done)).unwrap();
    let is_spare = |path: &std::path::PathBuf| path.extension().is_some_and(|ext| ext == "spare");
    let spares = || disk.paths().iter().filter(|path| is_spare(path)).count();
    until("there is a spare", || spares() == 1);
    disk.set_capacity(Some(disk.used()));
    // Where a segment is begun, the first sync is the batch's and the second the spare's, which gets a header then.
    let prepared = disk.paths().into_iter().rfind(|path| !is_spare(path)).unwrap();
    let begun = || disk.contents(&prepared).unwrap()[64..80] != [0; 16];
    assert!(!begun());
    let syncs = loop {
        let syncs = disk.syncs();
        disk.fail_sync(2);
        append(&wal).unwrap();
        if begun() {
            break syncs;
        }
    };
    until("the sync has failed", || disk.syncs() == syncs + 2);
    for i in 0..9 {
        append(&wal).unwrap_or_else(|e| panic!("entry {i} after the error: {e}"));
    }
    assert_eq!(spares(), 0);
}
