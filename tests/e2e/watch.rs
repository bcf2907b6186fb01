//! What a watcher is owed when compaction, starvation and the future get in the way.

use std::time::Duration;

use quorate_api::proto::etcdserverpb::request_op::Request as Op;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, RequestOp, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate_api::proto::mvccpb::event::EventType;
use quorate_kit::Rpc;
use quorate_kit::rpc::Bidi;

use crate::support::{COMPACT, TXN, WATCH, assert_serves, experimental, put_at, start, start_with};

const LIMIT: Duration = Duration::from_secs(10);

fn create(key: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.as_bytes().to_vec().into(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

fn request(create: WatchCreateRequest) -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

async fn next(stream: &mut Bidi) -> WatchResponse {
    stream.next(LIMIT).await.unwrap().expect("the stream goes on")
}

async fn compact(rpc: &Rpc, revision: i64) {
    let _: CompactionResponse = rpc
        .unary(
            COMPACT,
            &CompactionRequest {
                revision,
                physical: true,
            },
        )
        .await
        .unwrap();
}

async fn delete(rpc: &Rpc, key: &str) -> i64 {
    let request = DeleteRangeRequest {
        key: key.as_bytes().to_vec().into(),
        ..DeleteRangeRequest::default()
    };
    let gone: DeleteRangeResponse = rpc.unary("/etcdserverpb.KV/DeleteRange", &request).await.unwrap();
    gone.header.unwrap().revision
}

/// B8: a stream that is not read gets everything later, or is told that compaction took it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starved_watch_loses_nothing_silently() {
    let own = start();
    let rpc = own.node.rpc();
    // the watch has a connection of its own, whose windows fill up
    let mut stream = own.node.rpc().bidi(WATCH, &request(create("a", 0))).await.unwrap();
    assert!(next(&mut stream).await.created);
    let first = put_at(&rpc, "a", "first").await;
    let mut last = first;
    for _ in 0..300 {
        last = put_at(&rpc, "a", vec![b'x'; 64 << 10]).await;
    }
    compact(&rpc, last - 10).await;
    let last = put_at(&rpc, "a", "last").await;

    let mut expected = first;
    loop {
        let answer = next(&mut stream).await;
        if answer.canceled {
            assert!(
                answer.compact_revision > expected,
                "cancelled at {expected} by {answer:?}"
            );
            return;
        }
        for event in answer.events {
            let revision = event.kv.unwrap().mod_revision;
            assert_eq!(revision, expected, "an event is missing, and nobody said so");
            expected += 1;
        }
        if expected > last {
            return;
        }
    }
}

/// B11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_on_delete_keeps_the_event() {
    let own = start();
    let rpc = own.node.rpc();
    put_at(&rpc, "a", "1").await;
    let put = put_at(&rpc, "a", "2").await;
    let deleted = delete(&rpc, "a").await;
    let after = put_at(&rpc, "b", "1").await;
    compact(&rpc, put).await;
    let mut stream = rpc.bidi(WATCH, &request(create("a", put))).await.unwrap();
    assert!(next(&mut stream).await.created);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(
            next(&mut stream)
                .await
                .events
                .into_iter()
                .map(|e| (e.r#type(), e.kv.unwrap().mod_revision)),
        );
    }
    assert_eq!(seen, [(EventType::Put, put), (EventType::Delete, deleted)]);
    assert!(after > deleted);
}

/// B13, B47
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_at_compaction_revision_sees_delete() {
    let own = start();
    let rpc = own.node.rpc();
    put_at(&rpc, "a", "1").await;
    let deleted = delete(&rpc, "a").await;
    let again = put_at(&rpc, "a", "2").await;
    compact(&rpc, deleted).await;
    let mut stream = rpc.bidi(WATCH, &request(create("a", deleted))).await.unwrap();
    assert!(next(&mut stream).await.created);
    let mut seen = Vec::new();
    while !seen.contains(&(EventType::Put, again)) {
        seen.extend(
            next(&mut stream)
                .await
                .events
                .into_iter()
                .map(|e| (e.r#type(), e.kv.unwrap().mod_revision)),
        );
    }
    assert_eq!(seen, [(EventType::Delete, deleted), (EventType::Put, again)]);
}

/// B14: a watcher of the future hears nothing, neither by itself nor when progress is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn future_watch_gets_no_notice() {
    let own = start_with(|config| {
        let flag = experimental(&config.binary, "watch-progress-notify-interval=100ms");
        config.flag(&flag)
    });
    let rpc = own.node.rpc();
    let now = put_at(&rpc, "clock", "1").await;
    let mut future = create("a", now + 100);
    future.progress_notify = true;
    let mut stream = rpc.bidi(WATCH, &request(future)).await.unwrap();
    assert!(next(&mut stream).await.created);
    // a watcher of the present on another stream shows that notices go out
    let mut present = create("a", 0);
    present.progress_notify = true;
    let mut clock = rpc.bidi(WATCH, &request(present)).await.unwrap();
    assert!(next(&mut clock).await.created);
    for _ in 0..4 {
        let notice = next(&mut clock).await;
        assert!(
            notice.events.is_empty() && notice.header.unwrap().revision == now,
            "not a notice"
        );
    }
    let ask = WatchRequest {
        request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
    };
    assert!(stream.send(&ask).await);
    for _ in 0..4 {
        next(&mut clock).await;
    }
    let heard = stream.next::<WatchResponse>(Duration::from_millis(100)).await;
    assert!(
        heard.as_ref().is_err_and(quorate_kit::rpc::gave_up),
        "a watcher of the future heard {heard:?}"
    );
}

/// E1: one transaction may write a key twice, through a delete with an open end, which no check of duplicates looks
/// at. Compacted at that very revision, the key is what the transaction left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_at_a_key_written_twice_keeps_the_last() {
    let mut own = start();
    let rpc = own.node.rpc();
    put_at(&rpc, "a", "1").await;
    let open_end = DeleteRangeRequest {
        key: "a".into(),
        range_end: b"\0".to_vec().into(),
        prev_kv: false,
    };
    let again = PutRequest {
        key: "a".into(),
        value: "2".into(),
        ..PutRequest::default()
    };
    let success = vec![
        RequestOp {
            request: Some(Op::RequestDeleteRange(open_end)),
        },
        RequestOp {
            request: Some(Op::RequestPut(again)),
        },
    ];
    let txn = TxnRequest {
        success,
        ..TxnRequest::default()
    };
    let twice: TxnResponse = rpc.unary(TXN, &txn).await.unwrap();
    let twice = twice.header.unwrap().revision;
    compact(&rpc, twice).await;

    let mut live = create("a", 0);
    live.prev_kv = true;
    let mut stream = rpc.bidi(WATCH, &request(live)).await.unwrap();
    assert!(next(&mut stream).await.created);
    put_at(&rpc, "a", "3").await;
    let event = next(&mut stream).await.events.remove(0);
    let before = event.prev_kv.expect("the pair before is not compacted");
    assert_eq!(
        (before.value.as_ref(), before.version, before.mod_revision),
        (b"2".as_slice(), 1, twice)
    );
    own.node.kill();
    own.node.restart();
    assert_serves(&mut own.node).await;
}

/// B15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn future_watch_gets_no_old_event() {
    let own = start();
    let rpc = own.node.rpc();
    let now = put_at(&rpc, "a", "0").await;
    let mut stream = rpc.bidi(WATCH, &request(create("a", now + 5))).await.unwrap();
    assert!(next(&mut stream).await.created);
    for n in 1..=8 {
        put_at(&rpc, "a", n.to_string()).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(
            next(&mut stream)
                .await
                .events
                .into_iter()
                .map(|event| event.kv.unwrap().mod_revision),
        );
    }
    assert_eq!(seen, [now + 5, now + 6, now + 7, now + 8]);
}
