//! What went wrong elsewhere, one test each, and what no model of a few keys shows: large ranges, many threads.

#![allow(clippy::unwrap_used)]

#[path = "model/chance.rs"]
mod chance;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message;
use quorate_api::proto::etcdserverpb::request_op::Request;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::quorate as wire;
use quorate_api::{Error as Answer, KeyRange, LeaseId, Revision};
use quorate_store::backend::{self, Applied};
use quorate_store::command::{self, Command, Outcome, Reply};
use quorate_store::event::{EventBatch, EventKind};
use quorate_store::{Applier, Error, EventSink, Options, Origin, Store};

#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Arc<EventBatch>>>>);

impl EventSink for Events {
    fn publish(&self, batches: Vec<Arc<EventBatch>>) {
        self.0.lock().unwrap().extend(batches);
    }

    fn replaced(&self) {
        unreachable!("nothing is installed here");
    }
}

struct Node {
    store: Store,
    applier: Applier,
    events: Events,
    index: u64,
    folder: Arc<tempfile::TempDir>,
}

fn options() -> Options {
    Options {
        backend: backend::Options {
            reserve_bytes: 0,
            ..backend::Options::default()
        },
        background_compaction: false,
        ..Options::default()
    }
}

impl Node {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: Options) -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap()), options)
    }

    fn open(folder: Arc<tempfile::TempDir>, options: Options) -> Self {
        let events = Events::default();
        let path = Path::new(folder.path()).join("store");
        let (store, applier) = Store::open(&path, options, Box::new(events.clone())).unwrap();
        Self {
            index: applier.applied().map_or(0, |applied| applied.index + 1),
            store,
            applier,
            events,
            folder,
        }
    }

    /// Stops at a durable state and starts again.
    fn restart(self) -> Self {
        self.store.flush().unwrap();
        self.crash()
    }

    /// Forgets what is not durable.
    fn crash(self) -> Self {
        let folder = self.folder.clone();
        drop((self.store, self.applier));
        Self::open(folder, options())
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let entry = Applied {
            index: self.index,
            term: 5,
        };
        self.applier.apply(entry, commands, &mut outcomes).unwrap();
        self.index += 1;
        outcomes
    }

    fn one(&mut self, command: Command) -> Result<Reply, Answer> {
        self.apply(vec![command]).remove(0).result
    }

    fn compact_all(&mut self) {
        while self.applier.compact_step(100).unwrap() {}
    }

    fn all(&self, at: i64) -> Result<Vec<(Bytes, Bytes, i64)>, Error> {
        let answer = self.store.range(&everything(at))?;
        let kvs = answer.into_kvs()?;
        Ok(kvs.into_iter().map(|kv| (kv.key, kv.value, kv.mod_revision)).collect())
    }
}

fn everything(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..Default::default()
    }
}

fn put_request(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

fn put(key: &str, value: &str) -> Command {
    Command::Put(put_request(key, value))
}

fn delete_request(key: &'static str, end: &'static str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv: false,
    }
}

fn delete(key: &'static str, end: &'static str) -> Command {
    Command::DeleteRange(delete_request(key, end))
}

fn compact(revision: i64) -> Command {
    Command::Compact(pb::CompactionRequest {
        revision,
        physical: false,
    })
}

fn txn(ops: Vec<Request>) -> Command {
    Command::Txn(pb::TxnRequest {
        compare: Vec::new(),
        success: ops
            .into_iter()
            .map(|request| pb::RequestOp { request: Some(request) })
            .collect(),
        failure: Vec::new(),
    })
}

fn grant(id: i64) -> Command {
    Command::LeaseGrant(wire::LeaseGrant { id, ttl_secs: 60 })
}

fn checkpoint(term: u64, id: i64, remaining_secs: i64) -> Command {
    Command::LeaseCheckpoint(wire::LeaseCheckpoint {
        term,
        remainders: vec![wire::LeaseRemainder { id, remaining_secs }],
    })
}

fn revoke(id: i64, expired_in_term: u64) -> Command {
    Command::LeaseRevoke(wire::LeaseRevoke { id, expired_in_term })
}

fn leased(key: &str, lease: i64) -> Command {
    Command::Put(pb::PutRequest {
        lease,
        ..put_request(key, "leased")
    })
}

/// One of each kind, and what they look like at their worst.
fn every_kind() -> Vec<Command> {
    let member = pb::Member {
        id: 7,
        peer_ur_ls: vec!["http://one:2380".into()],
        ..Default::default()
    };
    vec![
        put("a", "1"),
        delete("a", ""),
        txn(vec![Request::RequestPut(put_request("b", "2"))]),
        compact(2),
        grant(3),
        revoke(3, 0),
        checkpoint(5, 3, 9),
        Command::ClusterInit(wire::ClusterInit {
            cluster_id: 1,
            members: vec![member],
        }),
        Command::MemberPublish(wire::MemberPublish {
            id: 7,
            name: "seven".into(),
            client_urls: vec!["http://one:2379".into()],
            incarnation: 77,
        }),
        Command::MemberAdd(wire::MemberAdd {
            id: 8,
            peer_urls: vec!["http://two:2380".into()],
            is_learner: true,
            max_learners: 1,
            strict: true,
        }),
        Command::MemberUpdate(wire::MemberUpdate {
            id: 8,
            peer_urls: vec!["http://three:2380".into()],
        }),
        Command::MemberPromote(wire::MemberPromote { id: 8, strict: true }),
        Command::MemberRemove(wire::MemberRemove { id: 8, strict: true }),
        Command::AlarmSet(wire::AlarmSet {
            member_id: 7,
            alarm: 1,
            active: true,
        }),
    ]
}

