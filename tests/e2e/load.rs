//! Too much at once: memory stays in its budget, others are served, and it is over when it is over.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use prost::Message;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::watch_request::RequestUnion;
use quorate_api::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesRequest, LeaseLeasesResponse, PutRequest, RangeRequest,
    RangeResponse, RangeStreamResponse, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use quorate_kit::Rpc;
use quorate_kit::raw::{Raw, Windows, finish, frame};

use crate::support::{RANGE, TXN, WATCH, assert_serves, percentile, prefix, put_at, start, start_with};
use crate::turn::alone;

const MIB: u64 = 1 << 20;

/// Writes `count` values of `bytes` each under `big/`.
async fn fill(rpc: &Rpc, count: usize, bytes: usize) {
    const BATCH: usize = 100;
    for first in (0..count).step_by(BATCH) {
        let success = (first..(first + BATCH).min(count))
            .map(|n| {
                let put = PutRequest {
                    key: format!("big/{n:06}").into(),
                    value: vec![b'v'; bytes].into(),
                    ..PutRequest::default()
                };
                RequestOp {
                    request: Some(Request::RequestPut(put)),
                }
            })
            .collect();
        let txn = TxnRequest {
            success,
            ..TxnRequest::default()
        };
        let _: TxnResponse = rpc.unary(TXN, &txn).await.unwrap();
    }
}

/// D18, E2: fifty full ranges over 100 MB at once, and answers that nobody reads. Each is answered whole or refused
/// for want of resources; what the node needs for all of them is bounded; and puts go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_memory_stays_in_budget() {
    const KEYS: usize = 10_000;
    const VALUE: usize = 10_000;
    const READERS: usize = 50;
    const BUDGET: u64 = 512 << 20; // etcd needs 4 to 5 GiB for this
    let _turn = alone();
    let mut own = start();
    let rpc = own.node.rpc();
    fill(&rpc, KEYS, VALUE).await;
    let before = own.node.resident_bytes();
    let request = frame(&prefix("big/").encode_to_vec());

    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (address, request) = (own.node.address(), request.clone());
            tokio::spawn(async move {
                let mut raw = Raw::connect(address, Windows::default()).await.unwrap();
                tokio::time::timeout(Duration::from_secs(90), raw.call(RANGE, request)).await
            })
        })
        .collect();
    let mut took = Vec::new();
    while readers.iter().any(|reader| !reader.is_finished()) {
        let asked = Instant::now();
        put_at(&rpc, "small", "1").await;
        took.push(asked.elapsed());
    }
    let (mut whole, mut refused) = (0, 0);
    for reader in readers {
        let ended = reader.await.unwrap().expect("a range is answered within 90 s").unwrap();
        match ended.grpc_status.as_deref() {
            Some("0") => {
                assert!(
                    ended.body_bytes > (KEYS * VALUE) as u64,
                    "only {} bytes, and OK",
                    ended.body_bytes
                );
                whole += 1;
            }
            Some("8") => refused += 1,
            _ => panic!("neither answered nor refused: {ended:?}"),
        }
    }
    let after_ranges = own.node.peak_resident_bytes().saturating_sub(before);
    assert!(whole > 0, "no range was answered, {refused} were refused");

    // answers that are never read: the window is closed before the first byte
    let mut unread = Vec::new();
    for _ in 0..READERS {
        let mut raw = Raw::connect(
            own.node.address(),
            Windows {
                stream: 1,
                connection: 65_535,
            },
        )
        .await
        .unwrap();
        let (answer, _stream) = raw.start(RANGE, request.clone(), true).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(500), answer).await;
        unread.push((raw, answer));
    }
    for _ in 0..20 {
        put_at(&rpc, "small", "2").await;
    }
    let after_unread = own.node.peak_resident_bytes().saturating_sub(before);
    let p99 = percentile(&mut took, 99);
    println!(
        "{whole} whole, {refused} refused, {} puts with p99 {p99:?}; at most {} MiB more for ranges, {} with unread ones",
        took.len(),
        after_ranges / MIB,
        after_unread / MIB
    );
    drop(unread);
    assert_serves(&mut own.node).await;
    assert!(
        after_ranges < BUDGET,
        "{} MiB more for {READERS} ranges",
        after_ranges / MIB
    );
    assert!(
        after_unread < BUDGET,
        "{} MiB more with unread answers",
        after_unread / MIB
    );
    assert!(p99 < Duration::from_secs(2), "puts took {p99:?} meanwhile");
}

