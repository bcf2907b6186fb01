//! Sequences from a seed: a small set of keys and leases, so that operations meet; every option of every request;
//! and inputs that must be refused.
//!
//! A sequence is made whole before it runs. It guesses how far the revision will have come, which is enough to ask
//! for the past, the present, the compacted and the future.

mod twice;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::compare::TargetUnion;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::op::{Op, at};

const KEYS: [&[u8]; 14] = [
    b"a",
    b"aa",
    b"ab",
    b"b",
    b"c",
    b"c\0",
    b"d",
    b"k/1",
    b"k/2",
    b"k/3",
    b"l",
    b"zz",
    b"\xff",
    b"\xff\xff",
];
const VALUES: [&[u8]; 6] = [
    b"",
    b"1",
    b"2",
    b"value",
    b"\0\xff",
    b"a rather longer value, as objects have them",
];
/// Lease ids of a sequence; `NO_LEASE` is never granted.
const LEASES: [i64; 6] = [1, 2, 3, 1_000_001, -3, i64::MAX];
const NO_LEASE: i64 = 404;
/// etcd's default for one transaction.
const TXN_OPS_MAX: usize = 128;

/// `count` operations made from `seed`.
pub fn sequence(seed: u64, count: usize) -> Vec<Op> {
    let mut generator = Generator {
        rng: StdRng::seed_from_u64(seed),
        revisions: 0,
        compacted: 0,
        serial: 0,
    };
    (0..count).map(|_| generator.op()).collect()
}

struct Generator {
    rng: StdRng,
    /// A guess at how many revisions the sequence has made.
    revisions: i64,
    compacted: i64,
    serial: i64,
}

impl Generator {
    fn op(&mut self) -> Op {
        self.serial += 1;
        match self.rng.random_range(0..100) {
            0..20 => Op::Range(self.range_anywhere()),
            20..23 => Op::RangeStream(self.range_stream()),
            23..48 => {
                self.revisions += 1;
                Op::Put(self.put())
            }
            48..55 => {
                self.revisions += i64::from(self.chance(60));
                Op::Delete(self.delete())
            }
            55..73 => {
                self.revisions += i64::from(self.chance(60));
                Op::Txn(self.txn_top())
            }
            73..75 => self.compact(),
            75..79 => Op::Grant(self.grant()),
            79..80 => self.grant_and_revoke(),
            80..82 => Op::Revoke(LeaseRevokeRequest { id: self.lease() }),
            82..85 => Op::TimeToLive(LeaseTimeToLiveRequest {
                id: self.lease(),
                keys: self.chance(60),
            }),
            85..86 => Op::Leases(LeaseLeasesRequest {}),
            86..88 => Op::KeepAlive((0..self.rng.random_range(1..4)).map(|_| self.lease()).collect()),
            88..95 => self.watch(),
            95..98 => {
                let watch_id = self.rng.random_range(-1..8);
                Op::Cancel(self.stream(), WatchCancelRequest { watch_id })
            }
            _ => Op::Progress(self.stream()),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    fn stream(&mut self) -> usize {
        self.rng.random_range(0..2)
    }

    fn lease(&mut self) -> i64 {
        if self.chance(12) {
            self.pick(&[NO_LEASE, 0, i64::MIN])
        } else {
            self.pick(&LEASES)
        }
    }

    /// Half of the keys come from the first few, so that versions pile up.
    fn key(&mut self) -> Bytes {
        if self.chance(2) {
            return Bytes::new();
        }
        let among = if self.chance(50) { 4 } else { KEYS.len() };
        Bytes::from_static(KEYS[self.rng.random_range(0..among)])
    }

    fn value(&mut self) -> Bytes {
        if self.chance(3) {
            return Bytes::from(vec![b'x'; self.rng.random_range(500..5_000)]);
        }
        Bytes::from_static(VALUES[self.rng.random_range(0..VALUES.len())])
    }

    /// Key and range end in every form that has a meaning.
    fn span(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let end = match self.rng.random_range(0..10) {
            0..4 => Bytes::new(),
            4..7 => self.key(), // as often backwards as forwards
            7 => Bytes::from_static(b"\0"),
            8 => Bytes::from_static(b"l"), // with key `k`-something: a prefix
            _ => return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        };
        (key, end)
    }

    /// A revision of the past, now and then of the future or compacted, seldom nonsense.
    fn revision(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => at(self.rng.random_range(-2..=self.compacted)),
            1 => at(self.revisions + self.rng.random_range(0..4)),
            2 => at(self.revisions + 10_000),
            3 => self.pick(&[-1, -100, i64::MIN, i64::MAX, 1, 2]),
            _ => {
                let low = self.compacted.min(self.revisions);
                at(self.rng.random_range(low..=self.revisions))
            }
        }
    }

    fn range_anywhere(&mut self) -> RangeRequest {
        let mut range = self.range();
        if self.chance(2) && !range.key.is_empty() {
            // numbers no enum has; only here and in `txn_with_unknown_sort`, see differences.rs
            match self.chance(50) {
                true => range.sort_order = self.pick(&[3, -1, i32::MAX]),
                false => range.sort_target = self.pick(&[5, -1, i32::MAX]),
            }
        }
        range
    }

    fn range(&mut self) -> RangeRequest {
        let (key, range_end) = self.span();
        let mut range = RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        };
        if self.chance(30) {
            range.limit = self.pick(&[1, 2, 3, 5, 1_000, -1, i64::MAX]);
        }
        if self.chance(35) {
            range.revision = self.revision();
        }
        if self.chance(35) {
            range.sort_order = self.rng.random_range(0..3);
            range.sort_target = self.rng.random_range(0..5);
            if range.limit > 0 && range.sort_target != 0 {
                range.limit = 0; // ties have no defined order: which of them a limit keeps is anybody's choice
            }
        }
        range.serializable = self.chance(25);
        range.keys_only = self.chance(15);
        range.count_only = self.chance(10);
        if self.chance(12) {
            for _ in 0..self.rng.random_range(1..3) {
                let bound = self.revision();
                match self.rng.random_range(0..4) {
                    0 => range.min_mod_revision = bound,
                    1 => range.max_mod_revision = bound,
                    2 => range.min_create_revision = bound,
                    _ => range.max_create_revision = bound,
                }
            }
        }
        range
    }

