//! Power lost at every call to the disk, and the log under random operations next to a naive model.
#![allow(clippy::unwrap_used)]

mod kit;

use std::path::Path;

use kit::{Runs, Step, World, cases};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use quorate_wal::disk::{FaultyDisk, Tear};

const fn append(entries: u8, bytes: u16) -> Step {
    Step::Append {
        entries,
        bytes,
        new_term: false,
    }
}

/// Votes, bursts, truncations, purges that free segments, a reset, an orderly restart and a disorderly one; over enough
/// bytes to use ten segments and to recycle some.
fn script() -> Vec<Step> {
    let mut script = vec![
        Step::Vote(1),
        Step::Wait,
        append(1, 0),
        append(3, 100),
        Step::Wait,
        Step::Commit(255),
    ];
    for round in 0..3 {
        script.extend([
            append(2, 500),
            Step::Wait,
            append(1, 700),
            Step::Vote(round + 2),
            append(4, 10),
            Step::Commit(200),
            Step::Wait,
            Step::Truncate(200),
            Step::Append {
                entries: 2,
                bytes: 600,
                new_term: true,
            },
            Step::Wait,
            append(3, 900),
            Step::Commit(255),
            append(1, 1),
            Step::Wait,
            Step::Purge(180),
            append(1, 40),
            Step::Wait,
            Step::Close,
            append(2, 30),
        ]);
    }
    script.extend([
        Step::Drop,
        append(2, 300),
        Step::Reset(10),
        append(2, 10),
        Step::Wait,
        append(2, 900),
        Step::Wait,
    ]);
    script
}

/// Plays the script until the power goes; true if it got through.
fn play(world: &mut World) -> bool {
    if world.open().is_err() {
        return false;
    }
    for step in script() {
        // Steps that reopen the log can't do so without power.
        if matches!(step, Step::Close | Step::Drop) {
            let ok = world.wait();
            if !ok || world.disk.is_off() {
                return false;
            }
            world.down();
            if world.open().is_err() {
                return false;
            }
            continue;
        }
        world.step(&step);
        if world.disk.is_off() {
            return false;
        }
    }
    let ok = world.wait();
    ok && !world.disk.is_off()
}

const TEARS: [Tear; 6] = [
    Tear::Lose,
    Tear::Keep,
    Tear::LoseFirst,
    Tear::LoseLast,
    Tear::Mix(1),
    Tear::Mix(0x5eed),
];

/// A log that was found after a power loss is found the same again, takes more, and keeps that.
fn goes_on(mut world: World) {
    world.open().unwrap();
    world.down();
    world.disk.power_loss(Tear::Lose);
    world.open().unwrap();
    for step in [append(2, 200), Step::Vote(99), Step::Wait] {
        world.step(&step);
    }
    world.down();
    world.disk.power_loss(Tear::Lose);
    world.open().unwrap();
}

fn matrix(runs: Runs, stride: usize) -> usize {
    let mut cuts = 0;
    for cut in (0..).step_by(stride) {
        let mut world = World::new(FaultyDisk::new(), runs);
        world.disk.cut_power_after(cut);
        let done = play(&mut world);
        world.down();
        for tear in TEARS {
            println!("cut after {cut} calls, {tear:?}");
            let after = world.fork();
            after.disk.power_loss(tear);
            goes_on(after);
        }
        if done {
            break;
        }
        cuts += 1;
    }
    cuts
}

/// B27, D2
#[test]
fn power_loss_keeps_every_acknowledged_write() {
    let cuts = matrix(Runs::Between, 1);
    assert!(cuts > 150, "only {cuts} calls to the disk in the script");
}

/// B27, D2: the same with the helper thread, whose calls fall between the writer's as they will.
#[test]
fn power_loss_keeps_every_acknowledged_write_while_segments_are_prepared() {
    matrix(Runs::Ahead, 5);
}

/// B27, D2: the same without threads.
#[test]
fn power_loss_keeps_every_acknowledged_write_of_a_stepped_log() {
    let cuts = matrix(Runs::Stepped, 1);
    assert!(cuts > 150, "only {cuts} calls to the disk in the script");
}

/// D2: power lost again at every call of the recovery from a power loss.
#[test]
fn power_loss_during_recovery_changes_nothing() {
    for cut in (3..).step_by(7) {
        let mut world = World::new(FaultyDisk::new(), Runs::Between);
        world.disk.cut_power_after(cut);
        let done = play(&mut world);
        world.down();
        world.disk.power_loss(Tear::Mix(cut));
        // What the first recovery finds is what every later one has to find.
        let mut first = world.fork();
        first.open().unwrap();
        let expect = first.state().clone();
        for again in 0.. {
            let mut second = world.fork();
            second.disk.cut_power_after(again);
            let opened = second.open().is_ok();
            second.down();
            for tear in TEARS {
                let mut third = second.fork();
                third.disk.power_loss(tear);
                third.open().unwrap();
                assert_eq!(
                    *third.state(),
                    expect,
                    "cut after {cut}, recovery cut after {again}, {tear:?}"
                );
            }
            if opened {
                break;
            }
        }
        if done {
            break;
        }
    }
}

