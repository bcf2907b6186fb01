//! Changes of membership, as far as one process goes: etcdctl's commands, the two flags, and that nothing waits for a
//! member that never comes.

use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::{
    MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
};
use quorate_kit::Etcdctl;
use tonic::Code;

use crate::support::{start, start_with};

/// `Member 1234 added to cluster 5678`.
fn id_of(said: &str) -> String {
    said.split_whitespace().nth(1).unwrap().to_owned()
}

fn add(ctl: &Etcdctl, name: &str, url: &str, more: &[&str]) -> String {
    let url = format!("--peer-urls={url}");
    ctl.ok(&[&["member", "add", name, &url], more].concat())
}

#[test]
fn members_come_and_go_by_etcdctl() {
    let mut own = start();
    let node = &mut own.node;
    let ctl = node.etcdctl();
    let listed = || -> Vec<String> { ctl.ok(&["member", "list"]).lines().map(str::to_owned).collect() };
    let before = listed();

    let said = add(&ctl, "m2", "http://127.0.0.1:1", &["--learner"]);
    let learner = id_of(&said);
    assert!(said.contains("added to cluster"), "{said}");
    assert!(said.contains("ETCD_NAME=\"m2\""), "{said}");
    let peer = node.config.peer_url();
    let cluster = format!(
        "ETCD_INITIAL_CLUSTER=\"{}\"",
        [format!("default={peer}"), "m2=http://127.0.0.1:1".into()].join(",")
    );
    let swapped = format!("ETCD_INITIAL_CLUSTER=\"m2=http://127.0.0.1:1,default={peer}\"");
    assert!(said.contains(&cluster) || said.contains(&swapped), "by id: {said}");
    let line = format!("{learner}, unstarted, , http://127.0.0.1:1, , true");
    assert!(listed().contains(&line), "{:?}", listed());

    let refused = ctl.fails(&["member", "promote", &learner]);
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    assert!(refused.contains(not_ready), "{refused}");
    let refused = ctl.fails(&["member", "add", "m3", "--learner", "--peer-urls=http://127.0.0.1:2"]);
    assert!(
        refused.contains("etcdserver: too many learner members in cluster"),
        "{refused}"
    );
    let said = ctl.ok(&["member", "update", &learner, "--peer-urls=http://127.0.0.1:3"]);
    assert!(said.contains("updated in cluster"), "{said}");

    // A voter that never starts stops nothing, before a restart and after it.
    let voter = id_of(&add(&ctl, "m4", "http://127.0.0.1:4", &[]));
    assert_eq!(ctl.ok(&["put", "a", "1"]), "OK\n");
    let refused = ctl.fails(&["member", "add", "m5", "--peer-urls=http://127.0.0.1:5"]);
    assert!(
        refused.contains("re-configuration failed due to not enough started members"),
        "{refused}"
    );
    let grown = listed();
    assert_eq!(grown.len(), 3);
    node.terminate();
    node.restart();
    assert_eq!(listed(), grown);
    assert_eq!(ctl.ok(&["put", "a", "2"]), "OK\n");
    for id in [&voter, &learner] {
        let said = ctl.ok(&["member", "remove", id]);
        assert!(said.contains("removed from cluster"), "{said}");
    }
    assert_eq!(listed(), before);
    node.kill();
    node.restart();
    assert_eq!(listed(), before);
    for id in [&voter, &learner] {
        let refused = ctl.fails(&["member", "remove", id]);
        assert!(refused.contains("etcdserver: member not found"), "{refused}");
    }
    own.node.assert_no_panic();
}

#[test]
fn the_flags_of_membership_take_effect() {
    let own = start_with(|config| config.flag("--strict-reconfig-check=false").flag("--max-learners=2"));
    let ctl = own.node.etcdctl();
    for at in 1..=2 {
        add(&ctl, "l", &format!("http://127.0.0.1:{at}"), &["--learner"]);
    }
    let refused = ctl.fails(&["member", "add", "l", "--learner", "--peer-urls=http://127.0.0.1:3"]);
    assert!(
        refused.contains("etcdserver: too many learner members in cluster"),
        "{refused}"
    );
    for at in 4..=6 {
        add(&ctl, "v", &format!("http://127.0.0.1:{at}"), &[]);
    }
    assert_eq!(ctl.ok(&["put", "a", "1"]), "OK\n");
    let itself = ctl.ok(&["member", "list"]);
    let itself = itself.lines().find(|line| line.contains(", started, ")).unwrap();
    let itself = itself.split(',').next().unwrap();
    let refused = ctl.fails(&["member", "remove", itself]);
    assert!(
        refused.contains("re-configuration failed due to not enough started members"),
        "{refused}"
    );
    assert_eq!(ctl.ok(&["put", "a", "2"]), "OK\n");
}

/// E8: whatever the id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_member_is_answered_at_once() {
    let own = start();
    let rpc = own.node.rpc();
    for id in [0, 1, 0x1234, u64::MAX / 2, u64::MAX] {
        let begun = Instant::now();
        let path = "/etcdserverpb.Cluster/MemberRemove";
        let removed = rpc.unary_bytes(path, message(&MemberRemoveRequest { id })).await;
        let path = "/etcdserverpb.Cluster/MemberPromote";
        let promoted = rpc.unary_bytes(path, message(&MemberPromoteRequest { id })).await;
        for status in [removed.unwrap_err(), promoted.unwrap_err()] {
            assert_eq!(
                (status.code(), status.message()),
                (Code::NotFound, "etcdserver: member not found"),
                "{id}"
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{id}: {:?}", begun.elapsed());
    }
}

/// etcd takes these, and its other members panic over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_needs_urls_that_can_be_dialled() {
    let own = start();
    let rpc = own.node.rpc();
    let list = "/etcdserverpb.Cluster/MemberList";
    let before: MemberListResponse = rpc.unary(list, &MemberListRequest::default()).await.unwrap();
    for urls in [&[][..], &["nonsense"], &["http://127.0.0.1:1", "127.0.0.1:2"]] {
        let request = MemberUpdateRequest {
            id: before.members[0].id,
            peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
        };
        let path = "/etcdserverpb.Cluster/MemberUpdate";
        let status = rpc.unary_bytes(path, message(&request)).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "etcdserver: given member URLs are invalid")
        );
    }
    let after: MemberListResponse = rpc.unary(list, &MemberListRequest::default()).await.unwrap();
    assert_eq!(after.members, before.members);
}

fn message(request: &impl prost::Message) -> bytes::Bytes {
    request.encode_to_vec().into()
}
