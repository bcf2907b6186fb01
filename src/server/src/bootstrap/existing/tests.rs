use super::super::scripted::{Scripted, config, member, nowhere};
use super::*;
use quorate_api::ClusterId;
use std::io;
use std::net::IpAddr;

const A: &str = "http://10.0.0.1:2380";
const B: &str = "http://10.0.0.2:2380";
const C: &str = "http://10.0.0.3:2380";
const CLUSTER: u64 = 0xc1;

/// `c` joins `a` and `b`.
fn joining() -> Config {
    joining_with(&format!("a={A},b={B},c={C}"))
}

fn joining_with(list: &str) -> Config {
    let args = [
        "--name=c",
        "--initial-cluster-state=existing",
        &format!("--initial-cluster={list}"),
    ];
    config(&args)
}

/// After `member add` of `c`.
fn three() -> Vec<String> {
    vec![member(1, &[A], true), member(2, &[B], true), member(3, &[C], false)]
}

fn join_with(peers: &Scripted) -> Result<Place, Error> {
    join(&joining(), &nowhere, peers, Duration::ZERO)
}

fn refusal(peers: &Scripted) -> String {
    join_with(peers).unwrap_err().to_string()
}

#[test]
fn ids_come_from_the_cluster() {
    let peers = Scripted::default()
        .members(B, CLUSTER, &three())
        .version(A, "3.7.0")
        .version(B, "3.7.0");
    let place = join_with(&peers).unwrap();
    assert_eq!((place.member, place.told.cluster), (MemberId(3), ClusterId(CLUSTER)));
    let ids: Vec<_> = place.told.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(place.told.members[0].peer_ur_ls, [A]);
    assert_eq!(place.told.members[0].client_ur_ls, ["http://10.0.9.9:2379"]);
    let asked = [
        (A, peers::MEMBERS),
        (B, peers::MEMBERS),
        (A, peers::VERSION),
        (B, peers::VERSION),
    ];
    let asked: Vec<_> = asked.map(|(url, path)| (url.to_owned(), path)).into();
    assert_eq!(*peers.asked.borrow(), asked);
}

#[test]
fn nobody_to_ask_and_nobody_who_answers() {
    let text = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs";
    assert_eq!(refusal(&Scripted::default()), text);
    let alone = joining_with(&format!("c={C}"));
    let refused = join(&alone, &nowhere, &Scripted::default(), Duration::ZERO).unwrap_err();
    assert_eq!(refused.to_string(), text);
}