/// E2: the answers of one transaction are as many ranges as it has operations, and the node's memory does not follow.
/// With a write among them and without, since these go different ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_txn_of_many_ranges_is_bounded() {
    const KEYS: usize = 10_000;
    const VALUE: usize = 10_000;
    const OPERATIONS: usize = 128;
    const BUDGET: u64 = 512 << 20; // the answer is 12.7 GB
    let _turn = alone();
    let mut own = start_with(|mut config| {
        // a node without a budget ends here, instead of taking the machine along
        config.wrapper = ["prlimit", "--as=6442450944"].map(Into::into).into();
        config
    });
    fill(&own.node.rpc(), KEYS, VALUE).await;
    let range = || RequestOp {
        request: Some(Request::RequestRange(prefix("big/"))),
    };
    let put = RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: "beside".into(),
            ..PutRequest::default()
        })),
    };
    let reading = TxnRequest {
        success: (0..OPERATIONS).map(|_| range()).collect(),
        ..TxnRequest::default()
    };
    let mut writing = reading.clone();
    writing.success[0] = put;
    for (what, txn) in [("writing", writing), ("reading", reading)] {
        let before = own.node.resident_bytes();
        let mut raw = Raw::connect(own.node.address(), Windows::default()).await.unwrap();
        let call = raw.call(TXN, frame(&txn.encode_to_vec()));
        let ended = tokio::time::timeout(Duration::from_secs(120), call)
            .await
            .unwrap_or_else(|_| panic!("the {what} transaction is not answered"));
        own.node.assert_alive();
        let ended = ended.unwrap_or_else(|error| panic!("the {what} transaction: {error}"));
        let grown = own.node.peak_resident_bytes().saturating_sub(before);
        println!("{what}: {ended:?}, at most {} MiB more", grown / MIB);
        match ended.grpc_status.as_deref() {
            Some("0") => assert!(ended.body_bytes > (KEYS * VALUE * (OPERATIONS - 1)) as u64, "{ended:?}"),
            Some("8") => {}
            _ => panic!("the {what} transaction was neither answered nor refused: {ended:?}"),
        }
        assert!(grown < BUDGET, "{} MiB more for one {what} transaction", grown / MIB);
    }
    // the log may hold the transaction: what replays it needs no more
    own.node.kill();
    own.node.restart();
    assert_serves(&mut own.node).await;
}

