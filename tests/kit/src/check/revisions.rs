//! What the revisions in the answers say, each operation for itself and against real time. Linear in the history but
//! for sorting, so it looks at everything, also at what the search of [`super::linear`] leaves out: operations on
//! different keys, and serializable reads.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::history::{Change, Event, History, Kv, Op, Outcome, Request, Shown, Time, check_shape};
use super::{Truth, Violation};

/// - Every acknowledged change has a revision of its own.
/// - An operation that was called after another was answered has a higher revision if it changed something, and no lower
///   one otherwise (serializable reads apart).
/// - What was read was written: by an operation called before, to that key, with that revision, and not by one that
///   failed. Nothing acknowledged came between it and the revision of the answer.
/// - With `truth`: what is acknowledged is there, nothing else is, and every read, also a serializable one, saw what was
///   there at the revision of its answer.
pub fn check(history: &History, truth: Option<&Truth>) -> Result<(), Violation> {
    check_shape(history)?;
    let writes = Writes::of(history)?;
    real_time(history)?;
    for op in &history.ops {
        writes.check_seen(op)?;
        if let Some(truth) = truth {
            matches_truth(op, truth)?;
        }
    }
    match truth {
        Some(truth) => is_accounted_for(history, truth),
        None => Ok(()),
    }
}

struct Writes<'a> {
    by_value: HashMap<&'a Bytes, &'a Op>,
    /// Acknowledged changes of each key.
    of_key: HashMap<&'a Bytes, BTreeMap<i64, &'a Op>>,
    /// The first call of a deletion of each key whose fate is unknown.
    perhaps_deleted: HashMap<&'a Bytes, Time>,
}

impl<'a> Writes<'a> {
    fn of(history: &'a History) -> Result<Self, Violation> {
        let mut by_value = HashMap::new();
        let mut at_revision = HashMap::new();
        let mut of_key: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        let mut perhaps_deleted = HashMap::new();
        for op in &history.ops {
            if let Some(value) = op.value() {
                by_value.insert(value, op);
            }
            if let Some(revision) = op.changed_at() {
                if let Some(other) = at_revision.insert(revision, op) {
                    return Err(Violation(format!("two changes have one revision: {other:?}, {op:?}")));
                }
                of_key.entry(&op.key).or_default().insert(revision, op);
            }
            if (&op.request, &op.outcome) == (&Request::Delete, &Outcome::Unknown) {
                let first = perhaps_deleted.entry(&op.key).or_insert(op.called);
                *first = op.called.min(*first);
            }
        }
        Ok(Self {
            by_value,
            of_key,
            perhaps_deleted,
        })
    }

    /// Whether what `op` saw was there to be seen.
    fn check_seen(&self, op: &Op) -> Result<(), Violation> {
        let Some((seen, revision)) = op.saw() else {
            return Ok(());
        };
        let wrong = |what: &str, other: &Op| Err(Violation(format!("{what}: {op:?}, but {other:?}")));
        if let Some(kv) = seen {
            let Some(writer) = self.by_value.get(&kv.value) else {
                return Err(Violation(format!("read what nobody wrote: {op:?}")));
            };
            if writer.key != op.key {
                return wrong("read what was written to another key", writer);
            }
            if writer.called > op.returned {
                return wrong("read what was not written yet", writer);
            }
            match (&writer.outcome, writer.changed_at()) {
                (Outcome::Unknown, _) => {}
                (_, Some(at)) if at == kv.mod_revision => {}
                _ => return wrong("read what was not written so", writer),
            }
            let counted = if kv.version == 1 {
                kv.create_revision == kv.mod_revision
            } else {
                kv.version > 1 && kv.create_revision < kv.mod_revision
            };
            if kv.mod_revision > revision || kv.create_revision < 1 || !counted {
                return Err(Violation(format!("read impossible revisions or versions: {op:?}")));
            }
        }
        let changes = self
            .of_key
            .get(&op.key)
            .into_iter()
            .flat_map(|changes| changes.range(..=revision));
        match (changes.last(), seen) {
            (Some((last, other)), Some(kv)) if *last > kv.mod_revision => wrong("read what was replaced", other),
            (Some((_, other)), None) if other.request != Request::Delete && !self.perhaps_deleted(op) => {
                wrong("did not see what was there", other)
            }
            _ => Ok(()),
        }
    }

