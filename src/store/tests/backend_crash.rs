//! Power loss, failing syncs and reads, full disks, flipped bits: what the backend promises on a faulty disk.

#![allow(clippy::unwrap_used)]

mod kit;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_store::backend::{Applied, Backend, Change, Error, Observer, Options, Recovered, Row, RowId, View};
use quorate_store::testing::{ALL_CASES, MemDisk, Op, Replay, Rng, Survives};

use kit::model::{State, Writer, open, options};

/// A scripted run: the disk's trace, the state after each applied index, and what was promised when.
struct Run {
    start: Vec<u8>,
    trace: Vec<Op>,
    states: BTreeMap<u64, State>,
    /// Position in the trace, and the applied index that was durable from there on, and the one before it.
    promises: Vec<(usize, u64, u64)>,
}

fn scripted_run(seed: u64, commits: usize) -> Run {
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    let start = disk.start_trace();
    let mut writer = Writer::new(seed);
    let mut states = BTreeMap::from([(0, State::default())]);
    let mut promises = vec![(0, 0, 0)];
    for _ in 0..commits {
        for _ in 0..=writer.rng.below(3) {
            backend.push(writer.change()).unwrap();
            states.insert(writer.index, writer.state.clone());
        }
        let durable = backend.flush().unwrap();
        assert_eq!(durable.last.index, writer.index);
        promises.push((disk.trace_len(), durable.last.index, durable.last_but_one.index));
    }
    backend.close().unwrap();
    let trace = disk.trace();
    Run {
        start,
        trace,
        states,
        promises,
    }
}

fn check_image(run: &Run, cut: usize, image: Vec<u8>, what: &str) {
    let disk = MemDisk::with_image(image);
    let (backend, recovered) = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let Recovered {
        applied,
        applied_before,
        revision,
        compacted,
        installed,
        walked,
    } = recovered;
    assert_eq!(installed, None, "{what}");
    assert!(!walked, "{what}: the whole file was walked");
    let promised = run.promises.iter().rev().find(|(at, ..)| *at <= cut).unwrap();
    assert!(
        applied.index >= promised.1,
        "{what}: applied {applied:?} after {} was durable",
        promised.1
    );
    assert!(
        applied_before.index <= applied.index && applied.index >= promised.2,
        "{what}"
    );
    let state = run.states.get(&applied.index);
    let state = state.unwrap_or_else(|| panic!("{what}: applied {applied:?} is within a change"));
    assert_eq!(
        (revision, compacted),
        (state.revision, state.compacted),
        "{what}: of another commit than applied"
    );
    state
        .compare(&backend.view().unwrap())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    // And it goes on from there.
    let mut writer = Writer::resume(cut as u64, state.clone(), applied.index);
    backend.push(writer.change()).unwrap();
    assert_eq!(backend.flush().unwrap().last.index, writer.index, "{what}");
    writer
        .state
        .compare(&backend.view().unwrap())
        .unwrap_or_else(|error| panic!("{what}, going on: {error}"));
}

/// B42, B9, B20, B21, D2: the power goes after every single write, with nothing, one, most, all or odd sectors of what
/// was not synced on the platter. What comes back is the state of one commit, whole, and none that was promised is lost.
#[test]
fn redb_power_loss_at_every_write() {
    for seed in [1, 2] {
        let run = scripted_run(seed, 14);
        let mut rng = Rng(seed);
        let mut replay = Replay::new(run.start.clone());
        let mut tried = 0;
        for (cut, op) in run.trace.iter().enumerate() {
            replay.step(op);
            for survives in &ALL_CASES {
                let image = replay.power_loss(*survives, &mut rng);
                check_image(
                    &run,
                    cut + 1,
                    image,
                    &format!("seed {seed}, cut after {} ({survives:?})", cut + 1),
                );
                tried += 1;
            }
        }
        assert!(tried > 1000, "the run is long enough to mean something: {tried}");
    }
}

/// D2, B42: the same in the middle of opening after a power loss: recovery may be cut as often as it likes.
#[test]
fn power_loss_while_recovering_is_recovered_from() {
    let run = scripted_run(3, 6);
    let mut rng = Rng(3);
    let mut replay = Replay::new(run.start.clone());
    for (cut, op) in run.trace.iter().enumerate() {
        replay.step(op);
        if cut % 17 != 0 {
            continue;
        }
        let disk = MemDisk::with_image(replay.power_loss(Survives::Sectors, &mut rng));
        let start = disk.start_trace();
        drop(open(&disk).unwrap());
        let mut second = Replay::new(start);
        for (at, op) in disk.trace().iter().enumerate() {
            second.step(op);
            let image = second.power_loss(Survives::Sectors, &mut rng);
            check_image(&run, cut + 1, image, &format!("cut after {}, then {at}", cut + 1));
        }
    }
}