    fn range_stream(&mut self) -> RangeRequest {
        let mut range = self.range();
        if self.chance(80) {
            // the default order in all its spellings
            range.sort_order = 0;
            range.sort_target = 0;
            range.min_mod_revision = 0;
            range.max_mod_revision = 0;
            range.min_create_revision = 0;
            range.max_create_revision = 0;
        }
        if range.sort_order == 0 {
            range.sort_target = 0; // 3.7 sorts each piece by itself then, which adds up to no order at all
        }
        range
    }

    fn put(&mut self) -> PutRequest {
        let mut put = PutRequest {
            key: self.key(),
            value: self.value(),
            ..PutRequest::default()
        };
        if self.chance(25) {
            put.lease = self.lease();
        }
        put.prev_kv = self.chance(30);
        if self.chance(8) {
            put.ignore_value = true;
            if self.chance(80) {
                put.value = Bytes::new();
            }
        }
        if self.chance(8) {
            put.ignore_lease = true;
            if self.chance(80) {
                put.lease = 0;
            }
        }
        put
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, mut range_end) = self.span();
        if self.chance(40) {
            range_end = Bytes::new(); // keep some keys alive
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.chance(40),
        }
    }

    fn txn_top(&mut self) -> TxnRequest {
        match self.rng.random_range(0..100) {
            0 => self.txn_of_many(),
            1 => self.txn_with_unknown_sort(),
            _ => {
                let mut txn = self.txn(2);
                twice::keep_from_writing_twice(&mut txn);
                txn
            }
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compares = self.rng.random_range(0..3);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.branch(depth),
            failure: self.branch(depth),
        }
    }

    /// Mostly without duplicate keys, which are refused.
    fn branch(&mut self, depth: u32) -> Vec<RequestOp> {
        let mut ops: Vec<RequestOp> = Vec::new();
        for _ in 0..self.rng.random_range(0..5) {
            let request = match self.rng.random_range(0..20) {
                0..8 => Request::RequestPut(self.put()),
                8..12 => Request::RequestDeleteRange(self.delete()),
                12..18 => Request::RequestRange(self.range()),
                _ if depth > 0 => Request::RequestTxn(self.txn(depth - 1)),
                _ => Request::RequestRange(self.range()),
            };
            let repeats = match &request {
                Request::RequestPut(put) => ops.iter().any(|op| touches(op, &put.key)),
                _ => false,
            };
            if repeats && !self.chance(10) {
                continue;
            }
            ops.push(RequestOp { request: Some(request) });
        }
        if self.chance(1) {
            ops.push(RequestOp { request: None });
        }
        ops
    }

    /// At the limit of operations, and just past it.
    fn txn_of_many(&mut self) -> TxnRequest {
        let count = TXN_OPS_MAX + usize::from(self.chance(50));
        if self.chance(30) {
            return TxnRequest {
                compare: (0..count).map(|_| self.compare()).collect(),
                ..TxnRequest::default()
            };
        }
        let success = (0..count)
            .map(|n| {
                let put = PutRequest {
                    key: format!("many/{n:03}").into(),
                    ..PutRequest::default()
                };
                RequestOp {
                    request: Some(Request::RequestPut(put)),
                }
            })
            .collect();
        TxnRequest {
            success,
            ..TxnRequest::default()
        }
    }

    fn txn_with_unknown_sort(&mut self) -> TxnRequest {
        let mut range = RangeRequest {
            key: Bytes::from_static(KEYS[0]),
            ..RangeRequest::default()
        };
        match self.chance(50) {
            true => range.sort_order = 3,
            false => range.sort_target = 5,
        }
        TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestRange(range)),
            }],
            ..TxnRequest::default()
        }
    }

    fn compare(&mut self) -> Compare {
        let mut compare = Compare {
            result: self.rng.random_range(0..4),
            target: self.rng.random_range(0..5),
            key: self.key(),
            ..Compare::default()
        };
        compare.target_union = Some(match compare.target {
            0 => TargetUnion::Version(self.rng.random_range(0..3)),
            1 => TargetUnion::CreateRevision(self.revision_or_zero()),
            2 => TargetUnion::ModRevision(self.revision_or_zero()),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(self.lease()),
        });
        match self.rng.random_range(0..40) {
            0 => compare.target = self.rng.random_range(0..5), // maybe not what the union holds
            1 => compare.target_union = None,
            2 => compare.target = self.pick(&[5, -1, i32::MAX]),
            3 => compare.result = self.pick(&[4, -1, i32::MAX]),
            _ => {}
        }
        if self.chance(20) {
            compare.range_end = self.span().1;
        }
        compare
    }

    fn revision_or_zero(&mut self) -> i64 {
        if self.chance(30) { 0 } else { self.revision() }
    }

    fn compact(&mut self) -> Op {
        let revision = match self.rng.random_range(0..6) {
            0 => self.revision(),
            1 => at(self.revisions),
            _ => {
                let low = self.compacted.min(self.revisions);
                at(self.rng.random_range(low..=self.revisions))
            }
        };
        if revision > at(-100) && revision <= at(self.revisions) {
            self.compacted = self.compacted.max(revision - at(0));
        }
        Op::Compact(CompactionRequest {
            revision,
            physical: self.chance(30),
        })
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        // long lives only: none may end while a sequence runs
        let ttl = self.pick(&[600, 3_600, 100_000, 9_000_000_000, 9_000_000_001, i64::MAX]);
        LeaseGrantRequest {
            ttl,
            id: self.pick(&LEASES),
        }
    }

    fn grant_and_revoke(&mut self) -> Op {
        let ttl = self.pick(&[0, -1, 1, 2, 5, 60, i64::MIN]);
        let id = if self.chance(50) { 0 } else { 5_000 + self.serial };
        Op::GrantAndRevoke(LeaseGrantRequest { ttl, id })
    }

    fn watch(&mut self) -> Op {
        let (key, range_end) = self.span();
        let mut create = WatchCreateRequest {
            key,
            range_end,
            ..WatchCreateRequest::default()
        };
        if self.chance(50) {
            create.start_revision = self.revision();
        }
        create.prev_kv = self.chance(50);
        create.fragment = self.chance(20);
        if self.chance(25) {
            create.filters = match self.rng.random_range(0..5) {
                0 => vec![0, 1],
                1 => vec![self.pick(&[2, -1])],
                n => vec![n % 2],
            };
        }
        if self.chance(15) {
            create.watch_id = self.pick(&[1, 2, 5, 77, -5]);
        }
        if create.start_revision < 0 {
            // refused by one side, a zombie on the other: an id of its own keeps the later ids equal
            create.watch_id = 90_000 + self.serial;
        }
        Op::Watch(self.stream(), create)
    }
}

fn touches(op: &RequestOp, key: &Bytes) -> bool {
    match &op.request {
        Some(Request::RequestPut(put)) => put.key == key,
        Some(Request::RequestDeleteRange(delete)) => {
            delete.key == key || (delete.range_end > *key && delete.key <= *key)
        }
        Some(Request::RequestTxn(txn)) => txn.success.iter().chain(&txn.failure).any(|inner| touches(inner, key)),
        Some(Request::RequestRange(_)) | None => false,
    }
}