/// D18: ten times too much of everything. Each request is answered or refused in etcd's words, the node stays within its
/// memory, and when the load goes it is as quick as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_degrades_and_recovers() {
    const CONNECTIONS: usize = 500;
    const IN_FLIGHT: usize = 40;
    const RANGES: usize = 100;
    const LASTS: Duration = Duration::from_secs(10);
    const GROWTH_MAX: u64 = 1 << 30;
    const LEFT_MAX: u64 = 256 << 20;
    let _turn = alone();
    let mut own = start();
    let rpc = own.node.rpc();
    fill(&rpc, 2_000, 10_000).await;
    let before = own.node.resident_bytes();
    let until = Instant::now() + LASTS;

    let range = frame(&prefix("big/").encode_to_vec());
    let ranges: Vec<_> = (0..RANGES)
        .map(|_| {
            let (address, range) = (own.node.address(), range.clone());
            tokio::spawn(async move {
                let mut ended = Vec::new();
                let mut raw = Raw::connect(address, Windows::default()).await.unwrap();
                while Instant::now() < until {
                    let answer = tokio::time::timeout(Duration::from_secs(60), raw.call(RANGE, range.clone()));
                    ended.push(answer.await.expect("a range is answered within 60 s").unwrap());
                }
                ended
            })
        })
        .collect();
    let puts: Vec<_> = (0..CONNECTIONS)
        .flat_map(|connection| {
            let rpc = own.node.rpc();
            (0..IN_FLIGHT).map(move |n| {
                let rpc = rpc.clone();
                tokio::spawn(async move {
                    let mut answers = Vec::new();
                    while Instant::now() < until {
                        answers.push(crate::support::put(&rpc, format!("load/{connection}/{n}"), "1").await);
                    }
                    answers
                })
            })
        })
        .collect();

    let (mut done, mut refused) = (0u32, std::collections::BTreeMap::<String, u32>::new());
    for put in puts {
        for answer in put.await.unwrap() {
            match answer {
                Ok(_) => done += 1,
                Err(status) => {
                    *refused
                        .entry(format!("{:?}: {}", status.code(), status.message()))
                        .or_default() += 1
                }
            }
        }
    }
    let (mut whole, mut short) = (0, 0);
    for range in ranges {
        for ended in range.await.unwrap() {
            match ended.grpc_status.as_deref() {
                Some("0") => whole += 1,
                Some("8") => short += 1,
                _ => panic!("a range was neither answered nor refused: {ended:?}"),
            }
        }
    }
    let over = Instant::now();
    let grown = own.node.peak_resident_bytes().saturating_sub(before);
    println!(
        "{done} puts, refused {refused:?}; {whole} ranges, {short} refused; at most {} MiB more",
        grown / MIB
    );
    assert!(done > 0 && whole > 0, "nothing was served");
    let known = [
        "Unknown: etcdserver: too many requests",
        "Unavailable: etcdserver: request timed out",
    ];
    for why in refused.keys() {
        assert!(
            known.contains(&why.as_str()) || why.starts_with("ResourceExhausted: "),
            "refused with {why}"
        );
    }
    assert!(grown < GROWTH_MAX, "{} MiB more", grown / MIB);

    let quick = loop {
        let mut took = Vec::new();
        for _ in 0..100 {
            let asked = Instant::now();
            put_at(&rpc, "after", "1").await;
            took.push(asked.elapsed());
        }
        let p99 = percentile(&mut took, 99);
        if p99 < Duration::from_millis(100) {
            break p99;
        }
        assert!(
            over.elapsed() < Duration::from_secs(5),
            "puts take {p99:?} {:?} after the load has gone",
            over.elapsed()
        );
    };
    println!("puts take {quick:?} again after {:?}", over.elapsed());
    quorate_kit::wait::until_async("the memory to be given back", Duration::from_secs(20), || async {
        (own.node.resident_bytes() < before + LEFT_MAX).then_some(())
    })
    .await;
    println!(
        "{} MiB more are left after {:?}",
        own.node.resident_bytes().saturating_sub(before) / MIB,
        over.elapsed()
    );
    assert_serves(&mut own.node).await;
}

