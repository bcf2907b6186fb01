//! The search for an order.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Effect, Held, Item, Register, State, UNSEEN};
use crate::check::Violation;
use crate::check::history::{Request, Time};

/// Steps after which the search is given up. A correct history takes a few for each operation; one that is wrong in a
/// way that is not seen at once may take exponentially many.
const STEPS_MAX: usize = 3_000_000;
/// How many operations a message shows.
const SHOWN: usize = 12;

/// Calls and answers in the order of time, as a list from which operations that are done are taken out.
struct Timeline {
    entries: Vec<Entry>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each item's entries are.
    call_of: Vec<usize>,
    return_of: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// None: never.
    time: Option<Time>,
    item: usize,
    is_call: bool,
}

/// The list's ends, which are no entries.
const HEAD: usize = 0;

/// A choice that can be taken back.
struct Choice {
    chosen: Chosen,
    before: State,
    /// Where the list was read when it was made.
    cursor: usize,
}

#[derive(Clone, Copy)]
enum Chosen {
    Item(usize),
    Loose(usize),
}

/// The furthest that the search came.
#[derive(Default)]
struct Furthest {
    done: usize,
    state: State,
    /// Those of which one should have been next.
    stuck: Vec<usize>,
}

impl Register<'_> {
    /// Finds an order, or says where none can go on.
    pub(super) fn search(&self) -> Result<(), Violation> {
        let mut timeline = Timeline::of(&self.items);
        let mut used = vec![false; self.loose.len()];
        let mut state = State::default();
        let mut done = 0;
        let mut choices: Vec<Choice> = Vec::new();
        let mut reached = Reached::default();
        let mut furthest = Furthest::default();
        let mut cursor = timeline.next[HEAD];
        let mut loose_from = 0;
        for _ in 0..STEPS_MAX {
            if done == self.items.len() {
                return Ok(());
            }
            let entry = timeline.entries[cursor];
            if entry.is_call {
                let next = self.after(state, &self.items[entry.item]);
                let next = next.filter(|next| reached.is_new(self, Chosen::Item(entry.item), next));
                let Some(next) = next else {
                    cursor = timeline.next[cursor];
                    continue;
                };
                choices.push(Choice {
                    chosen: Chosen::Item(entry.item),
                    before: state,
                    cursor,
                });
                reached.add(self, Chosen::Item(entry.item));
                timeline.take(entry.item);
                state = next;
                done += 1;
                cursor = timeline.next[HEAD];
                continue;
            }
            // nothing called before this answer can be next, unless something happened unseen
            if loose_from == 0 && done >= furthest.done {
                let mut stuck = timeline.calls_until(cursor);
                if !stuck.contains(&entry.item) {
                    stuck.push(entry.item); // its revision says that it was answered before it was called
                }
                furthest = Furthest { done, state, stuck };
            }
            let happened = self.unseen(state, &used, loose_from, entry.time, &mut reached);
            if let Some((loose, next)) = happened {
                choices.push(Choice {
                    chosen: Chosen::Loose(loose),
                    before: state,
                    cursor,
                });
                reached.add(self, Chosen::Loose(loose));
                used[loose] = true;
                state = next;
                cursor = timeline.next[HEAD];
                loose_from = 0;
                continue;
            }
            let Some(choice) = choices.pop() else {
                return Err(self.stuck(&furthest, "no order explains it"));
            };
            reached.remove(self, choice.chosen);
            state = choice.before;
            match choice.chosen {
                Chosen::Item(item) => {
                    timeline.put_back(item);
                    done -= 1;
                    cursor = timeline.next[choice.cursor];
                    loose_from = 0;
                }
                Chosen::Loose(loose) => {
                    used[loose] = false;
                    cursor = choice.cursor;
                    loose_from = loose + 1;
                }
            }
        }
        Err(self.stuck(&furthest, "no order was found in time, so that there is hardly one"))
    }

    /// The next loose operation, from number `from`, that may have happened before `limit` and leads to something new.
    fn unseen(
        &self,
        state: State,
        used: &[bool],
        from: usize,
        limit: Option<Time>,
        reached: &mut Reached,
    ) -> Option<(usize, State)> {
        (from..self.loose.len())
            .filter(|number| !used[*number])
            .take_while(|number| limit.is_none_or(|limit| self.loose[*number].called <= limit))
            .filter(|number| self.is_first_of_its_kind(*number, used))
            .find_map(|number| {
                let next = self.after_loose(state, self.loose[number].request)?;
                reached
                    .is_new(self, Chosen::Loose(number), &next)
                    .then_some((number, next))
            })
    }

    /// Unseen operations that differ only in their value are alike: the one that was called first stands for all.
    fn is_first_of_its_kind(&self, number: usize, used: &[bool]) -> bool {
        let alike = |other: &Request| match (self.loose[number].request, other) {
            (Request::Put(_), Request::Put(_)) | (Request::Delete, Request::Delete) => true,
            (Request::Swap(one, _), Request::Swap(other, _)) => one == other,
            _ => false,
        };
        (0..number).all(|earlier| used[earlier] || !alike(self.loose[earlier].request))
    }

    fn stuck(&self, furthest: &Furthest, why: &str) -> Violation {
        let held = match furthest.state.held {
            None => "nothing".to_owned(),
            Some(Held { value: UNSEEN, .. }) => "a value of unknown fate".to_owned(),
            Some(held) => {
                let is_writer = |item: &&Item<'_>| item.effect == Effect::Put(held.value);
                let writer = self.items.iter().find(is_writer).and_then(|item| item.op);
                let written_by = writer.map_or(String::new(), |op| format!("{op:?}"));
                format!("version {} of {written_by}", held.version)
            }
        };
        let show = |item: &Item<'_>| match item.op {
            Some(op) => format!("\n  {op:?}"),
            None => format!("\n  a deletion of unknown origin @{}", item.revision),
        };
        let stuck: String = furthest
            .stuck
            .iter()
            .take(SHOWN)
            .map(|item| show(&self.items[*item]))
            .collect();
        self.wrong(&format!(
            "{why}: after {} of {} operations it holds {held}, and none of these {} can be next:{stuck}",
            furthest.done,
            self.items.len(),
            furthest.stuck.len()
        ))
    }
}

