//! The feature gate `InitialCorruptCheck`, against damage that no checksum tells.

use quorate_kit::background::wait_for;
use quorate_store::testing::falsify;

use super::{members, millis, others};
use crate::turn;

const PASSED: &str = "initial corruption checking passed; no corruption";

/// What was started before compares itself with the others; one that differs serves nobody, and says why.
#[test]
fn a_member_that_holds_something_else_does_not_start() {
    let _turn = turn::shared();
    let mut cluster = members(3).flag("--feature-gates=InitialCorruptCheck=true").start();
    let leader = cluster.wait_leader();
    let client = cluster.client();
    wait_for(async move { client.put("a", "1").await.unwrap() });
    let revision = cluster.wait_equal();
    let member = others(&cluster, leader)[0];
    assert!(
        !cluster[member].log().contains(PASSED),
        "a new member has nothing to compare"
    );

    cluster[member].terminate();
    cluster[member].restart();
    assert!(cluster[member].log().contains(PASSED));
    // compared as of what it has, whatever the others have by now
    cluster[member].terminate();
    let client = cluster.client_of(&[leader]);
    wait_for(async move { client.put("b", "1").await.unwrap() });
    cluster[member].restart();
    assert!(cluster[member].log().contains(PASSED));
    cluster.wait_equal();

    cluster[member].terminate();
    let file = cluster[member].config.data_dir().join("member/store.redb");
    assert!(falsify(&file, revision).unwrap());
    cluster[member].relaunch();
    let status = cluster[member].wait_end(millis(10_000));
    assert_eq!(status.code(), Some(1));
    let log = cluster[member].log();
    assert!(log.contains("found different hash values from remote peer"), "{log}");
    let id = quorate_api::MemberId(cluster.member_id(member));
    assert!(
        log.contains(&format!("{id} found data inconsistency with peers")),
        "{log}"
    );
    assert!(!log.contains("ready to serve client requests"));
    // the others don't mind
    let client = cluster.client_of(&[leader]);
    wait_for(async move { client.put("c", "1").await.unwrap() });
}