/// B9: the newest row is compacted away, the power goes at any moment of it, the revision stays.
#[test]
fn crash_in_compaction_never_lowers_revision() {
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    let rows = (2..=400).map(|main| row(main, b"value")).collect();
    backend
        .push(Change {
            applied: at(1),
            revision: 400,
            rows,
            ..Change::default()
        })
        .unwrap();
    backend.flush().unwrap();
    let mut replay = Replay::new(disk.start_trace());
    for slice in 0..4 {
        let removed = (2 + slice * 100..102 + slice * 100)
            .map(|main| RowId { main, sub: 0 })
            .collect();
        let change = Change {
            applied: at(2),
            revision: 400,
            compacted: 400,
            removed,
            ..Change::default()
        };
        backend.push(change).unwrap();
        backend.flush().unwrap();
    }
    drop(backend);
    let mut rng = Rng(9);
    for (cut, op) in disk.trace().iter().enumerate() {
        replay.step(op);
        let disk = MemDisk::with_image(replay.power_loss(Survives::Sectors, &mut rng));
        let (_, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.revision, 400, "cut after {cut}");
    }
}

/// B20: whatever a change consists of, even nothing, its applied index is saved with it.
#[test]
fn every_kind_of_change_saves_applied_index() {
    let system = |table| vec![(table, Bytes::from("k"), Some(Bytes::from("v")))];
    let mut changes = vec![
        Change::default(),
        Change {
            rows: vec![row(2, b"v")],
            ..Change::default()
        },
        Change {
            removed: vec![RowId { main: 2, sub: 0 }],
            ..Change::default()
        },
    ];
    changes.extend(kit::model::TABLES.map(|table| Change {
        system: system(table),
        ..Change::default()
    }));
    let disk = MemDisk::default();
    for (index, change) in (1..).zip(changes) {
        let (backend, _) = open(&disk).unwrap();
        backend
            .push(Change {
                applied: at(index),
                revision: 2,
                ..change
            })
            .unwrap();
        backend.flush().unwrap();
        let image = disk.image();
        drop(backend);
        let (_, recovered) = open(&MemDisk::with_image(image)).unwrap();
        assert_eq!(
            (recovered.applied, recovered.applied_before),
            (at(index), at(index - 1))
        );
    }
}

#[derive(Default)]
struct Fatal(AtomicUsize);

