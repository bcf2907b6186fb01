//! The benchmark still runs: a few operations of some workloads against Debian's etcd and the node just built. Its figures
//! mean nothing here; that every answer is checked does.
#![allow(clippy::unwrap_used)]

use quorate_bench::args::Args;
use quorate_bench::suite;

const ETCD: &str = "/usr/bin/etcd";

fn run(more: &[&str]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let words = ["--quick", "--ops", "200", "--dir", dir];
    let words = words.iter().chain(more).map(|word| (*word).to_owned());
    let args = Args::parse(words).unwrap().unwrap();
    suite::run_to_end(args).unwrap()
}

fn side_by_side(more: &[&str]) -> usize {
    let both = ["--etcd", ETCD, "--ours", env!("CARGO_BIN_EXE_quorate")];
    run(&[&both, more].concat())
}

/// Of etcd alone, with an election timeout that makes it brief.
fn three_members(more: &[&str]) -> usize {
    let cluster = ["--alone", "--ours", ETCD, "--members", "3", "--election-ms", "500"];
    run(&[&cluster, more].concat())
}

#[test]
fn compare_runs_and_finds_no_wrong_answer() {
    assert_eq!(side_by_side(&["--workloads", "put-256,get-lin"]), 0);
}

#[test]
fn compare_runs_with_client_certificates_and_prints_targets() {
    let more = ["--workloads", "get-lin", "--tls", "--targets", "--clients", "100"];
    assert_eq!(side_by_side(&more), 0);
}

#[test]
fn compare_runs_on_three_members_that_show_each_other_certificates() {
    let more = ["--workloads", "put-256,get-follower", "--peer-tls", "--targets"];
    assert_eq!(three_members(&more), 0);
}

#[test]
fn compare_kills_and_restarts_members() {
    assert_eq!(three_members(&["--workloads", "leader,rolling", "--repeats", "1"]), 0);
}

#[test]
fn compare_adds_a_member() {
    assert_eq!(three_members(&["--workloads", "join", "--join-mib", "1"]), 0);
}
