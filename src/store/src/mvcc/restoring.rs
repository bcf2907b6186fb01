//! The index comes back from stored rows, which are in the order of their revisions and not of their keys.
//!
//! Taken in one by one, each row of a large store means leaves that the processor has to fetch from memory. So rows are
//! gathered and sorted first: then several of them meet in the same leaf.

use super::index::Index;
use super::version::Version;
use crate::backend::MetaRow;
use crate::polite::Polite;

/// Rows of a batch, and bytes of their keys; about 15 MiB in all.
const ROWS: usize = 128 << 10;
const KEY_BYTES: usize = 8 << 20;

#[derive(Debug)]
pub struct Restoring {
    index: Index,
    /// End to end.
    keys: Vec<u8>,
    rows: Vec<Row>,
    batch_rows: usize,
}

#[derive(Debug)]
struct Row {
    /// Of the key.
    begin: u32,
    len: u32,
    version: Version,
}

impl Default for Restoring {
    fn default() -> Self {
        Self::in_batches(ROWS)
    }
}

impl Restoring {
    fn in_batches(batch_rows: usize) -> Self {
        Self {
            index: Index::default(),
            keys: Vec::new(),
            rows: Vec::new(),
            batch_rows,
        }
    }

    /// In ascending order of rows.
    pub fn add(&mut self, row: &MetaRow<'_>) {
        self.rows.push(Row {
            // A batch ends long before 4 GiB, and a key came in a request.
            begin: self.keys.len() as u32,
            len: row.key.len() as u32,
            version: Version::of(row),
        });
        self.keys.extend_from_slice(row.key);
        if self.rows.len() >= self.batch_rows || self.keys.len() >= KEY_BYTES {
            self.take_in();
        }
    }

    pub fn finish(mut self) -> Index {
        self.take_in();
        self.index
    }

    fn take_in(&mut self) {
        let key = |row: &Row| &self.keys[row.begin as usize..][..row.len as usize];
        // A key's versions stay in their order.
        self.rows
            .sort_unstable_by(|a, b| key(a).cmp(key(b)).then(a.version.row().cmp(&b.version.row())));
        let mut polite = Polite::default();
        for row in &self.rows {
            self.index.restore(key(row), row.version);
            polite.pass(row.len as usize);
        }
        self.keys.clear();
        self.rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::RowId;

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[a-c]{1,3}", 1 => Just(String::new())]
    }

    proptest! {
        #[test]
        fn batches_make_the_same_index(
            keys in proptest::collection::vec((key(), any::<bool>()), 0..200),
            batch in 1..50_usize,
        ) {
            let mut one_by_one = Index::default();
            let mut batches = Restoring::in_batches(batch);
            for (at, (key, tombstone)) in keys.iter().enumerate() {
                let row = MetaRow {
                    id: RowId { main: at as i64 + 2, sub: 0 },
                    key: key.as_bytes(),
                    create: at as i64 + 2,
                    version: 1,
                    lease: 0,
                    value_len: at as u64,
                    tombstone: *tombstone,
                };
                one_by_one.restore(row.key, Version::of(&row));
                batches.add(&row);
            }
            let batches = batches.finish();
            prop_assert_eq!(batches.dump(), one_by_one.dump());
            prop_assert_eq!(batches.keys(), one_by_one.keys());
            prop_assert_eq!(batches.live_keys(), one_by_one.live_keys());
        }
    }
}
