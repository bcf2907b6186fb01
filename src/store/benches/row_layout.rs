//! How should versions lie in the file? Three candidates, on redb alone: (a) one value per row by `insert`, (b) the
//! same through a cursor at the end of the table, (c) several values packed into one row. Each put is a value and
//! a row of `meta`; keys are 64 B. What decides: CPU per put, size of the file, reads by revision, and what compaction
//! of rows scattered all over the file costs. Times are CPU of the one thread; caches of the kernel are warm.
//!
//! `cargo bench -p quorate-store --profile quick --bench row_layout`

use std::fs;
use std::hint::black_box;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use redb::{Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

const META: TableDefinition<&[u8; 12], &[u8]> = TableDefinition::new("meta");
const VALUES: TableDefinition<&[u8; 12], &[u8]> = TableDefinition::new("values");
const CACHE_SMALL: usize = 16 << 20;
const CACHE_LARGE: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Plain,
    Append,
    /// So many bytes in a row at most: with redb's own just under a page of some size.
    Packed(usize),
}

const LAYOUTS: [Layout; 6] = [
    Layout::Plain,
    Layout::Append,
    Layout::Packed(4_000),
    Layout::Packed(8_000),
    Layout::Packed(16_000),
    Layout::Packed(32_500),
];

fn main() {
    println!(
        "| layout | value | batch | CPU µs/put | file B/put | read hot µs | cold µs | 500 neighbours hot/cold µs | 500 scattered hot/cold µs | compaction of 90 %: how, CPU µs/row |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|---|");
    for value_len in [256, 1024] {
        for batch in [1000, 10_000] {
            for layout in LAYOUTS {
                run(layout, value_len, batch);
            }
        }
    }
}

fn key(revision: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&revision.to_be_bytes());
    out
}

fn open(path: &Path, cache: usize) -> Database {
    Builder::new().set_cache_size(cache).create(path).expect("open")
}

fn begin(db: &Database) -> redb::WriteTransaction {
    let mut write = db.begin_write().expect("begin");
    write.set_durability(Durability::Immediate).expect("durability");
    write.set_quick_repair(true);
    write
}

/// CPU of this thread so far, in µs.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let before = cpu();
    let out = work();
    (cpu() - before, out)
}

fn value(revision: u64, out: &mut [u8]) {
    let mut x = revision.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in out.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
}

fn run(layout: Layout, value_len: usize, batch: u64) {
    let count: u64 = if value_len > 500 { 200_000 } else { 400_000 };
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("db");
    let db = open(&path, CACHE_SMALL);
    let mut scratch = vec![0; value_len];
    value(1, &mut scratch);
    let mut spent = 0.0;
    for first in (0..count).step_by(batch as usize) {
        spent += timed(|| put_batch(&db, layout, first, batch, &mut scratch)).0;
    }
    let per_put = spent / count as f64;
    let stat = fs::metadata(&path).expect("stat");
    drop(db);

    let db = open(&path, CACHE_LARGE);
    let read = db.begin_read().expect("read").open_table(VALUES).expect("table");
    read_scattered(&read, layout, (0..count).step_by(3));
    let hot = read_figures(&read, layout, count);
    drop((read, db));
    let db = open(&path, CACHE_SMALL);
    let read = db.begin_read().expect("read").open_table(VALUES).expect("table");
    let cold = read_figures(&read, layout, count);
    drop((read, db));
    let compaction = compaction(&path, layout, count);
    println!(
        "| {layout:?} | {value_len} | {batch} | {per_put:.2} | {} | {:.2} | {:.2} | {:.0} / {:.0} | {:.0} / {:.0} | {compaction} |",
        stat.blocks() * 512 / count,
        hot.0,
        cold.0,
        hot.1,
        cold.1,
        hot.2,
        cold.2,
    );
}

