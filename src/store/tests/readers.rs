//! Those who read slowly, and those who read what is large: what they see, and what they cost everyone else.

#![allow(clippy::unwrap_used)]

mod kit;

use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::whole::{everything, options};
use prost::Message;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_store::command::Command;
use quorate_store::testing::MemPlace;
use quorate_store::{Applied, Applier, Error, Options, Selection, Store, Taken};

struct Node {
    store: Store,
    applier: Applier,
    index: u64,
}

impl Node {
    fn new(options: Options) -> Self {
        let (store, applier) = Store::open_in(Box::new(MemPlace::default()), options, Box::new(())).unwrap();
        Self {
            store,
            applier,
            index: 0,
        }
    }

    fn apply(&mut self, commands: Vec<Command>) {
        self.index += 1;
        let at = Applied {
            index: self.index,
            term: 1,
        };
        self.applier.apply(at, commands, &mut Vec::new()).unwrap();
    }

    /// One value for each of so many keys.
    fn fill(&mut self, keys: usize, value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        self.apply(
            (0..keys)
                .map(|key| put(&format!("key{key:04}"), value.clone()))
                .collect(),
        );
    }

    /// Removes all history that no reader holds.
    fn compact(&mut self) {
        let revision = self.store.revision().0;
        self.apply(vec![Command::Compact(pb::CompactionRequest {
            revision,
            physical: false,
        })]);
        for _ in 0..20 {
            self.applier.compact_step(10_000).unwrap();
        }
        self.store.flush().unwrap();
    }
}

fn put(key: &str, value: Bytes) -> Command {
    Command::Put(pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value,
        ..Default::default()
    })
}

fn by_value(limit: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        limit,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Value as i32,
        ..everything(0)
    }
}

fn get_all() -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestRange(everything(0))),
    }
}

/// E2: what is written while a client takes its time is held in memory for the queue's sake only.
#[test]
fn a_slow_reader_pins_no_later_writes() {
    let mut node = Node::new(Options {
        value_cache_bytes: 0,
        ..options()
    });
    node.fill(200, &[1; 1000]);
    node.fill(20, &[2; 1000]);
    node.store.flush().unwrap();
    // Larger than what is sent at once; small, for a stream; small ranges that are large together.
    let mut large = node.store.range(&everything(0)).unwrap();
    let small = pb::RangeRequest {
        limit: 20,
        ..everything(0)
    };
    let Selection::Done(mut small) = node.store.select(&small, Taken::Slowly).unwrap() else {
        panic!("20 keys are one slice");
    };
    let txn = pb::TxnRequest {
        success: vec![get_all(); 3],
        ..Default::default()
    };
    let txn = node.store.read_txn(&txn).unwrap();
    for round in 3..40 {
        node.fill(200, &[round; 1000]);
        node.store.flush().unwrap();
    }
    node.compact();
    let start = Instant::now();
    while node.store.sizes().pending_bytes > 300 << 10 {
        let pinned = node.store.sizes().pending_bytes;
        assert!(start.elapsed() < Duration::from_secs(20), "{pinned} bytes stay pinned");
        std::thread::sleep(Duration::from_millis(10));
    }
    // And all of it is as it was.
    let right = |kvs: Vec<quorate_api::proto::mvccpb::KeyValue>, keys: usize| {
        assert_eq!(kvs.len(), keys);
        for (at, kv) in kvs.iter().enumerate() {
            assert_eq!(kv.value, vec![if at < 20 { 2 } else { 1 }; 1000]);
        }
    };
    let mut whole = Vec::new();
    while let Some(piece) = large.next_chunk(5000).unwrap() {
        whole.extend_from_slice(&piece);
    }
    right(pb::RangeResponse::decode(&whole[..]).unwrap().kvs, 200);
    let mut whole = Vec::new();
    while let Some(piece) = small.next_piece(3, usize::MAX) {
        whole.extend_from_slice(&small.encode(&piece).unwrap());
    }
    right(pb::RangeResponse::decode(&whole[..]).unwrap().kvs, 20);
    txn.ranges
        .into_iter()
        .for_each(|range| right(range.into_kvs().unwrap(), 200));
}

