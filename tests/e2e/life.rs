//! A process's life: who it is, how it starts, what it leaves on disk, how it ends.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_kit::Node;
use rustix::process::Signal;

use crate::support::{Own, config, get, metric, put, start, start_with};
use crate::turn::alone;

/// The ids that etcd computes for its default URLs.
#[test]
fn default_identity_is_etcds() {
    let own = start_with(|config| {
        // the URLs that the ids come from, without taking port 2380 of this machine
        config
            .flag("--initial-advertise-peer-urls=http://localhost:2380")
            .flag("--initial-cluster=default=http://localhost:2380")
            .flag("--initial-cluster-token=etcd-cluster")
    });
    let header = &own.node.etcdctl().json(&["put", "a", "1"])["header"];
    assert_eq!(
        format!("{:x}", header["member_id"].as_u64().unwrap()),
        "8e9e05c52164694d"
    );
    assert_eq!(
        format!("{:x}", header["cluster_id"].as_u64().unwrap()),
        "cdf818194e3a8c32"
    );
}

/// Restarted with other bootstrap flags a node is who it was; the name and client URLs are published anew.
#[test]
fn bootstrap_flags_mean_nothing_on_a_restart() {
    let mut own = start();
    let before = own.node.etcdctl().json(&["put", "a", "1"]);
    own.node.terminate();
    own.node
        .config
        .extra
        .push("--initial-cluster=nonsense=http://10.0.0.1:1".to_owned());
    own.node.config.extra.push("--initial-cluster-token=other".to_owned());
    own.node
        .config
        .extra
        .push("--initial-cluster-state=existing".to_owned());
    own.node.restart();
    let after = own.node.etcdctl().json(&["get", "a"]);
    assert_eq!(before["header"]["member_id"], after["header"]["member_id"]);
    assert_eq!(before["header"]["cluster_id"], after["header"]["cluster_id"]);
    assert_eq!(after["kvs"][0]["value"], "MQ==");
}

/// A3
#[test]
fn data_dir_modes_are_checked_at_start() {
    let mut own = start();
    own.node.etcdctl().ok(&["put", "a", "1"]);
    let data = own.node.config.data_dir();
    assert_tight(&data);
    own.node.terminate();
    // fsGroup and careless hands widen it; the next start tightens it again
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o777)).unwrap();
    own.node.restart();
    assert_tight(&data);
    assert_eq!(own.node.etcdctl().ok(&["get", "a"]), "a\n1\n");
}

fn assert_tight(path: &Path) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let mode = meta.permissions().mode() & 0o777;
    let allowed = if meta.is_dir() { 0o700 } else { 0o600 };
    assert_eq!(mode & !allowed, 0, "{} has mode {mode:o}", path.display());
    if meta.is_dir() {
        assert_eq!(mode, 0o700, "{} has mode {mode:o}", path.display());
        for entry in std::fs::read_dir(path).unwrap() {
            assert_tight(&entry.unwrap().path());
        }
    }
}

#[test]
fn sigterm_under_load_ends_in_time_and_loses_nothing() {
    ends_by(Signal::TERM, 15);
}

#[test]
fn sigint_under_load_ends_in_time_and_loses_nothing() {
    ends_by(Signal::INT, 2);
}

/// The process ends within 1.5 s, by the signal it was sent, and what it acknowledged is there afterwards.
fn ends_by(signal: Signal, number: i32) {
    let _turn = alone();
    let mut own = start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let entered = runtime.enter(); // clients belong to a runtime
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (rpc, stop) = (own.node.rpc(), stop.clone());
            runtime.spawn(async move {
                let mut acknowledged = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    if put(&rpc, format!("load/{writer}"), (acknowledged + 1).to_string())
                        .await
                        .is_err()
                    {
                        break;
                    }
                    acknowledged += 1;
                }
                acknowledged
            })
        })
        .collect();
    runtime.block_on(async {
        let rpc = own.node.rpc();
        quorate_kit::wait::until_async("load", Duration::from_secs(10), || async {
            get(&rpc, "load/0")
                .await
                .ok()
                .filter(|got| got.kvs.first().is_some_and(|kv| kv.version > 20))
                .map(|_| ())
        })
        .await;
    });
    let (status, took) = own.node.stop_with(signal);
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<u32> = writers
        .into_iter()
        .map(|writer| runtime.block_on(writer).unwrap())
        .collect();
    assert_eq!(status.signal(), Some(number), "ended as {status}");
    assert!(took < Duration::from_millis(1_500), "took {took:?} to end");
    own.node.restart();
    drop(entered);
    runtime.block_on(async {
        let rpc = own.node.rpc();
        for (writer, acknowledged) in acknowledged.into_iter().enumerate() {
            let got = get(&rpc, format!("load/{writer}")).await.unwrap();
            let value: u32 = got
                .kvs
                .first()
                .map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap());
            assert!(
                (acknowledged..=acknowledged + 1).contains(&value),
                "{acknowledged} acknowledged, {value} found"
            );
        }
    });
}