/// B28: a batch that was handed on again after its leader had gone may be in the log twice. Its effects are there once,
/// whatever happens in between: other batches, a crash before or after the commit, an image.
#[test]
fn a_batch_that_the_log_has_twice_is_applied_once() {
    let batch = |boot, sequence| Origin {
        member: 7,
        boot,
        sequence,
    };
    let mut node = Node::new();
    let apply = |node: &mut Node, origin: Origin, key: &'static str| {
        let at = Applied {
            index: node.index,
            term: 5,
        };
        node.index += 1;
        let mut outcomes = Vec::new();
        let fresh = node
            .applier
            .apply_once(at, origin, true, vec![put(key, "value")], &mut outcomes)
            .unwrap();
        assert_eq!(outcomes.len(), usize::from(fresh));
        assert_eq!(
            node.store.applied_index(),
            at.index,
            "the position advances in any case"
        );
        fresh
    };
    assert_eq!(node.store.origin(7), None);
    assert!(apply(&mut node, batch(3, 1), "a"));
    assert!(!apply(&mut node, batch(3, 1), "a"));
    assert!(apply(&mut node, batch(3, 4), "b"));
    assert!(apply(&mut node, batch(3, 3), "overtaken and still wanted"));
    assert!(!apply(&mut node, batch(3, 3), "overtaken and had"));
    let revision = node.store.revision();
    node.store.flush().unwrap();
    node = node.crash();
    assert_eq!(node.store.origin(7), Some((3, 4)));
    assert!(!apply(&mut node, batch(3, 4), "b"));
    assert!(!apply(&mut node, batch(3, 3), "overtaken and had"));
    assert_eq!(node.store.revision(), revision, "nothing was applied twice");
    assert!(apply(&mut node, batch(4, 1), "c"));
    assert!(!apply(&mut node, batch(3, 5), "of before the start"));
    let other = Origin {
        member: 8,
        ..batch(3, 4)
    };
    assert!(apply(&mut node, other, "d"), "each member has its own count");
    for _ in 0..2 {
        assert!(apply(&mut node, Origin::default(), "of nobody's"));
    }
    assert_eq!(node.store.origin(0), None);
    assert_eq!(node.store.revision().0, revision.0 + 4);
}

/// B20: each kind of command moves the applied index in the same commit as its effects; so does an empty entry.
#[test]
fn every_command_kind_saves_applied_index() {
    let mut node = Node::new();
    assert_eq!(node.applier.applied(), None);
    for command in every_kind() {
        let index = node.index;
        let _ = node.one(command);
        node = node.restart();
        assert_eq!(node.applier.applied(), Some(Applied { index, term: 5 }));
    }
    let entry = Applied { index: 90, term: 6 };
    let membership = Bytes::from_static(b"who votes");
    node.applier.apply_empty(entry, Some(membership.clone())).unwrap();
    node = node.restart();
    assert_eq!(node.applier.applied(), Some(entry));
    assert_eq!(node.applier.raft_membership(), Some(membership));
    assert_eq!(node.store.applied_index(), 90);
}

#[test]
fn an_entry_is_applied_once() {
    let mut node = Node::new();
    node.one(put("a", "1")).unwrap();
    let again = node
        .applier
        .apply(Applied { index: 0, term: 5 }, vec![put("a", "2")], &mut Vec::new());
    assert!(matches!(again, Err(Error::OutOfOrder { index: 0, applied: 0 })));
    let after = node
        .applier
        .apply(Applied { index: 1, term: 5 }, vec![put("a", "2")], &mut Vec::new());
    assert!(
        matches!(after, Err(Error::Poisoned)),
        "who got one wrong gets no other right"
    );
}

/// A22, A23, A21, E1: odd numbers, missing parts, empty keys, inverted ranges.
#[test]
fn apply_accepts_any_decodable_command() {
    let odd_range = pb::RangeRequest {
        sort_order: 77,
        sort_target: -1,
        limit: i64::MIN,
        revision: i64::MIN,
        ..Default::default()
    };
    let odd_compare = pb::Compare {
        result: 99,
        target: 99,
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    };
    let mut node = Node::new();
    node.apply(vec![put("a", "1"), grant(1), leased("b", 1)]);
    let commands = [
        Command::Put(pb::PutRequest::default()),
        Command::Put(pb::PutRequest {
            ignore_lease: true,
            ignore_value: true,
            lease: 9,
            ..put_request("a", "kept?")
        }),
        Command::DeleteRange(pb::DeleteRangeRequest::default()),
        delete("z", "a"),
        Command::Txn(pb::TxnRequest::default()),
        Command::Txn(pb::TxnRequest {
            compare: vec![odd_compare.clone(), pb::Compare::default()],
            success: vec![pb::RequestOp { request: None }],
            failure: vec![pb::RequestOp { request: None }],
        }),
        txn(vec![Request::RequestRange(odd_range)]),
        txn(vec![
            Request::RequestPut(put_request("same", "1")),
            Request::RequestPut(put_request("same", "2")),
            Request::RequestDeleteRange(delete_request("same", "")),
            Request::RequestPut(put_request("same", "3")),
        ]),
        txn(vec![
            Request::RequestDeleteRange(delete_request("a", "")),
            Request::RequestPut(pb::PutRequest {
                ignore_value: true,
                ..put_request("a", "")
            }),
        ]),
        compact(i64::MIN),
        compact(i64::MAX),
        grant(0),
        grant(i64::MIN),
        Command::LeaseGrant(wire::LeaseGrant {
            id: 5,
            ttl_secs: i64::MIN,
        }),
        revoke(0, 0),
        Command::LeaseCheckpoint(wire::LeaseCheckpoint::default()),
        Command::MemberAdd(wire::MemberAdd::default()),
        Command::MemberUpdate(wire::MemberUpdate::default()),
        Command::MemberPromote(wire::MemberPromote::default()),
        Command::MemberRemove(wire::MemberRemove::default()),
        Command::MemberPublish(wire::MemberPublish::default()),
        Command::ClusterInit(wire::ClusterInit::default()),
        Command::AlarmSet(wire::AlarmSet {
            member_id: 1,
            alarm: 99,
            active: true,
        }),
    ];
    for command in commands {
        let mut batch = BytesMut::new();
        command::encode_into(&mut batch, &command);
        let read = command::decode(batch.freeze()).unwrap();
        assert_eq!(node.apply(read).len(), 1, "{command:?}");
    }
    let holds = Command::Txn(pb::TxnRequest {
        compare: vec![odd_compare],
        ..Default::default()
    });
    let Ok(Reply::Txn(answer)) = node.one(holds) else {
        panic!("a txn is answered")
    };
    assert!(answer.succeeded, "unknown numbers compare as equal, and hold");
    let node = node.restart();
    assert!(node.store.alarms().is_empty());
    node.all(0).unwrap();
}

