use std::ffi::OsString;
use std::io;
use std::net::IpAddr;

use super::*;
use crate::config::load;

fn config(args: &[&str]) -> Config {
    let args = std::iter::once("quorate")
        .chain(args.iter().copied())
        .map(OsString::from);
    load(args, std::iter::empty()).unwrap().config
}

fn nowhere(_: &str) -> io::Result<Vec<IpAddr>> {
    Err(io::Error::other("no such host"))
}

fn found_with(args: &[&str]) -> Result<InitialCluster, Error> {
    found(&config(args), &nowhere, Duration::ZERO)
}

#[test]
fn a_lone_member_founds_its_cluster() {
    let cluster = found_with(&[]).unwrap();
    assert_eq!(
        (cluster.member_id, cluster.cluster_id),
        (0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32)
    );
    let url = "http://127.0.0.1:20151";
    let cluster = found_with(&["--name=m1", &format!("--initial-advertise-peer-urls={url}")]).unwrap();
    assert_eq!(
        (cluster.member_id, cluster.cluster_id),
        (0x3a9c_02f9_909f_586a, 0x93a3_778a_a8e6_db07)
    );
    assert_eq!(cluster.members.len(), 1);
    assert_eq!(cluster.members[0].name, "m1");
    assert_eq!(cluster.members[0].peer_urls[0].to_string(), url);
}

#[test]
fn settings_that_contradict_each_other_are_refused_in_etcds_words() {
    let advertise = "--initial-advertise-peer-urls=http://127.0.0.1:29380";
    for (args, reason) in [
        (
            vec!["--initial-cluster=foo"],
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
        ),
        (
            vec!["--initial-cluster=a=http://127.0.0.1"],
            r#"error setting up initial cluster: URL address does not have the form "host:port": http://127.0.0.1"#,
        ),
        (
            vec!["--initial-cluster="],
            r#"couldn't find local name "default" in the initial cluster configuration"#,
        ),
        (
            vec!["--name=zz", "--initial-cluster=a=http://127.0.0.1:29380"],
            r#"couldn't find local name "zz" in the initial cluster configuration"#,
        ),
        (
            vec![advertise],
            r#"--initial-cluster has default=http://localhost:2380 but missing from --initial-advertise-peer-urls=http://127.0.0.1:29380 (resolved urls: "http://127.0.0.1:29380" != "http://localhost:2380")"#,
        ),
        (
            vec![advertise, "--initial-cluster=default=http://127.0.0.1:1"],
            r#"--initial-cluster has default=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls=http://127.0.0.1:29380 (resolved urls: "http://127.0.0.1:29380" != "http://127.0.0.1:1")"#,
        ),
        (
            vec![
                advertise,
                "--initial-cluster=default=http://127.0.0.1:29380,default=http://127.0.0.1:29381",
            ],
            r#"--initial-cluster has default=http://127.0.0.1:29381 but missing from --initial-advertise-peer-urls=http://127.0.0.1:29380 (len(["http://127.0.0.1:29380"]) != len(["http://127.0.0.1:29380" "http://127.0.0.1:29381"]))"#,
        ),
        (
            vec![
                "--initial-advertise-peer-urls=http://127.0.0.1:29380,http://127.0.0.1:5",
                "--initial-cluster=default=http://127.0.0.1:29380",
            ],
            "--initial-advertise-peer-urls has http://127.0.0.1:5 but missing from --initial-cluster=default=http://127.0.0.1:29380,default=http://127.0.0.1:5",
        ),
        (
            vec![
                advertise,
                "--initial-cluster=default=http://127.0.0.1:29380,b=http://127.0.0.1:29380",
            ],
            "initial cluster b=http://127.0.0.1:29380,default=http://127.0.0.1:29380 has duplicate url",
        ),
    ] {
        assert_eq!(found_with(&args).unwrap_err().to_string(), reason);
    }
}

