//! Members come and go while the cluster serves.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use quorate_kit::wait::until;
use quorate_kit::{Cluster, Etcdctl, ports};

use super::{SOON, assert_has, assert_quiet, ctl, hex, listed, of, put};
use crate::turn;

const UNHEALTHY: &str = "etcdserver: unhealthy cluster";
const FEW: &str = "etcdserver: re-configuration failed due to not enough started members";

fn fails_with(ctl: &Etcdctl, arguments: &[&str], text: &str) {
    let said = ctl.fails(arguments);
    assert!(said.contains(text), "{arguments:?}: {said}");
}

/// Nothing is acknowledged within a second.
fn assert_no_quorum(cluster: &Cluster, member: usize) {
    let said = ctl(cluster, member).call(&["--command-timeout=1s", "put", "a", "never"]);
    assert!(!said.ok, "{said:?}");
}

/// Design, members: an added voter is none before its process has made itself known and has the log.
#[test]
fn one_member_grows_by_one_that_starts_later() {
    let _turn = turn::shared();
    let mut cluster = of(1).start();
    put(&cluster, 0, "a", "1");
    let begun = Instant::now();
    let second = cluster.try_add(false).unwrap();
    put(&cluster, 0, "a", "2");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    fails_with(
        &ctl(&cluster, 0),
        &["member", "add", "third", "--peer-urls=http://127.0.0.1:1"],
        FEW,
    );
    // A restart in between changes nothing.
    cluster[0].kill();
    cluster[0].restart();
    put(&cluster, 0, "a", "3");

    cluster[second].restart();
    assert_has(&cluster, second, "a", "3");
    put(&cluster, second, "a", "4");
    // Now it counts.
    until("the second to vote", SOON, || {
        cluster[0].log().contains("AddVoterIds").then_some(())
    });
    cluster.wait_equal();
    cluster[second].pause();
    assert_no_quorum(&cluster, 0);
    cluster[second].resume();
    cluster.wait_leader();
    put(&cluster, 0, "a", "5");
    assert_quiet(&cluster[0]);
    assert_quiet(&cluster[second]);
}

#[test]
fn a_voter_that_never_starts_is_not_counted() {
    let _turn = turn::shared();
    let mut cluster = of(3).start();
    let leader = cluster.wait_leader();
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    fails_with(
        &ctl(&cluster, 0),
        &["member", "add", "fourth", "--peer-urls=http://127.0.0.1:1"],
        UNHEALTHY,
    );
    let begun = Instant::now();
    let fourth = cluster.add();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    for dead in [others[0], leader] {
        cluster[dead].kill();
        cluster.wait_leader();
        put(&cluster, others[1], "a", &dead.to_string());
        cluster[dead].restart();
        cluster.wait_leader();
    }
    let url = cluster[fourth].config.peer_url();
    let row = listed(&ctl(&cluster, 0)).into_iter().find(|row| row[3] == url).unwrap();
    assert_eq!(row[1..3], ["unstarted", ""]);
    // It carries nothing, so it may go at any time.
    ctl(&cluster, 0).ok(&["member", "remove", &row[0]]);
    fails_with(
        &ctl(&cluster, 0),
        &["member", "remove", &row[0]],
        "etcdserver: member not found",
    );
    // Two that run and one that does not: nobody is let go who carries the others.
    cluster[leader].kill();
    cluster.wait_leader();
    let id = hex(cluster.member_id(others[0]));
    fails_with(&ctl(&cluster, others[1]), &["member", "remove", &id], UNHEALTHY);
    let id = hex(cluster.member_id(leader));
    ctl(&cluster, others[1]).ok(&["member", "remove", &id]);
    put(&cluster, others[0], "a", "two");
}

