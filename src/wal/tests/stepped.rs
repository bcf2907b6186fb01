//! A log without threads: the same log, and the same again from the same seed.
#![allow(clippy::unwrap_used)]

mod kit;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kit::{Runs, Step, World, all, entry, options, pos, until};
use quorate_wal::disk::{FaultyDisk, Tear};
use quorate_wal::{Done, Error, Recovered, Stepper, Wal};

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn step(&mut self) -> Step {
        match self.below(40) {
            0..14 => Step::Append {
                entries: 1 + self.below(4) as u8,
                bytes: self.below(1500) as u16,
                new_term: self.below(5) == 0,
            },
            14..17 => Step::Vote(self.byte()),
            17..20 => Step::Commit(self.byte()),
            20..22 => Step::Truncate(self.byte()),
            22..25 => Step::Purge(self.byte()),
            25 => Step::Reset(self.byte()),
            26..34 => Step::Turn,
            34 => Step::Wait,
            35 => Step::Close,
            36 => Step::Drop,
            37 => Step::Kill,
            38 => Step::Power(Tear::Mix(self.below(u64::MAX))),
            _ if self.below(2) == 0 => Step::FailSync(self.byte() % 4),
            _ => Step::FailWrite(self.byte() % 4),
        }
    }
}

fn picture(disk: &FaultyDisk) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let paths = disk.paths().into_iter();
    paths.map(|path| (path.clone(), disk.contents(&path))).collect()
}

/// Everything that shows of a run: answers in order, what recovery told, files and their names after every step.
fn run(seed: u64, runs: Runs, settles: bool, steps: impl IntoIterator<Item = Step>) -> (u64, Vec<String>) {
    let mut world = World::new(FaultyDisk::new(), runs);
    let mut hasher = DefaultHasher::new();
    world.open().unwrap();
    for step in steps {
        println!("seed {seed}: {step:?}");
        if matches!(step, Step::Close | Step::Drop | Step::Kill) {
            // Recoveries that meet a fault are tested elsewhere.
            world.disk.fail_sync(1 << 40);
            world.disk.fail_write(1 << 40);
        }
        world.step(&step);
        if settles {
            world.settle();
        }
        picture(&world.disk).hash(&mut hasher);
        (world.disk.calls(), world.disk.syncs(), world.disk.renames()).hash(&mut hasher);
    }
    world.settle();
    picture(&world.disk).hash(&mut hasher);
    let heard = world.heard.lock().unwrap().clone();
    heard.hash(&mut hasher);
    (hasher.finish(), heard)
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let mut hashes = Vec::new();
    for seed in 0..40 {
        let steps = || {
            let mut rng = Rng(seed);
            (0..150).map(move |_| rng.step())
        };
        let (first, again) = (
            run(seed, Runs::Stepped, false, steps()),
            run(seed, Runs::Stepped, false, steps()),
        );
        assert_eq!(first, again, "seed {seed}");
        hashes.push(first.0);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 40, "other seeds are other runs");
}

/// Each operation alone in its batch, so that the thread can't batch otherwise: down to the calls to the disk it is all
/// the same.
#[test]
fn threads_and_steps_come_to_the_same() {
    for seed in 0..40 {
        let steps = || {
            let mut rng = Rng(seed);
            let steps = (0..80).map(move |_| rng.step());
            // What is lost with the process depends on what its thread has got done.
            steps.filter(|step| !matches!(step, Step::Turn | Step::Kill))
        };
        let stepped = run(seed, Runs::Stepped, true, steps());
        let threaded = run(seed, Runs::Between, true, steps());
        assert_eq!(stepped, threaded, "seed {seed}");
    }
}

fn open(disk: &FaultyDisk) -> (Wal, Recovered, Stepper) {
    Wal::open_stepped(options(), Arc::new(disk.clone()), || {}).unwrap()
}

type Heard = Arc<Mutex<VecDeque<Result<(), Error>>>>;

fn hear(heard: &Heard) -> Done {
    let heard = heard.clone();
    Box::new(move |outcome| heard.lock().unwrap().push_back(outcome))
}

/// What has gathered while a batch was on its way is the next one, for the thread as in turns.
#[test]
fn batches_are_cut_alike() {
    let threaded = FaultyDisk::new();
    let (wal, _) = Wal::open(options(), Arc::new(threaded.clone())).unwrap();
    threaded.hold_syncs(true);
    let (before, heard) = (threaded.writes(), Heard::default());
    wal.append(vec![entry(1, 0, 10)], hear(&heard));
    until("the first batch is being written", || threaded.writes() > before);
    (1..30).for_each(|i| wal.append(vec![entry(1, i, 10)], hear(&heard)));
    threaded.hold_syncs(false);
    wal.close().unwrap();

    let stepped = FaultyDisk::new();
    let (wal, _, mut stepper) = open(&stepped);
    let heard = Heard::default();
    wal.append(vec![entry(1, 0, 10)], hear(&heard));
    assert!(!stepper.step());
    (1..30).for_each(|i| wal.append(vec![entry(1, i, 10)], hear(&heard)));
    let syncs = stepped.syncs();
    assert!(!stepper.step());
    assert_eq!(stepped.syncs(), syncs + 1, "one sync for all that were queued");
    wal.close().unwrap();
    assert_eq!(picture(&stepped), picture(&threaded));
    assert_eq!(stepped.calls(), threaded.calls());
}

