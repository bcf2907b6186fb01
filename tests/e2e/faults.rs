//! The world around the process fails: the disk is full, the log goes nowhere.

use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
};
use quorate_kit::wait::until_async;
use quorate_kit::{Config, Node, Stderr};
use tonic::Code;

use crate::mounts::{Tmpfs, fill_up};
use crate::support::{COMPACT, DELETE, Place, binary, config, get, put, put_at};

/// D7, E5: a full disk refuses writes and nothing else; when there is room again the node goes on by itself, with
/// everything it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full_recovers_by_itself() {
    let dir = Place::new();
    let small = Tmpfs::mount(dir.path(), 320);
    let mut node = Node::start(Config::new(binary(), dir.path()));
    let rpc = node.rpc();
    put_at(&rpc, "before", "1").await;
    let spared = put_at(&rpc, "spared", "1").await;
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
    // what makes room and what reads goes on
    for round in 0..5 {
        assert_eq!(get(&rpc, "before").await.unwrap().kvs.len(), 1, "reads go on");
        let delete = DeleteRangeRequest {
            key: if round == 0 { "spared".into() } else { "nothing".into() },
            ..DeleteRangeRequest::default()
        };
        let gone: DeleteRangeResponse = rpc.unary(DELETE, &delete).await.expect("deletes go on");
        assert_eq!(gone.deleted, i64::from(round == 0));
        fill_up(&ballast);
    }
    let compact = CompactionRequest {
        revision: spared,
        physical: true,
    };
    let _: CompactionResponse = rpc.unary(COMPACT, &compact).await.expect("compaction goes on");
    assert!(get(&rpc, "spared").await.unwrap().kvs.is_empty());
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
    assert!(
        get(&rpc, "spared").await.unwrap().kvs.is_empty(),
        "deleted while the disk was full"
    );
    drop(node);
    drop(small);
}

/// D7: many large writes at once meet the end of the disk together. Each is answered or refused, the node stays up and
/// holds what it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_the_end_of_the_disk_ends_nothing() {
    const WRITES: usize = 50;
    const ROUNDS: usize = 4;
    let dir = Place::new();
    let small = Tmpfs::mount(dir.path(), 320);
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![0; 160 << 20]).unwrap();
    let mut node = Node::start(Config::new(binary(), dir.path()));
    let rpc = node.rpc();
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let writes: Vec<_> = (0..WRITES)
            .map(|n| {
                let (rpc, key) = (rpc.clone(), format!("burst/{round}/{n}"));
                tokio::spawn(async move { (put(&rpc, key.clone(), vec![b'x'; 1 << 20]).await, key) })
            })
            .collect();
        for write in writes {
            let (done, key) = write.await.unwrap();
            match done {
                Ok(_) => acknowledged.push(key),
                Err(status) => {
                    assert_eq!(
                        (status.code(), status.message()),
                        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
                        "round {round}, {key}"
                    );
                    refused += 1;
                }
            }
        }
        node.assert_alive();
    }
    println!("{} writes fitted, {refused} were refused", acknowledged.len());
    assert!(
        !acknowledged.is_empty() && refused > 0,
        "the burst did not meet the end"
    );
    std::fs::remove_file(&ballast).unwrap();
    until_async("writes to go on", Duration::from_secs(30), || async {
        put(&rpc, "after", "1").await.ok()
    })
    .await;
    node.kill();
    node.restart();
    let rpc = node.rpc();
    for key in &acknowledged {
        let got = get(&rpc, key.as_str()).await.unwrap();
        assert_eq!(got.kvs.len(), 1, "{key} was acknowledged");
    }
    node.assert_alive();
    drop(node);
    drop(small);
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

/// D7, E5: killed on a full disk and started on it, a node still serves what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_serves() {
    let dir = Place::new();
    let small = Tmpfs::mount(dir.path(), 160);
    let log = Place::new();
    let mut config = Config::new(binary(), log.path());
    config
        .extra
        .push(format!("--data-dir={}", dir.path().join("data").display()));
    let mut node = Node::start(config);
    let rpc = node.rpc();
    put_at(&rpc, "a", "1").await;
    let writes: Vec<_> = (0..200)
        .map(|n| {
            let rpc = rpc.clone();
            tokio::spawn(async move { put(&rpc, format!("burst/{n}"), vec![b'x'; 1 << 20]).await.is_ok() })
        })
        .collect();
    for write in writes {
        write.await.unwrap();
    }
    fill_up(&dir.path().join("ballast"));
    node.kill();
    node.relaunch();
    until_async("the node to serve", Duration::from_secs(20), || async {
        get(&node.rpc(), "a").await.is_ok().then_some(())
    })
    .await;
    drop(node);
    drop(small);
}