impl Observer for Fatal {
    fn fatal(&self, _error: &Error) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// D6: a failed sync is final, wherever it strikes: nothing is durable after it, readers go on, nothing that was
/// promised before is lost.
#[test]
fn fsync_error_stops_the_backend() {
    for good in 0..12 {
        stops_at_a_failure(good, MemDisk::fail_sync_after);
    }
}

/// D6: so is a failed write.
#[test]
fn write_error_stops_the_backend() {
    for good in 0..40 {
        stops_at_a_failure(good, MemDisk::fail_write_after);
    }
}

fn stops_at_a_failure(good: u64, fail_after: fn(&MemDisk, u64)) {
    let disk = MemDisk::default();
    let fatal = Arc::new(Fatal::default());
    let options = Options {
        observer: fatal.clone(),
        ..options()
    };
    let (backend, _) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
    fail_after(&disk, good);
    let mut replay = Replay::new(disk.start_trace());
    let mut writer = Writer::new(good);
    let mut states = BTreeMap::from([(0, State::default())]);
    let mut durable = 0;
    let failed = loop {
        backend.push(writer.change()).unwrap();
        states.insert(writer.index, writer.state.clone());
        match backend.flush() {
            Ok(now) => durable = now.last.index,
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, Error::Poisoned { .. }), "{failed}");
    assert!(matches!(backend.flush(), Err(Error::Poisoned { .. })));
    let last = states[states.keys().last().unwrap()].clone();
    assert!(matches!(backend.push(writer.change()), Err(Error::Poisoned { .. })));
    assert_eq!(backend.durable().last.index, durable);
    let view = backend.view().unwrap();
    assert_eq!(view.applied().index, durable);
    let in_file = states[&durable]
        .rows
        .last_key_value()
        .map_or(RowId::ZERO, |(id, _)| *id);
    for (id, row) in last.rows.iter().filter(|(id, _)| **id > in_file) {
        assert!(
            row.tombstone || view.value(*id).unwrap() == row.value,
            "what is in memory stays readable"
        );
    }
    assert!(backend.close().is_err());
    assert_eq!(fatal.0.load(Ordering::SeqCst), 1, "told once");
    disk.trace().iter().for_each(|op| replay.step(op));
    for survives in ALL_CASES {
        let image = replay.power_loss(survives, &mut Rng(good));
        let (backend, recovered) = open(&MemDisk::with_image(image)).unwrap();
        assert!(recovered.applied.index >= durable, "{good} good ones, {survives:?}");
        states[&recovered.applied.index]
            .compare(&backend.view().unwrap())
            .unwrap();
    }
}

/// D6: a disk that can't be read gives errors, and no wrong data once it can be again.
#[test]
fn read_error_returns_no_wrong_data() {
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    let rows: Vec<Row> = (2..3000).map(|main| row(main, &[main as u8; 1500])).collect();
    backend
        .push(Change {
            applied: at(1),
            revision: 2999,
            rows: rows.clone(),
            ..Change::default()
        })
        .unwrap();
    backend.close().unwrap();
    let (backend, _) = open(&disk).unwrap();
    disk.fail_reads(true);
    let view = backend.view().unwrap();
    let mut errors = 0;
    for (at, row) in rows.iter().enumerate() {
        disk.fail_reads(at % 500 < 250);
        match view.value(row.id) {
            Ok(value) => assert_eq!(value, row.value),
            Err(Error::Disk { .. } | Error::Database { .. }) => errors += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(errors > 0);
    wait_for("the failed read to be reported", || backend.failure().is_some());
}

/// D7, E5: the disk fills up: no failure, reads and removals go on, and it comes back by itself.
#[test]
fn disk_full_recovers_by_itself() {
    let disk = MemDisk::default();
    let fatal = Arc::new(Fatal::default());
    let options = Options {
        observer: fatal.clone(),
        commit_bytes: 64 << 10,
        ..options()
    };
    let (backend, _) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
    disk.set_capacity(disk.used() + (2 << 20));
    let mut rows = Vec::new();
    let mut index = 0;
    let mut push = |index: u64, main: i64| {
        let row = row(main, &[main as u8; 8 << 10]);
        rows.push(row.clone());
        backend
            .push(Change {
                applied: at(index),
                revision: main,
                rows: vec![row],
                ..Change::default()
            })
            .unwrap();
        index
    };
    // Admission stops at the first sign of fullness, as the store does.
    while !backend.is_full() {
        index = push(index + 1, index as i64 + 2);
        backend.flush().unwrap();
        assert!(index < 2000, "the disk never filled up");
    }
    let revision = index as i64 + 1;
    let view = backend.view().unwrap();
    assert!(
        rows.iter().all(|row| view.value(row.id).unwrap() == row.value),
        "all is readable"
    );
    // The reserve carries a compaction, and the space it frees inside of the file carries writes again.
    let (gone, kept) = rows.split_at(rows.len() / 2);
    drop(view);
    for chunk in gone.chunks(20) {
        index += 1;
        let removed = chunk.iter().map(|row| row.id).collect();
        let change = Change {
            applied: at(index),
            revision,
            compacted: 1,
            removed,
            ..Change::default()
        };
        backend.push(change).unwrap();
        backend.flush().unwrap();
    }
    // Those who don't stop are held, not failed.
    let mut kept = kept.to_vec();
    let stuck = loop {
        index += 1;
        let next = row(index as i64 + 10_000, &[3; 30 << 10]);
        kept.push(next.clone());
        let revision = next.id.main;
        backend
            .push(Change {
                applied: at(index),
                revision,
                compacted: 1,
                rows: vec![next],
                ..Change::default()
            })
            .unwrap();
        match backend.flush() {
            Ok(_) => assert!(index < 4000, "space never ran out"),
            Err(error) => break error,
        }
    };
    assert!(matches!(stuck, Error::DiskFull), "{stuck}");
    assert!(backend.is_full());
    let view = backend.view().unwrap();
    assert!(
        kept.iter().all(|row| view.value(row.id).unwrap() == row.value),
        "all is still readable"
    );
    disk.set_capacity(1 << 30);
    wait_for("what was held to be durable", || {
        backend.flush().is_ok_and(|durable| durable.last.index == index)
    });
    wait_for("the reserve to be whole", || !backend.is_full());
    backend.close().unwrap();
    assert_eq!(fatal.0.load(Ordering::SeqCst), 0);
    let (backend, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.applied, at(index));
    let view = backend.view().unwrap();
    assert!(
        kept.iter().all(|row| view.value(row.id).unwrap() == row.value),
        "all of it is in the file"
    );
}

/// D7: closing on a full disk ends at once; what is missing is the log's to replay.
#[test]
fn closing_on_a_full_disk_does_not_wait() {
    let disk = MemDisk::default();
    let options = Options {
        reserve_bytes: 0,
        ..options()
    };
    let (backend, _) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
    disk.set_capacity(0);
    let rows = vec![row(2, &[1; 100_000])];
    backend
        .push(Change {
            applied: at(1),
            revision: 2,
            rows,
            ..Change::default()
        })
        .unwrap();
    assert!(matches!(backend.close(), Err(Error::DiskFull)));
    disk.set_capacity(1 << 30);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.applied, at(0));
}

/// D4: a bit flips anywhere in the file: the reader hears of it, or it was a bit that nobody reads. No panic, no other
/// answer.
#[test]
fn bit_flip_is_never_served() {
    let run = scripted_run(4, 10);
    let mut replay = Replay::new(run.start.clone());
    run.trace.iter().for_each(|op| replay.step(op));
    let image = replay.power_loss(Survives::All, &mut Rng(4));
    let (last, state) = run.states.last_key_value().unwrap();
    let mut rng = Rng(44);
    let heads = (0..24 * 8)
        .step_by(3)
        .chain((8192 * 8..8192 * 8 + 512 * 8).step_by(5))
        .map(|bit| bit as u64);
    let anywhere = (0..1500).map(|_| rng.below(image.len() as u64 * 8));
    let (mut noticed, mut unread) = (0, 0);
    for bit in heads.chain(anywhere).collect::<Vec<_>>() {
        let mut image = image.clone();
        image[(bit / 8) as usize] ^= 1 << (bit % 8);
        match read_whole(&MemDisk::with_image(image), *last, state, &format!("bit {bit}")) {
            true => unread += 1,
            false => noticed += 1,
        }
    }
    assert!(noticed > 300, "{noticed} noticed, {unread} in space that is not in use");
}

/// Opens the disk and reads all there is. True if that is `state`, false for an error; anything else is a failure.
fn read_whole(disk: &MemDisk, last: u64, state: &State, what: &str) -> bool {
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let (backend, recovered) = open(disk).map_err(|error| error.to_string())?;
        assert_eq!(
            recovered.applied.index, last,
            "{what}: an older state is a wrong answer too"
        );
        state.compare(&backend.view().unwrap())
    }));
    match read {
        Ok(Ok(())) => true,
        Ok(Err(text)) if text.contains("differ") || text.contains("disagree") => panic!("{what}: {text}"),
        Ok(Err(_)) => false,
        Err(_) => panic!("{what} causes a panic"),
    }
}

