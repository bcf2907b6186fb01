//! Flags of the real process: what they change, and that refused ones change nothing.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, TxnResponse};
use quorate_kit::Node;
use quorate_kit::wait::until;
use tonic::Code;

use crate::support::{Own, Place, TXN, binary, config, put, start_with};

/// How a run that ends by itself ended, what it printed, and what it left in its working directory.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub left: Vec<OsString>,
}

impl Ended {
    pub fn all(&self) -> String {
        self.stderr.clone() + &self.stdout
    }
}

/// Runs the server with flags that must make it end by itself.
pub fn run(env: &[(&str, &str)], flags: &[&str]) -> Ended {
    let (place, output) = (Place::new(), tempfile::tempdir().unwrap());
    let mut child = Command::new(binary().path)
        .args(flags)
        .env_clear()
        .envs(env.iter().copied())
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(fs::File::create(output.path().join("stdout")).unwrap())
        .stderr(fs::File::create(output.path().join("stderr")).unwrap())
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
    let read = |name: &str| String::from_utf8_lossy(&fs::read(output.path().join(name)).unwrap()).into_owned();
    let ended = Ended {
        status,
        stdout: read("stdout"),
        stderr: read("stderr"),
        left: fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect(),
    };
    assert!(!ended.all().contains("panicked at"), "{flags:?}: {}", ended.all());
    ended
}

#[test]
fn version_has_etcds_four_lines_and_ours() {
    let said = run(&[], &["--version"]);
    let text = &said.stdout;
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
            (said.status.code(), said.stderr.lines().next().unwrap_or("")),
            (Some(2), expected),
            "{flag}"
        );
        assert!(said.left.is_empty(), "{flag} left {:?}", said.left);
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
        (vec!["--config-file=/does/not/exist"], "no such file"),
        // A11
        (vec!["--auto-compaction-retention=-1"], "ompaction"),
    ] {
        let said = run(&[], &flags);
        assert_eq!(said.status.code(), Some(1), "{flags:?}: {}", said.all());
        assert!(said.all().contains(expected), "{flags:?}: {}", said.all());
        assert!(said.left.is_empty(), "{flags:?} left {:?}", said.left);
    }
    let both = run(&[("ETCD_NAME", "x")], &["--name=x"]);
    assert_eq!(both.status.code(), Some(1), "{}", both.stderr);
    assert!(
        both.stderr.contains("conflicting environment variable") && both.stderr.contains("ETCD_NAME"),
        "{}",
        both.stderr
    );
    assert!(both.left.is_empty(), "left {:?}", both.left);
}

/// Who founds what is decided before anything is written.
#[test]
fn a_refused_initial_cluster_leaves_no_data_directory() {
    let ports = [quorate_kit::ports::free(), quorate_kit::ports::free()];
    let client = format!("http://127.0.0.1:{}", ports[0]);
    let peer = format!("http://127.0.0.1:{}", ports[1]);
    let said = run(
        &[],
        &[
            "--name=zz",
            "--initial-cluster=other=http://localhost:2380",
            &format!("--listen-client-urls={client}"),
            &format!("--advertise-client-urls={client}"),
            &format!("--listen-peer-urls={peer}"),
        ],
    );
    assert_eq!(said.status.code(), Some(1), "{}", said.all());
    let expected = r#"couldn't find local name \"zz\" in the initial cluster configuration"#;
    assert!(said.all().contains(expected), "{}", said.all());
    assert!(said.left.is_empty(), "left {:?}", said.left);
}

#[test]
fn flags_take_effect_wal_dir() {
    let mut own = start_with(|config| {
        let wal = config.dir.join("elsewhere");
        config.flag(&format!("--wal-dir={}", wal.display()))
    });
    own.node.etcdctl().ok(&["put", "a", "1"]);
    let wal = own.dir.path().join("elsewhere");
    assert!(wal.join("0000000000000001.wal").exists(), "{:?}", fs::read_dir(&wal));
    assert!(!own.node.config.data_dir().join("member/wal").exists());
    own.node.kill();
    own.node.restart();
    assert_eq!(own.node.etcdctl().ok(&["get", "a"]), "a\n1\n");
}

/// With a file all other flags are ignored, as etcd does.
#[test]
fn flags_take_effect_config_file() {
    let (mut config, dir) = config();
    let file = dir.path().join("quorate.yaml");
    let (client, peer) = (config.client_url(), config.peer_url());
    let data = dir.path().join("from-file.data");
    let content = format!(
        "name: from-file\ndata-dir: {}\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\n\
         listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: from-file={peer}\n\
         max-txn-ops: 2\n",
        data.display()
    );
    fs::write(&file, content).unwrap();
    config.extra = vec![
        "--max-txn-ops=500".to_owned(),
        format!("--config-file={}", file.display()),
    ];
    let own = Own {
        node: Node::start(config),
        dir,
    };
    let listed = own.node.etcdctl().json(&["member", "list"]);
    assert_eq!(listed["members"][0]["name"], "from-file");
    assert!(data.join("member/identity.json").exists());
    assert!(
        !own.node.config.data_dir().exists(),
        "the flag's data directory was made"
    );
    let said = own
        .node
        .etcdctl()
        .call_with_input(&["txn"], "\nput a 1\nput b 1\nput c 1\n\n\n");
    assert!(
        said.err.contains("etcdserver: too many operations in txn request"),
        "{} {}",
        said.out,
        said.err
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_take_effect_request_limits() {
    let own = start_with(|config| config.flag("--max-txn-ops=3").flag("--max-request-bytes=10000"));
    let rpc = own.node.rpc();
    let txn = |count: usize| {
        let put = |n: usize| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: n.to_string().into(),
                ..PutRequest::default()
            })),
        };
        TxnRequest {
            success: (0..count).map(put).collect(),
            ..TxnRequest::default()
        }
    };
    rpc.unary::<TxnResponse>(TXN, &txn(3)).await.unwrap();
    let refused = rpc.unary::<TxnResponse>(TXN, &txn(4)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: too many operations in txn request")
    );
    put(&rpc, "a", vec![b'x'; 9_000]).await.unwrap();
    let refused = put(&rpc, "a", vec![b'x'; 10_001]).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "etcdserver: request is too large")
    );
    // and the transport's own limit moves with it: so much, and half a MiB
    let refused = put(&rpc, "a", vec![b'x'; 600_000]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(
        refused
            .message()
            .starts_with("grpc: received message larger than max (")
            && refused.message().ends_with(" vs. 534288)"),
        "{refused}"
    );
}

#[test]
fn flags_take_effect_log_outputs() {
    let (mut config, dir) = config();
    let (first, second) = (dir.path().join("first.log"), dir.path().join("second.log"));
    config
        .extra
        .push(format!("--log-outputs={},{}", first.display(), second.display()));
    let mut node = Node::launch(config);
    node.wait_healthy(Duration::from_secs(30));
    for file in [&first, &second] {
        until(
            &format!("{} to be written", file.display()),
            Duration::from_secs(5),
            || {
                let log = fs::read_to_string(file).ok()?;
                log.contains("ready to serve client requests").then_some(())
            },
        );
    }
    assert_eq!(node.log(), "", "nothing goes to stderr any more");
    assert!(!fs::read_to_string(&first).unwrap().contains(r#""level":"panic""#));
    drop(node);
}
