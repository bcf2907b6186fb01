//! Replicated state beside the keys: leases, members, alarms, origins of batches. Small, held in memory, stored as system records.

use crate::alarms::Alarms;
use crate::backend::{SystemTable, View};
use crate::error::Error;
use crate::lease::Leases;
use crate::members::Members;
use crate::origins::Origins;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tables {
    pub leases: Leases,
    pub members: Members,
    pub alarms: Alarms,
    pub origins: Origins,
}

impl Tables {
    /// What the file has. Attachments of leases are in the index and come later.
    pub fn restore(view: &View) -> Result<Self, Error> {
        let mut tables = Self::default();
        let mut damaged = None;
        for table in [
            SystemTable::Cluster,
            SystemTable::Member,
            SystemTable::Removed,
            SystemTable::Incarnation,
            SystemTable::Lease,
            SystemTable::Alarm,
            SystemTable::Origin,
        ] {
            view.scan_system(table, |name, value| {
                let read = match table {
                    SystemTable::Lease => tables.leases.restore(name, value),
                    SystemTable::Alarm => tables.alarms.restore(name),
                    SystemTable::Origin => tables.origins.restore(name, value),
                    _ => tables.members.restore(table, name, value),
                };
                if !read {
                    damaged = Some(format!("{table:?} {}", name.escape_ascii()));
                }
            })?;
        }
        match damaged {
            Some(name) => Err(Error::Damaged { what: "record", name }),
            None => Ok(tables),
        }
    }
}