#[test]
fn mismatches_are_told_as_etcd_tells_them() {
    let two = vec![member(1, &[A], true), member(2, &[B], false)];
    assert_eq!(
        refusal(&Scripted::default().members(A, CLUSTER, &two)),
        format!(
            "error validating peerURLs {{ClusterID:c1 Members:[\
             &{{ID:1 RaftAttributes:{{PeerURLs:[{A}] IsLearner:false}} Attributes:{{Name:m ClientURLs:[http://10.0.9.9:2379]}}}} \
             &{{ID:2 RaftAttributes:{{PeerURLs:[{B}] IsLearner:false}} Attributes:{{Name: ClientURLs:[]}}}}] \
             RemovedMemberIDs:[]}}: member count is unequal (the cluster has 2, --initial-cluster names 3)"
        )
    );
    let mut other = three();
    other[2] = member(0x1f, &["http://10.0.0.9:2380", "http://10.0.1.9:2380"], false);
    let refused = refusal(&Scripted::default().members(A, CLUSTER, &other));
    let last = initial_cluster::join(&joining()).unwrap();
    let last = &last.members.last().unwrap().peer_urls[0];
    let wanted = format!(
        "}}: PeerURLs: no match found for existing member (1f, [http://10.0.0.9:2380 http://10.0.1.9:2380]), last \
         resolver error (len([\"http://10.0.0.9:2380\" \"http://10.0.1.9:2380\"]) != len([\"{last}\"]))"
    );
    assert!(refused.ends_with(&wanted), "{refused}");
    other[2] = member(0x1f, &["http://10.0.0.9:2380"], false);
    let refused = refusal(&Scripted::default().members(A, CLUSTER, &other));
    let wanted = format!("last resolver error (resolved urls: \"http://10.0.0.9:2380\" != \"{last}\")");
    assert!(refused.ends_with(&wanted), "{refused}");
    other[2] = member(0x1f, &["nonsense"], false);
    let refused = refusal(&Scripted::default().members(A, CLUSTER, &other));
    assert!(
        refused.ends_with(r#"last resolver error (failed to parse string to URL: "nonsense")"#),
        "{refused}"
    );
}

/// `member add` returned, and one of the others has not applied it yet.
#[test]
fn a_list_of_yesterday_does_not_end_a_start_that_another_member_allows() {
    let before = &three()[..2];
    for peers in [
        Scripted::default()
            .members(A, CLUSTER, before)
            .members(B, CLUSTER, &three()),
        Scripted::default()
            .members(B, CLUSTER, &three())
            .members(A, CLUSTER, before),
    ] {
        let place = join_with(&peers.version(B, "3.7.0")).unwrap();
        assert_eq!((place.member, place.told.members.len()), (MemberId(3), 3));
    }
    // and where none allows it, the same reason is told whoever answers first
    for (one, other) in [(A, B), (B, A)] {
        let cluster = |url: &str| if url == A { 0xa } else { 0xb };
        let peers = Scripted::default()
            .members(one, cluster(one), before)
            .members(other, cluster(other), before);
        assert!(refusal(&peers).contains("ClusterID:a "), "{one}");
    }
}

/// What the others think this member has, it has not.
#[test]
fn a_member_that_has_served_does_not_join_again_without_its_data() {
    let mut served = three();
    served[2] = member(3, &[C], true);
    let peers = Scripted::default().members(A, CLUSTER, &served).version(A, "3.7.0");
    assert_eq!(refusal(&peers), "member 3 has already been bootstrapped");
}

#[test]
fn a_learner_joins_as_one() {
    let mut members = three();
    members[2] = format!(r#"{{"id":3,"peerURLs":["{C}"],"isLearner":true}}"#);
    let peers = Scripted::default().members(A, CLUSTER, &members).version(A, "3.7.0");
    assert!(join_with(&peers).unwrap().told.members[2].is_learner);
}

#[test]
fn names_and_addresses_are_matched_one_to_one() {
    let resolve = |host: &str| -> io::Result<Vec<IpAddr>> {
        match host {
            "a.example" => Ok(vec!["10.0.0.1".parse().unwrap()]),
            "b.example" => Ok(vec!["10.0.0.2".parse().unwrap()]),
            _ => nowhere(host),
        }
    };
    // the cluster knows addresses, we were given names; our own name resolves nowhere yet and reads the same
    let config = joining_with("a=http://a.example:2380,b=http://b.example:2380,c=http://c.example:2380");
    let members = [
        member(1, &[A], true),
        member(2, &[B], true),
        member(3, &["http://c.example:2380"], false),
    ];
    let peers = || {
        Scripted::default()
            .members("http://a.example:2380", CLUSTER, &members)
            .version("http://a.example:2380", "3.7.0")
    };
    let place = join(&config, &resolve, &peers(), Duration::ZERO);
    assert_eq!(place.unwrap().member, MemberId(3));

    // two names of one host are two members of the list and one of the cluster's
    let same = |_: &str| -> io::Result<Vec<IpAddr>> { Ok(vec!["10.0.0.1".parse().unwrap()]) };
    let refused = join(&config, &same, &peers(), Duration::ZERO).unwrap_err().to_string();
    assert!(refused.contains("no match found for existing member (2, "), "{refused}");
}

#[test]
fn versions_of_all_that_answer_must_fit() {
    let with = |versions: &[(&str, &str)]| {
        let peers = Scripted::default().members(A, CLUSTER, &three());
        let peers = versions
            .iter()
            .fold(peers, |peers, (url, version)| peers.version(url, version));
        join_with(&peers)
    };
    for good in [
        &[(A, "3.7.0")][..],
        &[(A, "3.0.0"), (B, "3.7.0")],
        &[(A, "not_decided"), (B, "3.4.0")],
    ] {
        assert!(with(good).is_ok(), "{good:?}");
    }
    for (bad, reason) in [
        (&[][..], "no other member tells its cluster's version".to_owned()),
        (
            &[(A, "not_decided"), (B, "")],
            "no other member tells its cluster's version".to_owned(),
        ),
        (
            &[(A, "3.7.0"), (B, "3.8.0")],
            format!("{B} is of cluster version 3.8, and Quorate {QUORATE_VERSION} joins 3.0 to 3.7"),
        ),
        (
            &[(A, "2.3.0")],
            format!("{A} is of cluster version 2.3, and Quorate {QUORATE_VERSION} joins 3.0 to 3.7"),
        ),
        (
            &[(A, "4.0.0")],
            format!("{A} is of cluster version 4.0, and Quorate {QUORATE_VERSION} joins 3.0 to 3.7"),
        ),
    ] {
        let refused = with(bad).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!("incompatible with current running cluster ({reason})"),
            "{bad:?}"
        );
    }
}

#[test]
fn a_cluster_of_etcd_is_not_joined() {
    let peers = Scripted::default()
        .members(A, CLUSTER, &three())
        .of_etcd()
        .version(A, "3.7.0");
    assert_eq!(
        refusal(&peers),
        format!(
            "incompatible with current running cluster ({A} is a member of etcd, and Quorate {QUORATE_VERSION} forms \
             clusters with Quorate only)"
        )
    );
    assert_eq!(
        find_place(&joining(), &nowhere, &peers, Duration::ZERO).unwrap().member,
        MemberId(3)
    );
}

#[test]
fn what_others_tell_does_not_flood_the_log() {
    let long = format!("http://10.0.0.1:2380/{}", "é".repeat(1 << 20));
    let peers = Scripted::default().members(A, CLUSTER, &[member(1, &[&long], false)]);
    let refused = refusal(&peers);
    assert!(refused.len() < 2 * TOLD_BYTES_MAX, "{}", refused.len());
    assert!(refused.contains("…: member count is unequal"));
}
