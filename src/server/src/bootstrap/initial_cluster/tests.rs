use std::cell::Cell;
use std::ffi::OsString;

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
        (
            vec!["--initial-cluster-state=existing"],
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs",
        ),
        (
            vec!["--initial-cluster=default=http://localhost:2380,b=http://127.0.0.1:1"],
            "--initial-cluster names 2 members; more than one is not yet supported by Quorate 0.1.0",
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

#[test]
fn names_are_looked_up_until_they_resolve() {
    let args = [
        "--initial-advertise-peer-urls=http://m1:2380",
        "--initial-cluster=default=http://10.0.0.1:2380",
    ];
    let calls = Cell::new(0);
    let resolve = |host: &str| {
        calls.set(calls.get() + 1);
        if calls.get() < 2 {
            nowhere(host)
        } else {
            Ok(vec!["10.0.0.1".parse().unwrap()])
        }
    };
    assert!(found(&config(&args), &resolve, Duration::from_secs(60)).is_ok());
    assert_eq!(calls.get(), 2);
}

#[test]
fn local_names_resolve() {
    assert!(system_resolve("localhost").unwrap().iter().all(IpAddr::is_loopback));
}