#[test]
fn names_and_addresses_of_one_host_are_the_same() {
    let args = [
        "--initial-advertise-peer-urls=http://m1.example:2380",
        "--initial-cluster=default=http://10.0.0.1:2380",
    ];
    let resolve = |host: &str| match host {
        "m1.example" => Ok(vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
        _ => nowhere(host),
    };
    let cluster = found(&config(&args), &resolve, Duration::ZERO).unwrap();
    // the id is made of what the cluster was told
    assert_eq!(cluster.member_id, member_id(["http://10.0.0.1:2380"], "etcd-cluster"));

    let unresolved = found(&config(&args), &nowhere, Duration::ZERO).unwrap_err();
    assert_eq!(
        unresolved.to_string(),
        "--initial-cluster has default=http://10.0.0.1:2380 but missing from \
         --initial-advertise-peer-urls=http://m1.example:2380 (lookup m1.example: no such host)"
    );
}

const THREE: &str = "--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380";

/// What real members of etcd compute is in the differential tests; this is one of those runs, kept.
#[test]
fn all_members_compute_the_same_cluster() {
    let list = "--initial-cluster=c=http://127.0.0.1:31003,b=http://127.0.0.1:31002,a=http://127.0.0.1:31001";
    let of = |name: &str, port: u16| {
        let own = format!("--initial-advertise-peer-urls=http://127.0.0.1:{port}");
        found_with(&[list, &format!("--name={name}"), &own]).unwrap()
    };
    let all = [of("a", 31001), of("b", 31002), of("c", 31003)];
    assert_eq!(
        all.each_ref().map(|cluster| format!("{:x}", cluster.member_id)),
        ["64aee1ecd2cd09aa", "d040b8b9ac19669", "4fa144323b14869d"]
    );
    for cluster in &all {
        assert_eq!(format!("{:x}", cluster.cluster_id), "df589155262f8a10");
        assert_eq!(cluster.members, all[0].members);
        assert!(cluster.members.is_sorted_by_key(|member| member.id));
    }
    let others = |cluster: &InitialCluster| cluster.other_urls().iter().map(|url| url.port).collect::<Vec<_>>();
    assert_eq!(
        all.each_ref().map(others),
        [[31002, 31003], [31001, 31003], [31001, 31002]]
    );
}

#[test]
fn a_member_may_have_several_urls_in_any_order() {
    let advertise = "--initial-advertise-peer-urls=http://10.0.1.1:1,http://10.0.0.1:1";
    let [one, other] = [
        "--initial-cluster=a=http://10.0.1.1:1,b=http://10.0.0.2:1,a=http://10.0.0.1:1",
        "--initial-cluster=a=http://10.0.0.1:1,a=http://10.0.1.1:1,b=http://10.0.0.2:1",
    ]
    .map(|list| found_with(&["--name=a", advertise, list]).unwrap());
    assert_eq!(one, other);
    let ours = one.members.iter().find(|member| member.name == "a").unwrap();
    assert_eq!(ours.peer_urls.len(), 2);
    assert_eq!(
        ours.id,
        member_id(["http://10.0.0.1:1", "http://10.0.1.1:1"], "etcd-cluster")
    );
}

#[test]
fn another_token_makes_another_cluster() {
    let own = "--initial-advertise-peer-urls=http://10.0.0.1:2380";
    let one = found_with(&["--name=a", own, THREE]).unwrap();
    let other = found_with(&["--name=a", own, THREE, "--initial-cluster-token=other"]).unwrap();
    assert_ne!(one.cluster_id, other.cluster_id);
    assert_ne!(one.member_id, other.member_id);
}

#[test]
fn who_joins_must_be_listed_once_and_is_not_asked_what_it_advertises() {
    let with = |args: &[&str]| join(&config(args));
    let joining = with(&["--name=c", THREE]).unwrap();
    assert_eq!(joining.other_urls().len(), 2);
    assert_eq!(
        with(&["--name=d", THREE]).unwrap_err().to_string(),
        r#"couldn't find local name "d" in the initial cluster configuration"#
    );
    let twice = "--initial-cluster=a=http://10.0.0.1:1,b=http://10.0.0.1:1";
    assert_eq!(
        with(&["--name=a", twice]).unwrap_err().to_string(),
        "initial cluster a=http://10.0.0.1:1,b=http://10.0.0.1:1 has duplicate url"
    );
}
