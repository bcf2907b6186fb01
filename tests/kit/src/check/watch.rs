//! Watchers: everything, once, in order.

use std::collections::HashMap;

use bytes::Bytes;

use super::history::{Change, Event, Kv, Previous};
use super::{Violation, history::Shown};

/// A range of keys: one key, or all from `first` up to and without `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub first: Bytes,
    pub end: Option<Bytes>,
}

/// What one watcher got, over all connections it needed.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// For the message when something is wrong with it.
    pub name: String,
    pub keys: Keys,
    /// The first revision it asked for.
    pub from: i64,
    pub batches: Vec<Batch>,
}

/// One response.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The header's: nothing at or below it is outstanding when the response has no events.
    pub revision: i64,
    /// None: a progress notification.
    pub events: Vec<Event>,
}

/// All events of some keys since a revision at which none of the keys existed.
#[derive(Clone, Debug)]
pub struct Truth {
    pub keys: Keys,
    events: Vec<Event>,
    /// For each key its own events, by their place in `events`.
    of_key: HashMap<Bytes, Vec<usize>>,
}

impl Keys {
    pub fn one(key: impl Into<Bytes>) -> Self {
        Self {
            first: key.into(),
            end: None,
        }
    }

    /// All keys that begin with `prefix`, which is neither empty nor ends in 0xFF.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let first: Bytes = prefix.into();
        let mut end = first.to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self {
            first,
            end: Some(end.into()),
        }
    }

    pub fn contain(&self, key: &[u8]) -> bool {
        match &self.end {
            None => self.first == key,
            Some(end) => self.first <= key && key < end,
        }
    }
}

impl Watcher {
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.batches.iter().flat_map(|batch| &batch.events)
    }

    /// The newest revision of which it is known that it was told everything.
    pub fn told_until(&self) -> i64 {
        let told = |batch: &Batch| batch.events.last().map_or(batch.revision, |event| event.revision);
        self.batches.iter().map(told).max().unwrap_or(0).max(self.from - 1)
    }
}

impl Truth {
    /// Takes what a watcher of everything got as the truth, if it can be one: in order, and every event the follower
    /// of the one before it.
    pub fn from_watcher(watcher: &Watcher) -> Result<Self, Violation> {
        Self::new(watcher.keys.clone(), watcher.events().cloned().collect())
    }

    pub fn new(keys: Keys, events: Vec<Event>) -> Result<Self, Violation> {
        let mut of_key: HashMap<Bytes, Vec<usize>> = HashMap::new();
        for (place, event) in events.iter().enumerate() {
            if let Some(before) = place.checked_sub(1).map(|before| &events[before]) {
                let ordered =
                    before.revision < event.revision || before.revision == event.revision && before.key != event.key;
                if !ordered {
                    return Err(Violation(format!("events out of order: {before:?}, then {event:?}")));
                }
            }
            let places = of_key.entry(event.key.clone()).or_default();
            let before = places.last().and_then(|last| held(&events[*last]));
            follows(event, before)?;
            places.push(place);
        }
        Ok(Self { keys, events, of_key })
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The events of one key.
    pub fn of<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = &'a Event> {
        self.of_key
            .get(key)
            .into_iter()
            .flatten()
            .map(|place| &self.events[*place])
    }

    /// What `key` held at `revision`.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&Kv> {
        self.last_until(key, revision).and_then(held)
    }

    /// The last event of `key` up to `revision`.
    pub fn last_until(&self, key: &[u8], revision: i64) -> Option<&Event> {
        let places = self.of_key.get(key)?;
        let later = places.partition_point(|place| self.events[*place].revision <= revision);
        later.checked_sub(1).map(|last| &self.events[places[last]])
    }
}

fn held(event: &Event) -> Option<&Kv> {
    match &event.change {
        Change::Put(kv) => Some(kv),
        Change::Delete => None,
    }
}

/// Whether `event` can come directly after the key held `before`.
fn follows(event: &Event, before: Option<&Kv>) -> Result<(), Violation> {
    let wrong = |what: &str| {
        let before = before.cloned();
        Err(Violation(format!(
            "{what}: {event:?} after the key held {}",
            Shown(&before)
        )))
    };
    if let Previous::Was(previous) = &event.previous
        && previous.as_ref() != before
    {
        return wrong("an event with a wrong previous value");
    }
    match &event.change {
        Change::Delete if before.is_none() => wrong("a deletion of nothing"),
        Change::Delete => Ok(()),
        Change::Put(kv) => {
            let (create_revision, version) = before.map_or((event.revision, 1), |before| {
                (before.create_revision, before.version + 1)
            });
            if (kv.mod_revision, kv.create_revision, kv.version) != (event.revision, create_revision, version) {
                return wrong("a put with wrong revisions or version");
            }
            Ok(())
        }
    }
}

/// Whether `watcher` got exactly what happened to its keys, from its start to where it was told everything.
pub fn check(watcher: &Watcher, truth: &Truth) -> Result<(), Violation> {
    let Watcher {
        name,
        keys,
        from,
        batches,
    } = watcher;
    let wrong = |what: String| Err(Violation(format!("watcher {name} of {keys:?} from {from}: {what}")));
    let mut due = truth
        .events
        .iter()
        .filter(|event| event.revision >= *from && keys.contain(&event.key))
        .peekable();
    let mut last_revision = None;
    for batch in batches {
        for (place, event) in batch.events.iter().enumerate() {
            if place == 0 && last_revision == Some(event.revision) {
                return wrong(format!("the events of one revision came in two responses: {event:?}"));
            }
            match due.next() {
                Some(expected) if same(event, expected) => {}
                Some(expected) => {
                    return wrong(format!(
                        "got {event:?} where {expected:?} was due, after {last_revision:?}"
                    ));
                }
                None => return wrong(format!("got {event:?}, which never happened, after {last_revision:?}")),
            }
            if event.revision > batch.revision {
                return wrong(format!(
                    "the header is at {} before its event {event:?}",
                    batch.revision
                ));
            }
            last_revision = Some(event.revision);
        }
        if batch.events.is_empty()
            && let Some(missed) = due.peek().filter(|event| event.revision <= batch.revision)
        {
            return wrong(format!("told that {} is reached without {missed:?}", batch.revision));
        }
    }
    // the rest of a revision that it got a part of
    match due.peek().filter(|event| Some(event.revision) == last_revision) {
        Some(missed) => wrong(format!("ended without {missed:?}")),
        None => Ok(()),
    }
}

