use super::scripted::{Scripted, config, member, nowhere};
use super::*;
use std::path::Path;

const A: &str = "http://127.0.0.1:1";
const B: &str = "http://127.0.0.2:1";
const NEW: [&str; 3] = [
    "--name=a",
    "--initial-advertise-peer-urls=http://127.0.0.1:1",
    "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.2:1",
];
const EXISTING: [&str; 3] = [
    "--name=b",
    "--initial-cluster-state=existing",
    "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.2:1",
];

fn prepare_with(root: &Path, args: &[&str], peers: &Scripted) -> Result<Prepared, Error> {
    let data_dir = format!("--data-dir={}", root.display());
    let args: Vec<_> = [data_dir.as_str()].into_iter().chain(args.iter().copied()).collect();
    prepare(&config(&args), &nowhere, peers, Duration::ZERO)
}

/// A cluster of one, `a`, to which `b` was added.
fn running() -> Scripted {
    Scripted::default()
        .members(A, 0xc1, &[member(1, &[A], true), member(2, &[B], false)])
        .version(A, "3.7.0")
}

#[test]
fn nothing_is_written_before_a_refusal() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("data");
    let refused = |args: &[&str], peers: &Scripted| {
        let refused = prepare_with(&root, args, peers).unwrap_err();
        assert!(!matches!(refused, Error::DataDir(_)), "{refused}");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "{args:?}");
    };
    for bad in [
        &["--name=zz", "--initial-cluster=other=http://localhost:2380"][..],
        &["--initial-advertise-peer-urls=http://127.0.0.1:1"],
        &["--initial-cluster-state=existing"],
        &EXISTING,
    ] {
        refused(bad, &Scripted::default());
    }
    // the others are asked before anything is there to be found
    refused(&NEW, &Scripted::default().members(B, 0xc1, &[member(7, &[B], true)]));
    refused(
        &EXISTING,
        &Scripted::default().members(A, 0xc1, &[member(1, &[A], true)]),
    );
    let members = [member(1, &[A], true), member(2, &[B], false)];
    let running = || Scripted::default().members(A, 0xc1, &members);
    refused(&EXISTING, &running().version(A, "3.8.0"));
    refused(&EXISTING, &running().of_etcd().version(A, "3.7.0"));
}

#[test]
fn founders_remember_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let first = prepare_with(temp.path(), &NEW, &Scripted::default()).unwrap();
    assert_eq!((first.start, first.identity.boot), (Start::Found, 1));
    let Origin::Founded(founders) = &first.origin else {
        panic!("{:?}", first.origin)
    };
    let names: std::collections::BTreeSet<_> = founders.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["a", "b"].into());
    assert!(founders.is_sorted_by_key(|member| member.id));
    assert!(founders.iter().any(|member| member.id == first.identity.member.0));
    let (identity, origin) = (first.identity, first.origin.clone());
    drop(first);

    // Killed before its first entry: the flags have changed, others serve by now, and it founds what it founded.
    let peers = running();
    for boot in 2..5 {
        let again = prepare_with(temp.path(), &EXISTING, &peers).unwrap();
        assert_eq!(again.start, Start::Restart);
        assert_eq!(again.identity, Identity { boot, ..identity });
        assert_eq!(again.origin, origin);
    }
    assert!(peers.asked.borrow().is_empty(), "a member with data asks nobody");
}

#[test]
fn a_joining_member_remembers_whom_it_was_told_of() {
    let temp = tempfile::tempdir().unwrap();
    let first = prepare_with(temp.path(), &EXISTING, &running()).unwrap();
    assert_eq!((first.start, first.identity.boot), (Start::Join, 1));
    assert_eq!(
        (first.identity.member, first.identity.cluster),
        (MemberId(2), ClusterId(0xc1))
    );
    let origin = first.origin.clone();
    let Origin::Joined(told) = &origin else {
        panic!("{origin:?}")
    };
    assert_eq!(told[0].peer_ur_ls, [A]);
    drop(first);
    let again = prepare_with(temp.path(), &NEW, &Scripted::default()).unwrap();
    assert_eq!((again.start, again.origin), (Start::Restart, origin));
}

#[test]
fn a_member_of_the_first_format_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("member")).unwrap();
    let path = temp.path().join("member/identity.json");
    let old = r#"{"format": 1, "cluster_id": "c1", "member_id": "8e9", "incarnation": "7"}"#;
    std::fs::write(&path, old).unwrap();
    for boot in 1..3 {
        let args: &[&str] = if boot == 1 { &NEW } else { &[] };
        let prepared = prepare_with(temp.path(), args, &Scripted::default()).unwrap();
        let wanted = Identity {
            cluster: ClusterId(0xc1),
            member: MemberId(0x8e9),
            incarnation: 7,
            boot,
        };
        assert_eq!((prepared.start, prepared.identity), (Start::Restart, wanted));
        let Origin::Founded(founders) = prepared.origin else {
            panic!()
        };
        assert_eq!((founders.len(), founders[0].id), (1, 0x8e9));
        assert_eq!(
            founders[0].peer_ur_ls,
            [A],
            "as it advertised when it was first started by this version"
        );
    }
}

/// The count of starts is as much a part of a member as its identity.
#[test]
fn a_lost_count_of_starts_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    drop(prepare_with(temp.path(), &NEW, &Scripted::default()).unwrap());
    std::fs::remove_file(temp.path().join("member/boot")).unwrap();
    let refused = prepare_with(temp.path(), &NEW, &Scripted::default()).unwrap_err();
    assert!(refused.to_string().contains("member/boot"), "{refused}");
}

/// A crash between the count and the identity leaves a new member, which decides anew.
#[test]
fn a_crash_before_the_identity_leaves_nothing_decided() {
    let temp = tempfile::tempdir().unwrap();
    drop(prepare_with(temp.path(), &NEW, &Scripted::default()).unwrap());
    std::fs::remove_file(temp.path().join("member/identity.json")).unwrap();
    let again = prepare_with(temp.path(), &EXISTING, &running()).unwrap();
    assert_eq!((again.start, again.identity.boot), (Start::Join, 2));
}