#[test]
fn nothing_is_answered_before_a_turn_and_the_hook_asks_for_it() {
    let disk = FaultyDisk::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let hook = move || {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let (wal, _, mut stepper) = Wal::open_stepped(options(), Arc::new(disk.clone()), hook).unwrap();
    assert!(!stepper.step(), "a log that was just opened has nothing to do");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let heard = Heard::default();
    let calls = disk.calls();
    wal.append(vec![entry(1, 0, 100)], hear(&heard));
    wal.save_vote("vote".into(), hear(&heard));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "once, until the queue is empty again");
    assert!(heard.lock().unwrap().is_empty() && disk.calls() == calls);
    assert_eq!(all(&wal).len(), 1, "readers have it at once");
    assert!(!wal.is_preparing() && wal.space().load(Ordering::Relaxed) && wal.writable_bytes() > 0);
    assert!(!stepper.step());
    assert_eq!(heard.lock().unwrap().len(), 2);
    wal.truncate_after(None, hear(&heard));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[test]
fn what_is_queued_is_written_on_close_and_on_drop() {
    for close in [true, false] {
        let disk = FaultyDisk::new();
        let (wal, _, mut stepper) = open(&disk);
        let heard = Heard::default();
        wal.append(vec![entry(1, 0, 100)], hear(&heard));
        if close {
            let other = wal.clone();
            wal.close().unwrap();
            other.save_vote("late".into(), hear(&heard));
            assert!(matches!(heard.lock().unwrap().pop_back(), Some(Err(Error::Closed))));
        } else {
            drop(wal);
        }
        assert!(matches!(heard.lock().unwrap().pop_front(), Some(Ok(()))));
        assert!(!stepper.step(), "the writer has ended");
        let (wal, found, _stepper) = open(&disk);
        assert_eq!((found.clean_stop, found.last), (close, Some(pos(1, 0))));
        drop(wal);
    }
}

/// As with the thread, which can't wait for itself.
#[test]
fn a_callback_may_close_the_log_or_hold_its_last_handle() {
    for close in [true, false] {
        let disk = FaultyDisk::new();
        let (wal, _, mut stepper) = open(&disk);
        let last = wal.clone();
        wal.append(
            vec![entry(1, 0, 10)],
            Box::new(move |_| match close {
                true => assert!(matches!(last.close(), Err(Error::Closed)), "it has not ended yet"),
                false => drop(last),
            }),
        );
        let heard = Heard::default();
        wal.append(vec![entry(1, 1, 10)], hear(&heard));
        drop(wal);
        while stepper.step() {}
        assert!(matches!(heard.lock().unwrap().pop_front(), Some(Ok(()))));
        let (_wal, found, _stepper) = open(&disk);
        assert_eq!((found.clean_stop, found.last), (close, Some(pos(1, 1))));
    }
}

#[test]
fn killing_loses_what_is_queued_and_answers_nobody() {
    let disk = FaultyDisk::new();
    let (wal, _, mut stepper) = open(&disk);
    let heard = Heard::default();
    wal.append(vec![entry(1, 0, 10)], hear(&heard));
    stepper.step();
    let calls = disk.calls();
    wal.append(vec![entry(1, 1, 10)], hear(&heard));
    stepper.kill();
    assert_eq!(Arc::strong_count(&heard), 1, "the callback is gone");
    assert_eq!((heard.lock().unwrap().len(), disk.calls()), (1, calls));
    wal.append(vec![entry(1, 2, 10)], hear(&heard));
    assert!(matches!(heard.lock().unwrap().pop_back(), Some(Err(Error::Closed))));
    assert!(matches!(wal.close(), Err(Error::Closed)));
    assert_eq!(disk.calls(), calls);
    let (_wal, found, _stepper) = open(&disk);
    assert_eq!((found.clean_stop, found.last), (false, Some(pos(1, 0))));
}

#[test]
fn a_log_that_found_no_space_looks_again_at_every_turn() {
    let disk = FaultyDisk::new();
    let (wal, _, mut stepper) = open(&disk);
    disk.set_capacity(Some(disk.used()));
    let heard = Heard::default();
    let mut index = 0;
    while wal.space().load(Ordering::Relaxed) {
        wal.append(vec![entry(1, index, 900)], hear(&heard));
        stepper.step();
        index += 1;
        assert!(index < 100);
    }
    disk.set_capacity(None);
    stepper.step();
    assert!(wal.space().load(Ordering::Relaxed));
}
