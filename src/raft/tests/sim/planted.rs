//! Deliberate bugs: each has to be found, and by a few seeds. Worlds are turned to where such a bug shows.

use crate::plan::{Faults, Plan};
use crate::world::run_changed;
use quorate_store::planted::{Bug, plant};
use std::sync::Mutex;

type Turn = fn(&mut Plan);

/// The bug, the world to look for it in, and how many seeds may be needed.
const BUGS: &[(Bug, Turn, u64)] = &[
    (Bug::AnswerBeforeSync, power, 30),
    (Bug::VoteBeforeSync, votes, 200),
    (Bug::ApplyBeforeSync, power, 60),
    (Bug::ExecutedTwice, repeats, 30),
    (Bug::BarrierJoinedLate, reads, 60),
    (Bug::ReadIndexUnasked, cuts, 200),
    (Bug::StaleLeaseRevoke, deposed, 100),
    (Bug::NoPreVote, quiet, 10),
    (Bug::WipedCounted, wiped, 20),
    (Bug::EventDroppedAtCompaction, compaction, 30),
    (Bug::InstallWithoutResync, snapshots, 60),
    (Bug::AppliedOutsideCommit, power, 30),
    (Bug::LowerRevisionAfterCrash, power, 10),
    (Bug::LeaseRenewedByDeposed, deposed, 300),
    (Bug::RemovedCutOff, members, 30),
    (Bug::RangeCutShort, several, 10),
];

fn quiet(plan: &mut Plan) {
    plan.quiet = true;
}

fn power(plan: &mut Plan) {
    plan.faults.power = true;
    plan.faults.blackouts = true;
    plan.faults.slow_disks = true;
    plan.faults.hangs = true;
    plan.reconfigures = false;
    plan.members = 3;
}

fn votes(plan: &mut Plan) {
    power(plan);
    plan.faults.cuts = true;
    plan.faults.pauses = true;
}

fn repeats(plan: &mut Plan) {
    plan.duplicates = 60;
    plan.members = 3;
}

fn reads(plan: &mut Plan) {
    plan.faults.pauses = true;
    plan.faults.slow_links = true;
    plan.think_ms = 5;
    plan.clients = 6;
    plan.keys = 1;
}

fn cuts(plan: &mut Plan) {
    plan.faults.cuts = true;
    plan.faults.pauses = true;
    plan.members = 3;
    plan.keys = 1;
    plan.think_ms = 5;
}

/// Leaders stand still, and others lead meanwhile.
fn deposed(plan: &mut Plan) {
    plan.faults = Faults {
        pauses: true,
        ..Faults::default()
    };
    plan.members = 3;
    plan.reconfigures = false;
    plan.loses_disk = false;
    plan.rest_ms = 800;
    plan.clients = 1;
    plan.leases = 8;
    plan.renewals = 25;
}

fn wiped(plan: &mut Plan) {
    plan.members = 3;
    plan.loses_disk = true;
    plan.reconfigures = false;
}

fn compaction(plan: &mut Plan) {
    plan.compacts = true;
    plan.watchers = 6;
    plan.think_ms = 5;
}

fn snapshots(plan: &mut Plan) {
    plan.watchers = 6;
    plan.snapshot_count = 10;
    plan.catchup_entries = 0;
    plan.snapshots_cut = 0;
    plan.faults.cuts = true;
    plan.think_ms = 5;
}

fn members(plan: &mut Plan) {
    plan.members = 3;
    plan.reconfigures = true;
}

fn several(plan: &mut Plan) {
    plan.several = 2;
}

/// Turned first, so that what a plan implies is done.
fn turned(turn: Turn) -> impl FnOnce(&mut Plan) {
    move |plan| {
        plan.quiet = false;
        plan.several = 0;
        turn(plan);
    }
}

#[test]
fn every_planted_bug_is_found() {
    let left = Mutex::new(BUGS.iter().rev().collect::<Vec<_>>());
    let found = Mutex::new(Vec::new());
    let look = || {
        loop {
            let Some((bug, turn, most)) = left.lock().unwrap().pop() else {
                return;
            };
            let first = (0..*most).find_map(|seed| {
                plant(Some(*bug));
                let failure = run_changed(seed, false, turned(*turn)).failure;
                // It was the bug, and not the world.
                plant(None);
                let failure = failure?;
                let holds = run_changed(seed, false, turned(*turn)).failure.is_none();
                holds.then_some((seed, failure))
            });
            found.lock().unwrap().push((*bug, first));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(look);
        }
    });
    let mut missed = Vec::new();
    for (bug, first) in found.into_inner().unwrap() {
        match first {
            Some((seed, failure)) => {
                let failure: String = failure.chars().take(160).collect();
                println!("{bug:?}: found by seed {seed}: {failure}");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// What makes the worlds above special makes nothing fail by itself.
#[test]
fn worlds_turned_to_bugs_hold_without_them() {
    for (bug, turn, _) in BUGS {
        for seed in 1000..1002 {
            let report = run_changed(seed, false, turned(*turn));
            assert_eq!(
                report.failure,
                None,
                "seed {seed} as for {bug:?}:\n{}",
                report.last.join("\n")
            );
        }
    }
}
