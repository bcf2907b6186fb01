//! Everything that a store shows, to compare two of them by; and stores that are worth comparing.

use std::fmt::Debug;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{self as pb};
use quorate_api::proto::quorate as wire;
use quorate_api::{KeyRange, LeaseId, MemberId, Revision};
use quorate_store::backend::{self, Applied};
use quorate_store::command::{Command, Outcome};
use quorate_store::{Applier, Options, Origin, Store};

use quorate_store::testing::Rng;

pub fn options() -> Options {
    Options {
        backend: backend::Options {
            reserve_bytes: 0,
            commit_interval: std::time::Duration::from_secs(3600),
            commit_bytes: 64 << 10,
            cache_bytes: 1 << 20,
            ..backend::Options::default()
        },
        value_cache_bytes: 16 << 10,
        background_compaction: false,
        ..Options::default()
    }
}

pub fn everything(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..Default::default()
    }
}

/// All that can be asked of a store, in words.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture(Vec<String>);

impl Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#?}", self.0)
    }
}

pub fn picture(store: &Store) -> Picture {
    let mut all = Vec::new();
    let mut note = |what: &str, value: &dyn Debug| all.push(format!("{what}: {value:?}"));
    let (revision, compacted) = (store.revision().0, store.compacted());
    note("revision", &revision);
    note("compacted", &compacted);
    note("applied", &store.applied_index());
    note("live keys", &store.live_keys());
    for at in compacted.max(1)..=revision {
        // Of the compacted revision itself, a store that was there tells the hash of then; one that came later can't.
        if at > compacted {
            note("hash", &(at, store.hash_kv(at).unwrap().hash));
        }
        if at % 8 == 0 || at == revision {
            note(
                "range",
                &(at, store.range(&everything(at)).unwrap().into_kvs().unwrap()),
            );
        }
    }
    let from = Revision(compacted.max(1));
    let history = store.history(&KeyRange::all(), from, usize::MAX, usize::MAX).unwrap();
    note("history", &(history.through, history.batches));
    for lease in store.leases() {
        note("lease", &(lease, store.lease_keys(lease.id)));
    }
    note("no lease", &store.lease(LeaseId(99)));
    note("members", &store.members());
    note("cluster", &store.cluster_id());
    for id in 0..20 {
        note("removed", &store.is_removed(MemberId(id)));
        note("incarnation", &store.incarnation(MemberId(id)));
        note("origin", &store.origin(id));
    }
    note("alarms", &store.alarms());
    Picture(all)
}

/// A log of everything there is: history, deletions, leases, members, alarms, compaction. Long values among short.
pub struct Feed {
    pub rng: Rng,
    pub index: u64,
}

impl Feed {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            index: 0,
        }
    }

    pub fn found(&mut self, applier: &mut Applier, cluster_id: u64) {
        let members = (1..4).map(|id| member(id, "one")).collect();
        self.apply(applier, Command::ClusterInit(wire::ClusterInit { cluster_id, members }));
        self.index += 1;
        let at = self.at();
        applier
            .apply_empty(at, Some(Bytes::from(format!("voters of {cluster_id}"))))
            .unwrap();
    }

    fn at(&self) -> Applied {
        Applied {
            index: self.index,
            term: 1 + self.index / 50,
        }
    }

    pub fn apply(&mut self, applier: &mut Applier, command: Command) -> Vec<Outcome> {
        self.index += 1;
        let origin = Origin {
            member: 1 + self.index % 3,
            boot: 1 + self.index / 100,
            sequence: self.index,
        };
        let mut outcomes = Vec::new();
        let fresh = applier.apply_once(self.at(), origin, true, vec![command], &mut outcomes);
        assert!(fresh.unwrap());
        outcomes
    }

    pub fn step(&mut self, store: &Store, applier: &mut Applier) -> Vec<Outcome> {
        let rng = &mut self.rng;
        let key = |rng: &mut Rng| Bytes::from(format!("key/{:03}", rng.below(60)));
        let command = match rng.below(20) {
            0 => Command::DeleteRange(pb::DeleteRangeRequest {
                key: key(rng),
                range_end: key(rng),
                prev_kv: false,
            }),
            1 => Command::LeaseGrant(wire::LeaseGrant {
                id: 1 + rng.below(8) as i64,
                ttl_secs: 60,
            }),
            2 => Command::LeaseRevoke(wire::LeaseRevoke {
                id: 1 + rng.below(8) as i64,
                expired_in_term: 0,
            }),
            3 => Command::LeaseCheckpoint(wire::LeaseCheckpoint {
                // of this term, mostly
                term: 1 + (self.index + 1) / 50 - rng.below(4) / 3,
                remainders: vec![wire::LeaseRemainder {
                    id: 1 + rng.below(8) as i64,
                    remaining_secs: 9,
                }],
            }),
            4 => {
                let id = 4 + rng.below(10);
                match rng.below(4) {
                    0 => Command::MemberUpdate(wire::MemberUpdate {
                        id,
                        peer_urls: vec![format!("http://three:{id}")],
                    }),
                    1 => Command::MemberPublish(wire::MemberPublish {
                        id,
                        name: format!("m{id}"),
                        client_urls: vec![format!("http://client:{id}")],
                        incarnation: rng.below(2),
                    }),
                    2 => Command::MemberPromote(wire::MemberPromote { id, strict: false }),
                    _ => Command::MemberAdd(wire::MemberAdd {
                        id,
                        peer_urls: vec![format!("http://two:{id}")],
                        is_learner: rng.chance(50),
                        max_learners: 3,
                        strict: false,
                    }),
                }
            }
            5 => Command::MemberRemove(wire::MemberRemove {
                id: 4 + rng.below(10),
                strict: rng.chance(50),
            }),
            6 => Command::Compact(pb::CompactionRequest {
                revision: store.revision().0 - 20,
                physical: false,
            }),
            _ => {
                let len = if rng.chance(5) { 20_000 } else { rng.below(300) };
                Command::Put(pb::PutRequest {
                    key: key(rng),
                    value: vec![rng.below(256) as u8; len as usize].into(),
                    lease: if rng.chance(20) { 1 + rng.below(8) as i64 } else { 0 },
                    ..Default::default()
                })
            }
        };
        let outcomes = self.apply(applier, command);
        if self.rng.chance(30) {
            applier.compact_step(10).unwrap();
        }
        outcomes
    }

    /// Ends with alarms raised, which forbid to write.
    pub fn steps(&mut self, count: usize, store: &Store, applier: &mut Applier) {
        self.alarms(applier, false);
        for _ in 0..count {
            self.step(store, applier);
        }
        self.alarms(applier, true);
    }

    pub fn alarms(&mut self, applier: &mut Applier, active: bool) {
        for (member_id, alarm) in [(1, 1), (2, 1), (2, 2)] {
            let set = wire::AlarmSet {
                member_id,
                alarm,
                active,
            };
            self.apply(applier, Command::AlarmSet(set));
        }
    }
}

fn member(id: u64, host: &str) -> pb::Member {
    pb::Member {
        id,
        name: format!("m{id}"),
        peer_ur_ls: vec![format!("http://{host}:{id}")],
        ..Default::default()
    }
}
