//! Who wants an event: watchers grouped by what they watch, groups found by key.
//!
//! All watchers of one key or one range share a group, so that an event is matched once however many they are.

use super::intervals::Intervals;
use super::payload::Change;
use super::slots::Slots;
use bytes::Bytes;
use quorate_api::KeyRange;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) type GroupId = u32;
/// A watcher's place in the dispatcher's table.
pub(super) type WatcherAt = u32;

#[derive(Debug)]
pub(super) struct Group {
    pub(super) range: KeyRange,
    pub(super) members: Vec<WatcherAt>,
    /// How many of them want previous pairs.
    pub(super) want_prev: usize,
    /// Events of the round under way.
    pub(super) gathered: Vec<Arc<Change>>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    groups: Slots<Group>,
    singles: HashMap<Bytes, GroupId>,
    ranges: Intervals,
}

/// A watcher's membership; its position in the group changes when others leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    pub(super) group: GroupId,
    pub(super) position: u32,
}

impl Index {
    pub(super) fn join(&mut self, range: &KeyRange, watcher: WatcherAt, wants_prev: bool) -> Membership {
        let known = if range.is_single() {
            self.singles.get(&range.start).copied()
        } else {
            self.ranges.get(range)
        };
        let group = known.unwrap_or_else(|| {
            let group = self.groups.insert(Group {
                range: range.clone(),
                members: Vec::new(),
                want_prev: 0,
                gathered: Vec::new(),
            });
            if range.is_single() {
                self.singles.insert(range.start.clone(), group);
            } else {
                self.ranges.insert(range.clone(), group);
            }
            group
        });
        let mut position = 0;
        if let Some(group) = self.groups.get_mut(group) {
            position = group.members.len() as u32;
            group.members.push(watcher);
            group.want_prev += usize::from(wants_prev);
        }
        Membership { group, position }
    }

    /// Returns the watcher that now has the position of the one that left, if any.
    pub(super) fn leave(&mut self, membership: Membership, wants_prev: bool) -> Option<WatcherAt> {
        let Membership { group: id, position } = membership;
        let group = self.groups.get_mut(id)?;
        group.members.swap_remove(position as usize);
        group.want_prev -= usize::from(wants_prev);
        let moved = group.members.get(position as usize).copied();
        if group.members.is_empty()
            && let Some(group) = self.groups.remove(id)
        {
            if group.range.is_single() {
                self.singles.remove(&group.range.start);
            } else {
                self.ranges.remove(&group.range);
            }
        }
        moved
    }

    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id)
    }

    pub(super) fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(id)
    }

    /// Adds the event to every group that watches its key. `touched` gets each such group once in a round;
    /// `change` is made only if somebody wants it.
    pub(super) fn gather(&mut self, key: &[u8], touched: &mut Vec<GroupId>, mut change: impl FnMut() -> Arc<Change>) {
        let Self {
            groups,
            singles,
            ranges,
        } = self;
        let mut shared = None;
        let mut add = |id: GroupId| {
            if let Some(group) = groups.get_mut(id) {
                if group.gathered.is_empty() {
                    touched.push(id);
                }
                group.gathered.push(Arc::clone(shared.get_or_insert_with(&mut change)));
            }
        };
        if let Some(id) = singles.get(key) {
            add(*id);
        }
        ranges.containing(key, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventKind};
    use quorate_api::Revision;

    fn hits(index: &mut Index, key: &'static str) -> Vec<Vec<WatcherAt>> {
        let event = Event {
            kind: EventKind::Delete,
            key: key.into(),
            prev: None,
        };
        let mut touched = Vec::new();
        index.gather(key.as_bytes(), &mut touched, || Change::new(event.clone(), Revision(2)));
        let mut members: Vec<Vec<WatcherAt>> = Vec::new();
        for id in touched {
            let group = index.group_mut(id).unwrap();
            group.gathered.clear();
            members.push(group.members.clone());
        }
        members
    }

    #[test]
    fn watchers_of_the_same_range_are_one_group() {
        let mut index = Index::default();
        let range = KeyRange::new("a".into(), "c".into());
        index.join(&range, 1, false);
        let second = index.join(&range, 2, true);
        index.join(&KeyRange::single("b".into()), 3, false);
        assert_eq!(hits(&mut index, "b"), [vec![3], vec![1, 2]]);
        assert_eq!(hits(&mut index, "c"), Vec::<Vec<u32>>::new());
        assert_eq!(index.leave(second, true), None);
        assert_eq!(hits(&mut index, "a"), [[1]]);
    }

    #[test]
    fn whoever_moves_up_is_reported() {
        let mut index = Index::default();
        let range = KeyRange::single("a".into());
        let first = index.join(&range, 1, false);
        index.join(&range, 2, false);
        index.join(&range, 3, false);
        assert_eq!(index.leave(first, false), Some(3));
        assert_eq!(hits(&mut index, "a"), [vec![3, 2]]);
    }

    #[test]
    fn nothing_is_left_of_a_group_without_members() {
        let mut index = Index::default();
        for range in [KeyRange::single("a".into()), KeyRange::all()] {
            let only = index.join(&range, 1, true);
            index.leave(only, true);
            assert!(hits(&mut index, "a").is_empty(), "{range:?}");
        }
    }
}
