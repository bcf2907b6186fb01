//! Leases as the log made them: granted TTL, replicated remainder, attached keys. Who keeps time is the leader's
//! affair; nothing here ends by itself.
//!
//! Attachments are not stored: at a start they come back from the newest version of each key.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_api::{Error as Answer, LeaseId};

use crate::backend::{SystemTable, SystemWrite};

/// The longest TTL that can be granted.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    ttl_secs: i64,
    remaining_secs: Option<i64>,
    keys: BTreeSet<Box<[u8]>>,
}

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    pub id: LeaseId,
    pub ttl_secs: i64,
    /// The replicated remainder, if the leader left one: a new leader starts from it, and a renewal must clear it
    /// first.
    pub remaining_secs: Option<i64>,
    /// Attached keys.
    pub keys: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    by_id: BTreeMap<i64, Lease>,
}

impl Leases {
    pub fn get(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.by_id.get(&id.0).map(|lease| info(id.0, lease))
    }

    pub fn exists(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = LeaseInfo> + '_ {
        self.by_id.iter().map(|(id, lease)| info(*id, lease))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// In byte order.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &[u8]> + '_ {
        let lease = self.by_id.get(&id.0);
        lease.into_iter().flat_map(|lease| lease.keys.iter().map(|key| &**key))
    }

    pub fn grant(&mut self, id: i64, ttl_secs: i64, system: &mut Vec<SystemWrite>) -> Result<(), Answer> {
        // Id 0 means "no lease" wherever a lease is named.
        if id == 0 {
            return Err(Answer::LeaseNotFound);
        }
        if ttl_secs > TTL_SECS_MAX {
            return Err(Answer::LeaseTtlTooLarge);
        }
        if self.exists(id) {
            return Err(Answer::LeaseExists);
        }
        let lease = Lease {
            ttl_secs,
            remaining_secs: None,
            keys: BTreeSet::new(),
        };
        system.push(stored(id, &lease));
        self.by_id.insert(id, lease);
        Ok(())
    }

    /// Takes the lease away and returns its keys, which are the caller's to delete.
    pub fn revoke(&mut self, id: i64, system: &mut Vec<SystemWrite>) -> Option<BTreeSet<Box<[u8]>>> {
        let lease = self.by_id.remove(&id)?;
        system.push((SystemTable::Lease, key(id), None));
        Some(lease.keys)
    }

    /// Notes how much a lease has left; nothing left means a full TTL, as after a renewal.
    pub fn checkpoint(&mut self, id: i64, remaining_secs: i64, system: &mut Vec<SystemWrite>) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.remaining_secs = (remaining_secs > 0).then_some(remaining_secs);
            system.push(stored(id, lease));
        }
    }

    /// `key` goes from one lease to another; 0 is none.
    pub fn move_key(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&from) {
            lease.keys.remove(key);
        }
        self.attach(key, to);
    }

    pub fn attach(&mut self, key: &[u8], id: i64) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.into());
        }
    }

    /// Reads a stored record; false: it can't be read.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> bool {
        let (Ok(key), Some((ttl, rest))) = (key.try_into(), value.split_first_chunk()) else {
            return false;
        };
        let Ok(remaining) = rest.try_into().map(i64::from_le_bytes) else {
            return false;
        };
        let lease = Lease {
            ttl_secs: i64::from_le_bytes(*ttl),
            remaining_secs: (remaining > 0).then_some(remaining),
            keys: BTreeSet::new(),
        };
        self.by_id.insert(i64::from_be_bytes(key), lease);
        true
    }
}

fn info(id: i64, lease: &Lease) -> LeaseInfo {
    LeaseInfo {
        id: LeaseId(id),
        ttl_secs: lease.ttl_secs,
        remaining_secs: lease.remaining_secs,
        keys: lease.keys.len(),
    }
}

fn key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// `id (8, big-endian) → ttl_secs (8) | remaining_secs (8, 0: none)`
fn stored(id: i64, lease: &Lease) -> SystemWrite {
    let numbers = [lease.ttl_secs, lease.remaining_secs.unwrap_or(0)];
    let value: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    (SystemTable::Lease, key(id), Some(value.into()))
}
