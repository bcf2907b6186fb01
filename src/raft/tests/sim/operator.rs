//! The operator: adds members, starts them, promotes learners, removes members, replaces those whose disk was lost, moves
//! leadership, compacts.

use crate::clients::Asked;
use crate::machine::{Crash, ELECTION, Machine, peer_urls};
use crate::world::World;
use quorate_api::proto::etcdserverpb::CompactionRequest;
use quorate_api::proto::quorate::{MemberAdd, MemberPromote, MemberRemove};
use quorate_store::command::Command;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_millis(6 * ELECTION.as_millis() as u64);

/// Members at a time.
const MEMBERS_MAX: usize = 5;

pub async fn compact(world: Arc<World>) {
    let dice = &world.faults;
    loop {
        sleep(dice.millis(100..1500)).await;
        let newest = world.around.tap.newest();
        let revision = (newest - dice.below(40) as i64).max(1);
        let compaction = Command::Compact(CompactionRequest {
            revision,
            physical: false,
        });
        world.around.trace.note(format_args!("compaction to {revision}"));
        let _ = world.command(world.some_member(), PATIENCE, compaction).await;
    }
}

pub async fn transfer(world: Arc<World>) {
    let dice = &world.faults;
    loop {
        sleep(dice.millis(100..2500)).await;
        let leader = world.leader();
        let (Some(leader), target) = (leader, world.some_member()) else {
            continue;
        };
        world
            .around
            .trace
            .note(format_args!("{leader} gives leadership to {target}"));
        if dice.chance(50) {
            let moved = world
                .ask(leader, PATIENCE, move |_, node| async move {
                    node.transfer(target, ELECTION).await
                })
                .await;
            if let Asked::Done(moved) = moved {
                world.around.trace.note(format_args!("leadership moved: {moved:?}"));
            }
        } else {
            // A restart as an operator does it.
            let _ = world
                .ask(
                    leader,
                    PATIENCE,
                    |_, node| async move { node.hand_over(ELECTION).await },
                )
                .await;
            world.crash(leader, Crash::Kill);
            sleep(dice.millis(1..100)).await;
            world.start(leader);
        }
    }
}

pub async fn reconfigure(world: Arc<World>) {
    let dice = &world.faults;
    let mut next = 10;
    loop {
        sleep(dice.millis(50..1200)).await;
        let Some(table) = world.table() else { continue };
        let learner = table.iter().find(|member| member.is_learner).map(|member| member.id);
        let voters = table.len() - usize::from(learner.is_some());
        let chosen = dice.below(100);
        let world = &world;
        match (chosen, learner) {
            (0..45, _) if table.len() < MEMBERS_MAX => {
                next += 1;
                let known = table.iter().map(|member| member.id).chain([next]).collect();
                add(world, next, chosen < 20 && learner.is_none(), known).await;
            }
            (_, Some(learner)) if chosen < 70 => promote(world, learner).await,
            _ if voters > 1 => {
                let all: Vec<u64> = table.iter().map(|member| member.id).collect();
                if let Some(member) = dice.pick(&all) {
                    remove(world, *member).await;
                }
            }
            _ => {}
        }
    }
}

async fn add(world: &Arc<World>, id: u64, is_learner: bool, known: BTreeSet<u64>) {
    let dice = &world.faults;
    let add = Command::MemberAdd(MemberAdd {
        id,
        peer_urls: peer_urls(id),
        is_learner,
        max_learners: 1,
        strict: dice.chance(50),
    });
    world
        .around
        .trace
        .note(format_args!("adding {id}, learner {is_learner}"));
    // Before it is known to be one, so that nobody takes it for one that is missing.
    let machine = Machine::new(id, world.around.dice.seed() | 1, BTreeSet::new(), known);
    match world.command(world.some_member(), PATIENCE, add).await {
        Asked::Done(Ok((_, Ok(_)))) => {}
        Asked::Done(Ok((_, Err(error)))) => return world.around.trace.note(format_args!("not added: {error:?}")),
        // It may be a member one day. It is none that ever starts.
        _ => return,
    }
    world.machines.lock().insert(id, machine);
    if dice.chance(90) {
        sleep(dice.millis(1..800)).await;
        world.start(id);
    }
}

async fn promote(world: &Arc<World>, id: u64) {
    let in_sync = world
        .ask(world.some_member(), PATIENCE, move |_, node| async move {
            node.is_in_sync(id).await
        })
        .await;
    if !matches!(in_sync, Asked::Done(Ok(true))) {
        return;
    }
    let promote = Command::MemberPromote(MemberPromote { id, strict: false });
    world.around.trace.note(format_args!("promoting {id}"));
    let _ = world.command(world.some_member(), PATIENCE, promote).await;
}

pub async fn remove(world: &Arc<World>, id: u64) {
    let remove = Command::MemberRemove(MemberRemove {
        id,
        strict: world.faults.chance(50),
    });
    world.around.trace.note(format_args!("removing {id}"));
    let is_first = world.removing.lock().insert(id);
    let removed = world.command(world.some_member(), PATIENCE, remove).await;
    if let Asked::Done(Ok((_, answer))) = removed {
        world
            .around
            .trace
            .note(format_args!("removed: {:?}", answer.as_ref().map(|_| ())));
        match answer {
            // One that was asked for before, and whose fate is not known, may have done it or may do it yet.
            Err(_) if is_first => drop(world.removing.lock().remove(&id)),
            _ => {}
        }
    }
}

/// A member comes back without anything that it had. It is refused, and replaced.
pub async fn lose_disk(world: Arc<World>) {
    let dice = &world.faults;
    sleep(dice.millis(200..3000)).await;
    let Some(table) = world.table() else { return };
    // Its loss must leave a quorum; and until the cluster knows whose data it had, nobody can tell.
    let ids: Vec<u64> = table.iter().map(|member| member.id).collect();
    let Some(id) = dice.pick(&ids).copied().filter(|_| ids.len() > 2) else {
        return;
    };
    if !world.all_know(id) {
        return;
    }
    world.around.trace.note(format_args!("{id} loses its disk"));
    if let Some(machine) = world.machines.lock().get_mut(&id) {
        machine.wipe(&world.around);
    }
    sleep(dice.millis(1..1000)).await;
    world.start(id);
    sleep(dice.millis(1000..4000)).await;
    remove(&world, id).await;
}