proptest! {
    #![proptest_config(chance::config(256))]
    /// A22, A44: whatever bytes decode to, two stores apply alike, and neither panics.
    #[test]
    fn bytes_that_decode_apply(seed in prop::collection::vec(any::<u8>(), 0..24), which in 0..12usize, at in any::<prop::sample::Index>()) {
        let mut bytes = wire::Command { kind: Some(every_kind().swap_remove(which)) }.encode_to_vec();
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..bytes.len().min(at + seed.len() / 2), seed);
        if let Ok(wire::Command { kind: Some(command) }) = wire::Command::decode(Bytes::from(bytes)) {
            let mut batch = BytesMut::new();
            command::encode_into(&mut batch, &command);
            let commands = command::decode(batch.freeze()).unwrap();
            let run = || {
                let mut node = Node::new();
                node.apply(vec![put("a", "1"), grant(3), leased("b", 3)]);
                (node.apply(commands.clone()), node.all(0).unwrap(), node.store.members())
            };
            prop_assert_eq!(run(), run());
        }
    }
}

/// A18, E1.
#[test]
fn unknown_sort_target_is_an_error() {
    let node = Node::new();
    for (sort_order, sort_target) in [(0, 5), (3, 0), (-1, -1)] {
        let request = pb::RangeRequest {
            sort_order,
            sort_target,
            ..everything(0)
        };
        let answer = node.store.range(&request).map(drop);
        assert!(matches!(answer, Err(Error::Refused(Answer::InvalidSortOption))));
    }
}

/// B7: an event comes from an effect, and once.
#[test]
fn txn_delivers_each_event_once() {
    let mut node = Node::new();
    node.one(put("a", "1")).unwrap();
    node.events.0.lock().unwrap().clear();
    node.one(txn(vec![
        Request::RequestPut(put_request("b", "2")),
        Request::RequestDeleteRange(delete_request("a", "c")),
        Request::RequestRange(everything(0)),
        Request::RequestPut(put_request("c", "3")),
    ]))
    .unwrap();
    let events = node.events.0.lock().unwrap();
    assert_eq!(events.len(), 1);
    let keys: Vec<_> = events[0]
        .events
        .iter()
        .map(|event| (&event.key[..], event.prev))
        .collect();
    let want: [(&[u8], _); 4] = [
        (b"b", None),
        (b"a", Some(Revision(2))),
        // What stood before the transaction, as etcd shows it.
        (b"b", None),
        (b"c", None),
    ];
    assert_eq!(keys, want);
    let history = node.store.history(&KeyRange::all(), Revision(3), 10, 1 << 20).unwrap();
    assert_eq!(history.batches, [(*events[0]).clone()]);
}

/// B23
#[test]
fn txn_reads_its_own_deletes() {
    let mut node = Node::new();
    node.apply(vec![put("a", "1"), put("b", "2")]);
    let reply = node.one(txn(vec![
        Request::RequestDeleteRange(delete_request("a", "")),
        Request::RequestRange(everything(0)),
        Request::RequestPut(put_request("c", "3")),
        Request::RequestRange(everything(0)),
        Request::RequestRange(everything(2)),
    ]));
    let Ok(Reply::Txn(reply)) = reply else {
        panic!("{reply:?}")
    };
    let keys: Vec<Vec<&[u8]>> = reply
        .responses
        .iter()
        .filter_map(|op| match &op.response {
            Some(pb::response_op::Response::ResponseRange(range)) => {
                Some(range.kvs.iter().map(|kv| &kv.key[..]).collect())
            }
            _ => None,
        })
        .collect();
    assert_eq!(keys, [vec![&b"b"[..]], vec![b"b", b"c"], vec![b"a"]]);
}

