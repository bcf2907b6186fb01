//! Generated runs against a naive model: pushes, flushes, crashes and reopenings, while readers hold old Views.

#![allow(clippy::unwrap_used)]

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use quorate_store::backend::{Backend, Options, View};
use quorate_store::testing::{MemDisk, Rng};

use kit::model::{State, Writer, options};

/// A View, and all that could be read when it was taken.
type Held = (View, Arc<State>);

fn open(disk: &MemDisk, rng: &mut Rng) -> (Backend, u64) {
    let options = Options {
        commit_interval: Duration::from_millis(rng.below(4)),
        commit_bytes: 1 << (10 + rng.below(10)),
        pending_bytes_max: 1 << (12 + rng.below(10)),
        ..options()
    };
    let (backend, recovered) = Backend::open_disk(Arc::new(disk.clone()), options).unwrap();
    (backend, recovered.applied.index)
}

/// Reads at random from each View it is given, for a while, whatever the writer does meanwhile.
fn reader(held: Receiver<Held>, seed: u64, reads: &AtomicU64) {
    let mut rng = Rng(seed);
    let mut mine: Vec<Held> = Vec::new();
    loop {
        match held.try_recv() {
            Ok(next) => mine.push(next),
            Err(std::sync::mpsc::TryRecvError::Disconnected) if mine.is_empty() => return,
            Err(_) if mine.is_empty() => {
                let Ok(next) = held.recv() else { return };
                mine.push(next);
            }
            Err(_) => (),
        }
        let at = rng.below(mine.len() as u64) as usize;
        let (view, state) = &mine[at];
        let ids: Vec<_> = state
            .rows
            .values()
            .filter(|row| !row.tombstone)
            .map(|row| row.id)
            .collect();
        let mut some: Vec<_> = ids.iter().copied().filter(|_| rng.chance(30)).collect();
        if rng.chance(30) {
            some.reverse();
        }
        let mut seen = 0;
        view.values(&some, |at, value| {
            assert_eq!(at, seen, "in order");
            assert_eq!(value, state.rows[&some[at]].value, "seed {seed}");
            seen += 1;
        })
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(seen, some.len());
        if let Some(id) = ids.get(rng.below(ids.len().max(1) as u64) as usize) {
            assert_eq!(view.value(*id).unwrap(), state.rows[id].value, "seed {seed}");
        }
        reads.fetch_add(some.len() as u64 + 1, Ordering::Relaxed);
        if mine.len() > 6 || rng.chance(10) {
            mine.swap_remove(at);
        }
    }
}

/// One life of the backend, from opening to crash or stop.
fn epoch(backend: &Backend, writer: &mut Writer, states: &mut BTreeMap<u64, State>, seed: u64, reads: &AtomicU64) {
    let mut rng = Rng(seed ^ writer.index);
    std::thread::scope(|scope| {
        let readers: Vec<SyncSender<Held>> = (0..2)
            .map(|at| {
                let (give, take) = sync_channel(4);
                scope.spawn(move || reader(take, seed * 10 + at, reads));
                give
            })
            .collect();
        for step in 0..40 {
            match rng.below(20) {
                0 => {
                    let durable = backend.flush().unwrap();
                    assert_eq!(durable.last.index, writer.index, "seed {seed}, step {step}");
                    let view = backend.view().unwrap();
                    writer
                        .state
                        .compare(&view)
                        .unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
                }
                1..7 => {
                    let held = (backend.view().unwrap(), Arc::new(writer.state.clone()));
                    readers[rng.below(2) as usize].send(held).unwrap();
                }
                _ => {
                    backend.push(writer.change()).unwrap();
                    states.insert(writer.index, writer.state.clone());
                }
            }
        }
    });
}

fn run(seed: u64, reads: &AtomicU64) {
    let mut rng = Rng(seed);
    let mut disk = MemDisk::default();
    let mut writer = Writer::new(seed);
    let mut states = BTreeMap::from([(0, State::default())]);
    for _ in 0..4 {
        let (backend, applied) = open(&disk, &mut rng);
        let state = states[&applied].clone();
        state
            .compare(&backend.view().unwrap())
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        // The log would be replayed from here; new changes do as well.
        writer = Writer::resume(writer.rng.next(), state, applied);
        states.retain(|index, _| *index <= applied);
        epoch(&backend, &mut writer, &mut states, seed, reads);
        let durable = backend.durable().last.index;
        match rng.below(3) {
            0 => {
                backend.close().unwrap();
                assert_eq!(
                    open(&disk, &mut rng).1,
                    writer.index,
                    "seed {seed}: a clean stop loses nothing"
                );
            }
            1 => drop(backend),
            _ => disk = MemDisk::with_image(disk.image()),
        }
        assert!(
            open(&disk, &mut rng).1 >= durable,
            "seed {seed}: what was durable is there"
        );
    }
    let (backend, _) = open(&disk, &mut rng);
    backend.push(writer.change()).unwrap();
    backend.flush().unwrap();
    wait_until_nothing_is_pinned(&backend, seed);
}

/// With no View in use, what is durable is held nowhere else.
fn wait_until_nothing_is_pinned(backend: &Backend, seed: u64) {
    for _ in 0..3000 {
        if backend.sizes().pending_bytes == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("seed {seed}: {} bytes stay pinned", backend.sizes().pending_bytes);
}

#[test]
fn agrees_with_a_naive_model_under_readers_and_crashes() {
    let reads = AtomicU64::new(0);
    for seed in 0..25 {
        run(seed, &reads);
    }
    assert!(reads.load(Ordering::Relaxed) > 10_000, "readers had their share");
}
