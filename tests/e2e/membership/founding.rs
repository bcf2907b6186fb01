//! Members that found a cluster from the same flags find each other, whoever comes first.

use std::time::Duration;

use quorate_kit::wait::until;
use quorate_kit::{Binary, Config, Node};

use super::{SOON, assert_has, assert_quiet, listed, of, put};
use crate::support::Place;
use crate::turn;

/// interop.md A5: a normal life leaves no record at level error.
#[test]
fn three_to_seven_that_start_together_serve_and_stop_without_an_error() {
    let _turn = turn::shared();
    for size in [3, 5, 7] {
        let mut cluster = of(size).start();
        cluster.wait_leader();
        put(&cluster, size - 1, "a", "1");
        for member in 0..size {
            assert_has(&cluster, member, "a", "1");
        }
        cluster.wait_equal();
        let members = listed(&cluster.etcdctl());
        assert_eq!(members.len(), size);
        assert!(members.iter().all(|member| member[1] == "started"), "{members:?}");
        for member in 0..size {
            cluster[member].terminate();
        }
        for member in 0..size {
            assert_quiet(&cluster[member]);
        }
    }
}

/// The first serves nobody before a quorum is there; the last finds a cluster that runs without it.
#[test]
fn members_that_start_seconds_apart_found_one_cluster() {
    let _turn = turn::shared();
    let mut cluster = of(3).prepare();
    cluster[0].relaunch();
    until("the first to wait for the others", SOON, || {
        cluster[0].log().contains("has no leader yet").then_some(())
    });
    cluster[1].relaunch();
    cluster[0].wait_ready();
    cluster[1].wait_ready();
    put(&cluster, 0, "a", "1");
    std::thread::sleep(Duration::from_millis(1500)); // more than an election timeout, as when a host comes up late
    cluster[2].relaunch();
    cluster[2].wait_ready();
    assert_has(&cluster, 2, "a", "1");
    cluster.wait_leader();
    cluster.wait_equal();
    for member in 0..3 {
        assert_quiet(&cluster[member]);
    }
}

/// Whatever it had got to: nothing, an identity, a log, a vote, a row in the table.
#[test]
fn a_founder_killed_while_founding_founds_on() {
    let _turn = turn::shared();
    for delay_ms in [5, 60, 150, 400, 700] {
        let mut cluster = of(3).launch();
        std::thread::sleep(Duration::from_millis(delay_ms));
        cluster[0].kill();
        cluster[0].relaunch();
        for member in 0..3 {
            cluster[member].wait_ready();
        }
        put(&cluster, 0, "a", "1");
        cluster.wait_equal();
        let names: Vec<String> = listed(&cluster.etcdctl())
            .into_iter()
            .map(|mut row| row.remove(2))
            .collect();
        assert_eq!(names.len(), 3, "killed after {delay_ms} ms: {names:?}");
    }
}

/// Bootstrap flags are for directories without data.
#[test]
fn a_restart_ignores_what_founded_the_cluster() {
    let _turn = turn::shared();
    let mut cluster = of(3).start();
    put(&cluster, 0, "a", "1");
    let before = listed(&cluster.etcdctl());
    for member in 0..3 {
        cluster[member].terminate();
        let config = &mut cluster[member].config;
        config.initial_cluster = format!("{}=http://127.0.0.1:9", config.name);
        config.initial_cluster_state = ["new", "existing", "new"][member].to_owned();
        config.extra.push("--initial-cluster-token=another".to_owned());
        config
            .extra
            .push("--initial-advertise-peer-urls=http://127.0.0.1:9".to_owned());
    }
    cluster.start_all();
    assert_eq!(listed(&cluster.etcdctl()), before);
    assert_has(&cluster, 2, "a", "1");
    put(&cluster, 1, "a", "2");
    cluster.wait_equal();
}

#[test]
fn ids_are_those_that_etcd_gives_for_the_same_flags() {
    let _turn = turn::shared();
    let mut cluster = of(3).flag("--initial-cluster-token=of-its-own").start();
    let ours = listed(&cluster.etcdctl());
    let own = format!("{:x}", cluster.status(0).unwrap().header.unwrap().cluster_id);
    let configs: Vec<Config> = (0..3).map(|member| cluster[member].config.clone()).collect();
    cluster.kill_all();
    let place = Place::new();
    let start = |config: Config| {
        let dir = place.path().join(&config.name);
        std::fs::create_dir_all(&dir).unwrap();
        Node::launch(Config {
            binary: Binary::oracle(),
            dir,
            ..config
        })
    };
    let mut nodes: Vec<Node> = configs.into_iter().map(start).collect();
    nodes.iter_mut().for_each(Node::wait_ready);
    let header = &nodes[0].etcdctl().json(&["get", "a"])["header"];
    assert_eq!(format!("{:x}", header["cluster_id"].as_u64().unwrap()), own);
    let sorted = |mut members: Vec<Vec<String>>| {
        members.sort();
        members
    };
    assert_eq!(sorted(ours), sorted(listed(&nodes[0].etcdctl())));
}
