//! What goes wrong: one thing after the other, each for a while of its own, so that they overlap.

use crate::leases::DRIFT;
use crate::machine::{Crash, Pace, QUICK};
use crate::world::World;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Pause,
    Kill,
    Power,
    Blackout,
    Cut,
    OneWay,
    Ring,
    Reset,
    SlowLink,
    SlowDisk,
    Hang,
    /// A sync of the log fails.
    Fail,
    /// A lease clock gets faster or slower.
    Drift,
}

pub async fn run(world: Arc<World>) {
    if world.plan.quiet {
        return cut_off(world).await;
    }
    let which = &world.plan.faults;
    let all = [
        (which.pauses, Fault::Pause),
        (which.kills, Fault::Kill),
        (which.power, Fault::Power),
        (which.blackouts, Fault::Blackout),
        (which.cuts, Fault::Cut),
        (which.one_way, Fault::OneWay),
        (which.cuts, Fault::Ring),
        (which.resets, Fault::Reset),
        (which.slow_links, Fault::SlowLink),
        (which.slow_disks, Fault::SlowDisk),
        (which.hangs, Fault::Hang),
        (which.fails, Fault::Fail),
        (which.drift, Fault::Drift),
    ];
    let some: Vec<Fault> = all.into_iter().filter_map(|(is, fault)| is.then_some(fault)).collect();
    loop {
        sleep(world.faults.millis(20..world.plan.rest_ms + 21)).await;
        if let Some(fault) = world.faults.pick(&some) {
            tokio::spawn(happen(world.clone(), *fault));
        }
    }
}

/// A member that does not lead hears of nobody for a while. When it does again, nobody should have to hear of it.
async fn cut_off(world: Arc<World>) {
    loop {
        // Whoever dialled into the cut finds that out first, and dials again. Without two of three nobody leads for good.
        sleep(world.faults.millis(900..1600)).await;
        let leader = world.leader();
        let ids: Vec<u64> = world.machines.lock().keys().copied().collect();
        let others: Vec<u64> = ids.iter().copied().filter(|id| Some(*id) != leader).collect();
        let (Some(_), Some(one)) = (leader, world.faults.pick(&others).copied()) else {
            continue;
        };
        let far: Vec<u64> = ids.into_iter().filter(|id| *id != one).collect();
        world.around.trace.note(format_args!("{one} is cut off"));
        cut(&world, &[one], &far, world.faults.millis(500..2500), true).await;
    }
}

async fn happen(world: Arc<World>, fault: Fault) {
    let dice = &world.faults;
    let ids: Vec<u64> = world.machines.lock().keys().copied().collect();
    let one = dice.pick(&ids).copied().unwrap_or(1);
    let others: Vec<u64> = ids.iter().copied().filter(|id| *id != one).collect();
    let long = match dice.below(4) {
        0 => dice.millis(1..100),
        1..3 => dice.millis(100..1200),
        _ => dice.millis(1000..3000),
    };
    let note = |what: &dyn std::fmt::Debug| {
        world
            .around
            .trace
            .note(format_args!("fault: {fault:?} {what:?} for {long:?}"));
    };
    match fault {
        Fault::Pause => {
            // Often the leader: others are hardly missed.
            let one = world.leader().filter(|_| dice.chance(50)).unwrap_or(one);
            let Some((life, _)) = world.serving(one) else { return };
            note(&one);
            life.process.stop();
            sleep(long).await;
            world.around.trace.note(format_args!("{one} goes on"));
            life.process.go_on();
        }
        Fault::Kill => down(&world, &[one], Crash::Kill, long).await,
        Fault::Power => down(&world, &[one], Crash::Power, long).await,
        Fault::Blackout => {
            note(&"all");
            down(&world, &ids, Crash::Power, long.min(Duration::from_millis(500))).await;
        }
        Fault::Cut => {
            let (near, far): (Vec<u64>, Vec<u64>) = ids.iter().partition(|_| dice.chance(40));
            note(&(&near, &far));
            cut(&world, &near, &far, long, true).await;
        }
        Fault::OneWay => {
            let far: Vec<u64> = others.iter().copied().filter(|_| dice.chance(60)).collect();
            note(&(one, &far));
            match dice.chance(50) {
                true => cut(&world, &[one], &far, long, false).await,
                false => cut(&world, &far, &[one], long, false).await,
            }
        }
        // Everybody hears two neighbours only.
        Fault::Ring => {
            note(&ids);
            let far = |a: usize, b: usize| (a + 1) % ids.len() != b && (b + 1) % ids.len() != a && a != b;
            let pairs: Vec<(u64, u64)> = (0..ids.len())
                .flat_map(|a| (0..ids.len()).map(move |b| (a, b)))
                .filter(|(a, b)| far(*a, *b))
                .map(|(a, b)| (ids[a], ids[b]))
                .collect();
            pairs.iter().for_each(|(a, b)| world.around.net.cut(*a, *b, true));
            sleep(long).await;
            pairs.iter().for_each(|(a, b)| world.around.net.cut(*a, *b, false));
        }
        Fault::Reset => {
            for other in others.into_iter().filter(|_| dice.chance(50)) {
                note(&(one, other));
                world.around.net.reset(one, other);
                if dice.chance(50) {
                    world.around.net.reset(other, one);
                }
            }
        }
        Fault::SlowLink => {
            note(&one);
            let slow = 20 + dice.below(300);
            others.iter().for_each(|other| world.around.net.slow(one, *other, slow));
            sleep(long).await;
            others.iter().for_each(|other| world.around.net.slow(one, *other, 0));
        }
        Fault::Fail => {
            note(&one);
            if let Some(machine) = world.machines.lock().get_mut(&one)
                && machine.life.is_some()
            {
                machine.failing = true;
                machine.log.fail_sync(1 + dice.below(3));
            }
        }
        Fault::Drift => {
            let rate = 1000 - DRIFT + dice.below(2 * u64::from(DRIFT) + 1) as u32;
            note(&(one, rate));
            if let Some(machine) = world.machines.lock().get(&one) {
                machine.clock.set(rate);
            }
        }
        Fault::SlowDisk | Fault::Hang => {
            note(&one);
            let pace = Pace {
                sync_ms: 10 + dice.below(150),
                commit_ms: 100 + dice.below(1000),
                hangs: fault == Fault::Hang,
            };
            set_pace(&world, one, pace);
            sleep(long).await;
            set_pace(&world, one, QUICK);
        }
    }
}

fn set_pace(world: &World, member: u64, pace: Pace) {
    if let Some(machine) = world.machines.lock().get(&member) {
        machine.pace.send_replace(pace);
    }
}

async fn down(world: &Arc<World>, members: &[u64], how: Crash, long: Duration) {
    for member in members {
        world.crash(*member, how);
        sleep(world.faults.millis(0..3)).await;
    }
    for member in members {
        let (world, member, late) = (world.clone(), *member, world.faults.millis(0..100));
        tokio::spawn(async move {
            sleep(long + late).await;
            world.start(member);
        });
    }
}

async fn cut(world: &World, near: &[u64], far: &[u64], long: Duration, both: bool) {
    let set = |cut| {
        for a in near {
            for b in far {
                world.around.net.cut(*a, *b, cut);
                if both {
                    world.around.net.cut(*b, *a, cut);
                }
            }
        }
    };
    set(true);
    sleep(long).await;
    set(false);
}
