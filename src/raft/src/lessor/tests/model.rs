//! The lessor next to a plain map, under generated operations.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    Expire(usize),
    /// The revocation of the nth lease that is ending got no outcome.
    Retry(usize),
    Lead(u64),
    Follow,
    Wait(u64),
    Checkpoint,
    /// The nth remainder on its way is applied, or its fate is unknown.
    Settle(usize, bool),
}

const CHECKPOINT_MS: u64 = 2000;

fn step() -> impl Strategy<Value = Step> {
    let id = || 0..12i64;
    prop_oneof![
        4 => (id(), 1..6i64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        2 => id().prop_map(Step::Revoke),
        4 => id().prop_map(Step::Renew),
        3 => (1..6usize).prop_map(Step::Expire),
        2 => (0..12usize).prop_map(Step::Retry),
        1 => (0..3u64).prop_map(Step::Lead),
        1 => Just(Step::Follow),
        4 => (0..2500u64).prop_map(Step::Wait),
        3 => Just(Step::Checkpoint),
        4 => (0..6usize, prop::bool::weighted(0.8)).prop_map(|(nth, applied)| Step::Settle(nth, applied)),
    ]
}

#[derive(Clone, Copy)]
struct Kept {
    ttl_secs: i64,
    at_ms: u64,
    ending: bool,
    log: InLog,
    note_ms: Option<u64>,
}

/// What the store has, and what a leader would keep of it.
#[derive(Default)]
struct Paper {
    /// TTL and remainder.
    stored: BTreeMap<i64, (i64, Option<i64>)>,
    /// Proposed and neither applied nor given up.
    on_the_way: Vec<(u64, Remainder)>,
    term: u64,
    kept: Option<BTreeMap<i64, Kept>>,
    now_ms: u64,
}

impl Paper {
    fn keep(&mut self, id: i64, (ttl_secs, left): (i64, Option<i64>), extend_secs: u64) {
        let at_ms = self.now_ms + 1000 * (extend_secs + left.unwrap_or(ttl_secs) as u64);
        let kept = Kept {
            ttl_secs,
            at_ms,
            ending: false,
            log: left.map_or(InLog::Full, |_| InLog::Remainder),
            note_ms: note_ms(self.now_ms, at_ms, ttl_secs),
        };
        if let Some(all) = &mut self.kept {
            all.insert(id, kept);
        }
    }

    fn renew(&mut self, id: i64) -> Renewal {
        let (now_ms, term) = (self.now_ms, self.term);
        let Some(all) = &mut self.kept else {
            return Renewal::NotLeader;
        };
        match all.get_mut(&id) {
            None => Renewal::Unknown,
            Some(lease) if lease.ending || lease.at_ms <= now_ms => Renewal::Ending,
            Some(lease) => {
                lease.at_ms = now_ms + 1000 * lease.ttl_secs as u64;
                lease.note_ms = note_ms(now_ms, lease.at_ms, lease.ttl_secs);
                match lease.log {
                    InLog::Full => Renewal::Renewed {
                        ttl_secs: lease.ttl_secs,
                        term,
                    },
                    InLog::Settling => Renewal::Settling,
                    InLog::Remainder => {
                        lease.log = InLog::Settling;
                        self.on_the_way.push((term, Remainder { id, remaining_secs: 0 }));
                        Renewal::Reset { term }
                    }
                }
            }
        }
    }

    /// Which ones are named is the lessor's choice, how many is not.
    fn expire(&mut self, max: usize, named: Option<(u64, Vec<i64>)>) {
        let due: Vec<_> = self
            .kept
            .iter()
            .flatten()
            .filter(|(_, lease)| !lease.ending && lease.at_ms <= self.now_ms)
            .map(|(id, _)| *id)
            .collect();
        let (term, named) = named.unwrap_or((self.term, Vec::new()));
        assert_eq!((term, named.len()), (self.term, due.len().min(max)));
        for id in named {
            assert!(due.contains(&id), "{id} is not due or was named before");
            let lease = self.kept.as_mut().and_then(|all| all.get_mut(&id));
            assert!(!std::mem::replace(&mut lease.unwrap().ending, true), "{id} twice");
        }
    }

    fn checkpoint(&mut self) -> Option<(u64, Vec<Remainder>)> {
        let now_ms = self.now_ms;
        let mut due = Vec::new();
        for (id, lease) in self.kept.as_mut()? {
            if lease.note_ms.is_none_or(|at| at > now_ms) {
                continue;
            }
            lease.note_ms = note_ms(now_ms, lease.at_ms, lease.ttl_secs);
            let remaining_secs = lease.at_ms.saturating_sub(now_ms).div_ceil(1000) as i64;
            if (1..lease.ttl_secs).contains(&remaining_secs) && !lease.ending && lease.log != InLog::Settling {
                lease.log = InLog::Settling;
                due.push(Remainder {
                    id: *id,
                    remaining_secs,
                });
            }
        }
        self.on_the_way.extend(due.iter().map(|left| (self.term, *left)));
        (!due.is_empty()).then_some((self.term, due))
    }

    /// In an entry of the present term.
    fn settle(&mut self, nth: usize, applied: bool, lessor: &Lessor) {
        if nth >= self.on_the_way.len() {
            return;
        }
        let (term, left) = self.on_the_way.remove(nth);
        if applied {
            lessor.noted(term, left);
        } else {
            lessor.unsettled(term, left.id);
        }
        if term != self.term {
            return;
        }
        let remains = (left.remaining_secs > 0).then_some(left.remaining_secs);
        if let Some(stored) = self.stored.get_mut(&left.id).filter(|_| applied) {
            stored.1 = remains;
        }
        if let Some(lease) = self.kept.as_mut().and_then(|all| all.get_mut(&left.id)) {
            lease.log = match (applied, remains) {
                (true, None) => InLog::Full,
                _ => InLog::Remainder,
            };
        }
    }

    fn compare(&self, lessor: &Lessor) {
        let Some(all) = &self.kept else {
            assert_eq!((lessor.by_deadline(), lessor.time_to_live(1)), (None, Err(NotLeading)));
            return;
        };
        let mut ids: Vec<_> = all.iter().map(|(id, lease)| (lease.at_ms, *id)).collect();
        ids.sort_unstable();
        let ids = ids.into_iter().map(|(_, id)| id).collect();
        assert_eq!(lessor.by_deadline(), Some(ids));
        for id in 0..12 {
            let left = all.get(&id).map(|lease| TimeToLive {
                granted_secs: lease.ttl_secs,
                remaining_secs: (lease.at_ms.saturating_sub(self.now_ms) / 1000) as i64,
            });
            assert_eq!(lessor.time_to_live(id), Ok(left));
        }
        let queued = |leading: &Leading| leading.queue.len().max(leading.notes.len());
        let queued = lessor.state.lock().as_ref().map_or(0, queued);
        assert!(queued <= 2 * all.len() + QUEUE_SLACK);
    }
}

fn note_ms(now_ms: u64, at_ms: u64, ttl_secs: i64) -> Option<u64> {
    let next = now_ms + CHECKPOINT_MS;
    (1000 * ttl_secs as u64 > CHECKPOINT_MS && at_ms > next).then_some(next)
}

fn run(steps: Vec<Step>) {
    let clock = Manual::default();
    let lessor = Lessor::with_checkpoints(Box::new(clock.clone()), Duration::from_millis(CHECKPOINT_MS));
    let mut paper = Paper::default();
    for step in steps {
        match step {
            Step::Grant(id, ttl_secs) => {
                paper.stored.insert(id, (ttl_secs, None));
                paper.keep(id, (ttl_secs, None), 0);
                lessor.granted(id, ttl_secs);
            }
            Step::Revoke(id) => {
                paper.stored.remove(&id);
                if let Some(all) = &mut paper.kept {
                    all.remove(&id);
                }
                lessor.revoked(id);
            }
            Step::Renew(id) => assert_eq!(lessor.renew(id), paper.renew(id)),
            Step::Expire(max) => paper.expire(max, lessor.expired(max)),
            Step::Retry(nth) => {
                let mut ending = paper.kept.iter_mut().flatten().filter(|(_, lease)| lease.ending);
                if let Some((id, lease)) = ending.nth(nth) {
                    lease.ending = false;
                    lessor.retry(*id);
                }
            }
            Step::Lead(extend_secs) => {
                paper.term += 1;
                paper.kept = Some(BTreeMap::new());
                let stored: Vec<_> = paper.stored.iter().map(|(id, stored)| (*id, *stored)).collect();
                stored
                    .iter()
                    .for_each(|(id, stored)| paper.keep(*id, *stored, extend_secs));
                let known = |(id, (ttl_secs, remaining_secs))| Known {
                    id,
                    ttl_secs,
                    remaining_secs,
                };
                let extend = Duration::from_secs(extend_secs);
                lessor.lead(paper.term, extend, || stored.into_iter().map(known).collect());
            }
            Step::Checkpoint => {
                let mut named = lessor.checkpoints(usize::MAX);
                if let Some((_, named)) = &mut named {
                    named.sort_unstable_by_key(|left| left.id);
                }
                assert_eq!(named, paper.checkpoint());
            }
            Step::Settle(nth, applied) => paper.settle(nth, applied, &lessor),
            Step::Follow => {
                paper.kept = None;
                lessor.follow();
            }
            Step::Wait(millis) => {
                paper.now_ms += millis;
                clock.advance_ms(millis);
            }
        }
        paper.compare(&lessor);
    }
}

/// The same cases every time; `PROPTEST_CASES` for more of them.
#[test]
fn it_keeps_time_as_the_one_on_paper() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, seed);
    let ran = runner.run(&proptest::collection::vec(step(), 0..120), |steps| {
        run(steps);
        Ok(())
    });
    ran.unwrap_or_else(|failure| panic!("{failure}"));
}