/// B44: what is refused leaves no trace: not in the state, in history, in events, in the revision.
#[test]
fn aborted_txn_is_never_visible() {
    let mut node = Node::new();
    node.apply(vec![put("a", "1"), compact(2)]);
    node.events.0.lock().unwrap().clear();
    let past = |revision| Request::RequestRange(everything(revision));
    let no_lease = pb::PutRequest {
        lease: 99,
        ..put_request("b", "2")
    };
    let absent = pb::PutRequest {
        ignore_value: true,
        ..put_request("b", "")
    };
    for (last, error) in [
        (Request::RequestPut(no_lease), Answer::LeaseNotFound),
        (Request::RequestPut(absent), Answer::KeyNotFound),
        (past(1), Answer::Compacted),
        (past(-1), Answer::Compacted),
        (past(9), Answer::FutureRevision),
    ] {
        let first = Request::RequestPut(put_request("a", "never"));
        let nested = Request::RequestTxn(match txn(vec![last]) {
            Command::Txn(txn) => txn,
            other => panic!("{other:?}"),
        });
        assert_eq!(node.one(txn(vec![first, nested])), Err(error));
    }
    assert_eq!(node.store.revision(), Revision(2));
    assert!(node.events.0.lock().unwrap().is_empty());
    assert_eq!(node.all(0).unwrap(), [("a".into(), "1".into(), 2)]);
    let node = node.restart();
    assert_eq!(node.all(0).unwrap(), [("a".into(), "1".into(), 2)]);
}

/// B24: a leader that has been deposed revokes nothing; its successor and clients do.
#[test]
fn deposed_leader_revokes_nothing() {
    let mut node = Node::new();
    node.apply(vec![grant(1), leased("b", 1), leased("a", 1)]);
    assert_eq!(node.one(revoke(1, 4)), Ok(Reply::Done));
    assert_eq!(node.store.lease_keys(LeaseId(1)), ["a", "b"]);
    node.events.0.lock().unwrap().clear();
    assert_eq!(node.one(revoke(1, 5)), Ok(Reply::LeaseRevoke));
    assert_eq!(node.store.lease(LeaseId(1)), None);
    assert_eq!(node.store.revision(), Revision(4), "one revision for all keys");
    let events = node.events.0.lock().unwrap();
    let keys: Vec<_> = events[0].events.iter().map(|event| event.key.clone()).collect();
    assert_eq!(keys, ["a", "b"], "in byte order");
    assert!(events[0].events.iter().all(|event| event.kind == EventKind::Delete));
}

/// B30: what a leader left of a lease is there after a restart, and so are its keys.
#[test]
fn leases_come_back_with_keys_and_remainder() {
    let mut node = Node::new();
    node.apply(vec![
        grant(-4),
        grant(2),
        leased("a", 2),
        leased("a", -4),
        leased("b", -4),
        checkpoint(5, -4, 17),
    ]);
    let before = node.store.leases();
    let node = node.restart();
    assert_eq!(node.store.leases(), before);
    assert_eq!(node.store.lease(LeaseId(-4)).unwrap().remaining_secs, Some(17));
    assert_eq!(node.store.lease_keys(LeaseId(-4)), ["a", "b"]);
    assert!(node.store.lease_keys(LeaseId(2)).is_empty());
}

/// B30: what an earlier leader left comes too late when its entry is of another term: leases were renewed since.
#[test]
fn a_stale_checkpoint_shortens_nothing() {
    let mut node = Node::new();
    node.apply(vec![grant(1)]);
    let left = |node: &Node| node.store.lease(LeaseId(1)).unwrap().remaining_secs;
    for stale in [4, 6, 0] {
        assert_eq!(node.one(checkpoint(stale, 1, 17)), Ok(Reply::Done));
        assert_eq!(left(&node), None);
    }
    node.one(checkpoint(5, 1, 17)).unwrap();
    node.one(checkpoint(4, 1, 0)).unwrap();
    assert_eq!(left(&node), Some(17));
    node.one(checkpoint(5, 1, 0)).unwrap();
    assert_eq!(left(&node), None, "renewed");
    node.one(checkpoint(5, 2, 17)).unwrap();
    assert!(node.store.lease(LeaseId(2)).is_none(), "none comes to be by it");
}

/// B12: "compacted?" is decided by the order of entries, wherever physical removal stands.
#[test]
fn txn_on_compacted_revision_is_equal_everywhere() {
    let run = |remove: bool| {
        let mut node = Node::new();
        node.apply(vec![
            put("a", "1"),
            put("a", "2"),
            put("b", "3"),
            delete("b", ""),
            put("a", "4"),
        ]);
        node.one(compact(5)).unwrap();
        if remove {
            node.compact_all();
        }
        let reads = (-2..9).map(|revision| node.one(txn(vec![Request::RequestRange(everything(revision))])));
        let reads: Vec<_> = reads.collect();
        let outside: Vec<_> = (1..9)
            .map(|revision| node.all(revision).map_err(|error| error.to_string()))
            .collect();
        let pairs: Vec<_> = (1..9)
            .map(|at| node.store.pair_at(b"a", Revision(at)).unwrap())
            .collect();
        let history = node.store.history(&KeyRange::all(), Revision(5), 10, 1 << 20).unwrap();
        (reads, outside, pairs, history, node.store.hash_kv(0).unwrap())
    };
    assert_eq!(run(false), run(true));
}

/// B11, B13, B47: a deletion at the very revision of the compaction stays visible to who starts there.
#[test]
fn compaction_on_delete_keeps_the_event() {
    let mut node = Node::new();
    node.apply(vec![put("a", "1"), put("b", "2"), delete("a", ""), put("c", "3")]);
    node.one(compact(4)).unwrap();
    node.compact_all();
    for _ in 0..2 {
        let history = node.store.history(&KeyRange::all(), Revision(4), 10, 1 << 20).unwrap();
        assert_eq!(history.batches.len(), 2);
        assert_eq!(history.batches[0].events[0].kind, EventKind::Delete);
        assert_eq!(history.batches[0].events[0].key, "a");
        let below = node.store.history(&KeyRange::all(), Revision(3), 10, 1 << 20);
        assert!(matches!(below, Err(Error::Refused(Answer::Compacted))));
        assert_eq!(node.all(4).unwrap(), [("b".into(), "2".into(), 3)]);
        node = node.restart();
    }
}