impl Timeline {
    fn of(items: &[Item<'_>]) -> Self {
        let mut entries: Vec<Entry> = Vec::with_capacity(2 * items.len() + 1);
        for (number, item) in items.iter().enumerate() {
            for (time, is_call) in [(Some(item.called), true), (item.returned, false)] {
                entries.push(Entry {
                    time,
                    item: number,
                    is_call,
                });
            }
        }
        // at the same time counts as overlapping: calls come first. What never ends comes last.
        entries.sort_by_key(|entry| (entry.time.is_none(), entry.time, !entry.is_call));
        let end = Entry {
            time: None,
            item: usize::MAX,
            is_call: false,
        };
        entries.insert(HEAD, end);
        let mut call_of = vec![0; items.len()];
        let mut return_of = vec![0; items.len()];
        for (place, entry) in entries.iter().enumerate().skip(1) {
            match entry.is_call {
                true => call_of[entry.item] = place,
                false => return_of[entry.item] = place,
            }
        }
        let len = entries.len();
        Self {
            entries,
            next: (0..len).map(|place| (place + 1) % len).collect(),
            previous: (0..len).map(|place| (place + len - 1) % len).collect(),
            call_of,
            return_of,
        }
    }

    fn take(&mut self, item: usize) {
        for place in [self.call_of[item], self.return_of[item]] {
            let (next, previous) = (self.next[place], self.previous[place]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    /// Undoes the last [`Self::take`] that is not undone.
    fn put_back(&mut self, item: usize) {
        for place in [self.return_of[item], self.call_of[item]] {
            let (next, previous) = (self.next[place], self.previous[place]);
            self.next[previous] = place;
            self.previous[next] = place;
        }
    }

    /// The items whose calls are left before `end`.
    fn calls_until(&self, end: usize) -> Vec<usize> {
        let places = std::iter::successors(Some(self.next[HEAD]), |place| Some(self.next[*place]));
        places
            .take_while(|place| *place != end)
            .map(|place| self.entries[place].item)
            .collect()
    }
}

/// Where the search has been: sets of operations done, with the state after them. Sets are kept as hashes of 128 bits.
///
/// Unseen puts, deletions and puts if absent only count: who has been at the same place with fewer of them could have
/// done all that can be done from here.
#[derive(Default)]
struct Reached {
    seen: HashMap<(u64, u64), Vec<Spent>>,
    present: Place,
}

/// How many unseen puts, deletions and puts if absent it took.
type Spent = [usize; 3];

#[derive(Clone, Copy, Default)]
struct Place {
    /// Each operation has its own bits, so that adding and removing are the same.
    set: (u64, u64),
    spent: Spent,
}

impl Reached {
    fn add(&mut self, register: &Register<'_>, chosen: Chosen) {
        self.present = self.present.with(register, chosen);
    }

    fn remove(&mut self, register: &Register<'_>, chosen: Chosen) {
        self.present = self.present.without(register, chosen);
    }

    /// Whether the search has not been where `chosen` leads; from now on it has.
    fn is_new(&mut self, register: &Register<'_>, chosen: Chosen, state: &State) -> bool {
        let Place { set, spent } = self.present.with(register, chosen);
        let spents = self.seen.entry(with(set, state)).or_default();
        let fewer = |less: &Spent| less.iter().zip(&spent).all(|(less, more)| less <= more);
        if spents.iter().any(fewer) {
            return false;
        }
        spents.push(spent);
        true
    }
}

impl Place {
    fn with(mut self, register: &Register<'_>, chosen: Chosen) -> Self {
        match counter(register, chosen) {
            Some(counter) => self.spent[counter] += 1,
            None => self.toggle(chosen),
        }
        self
    }

    fn without(mut self, register: &Register<'_>, chosen: Chosen) -> Self {
        match counter(register, chosen) {
            Some(counter) => self.spent[counter] -= 1,
            None => self.toggle(chosen),
        }
        self
    }

    fn toggle(&mut self, chosen: Chosen) {
        let number = match chosen {
            Chosen::Item(number) => 2 * number as u64,
            Chosen::Loose(number) => 2 * number as u64 + 1,
        };
        let first = scatter(number.wrapping_add(1));
        self.set.0 ^= first;
        self.set.1 ^= scatter(first);
    }
}

/// Which count an operation is in, if it only counts.
fn counter(register: &Register<'_>, chosen: Chosen) -> Option<usize> {
    let Chosen::Loose(number) = chosen else { return None };
    match register.loose[number].request {
        Request::Put(_) => Some(0),
        Request::Delete => Some(1),
        Request::Swap(None, _) => Some(2),
        Request::Swap(Some(_), _) | Request::Get { .. } => None,
    }
}

fn with((first, second): (u64, u64), state: &State) -> (u64, u64) {
    let mut hasher = DefaultHasher::new();
    (first, state).hash(&mut hasher);
    (hasher.finish(), second)
}

/// Spreads a number over 64 bits, as SplitMix does.
fn scatter(number: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
