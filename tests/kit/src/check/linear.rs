//! Is there one order of all operations on a key in which each takes effect between its call and its answer, and every
//! answer is right?
//!
//! The search of Wing and Gong: of the operations that may come first (nobody was answered before they were called), try
//! one that the key's state allows, and so on; when no operation can be next, take the last choice back. As Lowe found,
//! remembering which (set of operations done, state) were reached keeps this from trying everything twice. Keys are
//! independent of each other, so each is searched for itself.
//!
//! Revisions make the search nearly straight: changes whose revision is known happen in that order, and an answer with
//! revision R comes after all changes up to R and before all others. What is still open is where operations of unknown
//! fate belong.
//!
//! An operation of unknown fate whose value somebody saw is a change like any other, with no end. Without a
//! [`Truth`] the others are *loose*: each may happen anywhere after its call, and nothing waits for it. A few of them
//! among many are no trouble; where hundreds concern one key, the search may have to give up, and says so.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::history::{Answer, Change, History, Kv, Op, Outcome, Previous, Request, Time, check_shape};
use super::{Truth, Violation};

/// Every operation but serializable reads.
pub fn check(history: &History, truth: Option<&Truth>) -> Result<(), Violation> {
    check_shape(history)?;
    let mut keys: HashMap<&Bytes, Vec<&Op>> = HashMap::new();
    for op in &history.ops {
        keys.entry(&op.key).or_default().push(op);
    }
    for (key, ops) in keys {
        Register::of(key, &ops, truth)?.search()?;
    }
    Ok(())
}

/// The operations on one key.
struct Register<'a> {
    key: &'a Bytes,
    items: Vec<Item<'a>>,
    /// By the time of their call.
    loose: Vec<Loose<'a>>,
    /// Of all changes that are known, ascending; each has one item.
    revisions: Vec<i64>,
    /// A number for every value that an operation writes.
    numbers: HashMap<&'a Bytes, u32>,
    /// The highest that anybody saw.
    version_max: i64,
}

/// An operation that happened.
#[derive(Clone)]
struct Item<'a> {
    called: Time,
    /// None: nobody waits for it.
    returned: Option<Time>,
    before: Before<'a>,
    effect: Effect,
    /// What it wrote, as somebody saw it. That tells how many writes came before, also unseen ones.
    wrote: Option<&'a Kv>,
    /// Of the change, or of the answer.
    revision: i64,
    /// None: a deletion of which only the event is known.
    op: Option<&'a Op>,
}

/// What must have been there.
#[derive(Clone, Copy)]
enum Before<'a> {
    Whatever,
    Something,
    This(&'a Option<Kv>),
    /// Absent, or modified at this revision.
    At(Option<i64>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    /// The value's number.
    Put(u32),
    Delete,
}

/// An operation that may have happened unseen.
struct Loose<'a> {
    called: Time,
    request: &'a Request,
}

/// The value of a loose operation: nobody ever saw it.
const UNSEEN: u32 = u32::MAX;

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct State {
    held: Option<Held>,
    /// How many of the known changes have happened.
    changes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    value: u32,
    /// None: that of a loose operation.
    mod_revision: Option<i64>,
    create_revision: Option<i64>,
    version: i64,
}

