//! Members that don't belong: with a disk that was lost, of another cluster, of another program. They are refused with
//! a reason, and never counted.

use std::time::Duration;

use quorate_kit::wait::until;
use quorate_kit::{Binary, Cluster, Config, Node};

use super::{SOON, assert_has, assert_quiet, ctl, fatal, hex, logged, of, put};
use crate::support::Place;
use crate::turn;

const BOOTSTRAPPED: &str = "has already been bootstrapped";

fn ends_with_code_1(node: &mut Node) -> String {
    let status = node.wait_end(SOON);
    assert_eq!(status.code(), Some(1), "{}", node.tail());
    fatal(node)
}

/// As long as the others can be asked, a member without its disk does not even start.
#[test]
fn a_wiped_member_is_refused_under_its_old_id_and_welcome_under_a_new_one() {
    let _turn = turn::shared();
    let mut cluster = of(3).flag("--strict-reconfig-check=false").start();
    put(&cluster, 0, "a", "1");
    cluster[2].kill();
    cluster[2].wipe();
    let id = hex(cluster.member_id(2));
    for state in ["new", "existing"] {
        cluster[2].config.initial_cluster_state = state.to_owned();
        cluster[2].relaunch();
        let said = ends_with_code_1(&mut cluster[2]);
        assert!(said.starts_with(&format!("member {id} {BOOTSTRAPPED}")), "{said}");
        let advice = format!("remove it with 'etcdctl member remove {id}'");
        let advised = logged(&cluster[2], &["warn"]);
        assert!(advised.iter().any(|(text, _)| text.contains(&advice)), "{advised:?}");
        assert!(!cluster[2].config.data_dir().exists(), "a refusal leaves no trace");
    }
    put(&cluster, 0, "a", "2");
    cluster.remove(2);
    let next = cluster.grow();
    assert_has(&cluster, next, "a", "2");
    cluster.wait_equal();
}

/// Design, members: where nobody can be asked it founds again, with votes forgotten that others count on. It is found
/// out by its incarnation as soon as it speaks to anybody.
#[test]
fn a_wiped_member_that_asks_nobody_is_never_counted() {
    let _turn = turn::shared();
    let mut cluster = of(3).with_links().start();
    put(&cluster, 0, "a", "1");
    cluster.wait_equal();
    let leader = cluster.wait_leader();
    let (wiped, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster[wiped].kill();
    cluster[wiped].wipe();
    cluster.links().refuse(wiped, leader);
    cluster.links().refuse(wiped, other);
    cluster[wiped].relaunch();
    until("the wiped member to found again", SOON, || {
        cluster[wiped]
            .log()
            .contains("has its place in the cluster")
            .then_some(())
    });
    // The leader has nobody but it; nothing may be acknowledged.
    cluster[other].pause();
    cluster.links().heal_all();
    let said = ctl(&cluster, leader).call(&["--command-timeout=2s", "put", "a", "never"]);
    assert!(!said.ok, "{said:?}");
    let said = ends_with_code_1(&mut cluster[wiped]);
    assert!(said.contains("remove the member and add it again"), "{said}");
    cluster[other].resume();
    cluster.wait_for("the others to go on", |cluster| {
        let running = [leader, other];
        let said = cluster.status(running[0]).map(|status| status.leader);
        said.filter(|leader| *leader != 0).map(drop).ok_or_else(String::new)
    });
    assert_quiet(&cluster[leader]);
}

/// Two clusters whose flags mix up: each says of the other what it is, and both serve.
#[test]
fn a_peer_of_another_cluster_is_refused() {
    let _turn = turn::shared();
    let mut cluster = of(3).flag_of(2, "--initial-cluster-token=another").launch();
    cluster[0].wait_ready();
    cluster[1].wait_ready();
    put(&cluster, 0, "a", "1");
    let text = until("the third to be told", SOON, || {
        let said = logged(&cluster[2], &["warn", "fatal"]);
        said.into_iter()
            .map(|(_, line)| line)
            .find(|line| line.contains("cluster"))
    });
    assert!(
        text.contains("is of cluster") || text.contains("is a member of cluster"),
        "{text}"
    );
    put(&cluster, 1, "a", "2");
    assert_quiet(&cluster[0]);
}

/// A real etcd in the place of a member: neither side takes the other for a peer, and both say so.
#[test]
fn etcd_is_no_peer() {
    let _turn = turn::shared();
    let mut cluster = of(3).prepare();
    cluster[0].relaunch();
    cluster[1].relaunch();
    let place = Place::new();
    let mut etcd = Node::launch(Config {
        binary: Binary::oracle(),
        dir: place.path().to_owned(),
        ..cluster[2].config.clone()
    });
    cluster[0].wait_ready();
    cluster[1].wait_ready();
    put(&cluster, 0, "a", "1");
    let url = cluster[2].config.peer_url();
    assert_quiet(&cluster[0]);
    let told = format!("no welcome from {url}: ");
    let tells = |node: &Node| {
        let warned = logged(node, &["warn"]);
        let says = |(_, line): &(String, String)| line.contains(&told) && line.contains("the member no etcd?");
        warned.iter().any(says).then_some(())
    };
    until("the operator to be told what is wrong", SOON, || tells(&cluster[0]));
    etcd.kill();
    // And it can't be joined.
    let joins = Place::new();
    let mut config = cluster[2].config.clone();
    config.dir = joins.path().to_owned();
    config.initial_cluster_state = "existing".to_owned();
    let mut etcd = Node::launch(Config {
        binary: Binary::oracle(),
        ..config
    });
    std::thread::sleep(Duration::from_secs(1));
    etcd.poll();
    put(&cluster, 0, "a", &url);
    assert_quiet(&cluster[0]);
    assert_quiet(&cluster[1]);
}

/// A member that was added with one URL and joins with another, under another name or with a list of its own.
#[test]
fn joining_with_flags_that_do_not_fit_is_refused_with_both_sides() {
    let _turn = turn::shared();
    let mut cluster = of(1).start();
    let added = cluster.try_add(false).unwrap();
    let right = cluster[added].config.clone();
    let refused = |cluster: &mut Cluster, config: Config| {
        let mut node = Node::launch(config);
        let said = ends_with_code_1(&mut node);
        assert!(!node.config.data_dir().exists(), "a refusal leaves no trace");
        put(cluster, 0, "a", "1");
        said
    };
    let place = Place::new();
    let own = Config {
        dir: place.path().to_owned(),
        ..right.clone()
    };
    // Another peer URL than was added.
    let url = right.peer_url();
    let other = Config {
        initial_cluster: right.initial_cluster.replace(&url, "http://127.0.0.1:9"),
        extra: [
            right.extra.clone(),
            vec!["--initial-advertise-peer-urls=http://127.0.0.1:9".to_owned()],
        ]
        .concat(),
        ..own.clone()
    };
    let said = refused(&mut cluster, other);
    assert!(said.contains("PeerURLs: no match found for existing member"), "{said}");
    assert!(said.contains(&url), "{said}");
    // A name that its own list does not have.
    let other = Config {
        name: "nobody".to_owned(),
        ..own.clone()
    };
    let said = refused(&mut cluster, other);
    assert!(said.contains("nobody"), "{said}");
    // Founding, where it was added.
    let other = Config {
        initial_cluster_state: "new".to_owned(),
        ..own.clone()
    };
    let said = refused(&mut cluster, other);
    assert!(said.contains("is a member of cluster"), "{said}");
    // What it was told would have worked.
    cluster[added].restart();
    put(&cluster, added, "a", "2");
}
