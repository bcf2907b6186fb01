//! Who a batch is of, and up to where each member's batches are applied.
//!
//! A batch may get into the log twice: whoever took it from its clients hands it to another leader when the one before
//! is gone, and the first may have come through all the same. The log keeps both, the state machine applies one. What
//! it has to remember for that is little, since a member numbers its batches and has only a few on their way at a time:
//! the newest number that was applied, and which of the [`WINDOW`] up to it. They may come up in another order than that
//! of their numbers; one that is older than the window is one that nobody waits for.
//!
//! ```text
//!  log      3.1  3.3  3.2  3.3  4.1  3.4         boot.sequence of one member
//!  applied   ✓    ✓    ✓    –    ✓    –          – repeated, or of an earlier start: only the position advances
//! ```
//!
//! Invariant: the record is part of the change that has the batch's effects, so that neither is there without the
//! other, after a crash and in an image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use crate::backend::{SystemTable, SystemWrite};

/// Who waits for a batch: the member that took its requests, which start of that member's process, and the batch's
/// number there. No two batches of a cluster share all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// 0 is nobody (tools, tests): such a batch is applied as often as it comes.
    pub member: u64,
    /// Counts the member's starts and only grows.
    pub boot: u64,
    /// In the order in which the member proposes.
    pub sequence: u64,
}

/// The newest batch of each member that was applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origins {
    by_member: BTreeMap<u64, Newest>,
}

/// What is stored of a member.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    pub(crate) member: u64,
    newest: Newest,
}

impl Passed {
    pub(crate) fn record(self) -> (Bytes, Option<Bytes>) {
        (name(self.member), Some(self.newest.value()))
    }
}

fn name(member: u64) -> Bytes {
    Bytes::copy_from_slice(&member.to_be_bytes())
}

/// Numbers back from the newest one for which it is known whether they were applied.
const WINDOW: u64 = u64::BITS as u64;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Newest {
    boot: u64,
    sequence: u64,
    /// Bit n: the batch n before the newest was applied. Bit 0 is the newest itself.
    recent: u64,
}

impl Newest {
    /// Whether a batch of this boot and sequence was applied, or never will be.
    fn has_passed(&self, boot: u64, sequence: u64) -> bool {
        if boot != self.boot {
            return boot < self.boot;
        }
        match self.sequence.checked_sub(sequence) {
            None => false,
            Some(back) => back >= WINDOW || self.recent >> back & 1 == 1,
        }
    }

    fn note(&mut self, boot: u64, sequence: u64) {
        if boot != self.boot {
            (self.boot, self.sequence, self.recent) = (boot, sequence, 1);
        } else if let Some(back) = self.sequence.checked_sub(sequence) {
            self.recent |= 1_u64.checked_shl(u32::try_from(back).unwrap_or(u32::MAX)).unwrap_or(0);
        } else {
            let ahead = u32::try_from(sequence - self.sequence).unwrap_or(u32::MAX);
            self.recent = self.recent.checked_shl(ahead).unwrap_or(0) | 1;
            self.sequence = sequence;
        }
    }

    fn value(&self) -> Bytes {
        let mut value = [0; 24];
        value[..8].copy_from_slice(&self.boot.to_le_bytes());
        value[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        value[16..].copy_from_slice(&self.recent.to_le_bytes());
        Bytes::copy_from_slice(&value)
    }
}

impl Origins {
    pub fn get(&self, member: u64) -> Option<(u64, u64)> {
        let newest = self.by_member.get(&member)?;
        Some((newest.boot, newest.sequence))
    }

    /// Whether a batch of this origin was applied, or never will be.
    pub fn has_passed(&self, origin: Origin) -> bool {
        let newest = self.by_member.get(&origin.member);
        newest.is_some_and(|newest| newest.has_passed(origin.boot, origin.sequence))
    }

    /// What to store of a member.
    pub fn passed(&self, member: u64) -> Option<Passed> {
        let newest = *self.by_member.get(&member)?;
        Some(Passed { member, newest })
    }

    /// Whether a batch of this origin is to be applied; if so, it has passed from here on.
    pub fn advance(&mut self, Origin { member, boot, sequence }: Origin) -> bool {
        if member == 0 {
            return true;
        }
        match self.by_member.entry(member) {
            Entry::Occupied(newest) if newest.get().has_passed(boot, sequence) => return false,
            Entry::Occupied(mut newest) => newest.get_mut().note(boot, sequence),
            Entry::Vacant(first) => {
                first.insert(Newest {
                    boot,
                    sequence,
                    recent: 1,
                });
            }
        }
        true
    }

    /// Of a member that is no more.
    pub fn forget(&mut self, member: u64, system: &mut Vec<SystemWrite>) {
        if self.by_member.remove(&member).is_some() {
            system.push((SystemTable::Origin, name(member), None));
        }
    }

    /// Reads a stored record; false: it can't be read.
    pub fn restore(&mut self, name: &[u8], value: &[u8]) -> bool {
        let Ok(member) = name.try_into().map(u64::from_be_bytes) else {
            return false;
        };
        let (numbers, []) = value.as_chunks::<8>() else {
            return false;
        };
        let [boot, sequence, recent] = numbers else {
            return false;
        };
        let newest = Newest {
            boot: u64::from_le_bytes(*boot),
            sequence: u64::from_le_bytes(*sequence),
            recent: u64::from_le_bytes(*recent),
        };
        self.by_member.insert(member, newest).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(boot: u64, sequence: u64) -> Origin {
        Origin {
            member: 7,
            boot,
            sequence,
        }
    }

    #[test]
    fn each_batch_is_fresh_once_in_whatever_order_they_come() {
        let mut origins = Origins::default();
        let mut fresh = |boot, sequence| origins.advance(origin(boot, sequence));
        assert!(fresh(3, 1));
        assert!(fresh(3, 3));
        assert!(fresh(3, 2), "left behind by a newer one, and still wanted");
        assert!(!fresh(3, 2));
        assert!(!fresh(3, 3));
        assert!(fresh(3, 66));
        assert!(!fresh(3, 2), "out of the window");
        assert!(fresh(3, 4), "just inside");
        assert!(fresh(3, 500) && !fresh(3, 66));
        assert!(fresh(4, 1));
        assert!(!fresh(3, 501), "of an earlier start");
    }

    #[test]
    fn what_is_remembered_reads_back() {
        let mut origins = Origins::default();
        for sequence in [1, 5, 3] {
            origins.advance(origin(2, sequence));
        }
        let mut restored = Origins::default();
        let (name, value) = origins.passed(7).unwrap().record();
        assert!(restored.restore(&name, &value.unwrap()));
        assert_eq!(restored, origins);
        assert!(restored.has_passed(origin(2, 3)) && !restored.has_passed(origin(2, 4)));
        assert!(!Origins::default().restore(&name, b"short"));
    }
}