impl<'a> Register<'a> {
    fn of(key: &'a Bytes, ops: &[&'a Op], truth: Option<&'a Truth>) -> Result<Self, Violation> {
        let truth = truth.filter(|truth| truth.keys.contain(key));
        let seen = seen_values(ops, truth)?;
        let mut numbers = HashMap::new();
        for (number, op) in (0..).zip(ops) {
            if let Some(value) = op.value() {
                numbers.insert(value, number);
            }
        }
        let mut register = Self {
            key,
            items: Vec::new(),
            loose: Vec::new(),
            revisions: Vec::new(),
            numbers,
            version_max: seen.values().map(|kv| kv.version).max().unwrap_or(0),
        };
        for op in ops {
            match &op.outcome {
                Outcome::Failed => {}
                // it only tells what there was to see
                Outcome::Done(..) if op.is_serializable() => {}
                Outcome::Done(revision, answer) => {
                    let item = register.answered(op, *revision, answer)?;
                    let wrote = op.value().and_then(|value| seen.get(value).copied());
                    register.items.push(Item { wrote, ..item });
                }
                Outcome::Unknown => match op.value().and_then(|value| seen.get(value)) {
                    Some(kv) => register.items.push(register.unanswered(op, kv)),
                    None if matches!(op.request, Request::Get { .. }) => {}
                    // the truth would know: it never happened, or is one of the deletions that come below
                    None if truth.is_some() => {}
                    None => register.loose.push(Loose {
                        called: op.called,
                        request: &op.request,
                    }),
                },
            }
        }
        if let Some(truth) = truth {
            register.add_deletions_of_unknown_origin(ops, truth);
        }
        register.loose.sort_by_key(|loose| loose.called);
        let changes = register.items.iter().filter(|item| item.effect != Effect::None);
        register.revisions = changes.map(|item| item.revision).collect();
        register.revisions.sort_unstable();
        if let Some(twice) = register.revisions.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(register.wrong(&format!("was changed twice at revision {}", twice[0])));
        }
        register.narrow();
        Ok(register)
    }

    /// A change comes after the call of every change with a lower revision, and before the answer of every change with a
    /// higher one; so does an answer with its revision. Counting that in leaves the search few ways to go.
    fn narrow(&mut self) {
        let mut in_turn: Vec<usize> = (0..self.items.len()).collect();
        // answers with a change's revision come after it
        in_turn.sort_by_key(|item| (self.items[*item].revision, self.items[*item].effect == Effect::None));
        let mut earliest = 0;
        for item in &in_turn {
            let item = &mut self.items[*item];
            item.called = item.called.max(earliest);
            if item.effect != Effect::None {
                earliest = item.called;
            }
        }
        let mut latest: Option<Time> = None;
        for item in in_turn.iter().rev() {
            let item = &mut self.items[*item];
            item.returned = match (item.returned, latest) {
                (Some(returned), Some(latest)) => Some(returned.min(latest)),
                (one, other) => one.or(other),
            };
            if item.effect != Effect::None {
                latest = item.returned;
            }
        }
    }

    fn answered(&self, op: &'a Op, revision: i64, answer: &'a Answer) -> Result<Item<'a>, Violation> {
        let put = Effect::Put(self.number(op));
        let (before, effect) = match (answer, &op.request) {
            (Answer::Got(found), _) => (Before::This(found), Effect::None),
            (Answer::Put(Previous::NotAsked), _) => (Before::Whatever, put),
            (Answer::Put(Previous::Was(found)), _) => (Before::This(found), put),
            (Answer::Swapped, Request::Swap(expected, _)) => (Before::At(*expected), put),
            (Answer::NotSwapped(found), Request::Swap(expected, _)) => {
                if found.as_ref().map(|kv| kv.mod_revision) == *expected {
                    return Err(self.wrong(&format!("should have been swapped: {op:?}")));
                }
                (Before::This(found), Effect::None)
            }
            (Answer::Swapped | Answer::NotSwapped(_), _) => return Err(self.wrong("was swapped by another request")),
            (Answer::Deleted(Previous::NotAsked), _) => (Before::Something, Effect::Delete),
            (Answer::Deleted(Previous::Was(found)), _) => {
                if found.is_none() {
                    return Err(self.wrong(&format!("was deleted without being there: {op:?}")));
                }
                (Before::This(found), Effect::Delete)
            }
            (Answer::NotDeleted, _) => (Before::This(&None), Effect::None),
        };
        Ok(Item {
            called: op.called,
            returned: Some(op.returned),
            before,
            effect,
            wrote: None,
            revision,
            op: Some(op),
        })
    }

    /// A write of unknown fate that somebody saw.
    fn unanswered(&self, op: &'a Op, wrote: &'a Kv) -> Item<'a> {
        Item {
            called: op.called,
            returned: None,
            before: match &op.request {
                Request::Swap(expected, _) => Before::At(*expected),
                _ => Before::Whatever,
            },
            effect: Effect::Put(self.number(op)),
            wrote: Some(wrote),
            revision: wrote.mod_revision,
            op: Some(op),
        }
    }

    /// A deletion that nobody was told of came from one of those whose fate is unknown; which, it is not said.
    fn add_deletions_of_unknown_origin(&mut self, ops: &[&'a Op], truth: &Truth) {
        let unknown = ops
            .iter()
            .filter(|op| (&op.request, &op.outcome) == (&Request::Delete, &Outcome::Unknown));
        let Some(called) = unknown.map(|op| op.called).min() else {
            return;
        };
        let known: HashSet<i64> = ops.iter().filter_map(|op| op.changed_at()).collect();
        let deletions = truth.of(self.key).filter(|event| event.change == Change::Delete);
        for event in deletions.filter(|event| !known.contains(&event.revision)) {
            self.items.push(Item {
                called,
                returned: None,
                before: Before::Something,
                effect: Effect::Delete,
                wrote: None,
                revision: event.revision,
                op: None,
            });
        }
    }

    fn number(&self, op: &Op) -> u32 {
        op.value()
            .and_then(|value| self.numbers.get(value))
            .copied()
            .unwrap_or(UNSEEN)
    }

    /// The state after `item`, if it can be next.
    fn after(&self, state: State, item: &Item<'_>) -> Option<State> {
        let next = self.revisions.get(state.changes).copied();
        let in_turn = match item.effect {
            Effect::None => {
                let last = state.changes.checked_sub(1).map(|last| self.revisions[last]);
                last.is_none_or(|last| last <= item.revision) && next.is_none_or(|next| next > item.revision)
            }
            Effect::Put(_) | Effect::Delete => next == Some(item.revision),
        };
        let held = state.held.as_ref();
        let fits = match item.before {
            Before::Whatever => true,
            Before::Something => held.is_some(),
            Before::At(revision) => match held {
                Some(held) => revision.is_some_and(|revision| self.may_be_at(held, revision)),
                None => revision.is_none(),
            },
            Before::This(None) => held.is_none(),
            Before::This(Some(kv)) => held.is_some_and(|held| self.is(held, kv)),
        };
        if !in_turn || !fits {
            return None;
        }
        let held = match item.effect {
            Effect::None => return Some(state),
            Effect::Put(value) => {
                let held = put(state.held, value, Some(item.revision));
                if item.wrote.is_some_and(|kv| !self.is(&held, kv)) {
                    return None;
                }
                Some(held)
            }
            Effect::Delete => None,
        };
        Some(State {
            held,
            changes: state.changes + 1,
        })
    }

    /// The state after a loose operation, if that can make a difference.
    fn after_loose(&self, state: State, request: &Request) -> Option<State> {
        let held = match (request, state.held) {
            (Request::Put(_), held) => Some(put(held, UNSEEN, None)),
            (Request::Swap(None, _), None) => Some(put(None, UNSEEN, None)),
            (Request::Swap(Some(expected), _), Some(held)) if self.may_be_at(&held, *expected) => {
                Some(put(Some(held), UNSEEN, None))
            }
            (Request::Delete, Some(_)) => None,
            (Request::Swap(..) | Request::Delete | Request::Get { .. }, _) => return None,
        };
        let was_unseen = state.held.is_some_and(|held| held.value == UNSEEN);
        let is_pointless = was_unseen && held.is_some_and(|held| held.version > self.version_max);
        (!is_pointless).then_some(State { held, ..state })
    }

    /// An unseen value has a revision of its own.
    fn may_be_at(&self, held: &Held, revision: i64) -> bool {
        match held.mod_revision {
            Some(modified) => modified == revision,
            None => self.revisions.binary_search(&revision).is_err(),
        }
    }

    fn is(&self, held: &Held, kv: &Kv) -> bool {
        self.numbers.get(&kv.value) == Some(&held.value)
            && held.mod_revision == Some(kv.mod_revision)
            && held.create_revision.is_none_or(|created| created == kv.create_revision)
            && held.version == kv.version
    }

    fn wrong(&self, what: &str) -> Violation {
        Violation(format!("key {} {what}", self.key.escape_ascii()))
    }
}

fn put(held: Option<Held>, value: u32, revision: Option<i64>) -> Held {
    Held {
        value,
        mod_revision: revision,
        create_revision: held.map_or(revision, |held| held.create_revision),
        version: held.map_or(1, |held| held.version + 1),
    }
}

/// Every value that somebody saw, as it was seen.
fn seen_values<'a>(ops: &[&'a Op], truth: Option<&'a Truth>) -> Result<HashMap<&'a Bytes, &'a Kv>, Violation> {
    let found = ops
        .iter()
        .filter_map(|op| op.saw())
        .filter_map(|(found, _)| found.as_ref());
    let key = ops.first().map(|op| &op.key);
    let events = truth.zip(key).into_iter().flat_map(|(truth, key)| truth.of(key));
    let told = events.filter_map(|event| match &event.change {
        Change::Put(kv) => Some(kv),
        Change::Delete => None,
    });
    let mut seen = HashMap::new();
    for kv in found.chain(told) {
        let known = *seen.entry(&kv.value).or_insert(kv);
        if known != kv {
            return Err(Violation(format!("one value was seen as {known:?} and as {kv:?}")));
        }
    }
    Ok(seen)
}

mod search;

#[cfg(test)]
mod tests;
