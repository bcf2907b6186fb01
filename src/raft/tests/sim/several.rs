//! Requests that touch several keys at once: transactions and deletions of ranges, and reads of all of it. What each
//! was answered is held against what was there at its revision, all keys together.

use crate::clients::{Asked, kv};
use crate::machine::ELECTION;
use crate::tap::{Applied, left_by};
use crate::world::World;
use bytes::Bytes;
use quorate_api::proto::etcdserverpb as pb;
use quorate_api::proto::etcdserverpb::request_op::Request as TxnOp;
use quorate_api::proto::etcdserverpb::response_op::Response as TxnAnswer;
use quorate_api::proto::mvccpb::KeyValue;
use quorate_kit::check::{Kv, Time};
use quorate_raft::ProposeError;
use quorate_store::command::{Command, Reply};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::time::sleep;

/// What these keys begin with.
const PREFIX: &[u8] = b"m/";
const PREFIX_END: &[u8] = b"m0";
const KEYS: u64 = 6;

/// All of these keys that exist.
type Pairs = BTreeMap<Bytes, Kv>;

/// One request and what came of it; those that were certainly not done are left out.
#[derive(Debug)]
pub struct Done {
    called: Time,
    returned: Time,
    what: What,
    /// `None`: of unknown fate.
    outcome: Option<(i64, Answer)>,
}

#[derive(Debug)]
enum What {
    Look {
        serializable: bool,
    },
    /// If all keys are as they were last seen (by their revisions): writes to some, deletes from `above` on, and shows
    /// what there is then. Otherwise shows what there is.
    Change {
        expected: BTreeMap<Bytes, i64>,
        put: BTreeSet<Bytes>,
        value: Bytes,
        above: Bytes,
    },
    Clear {
        from: Bytes,
        end: Bytes,
    },
}

#[derive(Debug)]
enum Answer {
    Looked(Pairs),
    Changed { deleted: i64, then: Pairs },
    NotChanged(Pairs),
    Cleared(Pairs),
}

impl Done {
    fn changed_at(&self) -> Option<i64> {
        match &self.outcome {
            Some((revision, Answer::Changed { .. })) => Some(*revision),
            Some((revision, Answer::Cleared(gone))) if !gone.is_empty() => Some(*revision),
            _ => None,
        }
    }

    fn saw(&self) -> Option<&Pairs> {
        match &self.outcome {
            Some((_, Answer::Looked(seen) | Answer::NotChanged(seen) | Answer::Changed { then: seen, .. })) => {
                Some(seen)
            }
            _ => None,
        }
    }
}

fn key(number: u64) -> Bytes {
    format!("m/{number}").into()
}

/// One request after the other, until the world is over.
pub async fn run(world: Arc<World>, number: usize) {
    let dice = &world.clients;
    let mut home = world.some_member();
    let mut written = 0;
    let mut known = None;
    while !world.is_over() {
        sleep(dice.millis(1..world.plan.think_ms + 2)).await;
        if dice.chance(20) {
            home = world.some_member();
        }
        let what = match (dice.below(10), known.take()) {
            (0..6, Some(expected)) => {
                written += 1;
                // A transaction may not write what it deletes.
                let above = 2 + dice.below(KEYS);
                What::Change {
                    expected,
                    put: (0..above.min(KEYS))
                        .filter(|_| dice.chance(50))
                        .chain([0])
                        .map(key)
                        .collect(),
                    value: format!("{number}.{written}").into(),
                    above: key(above),
                }
            }
            (6, _) => {
                let from = dice.below(KEYS);
                What::Clear {
                    from: key(from),
                    end: key(from + 1 + dice.below(3)),
                }
            }
            (7..9, _) => What::Look { serializable: true },
            _ => What::Look { serializable: false },
        };
        let called = world.around.trace.tick();
        let Some(outcome) = perform(&world, home, &what).await else {
            home = world.some_member();
            continue;
        };
        let done = Done {
            called,
            returned: world.around.trace.tick(),
            what,
            outcome,
        };
        world.around.trace.note(format_args!("at {home}: {done:?}"));
        let all = |seen: &Pairs| {
            let revision = |key: &Bytes| seen.get(key).map_or(0, |kv| kv.mod_revision);
            (0..KEYS).map(key).map(|key| (key.clone(), revision(&key))).collect()
        };
        known = done.saw().map(all);
        world.several.lock().push(done);
    }
}