/// D5: the disk answers with another page, or with what the page was before: noticed, if anybody reads it.
#[test]
fn misdirected_read_is_detected() {
    let run = scripted_run(5, 12);
    let mut replay = Replay::new(run.start.clone());
    run.trace.iter().for_each(|op| replay.step(op));
    let image = replay.power_loss(Survives::All, &mut Rng(5));
    let (last, state) = run.states.last_key_value().unwrap();
    let pages = image.len() as u64 / PAGE;
    let (mut noticed, mut tried) = (0, 0);
    for page in 0..pages {
        for by in [-1, 1, 7, 1024] {
            let disk = MemDisk::with_image(image.clone());
            disk.shift_reads(page, by);
            let what = format!("page {page} of {pages} read {by} pages on");
            noticed += usize::from(!read_whole(&disk, *last, state, &what));
            tried += 1;
        }
    }
    assert!(noticed > 30, "{noticed} of {tried} misdirected reads noticed");
    // As the file was after each commit. An old header is left out: it is an old state, and that one whole, as from a
    // backup. The log, which reaches back one commit and no further, knows.
    let (mut noticed, mut tried) = (0, 0);
    let mut replay = Replay::new(run.start.clone());
    let syncs = run.trace.iter().filter(|op| matches!(op, Op::Sync)).count();
    let mut done = 0;
    for op in &run.trace {
        replay.step(op);
        if !matches!(op, Op::Sync) {
            continue;
        }
        done += 1;
        let old = replay.power_loss(Survives::Nothing, &mut Rng(0));
        for page in (0..pages).filter(|page| *page != HEADER_PAGE && done < syncs) {
            let at = (page * PAGE) as usize..((page + 1) * PAGE) as usize;
            if old.get(at.clone()) == image.get(at) {
                continue;
            }
            let disk = MemDisk::with_image(image.clone());
            disk.stale_reads(page, &old);
            let what = format!("page {page} of {pages} read as of sync {done}");
            noticed += usize::from(!read_whole(&disk, *last, state, &what));
            tried += 1;
        }
    }
    assert!(noticed > 10, "{noticed} of {tried} stale reads noticed");
}

