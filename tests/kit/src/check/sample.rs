//! Histories as a correct store, or one with a known bug, would leave them behind.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;

use super::{Answer, Change, Event, History, Keys, Kv, Op, Outcome, Previous, Request, Time, Truth};

/// What one client does next.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    client: usize,
    key: usize,
    kind: Kind,
    /// Between the last answer and this call, the call and its effect, the effect and the answer.
    ticks: [Time; 3],
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Get,
    GetSerializable,
    Put,
    PutAndTell,
    SwapCurrent,
    SwapAbsent,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    Failed,
    /// Nobody is told, but it happened.
    Happened,
    /// The same, long after everybody gave up on it.
    HappenedLate,
    Lost,
}

/// What is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// The operation is acknowledged, but not kept.
    Loses(usize),
    /// The operation is done once more later.
    Repeats(usize),
}

pub(super) fn plans(most: usize, certain: bool) -> impl Strategy<Value = Vec<Plan>> {
    let kind = prop_oneof![
        4 => Just(Kind::Get),
        1 => Just(Kind::GetSerializable),
        3 => Just(Kind::Put),
        2 => Just(Kind::PutAndTell),
        2 => Just(Kind::SwapCurrent),
        1 => Just(Kind::SwapAbsent),
        2 => Just(Kind::Delete),
    ];
    let fate = prop_oneof![
        12 => Just(Fate::Answered),
        1 => Just(Fate::Failed),
        1 => Just(Fate::Happened),
        1 => Just(Fate::HappenedLate),
        1 => Just(Fate::Lost),
    ];
    let plan = (0..6usize, 0..2usize, kind, prop::array::uniform3(0..6u64), fate);
    prop::collection::vec(plan, 1..most).prop_map(move |plans| {
        let plans = plans.into_iter().map(|(client, key, kind, ticks, fate)| Plan {
            client,
            key,
            kind,
            ticks,
            fate: if certain { Fate::Answered } else { fate },
        });
        plans.collect()
    })
}

/// Carries the plans out. Operations keep their places.
pub(super) fn carry_out(plans: &[Plan], bug: Bug) -> (History, Vec<Event>) {
    let mut free: HashMap<usize, Time> = HashMap::new();
    let mut ops = Vec::new();
    // by time of the effect, then by number
    let mut effects = BTreeMap::new();
    for (number, plan) in plans.iter().enumerate() {
        let client = free.entry(plan.client).or_default();
        let called = *client + plan.ticks[0];
        let effect = called + plan.ticks[1];
        let returned = effect + plan.ticks[2];
        *client = returned + 1;
        match plan.fate {
            Fate::HappenedLate => effects.insert((returned + 30, number), number),
            Fate::Failed | Fate::Lost => None,
            Fate::Answered | Fate::Happened => effects.insert((effect, number), number),
        };
        if bug == Bug::Repeats(number) {
            effects.insert((returned + 5, number), number);
        }
        let value = Bytes::from(format!("v{number}"));
        ops.push(Op {
            client: plan.client,
            key: format!("k/{}", plan.key).into(),
            called,
            returned,
            request: match plan.kind {
                Kind::Get => Request::Get { serializable: false },
                Kind::GetSerializable => Request::Get { serializable: true },
                Kind::Put | Kind::PutAndTell => Request::Put(value),
                // what is current is known when it happens
                Kind::SwapCurrent | Kind::SwapAbsent => Request::Swap(None, value),
                Kind::Delete => Request::Delete,
            },
            outcome: match plan.fate {
                Fate::Failed => Outcome::Failed,
                _ => Outcome::Unknown,
            },
        });
    }
    let mut store = Store {
        revision: 1,
        held: HashMap::new(),
        events: Vec::new(),
    };
    for number in effects.into_values() {
        let (op, plan) = (&mut ops[number], &plans[number]);
        if let (Kind::SwapCurrent, Request::Swap(expected, _)) = (plan.kind, &mut op.request) {
            *expected = store.held.get(&op.key).map(|kv| kv.mod_revision);
        }
        let before = store.held.get(&op.key).cloned();
        let answer = store.apply(op, matches!(plan.kind, Kind::PutAndTell | Kind::Delete));
        let revision = store.revision;
        if bug == Bug::Loses(number) && op_changes(&answer) {
            store.events.pop();
            match before {
                Some(kv) => store.held.insert(op.key.clone(), kv),
                None => store.held.remove(&op.key),
            };
        }
        if plan.fate == Fate::Answered && op.outcome == Outcome::Unknown {
            op.outcome = Outcome::Done(revision, answer);
        }
    }
    (History { ops }, store.events)
}

pub(super) fn truth(events: Vec<Event>) -> Truth {
    Truth::new(Keys::prefix("k/"), events).unwrap()
}

fn op_changes(answer: &Answer) -> bool {
    matches!(answer, Answer::Put(_) | Answer::Swapped | Answer::Deleted(_))
}

struct Store {
    revision: i64,
    held: HashMap<Bytes, Kv>,
    events: Vec<Event>,
}

impl Store {
    fn apply(&mut self, op: &Op, tells: bool) -> Answer {
        let found = self.held.get(&op.key).cloned();
        let previous = if tells {
            Previous::Was(found.clone())
        } else {
            Previous::NotAsked
        };
        match &op.request {
            Request::Get { .. } => Answer::Got(found),
            Request::Put(value) => {
                self.put(op, value);
                Answer::Put(previous)
            }
            Request::Swap(expected, value) => {
                if found.as_ref().map(|kv| kv.mod_revision) != *expected {
                    return Answer::NotSwapped(found);
                }
                self.put(op, value);
                Answer::Swapped
            }
            Request::Delete if found.is_none() => Answer::NotDeleted,
            Request::Delete => {
                self.revision += 1;
                self.held.remove(&op.key);
                self.tell(op, Change::Delete, found);
                Answer::Deleted(previous)
            }
        }
    }

    fn put(&mut self, op: &Op, value: &Bytes) {
        self.revision += 1;
        let found = self.held.get(&op.key).cloned();
        let kv = Kv {
            value: value.clone(),
            mod_revision: self.revision,
            create_revision: found.as_ref().map_or(self.revision, |kv| kv.create_revision),
            version: found.as_ref().map_or(1, |kv| kv.version + 1),
        };
        self.held.insert(op.key.clone(), kv.clone());
        self.tell(op, Change::Put(kv), found);
    }

    fn tell(&mut self, op: &Op, change: Change, before: Option<Kv>) {
        self.events.push(Event {
            revision: self.revision,
            key: op.key.clone(),
            change,
            previous: Previous::Was(before),
        });
    }
}