    fn perhaps_deleted(&self, op: &Op) -> bool {
        self.perhaps_deleted
            .get(&op.key)
            .is_some_and(|called| *called <= op.returned)
    }
}

/// Revisions never go back from an answer to a later call.
fn real_time(history: &History) -> Result<(), Violation> {
    let ordered = |op: &&Op| matches!(op.outcome, Outcome::Done(..)) && !op.is_serializable();
    let mut by_call: Vec<&Op> = history.ops.iter().filter(ordered).collect();
    let mut by_return = by_call.clone();
    by_call.sort_by_key(|op| op.called);
    by_return.sort_by_key(|op| op.returned);
    let mut answered = by_return.into_iter().peekable();
    let mut newest: Option<(i64, &Op)> = None;
    for op in by_call {
        while let Some(before) = answered.next_if(|before| before.returned < op.called) {
            let Outcome::Done(revision, _) = before.outcome else {
                continue;
            };
            if newest.is_none_or(|(newest, _)| newest < revision) {
                newest = Some((revision, before));
            }
        }
        let Outcome::Done(revision, _) = op.outcome else {
            continue;
        };
        if let Some((least, before)) = newest
            && (revision < least || revision == least && op.changed_at().is_some())
        {
            return Err(Violation(format!(
                "revisions went back: {op:?}, called after {before:?}"
            )));
        }
    }
    Ok(())
}

fn matches_truth(op: &Op, truth: &Truth) -> Result<(), Violation> {
    if !truth.keys.contain(&op.key) {
        return Ok(());
    }
    if let Some((seen, revision)) = op.saw() {
        let there = truth.at(&op.key, revision);
        if seen.as_ref() != there {
            let there = there.cloned();
            return Err(Violation(format!(
                "{op:?}, but at {revision} there was {}",
                Shown(&there)
            )));
        }
    }
    let Some(revision) = op.changed_at() else { return Ok(()) };
    let event = truth
        .last_until(&op.key, revision)
        .filter(|event| event.revision == revision);
    let told = match (event.map(|event| &event.change), op.value()) {
        (Some(Change::Put(kv)), Some(value)) => kv.value == value,
        (Some(Change::Delete), None) => true,
        _ => false,
    };
    if told {
        Ok(())
    } else {
        Err(Violation(format!(
            "acknowledged, but lost: {op:?}; at that revision: {event:?}"
        )))
    }
}

/// Whether every event has an operation that may have caused it.
fn is_accounted_for(history: &History, truth: &Truth) -> Result<(), Violation> {
    let mut by_value = HashMap::new();
    let mut deleted = HashMap::new();
    // deletions of unknown fate, of each key
    let mut deletions: HashMap<&Bytes, usize> = HashMap::new();
    for op in &history.ops {
        if let Some(value) = op.value() {
            by_value.insert(value, op);
        } else if op.request == Request::Delete {
            match (&op.outcome, op.changed_at()) {
                (Outcome::Unknown, _) => *deletions.entry(&op.key).or_default() += 1,
                (_, Some(revision)) => {
                    deleted.insert((&op.key, revision), op);
                }
                (_, None) => {}
            }
        }
    }
    for event in truth.events() {
        let wrong = |op: Option<&&Op>| Err(Violation(format!("nobody did {event:?}; of that value: {op:?}")));
        match &event.change {
            Change::Put(kv) => {
                let op = by_value.get(&kv.value);
                if !op.is_some_and(|op| may_have_put(op, event, kv)) {
                    return wrong(op);
                }
            }
            Change::Delete if deleted.contains_key(&(&event.key, event.revision)) => {}
            Change::Delete => match deletions.get_mut(&event.key) {
                Some(left) if *left > 0 => *left -= 1,
                _ => return wrong(None),
            },
        }
    }
    Ok(())
}

