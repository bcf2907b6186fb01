//! What is promised of a lease whoever leads, held against members that take turns: leaders that do not know yet that they
//! are none, proposals that come late or never, renewals that are answered at the last moment at which they may be.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;

const MEMBERS: usize = 3;
const ELECTION_MS: u64 = 1000;
/// Answers may be given so long after another was elected, see `node/lead.rs`.
const LATE_MS: u64 = ELECTION_MS / 2;
const PERIOD_MS: u64 = 4000;
/// Between two looks of the leader at its clock.
const SCAN_MS: u64 = 700;

#[derive(Clone, Debug)]
enum Step {
    /// TTL in seconds; ids are never used again.
    Grant(i64),
    /// The nth lease, at a member.
    Renew(usize, usize),
    /// Time goes by, the leader looks at its clock, what was proposed is applied.
    Wait(u64),
    /// The leader looks, and nothing is applied yet.
    Look(usize),
    /// A member wins an election. Bits: what becomes of each proposal that is on its way.
    Elect(usize, u64),
    /// A member hears who leads.
    Hear(usize),
    /// The leader has nobody behind it for a while, and goes on. What it had on its way still is.
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let member = || 0..MEMBERS;
    prop_oneof![
        2 => (1..20i64).prop_map(Step::Grant),
        6 => (0..8usize, member()).prop_map(|(nth, member)| Step::Renew(nth, member)),
        12 => (0..=SCAN_MS).prop_map(Step::Wait),
        2 => member().prop_map(Step::Look),
        2 => (member(), any::<u64>()).prop_map(|(member, bits)| Step::Elect(member, bits)),
        2 => member().prop_map(Step::Hear),
        2 => Just(Step::Pause),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Proposal {
    Revoke(i64),
    Note(Remainder),
}

struct Lease {
    ttl_secs: i64,
    remaining_secs: Option<i64>,
    /// Nobody may see it end before.
    promised_ms: u64,
    /// It has to end by then.
    last_ms: u64,
}

struct Cluster {
    clock: Manual,
    lessors: Vec<Lessor>,
    leader: usize,
    term: u64,
    /// When each term began.
    began_ms: BTreeMap<u64, u64>,
    store: BTreeMap<i64, Lease>,
    granted: i64,
    /// Of which term and member.
    on_the_way: Vec<(u64, usize, Proposal)>,
    notes: usize,
}

impl Cluster {
    fn new() -> Self {
        let clock = Manual::default();
        let lessor = || Lessor::with_checkpoints(Box::new(clock.clone()), Duration::from_millis(PERIOD_MS));
        let mut cluster = Self {
            lessors: (0..MEMBERS).map(|_| lessor()).collect(),
            clock,
            leader: 0,
            term: 0,
            began_ms: BTreeMap::new(),
            store: BTreeMap::new(),
            granted: 0,
            on_the_way: Vec::new(),
            notes: 0,
        };
        cluster.elect(0, 0);
        cluster
    }

    fn now_ms(&self) -> u64 {
        self.clock.0.load(Ordering::Relaxed)
    }

    fn grant(&mut self, ttl_secs: i64) {
        self.granted += 1;
        let ends = self.now_ms() + 1000 * ttl_secs as u64;
        let lease = Lease {
            ttl_secs,
            remaining_secs: None,
            promised_ms: ends,
            last_ms: ends + SCAN_MS,
        };
        self.store.insert(self.granted, lease);
        self.lessors[self.leader].granted(self.granted, ttl_secs);
    }

    fn renew(&mut self, nth: usize, member: usize) {
        let now_ms = self.now_ms();
        let Some((id, lease)) = self.store.iter_mut().nth(nth) else {
            return;
        };
        let ends = now_ms + 1000 * lease.ttl_secs as u64;
        let renewal = self.lessors[member].renew(*id);
        if member == self.leader
            && matches!(
                renewal,
                Renewal::Renewed { .. } | Renewal::Reset { .. } | Renewal::Settling
            )
        {
            lease.last_ms = ends + SCAN_MS;
        }
        match renewal {
            Renewal::Renewed { term, .. } => {
                let next = self.began_ms.range(term + 1..).next();
                if next.is_none_or(|(_, began_ms)| now_ms < began_ms + LATE_MS) {
                    lease.promised_ms = lease.promised_ms.max(ends);
                }
            }
            Renewal::Reset { term } => {
                let full = Remainder {
                    id: *id,
                    remaining_secs: 0,
                };
                self.on_the_way.push((term, member, Proposal::Note(full)));
            }
            Renewal::Settling | Renewal::Ending | Renewal::Unknown | Renewal::NotLeader => {}
        }
    }

    fn look(&mut self, member: usize) {
        while let Some((term, ended)) = self.lessors[member].expired(3) {
            let revoke = |id| (term, member, Proposal::Revoke(id));
            self.on_the_way.extend(ended.into_iter().map(revoke));
        }
        while let Some((term, due)) = self.lessors[member].checkpoints(3) {
            let note = |left| (term, member, Proposal::Note(left));
            self.on_the_way.extend(due.into_iter().map(note));
        }
    }

    /// In an entry of `entry`'s term.
    fn apply(&mut self, entry: u64, (term, by, proposal): (u64, usize, Proposal)) {
        let now_ms = self.now_ms();
        match proposal {
            Proposal::Revoke(id) if term == entry => {
                if let Some(lease) = self.store.remove(&id) {
                    assert!(
                        now_ms >= lease.promised_ms,
                        "{id} ends {} ms early",
                        lease.promised_ms - now_ms
                    );
                    assert!(now_ms <= lease.last_ms, "{id} ends {} ms late", now_ms - lease.last_ms);
                }
                self.lessors.iter().for_each(|lessor| lessor.revoked(id));
            }
            Proposal::Revoke(_) => {}
            Proposal::Note(left) => {
                if let Some(lease) = self.store.get_mut(&left.id).filter(|_| term == entry) {
                    lease.remaining_secs = (left.remaining_secs > 0).then_some(left.remaining_secs);
                    self.notes += 1;
                }
                self.lessors[by].noted(term, left);
            }
        }
    }

    fn elect(&mut self, member: usize, fates: u64) {
        let (before, now_ms) = (self.term, self.now_ms());
        let mut late = Vec::new();
        for (nth, proposal) in std::mem::take(&mut self.on_the_way).into_iter().enumerate() {
            match fates >> (2 * (nth % 32)) & 3 {
                0 | 1 => self.apply(before, proposal),
                2 => late.push(proposal),
                _ => {}
            }
        }
        self.on_the_way = late;
        self.term += 1;
        self.leader = member;
        self.began_ms.insert(self.term, now_ms);
        self.lead();
    }

    fn lead(&mut self) {
        for lease in self.store.values_mut() {
            lease.last_ms += ELECTION_MS + SCAN_MS + PERIOD_MS.min(1000 * lease.ttl_secs as u64);
        }
        let known = |(id, lease): (&i64, &Lease)| Known {
            id: *id,
            ttl_secs: lease.ttl_secs,
            remaining_secs: lease.remaining_secs,
        };
        let extend = Duration::from_millis(ELECTION_MS);
        self.lessors[self.leader].lead(self.term, extend, || self.store.iter().map(known).collect());
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Grant(ttl_secs) => self.grant(ttl_secs),
            Step::Renew(nth, member) => self.renew(nth, member),
            Step::Look(member) => self.look(member),
            Step::Elect(member, fates) => self.elect(member, fates),
            Step::Hear(member) if member != self.leader => self.lessors[member].follow(),
            Step::Hear(_) => {}
            Step::Pause => {
                self.lessors[self.leader].suspend();
                self.lead();
            }
            Step::Wait(millis) => {
                self.clock.advance_ms(millis);
                self.look(self.leader);
                for proposal in std::mem::take(&mut self.on_the_way) {
                    self.apply(self.term, proposal);
                }
            }
        }
    }
}

/// B24, B30, B46: no lease ends sooner than its TTL after a renewal that was answered, however many leaders there were
/// since; and every one ends, since each leader adds no more than the election timeout and what was not noted.
#[test]
fn leader_changes_neither_shorten_leases_nor_keep_them() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(config, seed);
    let notes = std::cell::Cell::new(0);
    let ran = runner.run(&proptest::collection::vec(step(), 0..250), |steps| {
        let mut cluster = Cluster::new();
        steps.into_iter().for_each(|step| cluster.step(step));
        for _ in 0..2_000 {
            cluster.step(Step::Wait(SCAN_MS / 2));
        }
        assert!(cluster.store.is_empty(), "they live for ever");
        notes.set(notes.get() + cluster.notes);
        Ok(())
    });
    ran.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(notes.get() > 100, "remainders took no part: {}", notes.get());
}