/// One of them may have been told what the key held before, the other not.
fn same(event: &Event, expected: &Event) -> bool {
    let previous = match (&event.previous, &expected.previous) {
        (Previous::Was(one), Previous::Was(other)) => one == other,
        (Previous::NotAsked, _) | (_, Previous::NotAsked) => true,
    };
    previous && (event.revision, &event.key, &event.change) == (expected.revision, &expected.key, &expected.change)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Puts and deletions on three keys, several to a revision, as a store would tell them.
    fn truth() -> impl Strategy<Value = Truth> {
        prop::collection::vec(prop::collection::btree_map(0..3usize, any::<bool>(), 1..3), 1..30).prop_map(
            |revisions| {
                let mut held: HashMap<Bytes, Kv> = HashMap::new();
                let mut events = Vec::new();
                let mut revision = 1;
                for changes in revisions {
                    revision += 1;
                    for (key, put) in changes {
                        let key = Bytes::from(format!("k/{key}"));
                        let before = held.get(&key).cloned();
                        let change = match (put, &before) {
                            (false, Some(_)) => Change::Delete,
                            _ => Change::Put(Kv {
                                value: format!("v{}", events.len()).into(),
                                mod_revision: revision,
                                create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
                                version: before.as_ref().map_or(1, |kv| kv.version + 1),
                            }),
                        };
                        match &change {
                            Change::Put(kv) => held.insert(key.clone(), kv.clone()),
                            Change::Delete => held.remove(&key),
                        };
                        let previous = Previous::Was(before);
                        events.push(Event {
                            revision,
                            key,
                            change,
                            previous,
                        });
                    }
                }
                Truth::new(Keys::prefix("k/"), events).unwrap()
            },
        )
    }

    /// A watcher that gets all it should, `revisions` of them in each response.
    fn watcher(truth: &Truth, keys: Keys, from: i64, revisions: i64) -> Watcher {
        let mut batches: Vec<Batch> = Vec::new();
        let due = |event: &&Event| event.revision >= from && keys.contain(&event.key);
        for event in truth.events.iter().filter(due) {
            match batches.last_mut() {
                Some(batch) if event.revision - batch.events[0].revision < revisions => {
                    batch.events.push(event.clone());
                    batch.revision = event.revision;
                }
                _ => batches.push(Batch {
                    revision: event.revision,
                    events: vec![event.clone()],
                }),
            }
        }
        let revision = truth.events.last().map_or(0, |event| event.revision) + 5;
        batches.push(Batch {
            revision,
            events: Vec::new(),
        });
        Watcher {
            name: "w".to_owned(),
            keys,
            from,
            batches,
        }
    }

    proptest! {
        #[test]
        fn what_happened_is_accepted(truth in truth(), from in 1..30i64, revisions in 1..4i64, one in any::<bool>()) {
            let keys = if one { Keys::one("k/1") } else { Keys::prefix("k/") };
            let watcher = watcher(&truth, keys, from, revisions);
            prop_assert_eq!(check(&watcher, &truth), Ok(()));
        }

        #[test]
        fn a_lost_a_repeated_and_an_exchanged_event_are_found(
            truth in truth(),
            revisions in 1..4i64,
            pick in any::<prop::sample::Index>(),
            fault in 0..3,
        ) {
            let mut watcher = watcher(&truth, Keys::prefix("k/"), 1, revisions);
            let batches = watcher.batches.len() - 1;
            let (first, others) = watcher.batches.split_at_mut(pick.index(batches) + 1);
            let batch = &mut first.last_mut().unwrap().events;
            match fault {
                0 => { batch.remove(pick.index(batch.len())); }
                1 => batch.insert(0, batch[pick.index(batch.len())].clone()),
                _ if batch.len() > 1 => batch.swap(0, 1),
                _ => match others.first_mut().and_then(|other| other.events.first_mut()) {
                    Some(other) => std::mem::swap(&mut batch[0], other),
                    None => return Ok(()),
                },
            }
            prop_assert!(check(&watcher, &truth).is_err(), "{:?}", watcher);
        }

        #[test]
        fn a_revision_in_two_responses_is_found(truth in truth()) {
            let mut watcher = watcher(&truth, Keys::prefix("k/"), 1, 1);
            let Some(place) = watcher.batches.iter().position(|batch| batch.events.len() > 1) else { return Ok(()) };
            let mut batch = watcher.batches[place].clone();
            batch.events = watcher.batches[place].events.split_off(1);
            watcher.batches.insert(place + 1, batch);
            prop_assert!(check(&watcher, &truth).is_err(), "{:?}", watcher);
        }

        #[test]
        fn events_that_do_not_follow_one_another_are_no_truth(truth in truth(), pick in any::<prop::sample::Index>()) {
            let mut events = truth.events.clone();
            let lost = events.remove(pick.index(events.len()));
            // the last event of its key is missed by nobody
            if events.iter().any(|event| event.key == lost.key && event.revision > lost.revision) {
                prop_assert!(Truth::new(truth.keys, events).is_err());
            }
        }
    }
}
