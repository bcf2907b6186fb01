//! Who a batch is of, and up to where each member's batches are applied.
//!
//! A batch may get into the log twice: whoever took it from its clients hands it to another leader when the one before
//! is gone, and the first may have come through all the same. The log keeps both, the state machine applies one. What
//! it has to remember for that is one position per member, since a member numbers its batches and has them proposed in
//! that order:
//!
//! ```text
//!  log      7.1  7.2  9.1  7.2  7.3  7.2  8.1         member 7, boot 7 … 8
//!  applied   ✓    ✓    ✓    –    ✓    –    ✓          – repeated: only the position in the log advances
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

impl Origin {
    /// What is stored of it.
    pub(crate) fn record(self) -> (Bytes, Option<Bytes>) {
        let Self { member, boot, sequence } = self;
        let value = [boot.to_le_bytes(), sequence.to_le_bytes()].concat();
        (name(member), Some(value.into()))
    }
}

/// The newest batch of each member that was applied, as (boot, sequence).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origins {
    by_member: BTreeMap<u64, (u64, u64)>,
}

impl Origins {
    pub fn get(&self, member: u64) -> Option<(u64, u64)> {
        self.by_member.get(&member).copied()
    }

    /// Whether a batch of this origin is to be applied; if so, it is the newest from here on.
    pub fn advance(&mut self, Origin { member, boot, sequence }: Origin) -> bool {
        if member == 0 {
            return true;
        }
        let batch = (boot, sequence);
        match self.by_member.entry(member) {
            Entry::Occupied(newest) if batch <= *newest.get() => return false,
            Entry::Occupied(mut newest) => *newest.get_mut() = batch,
            Entry::Vacant(first) => {
                first.insert(batch);
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
        let (Ok(member), Some((boot, rest))) = (name.try_into().map(u64::from_be_bytes), value.split_first_chunk())
        else {
            return false;
        };
        let Ok(sequence) = rest.try_into().map(u64::from_le_bytes) else {
            return false;
        };
        self.by_member.insert(member, (u64::from_le_bytes(*boot), sequence));
        true
    }
}

fn name(member: u64) -> Bytes {
    Bytes::copy_from_slice(&member.to_be_bytes())
}