/// B9: whatever slice of the removal a crash comes after, no revision is lost.
#[test]
fn crash_in_compaction_never_lowers_revision() {
    let mut node = Node::new();
    for round in 0..4 {
        let puts = (0..300).map(|key| put(&format!("{key:04}"), &format!("{round}")));
        node.apply(puts.collect());
        node.one(delete("0250", "\0")).unwrap();
    }
    let (revision, state) = (node.store.revision(), node.all(0).unwrap());
    node.one(compact(revision.0)).unwrap();
    let mut crashes = 0;
    loop {
        let more = node.applier.compact_step(64).unwrap();
        node = node.restart();
        assert_eq!((node.store.revision(), node.store.compacted()), (revision, revision.0));
        assert_eq!(node.all(0).unwrap(), state);
        crashes += 1;
        // A restart begins the walk anew; let it come one slice further each time.
        for _ in 0..crashes {
            node.applier.compact_step(64).unwrap();
        }
        if !more || crashes > 12 {
            break;
        }
    }
    node.compact_all();
    let node = node.restart();
    let history = node.store.history(&KeyRange::all(), revision, 10, 1 << 20).unwrap();
    assert_eq!(history.batches[0].events.len(), 50, "what the last revision deleted");
    assert_eq!(node.all(0).unwrap(), state);
}