/// D20: watchers that never read cost bounded memory and hold nobody up; one that reads sees everything. E7: a
/// thousand of them do not delay the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_watchers_are_bounded_and_exact() {
    const STREAMS: usize = 50;
    const WATCHERS_EACH: usize = 20;
    const WRITES: usize = 3_000;
    const VALUE: usize = 100_000;
    const BUDGET: u64 = 200 << 20; // what is written is 300 MB, and each stalled watcher is owed all of it
    let _turn = alone();
    let mut own = start();
    let rpc = own.node.rpc();
    let create = |watch_id| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "hot".into(),
            watch_id,
            ..WatchCreateRequest::default()
        })),
    };
    let mut stalled = Vec::new();
    for _ in 0..STREAMS {
        // one connection each, so that its windows are all that a stream can have in flight
        let mut raw = Raw::connect(
            own.node.address(),
            Windows {
                stream: 65_535,
                connection: 65_535,
            },
        )
        .await
        .unwrap();
        let (answer, mut stream) = raw
            .start(WATCH, frame(&create(1).encode_to_vec()), false)
            .await
            .unwrap();
        for id in 2..=WATCHERS_EACH as i64 {
            stream.send_data(frame(&create(id).encode_to_vec()), false).unwrap();
        }
        let answer = tokio::time::timeout(Duration::from_secs(5), answer)
            .await
            .expect("watches are created")
            .unwrap();
        stalled.push((raw, stream, answer));
    }
    let before = own.node.resident_bytes();
    let mut reading = own.node.rpc().bidi(WATCH, &create(0)).await.unwrap();
    let created: WatchResponse = reading.next(Duration::from_secs(5)).await.unwrap().unwrap();
    assert!(created.created);
    let reader = tokio::spawn(async move {
        let mut revisions = Vec::new();
        while revisions.len() < WRITES {
            let answer: WatchResponse = reading.next(Duration::from_secs(20)).await.unwrap().unwrap();
            revisions.extend(answer.events.into_iter().map(|event| event.kv.unwrap().mod_revision));
        }
        revisions
    });
    let mut written = Vec::new();
    let mut took = Vec::new();
    for _ in 0..WRITES {
        let asked = Instant::now();
        written.push(put_at(&rpc, "hot", vec![b'x'; VALUE]).await);
        took.push(asked.elapsed());
    }
    assert_eq!(reader.await.unwrap(), written, "the watcher that reads");
    let grown = own.node.peak_resident_bytes().saturating_sub(before);
    let p99 = percentile(&mut took, 99);
    println!(
        "put p99 {p99:?}, {} MiB more for {} stalled watchers",
        grown / MIB,
        STREAMS * WATCHERS_EACH
    );
    assert!(grown < BUDGET, "{} MiB more", grown / MIB);
    assert!(
        p99 < Duration::from_secs(1),
        "puts took {p99:?} beside stalled watchers"
    );
    // the exit does not wait for them
    let (status, took) = own.node.terminate();
    assert_eq!(status.signal(), Some(15));
    assert!(
        took < Duration::from_millis(1_500),
        "took {took:?} to end beside stalled watchers"
    );
    drop(stalled);
}

/// B31, D19, E7: fifty thousand leases with a key each end at the same moment. Puts go on, everything goes, nothing
/// that should stay goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mass_expiry_does_not_stall_puts() {
    const LEASES: i64 = 50_000;
    /// Ten times what granting takes: what ends before all are granted would end by itself.
    const TTL: i64 = 30;
    const CLIENTS: i64 = 64;
    const GONE_MAX: Duration = Duration::from_secs(30);
    const P99_MAX: Duration = Duration::from_millis(500);
    let _turn = alone();
    let own = start();
    let rpc = own.node.rpc();
    let stay: LeaseGrantResponse = rpc
        .unary(
            "/etcdserverpb.Lease/LeaseGrant",
            &LeaseGrantRequest {
                id: 999_999,
                ttl: 3_600,
            },
        )
        .await
        .unwrap();
    let keep = PutRequest {
        key: "keep".into(),
        lease: stay.id,
        ..PutRequest::default()
    };
    let _: quorate_api::proto::etcdserverpb::PutResponse = rpc.unary(crate::support::PUT, &keep).await.unwrap();

    let began = Instant::now();
    let granting: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let rpc = rpc.clone();
            tokio::spawn(async move {
                let ids: Vec<i64> = (1..=LEASES).filter(|id| id % CLIENTS == client).collect();
                for batch in ids.chunks(100) {
                    for id in batch {
                        let grant = LeaseGrantRequest { id: *id, ttl: TTL };
                        let _: LeaseGrantResponse = rpc.unary("/etcdserverpb.Lease/LeaseGrant", &grant).await.unwrap();
                    }
                    let success = batch
                        .iter()
                        .map(|id| {
                            let put = PutRequest {
                                key: format!("leased/{id}").into(),
                                lease: *id,
                                ..PutRequest::default()
                            };
                            RequestOp {
                                request: Some(Request::RequestPut(put)),
                            }
                        })
                        .collect();
                    let txn = TxnRequest {
                        success,
                        ..TxnRequest::default()
                    };
                    let _: TxnResponse = rpc.unary(TXN, &txn).await.unwrap();
                }
            })
        })
        .collect();
    for task in granting {
        task.await.unwrap();
    }
    let granted = began.elapsed();
    assert!(
        granted < Duration::from_secs(TTL as u64),
        "granting took {granted:?}, longer than the leases live"
    );
    // asleep until all of them are over: they end together
    own.node.pause();
    let over = began + granted + Duration::from_secs(TTL as u64 + 1);
    tokio::time::sleep_until(over.into()).await;
    own.node.resume();

    let woke = Instant::now();
    let mut took = Vec::new();
    let gone = loop {
        let asked = Instant::now();
        put_at(&rpc, "alive", "1").await;
        took.push(asked.elapsed());
        if took.len() % 50 == 0 {
            let count = RangeRequest {
                count_only: true,
                ..prefix("leased/")
            };
            let left: RangeResponse = rpc.unary(RANGE, &count).await.unwrap();
            if left.count == 0 {
                break woke.elapsed();
            }
            assert!(
                woke.elapsed() < 3 * GONE_MAX,
                "{} keys left after {:?}",
                left.count,
                woke.elapsed()
            );
        }
    };
    let p99 = percentile(&mut took, 99);
    println!(
        "granted in {granted:?}, gone in {gone:?}, {} puts meanwhile with p99 {p99:?}",
        took.len()
    );
    let leases: LeaseLeasesResponse = rpc
        .unary("/etcdserverpb.Lease/LeaseLeases", &LeaseLeasesRequest {})
        .await
        .unwrap();
    assert_eq!(
        leases.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(),
        [999_999]
    );
    assert_eq!(crate::support::get(&rpc, "keep").await.unwrap().kvs.len(), 1);
    assert!(p99 < P99_MAX, "puts took {p99:?} while leases ended");
    assert!(gone < GONE_MAX, "the keys were gone only after {gone:?}");
}

