//! The benchmark still runs: a few operations of two workloads against Debian's etcd and the node just built. Its figures
//! mean nothing here; that every answer is checked does.
#![allow(clippy::unwrap_used)]

use quorate_bench::args::Args;
use quorate_bench::suite;

fn run(more: &[&str]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (ours, dir) = (env!("CARGO_BIN_EXE_quorate"), dir.path().to_str().unwrap());
    let words = [
        "--quick",
        "--ops",
        "200",
        "--etcd",
        "/usr/bin/etcd",
        "--ours",
        ours,
        "--dir",
        dir,
    ];
    let words = words.iter().chain(more).map(|word| (*word).to_owned());
    let args = Args::parse(words).unwrap().unwrap();
    suite::run_to_end(args).unwrap()
}

#[test]
fn compare_runs_and_finds_no_wrong_answer() {
    assert_eq!(run(&["--workloads", "put-256,get-lin"]), 0);
}

#[test]
fn compare_runs_with_client_certificates_and_prints_targets() {
    assert_eq!(
        run(&["--workloads", "get-lin", "--tls", "--targets", "--clients", "100"]),
        0
    );
}