/// A second process waits for the directory instead of ending or, worse, using it; it takes over when it is free.
#[test]
fn a_busy_data_dir_is_waited_for() {
    let mut own = start();
    own.node.etcdctl().ok(&["put", "a", "1"]);
    let mut config = own.node.config.clone();
    config.client_port = quorate_kit::ports::free();
    // the same member would have the same peer port; its listener must not be what stops it
    config.extra.push(format!(
        "--listen-peer-urls=http://127.0.0.1:{}",
        quorate_kit::ports::free()
    ));
    let elsewhere = own.dir.path().join("second");
    config
        .extra
        .push(format!("--data-dir={}", own.node.config.data_dir().display()));
    config.dir = elsewhere;
    let mut second = Node::launch(config);
    quorate_kit::wait::until(
        "the second process to say what it waits for",
        Duration::from_secs(5),
        || {
            second
                .log()
                .contains("data directory is locked by another process")
                .then_some(())
        },
    );
    // for a while it neither ends nor serves, and the first one is not disturbed
    for round in 0..10 {
        second.assert_alive();
        assert!(
            !second.log().contains("ready to serve client requests"),
            "two processes on one directory"
        );
        own.node.etcdctl().ok(&["put", "a", &round.to_string()]);
        std::thread::sleep(Duration::from_millis(50));
    }
    own.node.kill();
    second.wait_ready();
    assert_eq!(second.etcdctl().ok(&["get", "a"]), "a\n9\n");
}

/// B2: with one client and one write at a time, every acknowledgement needs a sync of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_member_acks_only_after_sync() {
    let own = start();
    let rpc = own.node.rpc();
    let syncs = || metric(&own.node, "etcd_disk_wal_fsync_duration_seconds_count") as u64;
    let before = syncs();
    const WRITES: u64 = 50;
    for n in 0..WRITES {
        put(&rpc, "a", n.to_string()).await.unwrap();
    }
    let made = syncs() - before;
    assert!(
        made >= WRITES,
        "{WRITES} acknowledged writes, one after the other, and only {made} syncs"
    );
}

/// Starting over on data from a clean stop and from a kill are both quick and both complete.
#[test]
fn both_kinds_of_restart_keep_revision_and_lease() {
    let mut own: Own = start();
    let ctl = own.node.etcdctl();
    let lease = ctl.json(&["lease", "grant", "600"])["ID"].as_i64().unwrap();
    ctl.ok(&["put", &format!("--lease={lease:x}"), "leased", "1"]);
    let revision = ctl.json(&["put", "a", "1"])["header"]["revision"].as_i64().unwrap();
    for clean in [true, false] {
        if clean {
            own.node.terminate();
        } else {
            own.node.kill();
        }
        own.node.restart();
        assert_eq!(
            ctl.json(&["get", "a"])["header"]["revision"].as_i64(),
            Some(revision),
            "clean stop: {clean}"
        );
        let left = ctl.ok(&["lease", "timetolive", "--keys", &format!("{lease:x}")]);
        assert!(left.contains("TTL(600s)") && left.contains("leased"), "{left}");
    }
}

/// Without flags that say otherwise the data directory is named after the member, in the working directory.
#[test]
fn the_data_dir_has_the_members_name() {
    let (mut config, dir) = config();
    config.name = "lonely".to_owned();
    config.extra.push("--data-dir=".to_owned());
    let node = Node::start(config);
    assert!(
        dir.path().join("lonely.etcd").is_dir(),
        "{:?}",
        std::fs::read_dir(dir.path()).unwrap().collect::<Vec<_>>()
    );
    drop(node);
}
