//! kill -9 at random points under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, TxnResponse};
use quorate_kit::Rpc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{TXN, get, start};

const ROUNDS: usize = 30;
const WRITERS: usize = 12;
const RESTART_MAX: Duration = Duration::from_secs(1);

/// What one writer knows: the last value that was acknowledged, and the last it tried.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    acknowledged: u64,
    tried: u64,
}

/// D1: no acknowledged write is lost, no revision comes back lower, a transaction is whole or absent, nothing appears
/// that was never tried, and the node is back within a second.
#[test]
fn kill9_loses_nothing() {
    let seed: u64 = std::env::var("QUORATE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0xc4a5);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter(); // clients belong to a runtime
    let mut own = start();
    let mut known = [Known::default(); WRITERS];
    let revision = Arc::new(AtomicI64::new(1));
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (rpc, stop, revision) = (own.node.rpc(), stop.clone(), revision.clone());
                runtime.spawn(write(rpc, writer, known[writer], stop, revision))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(rng.random_range(5..150)));
        own.node.kill();
        stop.store(true, Ordering::Relaxed);
        for (writer, task) in writers.into_iter().enumerate() {
            known[writer] = runtime.block_on(task).unwrap();
        }
        let restarted = Instant::now();
        own.node.restart();
        slowest = slowest.max(restarted.elapsed());
        runtime.block_on(check(
            &own.node.rpc(),
            &mut known,
            revision.load(Ordering::Relaxed),
            round,
        ));
    }
    let total: u64 = known.iter().map(|known| known.acknowledged).sum();
    println!("{total} transactions in {ROUNDS} rounds, slowest restart {slowest:?}");
    assert!(total > 1_000, "only {total} transactions: there was no load");
    assert!(slowest < RESTART_MAX, "a restart took {slowest:?}");
}

/// Counts up in two keys at once until told to stop or cut off.
async fn write(rpc: Rpc, writer: usize, mut known: Known, stop: Arc<AtomicBool>, revision: Arc<AtomicI64>) -> Known {
    while !stop.load(Ordering::Relaxed) {
        known.tried += 1;
        let put = |half: &str| {
            let put = PutRequest {
                key: format!("crash/{writer}/{half}").into(),
                value: known.tried.to_string().into(),
                ..PutRequest::default()
            };
            RequestOp {
                request: Some(Request::RequestPut(put)),
            }
        };
        let txn = TxnRequest {
            success: vec![put("left"), put("right")],
            ..TxnRequest::default()
        };
        let Ok(answer) = rpc.unary::<TxnResponse>(TXN, &txn).await else {
            break;
        };
        known.acknowledged = known.tried;
        revision.fetch_max(answer.header.unwrap().revision, Ordering::Relaxed);
    }
    known
}

async fn check(rpc: &Rpc, known: &mut [Known; WRITERS], revision: i64, round: usize) {
    for (writer, known) in known.iter_mut().enumerate() {
        let mut halves = Vec::new();
        for half in ["left", "right"] {
            let got = get(rpc, format!("crash/{writer}/{half}")).await.unwrap();
            let now = got.header.unwrap().revision;
            assert!(
                now >= revision,
                "round {round}: revision {now} after {revision} was told"
            );
            halves.push(
                got.kvs
                    .first()
                    .map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse::<u64>().unwrap()),
            );
        }
        assert_eq!(
            halves[0], halves[1],
            "round {round}: half a transaction of writer {writer}"
        );
        let Known { acknowledged, tried } = *known;
        assert!(
            (acknowledged..=tried).contains(&halves[0]),
            "round {round}: writer {writer} has {}, acknowledged were {acknowledged}, tried {tried}",
            halves[0]
        );
        *known = Known {
            acknowledged: halves[0],
            tried: halves[0],
        };
    }
}