/// `None`: it was certainly not done.
async fn perform(world: &Arc<World>, member: u64, what: &What) -> Option<Option<(i64, Answer)>> {
    let patience = ELECTION * (2 + world.clients.below(5) as u32);
    let command = match what {
        What::Look { serializable } => {
            let range = pb::RangeRequest {
                serializable: *serializable,
                ..all()
            };
            return match world.range(member, patience, range).await {
                Asked::Done((revision, kvs)) => Some(Some((revision, Answer::Looked(pairs(&kvs))))),
                Asked::Unknown => Some(None),
                Asked::Down => None,
            };
        }
        What::Change {
            expected,
            put,
            value,
            above,
        } => Command::Txn(change(expected, put, value, above)),
        What::Clear { from, end } => Command::DeleteRange(pb::DeleteRangeRequest {
            key: from.clone(),
            range_end: end.clone(),
            prev_kv: true,
        }),
    };
    let (revision, reply) = match world.command(member, patience, command).await {
        Asked::Done(Ok(done)) => done,
        Asked::Down | Asked::Done(Err(ProposeError::TooManyRequests | ProposeError::NoSpace)) => return None,
        Asked::Unknown | Asked::Done(Err(ProposeError::Unknown | ProposeError::Stopped)) => return Some(None),
    };
    let answer = match &reply {
        Ok(Reply::DeleteRange(deleted)) if deleted.deleted == deleted.prev_kvs.len() as i64 => {
            Some(Answer::Cleared(pairs(&deleted.prev_kvs)))
        }
        Ok(Reply::Txn(txn)) => answer(txn),
        _ => None,
    };
    if answer.is_none() {
        let trace = &world.around.trace;
        trace.fail(format_args!("an answer to something else: {reply:?} to {what:?}"));
    }
    answer.map(|answer| Some((revision, answer)))
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(PREFIX),
        range_end: Bytes::from_static(PREFIX_END),
        ..Default::default()
    }
}

fn change(expected: &BTreeMap<Bytes, i64>, put: &BTreeSet<Bytes>, value: &Bytes, above: &Bytes) -> pb::TxnRequest {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let op = |request| pb::RequestOp { request: Some(request) };
    let compare = |(key, revision): (&Bytes, &i64)| pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(*revision)),
        ..Default::default()
    };
    let puts = put.iter().map(|key| {
        op(TxnOp::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..Default::default()
        }))
    });
    let delete = op(TxnOp::RequestDeleteRange(pb::DeleteRangeRequest {
        key: above.clone(),
        range_end: Bytes::from_static(PREFIX_END),
        prev_kv: false,
    }));
    let look = || op(TxnOp::RequestRange(all()));
    pb::TxnRequest {
        compare: expected.iter().map(compare).collect(),
        success: puts.chain([delete, look()]).collect(),
        failure: vec![look()],
    }
}

fn answer(txn: &pb::TxnResponse) -> Option<Answer> {
    let mut deleted = None;
    let mut seen = None;
    for response in txn.responses.iter().filter_map(|response| response.response.as_ref()) {
        match response {
            TxnAnswer::ResponseDeleteRange(answer) => deleted = Some(answer.deleted),
            TxnAnswer::ResponseRange(answer) => seen = Some(pairs(&answer.kvs)),
            _ => {}
        }
    }
    match (txn.succeeded, deleted) {
        (true, Some(deleted)) => Some(Answer::Changed { deleted, then: seen? }),
        (false, None) => Some(Answer::NotChanged(seen?)),
        _ => None,
    }
}

fn pairs(kvs: &[KeyValue]) -> Pairs {
    kvs.iter().map(|found| (found.key.clone(), kv(found))).collect()
}

/// What there was at each revision that changed it, and what that changed: a pair, or that there is none any more.
struct States {
    after: BTreeMap<i64, Pairs>,
    changes: BTreeMap<i64, BTreeMap<Bytes, Option<Kv>>>,
}

