//! The world around the process fails: the disk is full, the log goes nowhere.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::{CompactionRequest, CompactionResponse};
use quorate_kit::{Config, Node, Stderr};
use tonic::Code;

use crate::support::{COMPACT, binary, config, get, put, put_at};

/// A small file system of its own, gone when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path, mib: u32) -> Self {
        let size = format!("size={mib}m,mode=700");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            done.status.success(),
            "a full disk needs a small one: mounting a tmpfs failed: {why}"
        );
        Self(at)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        // lazily: a server that is only just being killed may still hold it
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// D7, E5: a full disk refuses writes and nothing else; when there is room again the node goes on by itself, with
/// everything it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let small = Tmpfs::mount(dir.path(), 320);
    let mut node = Node::start(Config::new(binary(), dir.path()));
    let rpc = node.rpc();
    put_at(&rpc, "before", "1").await;
    let ballast = dir.path().join("ballast");
    fill_up(&ballast);

    // what is preallocated may take some more writes
    let mut acknowledged = 0u32;
    let began = Instant::now();
    let refusal = loop {
        match put(&rpc, format!("full/{acknowledged}"), vec![b'x'; 200_000]).await {
            Ok(_) => acknowledged += 1,
            Err(status) => break status,
        }
        fill_up(&ballast); // nor may what it frees meanwhile help
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the disk is full and {acknowledged} writes went on"
        );
    };
    println!("{acknowledged} writes fitted, then {refusal}");
    node.assert_alive();
    assert_eq!(
        (refusal.code(), refusal.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    for _ in 0..5 {
        assert_eq!(get(&rpc, "before").await.unwrap().kvs.len(), 1, "reads go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.assert_alive();

    std::fs::remove_file(&ballast).unwrap();
    let freed = Instant::now();
    while put(&rpc, "after", "1").await.is_err() {
        node.assert_alive();
        assert!(
            freed.elapsed() < Duration::from_secs(30),
            "no writes 30 s after there was room again"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.kill();
    node.restart();
    let rpc = node.rpc();
    for n in 0..acknowledged {
        assert_eq!(
            get(&rpc, format!("full/{n}")).await.unwrap().kvs.len(),
            1,
            "full/{n} was acknowledged"
        );
    }
    assert_eq!(get(&rpc, "after").await.unwrap().kvs.len(), 1);
    drop(node);
    drop(small);
}

/// Writes to `path` until there is no byte left.
fn fill_up(path: &Path) {
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    let mut size = 1 << 20;
    let block = vec![0; size];
    while size > 0 {
        match file.write(&block[..size]) {
            Ok(written) if written > 0 => {}
            _ => size /= 2,
        }
    }
}

/// B35, E5: a log that nobody reads holds up neither reads nor writes, and one that is gone kills nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_log_sink_does_not_block_reads() {
    let (mut config, _dir) = config();
    config.stderr = Stderr::UnreadPipe;
    config.extra.push("--log-level=debug".to_owned());
    if config.binary.is_34() {
        config.extra.push("--log-outputs=stderr".to_owned());
    }
    let mut node = Node::start(config);
    let rpc = node.rpc();
    put_at(&rpc, "a", "1").await;
    node.stuff_log_pipe();
    serve_for_a_while(&mut node, "with a log that is stuck").await;
    node.close_log_pipe();
    serve_for_a_while(&mut node, "with a log that is gone").await;
    let (_, took) = node.terminate();
    assert!(
        took < Duration::from_millis(1_500),
        "took {took:?} to end without a log"
    );
}

/// Requests of the kinds that log something.
async fn serve_for_a_while(node: &mut Node, when: &str) {
    let address = node.address();
    for round in 0..30 {
        let rpc = node.rpc();
        let asked = async {
            let revision = put_at(&rpc, "a", round.to_string()).await;
            assert_eq!(get(&rpc, "a").await.unwrap().kvs.len(), 1);
            let _: CompactionResponse = rpc
                .unary(
                    COMPACT,
                    &CompactionRequest {
                        revision,
                        physical: false,
                    },
                )
                .await
                .unwrap();
        };
        let answered = tokio::time::timeout(Duration::from_secs(3), asked).await;
        assert!(answered.is_ok(), "no answer within 3 s {when}, round {round}");
        // and what is refused at the door is logged too
        let _ = quorate_kit::http::request(address, "GARBAGE", "/", &[], b"");
    }
    let health = quorate_kit::http::get(address, "/health").map(|answer| answer.status);
    assert_eq!(health.unwrap(), 200, "{when}");
    node.assert_alive();
}