#[test]
fn a_learner_serves_what_etcds_learners_serve_and_is_promoted_when_it_has_the_log() {
    let _turn = turn::shared();
    let mut cluster = of(1).start();
    put(&cluster, 0, "a", "1");
    let learner = cluster.try_add(true).unwrap();
    let id = hex(cluster.member_id(learner));
    let promote = ["member", "promote", &id];
    let early = "etcdserver: can only promote a learner member which is in sync with leader";
    fails_with(&ctl(&cluster, 0), &promote, early);
    let another = ["member", "add", "l", "--learner", "--peer-urls=http://127.0.0.1:1"];
    fails_with(
        &ctl(&cluster, 0),
        &another,
        "etcdserver: too many learner members in cluster",
    );
    cluster[learner].relaunch();
    let own = ctl(&cluster, learner);
    until("the learner to serve", SOON, || {
        let said = own.call(&["get", "a", "--consistency=s", "--print-value-only"]);
        (said.out == "1\n").then_some(())
    });
    let refused = "etcdserver: rpc not supported for learner";
    fails_with(&own, &["get", "a"], refused);
    fails_with(&own, &["put", "a", "2"], refused);
    fails_with(&own, &["lease", "grant", "100"], refused);
    assert!(own.ok(&["endpoint", "status"]).contains(", false, true, "));
    // It carries nothing: writes go on without it.
    cluster[learner].pause();
    put(&cluster, 0, "a", "2");
    cluster[learner].resume();
    until("the learner to have the log", SOON, || {
        let said = ctl(&cluster, 0).call(&promote);
        assert!(said.ok || said.err.contains(early), "{}", said.err);
        said.ok.then_some(())
    });
    fails_with(
        &ctl(&cluster, 0),
        &promote,
        "etcdserver: can only promote a learner member",
    );
    until("the new voter to serve writes", SOON, || {
        own.call(&["put", "a", "3"]).ok.then_some(())
    });
    assert_has(&cluster, 0, "a", "3");
    cluster.wait_equal();
    until("the second to vote", SOON, || {
        cluster[0].log().contains("AddVoterIds").then_some(())
    });
    cluster[0].pause();
    assert_no_quorum(&cluster, learner);
    cluster[0].resume();
}

/// Links follow the table at once, and a member that moves is found at its new place.
#[test]
fn peer_urls_are_updated_while_members_run() {
    let _turn = turn::shared();
    let mut cluster = of(3).start();
    let leader = cluster.wait_leader();
    let moved = (leader + 1) % 3;
    let id = hex(cluster.member_id(moved));
    let update = |cluster: &Cluster, url: &str| {
        let said = ctl(cluster, leader).ok(&["member", "update", &id, &format!("--peer-urls={url}")]);
        assert!(said.contains("updated in cluster"), "{said}");
    };
    let taken = cluster[leader].config.advertised_peer_url();
    let clash = ["member", "update", &id, &format!("--peer-urls={taken}")];
    fails_with(&ctl(&cluster, leader), &clash, "etcdserver: Peer URLs already exists");
    // Somebody else is there; both of the others, two lanes each, look. Until it moves they keep what they have.
    let other_place = TcpListener::bind("127.0.0.1:0").unwrap();
    update(&cluster, &format!("http://{}", other_place.local_addr().unwrap()));
    put(&cluster, leader, "a", "1");
    cluster.wait_equal();
    cluster[moved].kill();
    let calls: Vec<_> = (0..4).map(|_| other_place.accept().unwrap()).collect();
    drop((calls, other_place));
    cluster[moved].config.peer_port = ports::free();
    let direct = cluster[moved].config.peer_url();
    update(&cluster, &direct);
    put(&cluster, leader, "a", "2");
    cluster[moved].restart();
    assert_has(&cluster, moved, "a", "2");
    cluster.wait_equal();
    let row = listed(&ctl(&cluster, moved))
        .into_iter()
        .find(|row| row[0] == id)
        .unwrap();
    assert_eq!(row[3], direct);
    // And followed by those who did not lead when it moved.
    cluster[leader].kill();
    cluster.wait_leader();
    put(&cluster, moved, "a", "3");
}

/// Ends by itself, with code 0, and so does each later start of it.
fn assert_ends_removed(cluster: &mut Cluster, member: usize) {
    let status = cluster[member].wait_end(SOON);
    assert_eq!(status.code(), Some(0), "{}", cluster[member].tail());
    let said = super::logged(&cluster[member], &["warn"]);
    let text = "this member has been removed from the cluster; stopping";
    assert!(said.iter().any(|(msg, _)| msg == text), "{said:#?}");
    assert_quiet(&cluster[member]);
}