fn put_batch(db: &Database, layout: Layout, first: u64, batch: u64, scratch: &mut [u8]) {
    let write = begin(db);
    let all = first..first + batch;
    {
        let mut meta = write.open_table(META).expect("meta");
        let mut values = write.open_table(VALUES).expect("values");
        let row = [7u8; 64 + 4 + 12];
        if layout == Layout::Plain {
            for revision in all {
                scratch[..8].copy_from_slice(&revision.to_le_bytes());
                let crc = crc32c::crc32c(scratch);
                scratch[8..12].copy_from_slice(&crc.to_le_bytes());
                meta.insert(&key(revision), &row[..]).expect("insert");
                values.insert(&key(revision), &*scratch).expect("insert");
            }
        } else {
            let mut end = meta.upper_bound_mut(Bound::<&[u8; 12]>::Unbounded).expect("cursor");
            all.clone()
                .for_each(|revision| end.insert_before(&key(revision), &row[..]).expect("append"));
            end.close().expect("close");
            let mut end = values.upper_bound_mut(Bound::<&[u8; 12]>::Unbounded).expect("cursor");
            let mut pack = Pack::default();
            let pack_bytes = if let Layout::Packed(bytes) = layout { bytes } else { 0 };
            for revision in all {
                scratch[..8].copy_from_slice(&revision.to_le_bytes());
                let crc = crc32c::crc32c(scratch);
                scratch[8..12].copy_from_slice(&crc.to_le_bytes());
                if layout == Layout::Append {
                    end.insert_before(&key(revision), &*scratch).expect("append");
                } else {
                    if !pack.is_empty() && pack.len() + scratch.len() + 12 > pack_bytes {
                        end.insert_before(&key(pack.first()), &pack.finish()[..])
                            .expect("append");
                    }
                    pack.add(revision, scratch);
                }
            }
            if matches!(layout, Layout::Packed(_)) {
                end.insert_before(&key(pack.first()), &pack.finish()[..])
                    .expect("append");
            }
            end.close().expect("close");
        }
    }
    write.commit().expect("commit");
}

/// `count | (revision, end of value)… | values…`
#[derive(Default)]
struct Pack {
    entries: Vec<(u64, u32)>,
    bytes: Vec<u8>,
}