/// Large answers are sent from the index, not from a copy, and stand at one revision while everything moves.
#[test]
fn large_ranges_stand_still_while_the_store_moves() {
    const KEYS: i64 = 5000;
    let mut node = Node::with(Options {
        background_compaction: true,
        value_cache_bytes: 1 << 20,
        ..options()
    });
    let key = |n: i64| format!("key{n:06}");
    // Revision r wrote key (r − 2) mod KEYS, with the value r.
    let batch = move |from: i64| -> Vec<Command> {
        (from..from + 500)
            .map(|r| put(&key((r - 2) % KEYS), &r.to_string()))
            .collect()
    };
    let mut next = 2;
    for _ in 0..20 {
        node.apply(batch(next));
        next += 500;
    }
    let stop = AtomicBool::new(false);
    let store = node.store.clone();
    std::thread::scope(|scope| {
        let reader = |chunk: usize| {
            let (store, stop) = (&store, &stop);
            move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) || rounds < 3 {
                    let mut answer = store.range(&everything(0)).unwrap();
                    let at = answer.revision.0;
                    assert!(answer.memory() < 64 << 10, "{} bytes held", answer.memory());
                    assert_eq!((answer.count, answer.pairs_left()), (KEYS, KEYS as usize));
                    let len = answer.encoded_len();
                    let mut whole = Vec::new();
                    while let Some(piece) = answer.next_chunk(chunk).unwrap() {
                        assert!(piece.len() <= chunk.max(64));
                        whole.extend_from_slice(&piece);
                    }
                    assert_eq!(whole.len(), len);
                    let kvs = pb::RangeResponse::decode(&whole[..]).unwrap().kvs;
                    for (n, kv) in (0..KEYS).zip(kvs) {
                        let written = at - (at - 2 - n).rem_euclid(KEYS);
                        assert_eq!((&kv.key[..], kv.mod_revision), (key(n).as_bytes(), written), "at {at}");
                        assert_eq!(kv.value, written.to_string());
                    }
                    rounds += 1;
                }
            }
        };
        scope.spawn(reader(1 << 20));
        scope.spawn(reader(5000));
        for round in 0..60 {
            node.apply(batch(next));
            next += 500;
            if round % 3 == 0 {
                node.one(compact(next - 1 - 700)).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Everything below the last compaction goes, once nobody reads it.
    let (done, waits) = mpsc::channel();
    store.on_compacted(store.compacted(), move |result| done.send(result).unwrap());
    waits.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    let hash = store.hash_kv(0).unwrap();
    drop(store);
    let node = node.crash();
    assert_eq!(node.store.hash_kv(0).unwrap().compacted, hash.compacted);
}

/// E2: a sort holds about its limit; one without is refused over its budget, and nobody is harmed.
#[test]
fn range_memory_stays_in_budget() {
    let mut node = Node::with(Options {
        range_bytes_max: 256 << 10,
        ..options()
    });
    for batch in 0..20 {
        node.apply((0..1000).map(|n| put(&format!("{batch:02}{n:04}"), "value")).collect());
    }
    let sorted = |limit, sort_target| pb::RangeRequest {
        limit,
        sort_order: 2,
        sort_target,
        ..everything(0)
    };
    for target in 0..5 {
        let answer = node.store.range(&sorted(1, target)).unwrap();
        assert!(answer.memory() < 8 << 10, "{} bytes held for one key", answer.memory());
        assert!(answer.more && answer.count == 20_000);
        let kvs = answer.into_kvs().unwrap();
        assert_eq!(kvs.len(), 1);
        let last = node.store.range(&sorted(0, target)).map(drop);
        assert!(matches!(last, Err(Error::Memory { .. })));
    }
    let newest = node.store.range(&sorted(1, 3)).unwrap().into_kvs().unwrap();
    assert_eq!(newest[0].mod_revision, 20_001);
    let filtered = pb::RangeRequest {
        min_mod_revision: i64::MAX,
        ..everything(0)
    };
    let answer = node.store.range(&filtered).unwrap();
    assert!(answer.memory() < 8 << 10 && answer.encoded_len() == 0 && answer.count == 20_000);
}

/// Deleting a huge prefix is one revision, and its cost follows what it deletes.
#[test]
fn a_huge_delete_is_one_revision() {
    let mut node = Node::new();
    for batch in 0..20 {
        node.apply((0..1000).map(|n| put(&format!("{batch:02}{n:04}"), "value")).collect());
    }
    let reply = node.one(Command::DeleteRange(pb::DeleteRangeRequest {
        prev_kv: true,
        ..delete_request("\0", "\0")
    }));
    let Ok(Reply::DeleteRange(reply)) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!((reply.deleted, reply.prev_kvs.len()), (20_000, 20_000));
    assert!(reply.prev_kvs.is_sorted_by_key(|kv| kv.key.clone()));
    assert!(reply.prev_kvs.iter().all(|kv| kv.value == "value"));
    assert_eq!((node.store.revision().0, node.store.live_keys()), (20_002, 0));
    node.one(compact(20_002)).unwrap();
    node.compact_all();
    node.apply(vec![put("new", "1"), compact(20_003)]);
    node.compact_all();
    let node = node.restart();
    assert_eq!(node.all(0).unwrap(), [("new".into(), "1".into(), 20_003)]);
    assert!(node.store.memory().index_bytes < 4 << 10);
}

/// NOSPACE stops growth and nothing else; CORRUPT stops changes. Compaction and deletes are the way out of the first.
#[test]
fn alarms_forbid_what_makes_things_worse() {
    let alarm = |alarm, active| {
        Command::AlarmSet(wire::AlarmSet {
            member_id: 1,
            alarm,
            active,
        })
    };
    let mut node = Node::new();
    node.apply(vec![put("a", "1"), grant(1), alarm(1, true)]);
    for refused in [
        put("b", "2"),
        grant(2),
        txn(vec![Request::RequestPut(put_request("b", "2"))]),
    ] {
        assert_eq!(node.one(refused), Err(Answer::NoSpace));
    }
    for fine in [
        txn(vec![Request::RequestDeleteRange(delete_request("x", ""))]),
        revoke(1, 0),
        delete("a", ""),
        compact(2),
    ] {
        node.one(fine).unwrap();
    }
    node = node.restart();
    node.one(alarm(1, false)).unwrap();
    node.apply(vec![put("a", "1"), grant(1), alarm(2, true)]);
    for refused in [
        put("b", "2"),
        grant(2),
        txn(Vec::new()),
        revoke(1, 0),
        delete("a", ""),
        compact(3),
    ] {
        assert_eq!(node.one(refused), Err(Answer::Corrupt));
    }
    assert_eq!(node.all(0).unwrap().len(), 1, "reads go on");
    node.one(alarm(2, false)).unwrap();
    node.one(put("b", "2")).unwrap();
}

/// Members' hashes agree whatever their caches, files and removals look like, and differ when the data does.
#[test]
fn equal_stores_have_equal_hashes() {
    let run = |value: &str| {
        let mut node = Node::new();
        node.apply(vec![put("a", "1"), put("b", "2"), delete("a", ""), put("b", value)]);
        node
    };
    let (one, other) = (run("3"), run("3"));
    let hash = one.store.hash_kv(0).unwrap();
    assert_eq!(other.restart().store.hash_kv(0).unwrap(), hash);
    assert_ne!(run("4").store.hash_kv(0).unwrap().hash, hash.hash);
    assert_eq!(
        run("4").store.hash_kv(4).unwrap().hash,
        one.store.hash_kv(4).unwrap().hash
    );
    assert!(matches!(
        one.store.hash_kv(6),
        Err(Error::Refused(Answer::FutureRevision))
    ));
    assert_eq!((hash.at, hash.revision, hash.compacted), (Revision(5), Revision(5), -1));
}

/// What etcd 3.7.1 answered to the same requests, over the same history: hashes with the compactions that they allow
/// for, those of the last ten compactions among them. The one of revision 8 is another one before and after it is
/// compacted, for no key exists there.
#[test]
fn hashes_are_those_of_etcd() {
    let everything = || delete("\0", "\0");
    let steps: Vec<(Vec<Command>, Answers)> = vec![
        (
            vec![
                put("a", "1"),
                put("b", "1"),
                put("a", "2"),
                delete("b", ""),
                put("c", "x"),
            ],
            vec![
                (0, Some((2_393_867_561, -1, 6))),
                (1, Some((1_084_519_789, -1, 1))),
                (2, Some((2_587_454_935, -1, 2))),
                (3, Some((2_143_169_314, -1, 3))),
                (4, Some((3_086_679_940, -1, 4))),
                (5, Some((1_416_966_122, -1, 5))),
                (6, Some((2_393_867_561, -1, 6))),
            ],
        ),
        (
            vec![compact(4)],
            vec![
                (0, Some((2_803_583_115, 4, 6))),
                (4, Some((3_086_679_940, -1, 4))),
                (5, Some((194_725_478, 4, 5))),
                (6, Some((2_803_583_115, 4, 6))),
            ],
        ),
        (
            vec![put("a", "3"), compact(5)],
            vec![
                (4, Some((3_086_679_940, -1, 4))),
                (5, Some((194_725_478, 4, 5))),
                (6, Some((327_828_210, 5, 6))),
                (7, Some((3_800_911_868, 5, 7))),
                (0, Some((3_800_911_868, 5, 7))),
            ],
        ),
        (
            vec![everything()],
            vec![
                (7, Some((3_800_911_868, 5, 7))),
                (8, Some((1_384_936_607, 5, 8))),
                (0, Some((1_384_936_607, 5, 8))),
            ],
        ),
        (
            vec![compact(7)],
            vec![
                (4, Some((3_086_679_940, -1, 4))),
                (5, Some((194_725_478, 4, 5))),
                (6, None),
                (7, Some((3_800_911_868, 5, 7))),
                (8, Some((4_174_515_512, 7, 8))),
                (0, Some((4_174_515_512, 7, 8))),
            ],
        ),
        (
            vec![compact(8)],
            vec![
                (7, Some((3_800_911_868, 5, 7))),
                (8, Some((2_995_024_033, 7, 8))),
                (0, Some((1_084_519_789, 8, 8))),
            ],
        ),
        (
            vec![put("z", "last")],
            vec![
                (8, Some((2_995_024_033, 7, 8))),
                (9, Some((846_934_638, 8, 9))),
                (0, Some((846_934_638, 8, 9))),
            ],
        ),
        (
            vec![compact(9)],
            vec![
                (7, Some((3_800_911_868, 5, 7))),
                (9, Some((846_934_638, 8, 9))),
                (0, Some((846_934_638, 9, 9))),
            ],
        ),
        (
            (10..18)
                .flat_map(|number| [put(&format!("k{number}"), "v"), compact(number)])
                .collect(),
            vec![
                (4, None),
                (5, None),
                (7, None),
                (8, Some((2_995_024_033, 7, 8))),
                (9, Some((846_934_638, 8, 9))),
                (10, Some((2_172_013_579, 9, 10))),
                (17, Some((1_464_717_133, 16, 17))),
            ],
        ),
    ];
    let mut node = Node::new();
    for (number, (commands, answers)) in steps.iter().enumerate() {
        for command in commands {
            node.one(command.clone()).unwrap();
        }
        node.compact_all();
        for (revision, want) in answers {
            assert_eq!(
                hashed(&node, *revision),
                *want,
                "revision {revision} after step {number}"
            );
        }
    }
    // However late removal begins, and however many compactions are in force by then.
    let mut late = Node::new();
    let all = steps
        .iter()
        .flat_map(|(commands, _)| commands.iter().cloned())
        .collect();
    late.apply(all)
        .into_iter()
        .for_each(|outcome| drop(outcome.result.unwrap()));
    late.compact_all();
    for (revision, want) in &steps[steps.len() - 1].1 {
        assert_eq!(hashed(&late, *revision), *want, "revision {revision}");
    }
}

/// Hash, compacted revision and the revision that was hashed; None if it is gone.
type Hashed = Option<(u32, i64, i64)>;
/// For each revision that is asked for.
type Answers = Vec<(i64, Hashed)>;

fn hashed(node: &Node, revision: i64) -> Hashed {
    match node.store.hash_kv(revision) {
        Ok(hash) => Some((hash.hash, hash.compacted, hash.at.0)),
        Err(Error::Refused(Answer::Compacted)) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Whoever waits for a compaction is told in the end, also if the store closes first, and also if it closed before.
#[test]
fn who_waits_for_a_compaction_is_always_answered() {
    for background_compaction in [false, true] {
        let mut node = Node::with(Options {
            background_compaction,
            ..options()
        });
        node.one(put("a", "1")).unwrap();
        let (done, told) = mpsc::channel();
        let ask = |store: &Store| {
            let done = done.clone();
            store.on_compacted(2, move |result| done.send(result.is_ok()).unwrap());
        };
        ask(&node.store);
        drop(node.applier);
        ask(&node.store);
        drop(done);
        assert_eq!(told.iter().collect::<Vec<_>>(), [false, false]);
    }
}

/// A live event is kept as long as its slowest watcher needs it.
#[test]
fn events_take_the_room_they_need() {
    let mut node = Node::new();
    let puts = ["a", "b", "c"].map(|key| Request::RequestPut(put_request(key, "1")));
    node.apply(vec![
        put("a", "1"),
        txn(puts.to_vec()),
        delete("a", ""),
        delete("\0", "\0"),
    ]);
    for batch in node.events.0.lock().unwrap().iter() {
        assert_eq!(batch.events.capacity(), batch.events.len());
    }
}

/// A guard over values holds for every key of its range, also where that takes more than one look.
#[test]
fn value_guards_hold_for_every_key() {
    let guarded = |then: Vec<pb::RequestOp>| pb::TxnRequest {
        compare: vec![pb::Compare {
            result: 0,
            target: 3,
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"l"),
            target_union: Some(pb::compare::TargetUnion::Value(Bytes::from_static(b"same"))),
        }],
        success: then,
        failure: Vec::new(),
    };
    let mut node = Node::with(Options {
        value_cache_bytes: 0,
        ..options()
    });
    let keys: Vec<String> = (0..300).map(|number| format!("k{number:03}")).collect();
    node.apply(keys.iter().map(|key| put(key, "same")).collect());
    node.store.flush().unwrap();
    let holds = |node: &mut Node| {
        let read = node.store.read_txn(&guarded(Vec::new())).unwrap().succeeded;
        let write = pb::RequestOp {
            request: Some(Request::RequestPut(put_request("other", "1"))),
        };
        let Ok(Reply::Txn(applied)) = node.one(Command::Txn(guarded(vec![write]))) else {
            panic!("a transaction")
        };
        assert_eq!(applied.succeeded, read);
        read
    };
    assert!(holds(&mut node));
    for differs in [0, 63, 64, 299] {
        node.one(put(&keys[differs], "other")).unwrap();
        assert!(!holds(&mut node), "key {differs} differs");
        node.one(put(&keys[differs], "same")).unwrap();
    }
    assert!(holds(&mut node));
}

/// E1, E2: a small request can ask for everything, many times over, and its entry is applied again after each start.
/// What would not fit is refused before it does anything, by every member alike.
#[test]
fn answers_that_do_not_fit_are_refused_everywhere() {
    const VALUE: usize = 1 << 20;
    let large = |key: &str| {
        Command::Put(pb::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: vec![b'v'; VALUE].into(),
            ..Default::default()
        })
    };
    let ranges = |count: usize, range: &pb::RangeRequest| vec![Request::RequestRange(range.clone()); count];
    let delete_all = |prev_kv| pb::DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        prev_kv,
    };
    let write_and = |ops: Vec<Request>| {
        let mut all = vec![Request::RequestPut(put_request("w", "1"))];
        all.extend(ops);
        txn(all)
    };
    let first = pb::RangeRequest {
        limit: 1,
        ..everything(0)
    };
    let by_value = pb::RangeRequest {
        limit: 1,
        sort_target: 4,
        sort_order: 1,
        ..everything(0)
    };
    let newest = pb::RangeRequest {
        sort_target: 3,
        sort_order: 2,
        ..first.clone()
    };
    let keys_only = pb::RangeRequest {
        keys_only: true,
        ..everything(0)
    };
    let count_only = pb::RangeRequest {
        count_only: true,
        ..everything(0)
    };
    // Four values of a mebibyte, and a small one before them.
    let refused = [
        write_and(ranges(127, &everything(0))),
        write_and(ranges(17, &everything(6))),
        write_and(ranges(17, &by_value)),
        // What is written first is answered, too.
        txn([
            vec![Request::RequestPut(pb::PutRequest {
                key: Bytes::from_static(b"0"),
                value: vec![b'v'; VALUE].into(),
                ..Default::default()
            })],
            ranges(70, &first),
        ]
        .concat()),
        // And what comes within the limit because something else is gone.
        txn([
            vec![Request::RequestDeleteRange(delete_request("a", ""))],
            ranges(70, &first),
        ]
        .concat()),
        write_and(vec![Request::RequestTxn(pb::TxnRequest {
            success: ranges(40, &everything(0))
                .into_iter()
                .map(|request| pb::RequestOp { request: Some(request) })
                .collect(),
            ..Default::default()
        })]),
    ];
    let fine = [
        write_and(ranges(15, &everything(0))),
        write_and(ranges(127, &first)),
        write_and(ranges(10, &newest)),
        write_and(ranges(127, &keys_only)),
        write_and(ranges(127, &count_only)),
        write_and(vec![Request::RequestDeleteRange(delete_all(true))]),
    ];
    let mut node = Node::new();
    let mut unheard = Node::new();
    let setup = || vec![put("a", "1"), large("b"), large("c"), large("d"), large("e")];
    node.apply(setup());
    unheard.apply(setup());
    let mut both = |commands: Vec<Command>| {
        let entry = Applied {
            index: node.index,
            term: 5,
        };
        let outcomes = node.apply(commands.clone());
        let mut others = Vec::new();
        let nobody = Origin::default();
        unheard
            .applier
            .apply_once(entry, nobody, false, commands, &mut others)
            .unwrap();
        unheard.index += 1;
        let facts = |outcome: &Outcome| (outcome.revision, outcome.result.as_ref().err().copied());
        assert_eq!(
            outcomes.iter().map(facts).collect::<Vec<_>>(),
            others.iter().map(facts).collect::<Vec<_>>()
        );
        let hash = node.store.hash_kv(0).unwrap();
        assert_eq!(unheard.store.hash_kv(0).unwrap(), hash);
        (outcomes, hash)
    };
    let (_, mut before) = both(vec![put("a", "2")]);
    for (number, command) in refused.into_iter().enumerate() {
        let (outcomes, after) = both(vec![command]);
        assert_eq!(outcomes[0].result, Err(Answer::AnswerTooLarge), "refused {number}");
        assert_eq!(after, before, "nothing was changed by {number}");
        before = after;
    }
    for (number, command) in fine.into_iter().enumerate() {
        let (outcomes, after) = both(vec![command]);
        outcomes[0]
            .result
            .as_ref()
            .unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(after.revision.0, before.revision.0 + 1);
        before = after;
    }

    // Answers of one entry are held together: large ones get less and less room, small ones find some all the same.
    both(setup());
    let half = || write_and(ranges(8, &everything(0)));
    let mut crowd: Vec<Command> = (0..20).map(|_| half()).collect();
    crowd.push(Command::Put(pb::PutRequest {
        prev_kv: true,
        ..put_request("b", "small again")
    }));
    let (outcomes, _) = both(crowd);
    let refused = outcomes
        .iter()
        .filter(|outcome| outcome.result == Err(Answer::AnswerTooLarge));
    assert_eq!(refused.count(), 16);
    assert!(outcomes[20].result.is_ok());
    let answers = outcomes.iter().filter(|outcome| outcome.result.is_ok()).count();
    assert_eq!(answers, 5);

    // Deleting everything and asking what it was.
    both((0..70).map(|number| large(&format!("x{number}"))).collect());
    let (outcomes, _) = both(vec![Command::DeleteRange(delete_all(true))]);
    assert_eq!(outcomes[0].result, Err(Answer::AnswerTooLarge));
    let (outcomes, _) = both(vec![Command::DeleteRange(delete_all(false))]);
    assert!(matches!(&outcomes[0].result, Ok(Reply::DeleteRange(deleted)) if deleted.deleted > 70));
}
