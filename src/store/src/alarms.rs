//! Alarms that members have raised, and what they forbid.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_api::proto::etcdserverpb::{AlarmMember, AlarmType};

use crate::backend::{SystemTable, SystemWrite};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// (member, kind)
    raised: BTreeSet<(u64, i32)>,
}

impl Alarms {
    /// By member, then kind.
    pub fn list(&self) -> Vec<AlarmMember> {
        let alarm = |(member_id, alarm): &(u64, i32)| AlarmMember {
            member_id: *member_id,
            alarm: *alarm,
        };
        self.raised.iter().map(alarm).collect()
    }

    pub fn any(&self, kind: AlarmType) -> bool {
        self.raised.iter().any(|(_, raised)| *raised == kind as i32)
    }

    /// Raises or clears one. Returns the alarm that is now set, or that was taken away; nothing for kinds that are
    /// none.
    pub fn set(
        &mut self,
        member_id: u64,
        kind: i32,
        active: bool,
        system: &mut Vec<SystemWrite>,
    ) -> Option<AlarmMember> {
        match AlarmType::try_from(kind) {
            Ok(AlarmType::Nospace | AlarmType::Corrupt) => {}
            Ok(AlarmType::None) | Err(_) => return None,
        }
        let alarm = (member_id, kind);
        let changed = match active {
            true => self.raised.insert(alarm),
            false => self.raised.remove(&alarm),
        };
        if changed {
            let name = [&member_id.to_be_bytes()[..], &kind.to_be_bytes()].concat();
            system.push((SystemTable::Alarm, name.into(), active.then(Bytes::new)));
        }
        (active || changed).then_some(AlarmMember { member_id, alarm: kind })
    }

    /// Reads a stored record; false: it can't be read.
    pub fn restore(&mut self, name: &[u8]) -> bool {
        let Some((member_id, rest)) = name.split_first_chunk() else {
            return false;
        };
        let Ok(kind) = rest.try_into().map(i32::from_be_bytes) else {
            return false;
        };
        self.raised.insert((u64::from_be_bytes(*member_id), kind))
    }
}