/// B9 in spirit: values that a sort is about to read are not compacted away before it has read them.
#[test]
fn a_sort_by_value_survives_compaction() {
    let mut node = Node::new(Options {
        value_cache_bytes: 0,
        ..options()
    });
    node.apply(
        (0..10)
            .map(|key| put(&format!("k{key}"), vec![9 - key; 10].into()))
            .collect(),
    );
    node.store.flush().unwrap();
    for keys_only in [true, false] {
        let request = pb::RangeRequest {
            keys_only,
            ..by_value(0)
        };
        let Selection::Rest(rest) = node.store.select(&request, Taken::AtOnce).unwrap() else {
            panic!("a sort is not done after its first slice");
        };
        node.apply(
            (0..10)
                .map(|key| put(&format!("k{key}"), vec![9 - key; 10].into()))
                .collect(),
        );
        node.compact();
        let answer = rest
            .finish()
            .unwrap_or_else(|error| panic!("keys only {keys_only}: {error}"));
        let keys: Vec<Bytes> = answer.into_kvs().unwrap().into_iter().map(|kv| kv.key).collect();
        let expected: Vec<Bytes> = (0..10).rev().map(|key| format!("k{key}").into()).collect();
        assert_eq!(keys, expected);
        node.compact();
    }
}

/// E2: large values are let go of as soon as they have no chance, and a transaction has one budget for all its ranges.
#[test]
fn range_memory_stays_in_budget() {
    let mut node = Node::new(Options {
        range_bytes_max: 256 << 10,
        ..options()
    });
    for value in 0..10 {
        let key = |n: u8| format!("{value:02}{n:04}");
        node.apply(
            (0..20)
                .map(|n| put(&key(n), vec![200 - value - n; 20_000].into()))
                .collect(),
        );
    }
    let first = node.store.range(&by_value(2)).unwrap().into_kvs().unwrap();
    assert_eq!(
        first.iter().map(|kv| kv.value[0]).collect::<Vec<_>>(),
        [172, 173],
        "4 MB of values, sorted within 256 KiB"
    );
    let all = node.store.range(&by_value(0)).map(drop);
    assert!(matches!(all, Err(Error::Memory { .. })), "{all:?}");
    for key in 0..1000 {
        node.apply(vec![put(&format!("small{key:04}"), Bytes::new())]);
    }
    let sorted = pb::RequestOp {
        request: Some(Request::RequestRange(pb::RangeRequest {
            sort_order: SortOrder::Descend as i32,
            ..everything(0)
        })),
    };
    let txn = |count| pb::TxnRequest {
        success: vec![sorted.clone(); count],
        ..Default::default()
    };
    assert!(node.store.read_txn(&txn(1)).is_ok());
    let many = node.store.read_txn(&txn(128)).map(drop);
    assert!(
        matches!(many, Err(Error::Memory { budget }) if budget == 256 << 10),
        "{many:?}"
    );
}

/// A limited list counts its whole range: one slice of that at a time, for the caller to say where the rest runs.
#[test]
fn the_first_look_at_a_range_is_short() {
    let mut node = Node::new(options());
    node.fill(2500, b"value");
    let one = pb::RangeRequest {
        limit: 1,
        ..everything(0)
    };
    let Selection::Rest(rest) = node.store.select(&one, Taken::AtOnce).unwrap() else {
        panic!("2500 keys in one look");
    };
    node.fill(2500, b"later");
    let answer = rest.finish().unwrap();
    assert_eq!((answer.count, answer.more), (2500, true));
    assert_eq!(answer.into_kvs().unwrap()[0].value, "value");
    let few = pb::RangeRequest {
        range_end: Bytes::from_static(b"key0500"),
        ..one
    };
    assert!(matches!(node.store.select(&few, Taken::AtOnce), Ok(Selection::Done(answer)) if answer.count == 500));
}