impl States {
    fn of<'a>(applied: impl Iterator<Item = (&'a i64, &'a Applied)>) -> Self {
        let mut states = Self {
            after: BTreeMap::from([(0, Pairs::new())]),
            changes: BTreeMap::new(),
        };
        let mut now = Pairs::new();
        for (revision, applied) in applied {
            for event in applied.events().iter().filter(|event| event.key.starts_with(PREFIX)) {
                let new = left_by(event, *revision);
                match &new {
                    Some(kv) => now.insert(event.key.clone(), kv.clone()),
                    None => now.remove(&event.key),
                };
                let changes = states.changes.entry(*revision).or_default();
                changes.insert(event.key.clone(), new);
            }
            if states.changes.contains_key(revision) {
                states.after.insert(*revision, now.clone());
            }
        }
        states
    }

    fn at(&self, revision: i64) -> &Pairs {
        let (_, there) = self.after.range(..=revision).next_back().expect("there is one of 0");
        there
    }

    fn explain(&self, done: &Done) -> Result<(), String> {
        let Some((revision, answer)) = &done.outcome else {
            return Ok(());
        };
        let there = self.at(*revision);
        let before = self.at(revision - 1);
        let changed = self.changes.get(revision);
        let nothing = BTreeMap::new();
        let changed = changed.unwrap_or(&nothing);
        let is = |expected: &BTreeMap<Bytes, i64>, state: &Pairs| {
            let revision = |key| state.get(key).map_or(0, |kv: &Kv| kv.mod_revision);
            expected.iter().all(|(key, expected)| revision(key) == *expected)
        };
        let explained = match (&done.what, answer) {
            (What::Look { .. }, Answer::Looked(seen)) => seen == there,
            (What::Change { expected, .. }, Answer::NotChanged(seen)) => seen == there && !is(expected, there),
            (
                What::Change {
                    expected,
                    put,
                    value,
                    above,
                },
                Answer::Changed { deleted, then },
            ) => {
                let gone: Vec<&Bytes> = before.range(above.clone()..).map(|(key, _)| key).collect();
                let written = |key: &Bytes| matches!(changed.get(key), Some(Some(kv)) if kv.value == value);
                is(expected, before)
                    && then == there
                    && *deleted == gone.len() as i64
                    && gone.iter().all(|key| changed.get(*key) == Some(&None))
                    && put.iter().all(written)
                    && changed.len() == put.len() + gone.len()
            }
            (What::Clear { from, end }, Answer::Cleared(gone)) => {
                let range = || from.clone()..end.clone();
                let expected: Pairs = before
                    .range(range())
                    .map(|(key, kv)| (key.clone(), kv.clone()))
                    .collect();
                match gone.is_empty() {
                    true => there.range(range()).next().is_none(),
                    false => {
                        *gone == expected && changed.keys().eq(gone.keys()) && changed.values().all(Option::is_none)
                    }
                }
            }
            _ => false,
        };
        match explained {
            true => Ok(()),
            false => Err(format!("{done:?}, but before that was {before:?} and then {there:?}")),
        }
    }

    /// Every change was asked for, and done once.
    fn are_accounted_for(&self, all: &[Done]) -> Result<(), String> {
        let done_at: HashMap<i64, &Done> = all.iter().filter_map(|done| Some((done.changed_at()?, done))).collect();
        let mut of_unknown_fate = HashMap::new();
        let mut clears = 0;
        for done in all.iter().filter(|done| done.outcome.is_none()) {
            match &done.what {
                What::Change { value, .. } => _ = of_unknown_fate.insert(value, done),
                What::Clear { .. } => clears += 1,
                What::Look { .. } => {}
            }
        }
        for (revision, changed) in self
            .changes
            .iter()
            .filter(|(revision, _)| !done_at.contains_key(revision))
        {
            let put = changed.values().flatten().next();
            let may_be = match put {
                Some(kv) => of_unknown_fate.remove(&kv.value).is_some(),
                None => {
                    clears -= 1;
                    clears >= 0
                }
            };
            if !may_be {
                return Err(format!(
                    "nobody asked for {changed:?} of revision {revision}, or not twice"
                ));
            }
        }
        Ok(())
    }
}

/// Revisions never go back from an answer to a later call.
fn real_time(all: &[Done]) -> Result<(), String> {
    let is_ordered = |done: &&Done| !matches!(done.what, What::Look { serializable: true });
    let mut answered: Vec<(Time, i64)> = all
        .iter()
        .filter(is_ordered)
        .filter_map(|done| Some((done.returned, done.outcome.as_ref()?.0)))
        .collect();
    answered.sort_unstable();
    let mut newest = 0;
    for (_, revision) in &mut answered {
        newest = newest.max(*revision);
        *revision = newest;
    }
    for done in all.iter().filter(is_ordered) {
        let Some((revision, _)) = done.outcome else { continue };
        let before = answered.partition_point(|(returned, _)| *returned < done.called);
        let least = before.checked_sub(1).map_or(0, |last| answered[last].1) + i64::from(done.changed_at().is_some());
        if revision < least {
            return Err(format!("{done:?}, called after revision {least} was answered"));
        }
    }
    Ok(())
}

/// Whether what was answered can have come from one store that does one thing after the other.
pub fn judge<'a>(all: &[Done], applied: impl Iterator<Item = (&'a i64, &'a Applied)>) -> Result<(), String> {
    let states = States::of(applied);
    all.iter().try_for_each(|done| states.explain(done))?;
    states.are_accounted_for(all)?;
    real_time(all)
}