const PAGE: u64 = 4096;
const HEADER_PAGE: u64 = 2;

/// E5: whatever damage a file has, opening and reading it gives an error or what was written. A panic would end the node
/// at every start, without a word of what to do.
#[test]
fn backend_open_survives_any_bytes() {
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    let mut writer = Writer::new(6);
    for _ in 0..10 {
        (0..4).for_each(|_| backend.push(writer.change()).unwrap());
        backend.flush().unwrap();
    }
    // Enough for several groups of pages, each with its own page of sums.
    let Writer { mut state, index, .. } = writer;
    let (last, from) = (index + 1, state.revision + 1);
    let large = Change {
        applied: at(last),
        revision: from + 1999,
        compacted: state.compacted,
        rows: (from..from + 2000).map(|main| row(main, &[main as u8; 4500])).collect(),
        ..Change::default()
    };
    state.apply(&large);
    backend.push(large).unwrap();
    backend.flush().unwrap();
    let crashed = disk.image();
    backend.close().unwrap();
    let images = [crashed, disk.image()];
    assert!(images.iter().all(|image| image.len() > 9 << 20));
    let (mut refused, mut whole) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let image = &images[seed as usize % images.len()];
        let mut damaged = image.clone();
        let kind = rng.below(6);
        let len = (1024 + rng.below(63 << 10)) as usize;
        // Often where it hurts most: over the head, and over a page of sums and what follows it.
        let from = match rng.below(4) {
            0 => rng.below(16 << 10),
            1 => PAGE * (1 + 1025 * rng.below(3)) + PAGE * rng.below(3),
            _ => rng.below(image.len() as u64),
        } as usize;
        let end = (from + len).min(image.len());
        match kind {
            0 => damaged.truncate(from),
            1 => damaged.truncate(from / PAGE as usize * PAGE as usize),
            2 => damaged.extend((0..len).map(|_| rng.next() as u8)),
            3 => damaged[from..end].iter_mut().for_each(|byte| *byte = rng.next() as u8),
            _ => damaged[from..end].fill(0),
        }
        let what = format!("seed {seed}: damage of kind {kind} at {from}..{end} of {}", image.len());
        if damaged.is_empty() {
            continue; // An empty file is a new one.
        }
        match read_whole(&MemDisk::with_image(damaged), last, &state, &what) {
            true => whole += 1,
            false => refused += 1,
        }
    }
    assert!(refused > 150 && whole > 0, "{refused} refused, {whole} whole");
}

/// D7: readers need the sums of pages while a write of sums waits for space.
#[test]
fn reads_go_on_while_sums_wait_for_space() {
    let disk = MemDisk::default();
    let options = Options {
        reserve_bytes: 0,
        cache_bytes: 64 << 10,
        ..options()
    };
    let (backend, _) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
    let rows: Vec<Row> = (2..2000).map(|main| row(main, &[main as u8; 1500])).collect();
    let change = |index, revision, rows| Change {
        applied: at(index),
        revision,
        rows,
        ..Change::default()
    };
    backend.push(change(1, 1999, rows.clone())).unwrap();
    backend.flush().unwrap();
    let view = backend.view().unwrap();
    disk.set_full_at(Some(PAGE));
    backend.push(change(2, 2000, vec![row(2000, b"waits")])).unwrap();
    assert!(matches!(backend.flush(), Err(Error::DiskFull)));
    let (done, read) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let right = rows.iter().all(|row| view.value(row.id).unwrap() == row.value);
            done.send(right).unwrap();
        });
        let right = read.recv_timeout(Duration::from_secs(20));
        // Before the verdict, or a reader that is stuck would keep the test from ending.
        disk.set_full_at(None);
        assert_eq!(right, Ok(true), "stuck behind the writer");
    });
    wait_for("what waited to be durable", || backend.flush().is_ok());
    backend.close().unwrap();
}

