//! The whole store against one on paper: every answer, every event, all history, over commands that know no mercy,
//! with compaction and crashes at any point.

#![allow(clippy::unwrap_used)]

mod model {
    pub mod chance;
    pub mod generate;
    pub mod naive;
}

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use model::chance;
use model::generate::{self, Step};
use model::naive::Naive;
use proptest::prelude::*;
use prost::Message;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::{ClusterId, Error as Answer, KeyRange, LeaseId, MemberId, Revision};
use quorate_store::backend::{self, Applied};
use quorate_store::command::{Command, Outcome};
use quorate_store::event::EventBatch;
use quorate_store::watch::History;
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

fn open(path: &Path, events: &Events) -> (Store, Applier) {
    let options = Options {
        backend: backend::Options {
            reserve_bytes: 0,
            commit_interval: std::time::Duration::from_secs(3600),
            ..backend::Options::default()
        },
        // Small, so that values come from everywhere.
        value_cache_bytes: 16 << 10,
        background_compaction: false,
        ..Options::default()
    };
    Store::open(path, options, Box::new(events.clone())).unwrap()
}

/// What the log keeps of an entry, with what it did the first time.
struct Entry {
    at: Applied,
    origin: Origin,
    commands: Vec<Command>,
    /// None: it was not the first of its kind.
    outcomes: Option<Vec<Outcome>>,
}

