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
}

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
    ]
}

#[derive(Clone, Copy)]
struct Kept {
    ttl_secs: i64,
    at_ms: u64,
    ending: bool,
}

/// What the store has, and what a leader would keep of it.
#[derive(Default)]
struct Paper {
    stored: BTreeMap<i64, i64>,
    term: u64,
    kept: Option<BTreeMap<i64, Kept>>,
    now_ms: u64,
}

impl Paper {
    fn keep(&mut self, id: i64, ttl_secs: i64, extend_secs: u64) {
        let kept = Kept {
            ttl_secs,
            at_ms: self.now_ms + 1000 * (extend_secs + ttl_secs as u64),
            ending: false,
        };
        if let Some(all) = &mut self.kept {
            all.insert(id, kept);
        }
    }

    fn renew(&mut self, id: i64) -> Renewal {
        let now_ms = self.now_ms;
        let Some(all) = &mut self.kept else {
            return Renewal::NotLeader;
        };
        match all.get_mut(&id) {
            None => Renewal::Unknown,
            Some(lease) if lease.ending || lease.at_ms <= now_ms => Renewal::Ending,
            Some(lease) => {
                lease.at_ms = now_ms + 1000 * lease.ttl_secs as u64;
                Renewal::Renewed {
                    ttl_secs: lease.ttl_secs,
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
        let queued = lessor.state.lock().as_ref().map_or(0, |leading| leading.queue.len());
        assert!(queued <= 2 * all.len() + QUEUE_SLACK);
    }
}

fn run(steps: Vec<Step>) {
    let clock = Manual::default();
    let lessor = Lessor::new(Box::new(clock.clone()));
    let mut paper = Paper::default();
    for step in steps {
        match step {
            Step::Grant(id, ttl_secs) => {
                paper.stored.insert(id, ttl_secs);
                paper.keep(id, ttl_secs, 0);
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
                let stored: Vec<_> = paper.stored.iter().map(|(id, ttl)| (*id, *ttl)).collect();
                stored.iter().for_each(|(id, ttl)| paper.keep(*id, *ttl, extend_secs));
                let known = |(id, ttl_secs): (i64, i64)| Known {
                    id,
                    ttl_secs,
                    remaining_secs: None,
                };
                let extend = Duration::from_secs(extend_secs);
                lessor.lead(paper.term, extend, || stored.into_iter().map(known).collect());
            }
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