/// What the other tests here rest on: among the segments that the script writes to are some of a former life.
#[test]
fn the_script_uses_many_segments_and_recycles_some() {
    let mut world = World::new(FaultyDisk::new(), Runs::Between);
    assert!(play(&mut world));
    world.down();
    let renames = world.disk.renames();
    let is = |path: &Path, ext| path.extension().is_some_and(|found| found == ext);
    let made = renames.iter().filter(|(_, to)| is(to, "wal")).count();
    let recycled = renames.iter().filter(|(from, _)| is(from, "spare")).count();
    assert!(
        made >= 10 && recycled >= 3,
        "{made} segments, {recycled} of them recycled"
    );
}

/// B40, D6: a sync or a write that fails during recovery, then power loss, or just another try. What has been
/// acknowledged stays, and what a recovery from power loss has found, every later one finds.
#[test]
fn errors_during_recovery_change_nothing() {
    type Fail = fn(&FaultyDisk, u64);
    type Count = fn(&FaultyDisk) -> u64;
    let faults: [(Fail, Count); 2] = [
        (FaultyDisk::fail_sync, FaultyDisk::syncs),
        (FaultyDisk::fail_write, FaultyDisk::writes),
    ];
    let mut errors = 0;
    for cut in (3..).step_by(13) {
        let mut world = World::new(FaultyDisk::new(), Runs::Between);
        world.disk.cut_power_after(cut);
        let done = play(&mut world);
        world.down();
        world.disk.power_loss(Tear::Mix(cut));
        let mut first = world.fork();
        first.open().unwrap();
        let expect = first.state().clone();
        for (fail, count) in faults {
            for nth in 1.. {
                let mut second = world.fork();
                let before = count(&second.disk);
                fail(&second.disk, nth);
                errors += usize::from(second.open().is_err());
                second.down();
                let met = count(&second.disk) - before >= nth;
                second.disk = second.disk.fork(); // without the fault
                let mut again = second.fork();
                again.open().unwrap();
                assert_eq!(*again.state(), expect, "cut after {cut}, error at {nth}");
                for tear in TEARS {
                    let mut third = second.fork();
                    third.disk.power_loss(tear);
                    third.open().unwrap();
                    assert_eq!(*third.state(), expect, "cut after {cut}, error at {nth}, {tear:?}");
                }
                if !met {
                    break;
                }
            }
        }
        if done {
            break;
        }
    }
    assert!(errors > 20, "only {errors} recoveries failed");
}

/// B40: the same after a sync that failed in the running log, when recovery reads what only the page cache has.
#[test]
fn errors_during_recovery_from_a_failed_sync_lose_nothing_acknowledged() {
    for failing in 0..60 {
        let mut world = World::new(FaultyDisk::new(), Runs::Between);
        world.open().unwrap();
        world.step(&Step::FailSync(failing));
        for step in script() {
            match step {
                Step::Close | Step::Drop => continue,
                step => world.step(&step),
            }
        }
        world.wait();
        world.down();
        for nth in 1..4 {
            let mut second = world.fork();
            second.disk.fail_sync(nth);
            let opened = second.open().is_ok();
            second.down();
            for tear in TEARS {
                let mut third = second.fork();
                third.disk.power_loss(tear);
                third.open().unwrap();
                if opened {
                    assert_eq!(third.state(), second.state(), "sync {failing}, then {nth}, {tear:?}");
                }
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..5u8, prop_oneof![0..60u16, 0..1500u16], prop::bool::weighted(0.2))
            .prop_map(|(entries, bytes, new_term)| Step::Append { entries, bytes, new_term }),
        3 => any::<u8>().prop_map(Step::Vote),
        3 => any::<u8>().prop_map(Step::Commit),
        2 => any::<u8>().prop_map(Step::Truncate),
        3 => any::<u8>().prop_map(Step::Purge),
        1 => (0..20u8).prop_map(Step::Reset),
        4 => Just(Step::Wait),
        1 => Just(Step::Close),
        1 => Just(Step::Drop),
        2 => prop_oneof![
            Just(Tear::Lose), Just(Tear::Keep), Just(Tear::LoseFirst), Just(Tear::LoseLast), any::<u64>().prop_map(Tear::Mix)
        ].prop_map(Step::Power),
        3 => Just(Step::Turn),
        1 => Just(Step::Kill),
        1 => (0..4u8).prop_map(Step::FailSync),
        1 => (0..4u8).prop_map(Step::FailWrite),
    ]
}

fn runs() -> impl Strategy<Value = Runs> {
    prop_oneof![Just(Runs::Ahead), Just(Runs::Between), Just(Runs::Stepped)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(300), failure_persistence: None, rng_seed: RngSeed::Fixed(0x51ed), ..ProptestConfig::default() })]

    #[test]
    fn the_log_agrees_with_a_naive_model(steps in prop::collection::vec(step(), 1..60), runs in runs()) {
        let mut world = World::new(FaultyDisk::new(), runs);
        world.open().unwrap();
        for step in &steps {
            if matches!(step, Step::Close | Step::Drop | Step::Power(_)) {
                world.wait();
            }
            // Recoveries that meet a fault are tested above.
            if matches!(step, Step::Close | Step::Drop | Step::Kill) {
                world.disk.fail_sync(1 << 40);
                world.disk.fail_write(1 << 40);
            }
            world.step(step);
        }
        world.step(&Step::Power(Tear::Lose));
    }
}
