//! What the backend should hold after each change, kept as plainly as possible.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_store::backend::{Applied, Backend, Change, Error, Options, Recovered, Row, RowId, SystemTable, View};

use quorate_store::testing::{MemDisk, Rng};

pub const TABLES: [SystemTable; 7] = [
    SystemTable::Cluster,
    SystemTable::Member,
    SystemTable::Removed,
    SystemTable::Lease,
    SystemTable::Alarm,
    SystemTable::Auth,
    SystemTable::V2,
];

#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub rows: BTreeMap<RowId, Row>,
    pub system: BTreeMap<(SystemTable, Bytes), Bytes>,
    pub revision: i64,
    pub compacted: i64,
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        self.revision = change.revision;
        self.compacted = change.compacted;
        for row in &change.rows {
            self.rows.insert(row.id, row.clone());
        }
        for id in &change.removed {
            self.rows.remove(id);
        }
        for (table, key, value) in &change.system {
            match value {
                Some(value) => self.system.insert((*table, key.clone()), value.clone()),
                None => self.system.remove(&(*table, key.clone())),
            };
        }
    }

    /// Everything that `view` has of its durable part, compared with this.
    pub fn compare(&self, view: &View) -> Result<(), String> {
        let mut found = BTreeMap::new();
        let text = |error: Error| format!("{error}");
        view.scan_meta(|row| {
            let value_len = row.value_len;
            let row = Row {
                id: row.id,
                key: Bytes::copy_from_slice(row.key),
                create: row.create,
                version: row.version,
                lease: row.lease,
                tombstone: row.tombstone,
                value: Bytes::new(),
            };
            found.insert(row.id, (row, value_len));
        })
        .map_err(text)?;
        let ids: Vec<RowId> = found
            .values()
            .filter(|(row, _)| !row.tombstone)
            .map(|(row, _)| row.id)
            .collect();
        let mut values = Vec::new();
        view.values(&ids, |_, value| values.push(Bytes::copy_from_slice(value)))
            .map_err(text)?;
        for (id, value) in ids.iter().zip(values) {
            let (row, len) = found.get_mut(id).expect("scanned");
            if *len != value.len() as u64 || view.value(*id).map_err(text)? != value {
                return Err(format!("{id:?}: two ways of reading disagree"));
            }
            row.value = value;
        }
        let rows: BTreeMap<_, _> = found.into_iter().map(|(id, (row, _))| (id, row)).collect();
        let mut system = BTreeMap::new();
        for table in TABLES {
            let keep = |key: &[u8], value: &[u8]| {
                system.insert((table, Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value));
            };
            view.scan_system(table, keep).map_err(text)?;
        }
        if rows != self.rows {
            return Err(format!(
                "rows differ: {} in the file, {} in the model",
                rows.len(),
                self.rows.len()
            ));
        }
        (system == self.system)
            .then_some(())
            .ok_or_else(|| "system records differ".into())
    }
}

/// Makes changes as apply would: revisions rise, compaction takes what is old, system records come and go.
pub struct Writer {
    pub rng: Rng,
    pub state: State,
    pub index: u64,
    next: i64,
}

impl Writer {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            state: State {
                revision: 1,
                ..State::default()
            },
            index: 0,
            next: 2,
        }
    }

    /// Goes on where a recovered file stands.
    pub fn resume(seed: u64, state: State, index: u64) -> Self {
        let next = state.revision + 1;
        Self {
            rng: Rng(seed),
            state,
            index,
            next,
        }
    }

    pub fn change(&mut self) -> Change {
        let rng = &mut self.rng;
        let mut change = Change {
            compacted: self.state.compacted,
            ..Change::default()
        };
        if rng.chance(80) {
            for _ in 0..=rng.below(6) {
                let tombstone = rng.chance(15);
                for sub in 0..=rng.below(2) as u32 {
                    let len = match rng.below(20) {
                        0 => 0,
                        1 => 20_000 + rng.below(40_000),
                        2..5 => 1000 + rng.below(4000),
                        _ => rng.below(300),
                    };
                    let byte = rng.below(256) as u8;
                    let value: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
                    change.rows.push(Row {
                        id: RowId { main: self.next, sub },
                        key: format!("key/{}", rng.below(40)).into(),
                        create: self.next - rng.below(self.next as u64) as i64,
                        version: if tombstone { 0 } else { 1 + rng.below(300) as i64 },
                        lease: if rng.chance(20) { rng.next() as i64 } else { 0 },
                        tombstone,
                        value: if tombstone { Bytes::new() } else { value.into() },
                    });
                }
                self.next += 1;
            }
        }
        if rng.chance(25) {
            // Any rows may go, the newest included: the revision must not fall with them.
            let old = self.state.rows.keys().copied();
            let new = change.rows.iter().map(|row| row.id);
            let keep = rng.below(100);
            change.removed = old.chain(new).filter(|_| !rng.chance(keep)).collect();
            change.compacted = self.next - 1;
        }
        while rng.chance(40) {
            let table = TABLES[rng.below(TABLES.len() as u64) as usize];
            let key = Bytes::from(format!("{}", rng.below(10)));
            let value = rng
                .chance(70)
                .then(|| Bytes::from(vec![rng.below(256) as u8; rng.below(200) as usize]));
            change.system.push((table, key, value));
        }
        self.index += 1 + rng.below(3);
        change.applied = Applied {
            index: self.index,
            term: 1 + self.index / 10,
        };
        change.revision = self.next - 1;
        self.state.apply(&change);
        change
    }
}

pub fn options() -> Options {
    Options {
        reserve_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        ..Options::default()
    }
}

pub fn open(disk: &MemDisk) -> Result<(Backend, Recovered), Error> {
    Backend::open_disk(std::sync::Arc::new(disk.clone()), options())
}