fn may_have_put(op: &Op, event: &Event, kv: &Kv) -> bool {
    op.key == event.key
        && match op.outcome {
            Outcome::Unknown => true,
            _ => op.changed_at() == Some(kv.mod_revision),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Answer, Keys, Previous, Time};

    fn op(key: &'static str, called: Time, request: Request, revision: i64, answer: Answer) -> Op {
        Op {
            client: 0,
            key: key.into(),
            called,
            returned: called + 1,
            request,
            outcome: Outcome::Done(revision, answer),
        }
    }

    fn put(key: &'static str, called: Time, value: &'static str, revision: i64) -> Op {
        let answer = Answer::Put(Previous::NotAsked);
        op(key, called, Request::Put(value.into()), revision, answer)
    }

    fn get(key: &'static str, called: Time, serializable: bool, revision: i64, found: Option<Kv>) -> Op {
        let request = Request::Get { serializable };
        op(key, called, request, revision, Answer::Got(found))
    }

    fn kv(value: &'static str, mod_revision: i64, create_revision: i64, version: i64) -> Kv {
        Kv {
            value: value.into(),
            create_revision,
            mod_revision,
            version,
        }
    }

    fn told(key: &'static str, kv: Kv) -> Event {
        Event {
            revision: kv.mod_revision,
            key: key.into(),
            change: Change::Put(kv),
            previous: Previous::NotAsked,
        }
    }

    fn judge(ops: &[&Op], events: Option<Vec<Event>>) -> Result<(), Violation> {
        let ops = ops.iter().map(|op| (*op).clone()).collect();
        let truth = events.map(|events| Truth::new(Keys::prefix("k"), events).unwrap());
        check(&History { ops }, truth.as_ref())
    }

    #[test]
    fn revisions_of_different_keys_follow_real_time() {
        let first = put("k1", 0, "a", 5);
        judge(&[&first, &put("k2", 10, "b", 6)], None).unwrap();
        judge(&[&first, &put("k2", 10, "b", 4)], None).unwrap_err();
        judge(&[&first, &put("k2", 10, "b", 5)], None).unwrap_err();
        // at the same time in any order
        judge(&[&first, &put("k2", 1, "b", 4)], None).unwrap();
        judge(&[&first, &get("k2", 10, false, 5, None)], None).unwrap();
        judge(&[&first, &get("k2", 10, false, 4, None)], None).unwrap_err();
    }

    #[test]
    fn a_serializable_read_may_be_old_but_not_wrong() {
        let (first, second) = (put("k", 0, "a", 2), put("k", 10, "b", 3));
        let events = vec![told("k", kv("a", 2, 2, 1)), told("k", kv("b", 3, 2, 2))];
        let read = |revision, found| {
            let read = get("k", 20, true, revision, Some(found));
            judge(&[&first, &second, &read], Some(events.clone()))
        };
        read(2, kv("a", 2, 2, 1)).unwrap();
        read(3, kv("b", 3, 2, 2)).unwrap();
        read(3, kv("a", 2, 2, 1)).unwrap_err();
        read(2, kv("b", 3, 2, 2)).unwrap_err();
        read(3, kv("b", 3, 2, 3)).unwrap_err();
    }

    #[test]
    fn events_and_acknowledged_writes_are_the_same() {
        let (first, second) = (put("k", 0, "a", 2), put("k", 10, "b", 3));
        let events = vec![told("k", kv("a", 2, 2, 1)), told("k", kv("b", 3, 2, 2))];
        judge(&[&first, &second], Some(events.clone())).unwrap();
        judge(&[&first, &second], Some(events[..1].to_vec())).unwrap_err();
        judge(&[&first], Some(events.clone())).unwrap_err();
        let unknown = Op {
            outcome: Outcome::Unknown,
            ..second.clone()
        };
        judge(&[&first, &unknown], Some(events.clone())).unwrap();
        let failed = Op {
            outcome: Outcome::Failed,
            ..second
        };
        judge(&[&first, &failed], Some(events)).unwrap_err();
    }

    #[test]
    fn what_is_read_was_written_there() {
        let first = put("k", 0, "a", 2);
        judge(&[&first, &get("k", 5, false, 2, Some(kv("a", 2, 2, 1)))], None).unwrap();
        judge(&[&first, &get("k", 5, false, 2, Some(kv("x", 2, 2, 1)))], None).unwrap_err();
        judge(&[&first, &get("k2", 5, false, 2, Some(kv("a", 2, 2, 1)))], None).unwrap_err();
        judge(&[&first, &get("k", 5, false, 3, Some(kv("a", 3, 2, 2)))], None).unwrap_err();
        judge(&[&first, &get("k", 5, false, 2, None)], None).unwrap_err();
    }
}
