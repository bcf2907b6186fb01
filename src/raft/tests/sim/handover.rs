//! Leadership that moves where all is well: how long until everybody knows.

use crate::machine::{ELECTION, HEARTBEAT};
use crate::plan::{Faults, Plan};
use crate::world::{World, in_world};
use quorate_raft::Node;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

fn calm(plan: &mut Plan) {
    plan.members = 3;
    plan.faults = Faults::default();
    plan.duplicates = 0;
}

/// From the wish to when the next leader knows, and to when all do.
async fn hand_over(world: Arc<World>) -> (Duration, Duration) {
    (1..=3).for_each(|member| world.start(member));
    while world.leader().is_none_or(|leader| world.followed(leader) < 3) {
        sleep(HEARTBEAT).await;
    }
    // The last election is long over.
    sleep(5 * ELECTION).await;
    let leader = world.leader().unwrap();
    let target = 1 + leader % 3;
    let begun = Instant::now();
    let asked = world.clone();
    tokio::spawn(async move {
        let transfer = move |_, node: Arc<Node>| async move { node.transfer(target, ELECTION).await };
        let _ = asked.ask(leader, ELECTION, transfer).await;
    });
    while world.leader() != Some(target) {
        sleep(Duration::from_millis(1)).await;
    }
    let led = begun.elapsed();
    while world.followed(target) < 3 {
        sleep(Duration::from_millis(1)).await;
    }
    (led, begun.elapsed())
}

/// In the world's own time, where messages and syncs take some milliseconds: nobody waits for the next heartbeat.
#[test]
fn a_leader_that_has_just_won_is_known_at_once() {
    for seed in 0..20 {
        let (led, followed) = in_world(seed, false, calm, hand_over);
        assert!(
            followed < HEARTBEAT / 2,
            "seed {seed}: led after {led:?}, followed by all after {followed:?}"
        );
    }
}