struct Run {
    folder: tempfile::TempDir,
    events: Events,
    /// None while it is being opened again.
    open: Option<(Store, Applier)>,
    naive: Naive,
    log: Vec<Entry>,
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::default();
        let open = open(&folder.path().join("store"), &events);
        Self {
            folder,
            events,
            open: Some(open),
            naive: Naive::new(),
            log: Vec::new(),
        }
    }

    fn store(&self) -> &Store {
        &self.open.as_ref().unwrap().0
    }

    fn applier(&mut self) -> &mut Applier {
        &mut self.open.as_mut().unwrap().1
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Entry(commands, member, turn) => self.entry(commands, self.naive.origin(member, turn)),
            Step::Blank => self.entry(Vec::new(), Origin::default()),
            Step::Read(requests) => requests.iter().for_each(|request| self.read(request)),
            Step::Txn(request) => self.read_txn(&request),
            Step::Compact(visits) => drop(self.applier().compact_step(visits).unwrap()),
            Step::Flush => drop(self.store().flush().unwrap()),
            Step::Crash => self.crash(),
        }
    }

    fn entry(&mut self, commands: Vec<Command>, origin: Origin) {
        let index = self.log.len() as u64;
        let at = Applied {
            index,
            term: 1 + index / 10,
        };
        let want = self.naive.begins(origin).then(|| {
            let run = |command| {
                let before = self.naive.revision;
                let outcome = self.naive.run(at.term, command);
                assert!(self.naive.revision - before <= 1);
                outcome
            };
            commands.iter().map(run).collect()
        });
        let outcomes = self.apply(at, origin, &commands);
        assert_eq!(outcomes, want);
        self.log.push(Entry {
            at,
            origin,
            commands,
            outcomes,
        });
        let store = self.store();
        assert_eq!(store.revision().0, self.naive.revision);
        assert_eq!(store.compacted(), self.naive.compacted);
        assert_eq!(store.applied_index(), index);
        for member in store.members() {
            assert_eq!(store.is_learner(MemberId(member.id)), member.is_learner);
        }
    }

    /// Applies, and compares the events with what really changed. B7: each is there once.
    fn apply(&mut self, at: Applied, origin: Origin, commands: &[Command]) -> Option<Vec<Outcome>> {
        self.events.0.lock().unwrap().clear();
        let first = self.store().revision().0 + 1;
        let outcomes = self.apply_heard(true, at, origin, commands);
        let last = self.store().revision().0;
        let events = self.events.0.lock().unwrap();
        assert_eq!(events.len() as i64, last + 1 - first);
        for (batch, main) in events.iter().zip(first..) {
            assert_eq!(batch.revision, Revision(main));
            assert_eq!(batch.events, self.naive.events_of(main));
        }
        drop(events);
        outcomes
    }

    fn apply_heard(&mut self, heard: bool, at: Applied, origin: Origin, commands: &[Command]) -> Option<Vec<Outcome>> {
        if commands.is_empty() {
            self.applier().apply_empty(at, None).unwrap();
            return Some(Vec::new());
        }
        // Decoded from bytes, as they come from the log.
        let commands = recode(commands);
        let mut outcomes = Vec::new();
        let applier = self.applier();
        let fresh = applier.apply_once(at, origin, heard, commands, &mut outcomes).unwrap();
        assert!(fresh || outcomes.is_empty());
        fresh.then_some(outcomes)
    }

    /// The same, but for what only an answer needs.
    fn apply_unheard(&mut self, entry: &Entry) {
        let outcomes = self.apply_heard(false, entry.at, entry.origin, &entry.commands);
        let facts = |outcomes: &Option<Vec<Outcome>>| -> Option<Vec<_>> {
            let fact = |outcome: &Outcome| (outcome.revision, outcome.result.as_ref().err().copied());
            Some(outcomes.as_ref()?.iter().map(fact).collect())
        };
        assert_eq!(facts(&outcomes), facts(&entry.outcomes));
    }

    fn read(&self, request: &pb::RangeRequest) {
        let naive = &self.naive;
        let want = match request.revision {
            at if at > naive.revision => Err(Answer::FutureRevision),
            at if at > 0 && at < naive.compacted => Err(Answer::Compacted),
            at if at > 0 => naive.range(request, at),
            _ => naive.range(request, i64::MAX),
        };
        let got = match self.store().range(request) {
            Ok(answer) => {
                assert_eq!(answer.revision.0, naive.revision);
                let len = answer.encoded_len();
                let mut response = pb::RangeResponse {
                    count: answer.count,
                    more: answer.more,
                    ..Default::default()
                };
                let mut again = self.store().range(request).unwrap();
                response.kvs = answer.into_kvs().unwrap();
                let mut pieces = Vec::new();
                while let Some(piece) = again.next_chunk(64).unwrap() {
                    pieces.extend_from_slice(&piece);
                }
                assert_eq!(pieces.len(), len);
                let only_kvs = pb::RangeResponse {
                    kvs: response.kvs.clone(),
                    ..Default::default()
                };
                assert_eq!(pieces, only_kvs.encode_to_vec());
                Ok(response)
            }
            Err(Error::Refused(answer)) => Err(answer),
            Err(other) => panic!("{other}"),
        };
        // Which of two reasons is given first is nobody's business.
        match (got, want) {
            (Err(_), Err(_)) => {}
            (got, want) => assert_eq!(got, want, "{request:?}"),
        }
    }

    fn read_txn(&self, request: &pb::TxnRequest) {
        let succeeded = request.compare.iter().all(|compare| self.naive.holds(compare));
        let mut naive = self.naive.clone();
        let want = naive.run(1, &Command::Txn(request.clone()));
        let got = self.store().read_txn(request);
        match (got, want.result) {
            (Ok(got), Ok(quorate_store::command::Reply::Txn(want))) => {
                assert_eq!((got.succeeded, got.revision.0), (succeeded, self.naive.revision));
                let got: Vec<_> = got
                    .ranges
                    .into_iter()
                    .map(|range| {
                        let (count, more) = (range.count, range.more);
                        pb::RangeResponse {
                            header: None,
                            kvs: range.into_kvs().unwrap(),
                            more,
                            count,
                        }
                    })
                    .collect();
                let want: Vec<_> = want
                    .responses
                    .into_iter()
                    .map(|op| match op.response {
                        Some(pb::response_op::Response::ResponseRange(range)) => {
                            pb::RangeResponse { header: None, ..range }
                        }
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert_eq!(got, want);
            }
            // Alarms forbid what is replicated, and this is not.
            (Ok(_), Err(Answer::Corrupt)) => {}
            (Err(Error::Refused(got)), Err(want)) => assert!(got == want || want == Answer::Corrupt),
            (Ok(_), other) => panic!("answered, should be {other:?}"),
            (Err(error), want) => panic!("{error}, should be {want:?}"),
        }
    }

    /// B1: what the file has, and what the log has behind it, is the same store again.
    fn crash(&mut self) {
        drop(self.open.take());
        self.open = Some(open(&self.folder.path().join("store"), &self.events));
        let applied = self.open.as_ref().unwrap().1.applied();
        let kept = applied.map_or(0, |applied| applied.index + 1) as usize;
        let log = std::mem::take(&mut self.log);
        for entry in &log[kept..] {
            assert_eq!(self.apply(entry.at, entry.origin, &entry.commands), entry.outcomes);
        }
        self.log = log;
        self.compare();
    }

    fn compare(&self) {
        let (store, naive) = (self.store(), &self.naive);
        assert_eq!(
            (store.revision().0, store.compacted()),
            (naive.revision, naive.compacted)
        );
        assert_eq!(store.live_keys(), naive.state(i64::MAX).len());
        for range in [
            KeyRange::all(),
            KeyRange::single(Bytes::from_static(b"a")),
            KeyRange::new(Bytes::from_static(b"ab"), Bytes::from_static(b"c")),
        ] {
            for from in 1..=naive.revision + 1 {
                for (batches_max, bytes_max) in [(1000, 1 << 20), (2, 1 << 20), (1000, 30)] {
                    let got = read_history(store, &range, from, batches_max, bytes_max);
                    let want = (from >= naive.compacted).then(|| naive.history(&range, from));
                    assert_eq!(got, want, "{range:?} from {from}");
                }
            }
        }
        for change in 1..=naive.revision {
            for batch in naive.history(&KeyRange::all(), change).iter().take(1) {
                for event in &batch.events {
                    let got = store.pair_at(&event.key, batch.revision).unwrap();
                    assert_eq!(got, naive.pair_at(&event.key, batch.revision.0));
                }
            }
        }
        // What events replaced, all at once, is the same as one by one.
        let events: Vec<_> = naive
            .history(&KeyRange::all(), 1)
            .into_iter()
            .flat_map(|batch| batch.events)
            .collect();
        let replaced = events.iter().filter_map(|event| Some((&event.key[..], event.prev?)));
        let replaced: Vec<(&[u8], Revision)> = replaced.collect();
        let single = replaced.iter().map(|(key, at)| store.pair_at(key, *at).unwrap());
        assert_eq!(store.pairs_at(&replaced).unwrap(), single.collect::<Vec<_>>());
        for at in naive.compacted.max(1)..=naive.revision {
            self.read(&pb::RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision: at,
                ..Default::default()
            });
        }
        let leases: Vec<_> = store
            .leases()
            .iter()
            .map(|lease| (lease.id.0, lease.ttl_secs, lease.remaining_secs.unwrap_or(0)))
            .collect();
        let want: Vec<_> = naive
            .leases
            .iter()
            .map(|(id, (ttl, remaining))| (*id, *ttl, *remaining))
            .collect();
        assert_eq!(leases, want);
        for id in 1..4 {
            let mut keys = naive.lease_keys(id);
            keys.sort();
            assert_eq!(store.lease_keys(LeaseId(id)), keys);
        }
        assert_eq!(store.members(), naive.members.values().cloned().collect::<Vec<_>>());
        assert_eq!(store.cluster_id(), naive.cluster.map(ClusterId));
        for id in 0..8 {
            assert_eq!(store.is_removed(MemberId(id)), naive.removed.contains(&id));
            let learner = naive.members.get(&id).is_some_and(|member| member.is_learner);
            assert_eq!(store.is_learner(MemberId(id)), learner);
            assert_eq!(store.incarnation(MemberId(id)), naive.incarnations.get(&id).copied());
            assert_eq!(store.origin(id), naive.origins.get(&id).copied());
        }
        let alarms: Vec<_> = store
            .alarms()
            .iter()
            .map(|alarm| (alarm.member_id, alarm.alarm))
            .collect();
        assert_eq!(alarms, naive.alarms.iter().copied().collect::<Vec<_>>());
    }
}