/// A stream of a range holds a piece of it, however many keys the pieces before had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_stream_comes_in_bounded_pieces() {
    let own = start();
    let rpc = own.node.rpc();
    fill(&rpc, 3_000, 10_000).await;
    // Pieces of small ones double until they have thousands of keys; then come the large ones.
    fill(&rpc, 1_500, 10).await;
    let pieces: Vec<RangeStreamResponse> = rpc
        .collect("/etcdserverpb.KV/RangeStream", &prefix("big/"))
        .await
        .unwrap();
    let pieces: Vec<RangeResponse> = pieces.into_iter().map(|piece| piece.range_response.unwrap()).collect();
    let mut keys_max = 10;
    for (at, piece) in pieces.iter().enumerate() {
        assert!(
            piece.encoded_len() <= (1 << 20) + 100,
            "piece {at} has {} bytes",
            piece.encoded_len()
        );
        assert!(piece.kvs.len() <= keys_max, "piece {at} has {} keys", piece.kvs.len());
        keys_max *= 2;
        let last = at + 1 == pieces.len();
        assert_eq!(
            (piece.header.is_some(), piece.count),
            (last, if last { 3_000 } else { 0 })
        );
    }
    let whole: RangeResponse = rpc.unary(RANGE, &prefix("big/")).await.unwrap();
    let kvs: Vec<_> = pieces.into_iter().flat_map(|piece| piece.kvs).collect();
    assert!(kvs == whole.kvs);
}

/// An answer that is read after all, late, is complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_all_of_its_answer() {
    let own = start();
    fill(&own.node.rpc(), 1_000, 10_000).await;
    let mut raw = Raw::connect(
        own.node.address(),
        Windows {
            stream: 20_000,
            connection: 65_535,
        },
    )
    .await
    .unwrap();
    let (answer, _stream) = raw
        .start(RANGE, frame(&prefix("big/").encode_to_vec()), true)
        .await
        .unwrap();
    for _ in 0..50 {
        put_at(&own.node.rpc(), "other", "1").await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), finish(answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.grpc_status.as_deref(), Some("0"));
    assert!(ended.body_bytes > 10_000_000, "{ended:?}");
}