/// B32: once removed, always removed.
#[test]
fn a_removed_member_ends_and_stays_removed() {
    let _turn = turn::shared();
    let mut cluster = of(5).flag("--strict-reconfig-check=false").start();
    let leader = cluster.wait_leader();
    let (follower, dead) = ((leader + 1) % 5, (leader + 2) % 5);
    let ids = [leader, follower, dead].map(|member| hex(cluster.member_id(member)));
    cluster[dead].kill();
    cluster.remove(dead);
    cluster.remove(follower);
    assert_ends_removed(&mut cluster, follower);
    // The leader hands over first.
    let begun = Instant::now();
    cluster.remove(leader);
    let left = cluster.members();
    put(&cluster, left[0], "a", "1");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(
        cluster[leader]
            .log()
            .contains("this member is removed and leads; handing over")
    );
    assert_ends_removed(&mut cluster, leader);
    cluster.wait_leader();
    // Whether it knows or has to be told.
    for member in [leader, follower, dead] {
        cluster[member].relaunch();
        assert_ends_removed(&mut cluster, member);
    }
    for member in left.iter().copied() {
        cluster[member].kill();
    }
    cluster.start_all();
    cluster.wait_leader();
    assert_eq!(listed(&ctl(&cluster, left[0])).len(), 2);
    for id in &ids {
        fails_with(
            &ctl(&cluster, left[0]),
            &["member", "remove", id],
            "etcdserver: member not found",
        );
    }
    for member in [leader, dead] {
        cluster[member].relaunch();
        assert_ends_removed(&mut cluster, member);
    }
    // The place is free for another.
    let third = cluster.grow();
    put(&cluster, third, "a", "2");
    cluster.wait_equal();
}

/// One of two goes, whichever it is: what is left decides alone.
#[test]
fn two_become_one() {
    let _turn = turn::shared();
    for leader_goes in [false, true] {
        let mut cluster = of(2).flag("--strict-reconfig-check=false").start();
        let leader = cluster.wait_leader();
        let gone = if leader_goes { leader } else { 1 - leader };
        put(&cluster, gone, "a", "1");
        cluster.remove(gone);
        let status = cluster[gone].wait_end(SOON);
        assert_eq!(status.code(), Some(0));
        let left = 1 - gone;
        put(&cluster, left, "a", "2");
        cluster[left].kill();
        cluster[left].restart();
        assert_has(&cluster, left, "a", "2");
        assert_eq!(listed(&ctl(&cluster, left)).len(), 1);
    }
}

/// Two of a few at the same time, and back: raft's joint steps do not trip over each other.
#[test]
fn changes_in_quick_succession_are_all_made() {
    let _turn = turn::shared();
    let mut cluster = of(1).flag("--strict-reconfig-check=false").start();
    let added: Vec<usize> = (0..4).map(|_| cluster.try_add(false).unwrap()).collect();
    for member in &added {
        // What each `add` printed names those that were there by then; all have to be named.
        cluster[*member].config.initial_cluster = with_names(&cluster);
    }
    for member in &added {
        cluster[*member].relaunch();
    }
    for member in &added {
        cluster[*member].wait_ready();
    }
    put(&cluster, 3, "a", "1");
    cluster.wait_equal();
    for member in [1, 2, 3] {
        cluster.remove(member);
    }
    for member in [1, 2, 3] {
        assert_eq!(cluster[member].wait_end(SOON).code(), Some(0));
    }
    put(&cluster, 4, "a", "2");
    cluster.wait_leader();
    cluster.wait_equal();
}

fn with_names(cluster: &Cluster) -> String {
    let entry = |member: &usize| {
        let config = &cluster[*member].config;
        format!("{}={}", config.name, config.advertised_peer_url())
    };
    let all: Vec<String> = cluster.members().iter().map(entry).collect();
    all.join(",")
}