impl Pack {
    fn len(&self) -> usize {
        4 + self.entries.len() * 12 + self.bytes.len()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn first(&self) -> u64 {
        self.entries[0].0
    }

    fn add(&mut self, revision: u64, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.entries.push((revision, self.bytes.len() as u32));
    }

    fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for (revision, end) in self.entries.drain(..) {
            out.extend_from_slice(&revision.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
        out.append(&mut self.bytes);
        out
    }
}

fn packed(blob: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let count = u32::from_le_bytes(blob[..4].try_into().expect("4 bytes")) as usize;
    let (table, bytes) = blob[4..].split_at(count * 12);
    let mut from = 0;
    table.chunks(12).map(move |entry| {
        let end = u32::from_le_bytes(entry[8..].try_into().expect("4 bytes")) as usize;
        let value = &bytes[from..end];
        from = end;
        (u64::from_le_bytes(entry[..8].try_into().expect("8 bytes")), value)
    })
}

type Values = ReadOnlyTable<&'static [u8; 12], &'static [u8]>;

fn check(value: &[u8], revision: u64) {
    assert_eq!(value[..8], revision.to_le_bytes(), "revision {revision}");
    black_box(crc32c::crc32c(value));
}

fn read_one(table: &Values, layout: Layout, revision: u64) {
    if matches!(layout, Layout::Packed(_)) {
        let mut at = table.upper_bound(Bound::Included(&key(revision))).expect("seek");
        let (_, blob) = at.prev().expect("read").expect("there");
        let (_, value) = packed(blob.value()).find(|(at, _)| *at == revision).expect("there");
        check(value, revision);
    } else {
        check(
            table.get(&key(revision)).expect("read").expect("there").value(),
            revision,
        );
    }
}

fn read_scattered(table: &Values, layout: Layout, revisions: impl Iterator<Item = u64>) {
    revisions.for_each(|revision| read_one(table, layout, revision));
}

fn read_neighbours(table: &Values, layout: Layout, from: u64, to: u64) {
    if matches!(layout, Layout::Packed(_)) {
        let mut at = table.upper_bound(Bound::Included(&key(from))).expect("seek");
        at.prev().expect("read");
        while let Some((_, blob)) = at.next().expect("read") {
            for (revision, value) in packed(blob.value()).filter(|(revision, _)| *revision >= from) {
                if revision == to {
                    return;
                }
                check(value, revision);
            }
        }
    } else {
        let mut at = table.lower_bound(Bound::Included(&key(from))).expect("seek");
        for revision in from..to {
            check(at.next().expect("read").expect("there").1.value(), revision);
        }
    }
}

/// µs per random read, per 500 neighbours, per 500 scattered in ascending order.
fn read_figures(table: &Values, layout: Layout, count: u64) -> (f64, f64, f64) {
    let mut x = 88172645463325252u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let rounds = 20_000;
    let one = timed(|| read_scattered(table, layout, (0..rounds).map(|_| random() % count))).0 / rounds as f64;
    let starts: Vec<u64> = (0..50).map(|at| at * (count - 500) / 50).collect();
    let near = timed(|| {
        starts
            .iter()
            .for_each(|at| read_neighbours(table, layout, *at, at + 500))
    })
    .0 / 50.0;
    let step = count as usize / 500;
    let far = timed(|| (0..20u64).for_each(|at| read_scattered(table, layout, (at..count).step_by(step)))).0 / 20.0;
    (one, near, far)
}

fn compaction(path: &Path, layout: Layout, count: u64) -> String {
    let db = open(path, CACHE_SMALL);
    let third = count / 3;
    let goes = |revision: &u64| !revision.is_multiple_of(10);
    let mut told = Vec::new();
    // Nine of ten rows go, wherever they are, in slices of 10,000 revisions, each slice a commit. Each way of doing
    // it gets a part of the file of its own.
    let ways: &[&str] = if matches!(layout, Layout::Packed(_)) {
        &["rewrite"]
    } else {
        &["remove", "retain_in", "cursor"]
    };
    for (at, way) in ways.iter().enumerate() {
        let from = at as u64 * third;
        let wall = Instant::now();
        let (spent, ()) = timed(|| {
            for start in (from..from + third).step_by(10_000) {
                let end = (start + 10_000).min(from + third);
                let write = begin(&db);
                {
                    let mut meta = write.open_table(META).expect("meta");
                    let mut values = write.open_table(VALUES).expect("values");
                    let (low, high) = (key(start), key(end));
                    let revision = |key: &[u8; 12]| u64::from_be_bytes(key[..8].try_into().expect("8 bytes"));
                    for table in [&mut meta, &mut values] {
                        if *way == "remove" || (*way == "rewrite" && table_is_meta(table)) {
                            for revision in (start..end).filter(goes) {
                                table.remove(&key(revision)).expect("remove");
                            }
                        } else if *way == "retain_in" {
                            table
                                .retain_in::<&[u8; 12], _>(&low..&high, |key, _| !goes(&revision(key)))
                                .expect("retain");
                        } else if *way == "cursor" {
                            let mut cursor = table.lower_bound_mut(Bound::Included(&low)).expect("seek");
                            loop {
                                let next = cursor.peek_next().expect("peek").map(|(key, _)| revision(key.value()));
                                let Some(revision) = next.filter(|next| *next < end) else {
                                    break;
                                };
                                if goes(&revision) {
                                    cursor.remove_next().expect("remove");
                                } else {
                                    cursor.next().expect("next");
                                }
                            }
                            cursor.close().expect("close");
                        } else {
                            let old: Vec<([u8; 12], Vec<u8>)> = (table.range::<&[u8; 12]>(&low..&high).expect("range"))
                                .map(|row| {
                                    row.map(|(key, blob)| (*key.value(), blob.value().to_vec()))
                                        .expect("row")
                                })
                                .collect();
                            for (key, blob) in old {
                                let mut kept = Pack::default();
                                let stay = packed(&blob).filter(|(revision, _)| !goes(revision));
                                stay.for_each(|(revision, value)| kept.add(revision, value));
                                table.insert(&key, &kept.finish()[..]).expect("insert");
                            }
                        }
                    }
                }
                write.commit().expect("commit");
            }
        });
        let rows = third as f64 * 0.9;
        let wall = wall.elapsed().as_secs_f64() * 1e6 / rows;
        told.push(format!("{way} {:.2} (wall {wall:.2})", spent / rows));
    }
    told.join(", ")
}

fn table_is_meta(table: &redb::Table<'_, &'static [u8; 12], &'static [u8]>) -> bool {
    redb::TableHandle::name(table) == "meta"
}
