//! A process's life: who it is, how it starts, what it leaves on disk, how it ends.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_kit::Node;
use rustix::process::Signal;

use crate::support::{Own, binary, config, get, put, start, start_with};

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
    quorate_kit::wait::until("the second process to be under way", Duration::from_secs(5), || {
        (!second.log().is_empty()).then_some(())
    });
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

#[test]
fn version_has_etcds_four_lines_and_ours() {
    let said = run(&[], &["--version"]);
    let text = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(said.status.code(), Some(0));
    assert_eq!(lines.len(), 5, "etcd's four lines, then our own version: {text}");
    assert!(lines[4].starts_with("Quorate Version: "), "{text}");
    assert_eq!(lines[0], "etcd Version: 3.7.1");
    for (line, start) in lines[1..4].iter().zip(["Git SHA: ", "Go Version: ", "Go OS/Arch: "]) {
        assert!(line.starts_with(start), "{text}");
    }
}

#[test]
fn bad_flags_are_refused_as_etcd_refuses_them() {
    let first_line = |said: &Output| {
        String::from_utf8_lossy(&said.stderr)
            .lines()
            .next()
            .unwrap_or("")
            .to_owned()
    };
    for (flag, expected) in [
        ("--nope", "flag provided but not defined: -nope"),
        ("--enable-v2", "flag provided but not defined: -enable-v2"),
        (
            "--experimental-corrupt-check-time=1m",
            "flag provided but not defined: -experimental-corrupt-check-time",
        ),
        (
            "--listen-client-urls=http://127.0.0.1",
            r#"invalid value "http://127.0.0.1" for flag -listen-client-urls: URL address does not have the form "host:port": http://127.0.0.1"#,
        ),
        (
            "--listen-client-urls=ftp://127.0.0.1:1",
            r#"invalid value "ftp://127.0.0.1:1" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:1"#,
        ),
        (
            "--initial-cluster-state=foo",
            r#"invalid value "foo" for flag -initial-cluster-state: invalid value"#,
        ),
        (
            "--v2-deprecation=not-yet",
            r#"invalid value "not-yet" for flag -v2-deprecation: invalid value "not-yet""#,
        ),
    ] {
        let said = run(&[], &[flag]);
        assert_eq!(
            (said.status.code(), first_line(&said).as_str()),
            (Some(2), expected),
            "{flag}"
        );
    }
    for (flags, expected) in [
        (vec!["foo"], r#""foo\" is not a valid flag"#),
        (
            vec!["--heartbeat-interval=0"],
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            vec!["--election-timeout=200"],
            "--election-timeout[200ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            vec!["--election-timeout=60000"],
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (
            vec!["--listen-client-urls=http://127.0.0.1:1"],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            vec!["--name=zz", "--initial-cluster=other=http://localhost:2380"],
            r#"couldn't find local name \"zz\" in the initial cluster configuration"#,
        ),
        (vec!["--config-file=/does/not/exist"], "no such file"),
        // A11
        (vec!["--auto-compaction-retention=-1"], "ompaction"),
    ] {
        let said = run(&[], &flags);
        let all = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert_eq!(said.status.code(), Some(1), "{flags:?}: {all}");
        assert!(all.contains(expected), "{flags:?}: {all}");
    }
    let both = run(&[("ETCD_NAME", "x")], &["--name=x"]);
    let all = String::from_utf8_lossy(&both.stderr).into_owned();
    assert_eq!(both.status.code(), Some(1), "{all}");
    assert!(
        all.contains("conflicting environment variable") && all.contains("ETCD_NAME"),
        "{all}"
    );
}

/// Runs the server with flags that must make it end by itself.
fn run(env: &[(&str, &str)], flags: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(binary().path)
        .args(flags)
        .env_clear()
        .envs(env.iter().copied())
        .current_dir(dir.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(dir.path().join("stdout")).unwrap())
        .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{flags:?} was not refused within 10 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    Output {
        status,
        stdout: read("stdout"),
        stderr: read("stderr"),
    }
}

/// B2: with one client and one write at a time, every acknowledgement needs a sync of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_member_acks_only_after_sync() {
    let own = start();
    let rpc = own.node.rpc();
    let syncs = || {
        let text = quorate_kit::http::get(own.node.address(), "/metrics").unwrap().text();
        let name = "etcd_disk_wal_fsync_duration_seconds_count ";
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}"));
        line.parse::<f64>().unwrap() as u64
    };
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