/// D6: a disk that fails is noticed by a node that is only read from, whichever way it reads.
#[test]
fn every_read_error_is_reported() {
    let ids: Vec<RowId> = (2..3000).map(|main| RowId { main, sub: 0 }).collect();
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    let rows = ids.iter().map(|id| row(id.main, &[1; 1500])).collect();
    backend
        .push(Change {
            applied: at(1),
            revision: 2999,
            rows,
            ..Change::default()
        })
        .unwrap();
    backend.close().unwrap();
    type Read = fn(&View, &[RowId]) -> Result<(), Error>;
    let ways: [(&str, Read); 4] = [
        ("one value", |view, ids| view.value(ids[1500]).map(drop)),
        ("values", |view, ids| view.values(&ids[1500..1510], |_, _| ())),
        ("meta", |view, _| view.scan_meta(|_| ())),
        ("rows", |view, ids| {
            view.scan_rows(ids[1500], |_| ControlFlow::Continue(()))
        }),
    ];
    for (what, read) in ways {
        let fatal = Arc::new(Fatal::default());
        let options = Options {
            observer: fatal.clone(),
            ..options()
        };
        let (backend, _) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
        let view = backend.view().unwrap();
        disk.fail_reads(true);
        let failed = read(&view, &ids);
        disk.fail_reads(false);
        assert!(matches!(failed, Err(Error::Disk { .. })), "{what}: {failed:?}");
        wait_for(what, || backend.failure().is_some());
        assert_eq!(fatal.0.load(Ordering::SeqCst), 1, "{what}");
    }
}

/// A crash costs milliseconds at the next start, not a walk through the file. (With its debug assertions redb would walk
/// it to check itself; the workspace turns them off.)
#[test]
fn opening_after_a_crash_reads_little() {
    let disk = MemDisk::default();
    let (backend, _) = open(&disk).unwrap();
    for slice in 0..20 {
        let rows = (0..1000)
            .map(|at| row(2 + slice * 1000 + at, &[slice as u8; 1000]))
            .collect();
        let revision = 1001 + slice * 1000;
        let change = Change {
            applied: at(slice as u64 + 1),
            revision,
            rows,
            ..Change::default()
        };
        backend.push(change).unwrap();
        backend.flush().unwrap();
    }
    let crashed = MemDisk::with_image(disk.image());
    assert!(crashed.image().len() > 20 << 20);
    let (_backend, recovered) = open(&crashed).unwrap();
    assert_eq!(recovered.applied, at(20));
    assert!(!recovered.walked);
    let read = crashed.bytes_read();
    assert!(read < 1 << 20, "{read} bytes read to open");
}

/// A file of another program, and one of a version to come.
#[test]
fn foreign_and_newer_files_are_named() {
    let foreign = MemDisk::with_image(vec![7; 100_000]);
    assert!(matches!(open(&foreign), Err(Error::Foreign)));
    let disk = MemDisk::default();
    open(&disk).unwrap().0.close().unwrap();
    let mut image = disk.image();
    image[16] = 9;
    let crc = crc32c::crc32c(&image[..20]).to_le_bytes();
    image[20..24].copy_from_slice(&crc);
    let error = open(&MemDisk::with_image(image)).map(drop).unwrap_err();
    assert!(matches!(error, Error::Format { found: 9, known: 1 }));
    assert!(
        error.to_string().contains("format 9") && error.to_string().contains("up to 1"),
        "{error}"
    );
}

fn at(index: u64) -> Applied {
    Applied {
        index,
        term: u64::from(index > 0),
    }
}

fn row(main: i64, value: &[u8]) -> Row {
    Row {
        id: RowId { main, sub: 0 },
        key: format!("key {main}").into(),
        create: main,
        version: 1,
        lease: 0,
        tombstone: false,
        value: Bytes::copy_from_slice(value),
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