fn recode(commands: &[Command]) -> Vec<Command> {
    let mut batch = bytes::BytesMut::new();
    commands
        .iter()
        .for_each(|command| quorate_store::command::encode_into(&mut batch, command));
    quorate_store::command::decode(batch.freeze()).unwrap()
}

/// All of it, slice by slice; none if compacted.
fn read_history(
    store: &Store,
    range: &KeyRange,
    from: i64,
    batches_max: usize,
    bytes_max: usize,
) -> Option<Vec<EventBatch>> {
    let mut all = Vec::new();
    let mut from = from;
    loop {
        let replay = match store.history(range, Revision(from), batches_max, bytes_max) {
            Ok(replay) => replay,
            Err(Error::Refused(Answer::Compacted)) => return None,
            Err(other) => panic!("{other}"),
        };
        assert!(replay.batches.len() <= batches_max);
        assert!(replay.through.0 >= from || replay.through == Revision(from - 1));
        all.extend(replay.batches);
        if replay.through.0 >= store.revision().0 {
            return Some(all);
        }
        from = replay.through.0 + 1;
    }
}

proptest! {
    #![proptest_config(chance::config(64))]
    /// B32: members come, change and go as on paper, and after every crash. Who was removed stays removed.
    #[test]
    fn its_members_are_those_on_paper(steps in generate::memberships()) {
        let mut run = Run::new();
        steps.into_iter().for_each(|step| run.step(step));
        run.store().flush().unwrap();
        run.crash();
    }

    /// B1, B7, B9, B11, B13, B18, B23, B44 and whatever else the store could get wrong.
    #[test]
    fn it_answers_as_the_one_on_paper(steps in generate::steps()) {
        let mut run = Run::new();
        steps.into_iter().for_each(|step| run.step(step));
        run.compare();
        while run.applier().compact_step(3).unwrap() {}
        run.compare();
        run.store().flush().unwrap();
        run.crash();
        // The whole log again, into a store that never saw any of it, and into one of which nobody hears.
        let mut again = Run::new();
        again.naive = run.naive.clone();
        let mut unheard = Run::new();
        unheard.naive = run.naive.clone();
        let log = std::mem::take(&mut run.log);
        for entry in &log {
            assert_eq!(again.apply(entry.at, entry.origin, &entry.commands), entry.outcomes);
            unheard.apply_unheard(entry);
        }
        again.compare();
        unheard.compare();
    }
}
